"""The operator's port: three paths, for nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx2
import pytest
from ports import free_port

from mesh.embedded.authority import make_pki
from mesh.errors import Code, MeshError
from mesh.settings import Address
from mesh.tls import client_context, internal_name, server_context
from mesh.transport.operator import serve_operator
from mesh.types import RegionId, Role

VN = RegionId("vn-1")


@contextlib.asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None, *, ready: bool = True) -> AsyncGenerator[Address]:
    address = Address("127.0.0.1", free_port())
    reasons = () if ready else ("policy_stale",)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(
            serve_operator(address, ready=lambda: (ready, reasons), metrics=lambda: b"mesh_up 1.0\n", tls=tls)
        )
        while True:
            try:
                _, writer = await asyncio.open_connection(address.host, address.port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0)
        writer.close()
        yield address
        task.cancel()


async def test_three_paths() -> None:
    async with serving() as address, httpx2.AsyncClient(base_url=f"http://{address}") as client:
        live, ready, metrics = [await client.get(path) for path in ("/livez", "/readyz", "/metrics")]
        other, slash, post = await client.get("/x?q=CANARY"), await client.get("/livez/"), await client.post("/livez")
    assert (live.status_code, live.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reasons": []})
    assert (metrics.status_code, metrics.text) == (200, "mesh_up 1.0\n")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert (other.status_code, slash.status_code, post.status_code) == (404, 404, 405)
    assert "CANARY" not in other.text + str(other.headers)
    assert "server" not in live.headers


async def test_not_ready_says_why() -> None:
    async with serving(ready=False) as address, httpx2.AsyncClient(base_url=f"http://{address}") as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "not_ready", "reasons": ["policy_stale"]})


async def test_cancelling_lets_go_of_the_port_with_a_client_connected() -> None:
    async with serving() as address, httpx2.AsyncClient(base_url=f"http://{address}") as client:
        await client.get("/livez")
    with socket.create_server((address.host, address.port)):
        pass


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "localhost"])
async def test_clear_text_beyond_loopback_does_not_start(host: str) -> None:
    with pytest.raises(MeshError) as caught:
        await serve_operator(Address(host, free_port()), ready=lambda: (True, ()), metrics=lambda: b"", tls=None)
    assert caught.value.code is Code.INVALID_SETTINGS


async def test_a_context_that_asks_for_no_certificate_does_not_start(tmp_path: Path) -> None:
    make_pki(tmp_path, {VN: ["127.0.0.1"]}, ["127.0.0.1"])
    tls = server_context(tmp_path, VN, Role.GATEWAY)
    tls.verify_mode = ssl.CERT_OPTIONAL
    with pytest.raises(MeshError) as caught:
        await serve_operator(Address("127.0.0.1", free_port()), ready=lambda: (True, ()), metrics=lambda: b"", tls=tls)
    assert caught.value.code is Code.INVALID_SETTINGS


async def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(MeshError) as caught:
            await serve_operator(address, ready=lambda: (True, ()), metrics=lambda: b"", tls=None)
    assert caught.value.code is Code.START_FAILED
    assert str(address) in caught.value.message


async def test_tls_is_for_operators_only(tmp_path: Path) -> None:
    make_pki(tmp_path, {VN: ["127.0.0.1"]}, ["127.0.0.1"])

    async def ask(address: Address, context: ssl.SSLContext) -> bytes:
        reader, writer = await asyncio.open_connection(
            address.host, address.port, ssl=context, server_hostname=internal_name(Role.GATEWAY, VN)
        )
        try:
            writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return await reader.read()
        finally:
            writer.close()

    async with serving(server_context(tmp_path, VN, Role.GATEWAY)) as address:
        assert b"200 OK" in await ask(address, client_context(tmp_path, VN, Role.OPERATOR))
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert b"HTTP" not in await ask(address, client_context(tmp_path, VN, Role.REPLICA))
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.load_verify_locations(tmp_path / "mesh-ca.pem")
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            assert b"HTTP" not in await ask(address, bare)
        old = client_context(tmp_path, VN, Role.OPERATOR)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask(address, old)
