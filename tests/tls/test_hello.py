"""The name in a client's first message: found in real ones, in any pieces, and in nothing else."""

from __future__ import annotations

import ssl
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.tls.hello import MOST_BYTES, Hello, HelloError, read_hello

NAME = "t-abcdefghij234567.vn-1.mesh.test"


def hello(name: str | None = NAME, *, protocols: int = 0) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols([f"protocol-{number:05}" for number in range(protocols)])
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def in_records(data: bytes, size: int) -> bytes:
    """The same message in records of this size."""
    body = data[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(data[:3] + len(part).to_bytes(2) + part for part in parts)


@pytest.mark.parametrize("name", [NAME, "a", None])
@pytest.mark.parametrize("size", [3, 4, 100, 16_000])
def test_a_real_one_in_any_pieces(name: str | None, size: int) -> None:
    data = in_records(hello(name), size)
    for end in (*range(0, len(data), 13), len(data) - 1):
        assert read_hello(data[:end]) is None
    assert read_hello(data) == Hello(name)
    assert read_hello(bytearray(data + b"more")) == Hello(name)


def test_a_long_one_and_one_that_is_too_long() -> None:
    assert len(hello(protocols=1000)) > 14_000
    assert read_hello(hello(protocols=1000)) == Hello(NAME)
    endless = b"\x16\x03\x01\x00\x04\x01\x00\xff\xff"
    with pytest.raises(HelloError):
        read_hello(endless)
    with pytest.raises(HelloError):
        read_hello(b"\x16\x03\x01\x00\x01\x01" * (MOST_BYTES // 6 + 1))


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


SHORT = hello("abcdefgh")
NAMED = b"\x00\x00\x00\x0d\x00\x0b\x00\x00\x08abcdefgh"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x16\x02\x01\x00\x05",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        changed(SHORT, b"abcdefgh", b"abcd\x00fgh"),
        changed(SHORT, b"abcdefgh", b"\xff" * 8),
        changed(SHORT, b"abcdefgh", b"abc/efgh"),
        changed(SHORT, NAMED, b"\x00\x00\x00\x0d\x00\x0b\x01\x00\x08abcdefgh"),
        changed(SHORT, NAMED, b"\x00\x00\x00\x0d\x00\x0b\x00\x00\x07abcdefgh"),
        changed(SHORT, NAMED, b"\x00\x00\x00\x0d\x00\x0a\x00\x00\x08abcdefgh"),
        changed(SHORT, NAMED, b"\x00\x00\x00\x0d\x00\x0b\x00\x00\x02a" + b"\x00\x00\x00\x03bcd"[:6] + b"x"),
        changed(SHORT, NAMED, b"\x00\x00\x00\x04\x00\x02\x00\x00\x00\x00\x00\x05\x00\x03\x00\x00\x00"),
        SHORT[:3] + (len(SHORT) - 4).to_bytes(2) + SHORT[5:] + b"\x00",
    ],
)
def test_whatever_is_not_exactly_one_is_refused(data: bytes) -> None:
    with pytest.raises(HelloError):
        read_hello(data + bytes(MOST_BYTES))
    with suppress(HelloError):
        assert read_hello(data) is None


@given(st.binary(max_size=400), st.integers(0, len(SHORT)))
def test_no_bytes_do_anything_else(tail: bytes, keep: int) -> None:
    try:
        found = read_hello(SHORT[:keep] + tail)
    except HelloError:
        return
    assert found is None or found.server_name is None or found.server_name.isascii()
