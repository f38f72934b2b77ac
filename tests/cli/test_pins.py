"""`mesh pin` and what waits like it: progress, what is answered, resuming, receipts, members."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli.world import World, world
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mesh.cli.app import run
from mesh.control.receipts import make_receipt
from mesh.control.signing import Signer

REGIONS = Path(__file__).parents[2] / "regions"

ACME = "t_aaaaaaaaaaaaaaaa"


@pytest.fixture
def mesh(tmp_path: Path):
    with world(tmp_path) as made:
        made.admins["vn-1"].add("acme", ACME, ["VN", "SG"])
        yield made


def patience_of(mesh: World, method: str) -> list:
    return [request.patience for name, request in mesh.admins["vn-1"].calls if name == method]


def test_a_pin_says_how_each_member_was_accounted_for(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["pin", "acme", "--allow", "VN", "--drain", "5s", "--strict", "--timeout", "2m", "--json"], mesh.here) == 0
    )
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert {name: answer[name] for name in ("tenant", "revision", "allowed", "waited_ms")} == {
        "tenant": ACME,
        "revision": 2,
        "allowed": ["VN"],
        "waited_ms": 6100,
    }
    assert answer["acked"] == [{"region": "vn-1", "gateway": "g1", "member": "m1"}]
    assert answer["lapsed"] == []
    assert answer["timed_out"] == [{"region": "ap-southeast-1", "gateway": "g1", "member": "m2"}]
    # Each member is told of when something changed, and only then.
    assert err.count("acknowledged") == 1
    assert err.count("until ") == err.count("has run out") == 1
    (patience,) = patience_of(mesh, "Pin")
    assert (patience.strict, patience.timeout_ms, patience.op_id) == (True, 120_000, answer["op_id"])
    (request,) = [request for name, request in mesh.admins["vn-1"].calls if name == "Pin"]
    assert request.drain_ms == 5000


def test_an_admin_that_breaks_off_is_asked_again_for_the_same_change(
    mesh: World, capfd: pytest.CaptureFixture[str]
) -> None:
    mesh.admins["vn-1"].breaks_off = True
    assert run(["pin", "acme", "--allow", "VN", "--json"], mesh.here) == 0
    first, second = patience_of(mesh, "Pin")
    assert first.op_id == second.op_id != ""
    assert "Asking again" in capfd.readouterr().err


def test_resuming_names_the_change(mesh: World) -> None:
    assert run(["key", "create", "acme", "--json"], mesh.here) == 0
    key_id = next(iter(mesh.admins["vn-1"].keys))
    op_id = "0199a000-0000-7000-8000-000000000000"
    for arguments, method in (
        (["pin", "acme", "--allow", "VN"], "Pin"),
        (["tenant", "suspend", "acme"], "SuspendTenant"),
        (["key", "revoke", key_id], "RevokeKey"),
        (["tenant", "set", "acme", "--authority", "home=20s"], "SetAuthority"),
    ):
        assert run([*arguments, "--resume", op_id], mesh.here) == 0
        assert [patience.op_id for patience in patience_of(mesh, method)] == [op_id]


@pytest.mark.parametrize(
    ("text", "home_ms", "foreign_ms"),
    [("home=15m,foreign=6s", 900_000, 6000), ("foreign=500ms", 0, 500), ("home=24h", 86_400_000, 0)],
)
def test_authority_in_words(mesh: World, text: str, home_ms: int, foreign_ms: int) -> None:
    assert run(["tenant", "set", "acme", "--authority", text], mesh.here) == 0
    (request,) = [request for name, request in mesh.admins["vn-1"].calls if name == "SetAuthority"]
    assert (request.home_ms, request.foreign_ms) == (home_ms, foreign_ms)


def test_an_authority_of_nothing_is_asked_for_and_not_left_out(mesh: World) -> None:
    assert run(["tenant", "set", "acme", "--authority", "home=0s"], mesh.here) == 0  # the admin refuses it
    (asked,) = [request for name, request in mesh.admins["vn-1"].calls if name == "SetAuthority"]
    assert (asked.home_ms, asked.foreign_ms) == (1, 0), "0 leaves a value as it is"


def test_a_slow_revocation_is_warned_of(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tenant", "set", "acme", "--authority", "home=15m"], mesh.here) == 0
    assert "900 s" in capfd.readouterr().err
    assert run(["tenant", "set", "acme", "--authority", "home=20s"], mesh.here) == 0
    assert "20 s" not in capfd.readouterr().err


def test_transfer_can_be_set(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tenant", "set", "acme", "--transfer", "within_allowed", "--json"], mesh.here) == 0
    assert json.loads(capfd.readouterr().out)["transfer"] == "within_allowed"


def test_a_label_can_be_set_and_taken_back(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    for label, shown in (("acme-ai", "acme-ai"), ("", None)):
        assert run(["tenant", "set", "acme", "--label", label, "--json"], mesh.here) == 0
        assert json.loads(capfd.readouterr().out)["label"] == shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["pin", "acme", "--allow", "VN", "--drain", "5"],
        ["pin", "acme", "--allow", "VN", "--drain", "-5s"],
        ["pin", "acme", "--allow", "VN", "--timeout", "soon"],
        ["tenant", "set", "acme"],
        ["tenant", "set", "acme", "--authority", "6s"],
        ["tenant", "set", "acme", "--authority", "home=1m,home=2m"],
        ["tenant", "set", "acme", "--authority", "home=1m", "--transfer", "never"],
        ["tenant", "set", "acme", "--label", "a", "--transfer", "never"],
        ["pin"],
        ["pin", "acme"],
        ["pin", "status", "acme"],
        ["gateway", "attest-dead"],
    ],
)
def test_wrong_usage_changes_nothing(mesh: World, arguments: list[str]) -> None:
    assert run(arguments, mesh.here) == 2
    assert not [name for name, _ in mesh.admins["vn-1"].calls if name != "FindTenant"]


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(["pin", "acme"], "--allow"), (["tenant", "move", "acme"], "--home"), (["tenant", "move"], "TENANT")],
)
def test_what_is_missing_is_named_as_it_is_typed(
    mesh: World, capfd: pytest.CaptureFixture[str], arguments: list[str], missing: str
) -> None:
    assert run(arguments, mesh.here) == 2
    assert f"{missing} is missing." in capfd.readouterr().err


def test_an_admin_that_dies_before_it_answers_leaves_the_op_id(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    mesh.admins["vn-1"].is_mute = True
    assert run(["pin", "acme", "--allow", "VN", "--json"], mesh.here) == 1
    err = capfd.readouterr().err
    assert json.loads(err.splitlines()[-1])["error"]["code"] == "region_unreachable"
    (patience,) = patience_of(mesh, "Pin")
    assert "It is not known whether the change was made." in err
    assert f"--allow VN --resume {patience.op_id}" in err
    assert run(["pin", "nobody", "--allow", "VN", "--json"], mesh.here) == 1
    assert "not known" not in capfd.readouterr().err, "nothing was asked for"


def test_a_receipt_that_cannot_be_written_is_known_before_anything_changes(mesh: World, tmp_path: Path) -> None:
    assert run(["pin", "acme", "--allow", "VN", "--receipt", str(tmp_path / "no" / "r.json")], mesh.here) == 2
    assert mesh.admins["vn-1"].calls == []


def test_a_receipt_is_written(mesh: World, tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    assert run(["pin", "acme", "--allow", "VN", "--receipt", str(file), "--json"], mesh.here) == 0
    assert json.loads(file.read_text()) == {"statement": {}}


def test_status_takes_each_member_from_who_has_watched_it_longest(
    mesh: World, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["pin", "status", "--json"], mesh.here) == 0
    answer = json.loads(capfd.readouterr().out)
    assert [(item["member"], item["grant_age_ms"]) for item in answer["items"]] == [
        ("m-ap-southeast-1", 1000),
        ("m-vn-1", 1000),
    ]
    assert answer["items"][0]["shards"] == [{"home": "vn-1", "shard": 3, "applied": 6, "head": 7}]
    assert (answer["open"], answer["unreachable"]) == ([], [])
    assert run(["pin", "status"], mesh.here) == 0
    assert "m-vn-1" in capfd.readouterr().out


def test_a_death_is_attested_to_its_own_region(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["gateway", "attest-dead", "m-ap-southeast-1", "--json"], mesh.here) == 0
    assert json.loads(capfd.readouterr().out) == {"member": "m-ap-southeast-1", "gateway": "g1"}
    assert "AttestDead" in [name for name, _ in mesh.admins["ap-southeast-1"].calls]
    assert "AttestDead" not in [name for name, _ in mesh.admins["vn-1"].calls]
    assert run(["gateway", "attest-dead", "nobody", "--json"], mesh.here) == 1
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["error"]["code"] == "member_not_found"


def test_a_receipt_is_checked_offline(mesh: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    regions = tmp_path / "regions"
    shutil.copytree(REGIONS, regions)
    (regions / "vn-1.yaml").write_text(
        (REGIONS / "vn-1.yaml").read_text() + f"\npolicy_keys:\n  - id: k1\n    public: {public.hex()}\n"
    )
    statement = {"home": "vn-1", "tenant": ACME, "revision": 7, "returned_at": "2026-11-21T09:00:00.000+00:00"}
    receipt = make_receipt(statement, Signer(private, "k1"))
    file = tmp_path / "receipt.json"
    file.write_text(receipt)
    verify = ["pin", "verify", str(file), "--regions", str(regions), "--json"]
    assert run(verify, mesh.here) == 0
    assert json.loads(capfd.readouterr().out) == {"valid": True, **statement}
    for wrong in (
        receipt.replace("7", "8"),
        receipt.replace("vn-1", "ap-southeast-1"),
        receipt.replace('"k1"', '"k2"'),
        "{}",
        "not JSON",
        "[" * 5000,
        json.dumps({"statement": statement, "signed_by": "k1", "signature": "é"}),
        # What a reader of the file would take for a part of what was signed.
        receipt.replace('"revision"', '"revision": 8, "revision"'),
        receipt.replace('"statement"', '"revision": 8, "statement"', 1),
        # Neither can be signed at all.
        receipt.replace(ACME, ACME + "\\ud800"),
        receipt.replace("2026-11-21T09:00:00.000+00:00", "0001-01-01T00:00:00+23:59"),
        receipt + " " * (1 << 20),
    ):
        file.write_text(wrong)
        assert run(verify, mesh.here) == 1
        assert json.loads(capfd.readouterr().err.splitlines()[-1])["error"]["code"] == "invalid_receipt"
    assert run(["pin", "verify", str(tmp_path / "none.json"), "--json"], mesh.here) == 2
