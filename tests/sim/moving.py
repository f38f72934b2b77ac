"""A tenant that moves: where it is at home, as the store's commits say; who moves it; and what is put that lies about it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sim.faults import Fault
from sim.moments import After, At, When
from trust_lab import Notebook, signer_of

from mesh.control import edits, layout
from mesh.control.records import (
    KeyRecord,
    RecordError,
    TenantRecord,
    decode_key,
    decode_tenant,
    digest_of,
    encode_key,
    encode_tenant,
)
from mesh.control.statements import Statement, make_statement
from mesh.control.store import Put, Range
from mesh.policy.shards import shard_of
from mesh.types import Jurisdiction, KeyId, RegionId, Revision, TenantId, TenantState

if TYPE_CHECKING:
    from sim.episode import Episode

VN, TEN, SG = RegionId("vn-1"), RegionId("vn-10"), RegionId("ap-southeast-1")
DESKS = {VN: "admin", TEN: "admin-10", SG: "admin-sg"}
"""The homes of the mesh, and the hosts of their admins."""
PLACES = {VN: Jurisdiction("VN"), TEN: Jurisdiction("VN"), SG: Jurisdiction("SG")}
STAGES = ("asked", "ready", "left")
"""Of a move under way: nothing is put yet; the new home has put its record; the old one has said its last word."""


@dataclass
class Homes:
    """Where tenants are at home, from what admins have committed.

    Attributes:
        home: Of each tenant.
        moves: How often it has moved.
        notebooks: Each home's ledger.
        stage: Of the move that is under way; empty if none is.
    """

    episode: Episode

    def __post_init__(self) -> None:
        self.home: dict[TenantId, RegionId] = {}
        self.moves: dict[TenantId, int] = {}
        self.notebooks = {home: Notebook() for home in DESKS}
        self.stage = ""
        self._said: dict[tuple[TenantId, int], Statement] = {}

    def of(self, tenant: TenantId) -> RegionId:
        """A tenant's home."""
        return self.home.get(tenant, VN)

    def kept(self) -> set[bytes]:
        """All that is in any home's ledger."""
        return {row[1] for notebook in self.notebooks.values() for row in notebook.rows.values()}

    def put(self, host: str, record: TenantRecord, revoked: KeyId | None) -> bool:
        """An admin has put a tenant's record: tells who watches. False where it does not count, or not yet."""
        episode, policy = self.episode, record.policy
        tenant, fire = policy.tenant, episode.world.moments.fire
        home = policy.home
        if record.left:
            statement = record.chain[-1]
            known = self._said.setdefault((tenant, statement.moves), statement)
            if known is not statement:
                if known.says != statement.says:
                    episode.watch.moved(host, tenant, statement.moves, home, statement.new_home, statement.revision)
                return False
            episode.watch.moved(host, tenant, statement.moves, home, statement.new_home, statement.revision)
            self.home[tenant], self.moves[tenant] = statement.new_home, statement.moves
            home = statement.new_home
            self._goes_on("left")
        elif record.is_first:
            episode.world.history.note(host, "prepared", tenant=tenant, home=home, moves=policy.moves)
            self._goes_on("ready")
            fire("prepare_committed", host)
            return False
        permits = policy.allowed if policy.state is TenantState.ACTIVE else frozenset[Jurisdiction]()
        episode.watch.committed(host, tenant, policy.revision, permits, revoked, episode.trust.epoch, home)
        if record.left:
            fire("leave_committed", host)
        return True

    def _goes_on(self, stage: str) -> None:
        if self.stage:
            self.stage = stage

    # --- lies

    def spoil(self, _: str) -> None:
        """Somebody with the new home's certificate puts something over its record that is none."""
        tenant = self.episode.tenant
        self._intrude([Put(layout.policy_key(self.of(tenant), tenant), b"nothing")])

    def relapse(self, _: str) -> None:
        """A home that the tenant has left signs a record of it again, wide, as if it had never said its last word."""
        record = self._now()
        if not record.chain:
            return  # it never moved, whatever was asked for
        base, wide = record.chain[-1], self._wide(record, 20)
        policy = replace(wide.policy, home=base.home, home_jurisdiction=PLACES[base.home], moves=base.moves - 1)
        self._put(replace(wide, policy=policy, chain=record.chain[:-1]))

    def usurp(self, _: str) -> None:
        """A home puts a wide record of a tenant of another, with a statement that it has signed itself."""
        record, home = self._now(), self._stranger()
        self._move(record, home, signed_by=home)

    def claim(self, _: str) -> None:
        """A home puts a wide record of a tenant of another, to which nothing leads."""
        record, home = self._wide(self._now(), 1), self._stranger()
        self._put(replace(record, policy=edits.moved(record.policy, home, PLACES[home])))

    def fork(self, _: str) -> None:
        """A home that the tenant has left says that it went elsewhere, and that one agrees, with a wide record."""
        record, home = self._now(), self._stranger()
        if not record.chain:
            return
        before = replace(record, chain=record.chain[:-1])
        old = record.chain[-1].home
        policy = replace(record.policy, home=old, home_jurisdiction=PLACES[old], moves=record.policy.moves - 1)
        self._move(replace(before, policy=policy), home, signed_by=old)

    def _stranger(self) -> RegionId:
        """A home that the tenant never had."""
        tenant = self.episode.tenant
        had = {self.of(tenant), *(one.home for (whose, _), one in self._said.items() if whose == tenant)}
        return next(home for home in (TEN, SG, VN) if home not in had)

    def _now(self) -> TenantRecord:
        """The record that counts."""
        tenant, data = self.episode.tenant, self.episode.cluster.data
        at = layout.policy_key(self.of(tenant), tenant)
        parsed, item = layout.parse(at), data.get(at)
        assert isinstance(parsed, layout.PolicyKey)
        assert item is not None
        return decode_tenant(parsed, item.value, self.episode.trust)

    def _wide(self, record: TenantRecord, later: int) -> TenantRecord:
        policy = replace(
            record.policy, allowed=frozenset(PLACES.values()), out_since={}, state=TenantState.ACTIVE,
            revision=Revision(record.policy.revision + later),
        )  # fmt: skip
        return replace(record, policy=policy)

    def _move(self, record: TenantRecord, home: RegionId, *, signed_by: RegionId) -> None:
        """As a move to a home would have it, but for who says so, and for the pin."""
        wide = self._wide(record, 5)
        first = replace(wide, policy=edits.moved(wide.policy, home, PLACES[home]))
        statement = make_statement(
            tenant=wide.policy.tenant, moves=first.policy.moves, home=wide.policy.home, new_home=home,
            revision=wide.policy.revision, first=digest_of(first), epoch=self.episode.trust.epoch,
            made_s=int(self.episode.trust.now()), signer=signer_of(signed_by),
        )  # fmt: skip
        self._put(replace(first, chain=(*record.chain, statement)))

    def _put(self, record: TenantRecord) -> None:
        """A record, signed by the home that it names, with copies of the keys that count now."""
        tenant, epoch, home = record.policy.tenant, self.episode.trust.epoch, record.policy.home
        puts = [Put(layout.policy_key(home, tenant), encode_tenant(record, signer_of(home), epoch))]
        for key in self._keys():
            copy = replace(key, home=home, moves=record.policy.moves)
            puts.append(Put(layout.key_key(home, tenant, key.key.key_id), encode_key(copy, signer_of(home), epoch)))
        self._intrude(puts)

    def _keys(self) -> list[KeyRecord]:
        tenant, found = self.episode.tenant, list[KeyRecord]()
        for item in self.episode.cluster.data.range(Range(*layout.tenant_range(self.of(tenant), tenant))).items:
            at = layout.parse(item.key)
            if isinstance(at, layout.KeyKey):
                try:
                    found.append(decode_key(at, item.value, self.episode.trust))
                except RecordError:
                    continue
        return found

    def _intrude(self, puts: Sequence[Put]) -> None:
        at = layout.parse(puts[0].key)
        assert isinstance(at, layout.PolicyKey)
        self.episode.intrude((*puts, Put(layout.head_key(shard_of(at.shard.home, at.tenant)), b"")))


@dataclass(frozen=True)
class Drawn:
    """The move of a plain episode.

    Attributes:
        when: It begins.
        to: One home after the other.
        first: When the episode's first order is given instead, if that is to be in a step of the move.
        faults: What breaks meanwhile.
    """

    when: When
    to: tuple[RegionId, ...]
    first: When | None
    faults: tuple[Fault, ...]


def drawn(rng: random.Random, pin_s: float, *, pinned: bool) -> Drawn:
    """A move before, after or in a race with what else is ordered.

    Args:
        rng: Decides.
        pin_s: About when it is pinned.
        pinned: Whether it is: to the home's country, so that it cannot move abroad afterwards.
    """
    first = rng.choices((TEN, SG), (75, 25) if pinned else (40, 60))[0]
    to = (first, rng.choice([home for home in DESKS if home != first])) if rng.random() < 0.4 else (first,)
    when: When
    meets: When | None = None
    kind = rng.choices(("before", "race", "met", "after"), (25, 25, 35, 15))[0]
    if kind == "met":
        when = At(pin_s - rng.uniform(0.0, 1.0))
        meets = After(rng.choice(_MOMENTS), 1, None, None, rng.choice((0.0, 10 ** rng.uniform(-2, 0.3))))
    elif kind == "before":
        when = At(max(4.0, pin_s - 10 ** rng.uniform(-1, 0.8)))
    elif kind == "race":
        moment = rng.choice(("change_sent", "change_committed"))
        when = After(moment, 1, None, None, rng.choice((0.0, 10 ** rng.uniform(-2, 0.7))))
    else:
        when = After("returned", 1, None, None, rng.uniform(0.0, 1.5))
    faults = tuple(_fault(rng, DESKS[first]) for _ in range(rng.choice((0, 1, 1, 2))))
    return Drawn(when, to, meets, faults)


BREAKS = ("kill", "pause", "cut", "slow", "lag", "lost_answer", "watch_cut", "compact", "one_way")
"""What breaks at a move's own moments."""
_MOMENTS = ("prepare_committed", "leave_sent", "leave_committed", "finish_sent")


def _fault(rng: random.Random, desk: str) -> Fault:
    """Something that breaks at one of a move's own moments."""
    kind = rng.choice(BREAKS)
    admin = rng.choice((desk, "admin"))
    store = rng.choice(("etcd-vn-1", "etcd-ap-southeast-1"))
    gateway = rng.choice(("gw-vn", "gw-sg"))
    when = After(rng.choice(_MOMENTS), 1, None, None, rng.choice((0.0, 10 ** rng.uniform(-2, 0))))
    lasts_s = rng.uniform(0.1, 1.5) if rng.random() < 0.5 else rng.uniform(3, 12)
    on: tuple[str, ...]
    match kind:
        case "kill" | "pause":
            on = (admin,) if rng.random() < 0.7 else (gateway,)
        case "cut" | "slow" | "one_way":
            on = (rng.choice((admin, gateway, gateway)), store)
        case "lag":
            on = (store,)
        case _:
            on = ()
    size = {"slow": 10 ** rng.uniform(-1, 0.5), "lag": lasts_s}.get(kind, 0.0)
    return Fault(kind, on, when, min(lasts_s, 2.0) if kind == "kill" else lasts_s, size)
