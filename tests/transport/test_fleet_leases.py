"""The hub and real replicas over loopback gRPC: pings, leases, holds, fences, and what is taken for confirmed."""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from ports import free_port
from serving.fake_engine import FakeEngine
from serving.fleet_lab import VN, lab_pki, lab_settings
from serving.hop_lab import calling, frames
from serving.lease_lab import OTHER, REPLICA, HandClock, T

from mesh.content.frames import FrameKind
from mesh.errors import MeshError
from mesh.ports import Clock, Instant
from mesh.routing.lease import Lease
from mesh.runtime import SystemClock
from mesh.serving.announce import Announcer, Membership
from mesh.serving.leases import Leases
from mesh.serving.replica import Replica, find_place
from mesh.settings import Address, Model
from mesh.telemetry import Log
from mesh.tls import grpc_channel_credentials, grpc_channel_options, grpc_server_credentials, prepare_process
from mesh.transport.fleet_hub import FleetHub
from mesh.transport.grpc_server import listen_grpc
from mesh.transport.handouts import HoldFor
from mesh.types import KeyId, ModelKind, PolicyNumber, Role, TenantId
from mesh.v1 import fleet_pb2, fleet_pb2_grpc

K1 = KeyId("k_1")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepare_process(os.environ)
    return lab_pki(tmp_path_factory.mktemp("pki"))


class Patient(SystemClock):
    """The host's clock, but that no silence is too long: on a busy machine a replica may need seconds for a report."""

    def timeout(self, seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(None)


class Gateway:
    """A hub that listens. `confirmed` is set when something was."""

    def __init__(self, port: int) -> None:
        self.hub = FleetHub(here=VN, clock=Patient())
        self.address = Address("127.0.0.1", port)
        self.news = asyncio.Event()
        self.hub.on_confirm = self.news.set

    def lease(self, left_s: float = 300, number: int = 1) -> Lease:
        [replica] = {row.id for row in self.hub.replicas()}
        lease = self.hub.lease(replica, T, lambda _: left_s, PolicyNumber(0, number))
        assert lease is not None
        return lease

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            self.news.clear()
            await self.news.wait()

    async def joined(self) -> None:
        while not self.hub.replicas():
            await self.hub.on_change.wait()
            self.hub.on_change.clear()


@asynccontextmanager
async def gateway(pki: Path, port: int = 0) -> AsyncGenerator[Gateway]:
    failures: list[BaseException] = []
    made = Gateway(port)
    async with listen_grpc(
        [made.hub.handlers(failures.append)],
        made.address,
        grpc_server_credentials(pki, VN, Role.GATEWAY),
        message_bytes=65_536,
    ) as server:
        made.address = Address("127.0.0.1", server.port)
        yield made
    assert failures == []


@asynccontextmanager
async def announcing(pki: Path, *gateways: Address, clock: Clock | None = None) -> AsyncGenerator[Leases]:
    leases = Leases(REPLICA, clock or SystemClock())

    def report(number: int) -> fleet_pb2.ReplicaReport:
        models = [fleet_pb2.ModelReport(model="m", state=fleet_pb2.REPLICA_STATE_READY)]
        return fleet_pb2.ReplicaReport(number=number, replica=REPLICA, address="127.0.0.1:1", models=models)

    log = Log("replica", "vn-1", io.StringIO(), strict=True)
    announcer = Announcer(Membership(pki=pki, region=VN, gateways=gateways), report, leases, SystemClock(), log)
    task = asyncio.get_running_loop().create_task(announcer.run())
    try:
        yield leases
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_lease_of_the_hub_admits_and_its_fence_ends(pki: Path) -> None:
    async with gateway(pki) as one, announcing(pki, one.address) as leases:
        await one.joined()
        below, late = one.lease(number=4), one.lease(number=4)
        stay = leases.admit(below.encode(), T, K1)
        ended = asyncio.Event()
        stay.on_end = ended.set
        fenced = one.hub.fence(T, PolicyNumber(0, 5))
        await ended.wait()
        [report] = one.hub.reports()
        while one.hub.reports()[0].number < report.number + 3:  # it reports on, and has not confirmed
            await asyncio.sleep(0.01)
        assert not fenced.confirmed
        stay.close()
        await one.until(lambda: fenced.confirmed)
        with pytest.raises(MeshError, match="too old"):
            leases.admit(late.encode(), T, K1)
        leases.admit(one.lease(number=5).encode(), T, K1)


async def test_holds_come_with_the_answers_to_reports(pki: Path) -> None:
    """The deadline moves with each of them, and falls when less is said."""
    clock = HandClock()
    async with gateway(pki) as one, announcing(pki, one.address, clock=clock) as leases:
        left = [300.0]
        one.hub.holds = lambda _: [HoldFor(T, lambda _: left[0], PolicyNumber(0, 1))]
        await one.joined()
        stay = leases.admit(one.lease(6.0).encode(), T, K1)
        ended = asyncio.Event()
        stay.on_end = ended.set
        said = one.hub.lowered(OTHER)
        await one.until(lambda: said.confirmed)
        clock.go(20)
        stay.check()
        left[0] = 0.0  # nobody asks for anything: the next report is answered with it
        await ended.wait()


async def test_a_lowering_is_confirmed(pki: Path) -> None:
    async with gateway(pki) as one, announcing(pki, one.address) as leases:
        await one.joined()
        before = one.lease(300)
        lowered = one.hub.lowered(T)
        await one.until(lambda: lowered.confirmed)
        with pytest.raises(MeshError, match="too old"):
            leases.admit(before.encode(), T, K1)


async def test_a_gateway_that_is_started_again_is_heard_anew(pki: Path) -> None:
    """Its messages count from 1; what was heard of the old process is not taken for its own."""
    async with AsyncExitStack() as life:
        old = await life.enter_async_context(gateway(pki, free_port()))
        async with announcing(pki, old.address) as leases:
            await old.joined()
            for number in range(5, 9):
                fenced = old.hub.fence(T, PolicyNumber(0, number))
                await old.until(lambda fenced=fenced: fenced.confirmed)
            running, late = leases.admit(old.lease(number=8).encode(), T, K1), old.lease(number=7)
            await life.aclose()
            async with gateway(pki, old.address.port) as new:
                await new.joined()
                assert new.hub.reports()[0].number > late.ping
                fenced = new.hub.fence(T, PolicyNumber(0, 9))
                ended = asyncio.Event()
                running.on_end = ended.set
                await ended.wait()
                assert not fenced.confirmed
                running.close()
                await new.until(lambda: fenced.confirmed)
                with pytest.raises(MeshError):
                    leases.admit(late.encode(), T, K1)


async def test_a_replica_that_does_not_read_holds_up_nobody(pki: Path) -> None:
    """The answers to it are as large as they get, and lie where they are; its reports are taken on."""
    async with gateway(pki) as one:
        tenants = [TenantId(f"t_{i:016d}") for i in range(20_000)]
        one.hub.holds = lambda _: [HoldFor(tenant, lambda _: 6.0, PolicyNumber(0, 1)) for tenant in tenants]
        options = grpc_channel_options(Role.GATEWAY, VN)
        credentials = grpc_channel_credentials(pki, VN, Role.REPLICA)
        async with grpc.aio.secure_channel(str(one.address), credentials, options=options) as channel:
            call = fleet_pb2_grpc.FleetStub(channel).Join()
            for number in range(1, 13):
                await call.write(fleet_pb2.ReplicaReport(number=number, replica=REPLICA, address="h:1"))
            while not one.hub.reports() or one.hub.reports()[0].number < 12:
                await asyncio.sleep(0.01)
            fenced = one.hub.fence(T, PolicyNumber(0, 5))
            assert not fenced.confirmed
            # It wakes up, and finds the newest behind what was under way.
            while not (seen := await call.read()).fences:
                pass
            assert seen.number == 12
            await call.write(fleet_pb2.ReplicaReport(number=13, replica=REPLICA, address="h:1", heard=seen.message))
            await one.until(lambda: fenced.confirmed)


async def test_what_was_not_said_is_not_heard(pki: Path) -> None:
    async with gateway(pki) as one:
        options = grpc_channel_options(Role.GATEWAY, VN)
        credentials = grpc_channel_credentials(pki, VN, Role.REPLICA)
        async with grpc.aio.secure_channel(str(one.address), credentials, options=options) as channel:
            call = fleet_pb2_grpc.FleetStub(channel).Join()
            await call.write(fleet_pb2.ReplicaReport(number=1, replica=REPLICA, address="h:1", heard=7))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert one.hub.replicas() == ()


class Ahead(SystemClock):
    """The host's clocks, which a test can set forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.ahead_s

    def instant(self) -> Instant:
        now = super().instant()
        return Instant(boot_s=now.boot_s + self.ahead_s, raw_s=now.raw_s + self.ahead_s, wall_s=now.wall_s)


class Whole:
    """A replica as it runs in its process, with fake engines, under a hub."""

    def __init__(self, pki: Path, one: Gateway) -> None:
        self.engines: dict[str, FakeEngine] = {}
        log = Log("replica", "vn-1", io.StringIO(), models=("smollm2-135m", "minilm-l6-v2"), strict=True)
        place = find_place(lab_settings(pki, [one.address], pki), "vn-1", "all", None)
        self.clock = Ahead()
        self.replica = Replica(place, self.make, self.clock, log)
        self.ready = asyncio.Event()

    def make(self, model: Model) -> FakeEngine:
        kind = ModelKind.EMBEDDING if model.kind is ModelKind.EMBEDDING else ModelKind.CHAT
        engine = self.engines[model.id] = FakeEngine(kind, words=["word "] * 50)
        return engine


@pytest.mark.parametrize("way", ["fence", "silence"])
async def test_work_ends_at_a_replica_and_the_gateway_knows(pki: Path, way: str) -> None:
    """A stream in the middle: it is fenced, or the replica hears nothing more of how long it may go on."""
    async with gateway(pki) as one, asyncio.TaskGroup() as tasks:
        whole = Whole(pki, one)
        running = tasks.create_task(whole.replica.run(whole.ready.set, lambda: None))
        await whole.ready.wait()
        await one.joined()
        chat = whole.engines["smollm2-135m"]
        chat.gate = asyncio.Semaphore(1)
        lease = one.hub.lease(whole.replica.id, T, lambda _: 300.0, PolicyNumber(0, 4))
        assert lease is not None
        address = one.hub.replicas()[0].address
        async with calling(pki, address, lambda: lease.encode().decode()) as client:
            body = {"model": "smollm2-135m", "prompt": "a", "stream": True, "max_tokens": 50}
            response = await client.open("completions", body)
            stream = frames(response)
            assert (await anext(stream)).kind is FrameKind.DATA
            assert chat.running
            fenced = None
            if way == "fence":
                fenced = one.hub.fence(T, PolicyNumber(0, 5))
            else:
                whole.clock.ahead_s = 301.0
            last = [frame async for frame in stream][-1]
            assert last.kind is FrameKind.ERROR
            assert json.loads(last.payload)["code"] == "policy_stale"
            assert not chat.running
            response.close()
            if fenced is not None:
                await one.until(lambda: fenced.confirmed)
            (late,) = await client.call("completions", body)
            assert json.loads(late.payload)["code"] == "policy_stale"
        whole.replica.stop()
        await running
