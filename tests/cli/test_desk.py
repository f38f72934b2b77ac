"""A desk: the same commands for a mesh of other hosts, from its settings and the operator's certificate alone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from admin.test_admin import running_admin
from cli.world import Door, World, world
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.cli.app import run
from mesh.cli.context import Here, is_desk
from mesh.cli.desk import Desk, desk_status
from mesh.embedded.configuration import catalogue
from mesh.embedded.watching import View
from mesh.settings import Address, Settings, render
from mesh.types import GatewayId, RegionId
from mesh.v1 import admin_pb2, fleet_pb2

ACME, GLOBEX = "t_aaaaaaaaaaaaaaaa", "t_bbbbbbbbbbbbbbbb"
VN, SG, G1 = RegionId("vn-1"), RegionId("ap-southeast-1"), GatewayId("g1")
FILES = ("mesh-ca.pem", "doors-ca.pem", "operator.pem", "operator.key")
"""All that a desk has of a mesh's certificates and secrets."""


def settle(folder: Path, settings: Settings, pki: Path) -> Path:
    """Makes a desk of settings and of the certificates that it needs."""
    (folder / "pki").mkdir(parents=True)
    for name in FILES:
        shutil.copy(pki / name, folder / "pki" / name)
    (folder / "config/regions").mkdir(parents=True)
    for name, text in render(settings).items():
        (folder / "config" / name).write_text(text)
    return folder


def settings_of(mesh: World) -> Settings:
    """The settings of the mesh that the desk is for: real regions, with the places of this one's admins and doors."""
    known = catalogue()
    regions = {}
    for site in mesh.supervisor.sites(mesh.here.home).regions:
        region = known.regions[site.id]
        host, _, port = site.admin.rpartition(":")
        regions[site.id] = replace(
            region,
            domain="desk.example",
            admin=Address(host, int(port)),
            endpoint=replace(region.endpoint, http=site.http),
            gateways=(replace(region.gateways[0], internal=Address("127.0.0.1", 1)),),
        )
    return Settings(
        regions=regions,
        models=known.models,
        etcd=("https://etcd.vn-1.mesh.example:2379",),
        pki=Path("/etc/mesh/pki"),  # of the regions' hosts
        key_hash="bcrypt",
        ledger="sqlite:////var/lib/mesh/{region}.db",
        models_dir=Path("/var/lib/mesh/models"),
    )


@pytest.fixture
def mesh(tmp_path: Path):
    with world(tmp_path / "hosts") as made:
        made.admins["vn-1"].add("acme", ACME, ["VN", "SG"])
        made.admins["ap-southeast-1"].add("globex", GLOBEX, ["SG", "VN"])
        yield made


@pytest.fixture
def desk(tmp_path: Path, mesh: World) -> Here:
    folder = settle(tmp_path / "desk", settings_of(mesh), mesh.here.pki)
    return replace(mesh.here, home=folder, supervisor=Desk())


@pytest.fixture
def call(desk: Here, capfd: pytest.CaptureFixture[str]):
    def ask(*arguments: str, status: int = 0) -> dict:
        return called(desk, capfd, *arguments, status=status)

    return ask


def called(desk: Here, capfd: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict:
    assert run([*arguments, "--json"], desk) == status
    out, err = capfd.readouterr()
    return json.loads(out) if out else json.loads(err.splitlines()[-1])["error"]


def set_epoch(desk: Here, epoch: int) -> None:
    path = desk.home / "config/mesh.yaml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("control_epoch")]
    path.write_text("\n".join([*lines, f"control_epoch: {epoch}"]))


def contents(folder: Path) -> Mapping[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_the_regions_are_those_of_the_settings(call, mesh: World) -> None:
    made = call("tenant", "create", "initech", "--allow", "VN,SG")
    assert made["home"] == "vn-1"
    assert call("tenant", "show", made["tenant"]) == made
    listed = call("tenant", "list")
    assert [item["name"] for item in listed["items"]] == ["globex", "acme", "initech"]
    assert call("pin", "initech", "--allow", "VN")["allowed"] == ["VN"]
    assert {row["region"] for row in call("pin", "status")["items"]} == {"vn-1", "ap-southeast-1"}
    assert call("tenant", "suspend", "initech")["state"] == "suspended"
    assert call("tenant", "resume", "initech")["state"] == "active"
    assert call("tenant", "set", "initech", "--transfer", "within_allowed")["transfer"] == "within_allowed"
    key = call("key", "create", "initech")
    assert call("key", "revoke", key["key_id"])["revoked_at"]
    assert call("key", "list", "initech")["items"][0]["key_id"] == key["key_id"]
    assert {item["region"] for item in call("usage", "initech")["items"]} == {"vn-1", "ap-southeast-1"}
    assert len(call("usage", "initech", "--disclosures")["items"]) == 6
    assert call("route", "explain", "--tenant", "globex", "--model", "m")["at"] == "ap-southeast-1"
    assert call("gateway", "attest-dead", "m-vn-1")["gateway"] == "g1"
    assert call("tenant", "move", "acme", "--home", "ap-southeast-1")["home"] == "ap-southeast-1"
    assert call("tenant", "create", "x", "--allow", "VN", "--home", "ap-east-1", status=1)["code"] == "unknown_region"


def test_regions_fronts_and_models_are_those_of_the_settings(call, desk: Here) -> None:
    assert [item["id"] for item in call("region", "list")["items"]] == ["ap-southeast-1", "vn-1"]
    assert call("region", "show", "vn-1")["admin"].startswith("127.0.0.1:")
    assert "vn-1\\.desk\\.example" in call("region", "front", "vn-1")["config"]
    assert "10.20.0.10" in call("region", "render", "vn-1")["cluster"]
    assert call("region", "front", "ap-east-1", status=1)["code"] == "unknown_region"
    models = {item["model"]: item["regions"] for item in call("model", "list")["items"]}
    assert models["smollm2-135m-sg"] == ["ap-southeast-1"]


def test_a_region_that_is_away(call, mesh: World) -> None:
    mesh.stop("vn-1")
    assert call("tenant", "list")["unreachable"] == ["vn-1"]
    assert call("usage", GLOBEX)["unreachable"] == ["vn-1"]
    assert call("pin", "globex", "--allow", "SG", status=0)["allowed"] == ["SG"]
    for command in (["tenant", "create", "x", "--allow", "VN,SG"], ["key", "create", "acme"]):
        refused = call(*command, status=1)
        assert refused["code"] == "region_unreachable"
        assert "vn-1" in refused["remedy"]
    rows = {row["id"]: row["state"] for row in call("status")["regions"]}
    assert rows == {"vn-1": "down", "ap-southeast-1": "degraded"}


@pytest.mark.parametrize(("command", "status", "code"), [("up", 1, "start_failed"), ("down", 3, "not_running")])
def test_nothing_is_started_or_ended_from_a_desk(call, desk: Here, command: str, status: int, code: str) -> None:
    before = contents(desk.home)
    refused = call(command, status=status)
    assert refused["code"] == code
    assert f"{desk.home} is the desk" in refused["remedy"]
    assert contents(desk.home) == before


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("config/mesh.yaml", ["tenant", "list"]),
        ("config/mesh.yaml", ["region", "list"]),
        ("config/models.yaml", ["status"]),
        ("pki/mesh-ca.pem", ["tenant", "list"]),
        ("pki/operator.pem", ["control", "recover"]),
        ("pki/operator.key", ["pin", "acme", "--allow", "VN"]),
        ("pki/doors-ca.pem", ["chat", "Hi", "--key", "k"]),
    ],
)
def test_a_file_that_is_missing_is_named(call, desk: Here, mesh: World, file: str, command: Sequence[str]) -> None:
    (desk.home / file).unlink()
    assert is_desk(desk.home)
    refused = call(*command, status=1)
    assert refused["code"] == "invalid_settings"
    assert Path(file).name in refused["remedy"]
    assert str(desk.home / Path(file).parent) in refused["remedy"]
    assert all(admin.calls == [] for admin in mesh.admins.values())


def test_a_certificate_that_is_of_no_use_is_told(call, desk: Here, mesh: World) -> None:
    pki = desk.home / "pki"
    key = (pki / "operator.key").read_text()
    (pki / "operator.key").write_text("no key")
    assert "operator.pem: not a certificate with its key" in call("tenant", "list", status=1)["remedy"]
    (pki / "operator.key").write_text(key)
    for suffix in ("pem", "key"):
        shutil.copy(mesh.here.pki / f"vn-1/gateway.{suffix}", pki / f"operator.{suffix}")
    assert "is no operator's certificate" in call("tenant", "list", status=1)["remedy"]
    end_yesterday(pki)
    refused = call("tenant", "list", status=1)
    assert refused["code"] == "invalid_settings"
    assert "operator.pem: was good until" in refused["remedy"]


def end_yesterday(pki: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    days = [datetime.now(UTC) - timedelta(days=day) for day in (2, 1)]
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number(), *days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    (pki / "operator.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (pki / "operator.key").write_bytes(private.private_bytes(*form))


def published(mesh: World) -> list[int]:
    return [request.epoch for admin in mesh.admins.values() for name, request in admin.calls if name == "Recover"]


def test_homes_publish_only_where_every_admin_has_the_epoch_of_the_desk(call, desk: Here, mesh: World) -> None:
    set_epoch(desk, 2)
    refused = call("control", "recover", status=1)
    assert (refused["code"], refused["param"]) == ("invalid_settings", "control_epoch")
    for words in ("vn-1 (1)", "ap-southeast-1 (1)", "control_epoch: 2", "every region", "restart all gateways"):
        assert words in refused["remedy"]
    mesh.admins["vn-1"].epoch = 2
    refused = call("control", "recover", status=1)
    assert "vn-1" not in refused["remedy"]
    assert published(mesh) == []
    mesh.admins["ap-southeast-1"].epoch = 2
    answer = call("control", "recover")
    assert (answer["epoch"], answer["raised"], answer["unreachable"]) == (2, False, [])
    assert {item["region"] for item in answer["items"]} == {"vn-1", "ap-southeast-1"}
    assert published(mesh) == [2, 2]
    set_epoch(desk, 1)
    assert "bring the regions' settings here" in call("control", "recover", status=1)["remedy"]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_desk_says_how_to_begin_the_next_epoch(call, desk: Here, mesh: World, epoch: int) -> None:
    set_epoch(desk, epoch)
    for admin in mesh.admins.values():
        admin.epoch = epoch
    mesh.admins["vn-1"].went_back = True
    refused = call("control", "recover", status=1)
    assert f"'control_epoch: {epoch + 1}' in {desk.home / 'config/mesh.yaml'}" in refused["remedy"]
    assert ("only needs the restart" in refused["remedy"]) is (epoch > 1)
    assert published(mesh) == []


def test_who_is_away_is_recovered_later(call, mesh: World) -> None:
    mesh.stop("ap-southeast-1")
    answer = call("control", "recover", status=1)
    assert ([item["region"] for item in answer["items"]], answer["unreachable"]) == (["vn-1"], ["ap-southeast-1"])


def test_chat_goes_to_the_doors_of_the_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    events = ('{"choices":[{"delta":{"content":"Chào"}}]}', "[DONE]")
    with world(tmp_path / "hosts", {"vn-1": type("Serves", (Door,), {"events": events})}) as mesh:
        folder = settle(tmp_path / "desk", settings_of(mesh), mesh.here.pki)
        desk = replace(mesh.here, home=folder, supervisor=Desk())
        assert called(desk, capfd, "chat", "Hi", "--key", "k")["text"] == "Chào"
        assert called(desk, capfd, "chat", "Hi", "--key", "k", "--at", "mars-1", status=1)["code"] == "unknown_region"


def test_as_a_process(desk: Here) -> None:
    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mesh.cli.main", *arguments, "--json"]
        environ = {**os.environ, "MESH_HOME": str(desk.home)}
        return subprocess.run(command, env=environ, capture_output=True, text=True, cwd="/", check=False)

    listed = ask("tenant", "list")
    assert [item["name"] for item in json.loads(listed.stdout)["items"]] == ["globex", "acme"]
    assert json.loads(ask("up").stderr.splitlines()[-1])["error"]["code"] == "start_failed"
    (desk.home / "addresses.json").write_text("{}")  # the home of a mesh on this machine, of which nothing runs
    refused = ask("tenant", "list")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert json.loads(refused.stderr.splitlines()[-1])["error"]["code"] == "not_running"


@pytest.mark.parametrize(
    ("holds", "wanted"),
    [((), False), (("config",), True), (("pki",), True), (("config", "pki"), True), (("config", "run"), False),
     (("config", "pki", "addresses.json"), False), (("etcd",), False)],
)  # fmt: skip
def test_what_is_a_desk(tmp_path: Path, holds: Sequence[str], wanted: bool) -> None:
    for name in holds:
        (tmp_path / name).mkdir()
    assert is_desk(tmp_path) is wanted


def said(settings: Settings, region: RegionId, *, live: bool = True) -> fleet_pb2.GatewayStatus:
    models = [
        fleet_pb2.ModelReport(model=model, state=fleet_pb2.REPLICA_STATE_READY, slots=4)
        for model in sorted(settings.regions[region].models)
    ]
    replica = fleet_pb2.ReplicaReport(replica="ab" * 8, pid=77, models=models)
    return fleet_pb2.GatewayStatus(gateway="g1", pid=78, policy_loaded=True, policy_live=live, replicas=[replica])


def test_a_status_tells_what_was_told_and_nothing_else(mesh: World) -> None:
    settings = settings_of(mesh)
    control = admin_pb2.ControlStatusResponse(epoch=1, compared=True, published=True)
    good = View(
        None,
        {(VN, G1): said(settings, VN), (SG, G1): said(settings, SG)},
        {VN: True, SG: True},
        {VN: control, SG: control},
    )
    whole = desk_status(settings, good)
    assert (whole["state"], whole["reasons"]) == ("ready", [])
    assert whole["control"] == {"epoch": 1, "went_back": False, "published": True}
    assert whole["etcd"] == {"endpoints": list(settings.etcd), "healthy": None, "version": None, "pid": None}
    shown = mesh.supervisor.found
    assert shown is not None
    for row, alike in zip(whole["regions"], shown["regions"], strict=True):
        assert row.keys() == alike.keys()
        assert row["state"] == "ready"
        assert row["gateways"] == [{"id": "g1", "state": "ready", "pid": 78}]
        assert row["ray"] == {"state": None, "pid": None}
        assert {replica["pid"] for replica in row["replicas"]} == {77}

    away = replace(good, gateways={**good.gateways, (SG, G1): None}, admins={VN: True, SG: False},
                   control={VN: control, SG: None})  # fmt: skip
    part = desk_status(settings, away)
    assert {row["id"]: row["state"] for row in part["regions"]} == {SG: "down", VN: "ready"}
    assert (part["state"], part["control"]) == ("degraded", {"epoch": 1, "went_back": None, "published": None})
    (reason,) = part["reasons"]
    assert reason.startswith("ap-southeast-1: nobody answers from here")

    other = admin_pb2.ControlStatusResponse(epoch=2, published=False, went_back=True)
    ill = replace(
        good, gateways={**good.gateways, (VN, G1): said(settings, VN, live=False)}, control={VN: control, SG: other}
    )
    text = "\n".join(desk_status(settings, ill)["reasons"])
    for words in (
        "vn-1: gateway g1 has lost",
        "runs with control epoch 2, the settings here have 1",
        "went back in time",
    ):
        assert words in text


async def test_a_desk_of_a_real_admin(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with running_admin(tmp_path / "host") as host:
        folder = settle(tmp_path / "desk", host.settings, host.settings.pki)
        desk = Here(dict(os.environ), folder, Desk())

        async def ask(*arguments: str, status: int = 0) -> dict:
            return await asyncio.to_thread(called, desk, capfd, *arguments, status=status)

        made = await ask("tenant", "create", "acme", "--allow", "VN,SG")
        assert (await ask("tenant", "list"))["items"] == [made]
        assert (await ask("pin", "acme", "--allow", "VN"))["revision"] == 2
        found = await ask("status")
        (row,) = found["regions"]
        assert (found["state"], row["state"], row["replicas"]) == ("degraded", "degraded", [])
        assert found["control"]["epoch"] == 1
        assert found["reasons"] == ["vn-1: no gateway answers"]
        recovered = await ask("control", "recover")
        assert ([item["region"] for item in recovered["items"]], recovered["unreachable"]) == (["vn-1"], [])
        set_epoch(desk, 2)
        refused = await ask("control", "recover", status=1)
        assert "vn-1 (1)" in refused["remedy"]
        shown = await ask("status")
        assert any("runs with control epoch 1" in reason for reason in shown["reasons"])
