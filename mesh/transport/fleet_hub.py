"""Which replicas this region has: each holds a stream open, and the stream is its membership.

A replica that ends its stream, or says nothing for 5 s, is gone: it is sent nothing more. What it works on may go on
until the last deadline that it was given; `handouts` keeps those. Knows nothing of what the replicas are used for.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

import grpc

from mesh.errors import Code, MeshError
from mesh.ports import Clock
from mesh.routing.fleet import Replica
from mesh.tls import identity_of_grpc
from mesh.transport.grpc_server import Context, Failed, service
from mesh.transport.grpc_server import stream as stream_handler
from mesh.transport.handouts import HandOuts, Said
from mesh.types import ModelId, RegionId, ReplicaId, ReplicaState, Role
from mesh.v1 import fleet_pb2

FLEET = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].full_name
SILENCE_S = 5.0
"""A replica reports once a second; one that is silent for as long as this is gone."""
_REPLICAS = 4096
_MODELS = 256
_ID = re.compile(r"[0-9a-f]{16}")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([1-9][0-9]{0,4})")
_STATE = {
    fleet_pb2.REPLICA_STATE_STARTING: ReplicaState.STARTING,
    fleet_pb2.REPLICA_STATE_READY: ReplicaState.READY,
    fleet_pb2.REPLICA_STATE_DRAINING: ReplicaState.DRAINING,
    fleet_pb2.REPLICA_STATE_DEAD: ReplicaState.DEAD,
}


@dataclass(slots=True, eq=False)
class _Stream:
    """One replica's stream. `wake` is set when there is something to say on it."""

    replica: ReplicaId
    report: fleet_pb2.ReplicaReport
    wake: asyncio.Event


class FleetHub(HandOuts):
    """The replicas that are joined now, and what each was told of how long it may work.

    Attributes:
        alone: Whether no other process of this gateway lives: then the replicas end what an earlier one sent them.
        on_change: Set whenever the replicas changed; whoever waits for it clears it. One waiter only.
    """

    def __init__(self, *, here: RegionId, clock: Clock, process: int = 0, alone: bool = False) -> None:
        super().__init__(clock)
        self.alone = alone
        self._process = process
        self.on_change = asyncio.Event()
        self.on_ask = self._wake_all
        self._here = here
        self._clock = clock
        self._streams: dict[ReplicaId, _Stream] = {}
        self._rows: dict[ReplicaId, tuple[Replica, ...]] = {}
        self._replicas: tuple[Replica, ...] = ()

    def replicas(self) -> tuple[Replica, ...]:
        """One row for each process and model. The same tuple until something changes."""
        return self._replicas

    def reports(self) -> tuple[fleet_pb2.ReplicaReport, ...]:
        """The last report of each replica process, by its id."""
        return tuple(self._streams[key].report for key in sorted(self._streams))

    def handlers(self, failed: Failed) -> grpc.GenericRpcHandler:
        """The `Fleet` service, for replicas of this region."""
        return service(FLEET, {"Join": stream_handler(self._join, fleet_pb2.ReplicaReport.FromString, failed)})

    async def _join(self, context: Context) -> None:
        identity = identity_of_grpc(context.auth_context())
        if identity is None or identity.role is not Role.REPLICA or identity.region != self._here:
            raise MeshError(Code.INVALID_API_KEY)
        report = await self._next(context)
        if report is None:
            return
        rows = _rows_of(report)
        key = ReplicaId(report.replica)
        if len(self._streams) >= _REPLICAS and key not in self._streams:
            raise MeshError(Code.NO_CAPACITY)
        stream = _Stream(key, report, asyncio.Event())
        try:
            self._take(stream, report, rows)
            # The reader hands its fault back: raised inside, the group would wrap it.
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._write(context, stream), name="fleet-write")
                fault = await self._read(context, stream)
                writing.cancel()
        finally:
            if self._streams.get(key) is stream:
                del self._streams[key]
                self._rows.pop(key, None)
                self.gone(key)
                self._publish()
        if fault is not None:
            raise fault

    async def _read(self, context: Context, stream: _Stream) -> MeshError | None:
        """Takes reports until the stream's end, or until a newer stream of the same process has taken its place."""
        try:
            while (report := await self._next(context)) is not None:
                rows = _rows_of(report)
                if report.replica != stream.replica:
                    return MeshError(Code.INVALID_PARAMETER, param="replica")
                if self._streams.get(stream.replica) is not stream:
                    return None
                self._take(stream, report, rows)
        except MeshError as fault:
            return fault
        return None

    def _take(self, stream: _Stream, report: fleet_pb2.ReplicaReport, rows: tuple[Replica, ...]) -> None:
        key = stream.replica
        self.pinged(key, report.number, report.heard)
        stream.report = report
        self._streams[key] = stream
        if self._rows.get(key) != rows:
            self._rows[key] = rows
            self._publish()
        stream.wake.set()

    async def _write(self, context: Context, stream: _Stream) -> None:
        """Says what is true now whenever there is something to say. A replica that does not read holds up only this."""
        while True:
            await stream.wake.wait()
            stream.wake.clear()
            if self._streams.get(stream.replica) is not stream:
                return
            seen = _seen(self.message(stream.replica))
            seen.process, seen.alone = self._process, self.alone
            await context.write(seen)

    def _wake_all(self) -> None:
        for stream in self._streams.values():
            stream.wake.set()

    async def _next(self, context: Context) -> fleet_pb2.ReplicaReport | None:
        try:
            async with self._clock.timeout(SILENCE_S):
                report = await context.read()
        except TimeoutError:
            raise MeshError(Code.REQUEST_TIMEOUT) from None
        return report if isinstance(report, fleet_pb2.ReplicaReport) else None

    def _publish(self) -> None:
        self._replicas = tuple(row for key in sorted(self._rows) for row in self._rows[key])
        self.on_change.set()


def _seen(said: Said) -> fleet_pb2.ReplicaSeen:
    return fleet_pb2.ReplicaSeen(
        number=said.seen,
        message=said.message,
        holds=[
            fleet_pb2.Hold(
                tenant=hold.tenant,
                ping=said.seen,
                left_ms=hold.left_ms,
                moves=hold.number.moves,
                shard_number=hold.number.number,
            )
            for hold in said.holds
        ],
        fences=[
            fleet_pb2.Fence(
                tenant=fence.tenant,
                moves=fence.below.moves,
                shard_number=fence.below.number,
                key_id=fence.key_id or "",
            )
            for fence in said.fences
        ],
    )


def _rows_of(report: fleet_pb2.ReplicaReport) -> tuple[Replica, ...]:
    """The rows of one report.

    Raises:
        MeshError: INVALID_PARAMETER.
    """
    if not _ID.fullmatch(report.replica):
        raise MeshError(Code.INVALID_PARAMETER, param="replica")
    address = _ADDRESS.fullmatch(report.address)
    if address is None or int(address[2]) > 65_535:
        raise MeshError(Code.INVALID_PARAMETER, param="address")
    if len(report.models) > _MODELS or len({model.model for model in report.models}) != len(report.models):
        raise MeshError(Code.INVALID_PARAMETER, param="models")
    rows: list[Replica] = []
    for index, model in enumerate(report.models):
        state = _STATE.get(model.state)
        if state is None or not model.model or not 0 <= model.kv_used <= 1:
            raise MeshError(Code.INVALID_PARAMETER, param=f"models[{index}]")
        rows.append(
            Replica(
                id=ReplicaId(report.replica),
                address=report.address,
                model=ModelId(model.model),
                state=state,
                running=model.running,
                queued=model.queued,
                slots=model.slots,
                queue_limit=model.queue_limit,
                kv_used=model.kv_used,
                pid=report.pid,
            )
        )
    return tuple(rows)
