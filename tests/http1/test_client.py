"""The pool: connections are used again, dead ones are not, and every break has a name."""

from __future__ import annotations

import asyncio
import gc
import select
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from mesh.http1 import (
    ConnectionFailedError,
    Pool,
    Request,
    Response,
    StaleConnectionError,
    TooManyConnectionsError,
    listen,
)

HOST = [(b"host", b"door.test")]


async def call(
    pool: Pool,
    port: int,
    *,
    method: str = "POST",
    target: str = "/a",
    body: bytes | bytearray = b"",
    name: str = "door.test",
) -> Response:
    return await pool.request(
        "127.0.0.1", port, server_name=name, method=method, target=target, headers=HOST, body=body
    )


async def whole(response: Response) -> bytes:
    pieces: list[bytes] = []
    while piece := await response.read():
        pieces.append(piece)
    response.close()
    return b"".join(pieces)


def open_pool(door, **options) -> Pool:
    return Pool(door.client_tls, **options)


@asynccontextmanager
async def scripted(
    script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[int]:
    """A server that answers whatever a test wants."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def answers(data: bytes, *, stay: bool = False):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        if stay:
            await reader.read()

    return script


async def test_one_connection_serves_many_calls(door) -> None:
    async with door() as opened:
        pool = open_pool(opened)
        for body in (b"", b"abc", bytearray(b"x" * 300_000), b"y" * 5_000_000):
            response = await call(pool, opened.server.port, body=body, target="/a/b")
            assert response.status == 200
            assert response.header(b"x-path") == b"/a/b"
            assert response.header(b"none") is None
            assert await whole(response) == body
            response.close()
        assert opened.server.connections == 1
        pool.close()


async def test_the_last_used_connection_is_used_first(door) -> None:
    ports: list[int] = []
    gate = asyncio.Event()

    async def handler(request: Request) -> None:
        ports.append(request.peer.port)
        if request.path == "/wait":
            await gate.wait()
        await request.respond(200, [], b"")

    async with door(handler) as opened:
        pool = open_pool(opened)
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(call(pool, opened.server.port, target="/wait")) for _ in range(3)]
            while len(ports) < 3:
                await asyncio.sleep(0)
            gate.set()
        assert len(set(ports)) == 3
        first, second, third = [task.result() for task in waiting]
        for response in (third, first, second):
            await whole(response)
        for _ in range(3):
            await whole(await call(pool, opened.server.port))
        assert len(set(ports[3:])) == 1
        assert opened.server.connections == 3
        pool.close()


async def test_pieces_come_as_they_are_written(door) -> None:
    go = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.begin(200, [])
        await request.write(b"one")
        await go.wait()
        await request.write(b"two")
        await request.end()

    async with door(handler) as opened:
        pool = open_pool(opened)
        response = await call(pool, opened.server.port)
        assert await response.read() == b"one"
        go.set()
        assert await whole(response) == b"two"
        assert await whole(await call(pool, opened.server.port)) == b"onetwo"
        assert opened.server.connections == 1
        pool.close()


async def test_reading_is_held_while_nobody_reads(door) -> None:
    written = 0

    async def handler(request: Request) -> None:
        nonlocal written
        await request.begin(200, [])
        for _ in range(1000):
            await request.write(b"a" * 65_536)
            written += 65_536
        await request.end()

    async with door(handler) as opened:
        pool = open_pool(opened)
        response = await call(pool, opened.server.port)
        # It stops growing: the client holds, the kernel's buffers fill, the server waits.
        before = -1
        while written != before:
            before = written
            await asyncio.sleep(0.1)
        assert written < 65_536_000
        assert response._connection._answer.held_bytes < 1_000_000
        assert len(await whole(response)) == 65_536_000
        assert opened.server.connections == 1
        pool.close()


async def test_closing_early_hangs_up(door) -> None:
    cancelled = asyncio.Event()

    async def handler(request: Request) -> None:
        try:
            await request.begin(200, [])
            await request.write(b"one")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with door(handler) as opened:
        pool = open_pool(opened)
        response = await call(pool, opened.server.port)
        await response.read()
        response.close()
        response.close()
        await cancelled.wait()
        with pytest.raises(RuntimeError):
            await response.read()


async def test_cancelling_a_request_hangs_up(door) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with door(handler) as opened:
        pool = open_pool(opened)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(call(pool, opened.server.port))
            await entered.wait()
            task.cancel()
        await cancelled.wait()
        while pool._count:
            await asyncio.sleep(0)


async def test_a_connection_that_died_while_idle_is_not_used(door) -> None:
    async with door(keep_alive_s=0.1) as opened:
        pool = open_pool(opened)
        for _ in range(2):
            assert await whole(await call(pool, opened.server.port, body=b"a")) == b"a"
            while opened.server.connections or pool._idle:
                await asyncio.sleep(0)
        assert not pool._count
        pool.close()


async def test_a_connection_that_ended_while_nobody_looked_is_not_used() -> None:
    """The server's end has come, and the event loop has not been told yet."""

    def serve() -> socket.socket:
        accepted, _ = listener.accept()
        while b"\r\n\r\n" not in accepted.recv(65_536):
            pass
        accepted.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na")
        return accepted

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as thread:
        listener.settimeout(60)
        pool, port = Pool(None), listener.getsockname()[1]
        first = thread.submit(serve)
        assert await whole(await call(pool, port)) == b"a"
        second = thread.submit(serve)
        ((kept,),) = pool._idle.values()
        first.result().close()
        select.select([kept._transport.get_extra_info("socket")], [], [])
        assert await whole(await call(pool, port)) == b"a"
        pool.close()
        second.result().close()


async def answer_then(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, more: bytes, *, reset: bool) -> None:
    """Answers one request of a connection, and ends it at the next."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na")
    with suppress(asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(more)
    if reset:
        writer.transport.abort()


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("size_bytes", [0, 10_000_000])
async def test_a_kept_connection_that_turns_out_to_be_dead_is_told_apart(reset: bool, size_bytes: int) -> None:
    async with scripted(lambda reader, writer: answer_then(reader, writer, b"", reset=reset)) as port:
        pool = Pool(None, stale_s=60)
        responses = [await call(pool, port) for _ in range(3)]
        for response in responses:
            await whole(response)
        assert sum(map(len, pool._idle.values())) == 3
        with pytest.raises(StaleConnectionError):
            await call(pool, port, body=bytes(size_bytes))
        # The others have waited for longer: what comes next has a connection of its own.
        assert not pool._idle
        assert await whole(await call(pool, port)) == b"a"
        pool.close()


@pytest.mark.parametrize(("more", "stale_s"), [(b"HTTP/1.1 2", 60), (b"", 0)], ids=["answered", "late"])
async def test_one_that_answered_or_was_at_work_is_not(more: bytes, stale_s: float) -> None:
    async with scripted(lambda reader, writer: answer_then(reader, writer, more, reset=False)) as port:
        pool = Pool(None, stale_s=stale_s)
        assert await whole(await call(pool, port)) == b"a"
        with pytest.raises(ConnectionFailedError) as caught:
            await call(pool, port)
        assert type(caught.value) is ConnectionFailedError
        pool.close()


async def test_a_new_connection_that_breaks_is_not() -> None:
    async with scripted(answers(b"")) as port:
        with pytest.raises(ConnectionFailedError) as caught:
            await call(Pool(None, stale_s=60), port)
        assert type(caught.value) is ConnectionFailedError


async def test_a_host_that_is_gone_is_noticed_while_nothing_is_sent(door) -> None:
    async with door() as opened:
        pool = open_pool(opened)
        response = await call(pool, opened.server.port)
        sock = response._connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle_s, every_s, tries = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle_s + every_s * tries <= 15
        await whole(response)
        pool.close()


async def test_a_connection_that_held_a_whole_answer_is_used_again(door) -> None:
    async def handler(request: Request) -> None:
        await request.respond(200, [], b"a" * 262_144)

    async with door(handler) as opened:
        pool = open_pool(opened)
        for _ in range(2):
            response = await call(pool, opened.server.port)
            while not response._connection._answer.complete:
                await asyncio.sleep(0)
            assert len(await whole(response)) == 262_144
        assert pool._idle
        assert list(pool._count.values()) == [1]
        pool.close()


async def test_bytes_after_a_held_answer_end_a_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 262144\r\n\r\n" + b"a" * 262_144)
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")
        with suppress(ConnectionResetError):
            await reader.read()

    go = asyncio.Event()
    async with scripted(script) as port:
        pool = Pool(None)
        response = await call(pool, port)
        connection = response._connection
        while not connection._answer.complete:
            await asyncio.sleep(0)
        go.set()
        while not connection.unread_bytes:
            await asyncio.sleep(0)
        assert len(await whole(response)) == 262_144
        assert not pool._idle
        while pool._count:
            await asyncio.sleep(0)


async def test_idle_connections_are_closed_in_time(door) -> None:
    async with door() as opened:
        pool = open_pool(opened, idle_s=0.1)
        await whole(await call(pool, opened.server.port))
        assert opened.server.connections == 1
        while opened.server.connections or pool._count:
            await asyncio.sleep(0)
        pool.close()


async def test_bytes_that_nobody_asked_for_end_a_connection() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na")
        await writer.drain()
        await go.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")
        with suppress(ConnectionResetError):
            await reader.read()

    go = asyncio.Event()
    async with scripted(script) as port:
        pool = Pool(None)
        assert await whole(await call(pool, port)) == b"a"
        assert pool._idle
        go.set()
        while pool._count:
            await asyncio.sleep(0)
        assert not pool._idle


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_no_head_is_a_failed_connection(data: bytes) -> None:
    async with scripted(answers(data)) as port:
        pool = Pool(None)
        with pytest.raises(ConnectionFailedError):
            await call(pool, port)
        while pool._count:
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nx\r\n",
    ],
)
async def test_a_cut_answer_is_a_failed_connection(data: bytes) -> None:
    async with scripted(answers(data)) as port:
        pool = Pool(None)
        with pytest.raises(ConnectionFailedError):
            await whole(await call(pool, port))


@pytest.mark.parametrize(
    ("data", "body", "kept"),
    [
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nx: y\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na",
            b"a",
            True,
        ),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\na", b"a", False),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\naHTTP/1.1 200 OK\r\n\r\n", b"a", False),
    ],
)
async def test_what_is_an_answer_and_whether_the_connection_stays(data: bytes, body: bytes, kept: bool) -> None:
    async with scripted(answers(data, stay=kept)) as port:
        pool = Pool(None)
        response = await call(pool, port)
        assert response.header(b"x") is None
        try:
            assert await whole(response) == body
        except ConnectionFailedError:
            assert data.endswith(b"OK\r\n\r\n")
            response.close()
        assert bool(pool._idle) == kept
        pool.close()


async def test_an_answer_to_head_has_no_body(door) -> None:
    async with door() as opened:
        pool = open_pool(opened)
        response = await call(pool, opened.server.port, method="HEAD")
        assert response.status == 200
        assert await whole(response) == b""
        pool.close()


async def test_an_answer_before_the_body_is_sent(door) -> None:
    async def handler(request: Request) -> None:
        await request.respond(413, [], b"too large")

    async with door(handler, linger_bytes=2**30) as opened:
        pool = open_pool(opened)
        response = await call(pool, opened.server.port, body=b"a" * 30_000_000)
        assert response.status == 413
        assert await response.read() == b"too large"
        response.close()
        assert not pool._idle


async def test_nobody_listens() -> None:
    async with scripted(answers(b"")) as port:
        pass
    pool = Pool(None)
    with pytest.raises(ConnectionFailedError):
        await call(pool, port)
    assert not pool._count


async def test_a_handshake_that_never_ends_is_given_up(tls) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with scripted(silent) as port:
        pool = Pool(tls.client, connect_timeout_s=0.2)
        with pytest.raises(ConnectionFailedError):
            await call(pool, port)
        while pool._count:
            await asyncio.sleep(0)


@pytest.mark.parametrize("scheme", ["tls"], indirect=False)
async def test_a_certificate_of_another_name_is_refused(door, scheme: str) -> None:
    async with door() as opened:
        pool = open_pool(opened)
        with pytest.raises(ConnectionFailedError):
            await call(pool, opened.server.port, name="other.test")
        with pytest.raises(ValueError, match="server_name"):
            await pool.request(
                "127.0.0.1", opened.server.port, server_name=None, method="GET", target="/", headers=HOST
            )
        assert opened.seen == []


async def test_mutual_tls_shows_who_calls(tls) -> None:
    async def handler(request: Request) -> None:
        certificate: Any = request.peer.certificate
        await request.respond(200, [], dict(certificate["subjectAltName"])["URI"].encode())

    async with listen(handler, "127.0.0.1", 0, tls=tls.mutual, fault=lambda *_: (500, [], b"")) as server:
        known, unknown = Pool(tls.known_client), Pool(tls.client)
        assert await whole(await call(known, server.port)) == b"mesh://vn-1/gateway/g2"
        with pytest.raises(ConnectionFailedError):
            await call(unknown, server.port)
        known.close()


async def test_an_address_has_so_many_connections_and_no_more(door) -> None:
    gate = asyncio.Event()

    async def handler(request: Request) -> None:
        await gate.wait()
        await request.respond(200, [], b"")

    async with door(handler) as opened:
        pool = open_pool(opened, per_address=2)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(call(pool, opened.server.port)) for _ in range(2)]
            while len(opened.seen) < 2:
                await asyncio.sleep(0)
            with pytest.raises(TooManyConnectionsError):
                await call(pool, opened.server.port)
            gate.set()
        for task in running:
            await whole(task.result())
        await whole(await call(pool, opened.server.port))
        pool.close()


async def test_closing_leaves_nothing_open(door) -> None:
    async with door() as opened:
        pool = open_pool(opened)
        await whole(await call(pool, opened.server.port))
        used = await call(pool, opened.server.port)
        pool.close()
        await whole(used)
        while opened.server.connections or pool._count:
            await asyncio.sleep(0)
        with pytest.raises(ConnectionFailedError):
            await call(pool, opened.server.port)
        gc.collect()


@pytest.mark.parametrize(
    ("target", "header"),
    [("/a b", (b"x", b"y")), ("/a\r\nx: y", (b"x", b"y")), ("http://a/", (b"x", b"y")), ("/", (b"x", b"a\r\nb: c"))],
)
async def test_a_caller_cannot_split_a_request(target: str, header: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="not a"):
        await Pool(None).request("127.0.0.1", 1, server_name=None, method="GET", target=target, headers=[header])
