"""Moves and changes in any order, with faults and lost events: a gateway that follows ends where a fresh one begins."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from memory_store import MemoryStore
from move_lab import BOTH, A, B, C
from trust_lab import changes_in, trust_in

from mesh.control.feed import PolicyFeed
from mesh.control.store import StoreUnavailableError
from mesh.errors import MeshError
from mesh.policy.bundle import PolicyBook, TenantKey, TenantPolicy
from mesh.policy.shards import Shard
from mesh.runtime import SystemClock
from mesh.types import KeyId, RegionId, TenantState, Transfer

HOMES = (A, B, C)
STEPS = ["prepare", "leave", "finish", "move", "suspend", "resume", "transfer", "key", "revoke"]
FAULTS = ["lost", "cut", "compact", "wait", "forget"]
Step = tuple[str, int, int]


class Quick(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class Watched(PolicyBook):
    """Notes for each tenant which policies it was served by, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.by: list[TenantPolicy] = []

    def put_tenant(self, policy: TenantPolicy) -> None:
        super().put_tenant(policy)
        self.by.append(policy)


class Heard:
    def applied(self, shard: Shard, number: int) -> None:
        pass

    def went_back(self) -> None:
        raise AssertionError("the store did not go back")


class World:
    def __init__(self) -> None:
        self.store, self.clock = MemoryStore(), Quick()
        self.admins = {home: changes_in(self.store, home, self.clock) for home in HOMES}
        self.keys = 0

    async def step(self, kind: str, old: int, new: int) -> None:
        """One step by the admins of two homes, whichever has the tenant: what is not theirs to do they refuse."""
        one, other = self.admins[HOMES[old]], self.admins[HOMES[new]]
        try:
            match kind:
                case "prepare":
                    await other.moves.prepare(self.tenant, HOMES[old])
                case "leave":
                    await one.moves.leave(self.tenant, HOMES[new])
                case "finish":
                    await other.moves.finish(self.tenant)
                case "move":
                    await other.moves.prepare(self.tenant, HOMES[old])
                    await one.moves.leave(self.tenant, HOMES[new])
                case "suspend":
                    await one.set_state(self.tenant, TenantState.SUSPENDED)
                case "resume":
                    await one.set_state(self.tenant, TenantState.ACTIVE)
                case "transfer":
                    await one.set_transfer(self.tenant, Transfer.WITHIN_ALLOWED if new else Transfer.NEVER)
                case "key":
                    self.keys += 1
                    await one.create_key(self.tenant, KeyId(f"{self.keys:0>12}"), "sha256$00")
                case "revoke":
                    await one.revoke_key(KeyId(f"{max(1, self.keys - new):0>12}"))
                case "lost":
                    self.store.lose_answers += 1
                case "cut":
                    self.store.cut()
                case "compact":
                    self.store.compact(self.store.revision - new)
                case "forget":
                    self.store.forget += 1
                case _:
                    await asyncio.sleep(0)
        except (MeshError, StoreUnavailableError):
            pass

    async def home(self) -> RegionId:
        found = [home for home, admin in self.admins.items() if await admin.tenants()]
        assert len(found) == 1, "one home has it, at any time"
        return found[0]


def contents(book: PolicyBook) -> tuple[list[TenantPolicy], dict[str, TenantKey]]:
    return list(book.tenants()), {key.key_id: key for key in book.all_keys() if not key.revoked}


async def run(steps: list[Step]) -> None:
    world = World()
    made = await world.admins[A].create_tenant(bytes(16), BOTH, Transfer.NEVER)
    world.tenant = made.tenant.policy.tenant
    book = Watched()
    feed = PolicyFeed(world.store, book, world.clock, trust_in(), None, Heard())
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(feed.run())
        while not feed.live:
            await asyncio.sleep(0)
        for step in steps:
            await world.step(*step)
        world.store.lose_answers = world.store.forget = 0
        home = await world.home()
        await world.admins[home].set_state(world.tenant, TenantState.SUSPENDED)  # so that what was lost is found out
        last = await world.admins[home].set_state(world.tenant, TenantState.ACTIVE)
        while book.tenant(world.tenant) != last.tenant.policy:
            await asyncio.sleep(0)
        following.cancel()
    fresh = PolicyBook()
    other = PolicyFeed(world.store, fresh, world.clock, trust_in())
    await other._load()
    assert contents(book) == contents(fresh)
    assert [policy.home for policy in fresh.tenants()] == [home]
    places = [policy.place for policy in book.by]
    assert places == sorted(places), "never by an older one than before"
    assert not feed.invalid
    assert not other.invalid


@given(st.lists(st.tuples(st.sampled_from(STEPS * 2 + FAULTS), st.integers(0, 2), st.integers(0, 2)), max_size=40))
def test_whatever_happens_in_moves_a_gateway_ends_where_a_fresh_one_begins(steps: list[Step]) -> None:
    asyncio.run(run(steps))
