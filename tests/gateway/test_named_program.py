"""A whole gateway of a region with a domain and a front, on a real etcd: each door by the tenant's name, and not by others'."""

from __future__ import annotations

import asyncio
import io
import os
import ssl
from pathlib import Path

import grpc
import grpc.aio
import pytest
from etcd_lab import running_etcd
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ports import HOST, free_port

from mesh import tls
from mesh.embedded.authority import make_pki
from mesh.gateway.program import GatewayProgram
from mesh.runtime import SystemClock, SystemEntropy, TaskGroupTasks
from mesh.settings import Address, Front, Gateway, Region, Settings
from mesh.telemetry import Log, Telemetry
from mesh.types import Endpoint, GatewayId, Jurisdiction, RegionId

VN = RegionId("vn-1")
ZONE = "vn-1.mesh.test"
MINE, FOREIGN = f"t-aaaaaaaaaaaaaaaa.{ZONE}", "t-aaaaaaaaaaaaaaaa.sg-1.mesh.test"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
HEADER = SIGNATURE + b"\x21\x11" + (12).to_bytes(2) + bytes([192, 0, 2, 7, 192, 0, 2, 8, 0, 1, 0, 2])


def region() -> Region:
    def address() -> Address:
        return Address(HOST, free_port())

    gateway = Gateway(
        id=GatewayId("g1"), http=address(), grpc=address(), internal=address(), peer=address(), operator=address(),
        proxied=address(),
    )  # fmt: skip
    jurisdiction = Jurisdiction("VN")
    return Region(
        id=VN,
        jurisdiction=jurisdiction,
        name="Hanoi",
        accelerator="cpu",
        endpoint=Endpoint(region=VN, jurisdiction=jurisdiction, http=f"https://{ZONE}", grpc=f"{ZONE}:8444"),
        admin=address(),
        gateways=(gateway,),
        deployments=(),
        front=Front(http=address(), grpc=address(), sources=("127.0.0.3",), connections=9),
        domain="mesh.test",
    )


async def asked(
    context: ssl.SSLContext, address: Address, name: str, host: str, *, header: bytes = b"", from_: str = HOST
) -> int:
    """The status of `/livez` by a name."""
    reader, writer = await asyncio.open_connection(address.host, address.port, local_addr=(from_, 0))
    try:
        writer.write(header)
        await writer.start_tls(context, server_hostname=name)
        writer.write(f"GET /livez HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        return int((await reader.read()).split()[1])
    finally:
        writer.transport.abort()


async def test_a_gateway_with_names_and_a_front(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab, asyncio.TaskGroup() as tasks:
        pki, here = lab.etcd.pki, region()
        make_pki(pki, {VN: [HOST]}, [HOST], zones={VN: ZONE})
        settings = Settings(
            regions={VN: here},
            models={},
            etcd=(lab.etcd.endpoint,),
            pki=pki,
            key_hash="sha256",
            ledger=f"sqlite:///{tmp_path}/ledger-{{region}}.db",
            models_dir=tmp_path,
        )
        telemetry = Telemetry("gateway", VN, models={}, otlp=None, otlp_credentials=None)
        program = GatewayProgram(
            settings=settings,
            region=VN,
            gateway=here.gateways[0],
            pid=os.getpid(),
            clock=SystemClock(),
            tasks=TaskGroupTasks,
            entropy=SystemEntropy(),
            log=Log("gateway", VN, io.StringIO()),
            telemetry=telemetry,
        )
        stop = asyncio.Event()
        running = tasks.create_task(program.run(stop))
        while not program._doors_open:
            assert not running.done()
            await asyncio.sleep(0.05)
        gateway = here.gateways[0]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(pki / "doors-ca.pem")
        assert await asked(context, gateway.http, MINE, MINE) == 200
        assert await asked(context, gateway.http, MINE, ZONE) == 421
        assert gateway.proxied is not None
        assert await asked(context, gateway.proxied, MINE, MINE, header=HEADER, from_="127.0.0.3") == 200
        with pytest.raises((ConnectionError, ssl.SSLError, IndexError)):
            await asked(context, gateway.proxied, MINE, MINE, header=HEADER)
        for name, served in ((MINE, True), (FOREIGN, False)):
            options = [("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
            credentials = tls.grpc_door_channel_credentials(pki)
            async with grpc.aio.secure_channel(str(gateway.grpc), credentials, options=options) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                if served:
                    assert (await check(health_pb2.HealthCheckRequest(), timeout=60)).status
                else:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await check(health_pb2.HealthCheckRequest(), timeout=60)
                    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        stop.set()
        await running
        await asyncio.to_thread(telemetry.close)
