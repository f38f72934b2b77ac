"""Gateways' grants and admins' waits on one store, each behind a link of its own that can fail; time is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from manual_clock import ManualClock
from memory_store import MemoryStore
from trust_lab import changes_in, trust_in

from mesh.control.barrier import Barrier, BarrierState
from mesh.control.changes import Outcome
from mesh.control.feed import PolicyFeed
from mesh.control.grants import Membership
from mesh.control.members import Members
from mesh.control.memberships import Drain
from mesh.control.overdue import Overdue
from mesh.control.store import (
    Compare,
    Op,
    Range,
    RangeResult,
    Store,
    StoreUnavailableError,
    TxnResult,
    WatchNews,
)
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook
from mesh.ports import Clock
from mesh.runtime import SystemEntropy, TaskGroupTasks
from mesh.types import GatewayId, Jurisdiction, RegionId, Revision, TenantId, Transfer

HOME = RegionId("vn-1")
ABROAD = RegionId("sg-1")
VN, SG = Jurisdiction("VN"), Jurisdiction("SG")
BOTH = frozenset({VN, SG})


class Link:
    """One program's way to the store.

    Attributes:
        cut: Nothing gets through, either way; a watch goes on where it was once this ends.
        keep_late: Transactions get lost on their way, and run when the test calls what is in `late`.
        arrive: While it is not set, answers stay on their way.
        asked_at_s: When each transaction was sent.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self.cut = False
        self.keep_late = False
        self.late: list[Callable[[], Coroutine[Any, Any, TxnResult]]] = []
        self.arrive = asyncio.Event()
        self.arrive.set()
        self.txns = 0
        self.reads = 0
        self.asked_at_s: list[float] = []
        self._store = store
        self._clock = clock
        self._open = asyncio.Event()
        self._open.set()

    def set_cut(self, cut: bool) -> None:
        self.cut = cut
        if cut:
            self._open.clear()
        else:
            self._open.set()

    async def range(self, request: Range, *, timeout_s: float) -> RangeResult:
        self.reads += 1
        async with self._way(timeout_s):
            answer = await self._store.range(request, timeout_s=timeout_s)
            await self.arrive.wait()
            return answer

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout_s: float
    ) -> TxnResult:
        self.txns += 1
        self.asked_at_s.append(self._clock.now_s())
        if self.keep_late:
            self.late.append(lambda: self._store.txn(compares, then, otherwise, timeout_s=timeout_s))
            await self._clock.sleep(timeout_s)
            raise StoreUnavailableError("DEADLINE_EXCEEDED")
        async with self._way(timeout_s):
            answer = await self._store.txn(compares, then, otherwise, timeout_s=timeout_s)
            await self.arrive.wait()
            return answer

    async def watch(self, key: str, end: str, start: int) -> AsyncGenerator[WatchNews]:
        async for news in self._store.watch(key, end, start):
            await self._open.wait()
            yield news

    @asynccontextmanager
    async def _way(self, timeout_s: float) -> AsyncGenerator[None]:
        if self.cut:
            await self._clock.sleep(timeout_s)
            raise StoreUnavailableError("DEADLINE_EXCEEDED")
        try:
            async with self._clock.timeout(timeout_s):
                yield
        except TimeoutError:
            raise StoreUnavailableError("DEADLINE_EXCEEDED") from None


class Gateway:
    """A gateway as far as grants go: a book, a feed, authority, and what the test says is draining."""

    def __init__(self, store: Store, clock: Clock, region: RegionId, name: str = "gw1") -> None:
        self.link = Link(store, clock)
        self.clock = clock
        self.book = PolicyBook()
        self.authority = Authority()
        self.draining: dict[TenantId, Drain] = {}
        self.membership = Membership(
            store=self.link,
            region=region,
            gateway=GatewayId(name),
            authority=self.authority,
            draining=lambda: self.draining,
            clock=clock,
            tasks=TaskGroupTasks,
            entropy=SystemEntropy(),
        )
        self.feed = PolicyFeed(self.link, self.book, clock, trust_in(), listener=self.membership)
        self.overdue = Overdue(self.feed, clock)
        self.membership.answered = self.overdue.answered

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.feed.run())
            tasks.create_task(self.overdue.run())
            tasks.create_task(self.membership.run())

    def left_s(self, tenant: TenantId, place: Jurisdiction) -> float:
        policy = self.book.tenant(tenant)
        if policy is None or place not in policy.allowed:
            return 0.0
        return self.authority.left_s(policy, place, self.clock.instant())


@dataclass(eq=False)
class Told:
    """What a wait has told so far; `state` is the last."""

    states: list[BarrierState]

    @property
    def state(self) -> BarrierState:
        return self.states[-1]

    def standings(self) -> list[str]:
        return [member.standing.value for member in self.state.members]


class World:
    """A home's admin and gateways, on one store and one clock."""

    def __init__(self, clock: ManualClock | None = None, store: MemoryStore | None = None) -> None:
        self.clock = clock or ManualClock()
        self.store = store or MemoryStore()
        self.admin = Link(self.store, self.clock)
        self.changes = changes_in(self.store, HOME, self.clock)
        self.members = Members(self.admin, self.clock, TaskGroupTasks)
        self.barrier = Barrier(store=self.admin, region=HOME, members=self.members, trust=trust_in(), clock=self.clock)
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[object, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[World]:
        with suppress(_EndError):
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self.spawn(self.members, self.members.run())
                yield self
                for task in self._running.values():
                    task.cancel()

    def spawn(self, owner: object, work: Coroutine[Any, Any, None]) -> None:
        assert self._tasks is not None
        self._running[owner] = self._tasks.create_task(work)

    def kill(self, owner: object) -> None:
        self._running.pop(owner).cancel()

    def gateway(self, region: RegionId = ABROAD, name: str = "gw1") -> Gateway:
        gateway = Gateway(self.store, self.clock, region, name)
        self.spawn(gateway, gateway.run())
        return gateway

    async def tenant(self) -> TenantId:
        made = await self.changes.create_tenant(bytes(16), BOTH, Transfer.WITHIN_ALLOWED)
        return made.tenant.policy.tenant

    async def pin(self, tenant: TenantId, *places: Jurisdiction) -> Outcome:
        """Sets a pin, by another way than `admin`'s link."""
        return await self.changes.set_allowed(tenant, frozenset(places))

    def wait(
        self,
        outcome: Outcome,
        look: Callable[[BarrierState], None] = lambda _: None,
        *,
        strict: bool = False,
        deadline_s: float | None = None,
    ) -> Told:
        """Waits aside; `look` is shown each state when it is told."""
        told = Told([])

        async def listen() -> None:
            async for state in self.barrier.wait(outcome, strict=strict, deadline_s=deadline_s):
                told.states.append(state)
                look(state)

        self.spawn(told, listen())
        return told


class _EndError(Exception):
    pass


def drain(revision: int, left_s: float = 5.0) -> Drain:
    return Drain(Revision(revision), left_s)
