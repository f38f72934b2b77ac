"""A home's folder, addresses and settings."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from sqlalchemy import make_url

from mesh.control.signing import Signer
from mesh.embedded.addresses import Addresses, addresses_of, taken
from mesh.embedded.configuration import catalogue, chosen, embedded_settings, places, write_settings
from mesh.embedded.home import Home, cache_folder, read_json, write_private
from mesh.embedded.policy_keys import check_policy_keys, make_policy_key, policy_keys
from mesh.errors import Code, MeshError
from mesh.settings import Address, load
from mesh.types import ModelId, RegionId

VN, SG, JP = RegionId("vn-1"), RegionId("ap-southeast-1"), RegionId("ap-northeast-1")
REGIONS = (VN, SG, JP)


def home(folder: Path) -> Home:
    made = Home(folder)
    made.make()
    return made


def test_addresses_are_picked_once(tmp_path: Path) -> None:
    first = addresses_of(home(tmp_path / "a"), tmp_path / "cache", REGIONS)
    assert addresses_of(home(tmp_path / "a"), tmp_path / "cache", REGIONS) == first
    assert (tmp_path / "a" / "addresses.json").stat().st_mode & 0o777 == 0o600


def test_homes_do_not_share_addresses_whether_they_run_or_not(tmp_path: Path) -> None:
    picked = [addresses_of(home(tmp_path / str(i)), tmp_path / "cache", REGIONS) for i in range(4)]
    listeners = [set(one.listeners(REGIONS)) for one in picked]
    assert sum(map(len, listeners)) == len(set().union(*listeners))
    assert len({one.instance for one in picked}) == 4


def test_more_homes_than_places_share_those_that_are_free(tmp_path: Path) -> None:
    picked = [addresses_of(home(tmp_path / str(i)), tmp_path / "cache", (VN,)) for i in range(40)]
    assert len({one.network for one in picked}) == 40
    assert 20 < len({one.ray_base for one in picked}) < 40


def test_a_place_that_is_listened_on_is_not_picked(tmp_path: Path) -> None:
    # In the user's own registry, so that no mesh that starts meanwhile takes these.
    first = addresses_of(home(tmp_path / "a"), cache_folder(os.environ), REGIONS)
    with socket.create_server((first.etcd.host, first.etcd.port)):
        assert taken(first.listeners(REGIONS)) == [first.etcd]
        other = addresses_of(home(tmp_path / "b"), tmp_path / "other-cache", REGIONS)
        assert other.network != first.network
    assert taken(first.listeners(REGIONS)) == []


def test_every_listener_is_on_loopback_and_none_is_debians_etcd(tmp_path: Path) -> None:
    picked = addresses_of(home(tmp_path / "a"), tmp_path / "cache", places(catalogue()))
    listeners = picked.listeners(picked.order)
    assert len(set(listeners)) == len(listeners)
    assert Address("127.0.0.1", 2379) not in listeners
    assert all(one.host.startswith("127.") for one in listeners)
    ports = [port for region in picked.order for port in picked.of(region).ray.fixed().values()]
    assert max(ports) < 32_768


def test_a_region_keeps_its_place_when_others_are_added(tmp_path: Path) -> None:
    first = addresses_of(home(tmp_path / "a"), tmp_path / "cache", (VN, SG))
    later = addresses_of(home(tmp_path / "a"), tmp_path / "cache", (JP, SG, VN))
    assert [later.of(region) for region in (VN, SG)] == [first.of(region) for region in (VN, SG)]
    assert later.of(JP) not in (first.of(VN), first.of(SG))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"instance": "x"}', '{"instance": 1, "network": "a"}'])
def test_a_damaged_file_is_picked_anew(tmp_path: Path, text: str) -> None:
    made = home(tmp_path / "a")
    made.addresses.write_text(text)
    assert addresses_of(made, tmp_path / "cache", REGIONS).order == REGIONS


def test_rays_sockets_fit(tmp_path: Path) -> None:
    picked = addresses_of(home(tmp_path / "a"), tmp_path / "cache", REGIONS)
    session = "session_2026-11-21_10-02-04_036722_1234567/sockets/plasma_store.1"
    assert len(str(picked.ray_temp(JP) / session)) < 107


def test_settings_are_this_machines(tmp_path: Path) -> None:
    known = catalogue()
    made = home(tmp_path / "a")
    picked = addresses_of(made, tmp_path / "cache", places(known))
    for region in REGIONS:
        (made.pki / region).mkdir(parents=True)
        make_policy_key(made.pki, region)
    keys = policy_keys(made.pki, REGIONS)
    settings = embedded_settings(known, REGIONS, made, picked, tmp_path / "models", "cpu", keys)
    write_settings(settings, made.config)
    write_settings(settings, made.config)  # the second start replaces it
    assert load(made.config) == settings
    assert set(settings.regions) == set(REGIONS)
    for region in settings.regions.values():
        # What its admin signs with is what everyone holds it against; no region has another's.
        assert Signer.load(made.pki, region).key_id == region.policy_keys[0].id
    assert len({region.policy_keys[0].public for region in settings.regions.values()}) == len(REGIONS)
    for region in settings.regions.values():
        assert region.accelerator == "cpu"
        assert region.models == known.regions[region.id].models
        assert [(one.replicas, one.gpus_per_replica) for one in region.deployments] == [(1, 0)]
        assert region.replica_host == picked.of(region.id).host
        assert region.endpoint.http == f"https://{picked.of(region.id).host}:8443"
    assert ModelId("smollm2-135m-sg") in settings.regions[SG].models
    assert settings.ledger.format(region=VN) == f"sqlite:///{made.ledger}/vn-1.db"


def test_a_home_whose_policy_nobody_can_sign_any_more_is_refused(tmp_path: Path) -> None:
    made = home(tmp_path / "a")
    (made.pki / VN).mkdir(parents=True)
    check_policy_keys(made, REGIONS)  # nothing is stored yet: a start that was cut short
    (made.etcd / "member").mkdir()
    with pytest.raises(MeshError, match=r"policy\.key is missing") as caught:
        check_policy_keys(made, REGIONS)
    assert caught.value.code is Code.START_FAILED
    make_policy_key(made.pki, VN)
    check_policy_keys(made, REGIONS)  # the others are new regions
    first = policy_keys(made.pki, [VN])
    make_policy_key(made.pki, VN)
    assert policy_keys(made.pki, [VN]) == first, "it is kept"
    (made.pki / VN / "policy.key").write_text("-----BEGIN PRIVATE KEY-----")
    with pytest.raises(MeshError, match="not an Ed25519"):
        policy_keys(made.pki, [VN])


def test_regions_are_chosen() -> None:
    known = catalogue()
    assert chosen(known, None) == REGIONS
    assert chosen(known, ["ap-east-1", "vn-1", "ap-east-1"]) == ("ap-east-1", "vn-1")
    with pytest.raises(MeshError) as caught:
        chosen(known, ["vn-1", "vn-2"])
    assert caught.value.code is Code.UNKNOWN_REGION
    assert "vn-1" in caught.value.message


def test_one_holder_of_the_lock(tmp_path: Path) -> None:
    made = home(tmp_path / "a")
    with made.locked() as first:
        assert first
        with made.locked() as second:
            assert not second
    with made.locked() as third:
        assert third


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MeshError) as caught:
        Home(tmp_path / "file" / "home").make()
    assert caught.value.code is Code.START_FAILED
    assert str(tmp_path / "file") in caught.value.message


def test_a_folder_of_other_things_is_left_as_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "letters").mkdir()
    with pytest.raises(MeshError, match="MESH_HOME") as caught:
        Home(shared).make()
    assert caught.value.code is Code.START_FAILED
    assert shared.stat().st_mode & 0o777 == 0o755
    assert [entry.name for entry in shared.iterdir()] == ["letters"]


def test_a_start_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    home(tmp_path / "a")
    (tmp_path / "a" / "what-it-said").write_text("")
    assert home(tmp_path / "a").addresses.exists() is False
    addresses_of(home(tmp_path / "a"), tmp_path / "cache", REGIONS)
    (tmp_path / "a" / "notes").mkdir()
    home(tmp_path / "a")


def test_a_copy_of_a_home_has_a_mark_of_its_own(tmp_path: Path) -> None:
    first = addresses_of(home(tmp_path / "a"), tmp_path / "cache", REGIONS)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    other = addresses_of(home(tmp_path / "b"), tmp_path / "cache", REGIONS)
    assert other.instance != first.instance
    assert not set(other.listeners(REGIONS)) & set(first.listeners(REGIONS))
    assert addresses_of(home(tmp_path / "a"), tmp_path / "cache", REGIONS) == first
    assert addresses_of(home(tmp_path / "b"), tmp_path / "cache", REGIONS) == other


def test_a_home_by_another_name_is_the_same(tmp_path: Path) -> None:
    first = addresses_of(home(tmp_path / "a"), tmp_path / "cache", REGIONS)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert addresses_of(home(tmp_path / "b"), tmp_path / "cache", REGIONS) == first
    (tmp_path / "b").unlink()
    (tmp_path / "a").rename(tmp_path / "c")
    assert addresses_of(home(tmp_path / "c"), tmp_path / "cache", REGIONS) == first


@pytest.mark.parametrize("name", ["a b", "a#b{x}", "a: 'b\"", "n\u00e4h"])
def test_a_home_of_any_name_keeps_its_ledgers(tmp_path: Path, name: str) -> None:
    made, known = home(tmp_path / name), catalogue()
    picked = addresses_of(made, tmp_path / "cache", places(known))
    for region in REGIONS:
        (made.pki / region).mkdir(parents=True)
        make_policy_key(made.pki, region)
    keys = policy_keys(made.pki, REGIONS)
    settings = embedded_settings(known, REGIONS, made, picked, tmp_path / "models", "cpu", keys)
    write_settings(settings, made.config)
    loaded = load(made.config)
    assert loaded == settings
    assert make_url(loaded.ledger.replace("{region}", VN)).database == str(made.ledger / "vn-1.db")


@pytest.mark.parametrize("name", ["a?b", "a%41", "a\nb", "{region}", "a\udcff"])
def test_a_name_that_cannot_stand_in_a_url_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MeshError, match="MESH_HOME") as caught:
        Home(tmp_path / name).make()
    assert caught.value.code is Code.START_FAILED
    assert list(tmp_path.iterdir()) == []


def test_private_files(tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    write_private(path, json.dumps({"a": 1}))
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_json(path) == {"a": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["samples.json"]
    with pytest.raises(MeshError, match="start_failed"):
        write_private(tmp_path / "missing" / "x", "")


def test_cache_folder() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/mesh")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache" / "mesh"
    assert cache_folder({}) == Path.home() / ".cache" / "mesh"


def test_unknown_addresses_say_nothing() -> None:
    with pytest.raises(ValueError, match="index"):
        Addresses("0" * 32, 1, 20_000, (VN,)).of(SG)
