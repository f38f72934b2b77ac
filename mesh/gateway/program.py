"""A gateway process: builds everything, runs it, drains it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import NoReturn

from mesh import tls
from mesh.control.etcd import EtcdStore
from mesh.control.hashing import KeyHasher, key_hasher
from mesh.errors import Code
from mesh.gateway.answers import Answers
from mesh.gateway.atlas import atlas_of, peers_of
from mesh.gateway.doors import Doors
from mesh.gateway.entries import disclosure_of, usage_of
from mesh.gateway.gauges import show
from mesh.gateway.keyring import Keyring
from mesh.gateway.policy_reader import PolicyReader
from mesh.gateway.ports import Settled
from mesh.gateway.story import Story
from mesh.http1 import Pool
from mesh.ledger import Ledger, open_ledger
from mesh.ports import Clock, Entropy, TaskFactory
from mesh.routing.fleet import Fleet
from mesh.settings import Gateway, Settings
from mesh.telemetry import Log, Telemetry
from mesh.telemetry.process import where
from mesh.transport.border import Border, BorderWatch
from mesh.transport.fleet_hub import FleetHub
from mesh.transport.hops import FrameHop, HttpHops, Sealed
from mesh.transport.inspection import Inspect
from mesh.transport.operator import serve_operator
from mesh.types import Here, RegionId, RequestId, Role

_BORDER_BUFFER_BYTES = 65_536
"""The most that this host's kernel may hold of what is sent to one connection of another region."""


class _Drained(Exception):
    """Told to go, and nothing runs any more."""


class GatewayProgram:
    """One gateway. `run` serves until `stop` is set, then drains."""

    def __init__(
        self,
        *,
        settings: Settings,
        region: RegionId,
        gateway: Gateway,
        pid: int,
        alone: bool = False,
        clock: Clock,
        tasks: TaskFactory,
        entropy: Entropy,
        log: Log,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._gateway = gateway
        self._pid = pid
        self._alone = alone
        self._clock = clock
        self._tasks = tasks
        self._entropy = entropy
        self._log = log
        self._telemetry = telemetry
        self._here = Here(region=region, jurisdiction=settings.regions[region].jurisdiction)
        self._doors_open = False

    async def run(self, stop: asyncio.Event) -> None:
        """Opens every door, serves, and drains once `stop` is set.

        Raises:
            MeshError: START_FAILED, INVALID_SETTINGS: what is missing or taken.
        """
        settings, region, clock = self._settings, self._here.region, self._clock
        pki = settings.pki
        internal_channel = tls.grpc_channel_credentials(pki, region, Role.GATEWAY)
        async with AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(
                open_ledger(settings.ledger, region, clock=clock, tasks=self._tasks, log=self._log)
            )
            hasher = await stack.enter_async_context(key_hasher(settings.key_hash))
            store = await stack.enter_async_context(EtcdStore.connect(settings.etcd, internal_channel, clock))
            process = int.from_bytes(self._entropy.token(8), "big")
            hub = FleetHub(here=region, clock=clock, process=process, alone=self._alone)
            policy = PolicyReader(
                settings=settings,
                here=self._here,
                gateway=self._gateway.id,
                store=store,
                hub=hub,
                clock=clock,
                tasks=self._tasks,
                entropy=self._entropy,
                log=self._log,
            )
            watch = BorderWatch(
                peers={
                    other.id: [gateway.internal for gateway in other.gateways]
                    for other in settings.regions.values()
                    if other.id != region
                },
                models=settings.models,
                credentials=internal_channel,
                clock=clock,
            )
            pool = Pool(tls.client_context(pki, region, Role.GATEWAY))
            border = Pool(tls.client_context(pki, region, Role.GATEWAY), send_buffer_bytes=_BORDER_BUFFER_BYTES)
            for each in (pool, border):
                stack.callback(each.close)

            def fleet() -> Fleet:
                return Fleet(replicas=hub.replicas(), regions=watch.loads())

            story, answers = self._story(fleet, HttpHops(pool, border, region, clock), policy, hasher, ledger)
            doors = Doors(
                settings=settings,
                here=self._here,
                gateway=self._gateway,
                story=story,
                answers=answers,
                next_request_id=_request_ids(self._entropy),
                failed=self._failed,
                tasks=self._tasks,
            )
            inspect = Inspect(
                here=region,
                gateway=self._gateway.id,
                pid=self._pid,
                hub=hub,
                policy=policy.seen,
                explain_for=answers.explain_for,
            )
            loads = Border(here=region, regions=settings.regions, replicas=hub.replicas, clock=clock)
            await doors.open(stack, [service.handlers(self._failed) for service in (hub, loads, inspect)])
            show(self._telemetry, connections=lambda: doors.connections, hub=hub, policy=policy)
            try:
                async with self._tasks() as tasks:
                    policy.start(tasks)
                    tasks.spawn(watch.run(), "border-watch")
                    if self._alone:
                        deployments = settings.regions[region].deployments
                        replicas = sum(deployment.replicas for deployment in deployments)
                        tasks.spawn(policy.succeed(replicas), "succession")
                    tasks.spawn(self._serve_operator(policy), "operator-port")
                    self._doors_open = True
                    self._log.info("gateway.ready", port=self._gateway.http.port, pid=self._pid)
                    await self._until_drained(stop, doors, policy)
            except* _Drained:
                # The group's tasks run for ever; this is how it ends.
                self._log.info("gateway.stopped")

    async def _until_drained(self, stop: asyncio.Event, doors: Doors, policy: PolicyReader) -> NoReturn:
        await stop.wait()
        self._doors_open = False
        self._log.info("gateway.draining")
        await doors.drain()
        await policy.running.leave()
        if policy.running.idle:
            await policy.membership.leave()
        else:
            # Removals wait out what this process was last granted, as for one that died.
            self._log.warning("gateway.left_behind")
        raise _Drained

    def _story(
        self,
        fleet: Callable[[], Fleet],
        hops: HttpHops,
        policy: PolicyReader,
        hasher: KeyHasher,
        ledger: Ledger,
    ) -> tuple[Story[Sealed, FrameHop], Answers]:
        settings, here, clock = self._settings, self._here, self._clock
        atlas = atlas_of(settings, here.region)
        keyring = Keyring(
            book=policy.book,
            mac_secret=tls.read_mesh_secret(settings.pki),
            hasher=hasher,
            clock=clock,
            entropy=self._entropy,
        )
        story = Story(
            here=here,
            atlas=atlas,
            book=policy.book,
            authority=policy.authority,
            running=policy.running,
            freshness=policy.freshness,
            keyring=keyring,
            fleet=fleet,
            hops=hops,
            peers=peers_of(settings, here.region),
            settle=lambda settled: self._settle(ledger, settled),
            start_span=self._telemetry.start_span,
            clock=clock,
            coin=self._entropy.coin,
            max_body_bytes=settings.max_body_bytes,
        )
        answers = Answers(
            here=here,
            atlas=atlas,
            book=policy.book,
            authority=policy.authority,
            freshness=policy.freshness,
            keyring=keyring,
            fleet=fleet,
            clock=clock,
        )
        return story, answers

    async def _serve_operator(self, policy: PolicyReader) -> None:
        def ready() -> tuple[bool, list[Code]]:
            """Whether calls can be served, and the codes that they would get if not."""
            if not policy.is_current:
                return False, [Code.POLICY_STALE]
            return (True, []) if self._doors_open else (False, [Code.NO_CAPACITY])

        address = self._gateway.operator
        private = (
            None if address.is_loopback else tls.server_context(self._settings.pki, self._here.region, Role.GATEWAY)
        )
        await serve_operator(address, ready=ready, metrics=self._telemetry.prometheus, tls=private)

    def _settle(self, ledger: Ledger, settled: Settled) -> None:
        for entry in (usage_of(settled, self._here), disclosure_of(settled, self._here)):
            if entry is not None:
                ledger.record(entry)
        self._telemetry.request_finished(
            settled.operation,
            settled.model,
            settled.door,
            settled.code,
            settled.duration_s,
            settled.first_byte_s,
            settled.usage,
        )

    def _failed(self, error: BaseException, request_id: RequestId | None = None) -> None:
        """Notes what nobody foresaw, by its class and its place: its text may hold content."""
        name, place = type(error).__name__, where(error.__traceback__)
        self._log.error("gateway.unforeseen", error=name, where=place, request_id=request_id)


def _request_ids(entropy: Entropy) -> Callable[[], RequestId]:
    """Ids that no two gateways share: a random part for the process, and a count."""
    prefix, count = f"req_{entropy.token(8).hex()}", itertools.count()
    return lambda: RequestId(f"{prefix}{next(count):010x}")
