"""Parts that die under a running mesh: it says which, and comes back without help. Runs last; ends the way it began."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from e2e.live import CHAT, MESH, ROOT, SG, VN, Json, Mesh, messages, wait_until
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from mesh.v1.admin_pb2 import PinRequest
from mesh.v1.admin_pb2_grpc import AdminStub

pytestmark = [pytest.mark.mesh, pytest.mark.fault, pytest.mark.timeout(420, func_only=True)]
NOTICED_S, BACK_S = 30, 240


@pytest.fixture(autouse=True)
def ready(mesh: Mesh) -> Iterator[None]:
    """Each test finds a whole mesh and leaves one."""
    mesh.wait_ready(deadline_s=BACK_S)
    yield
    mesh.wait_ready(deadline_s=BACK_S)


def ask(mesh: Mesh, key: str, region: str = VN) -> int:
    """The status of a small call."""
    body: Json = {"model": CHAT, "messages": messages("Hi"), "max_tokens": 2}
    return mesh.post(region, "/v1/chat/completions", body, key).status


def served(mesh: Mesh, key: str, region: str = VN) -> None:
    """Waits until a small call is served: a busy machine may hold a grant up for longer than a foreign one lasts."""
    wait_until(lambda: ask(mesh, key, region) == 200, f"{region} serves", deadline_s=30)


def part_of(mesh: Mesh, part: str, word: str) -> int:
    """The pid of a part's process whose command line has a word."""
    rows = json.loads((mesh.home / "run/processes.json").read_bytes())["processes"]
    living = mesh.processes()
    (pid,) = [row["pid"] for row in rows if row["part"] == part and word in " ".join(living.get(row["pid"], ()))]
    return pid


def degraded(mesh: Mesh, names: str) -> Json:
    """Waits until the status says that something is wrong, and that it is this."""

    def look() -> Json | None:
        status = mesh.status()
        said = status["state"] == "degraded" and any(names in reason for reason in status["reasons"])
        return status if said else None

    status = wait_until(look, f"degraded because of {names}", deadline_s=NOTICED_S)
    for reason in status["reasons"]:
        log = Path(reason.rpartition("see ")[2])
        assert log.exists(), reason
    return status


def test_a_replica(mesh: Mesh, acme: str) -> None:
    pid = mesh.replica(VN)["pid"]
    body = {"model": CHAT, "messages": messages("Count to a thousand in words."), "max_tokens": 900, "stream": True}
    data = json.dumps(body).encode()
    with mesh.wire(VN) as wire:
        wire.send(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: mesh\r\nAuthorization: Bearer {acme}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        while b'"content":"' not in wire.held.replace(b'"content":""', b""):
            wire.held += wire.stream.recv(65_536)
        os.kill(pid, signal.SIGKILL)
        while not wire.held.endswith(b"0\r\n\r\n"):
            more = wire.stream.recv(65_536)
            assert more, "the stream was cut without a word"
            wire.held += more
        assert b'"code":"replica_failed"' in wire.held
        assert b"[DONE]" not in wire.held
    degraded(mesh, f"{VN}: {CHAT} has no ready replica")
    assert mesh.post(VN, "/v1/chat/completions", body | {"stream": False}, acme).error["code"] == "no_capacity"
    # Other regions do not notice.
    served(mesh, mesh.key("globex"), SG)
    mesh.wait_ready(deadline_s=BACK_S)
    assert mesh.replica(VN)["pid"] != pid
    assert ask(mesh, acme) == 200


def test_a_gateway(mesh: Mesh, acme: str) -> None:
    pid = mesh.region(VN)["gateways"][0]["pid"]
    os.kill(pid, signal.SIGKILL)
    degraded(mesh, "gateway-vn-1")
    mesh.wait_ready(deadline_s=BACK_S)
    assert mesh.region(VN)["gateways"][0]["pid"] != pid
    served(mesh, acme)
    served(mesh, mesh.key("globex"), SG)
    # The one that is dead is accounted for, without waiting for what it had been granted for its home's tenants.
    made = mesh.tenant("orphaned", "--allow", "VN,SG")
    suspended = mesh.ask("tenant", "suspend", made["tenant"], "--timeout", "60s").json
    assert {member["region"] for member in suspended["acked"]} == set(mesh.regions)
    assert suspended["timed_out"] == []


def test_an_admin(mesh: Mesh, acme: str) -> None:
    tenant = mesh.samples["acme"]["tenant"]
    pid = part_of(mesh, f"admin-{VN}", "mesh.admin")
    os.kill(pid, signal.SIGSTOP)
    try:
        # Calls go on; what needs the admin says so in its time.
        assert ask(mesh, acme) == 200
        assert mesh.refused("pin", tenant, "--allow", "VN")["code"] == "region_unreachable"
        usage = mesh.ask("usage", tenant).json
        assert usage["unreachable"] == [VN]
        degraded(mesh, f"{VN}: its admin does not answer")
    finally:
        os.kill(pid, signal.SIGKILL)
    mesh.wait_ready(deadline_s=BACK_S)
    assert part_of(mesh, f"admin-{VN}", "mesh.admin") != pid
    assert mesh.ask("tenant", "show", "acme").json["tenant"] == tenant
    assert mesh.ask("usage", tenant).json["unreachable"] == []


def test_etcd_frozen(mesh: Mesh, acme: str) -> None:
    pid = mesh.status()["etcd"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        status = degraded(mesh, "etcd")
        assert status["etcd"]["healthy"] is False
        # At home its tenants are served on for as long as its authority lasts; elsewhere that is soon over.
        assert ask(mesh, acme) == 200
        wait_until(lambda: ask(mesh, mesh.key("globex"), SG) == 503, "foreign authority runs out", deadline_s=30)
        assert ask(mesh, acme) == 200
    finally:
        os.kill(pid, signal.SIGCONT)
    mesh.wait_ready(deadline_s=BACK_S)
    served(mesh, mesh.key("globex"), SG)
    tenant = mesh.tenant("thawed", "--allow", "VN")
    mesh.seen(tenant["key"])


@contextmanager
def admin(mesh: Mesh) -> Iterator[AdminStub]:
    """An admin, asked without the command, which needs the supervisor."""
    status = mesh.status()
    credentials = grpc.ssl_channel_credentials(
        (mesh.home / "pki/mesh-ca.pem").read_bytes(),
        Path(status["operator_key"]).read_bytes(),
        Path(status["operator_cert"]).read_bytes(),
    )
    options = [("grpc.ssl_target_name_override", f"admin.{VN}.mesh")]
    with grpc.secure_channel(mesh.place(VN)["admin"], credentials, options) as channel:
        yield AdminStub(channel)


def test_etcd_killed(mesh: Mesh, acme: str) -> None:
    made = mesh.tenant("steady", "--allow", "VN,SG")
    mesh.seen(made["key"])
    before = mesh.ask("tenant", "show", made["tenant"]).json
    pid, supervisor = mesh.status()["etcd"]["pid"], supervisor_of(mesh)
    with admin(mesh) as stub:
        os.kill(supervisor, signal.SIGSTOP)  # so that it stays away for as long as this looks
        try:
            os.kill(pid, signal.SIGKILL)
            assert ask(mesh, acme) == 200
            assert ask(mesh, made["key"]) == 200
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Pin(PinRequest(tenant=made["tenant"], allowed=["VN"]), timeout=15))
            info = ErrorInfo()
            trailers: Any = dict(cast(Any, caught.value.trailing_metadata()))
            Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(info)
            assert info.reason == "POLICY_STORE_UNAVAILABLE"
        finally:
            os.kill(supervisor, signal.SIGCONT)
    mesh.wait_ready(deadline_s=BACK_S)
    assert mesh.status()["etcd"]["pid"] != pid
    assert mesh.ask("tenant", "show", made["tenant"]).json == before
    served(mesh, made["key"], SG)
    # The gateways' watches have outlived it, and once the pin has returned it holds.
    mesh.ask("pin", made["tenant"], "--allow", "VN")
    assert ask(mesh, made["key"], SG) == 451


def test_ray_s_head(mesh: Mesh, acme: str) -> None:
    replica = mesh.replica(VN)["pid"]
    os.kill(part_of(mesh, f"ray-{VN}", "gcs_server"), signal.SIGKILL)
    degraded(mesh, VN)
    # The door stays open: it serves, or says that a replica failed under the call, or that none is there.
    assert ask(mesh, acme) in {200, 502, 503}
    served(mesh, mesh.key("globex"), SG)
    mesh.wait_ready(deadline_s=BACK_S)
    assert mesh.replica(VN)["pid"] != replica
    assert ask(mesh, acme) == 200


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A second mesh's home: of one region, to keep it cheap."""
    other = Mesh(tmp_path_factory.mktemp("other") / "home", (SG,))
    yield other
    if other.home.exists():
        other.run("down", "--json")


def test_two_meshes_side_by_side(mesh: Mesh, other: Mesh, acme: str) -> None:
    before = mesh.processes()
    ran = other.up(timeout_s=300, program=MESH)
    assert ran.code == 0, ran.err[-4000:]
    assert "acme" in ran.err
    assert not (other.home / "samples.json").exists() or "acme" not in other.samples
    assert other.place(SG)["http"] != mesh.place(SG)["http"]
    key = other.tenant("neighbour", "--allow", "SG")["key"]
    other.seen(key, SG)
    assert ask(other, key, SG) == 200
    # One mesh's keys open nothing in another, and their CAs do not trust each other.
    assert other.post(SG, "/v1/embeddings", {}, acme).error["code"] == "invalid_api_key"
    assert other.ca != mesh.ca
    assert Path(other.ca).read_bytes() != Path(mesh.ca).read_bytes()
    assert {row["state"] for row in mesh.status()["regions"]} == {"ready"}

    down = other.ask("down").json
    assert {"name", "pid"} == down["stopped"][0].keys()
    assert not {row["pid"] for row in down["stopped"]} & before.keys()
    wait_until(lambda: not other.processes(), "nothing of it is left", deadline_s=10)
    assert mesh.processes().keys() >= before.keys() - _comers(before)
    assert ask(mesh, acme) == 200


def _comers(before: dict[int, list[str]]) -> set[int]:
    """Ray's idle workers come and go."""
    return {pid for pid, line in before.items() if line[0].startswith("ray::IDLE")}


def test_a_start_in_the_foreground_ends_with_ctrl_c(mesh: Mesh, other: Mesh) -> None:
    addresses = (other.home / "addresses.json").read_bytes() if other.home.exists() else None
    with subprocess.Popen(
        [MESH, "up", "--json", "--regions", SG],
        cwd=ROOT,
        env=other.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as started:
        try:
            assert started.stdout is not None
            assert json.loads(started.stdout.readline())["state"] == "ready"
            if addresses is not None:
                assert (other.home / "addresses.json").read_bytes() == addresses
            os.killpg(started.pid, signal.SIGINT)
            assert started.wait(120) in {0, 130, -signal.SIGINT}
        finally:
            started.kill()
    wait_until(lambda: not other.processes(), "nothing of it is left", deadline_s=30)
    assert other.refused("status", code=3)["code"] == "not_running"


def test_a_port_in_use_is_named(other: Mesh) -> None:
    """Its home keeps its addresses, so a start cannot go elsewhere: it says who is in the way."""
    addresses = json.loads((other.home / "addresses.json").read_bytes())
    host = f"127.{addresses['network']}.{addresses['regions'].index(SG) + 1}.1"
    with socket.create_server((host, 8443)):
        ran = other.up(timeout_s=120, program=MESH)
    assert ran.code == 1
    assert ran.error["code"] == "start_failed"
    assert f"{host}:8443" in ran.err
    wait_until(lambda: not other.processes(), "nothing of it is left", deadline_s=10)


def test_a_start_that_was_killed_half_way_is_cleaned_up(other: Mesh) -> None:
    with subprocess.Popen(
        [MESH, "up", "--detach", "--json", "--regions", SG],
        env=other.environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as started:
        wait_until(
            lambda: any("gcs_server" in " ".join(line) for line in other.processes().values()),
            "it is half way",
            deadline_s=120,
        )
        os.kill(supervisor_of(other), signal.SIGKILL)
        assert started.wait(60) == 1
    down = other.ask("down").json
    assert down["stopped"]
    wait_until(lambda: not other.processes(), "nothing of it is left", deadline_s=10)
    assert other.refused("down", code=3)["code"] == "not_running"


def supervisor_of(mesh: Mesh) -> int:
    """The process that started everything else."""
    (pid,) = [pid for pid, line in mesh.processes().items() if "mesh.embedded" in line]
    return pid


def test_the_supervisor(mesh: Mesh, acme: str) -> None:
    tenant = mesh.tenant("kept", "--allow", "VN")
    os.kill(supervisor_of(mesh), signal.SIGKILL)
    left = mesh.processes()
    assert mesh.refused("status", code=3)["code"] == "not_running"
    ran = mesh.up(timeout_s=400)
    assert ran.code == 0, ran.err[-4000:]
    assert ran.json["state"] == "ready"
    if left:
        assert "killed" in ran.err or "left" in ran.err
    wait_until(
        lambda: not [pid for pid, line in left.items() if mesh.processes().get(pid) == line],
        "they are gone",
        deadline_s=10,
    )
    assert ask(mesh, acme) == 200
    mesh.seen(tenant["key"])
    assert ask(mesh, tenant["key"]) == 200
