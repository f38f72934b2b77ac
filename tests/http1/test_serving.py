"""The server's manners: order, pace, limits, ends. Over real sockets, in clear and under TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import tracemalloc
from typing import Any

import pytest

from mesh.errors import Code, MeshError
from mesh.http1 import Limits, Request, listen

HEAD = b"Host: door.test\r\n"


def get(path: str = "/a", extra: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (path.encode(), HEAD, extra)


def post(body: bytes, extra: bytes = b"", path: str = "/a") -> bytes:
    return b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n%b\r\n%b" % (path.encode(), HEAD, len(body), extra, body)


async def test_pipelined_requests_are_served_in_order_one_at_a_time(door) -> None:
    running = most = 0

    async def handler(request: Request) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        body = await request.body(100)
        await asyncio.sleep(0)
        running -= 1
        await request.respond(200, [], request.path.encode() + bytes(body))

    async with door(handler) as opened, opened.connect() as client:
        await client.send(b"".join(post(b"%d" % at, path=f"/{at}-") for at in range(20)))
        assert [(await client.answer())[2] for _ in range(20)] == [b"/%d-%d" % (at, at) for at in range(20)]
        assert most == 1


async def test_what_is_sent_ahead_is_held_within_bounds(door) -> None:
    release, entered = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> None:
        if request.path == "/slow":
            entered.set()
            await release.wait()
        await request.respond(200, [], b"")

    async with door(handler, pipelined_bytes=4096) as opened, opened.connect() as client:
        flood = get("/fast", b"X: " + b"a" * 4000 + b"\r\n")
        client.writer.write(get("/slow"))
        await entered.wait()
        sent = 0
        client.writer.transport.set_write_buffer_limits(high=1)
        # The server stops reading, so the kernel's buffers fill and a write waits.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while sent < 20_000:
                    await client.send(flood)
                    sent += 1
        assert sent < 20_000
        (connection,) = opened.server._open
        assert len(connection._buffer) + connection.unread_bytes < 600_000
        release.set()
        for _ in range(sent + 1):
            assert (await client.answer())[0] == 200


async def test_large_bodies_both_ways(door) -> None:
    body = bytes(range(256)) * 32768
    async with door() as opened, opened.connect() as client:
        for data in (
            post(body),
            post(body[:100_000]),
            b"POST /a HTTP/1.1\r\n"
            + HEAD
            + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
        ):
            sending = asyncio.gather(client.send(data), client.answer())
            _, (status, _, got) = await sending
            assert status == 200
            assert got == body[: len(got)]
            assert len(got) in (len(body), 100_000)


async def test_memory_grows_with_what_came_and_not_with_what_was_announced(clear_door) -> None:
    async with clear_door(body_idle_s=0.2) as opened, opened.connect() as client:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            await client.send(b"POST /a HTTP/1.1\r\n" + HEAD + b"Content-Length: 8388608\r\n\r\nabc")
            assert (await client.answer())[::2] == (408, b"request_timeout")
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
    assert peak < 2_000_000


async def test_slow_head_is_timed_out(door) -> None:
    async with door() as opened, opened.connect() as client:
        await client.send(get())
        assert (await client.answer())[0] == 200
        opened.hurry(head_timeout_s=0.3)
        await client.send(b"GET /b HTTP/1.1\r\nX: ")
        assert (await client.answer())[::2] == (408, b"request_timeout")
        assert await client.gone()
        assert opened.seen == ["GET /a"]


async def test_a_trickle_does_not_extend_a_heads_time(clear_door) -> None:
    async with clear_door() as opened, opened.connect() as client:
        await client.send(get())
        assert (await client.answer())[0] == 200
        opened.hurry(head_timeout_s=0.3)
        await client.send(b"GET /a HTTP/1.1\r\nX: ")

        async def trickle() -> None:
            while True:
                await client.send(b"a")
                await asyncio.sleep(0.05)

        task = asyncio.get_running_loop().create_task(trickle())
        try:
            assert (await client.answer())[::2] == (408, b"request_timeout")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_slow_body_is_timed_out(door) -> None:
    async with door(body_idle_s=0.3) as opened, opened.connect() as client:
        await client.send(post(b"")[:-4].replace(b"Length: 0", b"Length: 10") + b"\r\n\r\nabc")
        status, headers, body = await client.answer()
        assert (status, body, headers["connection"]) == (408, b"request_timeout", "close")
        assert await client.gone()


async def test_idle_connections_are_closed_without_a_word(door) -> None:
    async with door(head_timeout_s=0.2) as opened:
        # On a busy machine a handshake may take longer than that.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            async with opened.connect() as client:
                assert await client.gone()
    async with door(keep_alive_s=0.2) as opened, opened.connect() as client:
        await client.send(get())
        assert (await client.answer())[0] == 200
        assert await client.gone()


async def test_a_client_that_never_shakes_hands_is_dropped(tls) -> None:
    async def never(request: Request) -> None:
        raise AssertionError

    limits = Limits(head_timeout_s=0.2)
    async with listen(never, "127.0.0.1", 0, tls=tls.door, fault=lambda *_: (500, [], b""), limits=limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await reader.read() == b""
        writer.close()


async def test_connection_close_is_honoured(door) -> None:
    async with door() as opened, opened.connect() as client:
        await client.send(get(extra=b"Connection: close\r\n") + get("/next"))
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.gone()
        assert opened.seen == ["GET /a"]


async def test_head_has_no_body(door) -> None:
    async def handler(request: Request) -> None:
        if request.path == "/pieces":
            await request.begin(200, [])
            await request.write(b"abc")
            await request.end()
        else:
            await request.respond(200, [], b"abc")

    async with door(handler) as opened, opened.connect() as client:
        for path in ("/whole", "/pieces"):
            await client.send(b"HEAD %b HTTP/1.1\r\n" % path.encode() + HEAD + b"\r\n")
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert (b"content-length: 3" in head) == (path == "/whole")
        await client.send(get("/whole"))
        assert (await client.answer())[2] == b"abc"


async def test_answers_without_a_body(door) -> None:
    async def handler(request: Request) -> None:
        await request.respond(204, [])

    async with door(handler) as opened, opened.connect() as client:
        await client.send(get() + get())
        for _ in range(2):
            status, headers, _ = await client.answer()
            assert status == 204
            assert "content-length" not in headers


async def test_pieces_arrive_as_they_are_written(door) -> None:
    go = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.begin(200, [(b"x", b"y")])
        await request.write(b"one")
        await go.wait()
        await request.write(b"")
        await request.write(b"two" * 100_000)
        await request.end()

    async with door(handler) as opened, opened.connect() as client:
        await client.send(get())
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert await client.reader.readexactly(8) == b"3\r\none\r\n"
        go.set()
        assert await client.reader.readexactly(7 + 300_000) == b"493e0\r\n" + b"two" * 100_000
        assert await client.reader.readexactly(7) == b"\r\n0\r\n\r\n"
        await client.send(get())
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_expect_is_answered_when_the_body_is_asked_for(door) -> None:
    asked = asyncio.Event()

    async def handler(request: Request) -> None:
        if request.path == "/refuse":
            await request.respond(403, [], b"no")
            return
        await asked.wait()
        await request.respond(200, [], bytes(await request.body(100)))

    async with door(handler) as opened:
        async with opened.connect() as client:
            head = b"POST /take HTTP/1.1\r\n" + HEAD + b"Content-Length: 3\r\nExpect: 100-Continue\r\n\r\n"
            await client.send(head)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.reader.readexactly(1)
            asked.set()
            assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"abc")
            assert (await client.answer())[::2] == (200, b"abc")
            # A client that did not wait is not told to go on.
            await client.send(head + b"def")
            assert (await client.answer())[::2] == (200, b"def")
        async with opened.connect() as client:
            await client.send(head.replace(b"/take", b"/refuse"))
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (403, "close")
            assert await client.gone()
        async with opened.connect() as client:
            await client.send(get(extra=b"Expect: 200-ok\r\n"))
            assert (await client.answer())[::2] == (417, b"expectation_failed")
            assert await client.gone()


async def test_too_many_connections_are_turned_away_and_room_is_made_again(door) -> None:
    async with door(connections=2) as opened:
        async with opened.connect() as first, opened.connect() as second:
            for client in (first, second):
                await client.send(get())
                assert (await client.answer())[0] == 200
            try:
                async with opened.connect() as third:
                    assert await third.gone()
            except (ConnectionError, OSError):
                pass  # under TLS the handshake fails
            assert opened.server.connections == 2
            await first.send(get())
            assert (await first.answer())[0] == 200
        while opened.server.connections:
            await asyncio.sleep(0)
        async with opened.connect() as client:
            await client.send(get())
            assert (await client.answer())[0] == 200


async def test_a_client_that_does_not_read_is_cut_off(door) -> None:
    cut = asyncio.Event()

    async def handler(request: Request) -> None:
        try:
            await request.begin(200, [])
            while True:
                await request.write(b"a" * 65_536)
        except asyncio.CancelledError:
            cut.set()
            raise

    async with door(handler, stalled_write_s=0.3) as opened, opened.connect() as client:
        client.writer.transport.pause_reading()
        await client.send(get())
        await cut.wait()
        while opened.server.connections:
            await asyncio.sleep(0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_hanging_up_cancels_the_handler(door, when: str, how: str, scheme: str) -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> None:
        if when == "after":
            await request.begin(200, [])
            await request.write(b"first")
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with door(handler) as opened, opened.connect() as client:
        await client.send(get())
        await entered.wait()
        if how == "reset":
            client.writer.transport.abort()
        elif how == "half" and scheme == "clear":
            client.writer.write_eof()
        else:
            client.close()
        await cancelled.wait()
        while opened.server.connections:
            await asyncio.sleep(0)


async def test_a_goodbye_that_comes_with_the_request_is_noticed(tls) -> None:
    """As uvloop's clients do it: a close_notify, and then waiting for ours with the connection open."""
    cancelled = asyncio.Event()

    async def handler(request: Request) -> None:
        try:
            await request.body(100)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with listen(handler, "127.0.0.1", 0, tls=tls.door, fault=lambda *_: (500, [], b"")) as server:
        for data in (get(), post(b"abc")):
            cancelled.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = tls.client.wrap_bio(incoming, outgoing, server_hostname="door.test")
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(65_536))
            client.write(data)
            with contextlib.suppress(ssl.SSLError):
                client.unwrap()
            writer.write(outgoing.read())
            await cancelled.wait()
            writer.close()


async def test_a_request_that_comes_with_the_end_is_left_alone(clear_door) -> None:
    async def handler(request: Request) -> None:
        await asyncio.Event().wait()

    async with clear_door(handler) as opened, opened.connect() as client:
        client.writer.write(get())
        client.writer.write_eof()
        assert await client.gone()
        while opened.server.connections:
            await asyncio.sleep(0)


async def test_hanging_up_within_a_body_cancels_too(door) -> None:
    cancelled = asyncio.Event()

    async def handler(request: Request) -> None:
        try:
            await request.body(100)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with door(handler) as opened:
        async with opened.connect() as client:
            await client.send(b"POST /a HTTP/1.1\r\n" + HEAD + b"Content-Length: 9\r\n\r\nabc")
            while not opened.seen:
                await asyncio.sleep(0)
        await cancelled.wait()


async def test_after_the_answer_hanging_up_cancels_nothing(door) -> None:
    settled, gone = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> None:
        await request.respond(200, [], b"done")
        await gone.wait()
        settled.set()

    async with door(handler) as opened:
        async with opened.connect() as client:
            await client.send(get())
            await client.answer()
        while opened.server.connections:
            await asyncio.sleep(0)
        gone.set()
        await settled.wait()


async def test_faults_before_the_answer(door, caplog) -> None:
    async def handler(request: Request) -> None:
        match request.path:
            case "/known":
                raise MeshError(Code.MODEL_NOT_FOUND)
            case "/unknown":
                raise ValueError("the user's secret words")
            case "/twice":
                await request.respond(200, [], b"a")
                await request.respond(200, [], b"b")
            case _:
                return

    async with door(handler) as opened:
        async with opened.connect() as client:
            await client.send(get("/known") + get("/known"))
            for _ in range(2):
                assert (await client.answer())[::2] == (404, b"model_not_found")
        with caplog.at_level(logging.ERROR):
            async with opened.connect() as client:
                await client.send(get("/unknown"))
                status, headers, body = await client.answer()
                assert (status, body, headers["connection"]) == (500, b"internal_error", "close")
                assert await client.gone()
        assert "ValueError" in caplog.text
        assert "secret" not in caplog.text
        assert all(record.exc_info is None for record in caplog.records)
        async with opened.connect() as client:
            await client.send(get("/silent"))
            assert (await client.answer())[::2] == (500, b"internal_error")
        async with opened.connect() as client:
            await client.send(get("/twice"))
            assert (await client.answer())[::2] == (200, b"a")
            assert await client.gone()


@pytest.mark.parametrize("failure", [MeshError(Code.REPLICA_FAILED), ValueError("secret"), None])
async def test_faults_within_the_answer_cut_it_off(door, failure: Exception | None) -> None:
    async def handler(request: Request) -> None:
        await request.begin(200, [])
        await request.write(b"abc")
        if failure is not None:
            raise failure

    async with door(handler) as opened, opened.connect() as client:
        await client.send(get())
        try:
            data = await client.rest()
        except ConnectionError:
            return
        assert not data.endswith(b"0\r\n\r\n")


async def test_drain_finishes_what_runs_and_takes_no_more(door) -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> None:
        entered.set()
        await release.wait()
        await request.respond(200, [], b"done")

    async with door(handler) as opened, opened.connect() as idle, opened.connect() as busy:
        await busy.send(get())
        await entered.wait()
        while opened.server.connections < 2:
            await asyncio.sleep(0)
        async with asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(opened.server.drain(30))
            assert await idle.gone()
            idle.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", opened.server.port)
            assert not draining.done()
            release.set()
            status, headers, body = await busy.answer()
            assert (status, body, headers["connection"]) == (200, b"done", "close")
            assert await busy.gone()
            busy.close()
        assert opened.server.connections == 0


async def test_drain_cuts_off_what_takes_too_long(door) -> None:
    cancelled = asyncio.Event()

    async def handler(request: Request) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with door(handler) as opened, opened.connect() as client:
        await client.send(get())
        while not opened.seen:
            await asyncio.sleep(0)
        await opened.server.drain(0.1)
        assert cancelled.is_set()
        assert opened.server.connections == 0


async def test_peer_and_no_delay(door, scheme: str) -> None:
    found: list[Any] = []

    async def handler(request: Request) -> None:
        (connection,) = opened.server._open
        found.append(request.peer)
        found.append(connection._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await request.respond(200, [], request.query.encode() + b"|" + (request.header(b"x") or b""))

    async with door(handler) as opened, opened.connect() as client:
        await client.send(get("/a?b=%20c&d", b"X: 1\r\nX: 2\r\n"))
        assert (await client.answer())[2] == b"b=%20c&d|1, 2"
        peer, no_delay = found
        assert (peer.address, peer.port) == client.writer.get_extra_info("sockname")
        assert peer.certificate is None
        assert no_delay


async def test_an_error_inside_the_with_leaves_unwrapped(door) -> None:
    """What goes wrong inside `async with listen(...)` comes out as it is, and the server is gone."""
    with pytest.raises(KeyError):
        async with door() as opened:
            raise KeyError
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", opened.server.port)
