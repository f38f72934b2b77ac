"""Which member of the store is asked: the nearest, unless it fails; and that one again once it is back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from mesh.control.etcd import EtcdStore
from mesh.control.store import Range
from mesh.etcd.v1 import etcd_pb2 as pb
from mesh.runtime import SystemClock


class Member(grpc.GenericRpcHandler):
    """A member; `refuses`: it has no leader."""

    def __init__(self) -> None:
        self.asked = 0
        self.refuses = False

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:  # type: ignore[type-arg]
        return grpc.unary_unary_rpc_method_handler(
            self._call, pb.RangeRequest.FromString, pb.RangeResponse.SerializeToString
        )

    async def _call(self, _: object, context: grpc.aio.ServicerContext) -> pb.RangeResponse:  # type: ignore[type-arg]
        self.asked += 1
        if self.refuses:
            await context.abort(grpc.StatusCode.UNAVAILABLE)
        return pb.RangeResponse()


class Ahead(SystemClock):
    """A clock on which more time has passed than did."""

    passed_s = 0.0

    def now_s(self) -> float:
        return super().now_s() + self.passed_s


class Lab:
    """Two members, and a store that asks them."""

    def __init__(self, store: EtcdStore, near: Member, far: Member) -> None:
        self.store, self.near, self.far = store, near, far

    async def ask(self) -> tuple[int, int]:
        """How often each of the two is asked for one read."""
        before = self.near.asked, self.far.asked
        await self.store.range(Range("/a"), timeout_s=20)
        return self.near.asked - before[0], self.far.asked - before[1]


@asynccontextmanager
async def lab(clock: Ahead) -> AsyncGenerator[Lab]:
    members, servers, channels = (Member(), Member()), list[grpc.aio.Server](), list[grpc.aio.Channel]()
    for member in members:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((member,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
    try:
        for channel in channels:
            await channel.channel_ready()
        yield Lab(EtcdStore(channels, clock), *members)
    finally:
        for channel in channels:
            await channel.close()
        for server in servers:
            await server.stop(None)


async def test_the_nearest_is_asked_again_after_a_while_and_after_a_longer_one_each_time_that_it_fails() -> None:
    clock = Ahead()
    async with lab(clock) as two:
        assert await two.ask() == (1, 0)
        two.near.refuses = True
        assert await two.ask() == (1, 1)
        assert await two.ask() == (0, 1), "it was left"
        clock.passed_s += 10
        assert await two.ask() == (1, 1), "it fails still"
        clock.passed_s += 10
        assert await two.ask() == (0, 1)
        clock.passed_s += 10
        two.near.refuses = False
        assert await two.ask() == (1, 0)
        two.near.refuses = True
        assert await two.ask() == (1, 1)
        clock.passed_s += 10
        assert await two.ask() == (1, 1), "an answer made the while short again"


async def test_a_member_that_is_not_connected_is_not_asked_again() -> None:
    clock = Ahead()
    async with lab(clock) as two:
        two.near.refuses = True
        assert await two.ask() == (1, 1)
        await two.store._channels[0].close()
        clock.passed_s += 10
        assert await two.ask() == (0, 1)
