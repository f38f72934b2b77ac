"""Tells every gateway of the region what this process serves: a `Fleet` stream to each is its membership.

Each stream looks after itself: it reports at once, at every change, and once a second; it starts anew when it breaks
and when its gateway falls silent. Nothing here waits for a gateway to be there. Each report is a ping as well, and what
the gateway answers says how long this process may work on: `leases` keeps that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from mesh.ports import Clock
from mesh.serving.leases import Fence, Hold, Leases, Source
from mesh.settings import Address
from mesh.telemetry import Log
from mesh.tls import grpc_channel_credentials, grpc_channel_options
from mesh.types import KeyId, PolicyNumber, RegionId, Role, TenantId
from mesh.v1 import fleet_pb2 as pb
from mesh.v1.fleet_pb2_grpc import FleetStub

HEARTBEAT_S = 1.0
COALESCE_S = 0.05
SILENCE_S = 5.0
"""A gateway that confirms nothing for so long is given up and dialled again."""
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 1.0
_OPTIONS: list[tuple[str, str | int]] = [
    # The stream's own backoff decides; grpc's grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

MakeReport = Callable[[int], pb.ReplicaReport]
"""The report of this moment, with the number it is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Where to announce, and as whom."""

    pki: Path
    region: RegionId
    gateways: Sequence[Address]


class Announcer:
    """Keeps a stream to every gateway. Belongs to one event loop."""

    def __init__(self, membership: Membership, report: MakeReport, leases: Leases, clock: Clock, log: Log) -> None:
        self._membership = membership
        self._report = report
        self._leases = leases
        self._clock = clock
        self._log = log
        self._lines = [_Line(address, leases.source()) for address in membership.gateways]

    def changed(self) -> None:
        """Something in the report is different now."""
        for line in self._lines:
            line.changed.set()

    async def run(self) -> None:
        """Announces until it is cancelled."""
        pki, region = self._membership.pki, self._membership.region
        credentials = grpc_channel_credentials(pki, region, Role.REPLICA)
        options = grpc_channel_options(Role.GATEWAY, region) + _OPTIONS
        async with asyncio.TaskGroup() as tasks:
            for line in self._lines:
                tasks.create_task(self._keep(line, credentials, options), name="announce")

    async def settle(self, timeout_s: float) -> None:
        """Waits until every gateway that is joined has confirmed what is true now, or until `timeout_s` have passed."""
        for line in self._lines:
            line.wanted = self._leases.last_ping + 1
            line.settled.clear()
            line.changed.set()
        try:
            async with self._clock.timeout(timeout_s):
                for line in self._lines:
                    if line.joined:
                        await line.settled.wait()
        except TimeoutError:
            self._log.warning("replica.gateways_silent")

    async def _keep(
        self, line: _Line, credentials: grpc.ChannelCredentials, options: Sequence[tuple[str, str | int]]
    ) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            async with grpc.aio.secure_channel(str(line.address), credentials, options=list(options)) as channel:
                while True:
                    fault, seen = await self._join(line, FleetStub(channel))
                    if seen:
                        backoff_s = FIRST_BACKOFF_S
                    if seen or not line.told:
                        line.told = True
                        self._log.warning("replica.no_gateway", port=line.address.port, grpc_status=fault)
                    await self._clock.sleep(backoff_s * (0.5 + random.random() / 2))  # noqa: S311 - only to spread out
                    backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)
                    if fault == _SILENT:
                        break  # a connection that says nothing is not used again

    async def _join(self, line: _Line, stub: FleetStub) -> tuple[str, bool]:
        """One stream, from its beginning to its end. Why it ended, and whether the gateway ever confirmed anything."""
        call: grpc.aio.StreamStreamCall[pb.ReplicaReport, pb.ReplicaSeen] = stub.Join()  # pyright: ignore[reportAssignmentType]
        first = self._leases.last_ping
        line.source.begin()
        try:
            # Neither side raises for the stream's end: in a group that would take precedence over being cancelled.
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._write(line, call), name="announce-write")
                fault = await self._read(line, call)
                writing.cancel()
        finally:
            line.joined = False
            line.settled.set()
            call.cancel()
        return fault, line.confirmed > first

    async def _write(self, line: _Line, call: grpc.aio.StreamStreamCall[pb.ReplicaReport, pb.ReplicaSeen]) -> None:
        while True:
            line.asked.clear()
            line.changed.clear()
            # The moment of sending is taken before anything else: too early only shortens what is allowed.
            report = self._report(line.source.ping())
            report.heard = line.source.heard
            try:
                await call.write(report)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the stream is over; the reader finds out why
            # Changes come in crowds (a step of the engine ends several sequences): one report tells of them all. That
            # what was asked for has ended is told at once: somebody waits for it.
            await self._until(line.asked, COALESCE_S)
            await self._until(line.changed, HEARTBEAT_S - COALESCE_S)

    async def _until(self, event: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                await event.wait()

    async def _read(self, line: _Line, call: grpc.aio.StreamStreamCall[pb.ReplicaReport, pb.ReplicaSeen]) -> str:
        """Reads confirmations until the stream ends."""
        task = asyncio.current_task()
        while True:
            try:
                async with self._clock.timeout(SILENCE_S):
                    try:
                        seen = await call.read()
                    except asyncio.CancelledError:
                        # grpc raises this too when the *gateway* cancelled the stream, as one that stops does.
                        if task is None or task.cancelling():
                            raise
                        return "CANCELLED"
            except TimeoutError:
                return _SILENT
            except grpc.aio.AioRpcError as error:
                return error.code().name
            if not isinstance(seen, pb.ReplicaSeen):
                return (await call.code()).name
            if not line.joined:
                line.joined = line.told = True
                self._log.info("replica.joined_gateway", port=line.address.port)
            line.source.said(seen.message, *_said(seen), process=seen.process, alone=seen.alone)
            line.confirmed = seen.number
            if line.confirmed >= line.wanted:
                line.settled.set()


def _said(seen: pb.ReplicaSeen) -> tuple[list[Hold], list[Fence]]:
    holds = [
        Hold(TenantId(hold.tenant), hold.ping, hold.left_ms / 1000, PolicyNumber(hold.moves, hold.shard_number))
        for hold in seen.holds
    ]
    fences = [
        Fence(
            TenantId(fence.tenant),
            PolicyNumber(fence.moves, fence.shard_number),
            KeyId(fence.key_id) if fence.key_id else None,
        )
        for fence in seen.fences
    ]
    return holds, fences


_SILENT = "DEADLINE_EXCEEDED"


class _Line:
    """One gateway.

    `asked` is set when what it asked for has ended. `confirmed` is the last report that it saw, `wanted` the one that
    `settle` waits for. `told` keeps a gateway that never answered to one line in the log.
    """

    __slots__ = ("address", "asked", "changed", "confirmed", "joined", "settled", "source", "told", "wanted")

    def __init__(self, address: Address, source: Source) -> None:
        self.address = address
        self.source = source
        self.asked = asyncio.Event()
        self.changed = asyncio.Event()
        self.settled = asyncio.Event()
        self.joined = self.told = False
        self.confirmed = 0
        self.wanted = 0
        source.on_heard = self.heard

    def heard(self) -> None:
        """What the gateway asked for has ended."""
        self.asked.set()
        self.changed.set()
