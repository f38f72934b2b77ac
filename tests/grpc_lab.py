"""A gRPC door on loopback over TLS, with a story and hops that a test writes itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from mesh.content.frames import Frame, FrameKind
from mesh.errors import Code, MeshError
from mesh.policy.hostnames import DoorNames, check_label
from mesh.routing.explain import Explanation, Outcome, Reason, Verdict, Why
from mesh.settings import Address
from mesh.tls import grpc_door_channel_credentials, grpc_door_credentials
from mesh.transport.grpc_door import AskedName, GrpcDoor
from mesh.transport.grpc_exchange import GrpcExchange
from mesh.transport.grpc_server import GrpcServer
from mesh.types import (
    AnswerHead,
    Endpoint,
    Here,
    Jurisdiction,
    ModelId,
    ModelKind,
    ModelView,
    RegionId,
    RequestId,
    Resolution,
    Revision,
    TenantId,
    Usage,
)

VN, SG = RegionId("vn-1"), RegionId("ap-southeast-1")
HERE = Here(region=VN, jurisdiction=Jurisdiction("VN"))
LIMIT_BYTES = 4 * 1024 * 1024
GOOD_KEY = "good"
TENANT = TenantId("t_aaaaaaaaaaaaaaaa")
KEY = (("authorization", f"Bearer {GOOD_KEY}"),)
SINGAPORE = Endpoint(region=SG, jurisdiction=Jurisdiction("SG"), http="https://127.0.0.2:8443", grpc="127.0.0.2:8444")
HEAD = AnswerHead(request_id=RequestId("req-1"), region=SG, jurisdiction=Jurisdiction("SG"), revision=Revision(7))
NO_NAMES = DoorNames(plain=frozenset())
Serve = Callable[[GrpcExchange], Awaitable[None]]


def data(payload: bytes, tokens: int = 1) -> Frame:
    return Frame(FrameKind.DATA, Usage(3, tokens), payload)


def end(tokens: int = 1) -> Frame:
    return Frame(FrameKind.END, Usage(3, tokens), b"")


def fault(payload: bytes) -> Frame:
    return Frame(FrameKind.ERROR, Usage(3, 1), payload)


def unchecked() -> None:
    """Lets every piece pass."""


class FakeHop:
    """Hands out batches of frames; a `MeshError` among them is raised, an event is waited for."""

    def __init__(self, *batches: list[Frame] | MeshError | asyncio.Event) -> None:
        self._batches = list(batches)
        self.usage = Usage()
        self.first_byte_s = None

    async def read(self) -> list[Frame]:
        while self._batches:
            batch = self._batches.pop(0)
            if isinstance(batch, MeshError):
                raise batch
            if isinstance(batch, asyncio.Event):
                await batch.wait()
                continue
            self.usage = batch[-1].usage
            return batch
        return []

    def close(self) -> None:
        self._batches.clear()


class FakeQueries:
    """Knows one key."""

    async def authenticate(self, credential: str | None, label: str | None) -> None:
        check_label(label, TENANT)
        if credential != GOOD_KEY:
            raise MeshError(Code.INVALID_API_KEY)

    async def fresh(self, credential, label, at_least: Revision) -> None:
        await self.authenticate(credential, label)
        if at_least > 7:
            raise MeshError(Code.POLICY_STALE)

    async def models(self, credential, label, request_id):
        await self.authenticate(credential, label)
        return HEAD, (ModelView(id=ModelId("m"), kind=ModelKind.EMBEDDING, context=256, regions=(VN, SG)),)

    async def resolve(self, credential, label, request_id):
        await self.authenticate(credential, label)
        return HEAD, Resolution(here=VN, served_here=False, allowed=(SINGAPORE,), revision=Revision(7))

    async def explain(self, credential, label, request_id, model):
        await self.authenticate(credential, label)
        return HEAD, self.explain_for(TenantId("t_1"), ModelId(model))

    def explain_for(self, tenant: TenantId, model: ModelId) -> Explanation:
        reason = Reason(region=SG, verdict=Verdict.TAKEN, code=Why.LEAST_WAIT, text="Because.")
        return Explanation(
            tenant=tenant, model=model, at=VN, outcome=Outcome.FORWARD, region=SG, code=None, reasons=(reason,)
        )


@dataclass
class Opened:
    """An open door, a client's channel to it, and what nobody foresaw."""

    door: GrpcDoor
    server: GrpcServer
    channel: grpc.aio.Channel
    failures: list[BaseException] = field(default_factory=list)


@asynccontextmanager
async def opened(
    pki: Path,
    serve: Serve,
    *,
    limit_bytes: int = LIMIT_BYTES,
    names: DoorNames = NO_NAMES,
    asked_name: AskedName = lambda _: None,
) -> AsyncGenerator[Opened]:
    failures: list[BaseException] = []
    door = GrpcDoor(
        serve=serve,
        queries=FakeQueries(),
        here=HERE,
        names=names,
        asked_name=asked_name,
        next_request_id=lambda: RequestId("req-1"),
        max_body_bytes=limit_bytes,
        failed=failures.append,
    )
    async with (
        door.listen(Address("127.0.0.1", 0), grpc_door_credentials(pki, VN)) as server,
        connected(pki, server.port) as channel,
    ):
        yield Opened(door, server, channel, failures)


def connected(pki: Path, port: int) -> grpc.aio.Channel:
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc_door_channel_credentials(pki), options=options)


@dataclass
class Counted:
    """A TCP proxy's port, and the bytes that went through it towards the server."""

    port: int = 0
    sent_bytes: int = 0


@asynccontextmanager
async def counting_proxy(port: int) -> AsyncGenerator[Counted]:
    """Forwards to a local port. Reads from the client only what the server takes."""
    counted = Counted()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        try:
            while chunk := await reader.read(16_384):
                if count:
                    counted.sent_bytes += len(chunk)
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(carry(reader, to_writer, count=True))
            tasks.create_task(carry(to_reader, writer, count=False))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        counted.port = server.sockets[0].getsockname()[1]
        yield counted


async def rest_of(call) -> list:
    """What still comes, by the API that `read` belongs to."""
    found = []
    while (message := await call.read()) is not grpc.aio.EOF:
        found.append(message)
    return found


def info_of(error: grpc.aio.AioRpcError):
    """The status's `ErrorInfo` and `RetryInfo`, or None for either."""
    from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
    from google.rpc.status_pb2 import Status

    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    found = []
    for kind in (ErrorInfo, RetryInfo):
        one = kind()
        found.append(one if any(detail.Unpack(one) for detail in status.details) else None)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    return found
