"""Answers read from bytes, however they are cut: the head, the body, and what must not have come."""

from __future__ import annotations

import pytest

from mesh.http1.answer import AnswerParser

OK = b"HTTP/1.1 200 OK\r\nX-One: 1 \r\ncontent-length: 2\r\n\r\nhi"


def read(data: bytes, size: int, *, bodiless: bool = False) -> tuple[AnswerParser, bytes]:
    """What `data` gives in pieces of this size."""
    parser, body = AnswerParser(), b""
    parser.begin(bodiless=bodiless)
    for start in range(0, len(data), size):
        parser.feed(data[start : start + size])
        body += parser.take()
    return parser, body


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("data", "status", "body", "state"),
    [
        (OK, 200, b"hi", "whole, reusable"),
        (b"HTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\n" + OK, 200, b"hi", "whole, reusable"),
        (OK.replace(b"X-One", b"connection: close\r\nX-One"), 200, b"hi", "whole"),
        (OK[:-1], 200, b"h", "reusable"),
        (
            b"HTTP/1.1 200 OK\r\nx-one: 1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-trailer: 1\r\n\r\n",
            200,
            b"hi",
            "whole, reusable",
        ),
        (b"HTTP/1.1 200 OK\r\nx-one: 1\r\n\r\nhi", 200, b"hi", "until end"),
        (b"HTTP/1.1 204 No Content\r\nx-one: 1\r\n\r\n", 204, b"", "whole, reusable"),
    ],
)
def test_an_answer_is_read(size: int, data: bytes, status: int, body: bytes, state: str) -> None:
    parser, found = read(data, size)
    said = {"whole": parser.complete, "reusable": parser.reusable, "until end": parser.until_end}
    assert (parser.status, found, parser.broken) == (status, body, False)
    assert ", ".join(name for name, is_so in said.items() if is_so) == state
    assert [value for name, value in parser.headers if name == b"x-one"] == [b"1"]
    assert not {b"x-early", b"x-trailer"} & dict(parser.headers).keys()


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"no answer at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-one: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_answer_breaks_the_connection(data: bytes) -> None:
    parser, _ = read(data, 1000)
    assert (parser.broken, parser.status) == (True, 0)


def test_a_second_answer_breaks_the_connection_and_leaves_the_first_as_it_was() -> None:
    parser, found = read(OK + b"HTTP/1.1 500 No\r\nx-one: forged\r\ncontent-length: 0\r\n\r\n", 1000)
    assert (parser.broken, parser.status, found) == (True, 200, b"hi")
    assert dict(parser.headers)[b"x-one"] == b"1"


def test_what_nobody_asked_for_breaks_the_connection() -> None:
    parser = AnswerParser()
    parser.feed(OK)
    assert parser.broken
    parser, _ = read(OK, 1000)
    parser.end()
    assert not parser.broken
    parser.feed(b"H")
    assert parser.broken


def test_the_answer_to_a_head_has_no_body() -> None:
    parser, found = read(OK.removesuffix(b"hi"), 1000, bodiless=True)
    assert (parser.complete, parser.reusable, found) == (True, False, b"")
