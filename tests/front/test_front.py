"""The front as it runs: a real HAProxy before real TLS doors."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_lab import HEAD, SG, TENANT, VN, FakeHop, data, end
from grpc_lab import opened as opened_grpc
from ports import free_port

from mesh.embedded.authority import make_pki
from mesh.embedded.front import HELLO_S, haproxy_binary, render_front
from mesh.http1 import Limits, Request, listen
from mesh.policy.hostnames import label_of
from mesh.settings import Address, Catalogue, Front, Gateway, Region
from mesh.tls import door_context, grpc_door_channel_credentials
from mesh.types import Endpoint, GatewayId, Jurisdiction

HOST, FRONT_HOST = "127.0.0.1", "127.0.0.1"
DOMAIN = "mesh.test"
ZONE = f"{VN}.{DOMAIN}"
MINE = f"{label_of(TENANT)}.{ZONE}"
THEIRS = f"{label_of(TENANT)}.{SG}.{DOMAIN}"
MOST = 6
ASK = f"GET / HTTP/1.1\r\nhost: {MINE}\r\nconnection: close\r\n\r\n".encode()
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
SPOOF = SIGNATURE + b"\x21\x11" + (12).to_bytes(2) + bytes([192, 0, 2, 7, 192, 0, 2, 8]) + b"\x00\x01\x00\x02"


@dataclass
class Lab:
    """A front that runs, and what reached the doors behind it."""

    pki: Path
    front: Front
    proxied: int
    process: subprocess.Popen[bytes]
    config: str
    seen: list[tuple[str, str | None]] = field(default_factory=list)

    def context(self, *, named: bool = True) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.pki / "doors-ca.pem")
        context.check_hostname = named
        return context

    async def ask(self, server_name: str | None, *, from_: str = "127.0.0.1") -> bytes:
        """What the HTTP door answers through the front; empty where the connection was closed instead."""
        try:
            reader, writer = await asyncio.open_connection(
                HOST,
                self.front.http.port,
                local_addr=(from_, 0),
                ssl=self.context(named=server_name is not None),
                server_hostname=server_name or HOST,
            )
        except (ConnectionError, ssl.SSLError):
            return b""
        try:
            writer.write(ASK)
            return (await reader.read()).rpartition(b"\r\n\r\n")[2]
        except (ConnectionError, ssl.SSLError):
            return b""
        finally:
            writer.transport.abort()

    async def raw(self, *pieces: bytes) -> bytes:
        """What comes back for bytes that are written piece by piece."""
        reader, writer = await asyncio.open_connection(HOST, self.front.http.port)
        try:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)  # so that pieces are segments of their own, as far as that can be had
            return await reader.read(5)
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()

    def hello(self, name: str, protocols: list[str] | None = None) -> bytes:
        """A client's first message, in one record."""
        context = self.context()
        if protocols:
            context.set_alpn_protocols(protocols)
        outgoing = ssl.MemoryBIO()
        client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        return outgoing.read()


def region(front: Front, proxied: int, grpc_port: int) -> Region:
    gateway = Gateway(
        id=GatewayId("g1"),
        http=Address(HOST, 1),
        grpc=Address(HOST, grpc_port),
        internal=Address(HOST, 2),
        peer=Address(HOST, 3),
        operator=Address(HOST, 4),
        proxied=Address(HOST, proxied),
    )
    jurisdiction = Jurisdiction("VN")
    return Region(
        id=VN,
        jurisdiction=jurisdiction,
        name="Hanoi",
        accelerator="cpu",
        endpoint=Endpoint(region=VN, jurisdiction=jurisdiction, http=f"https://{ZONE}", grpc=f"{ZONE}:8444"),
        admin=Address(HOST, 5),
        gateways=(gateway,),
        deployments=(),
        front=front,
        domain=DOMAIN,
    )


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front-pki")
    make_pki(folder, {VN: [HOST]}, [HOST], zones={VN: ZONE})
    return folder


@asynccontextmanager
async def running(pki: Path, folder: Path, hello_s: int = HELLO_S) -> AsyncGenerator[Lab]:
    """`hello_s` is how long a client may take for its first message."""
    binary = haproxy_binary()
    assert binary is not None
    seen: list[tuple[str, str | None]] = []

    async def tell(request: Request) -> None:
        seen.append((request.peer.address, request.peer.asked_name))
        await request.respond(200, [], request.peer.address.encode())

    async def answer(exchange) -> None:
        await exchange.relay(FakeHop([data(b"\x0a\x01x"), end()]), HEAD)

    fronts, limits = frozenset({FRONT_HOST}), Limits(head_timeout_s=250)
    context = door_context(pki, VN)
    async with (
        listen(tell, HOST, 0, tls=context, fault=lambda *_: (500, [], b""), limits=limits, fronts=fronts) as door,
        opened_grpc(pki, answer) as grpc_door,
    ):
        front = Front(
            http=Address(HOST, free_port()), grpc=Address(HOST, free_port()), sources=(FRONT_HOST,), connections=MOST
        )
        here = region(front, door.port, grpc_door.server.port)
        config = render_front(Catalogue(regions={VN: here}, models={}), here)
        assert f"inspect-delay {HELLO_S}s" in config
        config = config.replace(f"inspect-delay {HELLO_S}s", f"inspect-delay {hello_s}s")
        (folder / "front.cfg").write_text(config)
        process = subprocess.Popen([str(binary), "-db", "-f", str(folder / "front.cfg")], stderr=subprocess.DEVNULL)
        try:
            for port in (front.http.port, front.grpc.port):
                await listens(port, process)
            yield Lab(pki, front, door.port, process, config, seen)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)


async def listens(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.transport.abort()
            return
    raise AssertionError("the front ended")


async def test_what_asks_for_this_region_arrives_with_the_clients_address(pki: Path, tmp_path: Path) -> None:
    async with running(pki, tmp_path) as lab:
        for name in (MINE, f"acme.{ZONE}", ZONE, "door.vn-1.mesh", None):
            assert await lab.ask(name, from_="127.0.0.5") == b"127.0.0.5"
        assert lab.seen[-5:] == [("127.0.0.5", name) for name in (MINE, f"acme.{ZONE}", ZONE, "door.vn-1.mesh", None)]
        assert await lab.ask(MINE.upper(), from_="127.0.0.5") == b"127.0.0.5"


@pytest.mark.parametrize("name", [THEIRS, f"{SG}.{DOMAIN}", DOMAIN, f"a.{MINE}", f"x{ZONE}", f"{ZONE}.x", "localhost"])
async def test_every_other_name_is_closed(pki: Path, tmp_path: Path, name: str) -> None:
    async with running(pki, tmp_path) as lab:
        before = len(lab.seen)
        assert await lab.raw(lab.hello(name)) == b""
        assert await lab.ask(name) == b""
        assert len(lab.seen) == before


async def test_what_is_no_tls_is_closed(pki: Path, tmp_path: Path) -> None:
    async with running(pki, tmp_path) as lab:
        before = len(lab.seen)
        for pieces in (
            [ASK],
            [SPOOF, lab.hello(MINE)],
            [SPOOF + lab.hello(MINE)],
            [b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00"],
        ):
            assert await lab.raw(*pieces) == b""
        assert len(lab.seen) == before


async def test_a_first_message_may_come_in_pieces_and_be_long(pki: Path, tmp_path: Path) -> None:
    async with running(pki, tmp_path, hello_s=60) as lab:
        answer = b"\x16\x03\x03"  # a handshake record of the server
        hello = lab.hello(MINE)
        assert (await lab.raw(*(hello[at : at + 1] for at in range(len(hello))))).startswith(answer)
        long = lab.hello(MINE, [f"protocol-{number:04}" for number in range(1000)])
        assert len(long) > 14_000
        assert (await lab.raw(*(long[at : at + 1400] for at in range(0, len(long), 1400)))).startswith(
            (answer, b"\x15")
        )


async def test_a_first_message_that_is_not_whole_in_one_record_is_closed(pki: Path, tmp_path: Path) -> None:
    """It would be read in one way here and in another behind: the name must be where it was looked for."""
    async with running(pki, tmp_path) as lab:
        hello = lab.hello(MINE)
        body = hello[5:]
        for cut in (4, 60, len(body) - 1):
            first, second = body[:cut], body[cut:]
            records = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in (first, second))
            assert await lab.raw(records) == b""
        # One record that holds more than the message.
        more = hello[:3] + (len(body) + 4).to_bytes(2) + body + bytes(4)
        assert await lab.raw(more) == b""


async def test_a_client_that_does_not_say_its_name_in_time_is_closed(pki: Path, tmp_path: Path) -> None:
    async with running(pki, tmp_path) as lab:
        hello = lab.hello(MINE)

        async def stall(start: bytes) -> bytes:
            return await lab.raw(*([start] if start else []))

        assert await asyncio.gather(stall(b""), stall(hello[:9]), stall(hello[:-1])) == [b"", b"", b""]


async def test_one_address_has_so_many_connections_and_no_more(pki: Path, tmp_path: Path) -> None:
    busy, calm = "127.0.0.6", "127.0.0.7"
    async with running(pki, tmp_path) as lab, AsyncExitStack() as stack:

        async def hold() -> asyncio.StreamWriter:
            _, writer = await asyncio.open_connection(
                HOST, lab.front.http.port, local_addr=(busy, 0), ssl=lab.context(), server_hostname=MINE
            )
            stack.callback(writer.transport.abort)
            return writer

        held = [await hold() for _ in range(MOST)]
        assert await lab.ask(MINE, from_=busy) == b""
        assert await lab.ask(MINE, from_=calm) == calm.encode()
        # The other door counts too.
        with suppress(ConnectionError):
            reader, writer = await asyncio.open_connection(HOST, lab.front.grpc.port, local_addr=(busy, 0))
            stack.callback(writer.transport.abort)
            writer.write(lab.hello(MINE))
            assert await reader.read(1) == b""
        held[0].transport.abort()
        while await lab.ask(MINE, from_=busy) != busy.encode():
            await asyncio.sleep(0.05)


async def test_an_address_is_believed_from_the_front_only(pki: Path, tmp_path: Path) -> None:
    """Past the front, with a header of the PROXY protocol that the client wrote itself."""
    async with running(pki, tmp_path) as lab:
        reader, writer = await asyncio.open_connection(HOST, lab.proxied, local_addr=("127.0.0.8", 0))
        with suppress(ConnectionError):
            writer.write(SPOOF + lab.hello(MINE))
            assert await reader.read() == b""
        writer.transport.abort()
        assert lab.seen == []


async def test_grpc_passes_under_its_own_name(pki: Path, tmp_path: Path) -> None:
    async with running(pki, tmp_path) as lab:

        def channel(name: str) -> grpc.aio.Channel:
            return grpc.aio.secure_channel(
                str(lab.front.grpc),
                grpc_door_channel_credentials(lab.pki),
                options=[
                    ("grpc.ssl_target_name_override", name),
                    ("grpc.enable_http_proxy", 0),
                    ("grpc.use_local_subchannel_pool", 1),
                ],
            )

        key = (("authorization", "Bearer good"),)
        async with channel(MINE) as own:
            assert (
                await own.unary_unary("/mesh.v1.Inference/Chat")(b"\x0a\x01m", metadata=key, timeout=60) == b"\x0a\x01x"
            )
        async with channel(THEIRS) as foreign:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await foreign.unary_unary("/mesh.v1.Inference/Chat")(b"\x0a\x01m", metadata=key, timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_it_holds_no_key(pki: Path, tmp_path: Path) -> None:
    async with running(pki, tmp_path) as lab:
        words = {word for line in lab.config.splitlines() if not line.lstrip().startswith("#") for word in line.split()}
        assert not words & {"ssl", "crt", "ca-file", "key", "crt-list"}
        for path in Path(f"/proc/{lab.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                assert lab.pki not in path.readlink().parents
