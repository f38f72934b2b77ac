"""The commands from another machine: a folder with the mesh's settings and the operator's certificate, and no more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from e2e.live import CHAT, JP, SG, VN, Mesh

pytestmark = pytest.mark.mesh


@pytest.fixture
def desk(mesh: Mesh, tmp_path: Path) -> Mesh:
    home = tmp_path / "desk"
    shutil.copytree(mesh.home / "config", home / "config")
    (home / "pki").mkdir()
    for name in ("mesh-ca.pem", "doors-ca.pem", "operator.pem", "operator.key"):
        shutil.copy(mesh.home / "pki" / name, home / "pki" / name)
    return Mesh(home)


def test_a_desk_answers_as_the_home_does(mesh: Mesh, desk: Mesh, tmp_path: Path) -> None:
    there, here = desk.wait_ready(), mesh.status()
    assert (there["reasons"], there["control"]) == ([], here["control"])
    for row, alike in zip(there["regions"], sorted(here["regions"], key=lambda row: row["id"]), strict=True):
        told = ("id", "jurisdiction", "state", "http", "grpc", "operator", "admin", "gateways")
        assert {name: row[name] for name in told} == {name: alike[name] for name in told}
        assert [one["id"] for one in row["replicas"]] == [one["id"] for one in alike["replicas"]]
        assert row["ray"] == {"state": None, "pid": None}
    assert there["etcd"] == {**here["etcd"], "healthy": None, "version": None, "pid": None}

    made = desk.tenant("desk", "--allow", "VN,SG", "--transfer", "within_allowed")
    assert mesh.ask("tenant", "show", made["tenant"]).json["home"] == VN
    for region in (JP, SG):  # the doors that are asked, by id, until one serves
        mesh.seen(made["key"], region)
    told = desk.ask("chat", "Say hi.", "--key", made["key"], "--model", CHAT, "--max-tokens", "5").json
    assert told["region"] == SG
    explained = desk.ask("route", "explain", "--tenant", made["tenant"], "--model", CHAT, "--at", SG).json
    assert (explained["at"], explained["outcome"]) == (SG, "serve")
    pinned = desk.ask("pin", made["tenant"], "--allow", "VN", "--receipt", str(tmp_path / "receipt")).json
    assert {row["region"] for how in ("acked", "lapsed", "timed_out") for row in pinned[how]} == {VN, SG, JP}
    assert desk.ask("pin", "verify", str(tmp_path / "receipt")).json["valid"] is True
    assert {row["region"] for row in desk.ask("pin", "status").items} >= {VN, SG, JP}
    assert desk.ask("usage", made["tenant"]).json["unreachable"] == []
    recovered = desk.ask("control", "recover").json
    assert (recovered["raised"], recovered["unreachable"]) == (False, [])


def test_nothing_is_started_or_ended_from_a_desk(mesh: Mesh, desk: Mesh) -> None:
    assert desk.refused("up", "--detach")["code"] == "start_failed"
    assert desk.refused("down", code=3)["code"] == "not_running"
    assert mesh.status()["state"] == "ready"
    assert {path.name for path in desk.home.iterdir()} == {"config", "pki"}
