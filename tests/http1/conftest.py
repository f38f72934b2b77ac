"""Certificates, a server under test, and a client that speaks in raw bytes."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.errors import MeshError
from mesh.http1 import Handler, Limits, Request, Server, listen


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Everything here holds on both event loops; run it apart from the tests that share one (scripts/test does)."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture(scope="session", autouse=True)
def one_loop() -> None:
    """None: each test has the loop that it asks for."""


@pytest.fixture(autouse=True)
async def the_loop_is_the_one_asked_for(anyio_backend: tuple[str, dict[str, bool]]) -> None:
    """A loop that other tests keep open would be taken silently."""
    is_uvloop = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    assert is_uvloop == anyio_backend[1]["use_uvloop"]


@dataclass(frozen=True)
class Tls:
    """Contexts of one CA: a door, a door that wants certificates, a client without one and a client with one."""

    door: ssl.SSLContext
    mutual: ssl.SSLContext
    client: ssl.SSLContext
    known_client: ssl.SSLContext
    ca: str


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("pki")
    now = datetime.datetime.now(datetime.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test ca")])

    def certificate(
        name: x509.Name, key: ec.EllipticCurvePrivateKey, extensions: list[tuple[x509.ExtensionType, bool]]
    ) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    (folder / "ca.pem").write_bytes(certificate(ca_name, ca_key, [(x509.BasicConstraints(True, None), True)]))

    def context(role: str, protocol: int, uri: str | None) -> ssl.SSLContext:
        made = ssl.SSLContext(protocol)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.load_verify_locations(folder / "ca.pem")
        if uri is None:
            return made
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName(
            [
                x509.DNSName("door.test"),
                x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                x509.UniformResourceIdentifier(uri),
            ]
        )
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, role)])
        pem = folder / f"{role}.pem"
        pem.write_bytes(
            certificate(subject, key, [(names, False)])
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        made.load_cert_chain(pem)
        return made

    mutual = context("mutual", ssl.PROTOCOL_TLS_SERVER, "mesh://vn-1/replica/r1")
    mutual.verify_mode = ssl.CERT_REQUIRED
    return Tls(
        door=context("door", ssl.PROTOCOL_TLS_SERVER, "mesh://vn-1/gateway/g1"),
        mutual=mutual,
        client=context("none", ssl.PROTOCOL_TLS_CLIENT, None),
        known_client=context("client", ssl.PROTOCOL_TLS_CLIENT, "mesh://vn-1/gateway/g2"),
        ca=str(folder / "ca.pem"),
    )


def fault(error: MeshError, request: Request | None) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Renders an error as its bare code."""
    return error.row.http, [(b"content-type", b"text/plain")], error.code.encode()


class Raw:
    """A client of raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        return await self.reader.read()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """One answer with a length, or without a body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(lines[0].split()[1]), headers, body

    async def gone(self) -> bool:
        """Whether the server ends the connection without a further byte."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


@dataclass
class Door:
    """A server under test and what reached its handler."""

    server: Server
    client_tls: ssl.SSLContext | None
    seen: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Raw]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.server.port,
            ssl=self.client_tls,
            server_hostname="door.test" if self.client_tls else None,
            limit=2**20,
        )
        try:
            yield Raw(reader, writer)
        finally:
            writer.transport.abort()

    def hurry(self, **limits: float) -> None:
        """Gives the open connections other limits than those that their handshakes had."""
        for connection in self.server._open:
            connection._limits = replace(connection._limits, **limits)  # pyright: ignore[reportArgumentType]


async def echo(request: Request) -> None:
    """Answers with what came."""
    body = await request.body(16 * 2**20)
    await request.respond(
        200, [(b"x-path", request.path.encode()), (b"x-method", request.method.encode())], bytes(body)
    )


@pytest.fixture(params=["clear", "tls"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def clear_door():
    """Opens a server in clear."""
    return lambda handler=echo, **limits: _door(handler, None, None, limits)


@pytest.fixture
def door(scheme: str, tls: Tls):
    """Opens a server, once in clear and once under TLS."""
    server, client = (tls.door, tls.client) if scheme == "tls" else (None, None)
    return lambda handler=echo, **limits: _door(handler, server, client, limits)


@asynccontextmanager
async def _door(
    handler: Handler, server_tls: ssl.SSLContext | None, client_tls: ssl.SSLContext | None, limits: dict[str, float]
) -> AsyncGenerator[Door]:
    seen: list[str] = []

    async def noted(request: Request) -> None:
        seen.append(f"{request.method} {request.path}")
        await handler(request)

    async with listen(
        noted,
        "127.0.0.1",
        0,
        tls=server_tls,
        fault=fault,
        limits=Limits(**limits),  # pyright: ignore[reportArgumentType]
    ) as server:
        yield Door(server, client_tls, seen)
