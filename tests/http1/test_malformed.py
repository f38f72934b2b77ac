"""What two servers could read in two ways is refused, and the connection ends: nothing after it is served."""

from __future__ import annotations

import pytest

HOST = b"Host: door.test\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: door.test\r\n\r\n"


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /a HTTP/1.1\r\n" + HOST + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


def get(line: bytes, *headers: bytes) -> bytes:
    return line + b"\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


HOSTS = b"Host: door.test"
REFUSED = {
    "length and coding": post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "coding and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"),
    "one length twice": post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
    "a list of lengths": post(b"Content-Length: 3, 3", body=b"abc"),
    "length with plus": post(b"Content-Length: +3", body=b"abc"),
    "length with minus": post(b"Content-Length: -3", body=b"abc"),
    "length with a space": post(b"Content-Length: 1 3", body=b"abc"),
    "length in hex": post(b"Content-Length: 0x3", body=b"abc"),
    "length empty": post(b"Content-Length:", body=b"abc"),
    "length with underscore": post(b"Content-Length: 1_0", body=b"abc"),
    "length beyond 64 bits": post(b"Content-Length: 18446744073709551619", body=b"abc"),
    "length too long": post(b"Content-Length: 0000000000000000000000003", body=b"abc"),
    "coding gzip": post(b"Transfer-Encoding: gzip", body=b"abc"),
    "coding gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "coding chunked, gzip": post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "coding chunked, identity": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "coding twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "coding xchunked": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "coding quoted": post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    "coding with vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "coding empty": post(b"Transfer-Encoding:", body=b"0\r\n\r\n"),
    "coding in HTTP/1.0": get(b"POST /a HTTP/1.0", HOSTS, b"Transfer-Encoding: chunked"),
    "folded header": post(b"X: a\r\n b"),
    "folded first header": b"GET /a HTTP/1.1\r\n " + HOST + b"\r\n",
    "space before colon": post(b"Content-Length : 3", body=b"abc"),
    "tab before colon": post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n"),
    "no colon": post(b"X"),
    "no name": post(b": a"),
    "name with bracket": post(b"X(: a"),
    "name beyond ascii": post("Gr\u00fc\u00dfe: a".encode()),
    "bare CR": post(b"X: a\rTransfer-Encoding: chunked"),
    "bare LF": post(b"X: a\nContent-Length: 3", body=b"abc"),
    "bare LF everywhere": b"GET /a HTTP/1.1\nHost: door.test\n\n",
    "NUL in value": post(b"X: a\0b"),
    "NUL in name": post(b"X\0: ab"),
    "control in value": post(b"X: a\x01b"),
    "lower method": get(b"get /a HTTP/1.1", HOSTS),
    "mixed method": get(b"Post /a HTTP/1.1", HOSTS),
    "unknown method": get(b"FETCH /a HTTP/1.1", HOSTS),
    "CONNECT": get(b"CONNECT door.test:443 HTTP/1.1", HOSTS),
    "absolute form": get(b"GET http://door.test/a HTTP/1.1", HOSTS),
    "asterisk": get(b"OPTIONS * HTTP/1.1", HOSTS),
    "relative": get(b"GET a HTTP/1.1", HOSTS),
    "empty target": get(b"GET  HTTP/1.1", HOSTS),
    "fragment": get(b"GET /a#b HTTP/1.1", HOSTS),
    "control in target": get(b"GET /a\x01b HTTP/1.1", HOSTS),
    "target beyond ascii": get("GET /gr\u00fc\u00df HTTP/1.1".encode(), HOSTS),
    "space in target": get(b"GET /a b HTTP/1.1", HOSTS),
    "two spaces": get(b"GET  /a HTTP/1.1", HOSTS),
    "space before CRLF": get(b"GET /a HTTP/1.1 ", HOSTS),
    "tab for space": get(b"GET\t/a HTTP/1.1", HOSTS),
    "HTTP/0.9": b"GET /a\r\n",
    "HTTP/0.9 by name": get(b"GET /a HTTP/0.9", HOSTS),
    "HTTP/1.0": get(b"GET /a HTTP/1.0", HOSTS),
    "HTTP/1.2": get(b"GET /a HTTP/1.2", HOSTS),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0": get(b"GET /a HTTP/2.0", HOSTS),
    "lower version": get(b"GET /a http/1.1", HOSTS),
    "another protocol": get(b"GET /a RTSP/1.0", HOSTS),
    "no host": get(b"GET /a HTTP/1.1"),
    "two hosts": get(b"GET /a HTTP/1.1", HOSTS, b"Host: other.test"),
    "one host twice": get(b"GET /a HTTP/1.1", HOSTS, HOSTS),
    "empty host": get(b"GET /a HTTP/1.1", b"Host:"),
    "host with a path": get(b"GET /a HTTP/1.1", b"Host: door.test/b"),
    "host with a user": get(b"GET /a HTTP/1.1", b"Host: me@door.test"),
    "two keys": get(b"GET /a HTTP/1.1", HOSTS, b"Authorization: Bearer a", b"Authorization: Bearer b"),
    "two tenants": get(b"GET /a HTTP/1.1", HOSTS, b"Mesh-Tenant: a", b"Mesh-Tenant: b"),
    "two empty lines first": b"\r\n\r\n" + get(b"GET /a HTTP/1.1", HOSTS),
    "TLS in clear": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "chunk of minus 3": chunked(b"-3\r\nabc\r\n0\r\n\r\n"),
    "chunk of 0x3": chunked(b"0x3\r\nabc\r\n0\r\n\r\n"),
    "chunk without size": chunked(b"\r\nabc\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": chunked(b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
    "chunk size with space": chunked(b"3 \r\nabc\r\n0\r\n\r\n"),
    "chunk size after space": chunked(b" 3\r\nabc\r\n0\r\n\r\n"),
    "chunk size ends in LF": chunked(b"3\nabc\r\n0\r\n\r\n"),
    "chunk extension with LF": chunked(b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
    "chunk extension with CR": chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "chunk extension too long": chunked(b"3;" + b"a" * 300 + b"\r\nabc\r\n0\r\n\r\n"),
    "chunk too short": chunked(b"4\r\nabc\r\n0\r\n\r\n"),
    "chunk too long": chunked(b"2\r\nabc\r\n0\r\n\r\n"),
    "chunk ends in LF": chunked(b"3\r\nabc\n0\r\n\r\n"),
    "trailer without colon": chunked(b"0\r\nX\r\n\r\n"),
    "trailer with bare LF": chunked(b"0\r\nX: a\nY: b\r\n\r\n"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_is_refused_and_ends_the_connection(clear_door, name: str) -> None:
    async with clear_door() as door, door.connect() as client:
        await client.send(REFUSED[name] + NEXT)
        status, headers, body = await client.answer()
        assert (status, body, headers["connection"]) == (400, b"malformed_request", "close")
        assert await client.gone()
        assert "GET /smuggled" not in door.seen


@pytest.mark.parametrize("name", REFUSED)
async def test_is_refused_byte_by_byte(clear_door, name: str) -> None:
    """The same, however it is cut: pieces must not be judged otherwise than the whole."""
    async with clear_door() as door, door.connect() as client:
        for byte in REFUSED[name]:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        status, _, body = await client.answer()
        assert (status, body) == (400, b"malformed_request")
        assert await client.gone()


ACCEPTED = {
    "length with spaces around": (post(b"Content-Length:  3 \t", body=b"abc"), b"abc"),
    "length with zeros": (post(b"Content-Length: 003", body=b"abc"), b"abc"),
    "no body": (get(b"GET /a HTTP/1.1", HOSTS), b""),
    "empty line first": (b"\r\n" + get(b"GET /a HTTP/1.1", HOSTS), b""),
    "length 0": (post(b"Content-Length: 0"), b""),
    "coding in capitals": (post(b"TRANSFER-ENCODING: Chunked", body=b"3\r\nabc\r\n0\r\n\r\n"), b"abc"),
    "chunks": (chunked(b"3\r\nabc\r\n0002\r\nde\r\n0\r\n\r\n"), b"abcde"),
    "chunk extension": (chunked(b'3;a="b c"\r\nabc\r\n0;x\r\n\r\n'), b"abc"),
    "trailers are dropped": (chunked(b"1\r\na\r\n0\r\nContent-Length: 7\r\nHost: b\r\n\r\n"), b"a"),
    "no chunk": (chunked(b"0\r\n\r\n"), b""),
    "an upgrade is overlooked": (
        post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3", body=b"abc"),
        b"abc",
    ),
    "value beyond ascii": (post("X: gr\u00fc\u00df".encode(), b"Content-Length: 1", body=b"a"), b"a"),
}


@pytest.mark.parametrize("name", ACCEPTED)
async def test_is_served_and_the_next_too(clear_door, name: str) -> None:
    data, body = ACCEPTED[name]
    async with clear_door() as door, door.connect() as client:
        await client.send(data + NEXT)
        assert (await client.answer())[::2] == (200, body)
        assert (await client.answer())[1]["x-path"] == "/smuggled"
        assert len(door.seen) == 2
    async with clear_door() as door, door.connect() as client:
        for byte in data:
            await client.send(bytes([byte]))
        assert (await client.answer())[::2] == (200, body)


async def test_head_limits(clear_door) -> None:
    async with clear_door(head_bytes=300, header_count=5) as door:
        for data, status in (
            (get(b"GET /a HTTP/1.1", HOSTS, b"X: " + b"a" * 100), 200),
            (get(b"GET /a HTTP/1.1", HOSTS, b"X: " + b"a" * 300), 431),
            (get(b"GET /" + b"a" * 300 + b" HTTP/1.1", HOSTS), 431),
            (b"GET /a HTTP/1.1\r\nX: " + b"a" * 300, 431),
            (b"G" * 301, 431),
            (get(b"GET /a HTTP/1.1", HOSTS, *[b"X: a"] * 4), 200),
            (get(b"GET /a HTTP/1.1", HOSTS, *[b"X: a"] * 5), 431),
        ):
            async with door.connect() as client:
                await client.send(data)
                answer = await client.answer()
                assert answer[0] == status, data
                if status == 431:
                    assert answer[2] == b"headers_too_large"
                    assert await client.gone()


async def test_a_handler_cannot_split_an_answer(clear_door) -> None:
    async def handler(request) -> None:
        await request.respond(200, [(b"x", b"a\r\nset-cookie: b")], b"")

    async with clear_door(handler) as door, door.connect() as client:
        await client.send(NEXT)
        status, headers, body = await client.answer()
        assert (status, body) == (500, b"internal_error")
        assert "set-cookie" not in headers
