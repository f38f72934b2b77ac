"""One call, from its first permit to its end: what it uses, when it ends, and whether it may go on.

A call uses rights: to be served here, to be sent into a jurisdiction. It goes on while there is authority in each place
that it uses. Once a change has taken one of its rights away, its end is *frozen*, and no later grant moves it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from mesh.errors import Code, MeshError
from mesh.gateway.ports import Replicas
from mesh.policy.authority import Authority
from mesh.policy.bundle import TenantPolicy
from mesh.policy.shrink import NO_RIGHTS, Right, Rights, rights_of
from mesh.ports import Instant
from mesh.routing.lease import Lease
from mesh.types import KeyId, PolicyNumber, ReplicaId, TenantId


class CutError(Exception):
    """The call may not go on; `Ongoing` says why."""


@dataclass(frozen=True, slots=True)
class End:
    """When a call ends because of a change: `for_s` after `since`, whatever is granted later."""

    since: Instant
    for_s: float
    older: TenantPolicy
    code: Code

    def left_s(self, then: Instant) -> float:
        """How much of it is left at a moment, which may be before `since`."""
        passed_s = then.most_since(self.since)
        return self.for_s - (passed_s if passed_s >= 0 else -self.since.least_since(then))


class Calls(Protocol):
    """What a call needs of its gateway, which keeps all of them."""

    authority: Authority
    replicas: Replicas

    def add(self, call: Ongoing) -> None:
        """A call begins."""
        ...

    def place(self, call: Ongoing) -> None:
        """What a call's authority comes from may have changed."""
        ...

    def remove(self, call: Ongoing) -> None:
        """A call has ended."""
        ...

    def abandoned(self, tenant: TenantId, number: PolicyNumber) -> None:
        """A parcel was sent to a replica under this number, and it is not known that the replica has done with it."""
        ...

    def policy(self, call: Ongoing) -> TenantPolicy | None:
        """By which a call goes on."""
        ...

    def newest(self, tenant: TenantId) -> TenantPolicy | None:
        """By which anything new is begun."""
        ...

    def left_s(self, policy: TenantPolicy, uses: Rights, now: Instant) -> float:
        """What is left of authority in every place that is used."""
        ...

    def number(self, tenant: TenantId) -> PolicyNumber:
        """Where in the order of its policy something of a tenant is done now."""
        ...

    def now(self) -> Instant:
        """This moment."""
        ...


class Ongoing:
    """One call, from its first permit to its end. A context manager; leaving it raises what the call was cut for.

    Attributes:
        code: Why it was cut; None while it may go on.
        handed: Whether its content has been sent to a replica or to another region.
    """

    def __init__(self, calls: Calls, tenant: TenantId, key_id: KeyId, uses: Rights) -> None:
        self.tenant = tenant
        self.key_id = key_id
        self.code: Code | None = None
        self.handed = False
        self.end: End | None = None
        self.replica: ReplicaId | None = None
        self.number = PolicyNumber(0, 0)
        self._calls = calls
        self._here = uses
        self._there = NO_RIGHTS
        self._task = asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        self._cancelled = False

    def __enter__(self) -> Self:
        self._calls.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.returned(whole=False)
        self._calls.remove(self)
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
        policy = self._calls.policy(self)
        return 0.0 if policy is None else min(policy.span_s(right.place) for right in self.uses)

    def check(self) -> None:
        """To be asked before a piece of content is read, sent on or shown.

        Raises:
            CutError: It may not go on.
        """
        if self.code is None:
            self.review(self._calls.now())
        if self.code is not None:
            raise CutError

    def reach(self, right: Right) -> None:
        """Its content is about to be sent abroad, or on within the jurisdiction. Undone by `returned`.

        Raises:
            CutError: As `check`.
            MeshError: NO_CAPACITY where the newest policy does not permit it.
        """
        self._there = frozenset({right})
        self._calls.place(self)
        self.check()
        if right not in rights_of(self._calls.newest(self.tenant)):
            raise MeshError(Code.NO_CAPACITY)
        self.handed = True

    def lease(self, replica: ReplicaId) -> Lease:
        """Its content is about to be sent to a replica, which may work on it for as long as this says.

        Raises:
            CutError: As `check`.
            MeshError: NO_CAPACITY where the replica has not been heard of yet.
        """
        self.check()
        self.number = self._calls.number(self.tenant)
        lease = self._calls.replicas.lease(replica, self.tenant, self.left_at_s, self.number)
        if lease is None:
            raise MeshError(Code.NO_CAPACITY)
        self.replica = replica
        self.handed = True
        return lease

    def returned(self, *, whole: bool) -> None:
        """A hop has ended. If it is not known to be `whole`, what was sent to a replica may still wait there."""
        if self.replica is not None and not whole:
            self._calls.abandoned(self.tenant, self.number)
        self.replica = None
        if self._there:
            self._there = NO_RIGHTS
            self._calls.place(self)

    def left_s(self, now: Instant) -> float:
        """For how long it may go on; 0 or less where it may not."""
        policy = self._calls.policy(self)
        if policy is None:
            return 0.0
        left_s = self._calls.left_s(policy, self.uses, now)
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
        policy, calls = self._calls.policy(self), self._calls
        if policy is None or self.code is not None:
            return 0.0
        now = calls.now()
        left_s = min(calls.authority.left_at_s(policy, right.place, then, now) for right in self.uses)
        return left_s if self.end is None else max(0.0, min(left_s, self.end.left_s(then)))

    def freeze(self, end: End, now: Instant) -> None:
        """It ends then, or as an earlier change said."""
        if self.end is None or end.left_s(now) < self.end.left_s(now):
            # What it was begun under stays what it is measured by.
            older = end.older if self.end is None else self.end.older
            self.end = End(end.since, end.for_s, older, end.code)
            self._calls.place(self)
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
