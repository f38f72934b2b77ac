"""A replica's life around its engines: one that never starts, one that dies, and the thread that Ray's actor runs."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest
from serving.fake_engine import FakeEngine
from serving.fleet_lab import FleetGateway, lab_pki, lab_settings
from serving.hop_lab import calling

from mesh.errors import Code, MeshError
from mesh.runtime import SystemClock
from mesh.serving.app import close_serve_port
from mesh.serving.replica import Place, Replica, find_place
from mesh.settings import Address, Model
from mesh.telemetry import Log
from mesh.tls import prepare_process
from mesh.types import ModelKind
from mesh.v1 import fleet_pb2 as pb

CHAT, EMBEDDING = "smollm2-135m", "minilm-l6-v2"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepare_process(os.environ)
    return lab_pki(tmp_path_factory.mktemp("pki"))


def place_of(pki: Path, *gateways: Address) -> Place:
    return find_place(lab_settings(pki, list(gateways), pki), "vn-1", "all", None)


def log_of() -> Log:
    return Log("replica", "vn-1", io.StringIO(), models=(CHAT, EMBEDDING), strict=True)


class Engines:
    """Makes fakes and keeps them. The broken one breaks when `go` is set."""

    def __init__(self, broken: str | None = None) -> None:
        self.broken = broken
        self.go = threading.Event()
        self.made: dict[str, FakeEngine] = {}

    def make(self, model: Model) -> FakeEngine:
        if model.id == self.broken:
            self.go.wait()
            raise RuntimeError("canary")
        engine = FakeEngine(ModelKind.EMBEDDING if model.id == EMBEDDING else ModelKind.CHAT)
        self.made[model.id] = engine
        return engine


async def failure(replica: Replica) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await replica.run(lambda: pytest.fail("it was never ready"), lambda: None)
    return caught.value


async def test_a_model_that_does_not_start_is_dead_and_the_process_ends(pki: Path) -> None:
    gateway, engines = FleetGateway(), Engines(broken=EMBEDDING)
    async with gateway.listening(pki) as address:
        replica = Replica(place_of(pki, address), engines.make, SystemClock(), log_of())
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(failure(replica))
            await gateway.states(CHAT, pb.REPLICA_STATE_READY)
            engines.go.set()
        error = running.result()
        assert error.code is Code.START_FAILED
        assert "canary" not in error.message
        assert any(
            row.model == EMBEDDING and row.state == pb.REPLICA_STATE_DEAD
            for report in gateway.reports
            for row in report.models
        )
    assert engines.made[CHAT].stopped


async def test_a_model_that_dies_is_told_and_the_others_are_served_on(pki: Path) -> None:
    gateway, engines, died = FleetGateway(), Engines(), asyncio.Event()
    async with gateway.listening(pki) as address, asyncio.TaskGroup() as tasks:
        replica = Replica(place_of(pki, address), engines.make, SystemClock(), log_of())
        running = tasks.create_task(replica.run(lambda: None, died.set))
        report = await gateway.states(EMBEDDING, pb.REPLICA_STATE_READY)
        engines.made[CHAT].fault = "RuntimeError"
        await died.wait()
        await gateway.states(CHAT, pb.REPLICA_STATE_DEAD)
        async with calling(pki, report.address, gateway.lease) as client:
            (frame,) = await client.call("completions", {"model": CHAT, "prompt": "a"})
            assert json.loads(frame.payload) == {"code": "replica_failed"}
            found = await client.call("embeddings", {"model": EMBEDDING, "input": "a"})
            assert len(found) == 2
        replica.stop()
        await running
    assert all(engine.stopped for engine in engines.made.values())


async def test_the_load_is_told_while_a_call_runs(pki: Path) -> None:
    gateway, engines = FleetGateway(), Engines()
    async with gateway.listening(pki) as address, asyncio.TaskGroup() as tasks:
        replica = Replica(place_of(pki, address), engines.make, SystemClock(), log_of())
        running = tasks.create_task(replica.run(lambda: None, lambda: None))
        report = await gateway.states(EMBEDDING, pb.REPLICA_STATE_READY)
        engines.made[CHAT].gate = asyncio.Semaphore(0)
        async with calling(pki, report.address, gateway.lease) as client:
            body = {"model": CHAT, "prompt": "a", "n": 3}
            call = tasks.create_task(client.call("completions", body))
            await gateway.until(lambda: gateway.reports[-1].models[0].running == 2)
            assert gateway.reports[-1].models[0].queued == 1
            assert replica.sequences() == 3
            call.cancel()  # the client hangs up
            await gateway.until(lambda: gateway.reports[-1].models[0].running == 0)
        replica.stop()
        await running


async def test_the_actors_thread(pki: Path) -> None:
    # In a process of its own: grpc does not forgive a loop that was closed, and the thread's is.
    script = Path(__file__).with_name("actor_thread.py")
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), str(pki))
    assert await process.wait() == 0


def test_serve_opens_no_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private import replica as serve_replica

    class Server:
        def add_insecure_port(self, address: str) -> int:
            raise AssertionError(address)

    monkeypatch.setattr(serve_replica, "add_port_to_grpc_server", serve_replica.add_port_to_grpc_server)
    close_serve_port()
    assert serve_replica.add_port_to_grpc_server(Server(), "[::]:0") == 0


def test_a_place_that_is_not_there(pki: Path) -> None:
    settings = lab_settings(pki, [Address("127.0.0.1", 1)], pki)
    for region, deployment in (("sg-1", "all"), ("vn-1", "other")):
        with pytest.raises(MeshError) as caught:
            find_place(settings, region, deployment, None)
        assert caught.value.code is Code.INVALID_SETTINGS
