"""The name of the TLS handshake, as a handler sees it."""

from __future__ import annotations

import asyncio

from mesh.http1 import Request, listen


async def test_a_request_knows_the_name_that_was_asked_for(tls) -> None:
    async def say(request: Request) -> None:
        await request.respond(200, [], (request.peer.asked_name or "none").encode())

    async with listen(say, "127.0.0.1", 0, tls=tls.door, fault=lambda *_: (500, [], b"")) as server:
        for name, told in (("door.test", b"door.test"), ("127.0.0.1", b"none")):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", server.port, ssl=tls.client, server_hostname=name
            )
            writer.write(b"GET / HTTP/1.1\r\nhost: elsewhere\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).endswith(b"\r\n\r\n" + told)
            writer.close()


async def test_in_clear_there_is_none(clear_door) -> None:
    seen: list[str | None] = []

    async def note(request: Request) -> None:
        seen.append(request.peer.asked_name)
        await request.respond(204, [])

    async with clear_door(note) as opened, opened.connect() as client:
        await client.send(b"GET / HTTP/1.1\r\nhost: door.test\r\n\r\n")
        await client.answer()
    assert seen == [None]
