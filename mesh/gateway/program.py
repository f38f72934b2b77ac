"""A gateway process: builds everything, runs it, drains it."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

from mesh import tls
from mesh.control.etcd import EtcdStore
from mesh.control.feed import PolicyFeed
from mesh.control.grants import Membership, bury
from mesh.control.hashing import KeyHasher, key_hasher
from mesh.control.overdue import Overdue
from mesh.control.records import trust_of
from mesh.control.store import Store
from mesh.errors import Code, MeshError
from mesh.gateway.answers import Answers
from mesh.gateway.atlas import atlas_of, door_names, peers_of
from mesh.gateway.freshness import Freshness
from mesh.gateway.keyring import Keyring
from mesh.gateway.ports import Settled
from mesh.gateway.running import Running
from mesh.gateway.story import Story
from mesh.http1 import Pool, Server, listen
from mesh.ledger import Disclosure, Ledger, UsageRecord, open_ledger
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook
from mesh.policy.hostnames import DoorNames
from mesh.policy.shards import Shard
from mesh.ports import Clock, Entropy, TaskFactory
from mesh.routing.fleet import Fleet, Replica
from mesh.settings import Address, Gateway, Settings
from mesh.telemetry import Log, Telemetry
from mesh.telemetry.process import where
from mesh.transport.border import Border, BorderWatch
from mesh.transport.fleet_hub import FleetHub
from mesh.transport.grpc_door import GrpcDoor
from mesh.transport.grpc_server import GrpcServer, listen_grpc
from mesh.transport.hops import FrameHop, HttpHops, Sealed
from mesh.transport.http_door import HttpDoor
from mesh.transport.inspection import Inspect, PolicySeen
from mesh.transport.name_relay import NameRelay, relay
from mesh.transport.openapi import document
from mesh.transport.operator import serve_operator
from mesh.transport.peer_door import PeerDoor
from mesh.types import Here, RegionId, RequestId, Role

DRAIN_S = 10.0
"""How long running calls may take to end when the gateway is told to go."""
_BORDER_BUFFER_BYTES = 65_536
"""The most that this host's kernel may hold of what is sent to one connection of another region."""
_LOOPBACK = "127.0.0.1"
_INTERNAL_MESSAGE_BYTES = 1024 * 1024


class _Drained(Exception):
    """Told to go, and nothing runs any more."""


@dataclass(frozen=True, slots=True)
class _Told:
    """Passes on what the feed tells. Fulfils `FeedListener`."""

    membership: Membership
    freshness: Freshness

    def applied(self, shard: Shard, number: int) -> None:
        self.membership.applied(shard, number)
        self.freshness.applied()

    def went_back(self) -> None:
        self.membership.went_back()


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
        self._book = PolicyBook()
        self._relay: NameRelay | None = None
        self._authority = Authority()
        self._doors_open = False
        self._heard = asyncio.Event()
        self._feed: PolicyFeed | None = None
        self._membership: Membership | None = None

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
            running = self._running(hub)
            membership = self._membership = Membership(
                store=store,
                region=region,
                gateway=self._gateway.id,
                authority=self._authority,
                draining=running.draining,
                clock=clock,
                tasks=self._tasks,
                entropy=self._entropy,
                log=self._log,
            )
            running.changed = membership.changed
            freshness = Freshness(book=self._book, authority=self._authority, renew=membership.renew, clock=clock)
            told = _Told(membership, freshness)
            feed = self._feed = PolicyFeed(store, self._book, clock, trust_of(settings, clock), self._log, told)
            overdue = Overdue(feed, clock, self._log)
            membership.answered = overdue.answered
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

            hops = HttpHops(pool, border, region, clock)
            story, answers = self._story(fleet, hops, running, freshness, hasher, ledger)
            drain = await self._open_doors(stack, story, answers, hub)
            await self._check_tls()
            try:
                async with self._tasks() as tasks:
                    tasks.spawn(running.run(), "running")
                    tasks.spawn(membership.run(), "membership")
                    tasks.spawn(feed.run(), "policy-feed")
                    tasks.spawn(overdue.run(), "policy-overdue")
                    tasks.spawn(watch.run(), "border-watch")
                    if self._alone:
                        tasks.spawn(self._succeed(store, hub, membership), "succession")
                    tasks.spawn(self._serve_operator(), "operator-port")
                    self._doors_open = True
                    self._log.info("gateway.ready", port=self._gateway.http.port, pid=self._pid)
                    await self._until_drained(stop, drain, running, membership)
            except* _Drained:
                # The group's tasks run for ever; this is how it ends.
                self._log.info("gateway.stopped")

    async def _until_drained(
        self, stop: asyncio.Event, drain: Callable[[], Awaitable[None]], running: Running, membership: Membership
    ) -> NoReturn:
        await stop.wait()
        self._doors_open = False
        self._log.info("gateway.draining")
        await drain()
        await running.leave()
        if running.idle:
            await membership.leave()
        else:
            # Removals wait out what this process was last granted, as for one that died.
            self._log.warning("gateway.left_behind")
        raise _Drained

    async def _succeed(self, store: Store, hub: FleetHub, membership: Membership) -> None:
        """Attests the death of this gateway's earlier processes, once no replica works for them any more."""
        region = self._settings.regions[self._here.region]
        replicas = sum(deployment.replicas for deployment in region.deployments)
        while not hub.all_heard(replicas):
            self._heard.clear()
            await self._heard.wait()
        await bury(store, region.id, self._gateway.id, membership, self._clock, self._log)

    def _running(self, hub: FleetHub) -> Running:
        running = Running(here=self._here, book=self._book, authority=self._authority, replicas=hub, clock=self._clock)
        self._book.watcher = running
        hub.holds = running.holds
        heard = self._heard

        def confirmed() -> None:
            running.confirmed()
            heard.set()

        hub.on_confirm = confirmed
        return running

    def ready(self) -> tuple[bool, list[Code]]:
        """Whether calls can be served, and the codes that they would get if not."""
        membership = self._membership
        if not self._book.loaded or membership is None or not membership.renewals or membership.went_back_once:
            return False, [Code.POLICY_STALE]
        return (True, []) if self._doors_open else (False, [Code.NO_CAPACITY])

    def _story(
        self,
        fleet: Callable[[], Fleet],
        hops: HttpHops,
        running: Running,
        freshness: Freshness,
        hasher: KeyHasher,
        ledger: Ledger,
    ) -> tuple[Story[Sealed, FrameHop], Answers]:
        settings, here, clock = self._settings, self._here, self._clock
        atlas = atlas_of(settings, here.region)
        keyring = Keyring(
            book=self._book,
            mac_secret=tls.read_mesh_secret(settings.pki),
            hasher=hasher,
            clock=clock,
            entropy=self._entropy,
        )
        story = Story(
            here=here,
            atlas=atlas,
            book=self._book,
            authority=self._authority,
            running=running,
            freshness=freshness,
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
            book=self._book,
            authority=self._authority,
            freshness=freshness,
            keyring=keyring,
            fleet=fleet,
            clock=clock,
        )
        return story, answers

    async def _open_doors(
        self, stack: AsyncExitStack, story: Story[Sealed, FrameHop], answers: Answers, hub: FleetHub
    ) -> Callable[[], Awaitable[None]]:
        """Opens the doors; what it returns closes them for new calls and lets those that run end."""
        settings, here, gateway = self._settings, self._here, self._gateway
        pki, region = settings.pki, here.region
        next_request_id = _request_ids(self._entropy)
        names = door_names(settings, region, gateway)
        tls.check_door_names(pki, region, names.zones - {names.zone})
        grpc_door = GrpcDoor(
            serve=story.serve,
            queries=answers,
            here=here,
            names=names,
            asked_name=lambda context: None if self._relay is None else self._relay.name_of(context.peer()),
            next_request_id=next_request_id,
            max_body_bytes=settings.max_body_bytes,
            failed=self._failed,
        )
        http_door = HttpDoor(
            serve=story.serve,
            queries=answers,
            here=here,
            names=names,
            next_request_id=next_request_id,
            openapi=document(),
            failed=self._failed,
        )
        peer_door = PeerDoor(serve=story.serve_forwarded, here=region, regions=settings.regions)
        grpc_server = await self._listen_grpc(stack, grpc_door, names)
        await stack.enter_async_context(self._listen_internal(answers, hub))
        internal = tls.server_context(pki, region, Role.GATEWAY)
        peer_server = await _listen_http(stack, peer_door, gateway.peer, internal)
        door = tls.door_context(pki, region)
        http_server = await _listen_http(stack, http_door, gateway.http, door)
        servers: list[Server | GrpcServer] = [http_server, peer_server, grpc_server]
        front = settings.regions[region].front
        if front is not None and gateway.proxied is not None:
            fronts = frozenset(front.sources)
            servers.append(await _listen_http(stack, http_door, gateway.proxied, door, fronts=fronts))
        self._show(http_server, hub)

        async def drain() -> None:
            if self._relay is not None:
                self._relay.stop_listening()
            await grpc_door.close()
            async with self._tasks() as tasks:
                for server in servers:
                    tasks.spawn(server.drain(DRAIN_S), "drain")

        return drain

    async def _listen_grpc(self, stack: AsyncExitStack, door: GrpcDoor, names: DoorNames) -> GrpcServer:
        """Opens the gRPC door; where tenants have names, behind a relay that notes which one was called."""
        address = self._gateway.grpc
        credentials = tls.grpc_door_credentials(self._settings.pki, self._here.region)
        if names.zone is None:
            return await stack.enter_async_context(door.listen(address, credentials))
        server = await stack.enter_async_context(door.listen(Address(_LOOPBACK, 0), credentials))
        try:
            self._relay = await stack.enter_async_context(relay(address, Address(_LOOPBACK, server.port), names))
        except OSError:
            raise MeshError(Code.START_FAILED, hint=f"Cannot listen on {address}.") from None
        return server

    @asynccontextmanager
    async def _listen_internal(self, answers: Answers, hub: FleetHub) -> AsyncGenerator[GrpcServer]:
        """`Fleet`, `Border` and `Inspect`: a server of its own, since a gRPC server serves all it has on each port."""
        settings, region = self._settings, self._here.region
        border = Border(here=region, regions=settings.regions, replicas=hub.replicas, clock=self._clock)
        inspect = Inspect(
            here=region,
            gateway=self._gateway.id,
            pid=self._pid,
            hub=hub,
            policy=self._policy_seen,
            explain_for=answers.explain_for,
        )
        handlers = [service.handlers(self._failed) for service in (hub, border, inspect)]
        credentials = tls.grpc_server_credentials(settings.pki, region, Role.GATEWAY)
        async with listen_grpc(
            handlers, self._gateway.internal, credentials, message_bytes=_INTERNAL_MESSAGE_BYTES
        ) as server:
            yield server

    async def _check_tls(self) -> None:
        """Each TLS port must refuse TLS 1.2 now, or nothing is served."""
        gateway = self._gateway
        for address in (gateway.http, gateway.grpc, gateway.internal, gateway.peer):
            await tls.check_tls13(address.host, address.port)

    async def _serve_operator(self) -> None:
        address = self._gateway.operator
        loopback = ipaddress.ip_address(address.host).is_loopback
        private = None if loopback else tls.server_context(self._settings.pki, self._here.region, Role.GATEWAY)
        await serve_operator(address, ready=self.ready, metrics=self._telemetry.prometheus, tls=private)

    def _show(self, door: Server, hub: FleetHub) -> None:
        """What the operator sees of this gateway beside its calls."""

        def sequences(count: Callable[[Replica], int]) -> Callable[[], list[tuple[float, dict[str, str]]]]:
            return lambda: [
                (count(one), {"gen_ai.request.model": one.model, "mesh.replica": one.id}) for one in hub.replicas()
            ]

        gauge = self._telemetry.gauge
        gauge("mesh.door.connections", "{connection}", "Open at the HTTP door.", lambda: door.connections)
        gauge("mesh.replica.running", "{sequence}", "Running in a replica.", sequences(lambda one: one.running))
        gauge("mesh.replica.queued", "{sequence}", "Waiting in a replica.", sequences(lambda one: one.queued))
        gauge(
            "mesh.policy.revision",
            "{revision}",
            "The control store's, as applied.",
            lambda: self._policy_seen().applied,
        )
        gauge(
            "mesh.policy.grant_age",
            "s",
            "Since the newest grant of authority was asked for; -1 before the first.",
            lambda: self._grant_age_s(),
        )
        gauge("mesh.policy.live", "1", "Whether the watch on policy is up.", lambda: int(self._policy_seen().live))
        gauge("mesh.policy.invalid_records", "{record}", "Policy records that did not count.", self._invalid_records)
        gauge(
            "mesh.policy.store_went_back",
            "{time}",
            "How often the control store's history was another one than before.",
            lambda: self._feed.backs if self._feed is not None else 0,
        )

    def _invalid_records(self) -> list[tuple[float, dict[str, str]]]:
        feed = self._feed
        return [(count, {"mesh.fault": fault.value}) for fault, count in feed.invalid.items()] if feed else []

    def _grant_age_s(self) -> float:
        age_s = None if self._membership is None else self._membership.grant_age_s
        return -1.0 if age_s is None else age_s

    def _policy_seen(self) -> PolicySeen:
        feed, membership = self._feed, self._membership
        return PolicySeen(
            loaded=self._book.loaded,
            live=feed is not None and feed.live,
            applied=0 if feed is None else feed.applied,
            store_went_back=membership is not None and membership.went_back_once,
        )

    def _settle(self, ledger: Ledger, settled: Settled) -> None:
        first_byte_s = settled.first_byte_s
        if settled.tenant is not None and not settled.served_elsewhere:
            ledger.record(
                UsageRecord(
                    request_id=settled.request_id,
                    at_s=settled.at_s,
                    region=self._here.region,
                    tenant=settled.tenant,
                    key_id=settled.key_id,
                    operation=settled.operation,
                    model=settled.model,
                    door=settled.door,
                    code=settled.code,
                    prompt_tokens=settled.usage.prompt_tokens,
                    completion_tokens=settled.usage.completion_tokens,
                    duration_ms=int(settled.duration_s * 1000),
                    first_byte_ms=None if first_byte_s is None else int(first_byte_s * 1000),
                    entry_region=settled.entry,
                )
            )
        if settled.tenant is not None and settled.outside_pin:
            ledger.record(
                Disclosure(
                    request_id=settled.request_id,
                    at_ms=int(settled.at_s * 1000),
                    region=self._here.region,
                    jurisdiction=self._here.jurisdiction,
                    tenant=settled.tenant,
                    key_id=settled.key_id,
                    door=settled.door,
                )
            )
        self._telemetry.request_finished(
            settled.operation,
            settled.model,
            settled.door,
            settled.code,
            settled.duration_s,
            first_byte_s,
            settled.usage,
        )

    def _failed(self, error: BaseException, request_id: RequestId | None = None) -> None:
        """Notes what nobody foresaw, by its class and its place: its text may hold content."""
        name, place = type(error).__name__, where(error.__traceback__)
        self._log.error("gateway.unforeseen", error=name, where=place, request_id=request_id)


async def _listen_http(
    stack: AsyncExitStack,
    door: HttpDoor | PeerDoor,
    address: Address,
    context: ssl.SSLContext,
    *,
    fronts: frozenset[str] | None = None,
) -> Server:
    try:
        return await stack.enter_async_context(
            listen(door.handle, address.host, address.port, tls=context, fault=door.fault, fronts=fronts)
        )
    except OSError:
        raise MeshError(Code.START_FAILED, hint=f"Cannot listen on {address}.") from None


def _request_ids(entropy: Entropy) -> Callable[[], RequestId]:
    """Ids that no two gateways share: a random part for the process, and a count."""
    prefix, count = f"req_{entropy.token(8).hex()}", itertools.count()
    return lambda: RequestId(f"{prefix}{next(count):010x}")
