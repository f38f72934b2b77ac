"""All that runs at this gateway, by tenant: what a change of policy does to it, and the timer that cuts it.

When a policy is applied that takes a right away, the end of each call that uses it is *frozen*: the record's drain from
then on, at most what was left of authority under the older policy, and no later grant moves it. A timer cuts what has
come to its end; who moves a piece asks before. Until all of it has ended, and the replicas have confirmed so, the
tenant is draining (`draining.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from mesh.control.memberships import Drain
from mesh.errors import Code, MeshError
from mesh.gateway.alike import Alike, cover_of
from mesh.gateway.draining import Drains
from mesh.gateway.ongoing import End, Ongoing
from mesh.gateway.ports import Replicas
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook, TenantKey, TenantPolicy
from mesh.policy.shrink import Rights, rights_of, shrink_of
from mesh.ports import Clock, Instant
from mesh.transport.handouts import HoldFor
from mesh.types import Here, KeyId, PolicyNumber, ReplicaId, Revision, TenantId, TenantState

TICK_S = 0.025
"""How often the clocks are read again: what has lost its authority is cut within 50 ms, with the loop's own delays."""
FENCES_S = 3.0
"""How long a gateway that is told to go waits for its replicas to confirm that nothing of it can begin there."""
_EVERY = Revision(2**63 - 1)
"""Stands for all revisions: a tenant has no valid record, so it is not known which change is being drained."""


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
        self._drains = Drains(replicas)
        self._wake = asyncio.Event()

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
                call.freeze(End(now, left_s, before, _code(after)), now)
                ends = True
            if call.end is not None and after is not None:
                # A shorter span counts for what drains as well.
                call.freeze(End(now, self.left_s(after, call.uses, now), before, Code.POLICY_STALE), now)
            if call.end is None:
                self._alike.put(call, None if after is None else cover_of(after, call.uses))
        lowered = None if after is None else shrink_of(before, after)
        shorter = lowered is not None and self._here.jurisdiction in lowered.lowered
        concerned = any(right.place == self._here.jurisdiction for right in gone)
        if ends or shorter or concerned or tenant in self._drains.of:
            draining = self._drains.begin(tenant, _revision(after))
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
        draining = self._drains.begin(key.tenant, _revision(policy))
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
            for tenant, drain in self._drains.of.items()
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
        return not self._calls and self._drains.idle

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
        for tenant in list(self._drains.of):
            ending = any(True for _ in self._ending(tenant))
            if self._drains.advance(tenant, ending=ending, calls=tenant in self._calls):
                self.changed()

    async def leave(self) -> None:
        """Once no call runs any more: lets the replicas of the region confirm that nothing of this gateway can begin.

        Returns when they have, or after `FENCES_S`; then `idle` is not true, and this process stays a member.
        """
        self._drains.end_abandoned(lambda tenant: _revision(self._book.tenant(tenant)))
        self._woken()
        try:
            async with self._clock.timeout(FENCES_S):
                await self._drains.emptied()
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
        if call.tenant in self._drains.of:
            self._wake.set()

    def abandoned(self, tenant: TenantId, number: PolicyNumber) -> None:
        """A parcel was sent to a replica under this number, and it is not known that the replica has done with it."""
        self._drains.abandoned(tenant, number)

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
