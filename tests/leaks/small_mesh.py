"""A small mesh in this process: real doors, stories, hops, ledgers and borders of three countries, read in clear.

What stands still in it: time, the fleet, and what each gateway knows of policy, which the test sets. Each gateway's own
folder has what it keeps. Legs between countries go through the lab's relay, over the mesh's own TLS.

Around it are callers that take no care: they hand whole prompts to logs, spans, metrics, libraries and exceptions. The
product's parts let none of it out; a part that does is a leak (`plants.py`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from border.evidence import Leg, legs
from border.namespaces import COUNTRIES, INTERNAL, PEER
from border.relay import Forge, Relay
from gateway.world import JURISDICTION, SECRET, SITES, CountingHasher, ManualClock
from leaks.parts import CONNECT_S, Parts
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from waiting import eventually

from mesh import tls
from mesh.content.frames import CONTENT_TYPE, FrameKind, encode
from mesh.gateway.answers import Answers
from mesh.gateway.freshness import Freshness
from mesh.gateway.keyring import Keyring
from mesh.gateway.ports import HopHead, Settled
from mesh.gateway.running import Running
from mesh.http1 import Pool, Request, listen
from mesh.ledger import Ledger, UsageRecord, open_ledger
from mesh.policy.authority import Authority
from mesh.policy.bundle import TenantKey, TenantPolicy
from mesh.policy.hostnames import DoorNames
from mesh.policy.keys import KeyText, make_key
from mesh.routing.fleet import Atlas, CatalogueModel, Fleet, ModelLoad, RegionLoad, Replica
from mesh.runtime import SystemClock, SystemEntropy, TaskGroupTasks
from mesh.settings import Address
from mesh.transport.border import BorderWatch
from mesh.transport.grpc_door import GrpcDoor
from mesh.transport.grpc_server import listen_grpc
from mesh.transport.handouts import HandOuts
from mesh.transport.hops import FrameHop, Sealed
from mesh.transport.http_door import HttpDoor
from mesh.transport.peer_door import PeerDoor
from mesh.types import (
    Here,
    Jurisdiction,
    ModelId,
    ModelKind,
    RegionId,
    ReplicaId,
    ReplicaState,
    RequestId,
    Revision,
    Role,
    TenantId,
    TenantState,
    Transfer,
    Usage,
)

HERE = "127.0.0.1"
REGIONS = {name: RegionId(one.region) for name, one in COUNTRIES.items()}
MAX_BODY_BYTES = 512 * 1024
CHAT, ABROAD, FORBIDDEN, FLAKY, FAULTY = "chat", "chat-sg", "chat-jp", "flaky", "faulty"
HOSTS = {CHAT: ("vn", "sg", "jp"), ABROAD: ("sg",), FORBIDDEN: ("jp",), FLAKY: ("vn", "jp"), FAULTY: ("vn",)}
"""Which countries have a replica of a model. FLAKY's breaks its connections; the way to FAULTY's has a bug."""
MODELS = {
    ModelId(name): CatalogueModel(
        id=ModelId(name), kind=ModelKind.CHAT, context=2048, regions=frozenset(REGIONS[one] for one in hosts)
    )
    for name, hosts in HOSTS.items()
}


class Tenant:
    """Who calls."""

    def __init__(self, name: str) -> None:
        self.id = TenantId(f"t_{name[:1] * 16}")
        self.key: KeyText = make_key(Jurisdiction("VN"), (name * 48).encode()[:48], SECRET)


class _FaultyHops:
    """Has a bug: on the way to FAULTY it raises an error of its own, with all that it worked on in its text."""

    def __init__(self, hops: Any) -> None:
        self._hops = hops

    async def to_replica(self, to: Address, parcel: Sealed, head: HopHead, check: Callable[[], None]) -> FrameHop:
        if head.model == FAULTY:
            raise ValueError(f"cannot handle {parcel.open().decode(errors='replace')}")
        return await self._hops.to_replica(to, parcel, head, check)

    async def to_peer(
        self, region: RegionId, to: Address, parcel: Sealed, head: HopHead, check: Callable[[], None]
    ) -> FrameHop:
        return await self._hops.to_peer(region, to, parcel, head, check)


class Gateway:
    """One country's gateway, and its replicas, which answer with what they were sent."""

    def __init__(self, mesh: SmallMesh, country: str) -> None:
        self.mesh, self.country, self.region = mesh, country, REGIONS[country]
        self.here = Here(region=self.region, jurisdiction=JURISDICTION[self.region])
        self.folder = mesh.folder / "home" / country
        self.folder.mkdir(parents=True)
        self.parts = mesh.parts
        self.http = self.grpc = self.peer = self.internal = 0
        self.peers: dict[RegionId, list[Address]] = {}
        self.watched: dict[RegionId, list[Address]] = {}
        self.texts: list[str] = []
        """What the callers that take no care have seen of bodies."""
        self.metrics = b""
        self.replicas: list[Replica] = []

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Opens all doors."""
        parts, names = self.parts, frozenset(MODELS)
        async with AsyncExitStack() as stack:
            lines = stack.enter_context((self.folder / "gateway.log").open("w"))
            traced = stack.enter_context((self.folder / "spans.json").open("w"))
            spans = SimpleSpanProcessor(ConsoleSpanExporter(out=traced, formatter=lambda span: span.to_json()))
            self.log = parts.log(self.region, lines, names)
            self.telemetry = parts.telemetry(self.region, names, spans)
            stack.callback(self.telemetry.close)
            self.failed = parts.failed(self)
            ledger = await stack.enter_async_context(
                open_ledger(
                    f"sqlite:///{self.folder}/ledger-{{region}}.db",
                    self.region,
                    clock=SystemClock(),
                    tasks=TaskGroupTasks,
                    log=self.log,
                )
            )
            await self._replicas(stack)
            self._story(stack, ledger)
            await self._doors(stack)
            yield
            self.metrics = self.telemetry.prometheus()

    async def _replicas(self, stack: AsyncExitStack) -> None:
        server = await stack.enter_async_context(listen(_echo, HERE, 0, tls=None, fault=lambda *_: (500, [], b"")))
        self.replicas = [
            Replica(
                id=ReplicaId(f"{number:016x}"), address=f"{HERE}:{server.port}", model=ModelId(model),
                state=ReplicaState.READY, running=0, queued=0, slots=4, queue_limit=64,
            )
            for number, (model, hosts) in enumerate(HOSTS.items())
            if self.country in hosts
        ]  # fmt: skip

    def _story(self, stack: AsyncExitStack, ledger: Ledger) -> None:
        parts, clock, entropy = self.parts, self.mesh.clock, SystemEntropy()
        self.book = book = parts.book()
        authority = Authority()
        authority.granted({}, clock.instant())
        handouts = HandOuts(clock)
        for one in self.replicas:
            handouts.pinged(one.id, 1, 0)
        self.fleet = Fleet(replicas=tuple(self.replicas), regions=_loads(self.country, clock.now_s()))
        running = Running(here=self.here, book=book, authority=authority, replicas=handouts, clock=clock)
        book.watcher = running
        handouts.holds, handouts.on_confirm = running.holds, running.confirmed
        freshness = Freshness(book=book, authority=authority, renew=_never, clock=clock)
        keyring = Keyring(book=book, mac_secret=SECRET, hasher=CountingHasher(), clock=clock, entropy=entropy)
        atlas = Atlas(here=self.region, sites=SITES, models=MODELS)
        pool = Pool(None, connect_timeout_s=CONNECT_S)
        border = parts.pool(tls.client_context(self.mesh.pki, self.region, Role.GATEWAY))
        for each in (pool, border):
            stack.callback(each.close)
        self.hops = parts.hops(self, pool, border, self.region, clock)
        self.story = parts.story(
            here=self.here, atlas=atlas, book=book, authority=authority, running=running, freshness=freshness,
            keyring=keyring, fleet=lambda: self.fleet, hops=_FaultyHops(self.hops), peers=self.peers,
            settle=lambda settled: self._settle(ledger, settled), start_span=self.telemetry.start_span, clock=clock,
            coin=lambda: 0.0, max_body_bytes=MAX_BODY_BYTES,
        )  # fmt: skip
        self.answers = Answers(
            here=self.here, atlas=atlas, book=book, authority=authority, freshness=freshness, keyring=keyring,
            fleet=lambda: self.fleet, clock=clock,
        )  # fmt: skip

    async def _doors(self, stack: AsyncExitStack) -> None:
        pki, region = self.mesh.pki, self.region
        names = DoorNames(plain=frozenset())
        http = HttpDoor(
            serve=self._serve, queries=self.answers, here=self.here, names=names, next_request_id=self.mesh.request_id,
            openapi=b"{}", failed=self.failed,
        )  # fmt: skip
        grpc = GrpcDoor(
            serve=self._serve, queries=self.answers, here=self.here, names=names, asked_name=lambda _: None,
            next_request_id=self.mesh.request_id, max_body_bytes=MAX_BODY_BYTES, failed=self.failed,
        )  # fmt: skip
        peer = PeerDoor(serve=self.story.serve_forwarded, here=region, regions=list(REGIONS.values()))
        border = self.parts.border(
            self, here=region, regions=list(REGIONS.values()), replicas=lambda: self.replicas, clock=SystemClock()
        )
        handle, private = self.parts.handle(self, http.handle), tls.server_context(pki, region, Role.GATEWAY)
        door = await stack.enter_async_context(listen(handle, HERE, 0, tls=None, fault=http.fault))
        peers = await stack.enter_async_context(listen(peer.handle, HERE, 0, tls=private, fault=peer.fault))
        called = await stack.enter_async_context(grpc.listen(Address(HERE, 0), tls.grpc_door_credentials(pki, region)))
        internal = await stack.enter_async_context(
            listen_grpc(
                [border.handlers(self.failed)],
                Address(HERE, 0),
                tls.grpc_server_credentials(pki, region, Role.GATEWAY),
                message_bytes=1024 * 1024,
            )
        )
        self.http, self.peer, self.grpc, self.internal = door.port, peers.port, called.port, internal.port

    async def _serve(self, exchange: Any) -> None:
        try:
            await self.parts.serve(self, self.story.serve)(exchange)
        finally:
            self._careless(exchange)

    def _careless(self, exchange: Any) -> None:
        """Hands a whole prompt to all that a program can speak through."""
        try:
            text = bytes(exchange.parcel.open()).decode(errors="replace")
        except RuntimeError:
            return  # it was not read
        self.texts.append(text)
        self.log.info("call.ended", prompt=text, model=text, error=text)
        with suppress(ValueError), self.telemetry.start_span("mesh.call") as span:
            span.set("gen_ai.input.messages", text)
            raise ValueError(text)
        self.telemetry.request_finished(exchange.operation, text, exchange.door, text, 0.1, None, Usage())
        logging.getLogger("some.library").warning("could not read %s", text)

    def _settle(self, ledger: Ledger, settled: Settled) -> None:
        if settled.tenant is None or settled.served_elsewhere:
            return
        record = UsageRecord(
            request_id=settled.request_id, at_s=settled.at_s, region=self.region, tenant=settled.tenant,
            key_id=settled.key_id, operation=settled.operation, model=settled.model, door=settled.door,
            code=settled.code, prompt_tokens=settled.usage.prompt_tokens,
            completion_tokens=settled.usage.completion_tokens, duration_ms=1, first_byte_ms=None,
            entry_region=settled.entry,
        )  # fmt: skip
        ledger.record(self.parts.usage(self, record))


class SmallMesh:
    """The three countries. `running` opens them; afterwards `folder` has all that they left."""

    def __init__(self, folder: Path, pki: Path, parts: Parts) -> None:
        self.folder, self.pki, self.parts = folder, pki, parts
        self.clock = ManualClock()
        self._requests = 0
        self.countries = {country: Gateway(self, country) for country in COUNTRIES}
        self._ports: dict[int, int] = {}

    def request_id(self) -> RequestId:
        self._requests += 1
        return RequestId(f"req_{self._requests:016x}")

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[SmallMesh]:
        async with AsyncExitStack() as stack:
            stack.enter_context(_speaking_again())
            for gateway in self.countries.values():
                await stack.enter_async_context(gateway.running())
            self.parts.speak(self.countries["vn"])
            await self._relays(stack)
            yield self

    async def _relays(self, stack: AsyncExitStack) -> None:
        """One for each way, so that the address that is called tells who calls."""
        renewed = self.folder / "renewed"
        renewed.mkdir()
        forge = Forge(self.pki, renewed)
        for a, here in self.countries.items():
            for b, there in self.countries.items():
                if a == b:
                    continue
                clear = self.folder / f"clear-{a}-{b}"
                clear.mkdir()
                relay, host = Relay(forge, clear, _leg), _between(a, b)
                for service, port in ((PEER, there.peer), (INTERNAL, there.internal)):
                    pair = self.pki / f"{there.region}/gateway.pem"
                    server = await relay.listen(pair, host, port, onward=HERE)
                    stack.push_async_callback(server.wait_closed)
                    stack.callback(server.close)
                    self._ports[port] = service
                stack.push_async_callback(relay.end)
                here.peers[there.region] = [Address(host, there.peer)]
                here.watched[there.region] = [Address(host, there.internal)]

    async def exchange_loads(self) -> None:
        """Each country follows the load of the two others, until it has known it."""
        watches = [
            BorderWatch(
                peers=gateway.watched,
                models=list(MODELS),
                credentials=tls.grpc_channel_credentials(self.pki, gateway.region, Role.GATEWAY),
                clock=SystemClock(),
            )
            for gateway in self.countries.values()
        ]
        running = [asyncio.create_task(watch.run()) for watch in watches]
        known: list[set[RegionId]] = [set() for _ in watches]

        def all_known() -> bool:
            for watch, regions in zip(watches, known, strict=True):
                regions.update(watch.loads())
            return all(len(regions) == len(REGIONS) - 1 for regions in known)

        await eventually(all_known)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def legs(self) -> list[Leg]:
        """What crossed borders, as the lab's searches take it."""
        found: list[Leg] = []
        for clear in self.folder.glob("clear-*"):
            _, a, b = clear.name.split("-")
            found += [
                replace(leg, port=self._ports[leg.port]) for leg in legs(clear, places={HERE: a, _between(a, b): b})
            ]
        return found

    def set_policy(self, tenant: Tenant, revision: int, *allowed: str, transfer: Transfer = Transfer.NEVER) -> None:
        """What the tenant's home has committed, and every gateway was told."""
        policy = TenantPolicy(
            tenant=tenant.id, home=REGIONS["vn"], home_jurisdiction=Jurisdiction("VN"), revision=Revision(revision),
            state=TenantState.ACTIVE, allowed=frozenset(map(Jurisdiction, allowed)), transfer=transfer,
        )  # fmt: skip
        key = TenantKey(key_id=tenant.key.key_id, tenant=tenant.id, hash=f"hash of {tenant.key.text}", revoked=False)
        for gateway in self.countries.values():
            gateway.book.put_tenant(policy)
            gateway.book.put_key(key)
            gateway.book.loaded = True


async def _echo(request: Request) -> None:
    """A replica whose model says what it was told."""
    if request.header(b"mesh-model") == FLAKY.encode():
        raise ConnectionAbortedError
    body = bytes(await request.body(MAX_BODY_BYTES))
    piece = b"data: " + body + b"\n\n" if request.header(b"mesh-stream") == b"1" else body
    frames = encode(FrameKind.DATA, Usage(3, 5), piece) + encode(FrameKind.END, Usage(3, 5))
    await request.respond(200, [(b"content-type", CONTENT_TYPE)], frames)


async def _never() -> None:
    raise AssertionError("nobody asked for a newer policy")


def _loads(country: str, now_s: float) -> dict[RegionId, RegionLoad]:
    one = ModelLoad(ready=1, slots=4, running=0, queued=0, queue_limit=64)
    return {
        REGIONS[other]: RegionLoad(
            region=REGIONS[other], rtt_s=0.05, seen_s=now_s,
            models={ModelId(model): one for model, hosts in HOSTS.items() if other in hosts},
        )
        for other in REGIONS
        if other != country
    }  # fmt: skip


def _between(a: str, b: str) -> str:
    """The address on loopback by which `a` calls `b`."""
    return f"127.88.{COUNTRIES[a].number}{COUNTRIES[b].number}.1"


def _leg() -> socket.socket:
    leg = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    leg.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    leg.setblocking(False)
    return leg


@contextmanager
def _speaking_again() -> Generator[None]:
    """Puts back the ways in which this process speaks."""
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        root.handlers[:] = handlers
        root.setLevel(level)
