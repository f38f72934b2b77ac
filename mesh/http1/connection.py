"""One connection of the server: requests in order, each served before the next is looked at, in one task."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto
from typing import Protocol, cast

from mesh.errors import Code, MeshError
from mesh.http1.channel import SLICE_BYTES, Channel
from mesh.http1.chunks import ChunkDecoder
from mesh.http1.head import Head, HeadParser
from mesh.http1.limits import Limits
from mesh.http1.request import Check, Peer, Request, render_head

Handler = Callable[[Request], Awaitable[None]]
"""Answers one request, in the connection's own task. It is cancelled when the client hangs up before its answer."""
Fault = Callable[[MeshError, Request | None], tuple[int, Sequence[tuple[bytes, bytes]], bytes]]
"""Renders an error that the server found itself, or that left a handler before it answered."""

_LOG = logging.getLogger("mesh.http1")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FIRST_BYTES = 65_536
_PROGRESS_BYTES = 16_384
"""A client that takes less than this in `stalled_write_s` has stalled."""


class Port(Protocol):
    """What a connection needs of its server."""

    handler: Handler
    fault: Fault
    limits: Limits

    @property
    def draining(self) -> bool:
        """Whether no more requests are taken."""
        ...

    def start(self, connection: Connection) -> None:
        """Runs `connection.run` in a task."""
        ...

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        ...


class _Phase(Enum):
    HANDSHAKE = auto()
    IDLE = auto()  # waits for a request, and has nothing of it
    HEAD = auto()
    HANDLER = auto()
    CLOSING = auto()


class Connection(Channel):
    """Serves one client."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Port) -> None:
        super().__init__(loop)
        self._server = server
        self._limits = server.limits
        self._phase = _Phase.HANDSHAKE
        self._buffer = bytearray()
        self._request: Request | None = None
        self._unread = False  # whether the current request's body, or a part of it, is still to come
        self._last = False  # whether the current answer is the last one
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._dropped_bytes = 0
        self.task: asyncio.Task[None] | None = None

    # From the channel.

    def on_open(self) -> None:
        """Starts to serve."""
        self._phase = _Phase.IDLE
        self._server.start(self)

    def on_data(self) -> None:
        """Wakes whoever waits; while a handler computes, looks for the client's goodbye behind what it sent ahead."""
        waiter = self._waiter
        if waiter is not None:
            if not waiter.done():
                waiter.set_result(True)
            return
        if not self._unread and self._phase is _Phase.HANDLER:
            self._look_ahead()
        if self.unread_bytes + len(self._buffer) > self._limits.pipelined_bytes:
            self.hold()

    def on_dropped(self, size_bytes: int) -> None:
        """Counts what comes after the last answer."""
        self._dropped_bytes += size_bytes
        if self._dropped_bytes > self._limits.linger_bytes:
            self.reset()

    def on_end(self) -> None:
        """The client hung up: nobody is left to serve."""
        if self._phase is _Phase.HANDLER and self.task is not None and self._request is not None:
            if not self._request.whole:
                self.task.cancel()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)
        if not self.lost:
            if self._phase is _Phase.HANDSHAKE:
                self.close()
            elif self._request is None or self._request.whole:
                self._finish()
            else:
                self.abort()

    def on_lost(self) -> None:
        """Leaves nothing behind."""
        for timer in (self._timer, self._stall):
            if timer is not None:
                timer.cancel()
        self._timer = self._stall = None
        self._server.forget(self)

    def pause_writing(self) -> None:
        """Watches a client that is slow to read."""
        super().pause_writing()
        if self._stall is None:
            self._watch(self.unsent_bytes)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # The task.

    def expect_handshake(self) -> None:
        """Gives the client its time for the TLS handshake."""
        self._expect_until(self._loop.time() + self._limits.head_timeout_s)

    async def run(self) -> None:
        """Serves requests until the connection ends."""
        try:
            within_s, peer = self._limits.head_timeout_s, self._peer()
            while (head := await self._next_head(within_s)) is not None:
                if self.ended:
                    break  # it came together with the goodbye
                await self._serve(Request(head, peer, self), head)
                if self._last or self.ended:
                    break
                within_s = self._limits.keep_alive_s
        except MeshError as error:
            self._refuse(error)
        except Exception as error:  # noqa: BLE001 - one connection's fault is not its neighbours'; its text may be content
            self._log(error)
            self.abort()
        finally:
            if self._phase is not _Phase.CLOSING:
                self.abort()  # cancelled
            self._buffer = bytearray()
            self._request = None

    async def _next_head(self, within_s: float) -> Head | None:
        """The next request's head, or None where none comes.

        Raises:
            MeshError: What came is no request, or came too slowly.
        """
        self._phase, self._request, self._unread = _Phase.IDLE, None, False
        parser, buffer = HeadParser(self._limits), self._buffer
        deadline = self._loop.time() + within_s
        fresh = bool(buffer)
        while True:
            if fresh:
                if self._phase is _Phase.IDLE:
                    self._phase = _Phase.HEAD
                    deadline = self._loop.time() + self._limits.head_timeout_s
                head = parser.feed(buffer)
                if head is not None:
                    self._deadline = None
                    self._phase = _Phase.HANDLER
                    if not buffer:
                        self._buffer = bytearray()  # the old one still holds what was cut off its front
                    return head
            data = self.pull()
            fresh = bool(data)
            if fresh:
                buffer += data
                continue
            if self.ended or (self._server.draining and self._phase is _Phase.IDLE):
                self._finish()
                return None
            if not await self._arrival(deadline):
                if self._phase is _Phase.HEAD and not self.ended:
                    raise MeshError(Code.REQUEST_TIMEOUT)
                self._finish()
                return None

    async def _serve(self, request: Request, head: Head) -> None:
        self._request = request
        self._unread = head.chunked or bool(head.content_length)
        self._last = not head.keep_alive
        if not self._unread:
            self._look_ahead()
        try:
            await self._server.handler(request)
            error = None if request.begun else MeshError(Code.INTERNAL_ERROR)
        except MeshError as failure:
            error = failure
        except Exception as failure:  # noqa: BLE001 - a handler's fault is answered, not raised; its text may be content
            self._log(failure)
            error, self._last = MeshError(Code.INTERNAL_ERROR), True
        if self.lost or (request.whole and not self._last):
            return
        if request.whole:
            self._finish()
        elif request.begun or error is None:
            self.abort()  # a client must not take what was cut off for whole
            self._last = True
        else:
            await request.respond(*self._server.fault(error, request))

    # What a request asks for (`request.Line`).

    def stays(self) -> bool:
        """Decides whether another request may follow."""
        if self._unread or self._server.draining:
            self._last = True
        return not self._last

    def close_after(self) -> None:
        """No other request follows."""
        self._last = True

    def cut_off(self) -> None:
        """Nothing that is not there yet shall reach the client."""
        self._last = True
        self.reset()

    async def answer(self, data: bytes, body: bytes = b"") -> None:
        """Hands a piece of the answer over."""
        if len(body) < SLICE_BYTES:
            self.send(data + body if body else data)
            if self._congested:
                await self.relief()
        else:
            self.send(data)
            await self.send_all(body)

    def answered(self) -> None:
        """The answer is whole: what the client does from now on cancels nothing."""
        if not self.stays():
            self._finish()

    async def receive_body(self, head: Head, limit_bytes: int, check: Check | None) -> bytearray:
        """Reads the body into one buffer, which grows with what has come and not with what was announced.

        Asks `check` before each piece; what it raises ends the reading.

        Raises:
            MeshError: REQUEST_TOO_LARGE, REQUEST_TIMEOUT or MALFORMED_REQUEST.
        """
        length = head.content_length or 0
        if length > limit_bytes:
            raise MeshError(Code.REQUEST_TOO_LARGE)
        if head.expects and self._unread and not self._buffer and not self.unread_bytes:
            self.send(_CONTINUE)
        body = await (self._receive_chunks(limit_bytes, check) if head.chunked else self._receive_length(length, check))
        self._unread = False
        self._deadline = None
        self._look_ahead()
        return body

    async def _receive_length(self, length: int, check: Check | None) -> bytearray:
        buffer = self._buffer
        if len(buffer) <= length:
            body, self._buffer = buffer, bytearray()
            filled = len(body)
            if filled < length:
                # The head's remains are in front of the old buffer's memory: a new one, or every growth copies them.
                body = bytearray(min(length, max(_FIRST_BYTES, filled)))
                body[:filled] = buffer
        else:
            body = buffer[:length]
            del buffer[:length]
            filled = length
        while filled < length:
            if check is not None:
                check()
            if filled == len(body):
                body += bytes(min(length - filled, 3 * filled))
            with memoryview(body) as view, view[filled:] as rest:
                size = self.pull_into(rest)
            if size:
                filled += size
            elif self.ended or not await self._arrival(self._loop.time() + self._limits.body_idle_s):
                raise MeshError(Code.REQUEST_TIMEOUT)
        return body

    async def _receive_chunks(self, limit_bytes: int, check: Check | None) -> bytearray:
        decoder, body = ChunkDecoder(limit_bytes), bytearray()
        while not decoder.feed(self._buffer, body):
            if check is not None:
                check()
            data = self.pull()
            if data:
                self._buffer += data
            elif self.ended or not await self._arrival(self._loop.time() + self._limits.body_idle_s):
                raise MeshError(Code.REQUEST_TIMEOUT)
        if not self._buffer:
            self._buffer = bytearray()
        return body

    def _look_ahead(self) -> None:
        """Decrypts what came behind the request, within bounds: under TLS the client's goodbye is among it."""
        limit = self._limits.pipelined_bytes
        while len(self._buffer) <= limit and (data := self.pull()):
            self._buffer += data

    # Ends.

    def leave(self) -> None:
        """Closes if nothing is being served; otherwise the answer that is under way becomes the last."""
        if self._phase is _Phase.HANDSHAKE:
            self.abort()
        elif self._waiter is not None and self._phase is _Phase.IDLE and not self._waiter.done():
            self._waiter.set_result(False)

    def kill(self) -> None:
        """Ends the connection and its handler now."""
        if self.task is not None:
            self.task.cancel()
        self.abort()

    def _refuse(self, error: MeshError) -> None:
        """Answers what could not be read as a request."""
        self._last = True
        status, headers, body = self._server.fault(error, None)
        self.send(render_head(status, headers, b"content-length: %d\r\n" % len(body), last=True) + body)
        self._finish()

    def _finish(self) -> None:
        """The last byte was written: says goodbye, and throws away what still arrives, for a while."""
        if self._phase is not _Phase.CLOSING:
            self._phase = _Phase.CLOSING
            self.shut()
            self._expect_until(self._loop.time() + self._limits.linger_s)

    def _log(self, error: Exception) -> None:
        name = type(error).__name__
        _LOG.error("%s in a handler", name, extra={"error": name})

    # Time.

    async def _arrival(self, deadline: float) -> bool:
        """Waits until something arrives; False when the deadline passes or the client goes."""
        self._expect_until(deadline)
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _expect_until(self, deadline: float) -> None:
        # The timer is set anew only if it would come too late, so a request usually costs none.
        self._deadline = deadline
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        if not self.lost:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() + 0.001 < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._on_timer)
            return
        self._deadline = None
        if self._phase is _Phase.HANDSHAKE:
            self.abort()
        elif self._phase is _Phase.CLOSING:
            self._stop_lingering()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)

    def _stop_lingering(self) -> None:
        if self._dropped_bytes:
            self.reset()
        elif self.unsent_bytes:
            if self._stall is None:
                self._watch(self.unsent_bytes)
            self.close()
        else:
            self.close()

    def _watch(self, before: int) -> None:
        self._stall = self._loop.call_later(self._limits.stalled_write_s, self._check_stall, before)

    def _check_stall(self, before: int) -> None:
        unsent = self.unsent_bytes
        if before - unsent < _PROGRESS_BYTES and unsent:
            self._stall = None
            self.reset()
        else:
            self._watch(unsent)

    def _peer(self) -> Peer:
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        address, port = cast("tuple[str, int]", name)[:2] if name else ("", 0)
        return Peer(address, port, self.certificate, self.asked_name)
