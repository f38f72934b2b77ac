"""Reads answers from the bytes of a connection, one for each question. Does no I/O."""

from __future__ import annotations

import httptools

_HEAD_BYTES = 65_536


class AnswerParser:
    """The answer that a connection waits for. One for each connection: `begin` makes it ready for the next answer.

    Attributes:
        status: 200 to 599; 0 until the head has come.
        headers: Names in lower case, in the order they came; whole once there is a status.
        head_bytes: So many came of the answer before the piece that completed its head.
        held_bytes: Of its body, that nobody has taken.
        complete: It has come whole; also before the first one is asked for.
        until_end: Its body has no framing, and ends with the connection.
        reusable: Whether another question may follow it.
        broken: What came is no answer, or was not asked for. Nothing of the connection counts any more.
    """

    def __init__(self) -> None:
        """Nothing is asked yet, so nothing may come."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_bytes = 0
        self.held_bytes = 0
        self.complete = True
        self.until_end = False
        self.reusable = True
        self.broken = False
        self._parser: httptools.HttpResponseParser | None = None
        self._parts: list[bytes] = []
        self._bodiless = False

    def begin(self, *, bodiless: bool) -> None:
        """Something is asked; `bodiless` is a HEAD, whose answer only announces a body."""
        self._parser = httptools.HttpResponseParser(self)
        self.headers, self._parts = [], []
        self.status = self.held_bytes = self.head_bytes = 0
        self._bodiless = bodiless
        self.complete = self.until_end = False

    def end(self) -> None:
        """The answer was taken: what comes now was not asked for."""
        self._parser = None
        self.head_bytes = 0

    def feed(self, data: bytes) -> None:
        """Takes what has come; `broken` says if it must not have."""
        parser = self._parser
        if parser is None:
            self.broken = True
            return
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.broken = True
            return
        if not self.status:
            self.head_bytes += len(data)
            if self.head_bytes > _HEAD_BYTES:
                self.broken = True

    def take(self) -> bytes:
        """What has come of the body since; empty if nothing has."""
        parts = self._parts
        if not parts:
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.held_bytes = 0
        return data

    # From httptools.

    def on_message_begin(self) -> None:
        """A head begins, also that of an interim answer."""
        if self.complete:
            self.broken = True
        else:
            self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer, which is dropped."""
        if not self.status:
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head of an answer is there."""
        parser = self._parser
        if parser is None or self.status:
            return
        status = parser.get_status_code()
        if status < 200:
            self.broken = self.broken or status == 101
            return
        if sum(len(name) + len(value) for name, value in self.headers) > _HEAD_BYTES:
            self.broken = True
            return
        self.reusable = parser.should_keep_alive()
        self.status = status
        if self._bodiless:
            # llhttp waits for the body that a HEAD's answer only announces.
            self.complete, self.reusable = True, False
        elif status not in (204, 304) and not any(
            name in (b"content-length", b"transfer-encoding") for name, _ in self.headers
        ):
            self.until_end, self.reusable = True, False

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self.complete:
            self.broken = True
        self._parts.append(body)
        self.held_bytes += len(body)

    def on_message_complete(self) -> None:
        """The answer, or an interim one, is whole."""
        if self.status:
            self.complete = True
