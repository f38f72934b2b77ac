"""Frames: how an answer travels from a replica to a gateway, and from gateway to gateway.

A hop is one HTTP/1.1 request whose body is the parcel as the client sent it, and one answer whose body is a run of
frames. A frame is 13 bytes, big endian, and its payload:

    kind u8 | payload length u32 | prompt tokens u32 | completion tokens u32 | payload

The token counts are those of the whole call so far, so that whoever holds the last frame knows what was used, also
when the client hung up or the replica died. An answer without `END` or `ERROR` was cut off.

    PROGRESS  no payload; tokens were used and nothing can be shown yet
    DATA      bytes for the client: SSE text, a JSON body, or one protobuf message, by what was asked for
    END       no payload; the answer is whole
    ERROR     JSON `{"code", "param"?, "hint"?}`; the answer ends here
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from mesh.types import Usage

CONTENT_TYPE = b"application/x-mesh-frames"
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
_HEAD = struct.Struct(">BIII")


class FrameKind(IntEnum):
    """What a frame means; see the module."""

    PROGRESS = 0
    DATA = 1
    END = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. `payload` may hold content."""

    kind: FrameKind
    usage: Usage
    payload: bytes

    def __repr__(self) -> str:
        return f"Frame({self.kind.name}, {len(self.payload)} bytes)"


class FrameError(Exception):
    """The bytes are not frames. Says nothing of what they are."""


def encode(kind: FrameKind, usage: Usage, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return _HEAD.pack(kind, len(payload), usage.prompt_tokens, usage.completion_tokens) + payload


class FrameParser:
    """Cuts a byte stream into frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yields the frames that `data` completes.

        Raises:
            FrameError: The bytes are not frames.
        """
        buffer = self._buffer
        buffer += data
        start, size = 0, len(buffer)
        while size - start >= _HEAD.size:
            kind, length, prompt, completion = _HEAD.unpack_from(buffer, start)
            if kind > FrameKind.ERROR or length > MAX_PAYLOAD_BYTES:
                raise FrameError
            end = start + _HEAD.size + length
            if end > size:
                break
            yield Frame(FrameKind(kind), Usage(prompt, completion), bytes(buffer[start + _HEAD.size : end]))
            start = end
        if start:
            del buffer[:start]

    @property
    def mid_frame(self) -> bool:
        """Whether bytes of an unfinished frame are held."""
        return bool(self._buffer)
