"""A small world for the gateway's story: a mesh of three regions, a client's call, and hops that answer by script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from mesh.errors import Code, MeshError, StaleHopError
from mesh.gateway.answers import Answers
from mesh.gateway.freshness import Freshness
from mesh.gateway.keyring import Keyring
from mesh.gateway.ports import Check, Hop, HopHead, Parcel, Settled
from mesh.gateway.running import Running
from mesh.gateway.story import Story
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook, Spans, TenantKey, TenantPolicy
from mesh.policy.keys import make_key
from mesh.ports import Clock, Instant
from mesh.routing.fleet import Atlas, CatalogueModel, Fleet, ModelLoad, RegionLoad, Replica, Site
from mesh.runtime import SystemEntropy
from mesh.settings import Address
from mesh.telemetry.tracing import NO_SPAN
from mesh.transport.handouts import HandOuts
from mesh.types import (
    AnswerHead,
    Endpoint,
    Facts,
    Here,
    Jurisdiction,
    KeyId,
    ModelId,
    ModelKind,
    Operation,
    RegionId,
    ReplicaId,
    ReplicaState,
    RequestId,
    Revision,
    TenantId,
    TenantState,
    Transfer,
    Usage,
)

SECRET = b"m" * 32
VN, SG, JP = (RegionId(name) for name in ("vn-1", "ap-southeast-1", "ap-northeast-1"))
JURISDICTION = {VN: Jurisdiction("VN"), SG: Jurisdiction("SG"), JP: Jurisdiction("JP")}
SITES = {
    region: Site(
        region=region,
        jurisdiction=code,
        endpoint=Endpoint(region=region, jurisdiction=code, http=f"https://{region}:8443", grpc=f"{region}:8444"),
    )
    for region, code in JURISDICTION.items()
}
MODELS = {
    ModelId(name): CatalogueModel(id=ModelId(name), kind=kind, context=2048, regions=frozenset(regions))
    for name, kind, regions in (
        ("chat", ModelKind.CHAT, (VN, SG, JP)),
        ("chat-sg", ModelKind.CHAT, (SG,)),
        ("embed", ModelKind.EMBEDDING, (VN,)),
    )
}
TENANT = TenantId("t_aaaaaaaaaaaaaaaa")
KEY = make_key(Jurisdiction("VN"), bytes(48), SECRET)


_SPANS = Spans()


class ManualClock:
    """Time that moves when a test says so; its deadlines are the loop's, and only a test's own end can be late."""

    def __init__(self) -> None:
        self.at_s = 100.0
        self.expired = asyncio.Event()

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return 1_700_000_000.0

    def instant(self) -> Instant:
        return Instant(boot_s=self.at_s, raw_s=self.at_s, wall_s=1_700_000_000.0 + self.at_s)

    async def sleep(self, seconds: float) -> None:
        self.at_s += seconds

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Expires at once if the world set `expired`, else never."""
        return asyncio.timeout(0 if self.expired.is_set() else None)


class CountingHasher:
    """Knows one hash; counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.gate: asyncio.Event | None = None

    async def verify(self, text: str, hashed: str) -> bool:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        return hashed == f"hash of {text}"


@dataclass
class Relayed:
    """How a scripted answer ended."""

    began: bool
    fault: MeshError | None


@dataclass
class ScriptedHop:
    """An answer: tokens used, whether a byte of it was shown, how it ended; or it never ends.

    With `pieces` it is a stream of that many, each of which waits until the test puts a token into `gate`. With `stale`
    the connection turns out to be dead.
    """

    usage: Usage = Usage(3, 5)
    began: bool = True
    fault: Code | None = None
    endless: bool = False
    first_byte_s: float | None = None
    closed: int = 0
    pieces: int = 0
    stale: bool = False
    gate: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    check: Check = lambda: None

    def close(self) -> None:
        self.closed += 1


@dataclass
class ScriptedHops:
    """Hops by address; whatever is not listed refuses the connection."""

    answers: dict[str, list[ScriptedHop]] = field(default_factory=dict)
    sent: list[tuple[str, HopHead]] = field(default_factory=list)
    held: asyncio.Event | None = None

    async def to_replica(self, to: Address, parcel: Parcel, head: HopHead, check: Check) -> ScriptedHop:
        return self._send(str(to), head, check)

    async def to_peer(self, region: RegionId, to: Address, parcel: Parcel, head: HopHead, check: Check) -> ScriptedHop:
        if self.held is not None:
            self.held.set()
            await asyncio.Event().wait()
        return self._send(f"{region}/{to}", head, check)

    def _send(self, to: str, head: HopHead, check: Check) -> ScriptedHop:
        check()
        self.sent.append((to, head))
        waiting = self.answers.get(to)
        if not waiting:
            raise MeshError(Code.REPLICA_FAILED)
        hop = waiting.pop(0)
        if hop.stale:
            raise StaleHopError
        hop.check = check
        return hop


@dataclass
class Call:
    """A client's call; or, with `entry`, one that another region's gateway sent on."""

    credential: str | None = KEY.text
    model: str = "chat"
    operation: Operation = Operation.CHAT
    stream: bool = False
    timeout_s: float = 300.0
    tenant: TenantId = TENANT
    key_id: KeyId = KEY.key_id
    wants: Revision | None = None
    entry: RegionId = SG
    trace: str | None = None
    door: str = "http"
    label: str | None = None
    request_id: RequestId = RequestId("req_1")
    received: int = 0
    heads: list[AnswerHead] = field(default_factory=list)
    relaying: asyncio.Event = field(default_factory=asyncio.Event)
    shown: int = 0

    @property
    def parcel(self) -> Parcel:
        assert self.received
        return self

    size_bytes = 10

    def at_least(self) -> Revision | None:
        return self.wants

    async def receive(self, limit_bytes: int, check: Check) -> Facts:
        self.received += 1
        return Facts(model=self.model, stream=self.stream)

    async def admitted(self, head: AnswerHead) -> None:
        pass

    async def relay(self, hop: Hop, head: AnswerHead) -> Relayed:
        assert isinstance(hop, ScriptedHop)
        self.heads.append(head)
        self.relaying.set()
        if hop.endless:
            await asyncio.Event().wait()
        for _ in range(hop.pieces):
            await hop.gate.get()
            hop.check()
            self.shown += 1
        fault = None if hop.fault is None else MeshError(hop.fault)
        return Relayed(began=hop.began, fault=fault)


def replica(name: str, model: str = "chat", *, address: str = "", **changes: int) -> Replica:
    """A ready replica at `address`, or `<name>:1`."""
    fields = {"running": 0, "queued": 0, "slots": 4, "queue_limit": 64} | changes
    return Replica(
        id=ReplicaId(name), address=address or f"{name}:1", model=ModelId(model), state=ReplicaState.READY, **fields
    )  # fmt: skip


def load(region: RegionId, model: str, *, rtt_s: float = 0.05, seen_s: float = 100.0) -> RegionLoad:
    """A region with room."""
    one = ModelLoad(ready=1, slots=4, running=0, queued=0, queue_limit=64)
    return RegionLoad(region=region, rtt_s=rtt_s, models={ModelId(model): one}, seen_s=seen_s)


class World:
    """A gateway's story at one region, with one tenant."""

    def __init__(
        self,
        *,
        allowed: Sequence[str] = ("VN",),
        transfer: Transfer = Transfer.NEVER,
        at: RegionId = VN,
        replicas: Sequence[Replica] = (replica("a"),),
        loads: Sequence[RegionLoad] = (),
        hops: dict[str, list[ScriptedHop]] | None = None,
        coin: Callable[[], float] = lambda: 0.0,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self.renewed: Callable[[], Awaitable[None]] | None = None
        self.hasher = CountingHasher()
        self.book = PolicyBook()
        self.authority = Authority()
        self.authority.granted({}, self.clock.instant())
        self.handouts = HandOuts(self.clock)
        for one in replicas:
            self.handouts.pinged(one.id, 1, 0)
        self.counted: list[Settled] = []
        self.hops = ScriptedHops({"a:1": [ScriptedHop()]} if hops is None else hops)
        self.fleet = Fleet(replicas=tuple(replicas), regions={one.region: one for one in loads})
        self.set_policy(1, allowed, transfer)
        self.book.put_key(TenantKey(key_id=KEY.key_id, tenant=TENANT, hash=f"hash of {KEY.text}", revoked=False))
        self.book.loaded = True
        here = Here(region=at, jurisdiction=JURISDICTION[at])
        self.running = Running(
            here=here, book=self.book, authority=self.authority, replicas=self.handouts, clock=self.clock
        )
        self.book.watcher = self.running
        self.handouts.holds = self.running.holds
        self.handouts.on_confirm = self.running.confirmed
        self.freshness = Freshness(book=self.book, authority=self.authority, renew=self._renew, clock=self.clock)
        atlas = Atlas(here=at, sites=SITES, models=MODELS)
        self.keyring = Keyring(
            book=self.book, mac_secret=SECRET, hasher=self.hasher, clock=self.clock, entropy=SystemEntropy()
        )
        self.story = Story(
            here=here,
            atlas=atlas,
            book=self.book,
            authority=self.authority,
            running=self.running,
            freshness=self.freshness,
            keyring=self.keyring,
            fleet=lambda: self.fleet,
            hops=self.hops,
            peers={SG: [Address("g1", 1), Address("g2", 1)], JP: [Address("g1", 1)]},
            settle=self.counted.append,
            start_span=lambda name, *, parent, server: NO_SPAN,
            clock=self.clock,
            coin=coin,
            max_body_bytes=1000,
        )
        self.answers = Answers(
            here=here,
            atlas=atlas,
            book=self.book,
            authority=self.authority,
            freshness=self.freshness,
            keyring=self.keyring,
            fleet=lambda: self.fleet,
            clock=self.clock,
        )

    async def _renew(self) -> None:
        assert self.renewed is not None
        await self.renewed()

    @property
    def settled(self) -> list[Settled]:
        """The calls whose record stands here."""
        return [one for one in self.counted if one.tenant is not None and not one.served_elsewhere]

    def set_policy(
        self,
        revision: int,
        allowed: Sequence[str],
        transfer: Transfer = Transfer.NEVER,
        state: TenantState = TenantState.ACTIVE,
        *,
        drain_s: float = 0.0,
        authority: Spans = _SPANS,
    ) -> None:
        """What the tenant's home has committed."""
        self.book.put_tenant(
            TenantPolicy(
                tenant=TENANT,
                home=VN,
                home_jurisdiction=JURISDICTION[VN],
                revision=Revision(revision),
                state=state,
                allowed=frozenset(map(Jurisdiction, allowed)),
                transfer=transfer,
                drain_s=drain_s,
                authority=authority,
            )
        )
