"""Real connections over loopback: what gets in, what does not, and as whom."""

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from mesh.embedded.authority import make_pki
from mesh.errors import Code, MeshError
from mesh.tls import (
    check_tls13,
    client_context,
    door_context,
    grpc_channel_credentials,
    grpc_channel_options,
    grpc_door_channel_credentials,
    grpc_door_credentials,
    grpc_server_credentials,
    identity_of,
    identity_of_grpc,
    internal_name,
    prepare_process,
    read_mesh_secret,
    server_context,
)
from mesh.types import RegionId, Role

VN, SG = RegionId("vn-1"), RegionId("ap-southeast-1")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    make_pki(folder, {VN: ["127.0.0.1"], SG: ["127.0.0.1"]}, ["127.0.0.1"])
    return folder


@asynccontextmanager
async def echo_of_identity(context: ssl.SSLContext) -> AsyncGenerator[int]:
    """A server that says who called."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(1)
            writer.write(f"{identity_of(writer.get_extra_info('peercert'))}\n".encode())
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(port: int, context: ssl.SSLContext, name: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    try:
        writer.write(b"?")
        answer = await reader.readline()
        if not answer:
            raise ConnectionResetError
        return answer.decode().strip()
    finally:
        writer.transport.abort()


async def test_hop_knows_its_caller(pki: Path) -> None:
    async with echo_of_identity(server_context(pki, VN, Role.REPLICA)) as port:
        client = client_context(pki, VN, Role.GATEWAY)
        assert await ask(port, client, internal_name(Role.REPLICA, VN)) == "mesh://vn-1/gateway/g1"


async def test_client_verifies_role_and_region(pki: Path) -> None:
    async with echo_of_identity(server_context(pki, SG, Role.REPLICA)) as port:
        client = client_context(pki, VN, Role.GATEWAY)
        for wrong in (internal_name(Role.REPLICA, VN), internal_name(Role.GATEWAY, SG)):
            with pytest.raises(ssl.SSLCertVerificationError):
                await ask(port, client, wrong)


async def test_no_certificate_does_not_get_in(pki: Path) -> None:
    async with echo_of_identity(server_context(pki, VN, Role.REPLICA)) as port:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(pki / "mesh-ca.pem")
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await ask(port, client, internal_name(Role.REPLICA, VN))


async def test_a_certificate_of_the_doors_ca_does_not_get_in(pki: Path) -> None:
    async with echo_of_identity(server_context(pki, VN, Role.REPLICA)) as port:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(pki / "mesh-ca.pem")
        client.load_cert_chain(pki / VN / "door.pem", pki / VN / "door.key")
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await ask(port, client, internal_name(Role.REPLICA, VN))


async def test_door_is_verified_by_address(pki: Path) -> None:
    async with echo_of_identity(door_context(pki, VN)) as port:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.load_verify_locations(pki / "doors-ca.pem")
        assert await ask(port, client, "127.0.0.1") == "None"
        await check_tls13("127.0.0.1", port)


async def test_self_check_finds_tls12(pki: Path) -> None:
    context = door_context(pki, VN)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    async with echo_of_identity(context) as port:
        with pytest.raises(MeshError) as caught:
            await check_tls13("127.0.0.1", port)
    assert caught.value.code is Code.START_FAILED
    assert "accepts TLS 1.2" in caught.value.message


async def test_self_check_finds_a_port_without_tls() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    async with server:
        with pytest.raises(MeshError, match="start_failed"):
            await check_tls13("127.0.0.1", server.sockets[0].getsockname()[1])


class Whoami(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def answer(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
            return str(identity_of_grpc(context.auth_context())).encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def grpc_server(credentials: grpc.ServerCredentials) -> AsyncGenerator[int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Whoami(),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(port: int, credentials: grpc.ChannelCredentials, options: list[tuple[str, str | int]]) -> str:
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        return (await channel.unary_unary("/test/Whoami")(b"", timeout=20)).decode()


async def test_grpc(pki: Path) -> None:
    async with grpc_server(grpc_server_credentials(pki, VN, Role.GATEWAY)) as port:
        await check_tls13("127.0.0.1", port)
        options = grpc_channel_options(Role.GATEWAY, VN)
        assert await call(port, grpc_channel_credentials(pki, None, Role.OPERATOR), options) == (
            "mesh://-/operator/operator"
        )
        assert await call(port, grpc_channel_credentials(pki, SG, Role.GATEWAY), options) == (
            "mesh://ap-southeast-1/gateway/g1"
        )
        for credentials, named in (
            (grpc_door_channel_credentials(pki), options),
            (grpc_channel_credentials(pki, SG, Role.GATEWAY), grpc_channel_options(Role.ADMIN, VN)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(port, credentials, named)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_grpc_door(pki: Path) -> None:
    async with grpc_server(grpc_door_credentials(pki, VN)) as port:
        await check_tls13("127.0.0.1", port)
        assert await call(port, grpc_door_channel_credentials(pki), []) == "None"


@pytest.mark.parametrize(
    ("imports", "refused"), [("", False), ("import mesh.tls", False), ("import grpc", True), ("import grpc.aio", True)]
)
def test_a_process_that_imported_grpc_too_early_is_refused(imports: str, refused: bool) -> None:
    code = f"{imports}\nimport os\nfrom mesh.tls import prepare_process\nprepare_process(os.environ)"
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=False)
    assert ("invalid_settings" in done.stderr) is refused
    assert done.returncode == int(refused)


def test_a_program_that_imported_grpc_too_early_starts_again(tmp_path: Path) -> None:
    program = tmp_path / "mesh"
    program.write_text(
        "import grpc, os, sys\nfrom mesh.tls import prepare_process\nprepare_process(os.environ)\n"
        "print(sys.argv[1:], os.environ['GRPC_SSL_CIPHER_SUITES'])"
    )
    done = subprocess.run(
        [sys.executable, str(program), "a", "b c"], env={}, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "['a', 'b c'] ECDHE-PSK-CHACHA20-POLY1305", done.stderr


def test_key_log_is_refused() -> None:
    with pytest.raises(MeshError, match="SSLKEYLOGFILE") as caught:
        prepare_process({"SSLKEYLOGFILE": "/tmp/keys"})
    assert caught.value.code is Code.INVALID_SETTINGS


async def test_key_log_is_not_written(pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    async with echo_of_identity(server_context(pki, VN, Role.REPLICA)) as port:
        await ask(port, client_context(pki, VN, Role.GATEWAY), internal_name(Role.REPLICA, VN))
    assert not log.exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    for made in (
        lambda: door_context(tmp_path, VN),
        lambda: server_context(tmp_path, VN, Role.REPLICA),
        lambda: grpc_door_credentials(tmp_path, VN),
        lambda: read_mesh_secret(tmp_path),
    ):
        with pytest.raises(MeshError) as caught:
            made()
        assert caught.value.code is Code.INVALID_SETTINGS
        assert str(tmp_path) in caught.value.message


def test_secret(pki: Path, tmp_path: Path) -> None:
    assert len(read_mesh_secret(pki)) == 32
    for bad in ("", "zz", "00" * 15):
        (tmp_path / "mesh-secret").write_text(bad)
        with pytest.raises(MeshError, match="mesh-secret"):
            read_mesh_secret(tmp_path)
