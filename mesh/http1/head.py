"""The head of a request: its line and its headers, strictly.

`httptools` (llhttp) finds the headers and refuses most of what is malformed; a few things that it takes, and that two
servers could read in two ways, are refused here. Whatever is refused closes the connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import httptools

from mesh.errors import Code, MeshError
from mesh.http1.limits import Limits

Headers = Sequence[tuple[bytes, bytes]]

# Origin form only, one space each, HTTP/1.1 only: llhttp takes 0.9, 1.0, 2.0, RTSP, several spaces and `#`.
_LINE = re.compile(rb"([A-Z]{1,20}) (/[\x21\x22\x24-\x7e]*) HTTP/1\.1")
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_ONCE = frozenset(
    {
        b"authorization", b"content-encoding", b"content-length", b"content-type", b"expect", b"host",
        b"traceparent", b"transfer-encoding",
    }
)  # fmt: skip
"""Headers whose meaning would depend on which of two is read. So would that of any `mesh-` header."""


@dataclass(frozen=True, slots=True, repr=False)
class Head:
    """A request's head. `content_length` is None where the body is chunked, or there is none."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    fields: dict[bytes, bytes]
    content_length: int | None
    chunked: bool
    expects: bool
    keep_alive: bool


class HeadParser:
    """Takes one head off the front of a buffer, in as many pieces as it comes."""

    __slots__ = ("_complete", "_headers", "_keep_alive", "_limits", "_line", "_parser", "_seen")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._line: re.Match[bytes] | None = None
        self._seen = 0
        self._complete = False
        self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """From httptools."""
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """From httptools."""
        self._complete = True
        # Asked here: once a request without a body is whole, llhttp has forgotten.
        self._keep_alive = self._parser.should_keep_alive()

    def feed(self, buffer: bytearray) -> Head | None:
        """The head, once `buffer` holds all of it; what follows it stays in `buffer`.

        Raises:
            MeshError: MALFORMED_REQUEST, HEADERS_TOO_LARGE or EXPECTATION_FAILED.
        """
        if not self._seen and buffer.startswith(b"\r"):
            # One empty line before a request is to be overlooked (RFC 9112, 2.2).
            if len(buffer) == 1:
                return None
            if buffer[1] == 0x0A:
                del buffer[:2]
        seen = self._seen
        end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
        size = len(buffer) if end < 0 else end + 4
        if size > self._limits.head_bytes:
            raise MeshError(Code.HEADERS_TOO_LARGE)
        if self._line is None and (line_end := buffer.find(b"\r\n", max(0, seen - 1), size)) >= 0:
            self._line = _LINE.fullmatch(bytes(buffer[:line_end]))
            if self._line is None:
                raise MeshError(Code.MALFORMED_REQUEST)
        self._seen = size
        try:
            self._parser.feed_data(bytes(buffer[seen:size]))
        except httptools.HttpParserUpgrade:
            pass  # An upgrade may be ignored, and is.
        except httptools.HttpParserError:
            # Its text may quote the request.
            raise MeshError(Code.MALFORMED_REQUEST) from None
        if end < 0:
            return None
        del buffer[:size]
        if self._line is None or not self._complete:
            raise MeshError(Code.MALFORMED_REQUEST)
        if len(self._headers) > self._limits.header_count:
            raise MeshError(Code.HEADERS_TOO_LARGE)
        return _interpret(self._line, tuple(self._headers), keep_alive=self._keep_alive)


def _interpret(line: re.Match[bytes], headers: tuple[tuple[bytes, bytes], ...], *, keep_alive: bool) -> Head:
    fields = dict(headers)
    if len(fields) != len(headers):
        fields = _joined(headers)
    host, length, coding = fields.get(b"host"), fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if host is None or not _HOST.fullmatch(host):
        raise MeshError(Code.MALFORMED_REQUEST)
    if coding is not None and (length is not None or coding.lower() != b"chunked"):
        raise MeshError(Code.MALFORMED_REQUEST)
    if length is not None and not _LENGTH.fullmatch(length):
        raise MeshError(Code.MALFORMED_REQUEST)
    expect = fields.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise MeshError(Code.EXPECTATION_FAILED)
    path, _, query = line[2].decode("ascii").partition("?")
    return Head(
        method=line[1].decode("ascii"),
        path=path,
        query=query,
        headers=headers,
        fields=fields,
        content_length=None if length is None else int(length),
        chunked=coding is not None,
        expects=expect is not None,
        keep_alive=keep_alive,
    )


def _joined(headers: Headers) -> dict[bytes, bytes]:
    """Repeated headers as one list (RFC 9110, 5.3), where that does not change what they mean."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in fields:
            fields[name] = value
        elif name in _ONCE or name.startswith(b"mesh-"):
            raise MeshError(Code.MALFORMED_REQUEST)
        else:
            fields[name] += b", " + value
    return fields
