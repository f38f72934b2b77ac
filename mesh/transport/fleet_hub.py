"""Which replicas this region has: each holds a stream open, and the stream is its membership.

A replica that ends its stream, or says nothing for 5 s, is gone. Knows nothing of what the replicas are used for.
"""

from __future__ import annotations

import asyncio
import re

import grpc

from mesh.errors import Code, MeshError
from mesh.ports import Clock
from mesh.routing.fleet import Replica
from mesh.tls import identity_of_grpc
from mesh.transport.grpc_server import Context, Failed, service, stream
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


class FleetHub:
    """The replicas that are joined now.

    Attributes:
        on_change: Set whenever the replicas changed; whoever waits for it clears it. One waiter only.
    """

    def __init__(self, *, here: RegionId, clock: Clock) -> None:
        self.on_change = asyncio.Event()
        self._here = here
        self._clock = clock
        # By replica id: its last report, and the stream that it came by.
        self._joined: dict[str, tuple[fleet_pb2.ReplicaReport, Context]] = {}
        self._rows: dict[str, tuple[Replica, ...]] = {}
        self._replicas: tuple[Replica, ...] = ()

    def replicas(self) -> tuple[Replica, ...]:
        """One row for each process and model. The same tuple until something changes."""
        return self._replicas

    def reports(self) -> tuple[fleet_pb2.ReplicaReport, ...]:
        """The last report of each replica process, by its id."""
        return tuple(self._joined[key][0] for key in sorted(self._joined))

    def handlers(self, failed: Failed) -> grpc.GenericRpcHandler:
        """The `Fleet` service, for replicas of this region."""
        return service(FLEET, {"Join": stream(self._join, fleet_pb2.ReplicaReport.FromString, failed)})

    async def _join(self, context: Context) -> None:
        identity = identity_of_grpc(context.auth_context())
        if identity is None or identity.role is not Role.REPLICA or identity.region != self._here:
            raise MeshError(Code.INVALID_API_KEY)
        key: str | None = None
        try:
            while (report := await self._next(context)) is not None:
                rows = _rows_of(report)
                if key is None and len(self._joined) >= _REPLICAS and report.replica not in self._joined:
                    raise MeshError(Code.NO_CAPACITY)
                if key not in (None, report.replica):
                    raise MeshError(Code.INVALID_PARAMETER, param="replica")
                if key is not None and self._stream_of(key) is not context:
                    # The same process joined again, by a newer stream: this one is what it left behind.
                    return
                key = report.replica
                self._joined[key] = (report, context)
                if self._rows.get(key) != rows:
                    self._rows[key] = rows
                    self._publish()
                await context.write(fleet_pb2.ReplicaSeen(number=report.number))
        finally:
            if key is not None and self._stream_of(key) is context:
                del self._joined[key], self._rows[key]
                self._publish()

    def _stream_of(self, key: str) -> Context | None:
        joined = self._joined.get(key)
        return None if joined is None else joined[1]

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
