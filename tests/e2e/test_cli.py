"""The command's answers: their shapes, exit statuses, and what goes to which stream."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from e2e.live import CHAT, ELSEWHERE, EMBEDDING, JP, MESH, SG, VN, Mesh, wait_until

pytestmark = pytest.mark.mesh


def test_status(mesh: Mesh) -> None:
    status = mesh.status()
    assert status.keys() >= {"state", "reasons", "ca", "operator_cert", "operator_key", "etcd", "regions"}
    assert (status["state"], status["reasons"]) == ("ready", [])
    assert Path(status["ca"]).is_absolute()
    assert "BEGIN CERTIFICATE" in Path(status["ca"]).read_text()
    assert stat.S_IMODE(Path(status["operator_key"]).stat().st_mode) == 0o600
    etcd = status["etcd"]
    assert etcd["healthy"] is True
    assert etcd["version"].startswith("3.")
    assert all(endpoint.startswith("https://") for endpoint in etcd["endpoints"])
    os.kill(etcd["pid"], 0)
    assert [(row["id"], row["jurisdiction"], row["state"]) for row in status["regions"]] == [
        (VN, "VN", "ready"),
        (SG, "SG", "ready"),
        (JP, "JP", "ready"),
    ]
    for row in status["regions"]:
        assert row.keys() >= {"http", "grpc", "operator", "admin", "ray", "gateways", "replicas"}
        assert row["ray"].keys() == {"state", "pid"}
        for gateway in row["gateways"]:
            assert gateway["state"] == "ready"
            os.kill(gateway["pid"], 0)
        models = {CHAT, EMBEDDING} | ({ELSEWHERE} if row["id"] == SG else set())
        assert {replica["model"] for replica in row["replicas"]} == models
        for replica in row["replicas"]:
            assert replica.keys() >= {"id", "model", "state", "pid", "running", "queued", "slots", "kv_used"}
            assert replica["state"] == "ready"
            assert 0 <= replica["running"] <= replica["slots"] == 4
            assert 0 <= replica["kv_used"] <= 1
            os.kill(replica["pid"], 0)


def test_samples(mesh: Mesh) -> None:
    path = mesh.home / "samples.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    samples = mesh.samples
    assert {name: (row["home"], row["allowed"]) for name, row in samples.items()} == {
        "acme": (VN, ["VN"]),
        "globex": (VN, ["SG", "VN"]),
    }
    for row in samples.values():
        assert row.keys() == {"tenant", "key", "home", "allowed"}
    assert mesh.ask("tenant", "show", "globex").json["transfer"] == "within_allowed"
    assert mesh.ask("tenant", "show", "acme").json["transfer"] == "never"


def test_regions_and_models(mesh: Mesh) -> None:
    regions = mesh.ask("region", "list").items
    assert all(row.keys() >= {"id", "jurisdiction", "name", "accelerator", "gpus_per_replica"} for row in regions)
    assert {VN: "VN", SG: "SG", JP: "JP"}.items() <= {row["id"]: row["jurisdiction"] for row in regions}.items()
    assert mesh.ask("region", "show", SG).json["jurisdiction"] == "SG"
    models = {row["model"]: row for row in mesh.ask("model", "list").items}
    assert models.keys() == {CHAT, EMBEDDING, ELSEWHERE}
    assert (models[CHAT]["kind"], models[EMBEDDING]["kind"]) == ("chat", "embedding")
    assert models[CHAT]["context"] == 2048
    assert models[ELSEWHERE]["regions"] == [SG]
    assert set(models[CHAT]["regions"]) >= {VN, SG, JP}


def test_usage(mesh: Mesh) -> None:
    usage = mesh.ask("usage", "acme").json
    assert usage.keys() == {"tenant", "from", "to", "unreachable", "items"}
    assert usage["tenant"] == mesh.samples["acme"]["tenant"]
    assert usage["unreachable"] == []
    assert usage["to"].endswith("Z")
    for row in usage["items"]:
        assert row.keys() == {"region", "model", "requests", "refused", "prompt_tokens", "completion_tokens"}
    past = mesh.ask("usage", "acme", "--from", "2020-01-01", "--to", "2020-01-02T00:00:00Z").json
    assert (past["items"], past["from"]) == ([], "2020-01-01T00:00:00Z")
    assert mesh.refused("usage", "acme", "--from", "yesterday", code=2)["param"] == "from"


def test_chat(mesh: Mesh) -> None:
    key = mesh.key("globex")
    told = mesh.ask("chat", "Say hi.", "--model", CHAT, "--max-tokens", "9", MESH_API_KEY=key).json
    assert told.keys() == {"text", "usage", "region", "request_id"}
    assert (bool(told["text"]), told["region"]) == (True, VN)
    assert 0 < told["usage"]["completion_tokens"] <= 9
    there = mesh.ask("chat", "Say hi.", "--key", key, "--at", SG, "--model", ELSEWHERE, "--max-tokens", "9").json
    assert there["region"] == SG


def test_chat_shows_its_answer_while_it_is_made(mesh: Mesh) -> None:
    with subprocess.Popen(
        [MESH, "chat", "Write down all the numbers from one to one thousand in words.", "--at", VN],
        env=mesh.environ(MESH_API_KEY=mesh.key("acme")),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as chat:
        assert chat.stdout is not None
        assert chat.stdout.read(1)
        assert mesh.replica(VN)["running"] == 1
        chat.send_signal(signal.SIGINT)
        chat.wait(30)
    wait_until(lambda: mesh.replica(VN)["running"] == 0, "Ctrl-C ends the work too", deadline_s=10)


def test_chat_says_why_not(mesh: Mesh) -> None:
    acme = mesh.key("acme")
    assert mesh.refused("chat", "Hi", "--at", SG, MESH_API_KEY=acme)["code"] == "residency_refused"
    assert mesh.refused("chat", "Hi", "--model", ELSEWHERE, MESH_API_KEY=acme)["code"] == "model_not_found"
    assert mesh.refused("chat", "Hi", MESH_API_KEY="mk_vn_wrong")["code"] == "invalid_api_key"
    assert mesh.refused("chat", "Hi", code=2)["param"] == "key"
    assert mesh.refused("chat", "Hi", "--at", "mars-1", MESH_API_KEY=acme)["code"] == "unknown_region"


def test_words_for_people(mesh: Mesh) -> None:
    for args in (("status",), ("tenant", "list"), ("region", "list"), ("model", "list"), ("key", "list", "acme")):
        ran = mesh.run(*args)
        assert (ran.code, bool(ran.out.strip())) == (0, True), (args, ran.err)
    ran = mesh.run("tenant", "show", "nobody")
    assert (ran.code, ran.out) == (1, "")
    assert "tenant" in ran.err.lower()
    assert mesh.run("--help").code == 0


def test_where_no_mesh_runs(mesh: Mesh, tmp_path: Path) -> None:
    nowhere = Mesh(tmp_path / "nowhere")
    for args in (("status",), ("tenant", "list"), ("down",), ("chat", "Hi", "--key", mesh.key("acme"))):
        assert nowhere.refused(*args, code=3)["code"] == "not_running", args
    assert not nowhere.home.exists()


def test_a_second_start_says_so(mesh: Mesh) -> None:
    pid = mesh.status()["etcd"]["pid"]
    ran = mesh.up(timeout_s=120)
    assert (ran.code, ran.json["state"]) == (0, "ready")
    assert "running" in ran.err or "runs" in ran.err
    error = mesh.refused("up", "--detach", "--regions", VN)
    assert error["code"] == "already_running"
    assert mesh.refused("up", "--detach", "--regions", "mars-1")["code"] == "unknown_region"
    assert mesh.status()["etcd"]["pid"] == pid


def test_the_environment_s_key_log_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    error = mesh.refused("status", SSLKEYLOGFILE=str(tmp_path / "keys"))
    assert error["code"] == "invalid_settings"
    assert not (tmp_path / "keys").exists()


def test_logs_are_json_lines_and_hold_no_key(mesh: Mesh) -> None:
    logs = list((mesh.home / "log").rglob("gateway*.log"))
    assert len(logs) >= len(mesh.regions)
    for path in logs:
        lines = path.read_text().splitlines()
        assert lines
        for line in lines:
            assert isinstance(json.loads(line), dict), path
    keys = [row["key"].encode() for row in mesh.samples.values()]
    for path in mesh.home.rglob("*"):
        if path.is_file() and path.name != "samples.json":
            data = path.read_bytes()
            assert not any(key in data for key in keys), path


def test_the_home_is_its_owner_s(mesh: Mesh) -> None:
    assert stat.S_IMODE(mesh.home.stat().st_mode) == 0o700
    for path in (mesh.home / "pki").rglob("*"):
        if path.suffix == ".key" or path.name == "mesh-secret":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
