"""Fleet, Inspect and Border over real mTLS: who may call them, who is joined, and what is known of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_lab import SG, VN, FakeQueries, info_of
from ports import free_port

from mesh.errors import Code, MeshError
from mesh.routing.fleet import RegionLoad, Replica
from mesh.runtime import SystemClock
from mesh.settings import Address
from mesh.tls import grpc_channel_credentials, grpc_channel_options, grpc_server_credentials
from mesh.transport.border import Border, BorderWatch, model_hash
from mesh.transport.fleet_hub import FleetHub
from mesh.transport.grpc_server import listen_grpc
from mesh.transport.inspection import Inspect, PolicySeen
from mesh.types import GatewayId, ModelId, RegionId, ReplicaId, ReplicaState, Role
from mesh.v1 import border_pb2, border_pb2_grpc, fleet_pb2, fleet_pb2_grpc, router_pb2

JP = RegionId("ap-northeast-1")
CHAT, EMBED = ModelId("smol"), ModelId("minilm")


class Timers(SystemClock):
    """The host's clock, whose timeouts a test can bring to their end: no wait is a guess."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.paused = asyncio.Event()
        self._scopes: list[asyncio.Timeout] = []
        self._over = False

    def now_s(self) -> float:
        return super().now_s() + self.ahead_s

    async def sleep(self, seconds: float) -> None:
        self.paused.set()
        await super().sleep(min(seconds, 0.01))

    def timeout(self, seconds: float):
        scope = asyncio.timeout(0 if self._over else 3600)
        self._scopes.append(scope)
        return scope

    def run_out(self) -> None:
        """Like `expire`, and no later wait lasts either: the one that is meant may not have begun."""
        self._over = True
        self.expire()

    def expire(self) -> None:
        for scope in self._scopes:
            try:
                scope.reschedule(0)
            except RuntimeError:
                continue  # not entered, or left already


class Internal:
    """An internal server of one region."""

    def __init__(self, port: int, hub: FleetHub, clock: Timers, failures: list[BaseException]) -> None:
        self.port = port
        self.hub = hub
        self.clock = clock
        self.failures = failures


def row(model: ModelId = CHAT, state: ReplicaState = ReplicaState.READY, name: str = "0", **load: int) -> Replica:
    sizes = {"running": 1, "queued": 2, "slots": 4, "queue_limit": 8, **load}
    return Replica(id=ReplicaId(name * 16), address="127.0.0.1:1", model=model, state=state, **sizes)


@asynccontextmanager
async def internal(
    pki: Path, region: RegionId = VN, *, port: int = 0, replicas: Callable[[], Collection[Replica]] | None = None
) -> AsyncGenerator[Internal]:
    clock, failures = Timers(), []
    hub = FleetHub(here=region, clock=clock)
    inspect = Inspect(
        here=region,
        gateway=GatewayId("g1"),
        pid=42,
        hub=hub,
        policy=lambda: PolicySeen(loaded=True, live=False, applied=9),
        explain_for=FakeQueries().explain_for,
    )
    border = Border(here=region, regions=[VN, SG], replicas=replicas or hub.replicas, clock=clock)
    async with listen_grpc(
        [each.handlers(failures.append) for each in (hub, inspect, border)],
        Address("127.0.0.1", port),
        grpc_server_credentials(pki, region, Role.GATEWAY),
        message_bytes=65_536,
    ) as server:
        yield Internal(server.port, hub, clock, failures)
    assert failures == []


@asynccontextmanager
async def client(
    pki: Path, port: int, region: RegionId | None, role: Role, *, of: RegionId = VN
) -> AsyncGenerator[grpc.aio.Channel]:
    options = [*grpc_channel_options(Role.GATEWAY, of), ("grpc.use_local_subchannel_pool", 1)]
    credentials = grpc_channel_credentials(pki, region, role)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        yield channel


def report(
    number: int = 1, replica: str = "0" * 16, address: str = "127.0.0.1:9000", **model
) -> fleet_pb2.ReplicaReport:
    fields = {"model": CHAT, "state": fleet_pb2.REPLICA_STATE_READY, "running": 1, "slots": 4, "queue_limit": 8}
    return fleet_pb2.ReplicaReport(
        number=number, replica=replica, address=address, pid=7, models=[fleet_pb2.ModelReport(**{**fields, **model})]
    )


async def changed(hub: FleetHub) -> tuple[Replica, ...]:
    await hub.on_change.wait()
    hub.on_change.clear()
    return hub.replicas()


# --- fleet


async def test_a_replica_is_joined_as_long_as_its_stream(pki: Path) -> None:
    async with internal(pki) as server, client(pki, server.port, VN, Role.REPLICA) as channel:
        call = fleet_pb2_grpc.FleetStub(channel).Join()
        await call.write(report(number=5))
        assert (await call.read()).number == 5
        [joined] = await changed(server.hub)
        assert joined == Replica(
            id=ReplicaId("0" * 16),
            address="127.0.0.1:9000",
            model=CHAT,
            state=ReplicaState.READY,
            running=1,
            queued=0,
            slots=4,
            queue_limit=8,
            kv_used=0.0,
            pid=7,
        )
        before = server.hub.replicas()
        await call.write(report(number=6))
        assert (await call.read()).number == 6
        assert server.hub.replicas() is before
        assert not server.hub.on_change.is_set()
        await call.write(report(number=7, state=fleet_pb2.REPLICA_STATE_DRAINING, running=0))
        await call.read()
        assert [(each.state, each.running) for each in await changed(server.hub)] == [(ReplicaState.DRAINING, 0)]
        await call.done_writing()
        assert await changed(server.hub) == ()
        assert await call.code() is grpc.StatusCode.OK


async def test_a_replica_that_dies_is_gone(pki: Path) -> None:
    async with internal(pki) as server, client(pki, server.port, VN, Role.REPLICA) as channel:
        call = fleet_pb2_grpc.FleetStub(channel).Join()
        await call.write(report())
        assert len(await changed(server.hub)) == 1
        call.cancel()
        assert await changed(server.hub) == ()


async def test_a_replica_that_falls_silent_is_gone(pki: Path) -> None:
    async with internal(pki) as server, client(pki, server.port, VN, Role.REPLICA) as channel:
        call = fleet_pb2_grpc.FleetStub(channel).Join()
        await call.write(report())
        await call.read()
        assert len(await changed(server.hub)) == 1
        server.clock.run_out()
        assert await changed(server.hub) == ()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert info_of(caught.value)[0].reason == "REQUEST_TIMEOUT"


async def test_a_replica_that_joins_again_stays_when_its_first_stream_ends(pki: Path) -> None:
    async with internal(pki) as server, client(pki, server.port, VN, Role.REPLICA) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        first, second = stub.Join(), stub.Join()
        for call, running in ((first, 1), (second, 2)):
            await call.write(report(running=running))
            await call.read()
        await first.write(report(running=3))
        assert await first.read() is grpc.aio.EOF
        assert await first.code() is grpc.StatusCode.OK
        assert [each.running for each in server.hub.replicas()] == [2]
        await second.done_writing()
        assert await second.read() is grpc.aio.EOF
        assert server.hub.replicas() == ()


async def test_a_stream_that_outlives_its_successor_ends_quietly(pki: Path) -> None:
    async with internal(pki) as server, client(pki, server.port, VN, Role.REPLICA) as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        first, second = stub.Join(), stub.Join()
        for call in (first, second):
            await call.write(report())
            await call.read()
        await second.done_writing()
        assert await second.read() is grpc.aio.EOF
        await first.write(report())
        assert await first.read() is grpc.aio.EOF
        assert await first.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("region", "role"), [(SG, Role.REPLICA), (VN, Role.GATEWAY), (VN, Role.ADMIN), (None, Role.OPERATOR)]
)
async def test_only_replicas_of_this_region_join(pki: Path, region: RegionId | None, role: Role) -> None:
    async with internal(pki) as server, client(pki, server.port, region, role) as channel:
        call = fleet_pb2_grpc.FleetStub(channel).Join()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert info_of(caught.value)[0].reason == "INVALID_API_KEY"
        assert server.hub.replicas() == ()


@pytest.mark.parametrize(
    "bad",
    [
        report(replica="short"),
        report(replica="G" * 16),
        report(address="nowhere"),
        report(address="127.0.0.1:0"),
        report(address="127.0.0.1:65536"),
        report(state=0),
        report(model=""),
        report(kv_used=1.5),
        report(kv_used=float("nan")),
        fleet_pb2.ReplicaReport(replica="0" * 16, address="h:1", models=[*report().models, *report().models]),
    ],
)
async def test_a_report_that_makes_no_sense_ends_the_membership(pki: Path, bad: fleet_pb2.ReplicaReport) -> None:
    async with internal(pki) as server, client(pki, server.port, VN, Role.REPLICA) as channel:
        call = fleet_pb2_grpc.FleetStub(channel).Join()
        await call.write(report())
        await call.read()
        await call.write(bad)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert info_of(caught.value)[0].reason == "INVALID_PARAMETER"
        assert server.hub.replicas() == ()


# --- inspect


@pytest.mark.parametrize(("region", "role"), [(VN, Role.ADMIN), (None, Role.OPERATOR)])
async def test_admin_and_operator_see_a_gateways_view(pki: Path, region: RegionId | None, role: Role) -> None:
    async with (
        internal(pki) as server,
        client(pki, server.port, VN, Role.REPLICA) as replicas,
        client(pki, server.port, region, role) as channel,
    ):
        call = fleet_pb2_grpc.FleetStub(replicas).Join()
        await call.write(report())
        await call.read()
        stub = fleet_pb2_grpc.InspectStub(channel)
        status = await stub.Status(fleet_pb2.StatusRequest())
        assert status == fleet_pb2.GatewayStatus(
            gateway="g1", pid=42, policy_loaded=True, policy_live=False, policy_applied=9, replicas=[report()]
        )
        explained = await stub.ExplainFor(fleet_pb2.ExplainForRequest(tenant="t_2", model=CHAT))
        assert (explained.tenant, explained.model, explained.outcome) == ("t_2", CHAT, router_pb2.OUTCOME_FORWARD)


@pytest.mark.parametrize(("region", "role"), [(SG, Role.ADMIN), (VN, Role.GATEWAY), (VN, Role.REPLICA)])
async def test_others_do_not(pki: Path, region: RegionId, role: Role) -> None:
    async with internal(pki) as server, client(pki, server.port, region, role) as channel:
        stub = fleet_pb2_grpc.InspectStub(channel)
        for call in (stub.Status(fleet_pb2.StatusRequest()), stub.ExplainFor(fleet_pb2.ExplainForRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert info_of(caught.value)[0].reason == "INVALID_API_KEY"


async def test_without_a_certificate_nobody_is_heard(pki: Path) -> None:
    async with internal(pki) as server:
        credentials = grpc.ssl_channel_credentials(root_certificates=(pki / "mesh-ca.pem").read_bytes())
        options = grpc_channel_options(Role.GATEWAY, VN)
        async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", credentials, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fleet_pb2_grpc.InspectStub(channel).Status(fleet_pb2.StatusRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_port_that_is_taken_is_reported(pki: Path) -> None:
    async with internal(pki) as server:
        with pytest.raises(MeshError) as caught:
            async with internal(pki, port=server.port):
                pass
        assert caught.value.code is Code.START_FAILED


# --- border


async def test_a_region_tells_its_load_in_numbers(pki: Path) -> None:
    rows = [
        row(name="0"),
        row(name="1", running=3, queued=0),
        row(name="2", state=ReplicaState.STARTING),
        row(name="3", state=ReplicaState.DRAINING),
        row(EMBED, queued=0, queue_limit=0),
    ]
    async with (
        internal(pki, replicas=lambda: rows) as server,
        client(pki, server.port, SG, Role.GATEWAY) as channel,
    ):
        call = border_pb2_grpc.BorderStub(channel).Exchange()
        for number in (4, 5):
            await call.write(border_pb2.BorderPing(number=number))
            load = await call.read()
            assert load.number == number
        assert list(load.models) == [
            border_pb2.ModelLoad(model=model_hash(CHAT), ready=2, slots=8, running=4, queued=2, queue_limit=16),
            border_pb2.ModelLoad(model=model_hash(EMBED), ready=1, slots=4, running=1, queued=0, queue_limit=0),
        ]


def test_a_models_hash_is_the_one_of_the_contract() -> None:
    # The first 8 bytes of sha256("abc").
    assert model_hash(ModelId("abc")) == 0xBA7816BF8F01CFEA


@pytest.mark.parametrize(
    ("region", "role"), [(VN, Role.GATEWAY), (JP, Role.GATEWAY), (SG, Role.REPLICA), (None, Role.OPERATOR)]
)
async def test_only_gateways_of_other_known_regions_ask(pki: Path, region: RegionId | None, role: Role) -> None:
    async with internal(pki) as server, client(pki, server.port, region, role) as channel:
        call = border_pb2_grpc.BorderStub(channel).Exchange()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert info_of(caught.value)[0].reason == "INVALID_API_KEY"


async def test_an_asker_that_falls_silent_is_let_go(pki: Path) -> None:
    async with internal(pki) as server, client(pki, server.port, SG, Role.GATEWAY) as channel:
        call = border_pb2_grpc.BorderStub(channel).Exchange()
        await call.write(border_pb2.BorderPing(number=1))
        await call.read()
        server.clock.run_out()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert info_of(caught.value)[0].reason == "REQUEST_TIMEOUT"


class Watcher:
    """Singapore's gateway, which follows Vietnam's. Its pauses are short, and each is a moment to look."""

    def __init__(self, pki: Path, *ports: int) -> None:
        self.clock = Timers()
        self.watch = BorderWatch(
            peers={VN: [Address("127.0.0.1", port) for port in ports]},
            models=[CHAT],
            credentials=grpc_channel_credentials(pki, SG, Role.GATEWAY),
            clock=self.clock,
        )

    def load(self) -> RegionLoad | None:
        return self.watch.loads().get(VN)

    async def until(self, wanted: Callable[[RegionLoad | None], bool]) -> RegionLoad | None:
        while not wanted(self.load()):
            self.clock.paused.clear()
            await self.clock.paused.wait()
        return self.load()


@asynccontextmanager
async def watching(pki: Path, *ports: int) -> AsyncGenerator[Watcher]:
    watcher = Watcher(pki, *ports)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(watcher.watch.run())
        yield watcher
        assert not task.done()
        task.cancel()


async def test_a_gateway_follows_the_load_of_another_region(pki: Path) -> None:
    rows = [row(), row(EMBED)]
    async with internal(pki, replicas=lambda: rows) as server, watching(pki, server.port) as watcher:
        load = await watcher.until(lambda load: load is not None)
        assert load is not None
        assert load.region == VN
        assert load.rtt_s > 0
        # A model that is not in this gateway's catalogue has no name here.
        assert {model: (each.ready, each.room) for model, each in load.models.items()} == {CHAT: (1, 9)}
        rows[:] = [row(running=4, queued=8)]
        await watcher.until(lambda load: load is not None and load.models[CHAT].room == 0)
        # What is older than 3 s is gone, until it is heard of again.
        watcher.clock.ahead_s += 4
        assert watcher.load() is None
        await watcher.until(lambda load: load is not None)


async def test_a_region_is_found_again_at_another_gateway_and_after_its_end(pki: Path) -> None:
    spare_port = free_port()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(internal(pki, port=free_port(), replicas=lambda: [row()]))
        async with watching(pki, first.port, spare_port) as watcher:
            await watcher.until(lambda load: load is not None and load.models[CHAT].running == 1)
            await stack.aclose()
            watcher.clock.ahead_s += 4
            await watcher.until(lambda load: load is None)
            async with internal(pki, port=spare_port, replicas=lambda: [row(running=0)]):
                await watcher.until(lambda load: load is not None and load.models[CHAT].running == 0)
            async with internal(pki, port=first.port, replicas=lambda: [row(running=2)]):
                await watcher.until(lambda load: load is not None and load.models[CHAT].running == 2)


async def test_a_gateway_believes_only_the_region_that_it_dialled(pki: Path) -> None:
    def never() -> list[Replica]:
        raise AssertionError("it was asked under another region's name")

    async with (
        internal(pki, JP, replicas=never) as impostor,
        internal(pki, replicas=lambda: [row()]) as real,
        watching(pki, impostor.port, real.port) as watcher,
    ):
        await watcher.until(lambda load: load is not None)


@pytest.mark.parametrize("way", ["silent", "cancelled", "wrong"])
async def test_a_gateway_that_does_not_answer_is_left(pki: Path, way: str) -> None:
    """It says nothing, ends the call as if the caller had, or says something else: the next gateway is asked."""
    silent, heard = asyncio.Event(), asyncio.Event()

    async def exchange(_, context) -> None:
        await context.read()
        heard.set()
        if way == "cancelled":
            await context.abort(grpc.StatusCode.CANCELLED)
        if way == "wrong":
            await context.write(border_pb2.RegionLoad(number=99).SerializeToString())
        await silent.wait()

    handler = grpc.method_handlers_generic_handler(
        "mesh.v1.Border", {"Exchange": grpc.stream_stream_rpc_method_handler(exchange)}
    )
    credentials = grpc_server_credentials(pki, VN, Role.GATEWAY)
    async with (
        listen_grpc([handler], Address("127.0.0.1", 0), credentials, message_bytes=65_536) as mute,
        internal(pki, replicas=lambda: [row()]) as real,
        watching(pki, mute.port, real.port) as watcher,
    ):
        await heard.wait()
        if way == "silent":
            watcher.clock.expire()
        await watcher.until(lambda load: load is not None)
