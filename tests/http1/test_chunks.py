"""The chunked coding: any body in any chunks, cut anywhere, comes out whole, and what follows it is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Code, MeshError
from mesh.http1.chunks import ChunkDecoder

EXTENSION = st.sampled_from([b"", b";a", b";a=b", b';a="b c"'])


@given(
    chunks=st.lists(st.tuples(st.binary(min_size=1, max_size=40), EXTENSION), max_size=8),
    after=st.binary(max_size=20),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
)
def test_any_chunks_cut_anywhere(chunks: list[tuple[bytes, bytes]], after: bytes, cuts: list[int]) -> None:
    wire = b"".join(b"%X%b\r\n%b\r\n" % (len(data), ext, data) for data, ext in chunks) + b"0\r\nT: 1\r\n\r\n"
    whole = wire + after
    decoder, buffer, body = ChunkDecoder(10_000), bytearray(), bytearray()
    at = turn = 0
    while True:
        size = cuts[turn % len(cuts)]
        buffer += whole[at : at + size]
        at, turn = at + size, turn + 1
        if decoder.feed(buffer, body):
            break
        assert at < len(whole), "the end was not seen"
    assert body == b"".join(data for data, _ in chunks)
    assert bytes(buffer) + whole[at:] == after


@given(st.binary(max_size=60), st.integers(1, 20))
def test_garbage_ends_in_a_code_and_cuts_do_not_matter(data: bytes, cut: int) -> None:
    def run(pieces: list[bytes]) -> tuple[str, bytes]:
        decoder, buffer, body = ChunkDecoder(100), bytearray(), bytearray()
        try:
            for piece in pieces:
                buffer += piece
                if decoder.feed(buffer, body):
                    return "whole", bytes(body)
        except MeshError as error:
            return error.code, b""
        return "more", bytes(body)

    pieces = [data[at : at + cut] for at in range(0, len(data), cut)] or [b""]
    assert run([data]) == run(pieces)


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (b"B\r\n", Code.REQUEST_TOO_LARGE),
        (b"5\r\nabcde\r\n6\r\n", Code.REQUEST_TOO_LARGE),
        (b"FFFFFFFF\r\n", Code.REQUEST_TOO_LARGE),
        (b"FFFFFFFFF\r\n", Code.MALFORMED_REQUEST),
        (b"0\r\n" + b"a" * 9000, Code.MALFORMED_REQUEST),
        (b"0\r\n" + b"a: b\r\n" * 2000, Code.MALFORMED_REQUEST),
    ],
)
def test_limits(wire: bytes, code: Code) -> None:
    with pytest.raises(MeshError) as raised:
        ChunkDecoder(10).feed(bytearray(wire), bytearray())
    assert raised.value.code is code


def test_much_framing_around_few_bytes_is_refused() -> None:
    wire = bytearray((b"1;" + b"a" * 200 + b"\r\nx\r\n") * 1000)
    with pytest.raises(MeshError) as raised:
        ChunkDecoder(10_000).feed(wire, bytearray())
    assert raised.value.code is Code.MALFORMED_REQUEST
