"""Reads the name that a client asks for (SNI) from its first message, which is in clear.

For what stands before a TLS server that does not tell the name. Strict: what is not exactly a ClientHello is refused,
so that no other reader finds another name in it.

Source: RFC 8446, sections 4.1.2 and 5.1; RFC 6066, section 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_BYTES = 32_768
"""The longest first message that is read, with its records."""
_RECORD, _HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 5, 22, 1, 0, 0
_RECORD_BYTES = 16_384
_NAME = re.compile(rb"[A-Za-z0-9._-]{1,253}")


class HelloError(Exception):
    """What came is no ClientHello, or not one that can be read in one way only. Holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A client's first message. `server_name` is None where it asks for none."""

    server_name: str | None


def read_hello(data: bytes | bytearray) -> Hello | None:
    """The first message at the front of `data`, or None while more of it must come.

    Raises:
        HelloError: It is none, or too long.
    """
    message = _message(data)
    if message is None:
        if len(data) > MOST_BYTES:
            raise HelloError
        return None
    return Hello(_server_name(_Reader(message)))


def _message(data: bytes | bytearray) -> bytes | None:
    """The handshake message without its own head, put together from its records."""
    message, at = bytearray(), 0
    while True:
        head = bytes(data[at : at + _RECORD])
        if head[:1] not in (b"", bytes([_HANDSHAKE])) or head[1:2] not in (b"", b"\x03"):
            raise HelloError
        if len(head) < _RECORD:
            return None
        size = int.from_bytes(head[3:])
        if not 0 < size <= _RECORD_BYTES:
            raise HelloError
        before = len(message)
        message += data[at + _RECORD : at + _RECORD + size]
        if message and message[0] != _CLIENT_HELLO:
            raise HelloError
        whole = 4 + int.from_bytes(message[1:4]) if len(message) >= 4 else MOST_BYTES
        if whole > MOST_BYTES or (whole < MOST_BYTES and before + size > whole):
            raise HelloError  # too long, or something is behind it in its record
        if len(message) == whole:
            return bytes(message[4:])
        at += _RECORD + size
        if at > len(data):
            return None


class _Reader:
    """Takes vectors off the front of a message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise HelloError
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> _Reader:
        return _Reader(self.take(self.number(size)))


def _server_name(hello: _Reader) -> str | None:
    hello.take(2 + 32)  # version and random
    hello.vector(1)  # session
    hello.vector(2)  # suites
    hello.vector(1)  # compression
    if not hello.left:
        return None
    extensions = hello.vector(2)
    if hello.left:
        raise HelloError
    names: list[str] = []
    while extensions.left:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            names.append(_host_name(body))
    if len(names) > 1:
        raise HelloError
    return names[0] if names else None


def _host_name(body: _Reader) -> str:
    entries = body.vector(2)
    kind, name = entries.number(1), entries.take(entries.number(2))
    if kind != _HOST_NAME or entries.left or body.left or not _NAME.fullmatch(name):
        raise HelloError
    return name.decode("ascii")
