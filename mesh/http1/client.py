"""The calling side: connections that are kept and used again.

Nothing is ever tried twice here. Who may try again is told where it is likely that nothing was received.
"""

from __future__ import annotations

import asyncio
import re
import select
import socket
import ssl
from typing import NamedTuple, cast

import httptools

from mesh.http1.channel import Channel
from mesh.http1.head import Headers
from mesh.http1.request import Check

_HIGH_BYTES = 262_144
_HEAD_BYTES = 65_536
_LINGER_S = 1.0
_ALIVE_AFTER_S, _ALIVE_EVERY_S, _ALIVE_TRIES = 5, 2, 3
"""A peer of which nothing was heard is asked after so long and so often; then its connection breaks: 11 s."""
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]*")


class ConnectionFailedError(Exception):
    """There is no connection, or it broke off. Whether the request was worked on is not known. Says nothing more."""


class TooManyConnectionsError(ConnectionFailedError):
    """This address has `per_address` connections, all of them busy. Nothing was sent."""


class StaleConnectionError(ConnectionFailedError):
    """The connection had been used before, and broke at once, before a byte of this request's answer."""


class _Address(NamedTuple):
    host: str
    port: int
    server_name: str | None


class Pool:
    """Connections to servers, kept by address, the last one used first. Belongs to one event loop."""

    def __init__(
        self,
        tls: ssl.SSLContext | None,
        *,
        idle_s: float = 30.0,
        connect_timeout_s: float = 3.0,
        per_address: int = 512,
        send_buffer_bytes: int | None = None,
        stale_s: float = 2.0,
    ) -> None:
        """A pool without connections.

        Args:
            tls: Of a client; None speaks in clear.
            idle_s: An unused connection is closed after one to two times this. Less than the servers' `keep_alive_s`.
            connect_timeout_s: For name, TCP and TLS together.
            per_address: The most open connections per address, idle ones included.
            send_buffer_bytes: The most that the operating system holds of what a connection sends; None leaves it to
                grow.
            stale_s: A kept connection that breaks within this, without an answer, is taken for one that was dead
                before. Many round trips: whoever breaks later was at work.
        """
        self._tls = tls
        self._idle_s = idle_s
        self._connect_timeout_s = connect_timeout_s
        self._per_address = per_address
        self._send_buffer_bytes = send_buffer_bytes
        self._stale_s = stale_s
        self._idle: dict[_Address, list[_Connection]] = {}
        self._count: dict[_Address, int] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
        self,
        host: str,
        port: int,
        *,
        server_name: str | None,
        method: str,
        target: str,
        headers: Headers,
        body: bytes | bytearray | memoryview = b"",
        check: Check | None = None,
        unacknowledged_s: float | None = None,
    ) -> Response:
        """Sends a request and waits for the head of its answer; the deadline is the caller's.

        `headers` hold `host` and no framing. `body` must not change until this returns. Cancelling it, or closing the
        response early, resets the connection: what was written and has not been sent never will be.

        Args:
            host: Address to connect to.
            port: Of it.
            server_name: The name that the server's certificate must have.
            method: In capitals.
            target: Path and query.
            headers: Names in lower case.
            body: Sent with its length.
            check: Asked before each piece is sent; what it raises ends the request.
            unacknowledged_s: The connection breaks once what was sent has not been acknowledged for so long
                (TCP_USER_TIMEOUT), also where this process has stopped; at least a millisecond.

        Raises:
            StaleConnectionError: The server was as a rule gone already; the next request makes a new connection.
            ConnectionFailedError: It could not be handed over, or the connection broke before the answer's head.
        """
        address = _Address(host, port, server_name)
        head = _render(method, target, headers, len(body))
        kept = self._take(address)
        connection = kept or await self._connect(address)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            if unacknowledged_s is not None:
                connection.give_up_after(unacknowledged_s)
            return await connection.exchange(head, body, bodiless=method == "HEAD", check=check)
        except ConnectionFailedError:
            connection.reset()
            if kept is None or connection.answered or loop.time() - began_s >= self._stale_s:
                raise
            # What has waited longer than the one that was dead is as dead, and would fail the next try as well.
            for other in self._idle.pop(address, []):
                other.abort()
            raise StaleConnectionError from None
        except BaseException:
            connection.reset()
            raise

    def close(self) -> None:
        """Closes what is idle; what is in use is closed when its response is."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connections in self._idle.values():
            for connection in connections:
                connection.leave()
        self._idle.clear()

    # For connections.

    def put_back(self, connection: _Connection) -> None:
        """A connection is free again."""
        if self._closed:
            connection.leave()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.setdefault(connection.address, []).append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._idle_s, self._sweep)

    def forget(self, connection: _Connection) -> None:
        """A connection is gone."""
        address = connection.address
        self.withdraw(connection)
        left = self._count[address] - 1
        if left:
            self._count[address] = left
        else:
            del self._count[address]

    def withdraw(self, connection: _Connection) -> None:
        """A connection must not be used again."""
        stack = self._idle.get(connection.address)
        if stack is not None and connection in stack:
            stack.remove(connection)
            if not stack:
                del self._idle[connection.address]

    # Within.

    def _take(self, address: _Address) -> _Connection | None:
        while (stack := self._idle.get(address)) is not None:
            connection = stack.pop()
            if not stack:
                del self._idle[address]
            if connection.is_quiet():
                return connection
            connection.abort()
        return None

    async def _connect(self, address: _Address) -> _Connection:
        count = self._count.get(address, 0)
        if count >= self._per_address:
            raise TooManyConnectionsError
        if self._closed:
            raise ConnectionFailedError
        if self._tls is not None and self._tls.check_hostname and address.server_name is None:
            raise ValueError("a server_name is needed to verify a certificate")
        loop = asyncio.get_running_loop()
        connection = _Connection(loop, self, address, self._tls)
        self._count[address] = count + 1
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await loop.create_connection(lambda: connection, address.host, address.port)
                await connection.opened
                connection.keep_asking()
                if self._send_buffer_bytes is not None:
                    connection.hold_at_most(self._send_buffer_bytes)
        except (OSError, TimeoutError):
            connection.discard()
            # An OSError may name the address, which is ours to log and not a client's to see.
            raise ConnectionFailedError from None
        except BaseException:
            connection.discard()
            raise
        return connection

    def _sweep(self) -> None:
        self._sweeper = None
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._idle_s
        for address in list(self._idle):
            # The bottom of a stack has waited longest.
            stack = self._idle[address]
            kept = next((at for at, connection in enumerate(stack) if connection.idle_since > oldest), len(stack))
            old, self._idle[address] = stack[:kept], stack[kept:]
            if not self._idle[address]:
                del self._idle[address]
            for connection in old:
                connection.leave()
        if self._idle:
            self._sweeper = loop.call_later(self._idle_s, self._sweep)


class Response:
    """An answer, whose head has come. `close` it in any case.

    Attributes:
        status: 200 to 599.
        headers: Names in lower case, in the order they came.
    """

    __slots__ = ("_closed", "_connection", "headers", "status")

    def __init__(self, connection: _Connection, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._closed = False

    def __repr__(self) -> str:
        return f"Response({self.status})"

    def header(self, name: bytes) -> bytes | None:
        """The first header of this lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    async def read(self) -> bytes:
        """All bytes of the body that have arrived, at least one; empty at its end.

        Raises:
            ConnectionFailedError: The answer was cut off, or broke HTTP's rules.
        """
        if self._closed:
            raise RuntimeError("the response is closed")
        return await self._connection.read()

    def close(self) -> None:
        """Gives the connection back if the answer has come whole, and resets it otherwise. May be called again."""
        if not self._closed:
            self._closed = True
            self._connection.release()


class _Connection(Channel):
    """One connection, for one exchange at a time."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pool: Pool, address: _Address, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(loop)
        self.address = address
        self.opened: asyncio.Future[None] = loop.create_future()
        self.idle_since = 0.0
        self._pool: Pool | None = pool
        self._context = tls
        self._parser: httptools.HttpResponseParser | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._head_bytes = 0
        self._head: Response | None = None
        self._bodiless = False
        self._sent = False
        self._complete = True
        self._until_end = False
        self._broken = False
        self._reusable = True

    # One exchange.

    @property
    def answered(self) -> bool:
        """Whether anything of this exchange's answer has come."""
        return bool(self._head_bytes or self.unread_bytes)

    def keep_asking(self) -> None:
        """Has the operating system ask whether the other side is there, also while nothing is sent.

        Without it a host that is gone, or cut off, is not noticed by whoever waits for its answer, nor by an idle
        connection, until the call's own deadline.
        """
        self._set(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._set(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _ALIVE_AFTER_S)
        self._set(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _ALIVE_EVERY_S)
        self._set(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _ALIVE_TRIES)

    def hold_at_most(self, size_bytes: int) -> None:
        """Bounds what the operating system holds of what is sent."""
        # Linux doubles what it is told, for its own bookkeeping, and that is what it reports and counts against.
        self._set(socket.SOL_SOCKET, socket.SO_SNDBUF, size_bytes // 2)

    def give_up_after(self, seconds: float) -> None:
        """Breaks once something has not been acknowledged for so long."""
        self._set(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))

    def _set(self, level: int, option: int, value: int) -> None:
        transport = self._transport
        if transport is None or self.lost:
            raise ConnectionFailedError
        try:
            cast("socket.socket", transport.get_extra_info("socket")).setsockopt(level, option, value)
        except OSError:
            raise ConnectionFailedError from None

    async def exchange(
        self, head: bytes, body: bytes | bytearray | memoryview, *, bodiless: bool, check: Check | None
    ) -> Response:
        """Sends a request; returns at the answer's head, which may come before the body is sent."""
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._parts, self._head = [], [], None
        self._held_bytes = self._head_bytes = 0
        self._bodiless = bodiless
        self._complete = self._sent = self._until_end = False
        if check is not None:
            check()
        if len(body) < 16_384:
            self.send(head + body if body else head)
            self._sent = True
        else:
            self.send(head)
            with memoryview(body) as view:
                self._sent = await self._send_body(view, check)
        while self._head is None:
            if self._broken or self.ended:
                raise ConnectionFailedError
            await self._change()
        return self._head

    async def read(self) -> bytes:
        """See `Response.read`."""
        while True:
            if self._parts:
                data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts.clear()
                self._held_bytes = 0
                return data
            if self._complete:
                return b""
            self._take_in()
            if self._parts or self._complete:
                continue
            if self._until_end and self.said_goodbye and not self._broken:
                # A body without framing ends with the connection; under TLS a cut looks otherwise than a goodbye.
                self._complete = True
                continue
            if self._broken or self.ended:
                raise ConnectionFailedError
            await self._change()

    def release(self) -> None:
        """See `Response.close`."""
        self._head = None
        whole = self._complete and self._sent and self._reusable and not self._parts
        whole = whole and not self.unsent_bytes and not self.unread_bytes
        if not whole or self._broken or self.ended:
            self.reset()
        elif self._pool is not None:
            self._parser = None
            self._head_bytes = 0
            self._pool.put_back(self)

    def is_quiet(self) -> bool:
        """Whether an idle connection still stands, as far as this host's kernel knows: nothing came, and no end.

        The event loop may not have been told yet of a server that is gone, and a request is never sent twice.
        """
        if self._broken or self.ended or self.lost or self._transport is None:
            return False
        came = select.poll()
        came.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not came.poll(0)

    def leave(self) -> None:
        """Closes an idle connection politely, and surely."""
        self.shut()
        self._loop.call_later(_LINGER_S, self.abort)

    def discard(self) -> None:
        """Gives up a connection that may not have been made."""
        if self.opened.done() and not self.opened.cancelled():
            self.opened.exception()
        else:
            self.opened.cancel()  # nobody waits for it any more
        if self._transport is None:
            self.on_lost()
        else:
            self.abort()

    # From the event loop and the channel.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins the handshake, if there is one."""
        if self._pool is None:  # discarded while it was being made
            transport.close()
            return
        self.begin(transport, self._context, server_side=False, server_name=self.address.server_name)

    def resume_writing(self) -> None:
        """Wakes the sender."""
        super().resume_writing()
        self._wake()

    def on_open(self) -> None:
        """Ready for the first exchange."""
        if not self.opened.done():
            self.opened.set_result(None)

    def on_data(self) -> None:
        """Parses what has come, unless too much of it waits for the reader."""
        self._take_in()
        self._wake()

    def on_dropped(self, size_bytes: int) -> None:
        """Nothing: an idle connection that is being closed."""

    def on_end(self) -> None:
        """The server closed."""
        if not self.opened.done():
            self.opened.set_exception(ConnectionResetError())
        if self._pool is not None:
            self._pool.withdraw(self)
        self._wake()
        if not self.lost:
            self.close()

    def on_lost(self) -> None:
        """Leaves the pool."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.forget(self)

    # From httptools.

    def on_message_begin(self) -> None:
        """A head begins, also that of an interim answer."""
        if self._complete:
            self._fail()
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which is dropped."""
        if self._head is None:
            self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head of an answer is there."""
        parser = self._parser
        if parser is None or self._head is not None:
            return
        status = parser.get_status_code()
        if status < 200:
            if status == 101:
                self._fail()
            return
        if sum(len(name) + len(value) for name, value in self._headers) > _HEAD_BYTES:
            self._fail()
            return
        self._reusable = parser.should_keep_alive()
        self._head = Response(self, status, tuple(self._headers))
        if self._bodiless:
            # llhttp waits for the body that a HEAD's answer only announces.
            self._complete, self._reusable = True, False
        elif status not in (204, 304) and not any(
            name in (b"content-length", b"transfer-encoding") for name, _ in self._headers
        ):
            self._until_end, self._reusable = True, False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._complete:
            self._fail()
        self._parts.append(body)
        self._held_bytes += len(body)

    def on_message_complete(self) -> None:
        """The answer, or an interim one, is whole."""
        if self._head is not None:
            self._complete = True

    # Within.

    async def _send_body(self, view: memoryview, check: Check | None) -> bool:
        """Whether all was sent: an answer may come before."""
        for start in range(0, len(view), 65_536):
            if check is not None:
                check()
            with view[start : start + 65_536] as piece:
                self.send(piece)
            while self._congested and self._head is None:
                if self._broken or self.ended:
                    raise ConnectionFailedError
                await self._change()
            if self._congested or self.ended:
                return False
        return True

    def _take_in(self) -> None:
        while self._held_bytes < _HIGH_BYTES and not self._broken:
            data = self.pull()
            if not data:
                return
            parser = self._parser
            if parser is None:
                self._fail()  # nothing was asked
                return
            try:
                parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                self._fail()
                return
            if self._head is None:
                self._head_bytes += len(data)
                if self._head_bytes > _HEAD_BYTES:
                    self._fail()
        if self._held_bytes >= _HIGH_BYTES and not self._complete:
            # Not at the end: the next exchange, and an idle connection's end, must be noticed.
            self.hold()

    def _fail(self) -> None:
        self._broken = True
        self.abort()

    async def _change(self) -> None:
        """Waits until something has happened."""
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _render(method: str, target: str, headers: Headers, length: int) -> bytes:
    if not (method.isascii() and method.isalpha() and _TARGET.fullmatch(target)):
        raise ValueError("not a method, or not a target in origin form")
    parts = [f"{method} {target} HTTP/1.1\r\n".encode("ascii")]
    for name, value in headers:
        if b"\r" in value or b"\n" in value or b"\0" in value or not name.islower():
            raise ValueError("not a header")
        parts += (name, b": ", value, b"\r\n")
    if length or method in ("POST", "PUT", "PATCH"):
        parts.append(b"content-length: %d\r\n" % length)
    parts.append(b"\r\n")
    return b"".join(parts)
