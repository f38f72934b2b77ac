"""An answer given before the body was read reaches clients that write their whole body first."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ssl

import httpx2
import pytest

from mesh.http1 import Request

HEAD = b"POST /a HTTP/1.1\r\nHost: door.test\r\nContent-Length: %d\r\n\r\n"


async def refuse(request: Request) -> None:
    await request.respond(451, [(b"mesh-allowed-endpoints", b"https://door.test/v1")], b"elsewhere")


async def test_the_answer_comes_and_then_our_side_ends(door) -> None:
    async with door(refuse, linger_s=60) as opened, opened.connect() as client:
        await client.send(HEAD % 100_000)
        status, headers, body = await client.answer()
        assert (status, body, headers["connection"]) == (451, b"elsewhere", "close")
        # We said goodbye, and still take what comes: the connection is open until the client ends it.
        assert await client.reader.read() == b""
        assert opened.server.connections == 1


async def test_what_still_arrives_is_not_decrypted(door, scheme: str) -> None:
    read: list[int] = []
    async with door(refuse, linger_s=60) as opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.server.port)
        wire = _Wire(opened.client_tls, reader, writer)
        await wire.open()
        await wire.send(HEAD % 150_000)
        assert b"451" in await wire.receive()
        (connection,) = opened.server._open
        original = connection.pull

        def counted() -> bytes:
            data = original()
            read.append(len(data))
            return data

        connection.pull = counted
        await wire.send(b"a" * 150_000)
        while connection._dropped_bytes < 150_000:
            await asyncio.sleep(0)
        assert not read
        assert not connection.unread_bytes
        assert not connection._buffer
        writer.close()
        while opened.server.connections:
            await asyncio.sleep(0)


async def test_beyond_the_bytes_the_connection_is_reset(door) -> None:
    async with door(refuse, linger_bytes=65_536) as opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.server.port)
        wire = _Wire(opened.client_tls, reader, writer)
        await wire.open()
        await wire.send(HEAD % 2**30)
        assert b"451" in await wire.receive()
        with pytest.raises(ConnectionError):
            await wire.send_for_ever(b"a" * 65_536)
        writer.close()
        while opened.server.connections:
            await asyncio.sleep(0)


async def test_beyond_the_time_the_connection_ends(door) -> None:
    async with door(refuse, linger_s=0.2) as opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", opened.server.port)
        wire = _Wire(opened.client_tls, reader, writer)
        await wire.open()
        await wire.send(HEAD % 2**30)
        assert b"451" in await wire.receive()
        with contextlib.suppress(ConnectionError):  # unless it has ended by now
            await wire.send(b"a")
        while opened.server.connections:
            await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await wire.send_for_ever(b"a")
        writer.close()


@pytest.mark.parametrize("size", [1_000, 200_000])
async def test_within_bounds_every_client_sees_the_answer(door, tls, size: int) -> None:
    async with door(refuse, linger_s=60) as opened:
        for call in (_by_http_client, _by_httpx):
            status, endpoints = await asyncio.to_thread(
                call, opened.server.port, tls.client if opened.client_tls else None, b"a" * size
            )
            assert (status, endpoints) == (451, "https://door.test/v1")


async def test_httpx_sees_the_answer_or_a_reset_beyond_the_bounds(door, tls) -> None:
    """8 MiB are more than may be thrown away: the client's write fails, and nothing hangs."""
    async with door(refuse) as opened:
        try:
            status, _ = await asyncio.to_thread(
                _by_httpx, opened.server.port, tls.client if opened.client_tls else None, b"a" * 2**23
            )
        except (httpx2.TransportError, ssl.SSLError):
            return
        assert status == 451


async def test_a_refused_head_lingers_too(door) -> None:
    async with door(linger_s=60) as opened, opened.connect() as client:
        await client.send(b"BAD\r\n\r\n" + b"a" * 100_000)
        status, _, body = await client.answer()
        assert (status, body) == (400, b"malformed_request")
        assert await client.gone()


async def test_too_large_is_refused_from_the_announced_length(door) -> None:
    async def handler(request: Request) -> None:
        await request.body(1000)

    async with door(handler) as opened:
        for head in (HEAD % 1001, b"POST /a HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3E9\r\n"):
            async with opened.connect() as client:
                await client.send(head)
                status, headers, body = await client.answer()
                assert (status, body, headers["connection"]) == (413, b"request_too_large", "close")
                assert await client.gone()


class _Wire:
    """TLS by hand, so that a client can go on writing after the server said goodbye; or nothing, in clear."""

    def __init__(
        self, context: ssl.SSLContext | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader, self._writer = reader, writer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context and context.wrap_bio(self._in, self._out, server_hostname="door.test")

    async def open(self) -> None:
        while self._tls is not None:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                self._in.write(await self._reader.read(65_536))

    async def send(self, data: bytes) -> None:
        if self._tls is None:
            self._out.write(data)
        else:
            self._tls.write(data)
        await self._flush()

    async def send_for_ever(self, data: bytes) -> None:
        while True:
            await self.send(data)

    async def receive(self) -> bytes:
        while self._tls is not None:
            try:
                return self._tls.read(65_536)
            except ssl.SSLWantReadError:
                self._in.write(await self._reader.read(65_536))
        return await self._reader.read(65_536)

    async def _flush(self) -> None:
        self._writer.write(self._out.read())
        await self._writer.drain()


def _by_http_client(port: int, context: ssl.SSLContext | None, body: bytes) -> tuple[int, str | None]:
    if context is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    else:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    try:
        connection.request("POST", "/a", body=body)
        answer = connection.getresponse()
        assert answer.read() == b"elsewhere"
        return answer.status, answer.getheader("mesh-allowed-endpoints")
    finally:
        connection.close()


def _by_httpx(port: int, context: ssl.SSLContext | None, body: bytes) -> tuple[int, str | None]:
    scheme = "http" if context is None else "https"
    with httpx2.Client(verify=context or True, trust_env=False, timeout=20) as client:
        answer = client.post(f"{scheme}://127.0.0.1:{port}/a", content=body)
        return answer.status_code, answer.headers.get("mesh-allowed-endpoints")
