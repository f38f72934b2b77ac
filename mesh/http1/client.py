"""The calling side: one connection, and what is asked on it."""

from __future__ import annotations

import asyncio
import re
import select
import socket
import ssl
from typing import NamedTuple, Protocol, cast

from mesh.http1.answer import AnswerParser
from mesh.http1.channel import Channel
from mesh.http1.head import Headers
from mesh.http1.request import Check

_HIGH_BYTES = 262_144
_LINGER_S = 1.0
_ALIVE_AFTER_S, _ALIVE_EVERY_S, _ALIVE_TRIES = 5, 2, 3
"""A peer of which nothing was heard is asked after so long and so often; then its connection breaks: 11 s."""
_TARGET = re.compile(r"/[\x21\x22\x24-\x7e]*")


class ConnectionFailedError(Exception):
    """There is no connection, or it broke off. Whether the request was worked on is not known. Says nothing more."""


class Address(NamedTuple):
    """Where a server is, and the name that its certificate must have."""

    host: str
    port: int
    server_name: str | None


class Keeper(Protocol):
    """Who made a connection and has it used again."""

    def put_back(self, connection: ClientConnection) -> None:
        """A connection is free again."""
        ...

    def forget(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        ...

    def withdraw(self, connection: ClientConnection) -> None:
        """A connection must not be used again."""
        ...


class Response:
    """An answer, whose head has come. `close` it in any case.

    Attributes:
        status: 200 to 599.
        headers: Names in lower case, in the order they came.
    """

    __slots__ = ("_closed", "_connection", "headers", "status")

    def __init__(self, connection: ClientConnection, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> None:
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


class ClientConnection(Channel):
    """One connection, for one exchange at a time."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, keeper: Keeper, address: Address, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(loop)
        self.address = address
        self.opened: asyncio.Future[None] = loop.create_future()
        self.idle_since = 0.0
        self._keeper: Keeper | None = keeper
        self._context = tls
        self._answer = AnswerParser()
        self._waiter: asyncio.Future[None] | None = None
        self._sent = False

    # One exchange.

    @property
    def answered(self) -> bool:
        """Whether anything of this exchange's answer has come."""
        return bool(self._answer.head_bytes or self.unread_bytes)

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
        answer = self._answer
        answer.begin(bodiless=bodiless)
        self._sent = False
        if check is not None:
            check()
        if len(body) < 16_384:
            self.send(head + body if body else head)
            self._sent = True
        else:
            self.send(head)
            with memoryview(body) as view:
                self._sent = await self._send_body(view, check)
        while not answer.status:
            if answer.broken or self.ended:
                raise ConnectionFailedError
            await self._change()
        return Response(self, answer.status, tuple(answer.headers))

    async def read(self) -> bytes:
        """See `Response.read`."""
        answer = self._answer
        while True:
            data = answer.take()
            if data or answer.complete:
                return data
            self._take_in()
            if answer.held_bytes or answer.complete:
                continue
            if answer.until_end and self.said_goodbye and not answer.broken:
                # A body without framing ends with the connection; under TLS a cut looks otherwise than a goodbye.
                answer.complete = True
                continue
            if answer.broken or self.ended:
                raise ConnectionFailedError
            await self._change()

    def release(self) -> None:
        """See `Response.close`."""
        answer = self._answer
        whole = answer.complete and self._sent and answer.reusable and not answer.held_bytes
        whole = whole and not self.unsent_bytes and not self.unread_bytes
        if not whole or answer.broken or self.ended:
            self.reset()
        elif self._keeper is not None:
            answer.end()
            self._keeper.put_back(self)

    def is_quiet(self) -> bool:
        """Whether an idle connection still stands, as far as this host's kernel knows: nothing came, and no end.

        The event loop may not have been told yet of a server that is gone, and a request is never sent twice.
        """
        if self._answer.broken or self.ended or self.lost or self._transport is None:
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
        if self._keeper is None:  # discarded while it was being made
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
        if self._keeper is not None:
            self._keeper.withdraw(self)
        self._wake()
        if not self.lost:
            self.close()

    def on_lost(self) -> None:
        """Leaves its keeper."""
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.forget(self)

    # Within.

    async def _send_body(self, view: memoryview, check: Check | None) -> bool:
        """Whether all was sent: an answer may come before."""
        answer = self._answer
        for start in range(0, len(view), 65_536):
            if check is not None:
                check()
            with view[start : start + 65_536] as piece:
                self.send(piece)
            while self._congested and not answer.status:
                if answer.broken or self.ended:
                    raise ConnectionFailedError
                await self._change()
            if self._congested or self.ended:
                return False
        return True

    def _take_in(self) -> None:
        answer = self._answer
        while answer.held_bytes < _HIGH_BYTES and not answer.broken:
            data = self.pull()
            if not data:
                return
            answer.feed(data)
            if answer.broken:
                self.abort()
        if answer.held_bytes >= _HIGH_BYTES and not answer.complete:
            # Not at the end: the next exchange, and an idle connection's end, must be noticed.
            self.hold()

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


def render_request(method: str, target: str, headers: Headers, length: int) -> bytes:
    """The head of a request with a body of this length.

    Raises:
        ValueError: It would not be one request.
    """
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
