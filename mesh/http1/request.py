"""One request and its answer, as a handler sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from mesh.http1.head import Head, Headers

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
_BODILESS = frozenset({204, 304})
Check = Callable[[], None]
"""Asked before a piece of content is taken or sent."""
_OURS = frozenset({b"connection", b"content-length", b"transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end.

    Attributes:
        certificate: In `ssl.SSLSocket.getpeercert()`'s form; None where none was asked for.
        asked_name: The name of the TLS handshake (SNI), or None. A client's word: never log it.
    """

    address: str
    port: int
    certificate: Mapping[str, object] | None
    asked_name: str | None = None


class Line(Protocol):
    """What a request needs of its connection."""

    async def receive_body(self, head: Head, limit_bytes: int, check: Check | None) -> bytearray:
        """Reads the body, and asks `check` before each piece."""
        ...

    def stays(self) -> bool:
        """Decides whether another request may follow this one's answer."""
        ...

    def close_after(self) -> None:
        """No other request follows."""
        ...

    def cut_off(self) -> None:
        """Ends the connection with a reset."""
        ...

    async def answer(self, data: bytes, body: bytes = b"") -> None:
        """Hands a piece of the answer over."""
        ...

    def answered(self) -> None:
        """The answer is whole."""
        ...


class Request:
    """One request and its answer. A handler uses it from its own task, one call at a time.

    Attributes:
        method: In capitals.
        path: As it came, not decoded; starts with a slash.
        query: What came after `?`, not decoded; empty if there was none.
        headers: Names in lower case, in the order they came.
        peer: Who asks.
        content_length: None where the body is chunked, or there is none.
        begun: Whether an answer has begun; nothing but its rest can then be sent.
        in_pieces: Whether `write` and `end` are what comes next.
    """

    __slots__ = (
        "_bodiless", "_fields", "_head", "_line", "_received", "begun", "content_length", "headers", "in_pieces",
        "method", "path", "peer", "query", "whole",
    )  # fmt: skip

    def __init__(self, head: Head, peer: Peer, line: Line) -> None:
        self.method = head.method
        self.path = head.path
        self.query = head.query
        self.headers = head.headers
        self.peer = peer
        self.content_length = head.content_length
        self.begun = False
        self.in_pieces = False
        self.whole = False
        """Whether the answer is complete."""
        self._head = head
        self._fields = head.fields
        self._line = line
        self._received = False
        self._bodiless = False

    def __repr__(self) -> str:
        return "Request()"  # the path, too, is a client's word

    def header(self, name: bytes) -> bytes | None:
        """One header's value by its lower-case name; values of a repeated one are joined with commas."""
        return self._fields.get(name)

    async def body(self, limit_bytes: int, check: Check | None = None) -> bytearray:
        """Reads the whole body, once. Empty if there is none. Sends `100 Continue` if the client waits for it.

        `check` is asked before each piece is taken; what it raises ends the reading.

        Raises:
            MeshError: REQUEST_TOO_LARGE (at once, where the length was announced), REQUEST_TIMEOUT if the client pauses
                for longer than `body_idle_s`, MALFORMED_REQUEST.
        """
        if self._received:
            raise RuntimeError("a body is read once")
        self._received = True
        return await self._line.receive_body(self._head, limit_bytes, check)

    def last(self) -> None:
        """Makes the answer the connection's last one; called before it begins."""
        self._line.close_after()

    def cut_off(self) -> None:
        """Breaks an answer off, and resets the connection: what was written and not sent is thrown away."""
        self._line.cut_off()

    async def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Answers in one piece. Framing headers are added here and are not to be passed.

        If the request's body was not read, this is the connection's last answer: its writing side is closed, what still
        arrives is thrown away undecrypted within bounds, and then the connection is reset.
        """
        data = self._begin(status, headers, None if status in _BODILESS else b"content-length: %d\r\n" % len(body))
        if self._bodiless or not body:
            await self._line.answer(data)
        else:
            await self._line.answer(data, body)
        self.whole = True
        self._line.answered()

    async def begin(self, status: int, headers: Headers) -> None:
        """Begins an answer in pieces (chunked)."""
        data = self._begin(status, headers, b"transfer-encoding: chunked\r\n")
        self.in_pieces = True
        await self._line.answer(data)

    async def write(self, data: bytes) -> None:
        """One piece. Waits while the client is slower than we are; one that stalls is cut off, which cancels us."""
        if not self.in_pieces:
            raise RuntimeError("write() comes between begin() and end()")
        if data and not self._bodiless:
            await self._line.answer(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        """The answer is whole. Without it the client sees an answer that was cut off."""
        if not self.in_pieces:
            raise RuntimeError("end() comes once, after begin()")
        # Before the wait for a slow client: if that is cut short, nothing may follow the last chunk.
        self.in_pieces, self.whole = False, True
        if not self._bodiless:
            await self._line.answer(b"0\r\n\r\n")
        self._line.answered()

    def _begin(self, status: int, headers: Headers, framing: bytes | None) -> bytes:
        if self.begun:
            raise RuntimeError("a request is answered once")
        data = render_head(status, headers, framing, last=not self._line.stays())
        self.begun = True
        self._bodiless = self.method == "HEAD" or framing is None
        return data


def render_head(status: int, headers: Headers, framing: bytes | None, *, last: bool) -> bytes:
    """The head of an answer."""
    parts = [_STATUS_LINES[status]]
    for name, value in headers:
        if name in _OURS or b"\n" in value or b"\r" in value or b"\n" in name or b"\r" in name:
            # Says neither name nor value: a value may come from outside.
            raise ValueError("this header is not for a handler to set, or has a line break")
        parts += (name, b": ", value, b"\r\n")
    if framing is not None:
        parts.append(framing)
    if last:
        parts.append(b"connection: close\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)
