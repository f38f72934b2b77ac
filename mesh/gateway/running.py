"""What runs at this gateway, by tenant, and for how long it may go on.

A call uses rights: to be served here, to be sent into a jurisdiction. It goes on while there is authority in each place
that it uses. When a policy is applied that takes one of its rights away, its end is *frozen*: the record's drain from
then on, at most what was left of authority under the older policy, and no later grant moves it. A timer cuts what has
come to its end; who moves a piece asks before.

A tenant is *draining* while something that a change ended has not ended, or a replica has not confirmed that it refuses
what may still be on its way there. Nothing is acknowledged meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from mesh.control.memberships import Drain
from mesh.errors import Code, MeshError
from mesh.gateway.alike import Alike, cover_of
from mesh.gateway.ports import Fenced, Replicas
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook, TenantKey, TenantPolicy
from mesh.policy.shrink import NO_RIGHTS, Right, Rights, rights_of, shrink_of
from mesh.ports import Clock, Instant
from mesh.routing.lease import Lease
from mesh.transport.handouts import HoldFor
from mesh.types import Here, KeyId, PolicyNumber, ReplicaId, Revision, TenantId, TenantState

TICK_S = 0.025
"""How often the clocks are read again: what has lost its authority is cut within 50 ms, with the loop's own delays."""
FENCES_S = 3.0
"""How long a gateway that is told to go waits for its replicas to confirm that nothing of it can begin there."""
_EVERY = Revision(2**63 - 1)
"""Stands for all revisions: a tenant has no valid record, so it is not known which change is being drained."""


class CutError(Exception):
    """The call may not go on; `Ongoing` says why."""


@dataclass(frozen=True, slots=True)
class _End:
    """When a call ends because of a change: `for_s` after `since`, whatever is granted later."""

    since: Instant
    for_s: float
    older: TenantPolicy
    code: Code

    def left_s(self, then: Instant) -> float:
        passed_s = then.most_since(self.since)
        return self.for_s - (passed_s if passed_s >= 0 else -self.since.least_since(then))


class Ongoing:
    """One call, from its first permit to its end. A context manager; leaving it raises what the call was cut for.

    Attributes:
        code: Why it was cut; None while it may go on.
        handed: Whether its content has been sent to a replica or to another region.
    """

    def __init__(self, running: Running, tenant: TenantId, key_id: KeyId, uses: Rights) -> None:
        self.tenant = tenant
        self.key_id = key_id
        self.code: Code | None = None
        self.handed = False
        self.end: _End | None = None
        self.replica: ReplicaId | None = None
        self.number = PolicyNumber(0, 0)
        self._running = running
        self._here = uses
        self._there = NO_RIGHTS
        self._task = asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        self._cancelled = False

    def __enter__(self) -> Self:
        self._running.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.returned(whole=False)
        self._running.remove(self)
        alone = True
        if self._cancelled and self._task is not None:
            # Somebody else may want the task cancelled as well: that goes on.
            alone = self._task.uncancel() <= self._cancelling
        if self.code is None or kind is None:
            return
        if issubclass(kind, CutError) or (self._cancelled and alone and issubclass(kind, asyncio.CancelledError)):
            raise MeshError(self.code) from None

    @property
    def uses(self) -> Rights:
        """The rights that it uses now."""
        return self._here | self._there

    @property
    def span_s(self) -> float:
        """How long what it sends may at most be under way: for as long as a grant is good in the places it uses."""
        policy = self._running.policy(self)
        return 0.0 if policy is None else min(policy.span_s(right.place) for right in self.uses)

    def check(self) -> None:
        """To be asked before a piece of content is read, sent on or shown.

        Raises:
            CutError: It may not go on.
        """
        if self.code is None:
            self.review(self._running.now())
        if self.code is not None:
            raise CutError

    def reach(self, right: Right) -> None:
        """Its content is about to be sent abroad, or on within the jurisdiction. Undone by `returned`.

        Raises:
            CutError: As `check`.
            MeshError: NO_CAPACITY where the newest policy does not permit it.
        """
        self._there = frozenset({right})
        self._running.place(self)
        self.check()
        if right not in rights_of(self._running.newest(self.tenant)):
            raise MeshError(Code.NO_CAPACITY)
        self.handed = True

    def lease(self, replica: ReplicaId) -> Lease:
        """Its content is about to be sent to a replica, which may work on it for as long as this says.

        Raises:
            CutError: As `check`.
            MeshError: NO_CAPACITY where the replica has not been heard of yet.
        """
        self.check()
        self.number = self._running.number(self.tenant)
        lease = self._running.replicas.lease(replica, self.tenant, self.left_at_s, self.number)
        if lease is None:
            raise MeshError(Code.NO_CAPACITY)
        self.replica = replica
        self.handed = True
        return lease

    def returned(self, *, whole: bool) -> None:
        """A hop has ended. If it is not known to be `whole`, what was sent to a replica may still wait there."""
        if self.replica is not None and not whole:
            self._running.abandoned(self.tenant, self.number)
        self.replica = None
        if self._there:
            self._there = NO_RIGHTS
            self._running.place(self)

    def left_s(self, now: Instant) -> float:
        """For how long it may go on; 0 or less where it may not."""
        policy = self._running.policy(self)
        if policy is None:
            return 0.0
        left_s = self._running.left_s(policy, self.uses, now)
        return left_s if self.end is None else min(left_s, self.end.left_s(now))

    @property
    def ends_with(self) -> Code | None:
        """What its client is told when it ends, once a change has said that it does."""
        return self.code if self.end is None else self.end.code

    def ends_in_s(self, now: Instant) -> float:
        """How long it may still take until it ends, once a change has said that it does."""
        return 0.0 if self.code is not None else max(0.0, self.left_s(now))

    def left_at_s(self, then: Instant) -> float:
        """How much of that there was at an earlier moment, as is known now."""
        policy, running = self._running.policy(self), self._running
        if policy is None or self.code is not None:
            return 0.0
        now = running.now()
        left_s = min(running.authority.left_at_s(policy, right.place, then, now) for right in self.uses)
        return left_s if self.end is None else max(0.0, min(left_s, self.end.left_s(then)))

    def freeze(self, end: _End, now: Instant) -> None:
        """It ends then, or as an earlier change said."""
        if self.end is None or end.left_s(now) < self.end.left_s(now):
            # What it was begun under stays what it is measured by.
            older = end.older if self.end is None else self.end.older
            self.end = _End(end.since, end.for_s, older, end.code)
            self._running.place(self)
        self.review(now)

    def review(self, now: Instant) -> None:
        """Cuts it if its time is over."""
        if self.code is None and self.left_s(now) <= 0:
            over = self.end is not None and self.end.left_s(now) <= 0
            self.cut(self.end.code if self.end is not None and over else Code.POLICY_STALE)

    def cut(self, code: Code) -> None:
        """Ends it now."""
        if self.code is None:
            self.code = code
            if self._task is not None and self._task is not asyncio.current_task():
                # Its own task is stopped by its next check.
                self._cancelled = self._task.cancel()


@dataclass(slots=True)
class _Draining:
    """What a tenant's changes have ended, and what is still to be confirmed.

    Attributes:
        revision: The newest that was applied since.
        below: What replicas must refuse once all that a change ended has ended here; None where no change asks for it.
        lowered: Whether replicas must be told of shorter deadlines.
        fences: What replicas have been told.
    """

    revision: Revision
    below: PolicyNumber | None = None
    lowered: bool = False
    fences: list[Fenced] = field(default_factory=list["Fenced"])


class Running:
    """All calls of this gateway. Fulfils `PolicyWatcher`; the book tells it of a change before it is made.

    Attributes:
        changed: Called when `draining` may say something else.
    """

    def __init__(self, *, here: Here, book: PolicyBook, authority: Authority, replicas: Replicas, clock: Clock) -> None:
        self.changed: Callable[[], None] = _nobody
        self.authority = authority
        self.replicas = replicas
        self._here = here
        self._book = book
        self._clock = clock
        self._calls: dict[TenantId, dict[Ongoing, None]] = {}
        # The same calls, by what their authority comes from: to look at 5,000, 40 times a second, took all of a core.
        self._alike: Alike[Ongoing] = Alike()
        self._draining: dict[TenantId, _Draining] = {}
        # Tenants of which a hop was given up, and under which number the last such was sent.
        self._abandoned: dict[TenantId, PolicyNumber] = {}
        self._wake = asyncio.Event()
        self._quiet = asyncio.Event()

    def enter(self, *, tenant: TenantId, key_id: KeyId, uses: Rights) -> Ongoing:
        """A call that has just been permitted; to be entered at once, in its own task."""
        return Ongoing(self, tenant, key_id, uses)

    # --- what changes

    def tenant_changes(self, before: TenantPolicy, after: TenantPolicy | None) -> None:
        """Freezes the end of what uses a right that is gone. See `PolicyWatcher`."""
        now, tenant = self.now(), before.tenant
        gone = rights_of(before) - rights_of(after)
        drain_s = 0.0 if after is None or after.state is not TenantState.ACTIVE else after.drain_s
        ends = False
        for call in list(self._calls.get(tenant, ())):
            if call.uses & gone or (call.end is not None and not rights_of(after)):
                # What nobody has been sent yet need not be finished: it is refused like a call that comes now.
                left_s = min(drain_s, self.left_s(before, call.uses, now)) if call.handed else 0.0
                call.freeze(_End(now, left_s, before, _code(after)), now)
                ends = True
            if call.end is not None and after is not None:
                # A shorter span counts for what drains as well.
                call.freeze(_End(now, self.left_s(after, call.uses, now), before, Code.POLICY_STALE), now)
            if call.end is None:
                self._alike.put(call, None if after is None else cover_of(after, call.uses))
        lowered = None if after is None else shrink_of(before, after)
        shorter = lowered is not None and self._here.jurisdiction in lowered.lowered
        concerned = any(right.place == self._here.jurisdiction for right in gone)
        draining = self._draining.get(tenant)
        if draining is None and (ends or shorter or concerned):
            draining = self._draining[tenant] = _Draining(_revision(after))
        if draining is not None:
            draining.revision = max(draining.revision, _revision(after))
            draining.lowered |= shorter
            if concerned:
                draining.below = self._next(before)
            self._woken()

    def key_ends(self, key: TenantKey) -> None:
        """Cuts what was begun with a key. See `PolicyWatcher`."""
        for call in list(self._calls.get(key.tenant, ())):
            if call.key_id == key.key_id:
                call.cut(Code.INVALID_API_KEY)
        policy = self._book.tenant(key.tenant)
        draining = self._draining.setdefault(key.tenant, _Draining(_revision(policy)))
        draining.revision = max(draining.revision, _revision(policy))
        if policy is not None:
            # At once: what is said of the tenant's other work must not come before it.
            draining.fences.append(self.replicas.fence(key.tenant, self._next(policy), key.key_id))
        self._woken()

    def confirmed(self) -> None:
        """A replica has confirmed something."""
        self._wake.set()

    # --- what is told

    def draining(self) -> Mapping[TenantId, Drain]:
        """What has not ended yet, by tenant; `left_s` is 0 where only confirmations are waited for."""
        now = self.now()
        return {
            tenant: Drain(drain.revision, max((call.ends_in_s(now) for call in self._ending(tenant)), default=0.0))
            for tenant, drain in self._draining.items()
        }

    def holds(self, replica: ReplicaId) -> list[HoldFor]:
        """For how long the work at a replica may go on: of each tenant, by the number under which it was sent."""
        held: dict[tuple[TenantId, PolicyNumber], list[Ongoing]] = {}
        for tenant, calls in self._calls.items():
            for call in calls:
                if call.replica == replica:
                    held.setdefault((tenant, call.number), []).append(call)
        return [HoldFor(tenant, _least(calls), number) for (tenant, number), calls in held.items()]

    @property
    def idle(self) -> bool:
        """Whether nothing runs, here or at a replica, and nothing can begin there."""
        return not self._calls and not self._draining and not self._abandoned

    # --- time

    async def run(self) -> None:
        """The timer, for ever: at least every 50 ms, and at once where something changed."""
        while True:
            try:
                async with self._clock.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            self.review()

    def review(self) -> None:
        """Cuts what has come to its end, and looks how far what drains has come."""
        now = self.now()
        self.authority.look(now)
        for alike in self._alike.groups():
            first = next(iter(alike))
            if first.left_s(now) <= 0:
                for call in list(alike):
                    call.review(now)
        for tenant, draining in list(self._draining.items()):
            self._advance(tenant, draining)

    async def leave(self) -> None:
        """Once no call runs any more: lets the replicas of the region confirm that nothing of this gateway can begin.

        Returns when they have, or after `FENCES_S`; then `idle` is not true, and this process stays a member.
        """
        for tenant, sent in self._abandoned.items():
            draining = self._draining.setdefault(tenant, _Draining(_revision(self._book.tenant(tenant))))
            above = PolicyNumber(sent.moves, sent.number + 1)
            draining.below = above if draining.below is None else max(above, draining.below)
        self._woken()
        try:
            async with self._clock.timeout(FENCES_S):
                while self._draining:
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            return

    # --- for calls

    def add(self, call: Ongoing) -> None:
        """A call begins."""
        self._calls.setdefault(call.tenant, {})[call] = None
        policy = self._book.tenant(call.tenant)
        self._alike.put(call, None if policy is None else cover_of(policy, call.uses))

    def place(self, call: Ongoing) -> None:
        """What a call's authority comes from may have changed. One that a change ends is looked at by itself."""
        policy = self._book.tenant(call.tenant)
        if call in self._alike:
            self._alike.put(call, None if policy is None or call.end is not None else cover_of(policy, call.uses))

    def remove(self, call: Ongoing) -> None:
        """A call has ended."""
        self._alike.remove(call)
        calls = self._calls[call.tenant]
        del calls[call]
        if not calls:
            del self._calls[call.tenant]
        if call.tenant in self._draining:
            self._wake.set()

    def abandoned(self, tenant: TenantId, number: PolicyNumber) -> None:
        """A parcel was sent to a replica under this number, and it is not known that the replica has done with it."""
        self._abandoned[tenant] = max(number, self._abandoned.get(tenant, number))

    def policy(self, call: Ongoing) -> TenantPolicy | None:
        """By which a call goes on: the newest, or the one that permitted it where a newer one does not."""
        return self._book.tenant(call.tenant) if call.end is None else call.end.older

    def newest(self, tenant: TenantId) -> TenantPolicy | None:
        """By which anything new is begun, whatever may still go on."""
        return self._book.tenant(tenant)

    def left_s(self, policy: TenantPolicy, uses: Rights, now: Instant) -> float:
        """What is left of authority in every place that is used."""
        return min(self.authority.left_s(policy, right.place, now) for right in uses)

    def number(self, tenant: TenantId) -> PolicyNumber:
        """Where in the order of its policy something of a tenant is done now."""
        policy = self._book.tenant(tenant)
        if policy is None:
            raise MeshError(Code.INVALID_API_KEY)
        return PolicyNumber(policy.moves, self.authority.number(policy.shard))

    def now(self) -> Instant:
        """This moment."""
        return self._clock.instant()

    # --- within

    def _next(self, policy: TenantPolicy) -> PolicyNumber:
        """Above all that was sent up to now: a change is told of before its number counts as applied."""
        return PolicyNumber(policy.moves, self.authority.number(policy.shard) + 1)

    def _ending(self, tenant: TenantId) -> Iterator[Ongoing]:
        return (call for call in self._calls.get(tenant, ()) if call.end is not None or call.code is not None)

    def _advance(self, tenant: TenantId, draining: _Draining) -> None:
        """Tells the replicas what is due, and ends what has been confirmed."""
        replicas = self.replicas
        if draining.lowered:
            draining.lowered = False
            draining.fences.append(replicas.lowered(tenant))
        if any(True for _ in self._ending(tenant)):
            return
        if draining.below is not None:
            # Only now: it also ends what may go on until then.
            draining.fences.append(replicas.fence(tenant, draining.below))
            draining.below = None
            if tenant not in self._calls:
                self._abandoned.pop(tenant, None)
        if all(fence.confirmed for fence in draining.fences):
            del self._draining[tenant]
            self._quiet.set()
            self.changed()

    def _woken(self) -> None:
        self._wake.set()
        self.changed()


def _code(after: TenantPolicy | None) -> Code:
    """What a call is told that ends because of a change."""
    if after is None:
        return Code.INVALID_API_KEY
    return Code.RESIDENCY_REFUSED if after.state is TenantState.ACTIVE else Code.TENANT_SUSPENDED


def _revision(policy: TenantPolicy | None) -> Revision:
    return _EVERY if policy is None else policy.revision


def _least(calls: list[Ongoing]) -> Callable[[Instant], float]:
    return lambda then: min(call.left_at_s(then) for call in calls)


def _nobody() -> None:
    """Nobody is told."""
