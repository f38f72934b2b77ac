"""Whatever changes are made, in whatever order, with whatever faults: a feed ends where a fresh load begins."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from trust_lab import HOMES as PLACES
from trust_lab import changes_in, signer_of, trust_in

from mesh.control import layout
from mesh.control.feed import PolicyFeed
from mesh.control.records import (
    KeyRecord,
    TenantRecord,
    encode_head,
    encode_key,
    encode_tenant,
    next_revision,
    tenant_id,
)
from mesh.control.store import Delete, Put, StoreUnavailableError
from mesh.errors import MeshError
from mesh.policy.bundle import PolicyBook, TenantKey, TenantPolicy
from mesh.policy.shards import shard_of
from mesh.runtime import SystemClock
from mesh.types import Jurisdiction, KeyId, RegionId, TenantState, Transfer

HOMES = (RegionId("vn-1"), RegionId("sg-1"))
PINS = (frozenset({Jurisdiction("VN")}), frozenset({Jurisdiction("VN"), Jurisdiction("SG")}))
TRUST = trust_in()


class Dice:
    """Not random at all."""

    def __init__(self) -> None:
        self._next = 0

    def token(self, size_bytes: int) -> bytes:
        self._next += 1
        return self._next.to_bytes(size_bytes, "big")

    def coin(self) -> float:
        return 0.0


class Quick(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


Step = tuple[str, int, int]
REAL = ["pin", "suspend", "resume", "key", "revoke"]
FAULTS = ["lost", "cut", "compact", "wait"]
FOREIGN = ["stray", "headless", "delete", "junk", "restore", "takeover", "bare_head", "create"]


def steps_of(*kinds: str) -> st.SearchStrategy[list[Step]]:
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 1), st.integers(0, 1)), min_size=12, max_size=50)


TENANTS = [(which, side) for which in (0, 1) for side in (0, 1)]


class World:
    """Two homes' admins, and somebody who writes what no admin would."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = Quick()
        self.pins = 0
        self.gone: set[tuple[int, int]] = set()
        self.junk: set[str] = set()
        self.last: dict[str, TenantRecord] = {}
        self.homes = {tenant_id(HOMES[side], bytes([which, side] * 8)): HOMES[side] for which, side in TENANTS}
        self.admins = {home: changes_in(self.store, home, self.clock, Dice()) for home in HOMES}

    async def step(self, kind: str, which: int, side: int) -> None:
        home = HOMES[side]
        admin, nonce, key_id = self.admins[home], bytes([which, side] * 8), KeyId(f"key{side}{which}")
        tenant = tenant_id(home, nonce)
        if (side, which) in self.gone:
            return  # begun again it would be older than what was seen, and rightly not count
        record = layout.policy_key(home, tenant)
        head = layout.head_key(shard_of(home, tenant))
        try:
            match kind:
                case "create":
                    await admin.create_tenant(nonce, PINS[0], Transfer.NEVER)
                case "pin":
                    self.pins += 1
                    await admin.set_allowed(tenant, PINS[self.pins % 2])
                case "suspend":
                    await admin.set_state(tenant, TenantState.SUSPENDED)
                case "resume":
                    await admin.set_state(tenant, TenantState.ACTIVE)
                case "key":
                    await admin.create_key(tenant, key_id, "sha256$00")
                case "revoke":
                    await admin.revoke_key(key_id)
                case "lost":
                    self.store.lose_answers += 1
                case "cut":
                    self.store.cut()
                case "compact":
                    self.store.compact(self.store.revision - which)
                case "forget":
                    self.store.forget += 1
                case "wait":
                    await asyncio.sleep(0)
                case "delete":
                    if which:
                        self.gone.add((side, which))
                    await self.store.txn([], [Delete(record if which else head)], timeout_s=1)
                case "junk":
                    if record in self.junk:
                        return
                    self.last[record] = await admin.tenant(tenant)
                    await self.store.txn([], [Put(record, b"\xff\xff"), Put(head, b"")], timeout_s=1)
                    self.junk.add(record)
                case "restore":
                    # As the admin would have gone on, had nobody spoilt its record.
                    if record in self.junk:
                        self.junk.remove(record)
                        real = next_revision(next_revision(self.last[record]))
                        await self.store.txn(
                            [], [Put(record, encode_tenant(real, signer_of(home), 1)), Put(head, b"")], timeout_s=1
                        )
                case "bare_head":
                    await self.store.txn([], [Put(head, encode_head(record, ""))], timeout_s=1)
                case "headless":
                    now = self.store.value(record)
                    if now is not None:
                        await self.store.txn([], [Put(record, now.value)], timeout_s=1)
                case "stray":
                    await self.store.txn([], [Put("/mesh/policy/\xff/odd", b"x")], timeout_s=1)
                case "takeover":
                    await self._takeover(home, HOMES[1 - side], nonce)
                case _:
                    raise AssertionError(kind)
        except (MeshError, StoreUnavailableError):
            pass  # no such tenant or key, or an answer was lost

    async def _takeover(self, victim: RegionId, thief: RegionId, nonce: bytes) -> None:
        """Another home's admin writes a wider pin, and a key of its own, for a tenant that is not its."""
        tenant = tenant_id(victim, nonce)
        now = self.store.value(layout.policy_key(victim, tenant))
        if now is None:
            return
        real = await self.admins[victim].tenant(tenant)
        policy = TenantPolicy(
            tenant=tenant,
            home=thief,
            home_jurisdiction=PLACES[thief],
            revision=real.policy.revision,
            state=TenantState.ACTIVE,
            allowed=PINS[1],
            transfer=Transfer.WITHIN_ALLOWED,
        )
        key = TenantKey(key_id=KeyId("thief"), tenant=tenant, hash="sha256$11", revoked=False)
        stolen = KeyRecord(
            key=key,
            home=thief,
            created_revision=policy.revision,
            revision=policy.revision,
            created_s=1,
            revoked_s=None,
        )
        shard = shard_of(thief, tenant)
        await self.store.txn(
            [],
            [
                Put(
                    layout.policy_key(thief, tenant),
                    encode_tenant(TenantRecord(policy=policy, genesis=victim, nonce=nonce), signer_of(thief), 1),
                ),
                Put(layout.key_key(thief, tenant, key.key_id), encode_key(stolen, signer_of(thief), 1)),
                Put(layout.head_key(shard), b""),
            ],
            timeout_s=1,
        )


def contents(book: PolicyBook) -> tuple[dict[str, TenantPolicy], dict[str, TenantKey]]:
    """What counts: keys of tenants that are not known open nothing."""
    tenants = {policy.tenant: policy for policy in book.tenants()}
    return tenants, {key.key_id: key for key in book.all_keys() if key.tenant in tenants and not key.revoked}


async def caught_up(store: MemoryStore, feed: PolicyFeed) -> None:
    for _ in range(100_000):
        if store.watching and store.told == store.revision and feed.live:
            return
        await asyncio.sleep(0)
    raise AssertionError("the feed does not come to rest")


async def follow(store: MemoryStore, book: PolicyBook) -> tuple[PolicyFeed, asyncio.Task[None]]:
    feed = PolicyFeed(store, book, Quick(), TRUST)
    return feed, asyncio.create_task(feed.run())


async def run(steps: list[Step]) -> PolicyFeed:
    world = World()
    book, fresh = PolicyBook(), PolicyBook()
    for tenant in TENANTS:
        await world.step("create", *tenant)
        await world.step("key", *tenant)
    feed, task = await follow(world.store, book)

    async def writer(which: int) -> None:
        for step in steps:
            if step[1] == which:
                await world.step(*step)

    await asyncio.gather(writer(0), writer(1))
    world.store.lose_answers = world.store.forget = 0
    for kind in ("suspend", "resume"):  # one of them changes something in every shard
        for tenant in TENANTS:
            await world.step(kind, *tenant)
    await caught_up(world.store, feed)
    task.cancel()
    other, task = await follow(world.store, fresh)
    await caught_up(world.store, other)
    task.cancel()
    assert contents(book) == contents(fresh)
    assert book.key(KeyId("thief")) is None
    assert all(policy.home == world.homes[policy.tenant] for policy in book.tenants())
    return feed


@given(steps_of(*REAL * 2, *FAULTS, *FOREIGN))
def test_any_interleaving_ends_where_a_fresh_load_begins(steps: list[Step]) -> None:
    asyncio.run(run(steps))


@given(steps_of(*REAL, *FAULTS, "forget"))
def test_a_watch_that_loses_events_is_found_out(steps: list[Step]) -> None:
    asyncio.run(run(steps))


@pytest.mark.parametrize(
    ("steps", "gaps"),
    [
        ([("create", 0, 0), ("key", 0, 0), ("pin", 0, 0), ("suspend", 0, 0)], 0),
        ([("create", 0, 0), ("lost", 0, 0), ("suspend", 0, 0), ("cut", 0, 0), ("key", 0, 0)], 0),
        ([("create", 0, 0), ("wait", 0, 0), ("bare_head", 0, 0)], 1),
        ([("create", 0, 0), ("wait", 0, 0), ("headless", 0, 0)], 1),
        ([("create", 1, 0), ("wait", 0, 0), ("delete", 1, 0)], 1),
        ([("create", 0, 0), ("forget", 0, 0), ("pin", 0, 0), ("suspend", 0, 0), ("forget", 0, 0), ("resume", 0, 0)], 1),
    ],
)
def test_only_what_does_not_follow_is_a_gap(steps: list[Step], gaps: int) -> None:
    async def main() -> None:
        world = World()
        book = PolicyBook()
        feed, task = await follow(world.store, book)
        await caught_up(world.store, feed)
        for step in steps:
            await world.step(*step)
            await caught_up(world.store, feed)
        task.cancel()
        assert feed.gaps == gaps

    asyncio.run(main())


def test_keys_come_back_with_their_tenant() -> None:
    async def main() -> None:
        world = World()
        for kind in ("create", "key", "junk"):
            await world.step(kind, 0, 0)
        book = PolicyBook()
        feed, task = await follow(world.store, book)
        await caught_up(world.store, feed)
        assert contents(book) == ({}, {}), "no valid record: refused"
        await world.step("restore", 0, 0)
        await caught_up(world.store, feed)
        task.cancel()
        assert [len(held) for held in contents(book)] == [1, 1]

    asyncio.run(main())


def test_a_load_that_fails_half_way_leaves_nothing_behind() -> None:
    """A record that it had read is deleted before the next load, whose watch then begins behind the deletion."""
    pins = [("pin", 0, 0)] * 8 + [("pin", 1, 0)] * 2
    asyncio.run(run([*pins, ("compact", 1, 0), ("delete", 1, 1)]))
