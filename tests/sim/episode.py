"""An episode with the product's code: a home and a country that a tenant is pinned out of, while things break.

Vietnam is the home: an admin, a gateway, sometimes a replica. Singapore has one or two gateways, a replica, and an admin
that sweeps. The store stands in three countries. Clients call, operators pin, revoke, suspend and change their minds,
in some episodes they move the tenant to another home, and the seed says what breaks and when. `watch.py` looks from the true state, `check.py` at what was written down.

    python -m sim.episode SEED [AIM]        writes the history, one JSON object a line
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from sim.admin import Operators, Order, SimAdmin, sweep
from sim.check import check
from sim.episode_breaker import EpisodeBreaker
from sim.faults import Fault, Palette, draw
from sim.gateway import SimGateway, load_of
from sim.hosts import Host, SeededEntropy
from sim.load import Clients
from sim.moving import DESKS, TEN, Homes, drawn
from sim.orders import SERVED_AT_HOME, orders_of
from sim.parts import SECRET, Parts, hash_of
from sim.replica import STEP_S, SimReplica
from sim.store import Commit, kind_of
from sim.watch import There, Watch
from sim.world import Result, World
from trust_lab import signer_of, trust_in

from mesh.control import layout
from mesh.control.changes import Changes
from mesh.control.records import RecordError, decode_key, decode_tenant, tenant_id
from mesh.control.store import Op, Range, RangeResult, TxnResult
from mesh.policy.keys import KeyText, make_key
from mesh.policy.shards import shard_of
from mesh.policy.shrink import shrink_of
from mesh.routing.fleet import Atlas, CatalogueModel, ModelLoad, Site
from mesh.types import (
    Endpoint,
    Jurisdiction,
    ModelId,
    ModelKind,
    RegionId,
    Role,
    TenantId,
    Transfer,
)

VN, SG, JP = RegionId("vn-1"), RegionId("ap-southeast-1"), RegionId("ap-northeast-1")
PLACES = {VN: Jurisdiction("VN"), SG: Jurisdiction("SG")}
LENGTH_S = 32.0
MOVING = 0.3
"""The share of plain episodes in which the tenant moves."""
CAP_S = 12.0
"""The cap of authority, and so what it is in a tenant's home at first."""
MODELS = {
    ModelId(name): CatalogueModel(id=ModelId(name), kind=ModelKind.CHAT, context=2048, regions=frozenset(regions))
    for name, regions in (("chat", (VN, SG)), ("chat-sg", (SG,)))
}
SITES = {
    region: Site(
        region=region,
        jurisdiction=code,
        endpoint=Endpoint(region=region, jurisdiction=code, http=f"https://{region}:8443", grpc=f"{region}:8444"),
    )
    for region, code in PLACES.items()
}
_OPS = tuple(layout.op_prefix(home) for home in DESKS)
PALETTE = Palette(
    wires=(
        ("gw-sg", f"etcd-{SG}"), ("gw-sg", f"etcd-{SG}"), ("gw-sg", "replica"), ("gw-sg", "replica"),
        ("gw-vn", f"etcd-{VN}"), ("gw-vn", "gw-sg"), ("admin", f"etcd-{VN}"),
        (f"etcd-{VN}", f"etcd-{SG}"), (f"etcd-{VN}", f"etcd-{JP}"), (f"etcd-{SG}", f"etcd-{JP}"),
    ),
    machines=("gw-sg", "gw-sg", "replica", "gw-vn", "admin"),
    members=tuple(f"etcd-{site}" for site in (VN, SG, JP)),
    roles={
        "out": "gw-sg", "home": "gw-vn", "replica": "replica", "admin": "admin", "store": f"etcd-{SG}", "twin": "gw-twin",
    },
    pin_s=12.0,
    length_s=LENGTH_S,
)  # fmt: skip


@dataclass(frozen=True)
class Played:
    """What an episode came to.

    Attributes:
        violations: Of the promise, as seen from the true state.
        checked: The same from the history alone.
        errors: What should never be: leaks, unhandled errors.
        faults: How often a kind of fault began in which phase of the episode's first shrink.
        moving: How often one began at which stage of a move.
        counts: What happened, so that an empty episode is not taken for a proof.
    """

    seed: int
    violations: tuple[str, ...]
    checked: tuple[str, ...]
    errors: tuple[str, ...]
    faults: Counter[tuple[str, str]]
    moving: Counter[tuple[str, str]]
    counts: Counter[str]
    digest: str
    steps: int
    lines: Sequence[str]


class Episode:
    """One seed's episode. Fulfils `parts.Scene`."""

    home = VN

    def __init__(self, seed: int, aim: str | None = None, parts: Parts | None = None) -> None:
        self.seed, self.parts = seed, parts or Parts()
        rng = random.Random(f"{seed}/episode")
        self.world = world = World(seed)
        self.cluster = world.add_store([VN, SG, JP])
        self.second, self.local = rng.random() < 0.25, rng.random() < 0.25 or aim in SERVED_AT_HOME
        self.supervised = rng.random() < 0.6
        self.gateways = {VN: ["gw-vn"], SG: ["gw-sg", "gw-sg2"] if self.second else ["gw-sg"]}
        self.loads = {VN: dict[ModelId, ModelLoad](), SG: load_of("chat", "chat-sg")}
        if self.local:
            self.loads[VN] = load_of("chat")
        names = [
            ("admin", VN), ("operators", VN), ("admin-sg", SG), ("gw-vn", VN), ("replica", SG), ("gw-sg", SG),
            ("client", SG),
        ]  # fmt: skip
        names += [("gw-sg2", SG)] if self.second else []
        names += [("replica-vn", VN)] if self.local else []
        for name, site in names:
            world.add_host(name, site)
        self.trust = trust_in(cap_s=CAP_S)
        self.watch = Watch(world.history, world.loop.time, world.net.later, self._there, self._moves_of)
        self.homes = Homes(self)
        self.judges: dict[Any, None] = {}
        self.programs: dict[str, SimGateway | SimReplica] = {}
        self.phase = "before"
        self.restored = False
        self.orders, self.load, plan = orders_of(
            rng, aim, PALETTE, draw(seed, PALETTE, None if aim is None else "supersede")
        )
        if aim is None:
            plan = self._draw_a_move(plan)
        self.moves = any(order.do == "move" for order in self.orders)
        if any(TEN in order.to for order in self.orders):
            world.add_host(DESKS[TEN], VN)
        self.plan = tuple(fault for fault in plan if self._can(fault))
        self.moving: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[tuple[str, str]] = Counter()
        self.asked: dict[str, str] = {}
        """By the op id that was used: the operator's own."""
        self._made: dict[str, str] = {}
        self._steps = random.Random(f"{seed}/steps")
        entropy = SeededEntropy(f"{seed}/tenants")
        nonce = entropy.token(16)
        self.tenant = tenant_id(VN, nonce)
        self.nonces = [nonce]
        while True:  # in one shard with the other: what changes there concerns both
            nonce = entropy.token(16)
            self.other = tenant_id(VN, nonce)
            if shard_of(VN, self.other) == shard_of(VN, self.tenant):
                break
        self.nonces.append(nonce)
        self.keys: list[KeyText] = [make_key(PLACES[VN], entropy.token(48), SECRET) for _ in range(2)]
        self.other_keys: list[KeyText] = [make_key(PLACES[VN], entropy.token(48), SECRET)]

    def run(self) -> Played:
        """Plays it."""
        result: Result = self.world.play(self._play())
        verdict = check(result.history.lines)
        counts = verdict.counts
        counts["looked"] = self.watch.seen
        errors = list(result.errors)
        known = [one for one in self.watch.violations if one[0] in "ISM"]
        if bool(known) != bool(verdict.violations):
            errors.append(f"the episode and the checker do not agree: {known[:2]} {verdict.violations[:2]}")
        return Played(
            self.seed, tuple(self.watch.violations), tuple(verdict.violations), tuple(errors), self.faults, self.moving,
            counts, result.history.digest(), result.steps, result.history.lines,
        )  # fmt: skip

    # --- what programs are told

    def place_of(self, region: RegionId) -> Jurisdiction:
        return PLACES[region]

    def atlas_of(self, region: RegionId) -> Atlas:
        return Atlas(here=region, sites=SITES, models=MODELS)

    def is_alone(self, host: Host) -> bool:
        return self.supervised and host.name != "gw-twin"

    def step_s(self, host: Host) -> float:
        return STEP_S * (0.2 + 0.8 * self._steps.random())

    def phase_ends(self) -> None:
        """A shrink has come back."""
        if self.phase == "waiting":
            self.phase = "after"

    def move_over(self, host: str, moves: int) -> None:
        """Who moved the tenant was told that the move is over."""
        self.watch.settled(host, self.tenant, moves)
        self.world.moments.fire("move_over", host)

    def _moves_of(self, host: Host, tenant: TenantId) -> int | None:
        """How often a tenant has moved, as a gateway's book says now."""
        program = self.programs.get(host.name)
        policy = program.book.tenant(tenant) if isinstance(program, SimGateway) else None
        return None if policy is None else policy.moves

    def _draw_a_move(self, plan: tuple[Fault, ...]) -> tuple[Fault, ...]:
        """A move in a share of the plain episodes; the others are as they would be without any."""
        rng = random.Random(f"{self.seed}/moves")
        if rng.random() >= MOVING:
            return plan
        pinned = any(order.do == "pin" for order in self.orders)
        move = drawn(rng, PALETTE.pin_s, pinned=pinned)
        if move.first is not None:
            self.orders[0] = replace(self.orders[0], when=move.first)
        self.orders.append(Order("move", move.when, to=move.to))
        return (*plan, *move.faults)

    # --- playing it

    async def _play(self) -> None:
        hosts, world = self.world.net.hosts, self.world
        self.cluster.on_commit.append(self._committed)
        await self._provide()
        breaker = EpisodeBreaker(self)
        breaker.arm(self.plan)
        late = {fault.on[0] for fault in self.plan if fault.kind == "start"}
        for name, host in hosts.items():
            if name not in late and not name.startswith("etcd"):
                self.start(host)
        await asyncio.sleep(LENGTH_S - world.loop.time())
        breaker.over = True
        await world.stop()

    def start(self, host: Host) -> None:
        """Starts a host's program."""
        host.start(self._program(host.name))

    def _program(self, name: str) -> Callable[[Host], Any]:
        match name.split("-")[0]:
            case "admin":
                return self._admin if name == "admin" or self.moves else self._sweeper
            case "operators":
                return lambda host: Operators(self, host).run()
            case "gw":
                return lambda host: self._run(host, lambda: SimGateway(self, self.parts, host, RegionId(host.site)))
            case "replica":
                return lambda host: self._run(host, lambda: self._replica(host))
            case _:
                return lambda host: Clients(self, host).run()

    def _replica(self, host: Host) -> SimReplica:
        region = RegionId(host.site)
        models = tuple(self.loads[region])
        return SimReplica(self, self.parts, host, region, PLACES[region], models, self.gateways[region])

    async def _run(self, host: Host, make: Callable[[], Any]) -> None:
        if self.restored:
            return  # it would know nothing of what was lost: nobody starts one before `mesh control recover`
        program = self.programs[host.name] = make()
        with _closing(host):
            await program.run()

    async def _admin(self, host: Host) -> None:
        if not self.restored:
            with _closing(host):
                home = next(home for home, desk in DESKS.items() if desk == host.name)
                await SimAdmin(self, host, home).run()

    async def _sweeper(self, host: Host) -> None:
        store = self.world.store_for(host, Role.ADMIN, SG)
        await sweep(self.parts.sweeper(store, SG, CAP_S, host.clock), host)

    async def _provide(self) -> None:
        """The tenants and their keys are there when it begins."""
        host = self.world.net.hosts["operators"]
        changes = Changes(
            _Direct(self), VN, host.clock, SeededEntropy(f"{self.seed}/provide"), signer=signer_of(VN),
            trust=self.trust, journal=self.homes.notebooks[VN],
        )  # fmt: skip
        allowed = frozenset(PLACES.values())
        for tenant, nonce, keys in (
            (self.tenant, self.nonces[0], self.keys), (self.other, self.nonces[1], self.other_keys),
        ):  # fmt: skip
            await changes.create_tenant(nonce, allowed, Transfer.WITHIN_ALLOWED)
            for key in keys:
                await changes.create_key(tenant, key.key_id, hash_of(key.text))

    def _committed(self, commit: Commit) -> None:
        for judge in self.judges:
            judge.ran(commit, self.world.loop.time())
        if commit.kind != "change":
            return
        for event in commit.events:
            op_id = event.key.rpartition("/")[2]
            order = self.asked.get(op_id) if event.key.startswith(_OPS) else None
            if order is not None and self._made.setdefault(order, op_id) != op_id:
                self.watch.broken("O", "one order was made twice")
        tenants: list[tuple[Any, bytes, bytes | None]] = []
        revoked, values = None, []
        for event in commit.events:
            at = layout.parse(event.key)
            if isinstance(at, layout.PolicyKey) and event.value is not None:
                tenants.append((at, event.value, event.before.value if event.before else None))
                values.append(event.value)
            elif isinstance(at, layout.KeyKey) and event.value is not None:
                key = decode_key(at, event.value, self.trust)
                revoked = key.key.key_id if key.key.revoked and at.shard.home == self.homes.of(at.tenant) else None
                values.append(event.value)
        for at, value, before in tenants:
            if value == before:  # changes nothing: what was to replace it never will
                self.world.history.note(commit.host, "put again", tenant=at.tenant)
                continue
            try:
                record = decode_tenant(at, value, self.trust)
            except RecordError:
                self.world.history.note(commit.host, "forged")
                continue
            if not self.homes.put(commit.host, record, revoked):
                continue
            after = record.policy
            older = None
            if before is not None:
                with suppress(RecordError):  # of another epoch
                    older = decode_tenant(at, before, self.trust).policy
            if older is not None and (revoked or shrink_of(older, after)) and self.phase == "before":
                self.phase = "waiting"
        kept = self.homes.kept()
        if tenants and not kept.issuperset(values):
            self.watch.broken("L", "a record is in the store and not in the home's ledger")

    def _there(self) -> Iterator[There]:
        for name, program in self.programs.items():
            if self.world.net.hosts[name].running:
                yield from program.there()

    # --- what attackers do

    def intrude(self, ops: tuple[Op, ...]) -> None:
        """Somebody puts into the store what no admin did."""
        result, events = self.cluster.data.txn((), ops, ())
        self.cluster.apply(Commit("rogue", "", "other", (), ops, result, tuple(events)))

    def _can(self, fault: Fault) -> bool:
        return all(name in self.world.net.hosts or name in ("gw-twin", "") for name in fault.on)


@contextmanager
def _closing(host: Host) -> Generator[None]:
    """A process ends, and its kernel closes what it had: also what was accepted and not begun."""
    try:
        yield
    finally:
        for channel in list(host.channels):
            channel.abort()


class _Direct:
    """The store without a way to it, for what is there before an episode begins."""

    def __init__(self, episode: Episode) -> None:
        self._cluster = episode.cluster

    async def range(self, request: Range, *, timeout_s: float) -> RangeResult:
        return self._cluster.data.range(request)

    async def txn(
        self, compares: Any, then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout_s: float
    ) -> TxnResult:
        result, events = self._cluster.data.txn(tuple(compares), tuple(then), tuple(otherwise))
        kind = kind_of(then)
        return self._cluster.apply(
            Commit("provision", "", kind, tuple(compares), tuple(then), result, tuple(events))
        )  # fmt: skip


if __name__ == "__main__":
    played = Episode(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None).run()
    print("\n".join(played.lines))
    print(played.digest, played.steps, *played.violations, *played.checked, *played.errors, file=sys.stderr)
