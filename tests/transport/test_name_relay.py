"""Tenant hostnames at the gRPC door: real clients by way of the relay that notes the name."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_lab import (
    HEAD,
    KEY,
    LIMIT_BYTES,
    TENANT,
    VN,
    Counted,
    FakeHop,
    counting_proxy,
    data,
    end,
    info_of,
    opened,
)

from mesh.embedded.authority import make_pki
from mesh.errors import Code, MeshError
from mesh.policy.hostnames import DoorNames, check_label, label_of
from mesh.settings import Address
from mesh.tls import grpc_door_channel_credentials
from mesh.transport.grpc_exchange import GrpcExchange, read_message
from mesh.transport.name_relay import NameRelay, relay
from mesh.types import Operation

HOST = "127.0.0.1"
ZONE = "vn-1.mesh.test"
MINE, THEIRS = f"{label_of(TENANT)}.{ZONE}", f"t-bbbbbbbbbbbbbbbb.{ZONE}"
NAMES = DoorNames(plain=frozenset({ZONE, HOST}), zone=ZONE, zones=frozenset({ZONE}))
CHAT = "/mesh.v1.Inference/Chat"
BODY = b"\x0a\x01m"


@pytest.fixture(scope="module")
def named_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("relay-pki")
    make_pki(folder, {VN: [HOST]}, [HOST], zones={VN: ZONE})
    return folder


async def serve(exchange: GrpcExchange) -> None:
    """As the story: whose name was called is looked at before the message."""
    check_label(exchange.label, TENANT)
    if exchange.operation is Operation.EMBEDDINGS:
        raise MeshError(Code.RESIDENCY_REFUSED)
    message = await read_message(exchange._context)
    await exchange.relay(FakeHop([data(b"%d" % len(message or b"")), end()]), HEAD)


@asynccontextmanager
async def door(pki: Path) -> AsyncGenerator[tuple[int, NameRelay]]:
    """A door behind its relay; the door's own port, and the relay."""
    held: list[NameRelay] = []
    async with (
        opened(
            pki, serve, limit_bytes=LIMIT_BYTES, names=NAMES, asked_name=lambda context: held[0].name_of(context.peer())
        ) as made,
        relay(Address(HOST, 0), Address(HOST, made.server.port), NAMES) as relaying,
    ):
        held.append(relaying)
        yield made.server.port, relaying


def channel(pki: Path, port: int, name: str | None) -> grpc.aio.Channel:
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    if name is not None:
        options.append(("grpc.ssl_target_name_override", name))
    return grpc.aio.secure_channel(f"{HOST}:{port}", grpc_door_channel_credentials(pki), options=options)


@pytest.mark.parametrize("name", [MINE, ZONE, None])
async def test_a_name_of_the_keys_tenant_is_served(named_pki: Path, name: str | None) -> None:
    async with door(named_pki) as (_, relaying), channel(named_pki, relaying.port, name) as client:
        assert await client.unary_unary(CHAT)(BODY, metadata=KEY) == b"3"
        large = BODY + b"\x22" + bytes([0x80, 0x80, 0x80, 0x01]) + bytes(2 << 20)
        assert await client.unary_unary(CHAT)(large, metadata=KEY) == b"%d" % len(large)
        assert await client.unary_unary("/mesh.v1.Router/Resolve")(b"", metadata=KEY)


async def test_another_tenants_name_is_misdirected(named_pki: Path) -> None:
    async with door(named_pki) as (_, relaying), channel(named_pki, relaying.port, THEIRS) as client:
        for method in (CHAT, "/mesh.v1.Router/Resolve", "/mesh.v1.Inference/ListModels"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.unary_unary(method)(BODY, metadata=KEY)
            info, _ = info_of(refused.value)
            assert (refused.value.code(), info.reason) == (
                grpc.StatusCode.FAILED_PRECONDITION, "MISDIRECTED_REQUEST"
            )  # fmt: skip


async def test_past_the_relay_nobody_is_served(named_pki: Path) -> None:
    async with door(named_pki) as (port, _), channel(named_pki, port, None) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.unary_unary(CHAT)(BODY, metadata=KEY)
        assert info_of(refused.value)[0].reason == "MISDIRECTED_REQUEST"


async def test_a_refused_message_stays_with_the_client_behind_the_relay_too(named_pki: Path) -> None:
    counted: Counted
    async with (
        door(named_pki) as (_, relaying),
        counting_proxy(relaying.port) as counted,
        channel(named_pki, counted.port, MINE) as client,
    ):
        for number in range(1, 4):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.unary_unary("/mesh.v1.Inference/Embed")(bytes(4_000_000), metadata=KEY)
            assert info_of(refused.value)[0].reason == "RESIDENCY"
            assert counted.sent_bytes <= number * 80 * 1024


async def test_a_foreign_name_and_what_is_no_tls_are_closed(named_pki: Path) -> None:
    async with door(named_pki) as (_, relaying):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(named_pki / "doors-ca.pem")
        for name in ("t-aaaaaaaaaaaaaaaa.ap-southeast-1.mesh.test", f"a.{MINE}", "localhost"):
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await asyncio.open_connection(HOST, relaying.port, ssl=context, server_hostname=name)
        for first in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x02"):
            # The last one is a beginning, and no more of it comes.
            reader, writer = await asyncio.open_connection(HOST, relaying.port)
            writer.write(first)
            try:
                assert await reader.read() == b""
            except ConnectionError:
                pass
            finally:
                writer.transport.abort()
        assert not relaying._open


async def test_what_it_noted_goes_with_the_connection(named_pki: Path) -> None:
    async with door(named_pki) as (_, relaying):
        async with channel(named_pki, relaying.port, MINE) as client:
            await client.unary_unary(CHAT)(BODY, metadata=KEY)
            assert list(relaying._asked.values()) == [MINE]
        while relaying._asked or relaying._open:
            await asyncio.sleep(0.01)
