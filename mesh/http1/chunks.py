"""The chunked coding of a request's body, strictly (RFC 9112, 7.1). Pure.

Not llhttp: it reads on into the next request, and where this body ends decides where that one begins.
"""

from __future__ import annotations

import re

from mesh.errors import Code, MeshError

# No space before the size or after it, no sign, no 0x. Extensions are allowed, and mean nothing.
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[\t\x20-\x7e]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_LINE_BYTES = 256
_TRAILER_BYTES = 8192
_WASTE_BYTES = 16_384
_SIZE_LINE, _DATA, _DATA_END, _TRAILERS, _DONE = range(5)


class ChunkDecoder:
    """Takes one chunked body off the front of a buffer, in as many pieces as it comes. Trailers are dropped."""

    __slots__ = ("_left", "_limit", "_state", "_trailers", "_waste")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._state = _SIZE_LINE
        self._left = 0
        self._trailers = 0
        self._waste = 0

    def feed(self, buffer: bytearray, body: bytearray) -> bool:
        """Moves what can be decoded from `buffer` to the end of `body`; True once the body is whole.

        Raises:
            MeshError: MALFORMED_REQUEST, or REQUEST_TOO_LARGE as soon as a chunk announces more than the limit.
        """
        at = 0
        try:
            while self._state != _DONE:
                if self._state == _DATA:
                    size = min(self._left, len(buffer) - at)
                    with memoryview(buffer) as view, view[at : at + size] as piece:
                        body += piece
                    at += size
                    self._left -= size
                    if self._left:
                        return False
                    self._state = _DATA_END
                if self._state == _DATA_END:
                    if len(buffer) - at < 2:
                        return False
                    if not buffer.startswith(b"\r\n", at):
                        raise MeshError(Code.MALFORMED_REQUEST)
                    at += 2
                    self._state = _SIZE_LINE
                end = buffer.find(b"\r\n", at, at + _LINE_BYTES if self._state == _SIZE_LINE else at + _TRAILER_BYTES)
                if end < 0:
                    self._check_unfinished(buffer, at)
                    return False
                line = bytes(buffer[at:end])
                at = end + 2
                if self._state == _SIZE_LINE:
                    self._take_size(line, len(body))
                else:
                    self._take_trailer(line)
        finally:
            del buffer[:at]
        return True

    def _take_size(self, line: bytes, have: int) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise MeshError(Code.MALFORMED_REQUEST)
        size = int(match[1], 16)
        if have + size > self._limit:
            raise MeshError(Code.REQUEST_TOO_LARGE)
        # Framing costs us more than it costs a client: much of it around few bytes is refused (as Go's reader does).
        self._waste = max(0, self._waste + len(line) - 16 - 2 * size)
        if self._waste > _WASTE_BYTES:
            raise MeshError(Code.MALFORMED_REQUEST)
        self._left = size
        self._state = _DATA if size else _TRAILERS

    def _take_trailer(self, line: bytes) -> None:
        self._trailers += len(line) + 2
        if not line:
            self._state = _DONE
        elif self._trailers > _TRAILER_BYTES or not _TRAILER.fullmatch(line):
            raise MeshError(Code.MALFORMED_REQUEST)

    def _check_unfinished(self, buffer: bytearray, at: int) -> None:
        """A line that has not ended must not be too long, nor hold what no line may: that is known at once."""
        size = len(buffer) - at
        if size >= (_LINE_BYTES if self._state == _SIZE_LINE else _TRAILER_BYTES) or b"\n" in buffer[at:]:
            raise MeshError(Code.MALFORMED_REQUEST)
        if self._state == _SIZE_LINE and size and not _PARTIAL.fullmatch(buffer[at:]):
            raise MeshError(Code.MALFORMED_REQUEST)


_PARTIAL = re.compile(rb"[0-9A-Fa-f]{1,8}(?:;[\t\x20-\x7e]*)?\r?")
