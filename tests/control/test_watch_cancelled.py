"""A store that cancels a watch, or a call: that is its failure, and must not end whoever follows it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import grpc
import grpc.aio
import pytest

from mesh.control.etcd import EtcdStore
from mesh.control.store import Range, StoreUnavailableError, WatchBatch, WatchDown
from mesh.etcd.v1 import etcd_pb2 as pb
from mesh.runtime import SystemClock


class Cancels(grpc.GenericRpcHandler):
    """Cancels every call, and every watch after its first event."""

    def __init__(self) -> None:
        self.watches = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method == "/etcdserverpb.Watch/Watch":
            return grpc.stream_stream_rpc_method_handler(
                self._watch, pb.WatchRequest.FromString, pb.WatchResponse.SerializeToString
            )
        return grpc.unary_unary_rpc_method_handler(
            self._call, pb.RangeRequest.FromString, pb.RangeResponse.SerializeToString
        )

    async def _watch(self, _: object, context: grpc.aio.ServicerContext) -> None:  # type: ignore[type-arg]
        self.watches += 1
        await context.read()
        await context.write(pb.WatchResponse(created=True))
        response = pb.WatchResponse()
        response.events.add().kv.mod_revision = self.watches
        await context.write(response)
        await context.abort(grpc.StatusCode.CANCELLED)

    async def _call(self, _: object, context: grpc.aio.ServicerContext) -> None:  # type: ignore[type-arg]
        await context.abort(grpc.StatusCode.CANCELLED)


async def test_what_the_store_cancels_is_begun_again() -> None:
    server, cancels = grpc.aio.server(), Cancels()
    server.add_generic_rpc_handlers((cancels,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        store = EtcdStore([channel], SystemClock())
        with pytest.raises(StoreUnavailableError):
            await store.range(Range("/a"), timeout_s=1)
        seen: list[int] = []
        downs: list[str] = []

        async def follow() -> None:
            async with aclosing(store.watch("/a", "/b", 1)) as watch:
                async for news in watch:
                    match news:
                        case WatchBatch(events):
                            seen.extend(event.mod_revision for event in events)
                        case WatchDown(reason):
                            downs.append(reason)
                        case _:
                            pass
                    if len(seen) == 3:
                        return

        following = asyncio.ensure_future(follow())
        await asyncio.wait([following])
        assert not following.cancelled()
        await following
        assert seen == [1, 2, 3]
        assert downs[:2] == ["CANCELLED", "CANCELLED"]
    await server.stop(None)
