"""Hops on real connections: what a kept one that is dead looks like to the story."""

from __future__ import annotations

import asyncio

import pytest

from mesh.content.frames import FrameKind, encode
from mesh.content.parcel import Sealed
from mesh.errors import Code, MeshError, StaleHopError
from mesh.gateway.ports import HopHead
from mesh.http1 import Pool
from mesh.runtime import SystemClock
from mesh.settings import Address
from mesh.transport.hops import HttpHops
from mesh.types import KeyId, ModelId, Operation, RegionId, RequestId, TenantId, Usage

HEAD = HopHead(
    request_id=RequestId("req_1"),
    tenant=TenantId("t_aaaaaaaaaaaaaaaa"),
    key_id=KeyId("k"),
    operation=Operation.CHAT,
    model=ModelId("chat"),
    stream=False,
    timeout_s=60,
)
END = encode(FrameKind.END, Usage(), b"")


async def test_a_connection_that_is_dead_is_told_from_a_replica_that_failed() -> None:
    """The other side answers one hop on a connection and ends it at the next, as one that was started again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for answer in (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(END), END), b""):
                await reader.readuntil(b"{}")
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        to = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        pool = Pool(None, stale_s=60)
        hops = HttpHops(pool, pool, RegionId("vn-1"), SystemClock())

        async def send() -> None:
            hop = await hops.to_replica(to, Sealed(bytearray(b"{}"), "application/json"), HEAD, lambda: None)
            try:
                while await hop.read():
                    pass
            finally:
                hop.close()

        await send()
        with pytest.raises(StaleHopError) as caught:
            await send()
        assert caught.value.code is Code.REPLICA_FAILED
        await send()
        pool.close()
    with pytest.raises(MeshError) as refused:
        await send()
    assert type(refused.value) is MeshError
