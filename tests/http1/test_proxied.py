"""The PROXY protocol: what is believed, from whom, and what ends the connection."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mesh.http1 import Request, listen
from mesh.http1.limits import Limits
from mesh.http1.proxied import MOST_BYTES, SIGNATURE, ProxyHeader, ProxyHeaderError, read_header


def header(
    source: str = "192.0.2.7", port: int = 40_000, *, command: int = 0x21, family: int | None = None, more: bytes = b""
) -> bytes:
    address = ipaddress.ip_address(source)
    addresses = address.packed * 2 + port.to_bytes(2) + (443).to_bytes(2)
    family = (0x11 if address.version == 4 else 0x21) if family is None else family
    rest = addresses + more
    return SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2) + rest


LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
ADDITION = b"\x02\x00\x03abc"


@pytest.mark.parametrize(
    ("data", "read"),
    [
        (header(), ("192.0.2.7", 40_000)),
        (header("2001:db8::7", 1), ("2001:db8::7", 1)),
        (header(more=ADDITION + b"\x05\x00\x00"), ("192.0.2.7", 40_000)),
        (LOCAL, (None, 0)),
        (header(command=0x20), (None, 0)),
        (header(command=0x20, family=0x31, more=b"x"), (None, 0)),
    ],
)
def test_a_header_is_read_in_any_pieces_and_nothing_behind_it(data: bytes, read: tuple[str | None, int]) -> None:
    for end in range(len(data)):
        assert read_header(data[:end]) is None
    for behind in (b"", b"\x16\x03\x01", header()):
        assert read_header(data + behind) == ProxyHeader(len(data), *read)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        SIGNATURE[:-1] + b"\r",
        header(command=0x11),
        header(command=0x22),
        header(command=0x31),
        header(family=0x00),
        header(family=0x12),
        header(family=0x31),
        header(family=0x21),
        header(more=b"\x02"),
        header(more=b"\x02\x00\x04abc"),
        header(more=ADDITION + b"\x00"),
        SIGNATURE + b"\x21\x11" + (11).to_bytes(2) + bytes(11),
        SIGNATURE + b"\x21\x11" + (MOST_BYTES - 15).to_bytes(2),
        SIGNATURE + b"\x20\x00\xff\xff",
    ],
)
def test_whatever_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        read_header(data + bytes(600) if data.startswith(SIGNATURE) and len(data) < 40 else data)


@given(st.binary(max_size=700).map(lambda tail: SIGNATURE + tail) | st.binary(max_size=64))
@example(header("::ffff:192.0.2.7"))
def test_no_bytes_are_read_in_two_ways(data: bytes) -> None:
    """Whole or piece by piece, the outcome is the same; and a header that is taken is of the size that it says."""

    def outcome(read: bytes) -> ProxyHeader | str:
        for end in range(len(read) + 1):
            try:
                found = read_header(read[:end])
            except ProxyHeaderError:
                return "refused"
            if found is not None:
                assert found.size_bytes == end == 16 + int.from_bytes(read[14:16])
                return found
        return "more"

    try:
        whole: ProxyHeader | str = read_header(data) or "more"
    except ProxyHeaderError:
        whole = "refused"
    assert whole == outcome(data)
    if isinstance(whole, ProxyHeader) and whole.address is not None:
        ipaddress.ip_address(whole.address)


async def peer(request: Request) -> None:
    await request.respond(200, [], f"{request.peer.address} {request.peer.port}".encode())


ASK = b"GET / HTTP/1.1\r\nhost: door.test\r\nconnection: close\r\n\r\n"


async def said(port: int, *pieces: bytes, from_: str = "127.0.0.1") -> bytes:
    """What a server in clear answers to these pieces; empty where it closes without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(from_, 0))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return (await reader.read()).rpartition(b"\r\n\r\n")[2]
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def fault(*_: object) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    return 500, [], b"fault"


async def test_the_clients_address_is_the_fronts_word_and_only_the_fronts() -> None:
    async with listen(peer, "127.0.0.1", 0, tls=None, fault=fault, fronts=frozenset({"127.0.0.3"})) as server:
        front = "127.0.0.3"
        assert await said(server.port, header() + ASK, from_=front) == b"192.0.2.7 40000"
        assert await said(server.port, *(bytes([byte]) for byte in header("2001:db8::1")), ASK, from_=front) == (
            b"2001:db8::1 40000"
        )
        assert (await said(server.port, LOCAL, ASK, from_=front)).startswith(b"127.0.0.3 ")
        for wrong in (ASK, header(family=0x12) + ASK, b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n" + ASK):
            assert await said(server.port, wrong, from_=front) == b""
        # From anywhere else nothing is taken, whatever it claims.
        assert await said(server.port, header() + ASK) == b""
        assert await said(server.port, ASK) == b""


async def test_a_listener_for_clients_believes_no_header() -> None:
    async with listen(peer, "127.0.0.1", 0, tls=None, fault=fault) as server:
        assert b"192.0.2.7" not in await said(server.port, header() + ASK)
        assert (await said(server.port, ASK)).startswith(b"127.0.0.1 ")


async def test_a_front_that_does_not_go_on_is_cut_off() -> None:
    limits = Limits(head_timeout_s=0.2)
    async with listen(
        peer, "127.0.0.1", 0, tls=None, fault=fault, limits=limits, fronts=frozenset({"127.0.0.1"})
    ) as server:
        for start in (b"", header()[:20]):
            assert await said(server.port, start) == b""
        while server.connections:
            await asyncio.sleep(0)


async def test_under_tls_the_header_comes_in_clear_before_the_handshake(tls) -> None:
    async with listen(peer, "127.0.0.1", 0, tls=tls.door, fault=fault, fronts=frozenset({"127.0.0.1"})) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(header("198.51.100.9", 9))
        await writer.start_tls(tls.client, server_hostname="door.test")
        writer.write(ASK)
        assert (await reader.read()).endswith(b"198.51.100.9 9")
        writer.transport.abort()
        # Without it there is no handshake.
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await asyncio.open_connection("127.0.0.1", server.port, ssl=tls.client, server_hostname="door.test")
