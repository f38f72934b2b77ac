"""The PROXY protocol, version 2: a front says before the first byte whose connection it passes on.

Strict, since what stands here is believed: a header that is not exactly what the protocol allows ends the connection.
Only a listener that is meant for a front reads one (see `listen`); to any other it is no TLS and no request.

Source: HAProxy's `doc/proxy-protocol.txt`, section 2.2.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
MOST_BYTES = 536
"""The longest header that is taken: addresses, and some hundred bytes of what a front adds to them."""
_FIXED_BYTES = 16
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21
_ADDRESS_BYTES = {_TCP4: 4, _TCP6: 16}


class ProxyHeaderError(Exception):
    """What came is no header of the protocol, or one that is not allowed here. Holds nothing of it."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header.

    Attributes:
        size_bytes: Its length: what the client sent follows.
        address: The client's address, or None where the front speaks for itself (a health check).
        port: The client's port, or 0.
    """

    size_bytes: int
    address: str | None
    port: int


def read_header(data: bytes | bytearray) -> ProxyHeader | None:
    """The header at the front of `data`, or None while more of it must come.

    Raises:
        ProxyHeaderError: It is none.
    """
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        raise ProxyHeaderError
    if len(data) < _FIXED_BYTES:
        return None
    command, family = data[12], data[13]
    size = _FIXED_BYTES + int.from_bytes(data[14:16])
    if command not in (_LOCAL, _PROXY) or size > MOST_BYTES:
        raise ProxyHeaderError
    if command == _PROXY and family not in _ADDRESS_BYTES:
        raise ProxyHeaderError
    if len(data) < size:
        return None
    if command == _LOCAL:
        # What follows is to be ignored, whatever it is.
        return ProxyHeader(size, None, 0)
    each = _ADDRESS_BYTES[family]
    after = _FIXED_BYTES + 2 * each + 4
    if size < after:
        raise ProxyHeaderError
    _check_additions(bytes(data[after:size]))
    source = bytes(data[_FIXED_BYTES : _FIXED_BYTES + each])
    at = _FIXED_BYTES + 2 * each
    return ProxyHeader(size, str(ipaddress.ip_address(source)), int.from_bytes(data[at : at + 2]))


def _check_additions(data: bytes) -> None:
    """Type, length and value, one after the other, up to the end; what they say is not used."""
    while data:
        if len(data) < 3 or len(data) < (size := 3 + int.from_bytes(data[1:3])):
            raise ProxyHeaderError
        data = data[size:]
