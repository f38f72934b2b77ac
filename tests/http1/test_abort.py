"""What was given up does not leave this host later: connections end abruptly, and hold little of what they send."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import termios
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from mesh.http1 import ConnectionFailedError, Pool, Request, Response

BODY = bytes(4 << 20)
HEADERS = [(b"host", b"door.test")]


@asynccontextmanager
async def deaf() -> AsyncGenerator[socket.socket]:
    """A peer that accepts and does not read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        listener.setblocking(False)
        yield listener


def waiting_bytes(sock: socket.socket) -> int:
    """What the kernel has for a reader."""
    size = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, size)
    return size[0]


async def sent(pool: Pool, port: int, **options: object) -> Response:
    return await pool.request(
        "127.0.0.1", port, server_name=None, method="POST", target="/a", headers=HEADERS, body=BODY, **options
    )


async def until_full(sock: socket.socket) -> int:
    """Waits until the peer's side takes no more: what it has stays the same while we would like to send."""
    size, same = 0, 0
    while same < 50 or not size:
        await asyncio.sleep(0.01)
        now = waiting_bytes(sock)
        same = same + 1 if now == size else 0
        size = now
    return size


async def rest(sock: socket.socket) -> tuple[int, bool]:
    """All that still comes, and whether it ended with a reset."""
    came = 0
    try:
        while piece := await asyncio.get_running_loop().sock_recv(sock, 65_536):
            came += len(piece)
    except ConnectionResetError:
        return came, True
    return came, False


async def test_a_parcel_that_is_given_up_is_not_sent_any_further() -> None:
    loop = asyncio.get_running_loop()
    async with deaf() as listener:
        pool = Pool(None, send_buffer_bytes=65_536)
        task = asyncio.create_task(sent(pool, listener.getsockname()[1]))
        peer, _ = await loop.sock_accept(listener)
        with peer:
            peer.setblocking(False)
            before = await until_full(peer)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            came, reset = await rest(peer)
            assert reset
            assert came <= before < len(BODY)
        pool.close()


async def test_an_answer_that_is_given_up_resets_the_connection() -> None:
    loop = asyncio.get_running_loop()
    async with deaf() as listener:
        pool = Pool(None)
        request = asyncio.create_task(
            pool.request(
                "127.0.0.1", listener.getsockname()[1], server_name=None, method="GET", target="/a", headers=HEADERS
            )
        )
        peer, _ = await loop.sock_accept(listener)
        with peer:
            peer.setblocking(False)
            await loop.sock_recv(peer, 65_536)
            await loop.sock_sendall(peer, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it")
            response = await request
            assert await response.read() == b"half of it"
            response.close()
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(peer, 1)
            # What it says now reaches nobody.
            with pytest.raises(BrokenPipeError):
                await loop.sock_sendall(peer, b"and the rest")
        pool.close()


async def test_little_is_held_and_not_for_long(door) -> None:
    async def handler(request: Request) -> None:
        await request.respond(200, [], await request.body(1 << 20))

    async with door(handler) as opened:
        pool = Pool(opened.client_tls, send_buffer_bytes=65_536)
        for seconds in (6.0, 900.0):
            response = await pool.request(
                "127.0.0.1", opened.server.port, server_name="door.test", method="POST", target="/a", headers=HEADERS,
                body=b"a", unacknowledged_s=seconds,
            )  # fmt: skip
            ours = response._connection._transport.get_extra_info("socket")
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 65_536
            # Also on a connection that is used again.
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == seconds * 1000
            while await response.read():
                pass
            response.close()
        assert opened.server.connections == 1
        pool.close()


async def test_a_peer_that_acknowledges_nothing_is_given_up_by_the_kernel() -> None:
    """Its window stays shut: nothing that we write is taken, so the connection breaks without our doing."""
    loop = asyncio.get_running_loop()
    async with deaf() as listener:
        pool = Pool(None, send_buffer_bytes=65_536)
        task = asyncio.create_task(sent(pool, listener.getsockname()[1], unacknowledged_s=0.5))
        peer, _ = await loop.sock_accept(listener)
        with peer, pytest.raises(ConnectionFailedError):
            await task
        pool.close()


async def test_each_piece_is_asked_for() -> None:
    loop = asyncio.get_running_loop()

    class NoMoreError(Exception):
        pass

    def check() -> None:
        asked.append(None)
        if len(asked) == 3:
            raise NoMoreError

    asked: list[None] = []
    async with deaf() as listener:
        pool = Pool(None)
        task = asyncio.create_task(sent(pool, listener.getsockname()[1], check=check))
        peer, _ = await loop.sock_accept(listener)
        with peer:
            peer.setblocking(False)
            came, reset = await rest(peer)
        assert reset
        with pytest.raises(NoMoreError):
            await task
        assert came < 3 * 65_536
        pool.close()
