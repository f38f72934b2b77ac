"""Tenant hostnames at the HTTP door, over TLS: who is served by which name."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gateway.world import KEY, TENANT, VN, World, replica

from mesh.embedded.authority import make_pki
from mesh.http1 import listen
from mesh.policy.hostnames import DoorNames, label_of
from mesh.tls import door_context
from mesh.transport.http_door import HttpDoor
from mesh.types import RegionId, RequestId

ZONE, OTHER_ZONE = "vn-1.mesh.test", "ap-southeast-1.mesh.test"
MINE = f"{label_of(TENANT)}.{ZONE}"
NAMES = DoorNames(
    plain=frozenset({ZONE, "127.0.0.1", "door.vn-1.mesh"}), zone=ZONE, zones=frozenset({ZONE, OTHER_ZONE})
)


@pytest.fixture(scope="module")
def named_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named-pki")
    other = RegionId("ap-southeast-1")
    make_pki(folder, {VN: ["127.0.0.1"], other: ["127.0.0.1"]}, ["127.0.0.1"], zones={VN: ZONE, other: OTHER_ZONE})
    return folder


@asynccontextmanager
async def opened(pki: Path) -> AsyncGenerator[tuple[int, World]]:
    world = World(replicas=(replica("a"),))

    door = HttpDoor(
        serve=world.story.serve,
        queries=world.answers,
        here=world.story._here,
        names=NAMES,
        next_request_id=lambda: RequestId("req_7"),
        openapi=b"{}",
        failed=lambda error, _: None,
    )
    async with listen(door.handle, "127.0.0.1", 0, tls=door_context(pki, VN), fault=door.fault) as server:
        yield server.port, world


async def ask(
    pki: Path, port: int, server_name: str | None, host: str, *, path: str = "/v1/models", body: bytes = b""
) -> tuple[int, dict[str, str], dict]:
    """One request under a name; the rest until the server closes must be empty where it says that it closes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pki / "doors-ca.pem")
    context.check_hostname = server_name is not None
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=server_name or "127.0.0.1"
    )
    try:
        method = "POST" if body else "GET"
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {KEY.text}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        answer = json.loads(await reader.readexactly(int(headers["content-length"])))
        if headers.get("connection") == "close":
            assert await reader.read() == b""
        return int(head.split()[1]), headers, answer
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("server_name", "host", "status"),
    [
        (MINE, MINE, 200),
        (MINE, f"{MINE.upper()}:8443", 200),
        (ZONE, ZONE, 200),
        ("door.vn-1.mesh", "door.vn-1.mesh:1", 200),
        (None, "127.0.0.1:8443", 200),
        (None, "whatever.test", 200),
        (MINE, ZONE, 421),
        (ZONE, MINE, 421),
        (None, MINE, 421),
        (f"t-bbbbbbbbbbbbbbbb.{ZONE}", f"t-bbbbbbbbbbbbbbbb.{ZONE}", 421),
        (f"acme.{ZONE}", MINE, 421),
    ],
)
async def test_who_is_served_by_which_name(named_pki: Path, server_name: str | None, host: str, status: int) -> None:
    async with opened(named_pki) as (port, _):
        for path in ("/v1/models", "/v1/route"):
            answered, headers, answer = await ask(named_pki, port, server_name, host, path=path)
            assert answered == status
            if status == 421:
                assert (answer["error"]["code"], headers["connection"]) == ("misdirected_request", "close")
                assert server_name is None or server_name not in json.dumps(answer)


async def test_a_body_sent_by_the_wrong_name_is_not_read(named_pki: Path) -> None:
    other = f"t-bbbbbbbbbbbbbbbb.{ZONE}"
    async with opened(named_pki) as (port, world):
        body = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "x" * 50_000}]}).encode()
        status, headers, _ = await ask(named_pki, port, other, other, path="/v1/chat/completions", body=body)
        assert (status, headers["connection"]) == (421, "close")
        (record,) = world.settled
        assert (record.code, record.tenant) == ("misdirected_request", TENANT)


async def test_the_certificate_is_for_this_regions_names_only(named_pki: Path) -> None:
    async with opened(named_pki) as (port, _):
        for name in (f"{label_of(TENANT)}.{OTHER_ZONE}", OTHER_ZONE, f"a.{MINE}"):
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(named_pki, port, name, name)


# What the ssl module says of it quotes the name; a program of the mesh logs the class only (`speak_through`).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_name_that_is_no_text_ends_the_handshake(named_pki: Path) -> None:
    async with opened(named_pki) as (port, _):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname="xxxxxxxx.vn-1.mesh.test")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        hello = outgoing.read()
        assert hello.count(b"xxxxxxxx") == 1
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(hello.replace(b"xxxxxxxx", b"\xff" * 8))
        record = await reader.read()
        assert record[:1] in (b"\x15", b"")  # an alert, and then nothing
        writer.close()


async def test_no_early_data_is_offered(named_pki: Path) -> None:
    """0-RTT: what could be replayed, and is read before the handshake says who is there."""
    async with opened(named_pki) as (port, _):
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", MINE, "-msg", "-tls1_3",
                   "-CAfile", str(named_pki / "doors-ca.pem"), "-ign_eof"]  # fmt: skip
        request = f"GET /livez HTTP/1.1\r\nhost: {MINE}\r\nconnection: close\r\n\r\n"
        ran = await asyncio.to_thread(
            lambda: subprocess.run(command, input=request.encode(), capture_output=True, check=False, timeout=60)
        )
    told = ran.stdout.decode("latin-1")
    assert "NewSessionTicket" in told
    assert set(re.findall(r"Max Early Data: (\d+)", told)) == {"0"}
