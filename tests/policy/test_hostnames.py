"""Tenant hostnames: whose they are, and what a client that called by one is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Code, MeshError
from mesh.policy.hostnames import (
    DoorNames,
    check_label,
    host_name,
    is_public_label,
    label_of,
    labels_under,
    tenant_endpoint,
)
from mesh.types import Endpoint, Jurisdiction, RegionId, TenantId

ACME, GLOBEX = TenantId("t_abcdefghij234567"), TenantId("t_" + "b" * 16)
ZONE, OTHER = "vn-1.mesh.example", "sg-1.mesh.example"
NAMES = DoorNames(plain=frozenset({ZONE, "127.0.0.1", "door.vn-1.mesh"}), zone=ZONE, zones=frozenset({ZONE, OTHER}))
NO_ZONE = DoorNames(plain=frozenset({"127.0.0.1"}))
MINE = f"{label_of(ACME)}.{ZONE}"


@pytest.mark.parametrize(
    ("server_name", "host", "label"),
    [
        (MINE, MINE, label_of(ACME)),
        (MINE, f"{MINE.upper()}.:8443", label_of(ACME)),
        (MINE.upper(), MINE, label_of(ACME)),
        (MINE, None, label_of(ACME)),
        (f"acme.{ZONE}", f"acme.{ZONE}:443", "acme"),
        (ZONE, f"{ZONE}:8443", None),
        ("door.vn-1.mesh", "door.vn-1.mesh", None),
        (None, "127.0.0.1:8443", None),
        (None, ZONE, None),
        (None, "localhost:8443", None),
        (None, None, None),
    ],
)
def test_a_name_of_this_region(server_name: str | None, host: str | None, label: str | None) -> None:
    assert NAMES.label(server_name, host) == label


@pytest.mark.parametrize(
    ("server_name", "host"),
    [
        (MINE, f"{label_of(GLOBEX)}.{ZONE}"),
        (MINE, ZONE),
        (ZONE, MINE),
        (MINE, "127.0.0.1"),
        (None, MINE),
        (None, f"x.{OTHER}"),
        (f"x.{OTHER}", f"x.{OTHER}"),
        (OTHER, OTHER),
        (f"a.b.{ZONE}", f"a.b.{ZONE}"),
        (f".{ZONE}", f".{ZONE}"),
        (f"-.{ZONE}", f"-.{ZONE}"),
        (f"x{ZONE}", f"x{ZONE}"),
        ("mesh.example", "mesh.example"),
        ("", ""),
        (f"{MINE}:8443", f"{MINE}:1:8443"),
    ],
)
def test_any_other_name_is_misdirected(server_name: str | None, host: str) -> None:
    with pytest.raises(MeshError) as caught:
        NAMES.label(server_name, host)
    assert caught.value.code is Code.MISDIRECTED_REQUEST
    if server_name is not None:
        with pytest.raises(MeshError):
            NO_ZONE.label(server_name, host)


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_label_is_never_had_but_by_the_whole_name(server_name: str, host: str) -> None:
    try:
        label = NAMES.label(server_name, host)
    except MeshError:
        return
    if label is not None:
        assert host_name(server_name) == host_name(host) == f"{label}.{ZONE}"


def test_a_label_is_its_tenants() -> None:
    assert label_of(ACME) == "t-abcdefghij234567"
    check_label(None, ACME)
    check_label(label_of(ACME), ACME)
    for label in (label_of(GLOBEX), ACME, "", "t-ABCDEFGHIJ234567"):
        with pytest.raises(MeshError) as caught:
            check_label(label, ACME)
        assert caught.value.code is Code.MISDIRECTED_REQUEST


def test_a_label_that_was_chosen_is_its_tenants_as_well_as_the_id() -> None:
    for label in (None, "acme", label_of(ACME)):
        check_label(label, ACME, "acme")
    for label in ("globex", "", label_of(GLOBEX), "ACME"):
        with pytest.raises(MeshError) as caught:
            check_label(label, ACME, "acme")
        assert caught.value.code is Code.MISDIRECTED_REQUEST
    with pytest.raises(MeshError):
        check_label("", ACME, "")


@pytest.mark.parametrize("label", ["a", "acme", "acme-2", "4me", "t-acme", "t-" + "1" * 16, "a" * 63])
def test_labels_that_can_be_chosen(label: str) -> None:
    assert is_public_label(label)


@pytest.mark.parametrize(
    "label",
    ["", "-a", "a-", "a.b", "A", "a_b", "a" * 64, "công", "xn--cng-7na", "a b", label_of(ACME), "t-" + "b" * 16, "a\n"],
)
def test_labels_that_cannot_be_chosen(label: str) -> None:
    assert not is_public_label(label)


def test_the_labels_of_the_meshs_own_names() -> None:
    names = [f"https://door.{ZONE}:8443", f"G1.{ZONE}:8444", ZONE, f"x.{OTHER}", "127.0.0.1:8443"]
    assert labels_under(names, ZONE) == {"door", "g1"}


@pytest.mark.parametrize(
    ("http", "grpc", "named"),
    [
        ("https://vn-1.mesh.example", "vn-1.mesh.example:8444", (f"https://{MINE}", f"{MINE}:8444")),
        ("https://127.0.0.1:8443", "[::1]:8444", (f"https://{MINE}:8443", f"{MINE}:8444")),
        ("https://[::1]", "g:1", (f"https://{MINE}", f"{MINE}:1")),
    ],
)
def test_a_tenants_endpoint_is_the_regions_by_its_own_name(http: str, grpc: str, named: tuple[str, str]) -> None:
    endpoint = Endpoint(region=RegionId("vn-1"), jurisdiction=Jurisdiction("VN"), http=http, grpc=grpc)
    own = tenant_endpoint(endpoint, ZONE, ACME)
    assert (own.http, own.grpc, own.region) == (*named, "vn-1")
    assert tenant_endpoint(endpoint, None, ACME) == endpoint
    chosen = tenant_endpoint(endpoint, ZONE, ACME, "acme")
    assert (chosen.http, chosen.grpc) == tuple(name.replace(label_of(ACME), "acme") for name in named)
