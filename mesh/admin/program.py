"""An admin process: builds everything, serves, drains."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from mesh import tls
from mesh.admin.control import ControlDesk
from mesh.admin.routes import routes
from mesh.admin.service import AdminService
from mesh.admin.shrinks import Shrinks
from mesh.admin.tenants import Tenants
from mesh.control.barrier import Barrier
from mesh.control.changes import Changes
from mesh.control.epoch import EpochStart
from mesh.control.etcd import open_store
from mesh.control.hashing import key_hasher
from mesh.control.history import StoreHistory
from mesh.control.members import Members
from mesh.control.ops import sweep
from mesh.control.records import trust_of
from mesh.control.recovery import Recovery
from mesh.control.signing import Signer
from mesh.control.store import Store, StoreError
from mesh.control.sweep import MemberSweeper
from mesh.ledger import open_ledger
from mesh.policy.hostnames import labels_under
from mesh.ports import Clock, Entropy, TaskFactory
from mesh.settings import Region, Settings
from mesh.telemetry import Log
from mesh.transport.grpc_server import listen_grpc
from mesh.types import Here, Role

DRAIN_S = 5.0
"""How long running calls may take to end when the admin is told to go."""
_MESSAGE_BYTES = 256 * 1024
_SWEEP_S = 3_600.0


class _DrainedError(Exception):
    """Told to go, and nothing runs any more."""


class AdminProgram:
    """The admin of one region. `run` serves until `stop` is set."""

    def __init__(
        self,
        *,
        settings: Settings,
        region: Region,
        clock: Clock,
        tasks: TaskFactory,
        entropy: Entropy,
        log: Log,
    ) -> None:
        self._settings = settings
        self._region = region
        self._clock = clock
        self._tasks = tasks
        self._entropy = entropy
        self._log = log
        self.port = 0
        """What it listens on, once it does."""

    async def run(self, stop: asyncio.Event, started: asyncio.Event | None = None) -> None:
        """Serves `Admin` on the region's admin address, and drains once `stop` is set.

        Args:
            stop: Ends it.
            started: Set when it listens.

        Raises:
            MeshError: `start_failed`, `invalid_settings`: what is missing or taken.
        """
        settings, region, clock = self._settings, self._region, self._clock
        here = Here(region=region.id, jurisdiction=region.jurisdiction)
        pki = settings.pki
        async with AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(
                open_ledger(settings.ledger, region.id, clock=clock, tasks=self._tasks, log=self._log)
            )
            hasher = await stack.enter_async_context(key_hasher(settings.key_hash))
            store = await stack.enter_async_context(open_store(settings.etcd, pki, region.id, Role.ADMIN, clock))
            own = tls.grpc_channel_credentials(pki, region.id, Role.ADMIN)
            trust = trust_of(settings, clock)
            # A region without a policy key can have no tenants; all else works.
            signer = Signer.load(pki, region) if region.policy_keys else None
            members = Members(store, clock, self._tasks, self._log)
            history = StoreHistory(self._log)
            start = EpochStart(trust)
            recovery = Recovery(
                store=store,
                home=region.id,
                signer=signer,
                trust=trust,
                memory=ledger,
                history=history,
                start=start,
                clock=clock,
                entropy=self._entropy,
                log=self._log,
            )
            barrier = Barrier(
                store=store,
                region=region.id,
                members=members,
                trust=trust,
                clock=clock,
                log=self._log,
                history=history,
                start=start,
            )
            changes = Changes(
                store,
                region.id,
                clock,
                self._entropy,
                signer,
                trust,
                journal=ledger,
                history=history,
                store_answers=members.store_answers,
            )
            service = AdminService(
                tenants=Tenants(
                    here=here,
                    ledger=ledger,
                    changes=changes,
                    hasher=hasher,
                    mac_secret=tls.read_mesh_secret(pki),
                    clock=clock,
                    entropy=self._entropy,
                    reserved=_own_labels(settings),
                ),
                shrinks=Shrinks(barrier=barrier, signer=signer, epoch=trust.epoch, clock=clock),
                barrier=barrier,
                control=ControlDesk(epoch=trust.epoch, history=history, start=start, recovery=recovery, clock=clock),
                ledger=ledger,
                routes=await stack.enter_async_context(routes(region, own)),
                clock=clock,
            )
            server = await stack.enter_async_context(
                listen_grpc(
                    service.handlers(self._failed),
                    region.admin,
                    tls.grpc_server_credentials(pki, region.id, Role.ADMIN),
                    message_bytes=_MESSAGE_BYTES,
                )
            )
            self.port = server.port
            await tls.check_tls13(region.admin.host, server.port)
            self._log.info("admin.ready", port=server.port)
            if started is not None:
                started.set()
            try:
                async with self._tasks() as tasks:
                    tasks.spawn(self._sweep(store), "op-sweeper")
                    tasks.spawn(members.run(), "members")
                    tasks.spawn(recovery.run(), "recovery")
                    sweeper = MemberSweeper(store, region.id, trust.cap_s, clock, self._log)
                    tasks.spawn(sweeper.run(), "member-sweeper")
                    await stop.wait()
                    self._log.info("admin.draining")
                    await server.drain(DRAIN_S)
                    raise _DrainedError  # noqa: TRY301 - it is caught around the group, not in it
            except* _DrainedError:
                # The group's task runs for ever; this is how it ends.
                self._log.info("admin.stopped")

    async def _sweep(self, store: Store) -> None:
        while True:
            try:
                swept = await sweep(store, self._region.id, self._clock.wall_s())
            except StoreError as error:
                self._log.warning("admin.sweep_failed", error=type(error).__name__)
            else:
                self._log.info("admin.swept", count=swept)
            await self._clock.sleep(_SWEEP_S)

    def _failed(self, error: BaseException) -> None:
        """Notes what nobody foresaw, by its class: its text may hold a name."""
        self._log.error("admin.unforeseen", error=type(error).__name__)


def _own_labels(settings: Settings) -> frozenset[str]:
    """The labels that names of doors begin with, in any region's zone."""
    found = frozenset[str]()
    for region in settings.regions.values():
        if region.zone is not None:
            doors = [address for one in region.gateways for address in (one.http, one.grpc, one.proxied) if address]
            names = (region.endpoint.http, region.endpoint.grpc, *map(str, doors))
            found |= labels_under(names, region.zone)
    return found
