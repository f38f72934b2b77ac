"""How the members stand to a change that takes something away. Pure: told what was read, and when it is now.

Each member that held a grant when the change was committed must have acknowledged it, or be surely without authority:
its grant is gone, or has stood unchanged for W, or W has passed since the commit's answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mesh.control import layout
from mesh.control.members import SeenAck
from mesh.control.memberships import Member, grant_of
from mesh.control.records import TenantRecord
from mesh.policy.authority import wait_s
from mesh.policy.bundle import TenantPolicy
from mesh.policy.shards import Shard
from mesh.policy.shrink import Shrink, rights_of
from mesh.ports import Instant
from mesh.types import Jurisdiction, MemberId, RegionId, Revision


class Committed(Protocol):
    """What a wait must know of a change; `mesh.control.changes.Outcome` has it."""

    @property
    def tenant(self) -> TenantRecord:
        """The record, of this revision or a later one."""
        ...

    @property
    def revision(self) -> Revision:
        """What every member must have done with."""
        ...

    @property
    def number(self) -> int:
        """The shard's, that holds the change."""
        ...

    @property
    def beside(self) -> Mapping[Shard, int]:
        """Numbers of other shards that every member must have come to as well."""
        ...

    @property
    def members(self) -> Mapping[MemberId, Member]:
        """Who held a grant when it was committed."""
        ...

    @property
    def shrink(self) -> Shrink | None:
        """What it took away."""
        ...

    @property
    def committed(self) -> Instant:
        """When the answer was received that told of it."""
        ...


class Standing(StrEnum):
    """How a member stands to a change.

    WAITING: it may still act on what was. DRAINING: it has applied the change, and ends what runs. LAPSED: it surely
    had no authority any more: its grant had stood unchanged for W, or is gone, since it left or its death was attested.
    TIMED_OUT: it did not acknowledge, and its authority has surely run out while this waited.
    """

    WAITING = "waiting"
    DRAINING = "draining"
    ACKNOWLEDGED = "acknowledged"
    LAPSED = "lapsed"
    TIMED_OUT = "timed_out"


_ACCOUNTED = frozenset({Standing.ACKNOWLEDGED, Standing.LAPSED, Standing.TIMED_OUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberState:
    """A member and a change.

    Attributes:
        left_s: For how long it can still hold the wait up: 0 once it is accounted for, or if only its word counts.
        until_s: When that ends, in seconds since 1970; 0 likewise.
    """

    member: MemberId
    region: RegionId
    gateway: str
    standing: Standing
    left_s: float = 0.0
    until_s: float = 0.0

    @property
    def accounted(self) -> bool:
        """Whether nothing of what was taken away is left there."""
        return self.standing in _ACCOUNTED


@dataclass(frozen=True, slots=True, kw_only=True)
class BarrierState:
    """How far a change has come.

    Attributes:
        done: It holds at every member. The last state.
        superseded: A later change gave back what this one took away, or took it away anew. The last state.
        out_of_patience: The caller's deadline passed first. The last state.
        current: Whether the record is known as it was when everyone was accounted for, or within a second before where
            the timer ended the wait; False where the store could not be read then.
        waited_ms: Since the commit was answered.
        recovery_left_s: For how long it goes on whatever is acknowledged: the control store was recovered, and the
            members of the history that it lost are not known.
    """

    members: tuple[MemberState, ...]
    done: bool = False
    superseded: bool = False
    out_of_patience: bool = False
    current: bool = False
    waited_ms: int = 0
    recovery_left_s: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it is the last state."""
        return self.done or self.superseded or self.out_of_patience


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is known of the members: a read, and what was heard since.

    Attributes:
        grants: When each grant was put; None before the first read.
        silent: Grants that had stood for W when the change was committed.
        run_out: Grants that had stood for W when they were read since.
    """

    grants: Mapping[layout.GrantKey, int] | None
    silent: frozenset[layout.GrantKey]
    run_out: frozenset[layout.GrantKey]
    acks: Mapping[layout.AckKey, SeenAck]


def judge(change: Committed, view: View, now: Instant, *, strict: bool) -> tuple[MemberState, ...]:
    """How each member stands to a change. Pure.

    Args:
        change: It takes something away.
        view: What is known.
        now: This moment.
        strict: No timer counts, nor silence: only a member's word, or that its grant is gone.
    """
    policy, shrink = change.tenant.policy, change.shrink
    assert shrink is not None  # noqa: S101 - there is nothing to wait for otherwise
    left_s = wait_s(shrink.span_s) - now.least_since(change.committed)
    numbers = {**change.beside, policy.shard: change.number}
    states: list[MemberState] = []
    for member, seen in sorted(change.members.items()):
        grant = grant_of(member, seen)
        heard = view.acks.get(layout.AckKey(grant.region, grant.member))
        ack = heard.ack if heard is not None else None
        ends_s = max(0.0, left_s)
        knows = ack is not None and all(ack.applied.get(shard, 0) >= number for shard, number in numbers.items())
        if knows and ack is not None and ack.covers(policy.shard, change.number, policy.tenant, change.revision):
            standing = Standing.ACKNOWLEDGED
        elif (view.grants is not None and grant not in view.grants) or (not strict and grant in view.silent):
            standing = Standing.LAPSED
        elif not strict and (left_s <= 0 or grant in view.run_out):
            standing = Standing.TIMED_OUT
        elif knows and heard is not None and ack is not None:
            standing = Standing.DRAINING
            drain_s = max(0.0, ack.draining[policy.tenant].left_s - now.least_since(heard.seen))
            ends_s = drain_s if strict else min(drain_s, ends_s)
        else:
            standing = Standing.WAITING
            ends_s = 0.0 if strict else ends_s
        if standing in _ACCOUNTED:
            ends_s = 0.0
        states.append(
            MemberState(
                member=member,
                region=seen.region,
                gateway=seen.gateway,
                standing=standing,
                left_s=ends_s,
                until_s=now.wall_s + ends_s if ends_s else 0.0,
            )
        )
    return tuple(states)


def is_superseded(change: Committed, later: Iterable[TenantPolicy], made: TenantPolicy | None) -> bool:
    """Whether what a change took away was given back since, or was taken away anew. Pure.

    Args:
        change: It takes something away.
        later: Policies of later revisions, all of them or the newest alone: see `tells_by_itself`.
        made: The policy that the change made, if it is known.
    """
    shrink = change.shrink
    if shrink is None:
        return False
    for policy in later:
        if shrink.removed & rights_of(policy):
            return True
        if made is not None and shrink.lowered and policy.authority != made.authority:
            return True
        if made is not None and any(
            place not in made.allowed and policy.out_since.get(place, 0) > change.revision for place in _removed(shrink)
        ):
            return True
    return False


def tells_by_itself(change: Committed, newest: TenantPolicy) -> bool:
    """Whether the newest policy shows that nothing in between gave back what a change took: all of it is out since."""
    shrink = change.shrink
    return shrink is None or (
        not shrink.lowered
        and all(
            place not in newest.allowed and newest.out_since.get(place, 0) <= change.revision
            for place in _removed(shrink)
        )
    )


def _removed(shrink: Shrink) -> set[Jurisdiction]:
    return {right.place for right in shrink.removed}
