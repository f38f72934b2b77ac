"""No piece of content passes where nothing covers it: for any order of grants, changes of policy, keys and time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from gateway.world import KEY, TENANT, VN
from hypothesis import given, settings
from hypothesis import strategies as st
from manual_clock import ManualClock

from mesh.errors import Code, MeshError
from mesh.gateway.ongoing import CutError, Ongoing
from mesh.gateway.running import Running
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook, Spans, TenantKey, TenantPolicy
from mesh.policy.shrink import Right, Rights, rights_of
from mesh.ports import Instant
from mesh.transport.handouts import HandOuts
from mesh.types import Here, Jurisdiction, KeyId, RegionId, ReplicaId, Revision, TenantState, Transfer

HOME, OUT, FAR = (Jurisdiction(code) for code in ("VN", "SG", "JP"))
USES: dict[str, Rights] = {
    "client": frozenset({Right(OUT, False)}),
    "received": frozenset({Right(OUT, True), Right(HOME, False)}),
    "from afar": frozenset({Right(OUT, True), Right(FAR, False)}),
    "sent": frozenset({Right(OUT, False), Right(FAR, True)}),
    "sent home": frozenset({Right(OUT, False), Right(HOME, True)}),
}


@dataclass(frozen=True)
class Tick:
    seconds: float
    slower: float
    """How much slower MONOTONIC_RAW went, as a share."""
    timer: bool
    """Whether the timer had its turn; a process that was stopped shows the next piece before."""


@dataclass(frozen=True)
class Grant:
    """An answer; `asked_s` before now its question began."""

    asked_s: float


@dataclass(frozen=True)
class Change:
    allowed: frozenset[Jurisdiction]
    transfer: Transfer
    state: TenantState
    drain_s: float
    spans: Spans


@dataclass(frozen=True)
class Gone:
    """The tenant has no valid record any more."""


@dataclass(frozen=True)
class KeyEnds:
    key_id: KeyId


changes = st.builds(
    Change,
    allowed=st.frozensets(st.sampled_from([HOME, OUT, FAR]), min_size=1),
    transfer=st.sampled_from([Transfer.WITHIN_ALLOWED, Transfer.WITHIN_ALLOWED, Transfer.NEVER]),
    state=st.sampled_from([TenantState.ACTIVE, TenantState.ACTIVE, TenantState.ACTIVE, TenantState.SUSPENDED]),
    drain_s=st.sampled_from([0.0, 1.0, 4.0, 30.0]),
    spans=st.sampled_from([Spans(), Spans(home_s=6.0), Spans(foreign_s=3.0), Spans(foreign_s=20.0)]),
)
ticks = st.builds(
    Tick,
    seconds=st.sampled_from([0.01, 1.0, 1.9, 4.0]),
    slower=st.sampled_from([0.0, 0.08]),
    timer=st.booleans(),
)
grants = st.builds(Grant, asked_s=st.sampled_from([0.0, 0.4, 1.5]))
ends = st.one_of(st.builds(Gone), st.builds(KeyEnds, key_id=st.sampled_from([KEY.key_id, KeyId("other")])))
steps = st.one_of(ticks, ticks, ticks, grants, grants, changes, changes, ends)


@dataclass
class Watched:
    """A call, and what a reader of the protocol says of it."""

    call: Ongoing
    uses: Rights
    ends_s: list[float] = field(default_factory=list)
    """When changes said that it ends at the latest."""
    over: bool = False


class Ground:
    """The thing itself beside a second account of what covers a call: BOOTTIME, which is never the slower clock here."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.book = PolicyBook()
        self.authority = Authority()
        self.handouts = HandOuts(self.clock)
        self.handouts.pinged(ReplicaId("a"), 1, 0)
        self.running = Running(
            here=Here(region=RegionId("ap-southeast-1"), jurisdiction=OUT),
            book=self.book,
            authority=self.authority,
            replicas=self.handouts,
            clock=self.clock,
        )
        self.policy = self._policy(
            Change(frozenset({HOME, OUT, FAR}), Transfer.WITHIN_ALLOWED, TenantState.ACTIVE, 0.0, Spans()), 1
        )
        self.book.put_tenant(self.policy)
        self.book.put_key(TenantKey(key_id=KEY.key_id, tenant=TENANT, hash="", revoked=False))
        self.book.watcher = self.running
        self.granted_s = self.clock.boot_s
        self.authority.granted({}, self.clock.instant())
        self.calls: list[Watched] = []

    def _policy(self, change: Change, revision: int) -> TenantPolicy:
        return TenantPolicy(
            tenant=TENANT,
            home=VN,
            home_jurisdiction=HOME,
            revision=Revision(revision),
            state=change.state,
            allowed=change.allowed,
            transfer=change.transfer,
            authority=change.spans,
            drain_s=change.drain_s,
        )

    def begin(self, kind: str, *, handed: bool) -> None:
        call = self.running.enter(tenant=TENANT, key_id=KEY.key_id, uses=USES[kind])
        call.__enter__()
        if handed:
            call.lease(ReplicaId("a"))
        self.calls.append(Watched(call, USES[kind]))

    def left_s(self, policy: TenantPolicy, uses: Rights) -> float:
        return min(policy.span_s(right.place) for right in uses) - (self.clock.boot_s - self.granted_s)

    def covered(self, watched: Watched) -> bool:
        if watched.ends_s:
            return all(self.clock.boot_s < end_s for end_s in watched.ends_s)
        known = self.book.tenant(TENANT)
        return known is not None and self.left_s(known, watched.uses) > 0

    def allowed_s(self) -> float:
        """For how long a replica may be told to go on: by what ends first of all that it has."""
        left: list[float] = []
        for watched in self.calls:
            known = self.book.tenant(TENANT)
            if watched.call.handed and not watched.over and known is not None:
                ends = [end_s - self.clock.boot_s for end_s in watched.ends_s]
                left.append(min(ends) if ends else self.left_s(known, watched.uses))
            elif watched.call.handed:
                left.append(0.0)
        return min(left, default=0.0)

    def note_change(self, after: TenantPolicy | None) -> None:
        """What the protocol says of each call when a record is applied."""
        before = self.book.tenant(TENANT)
        if before is None or before == after:
            return
        now_s = self.clock.boot_s
        for watched in self.calls:
            gone = rights_of(before) - rights_of(after)
            if watched.uses & gone or (watched.ends_s and not rights_of(after)):
                drain_s = after.drain_s if after is not None and after.state is TenantState.ACTIVE else 0.0
                drain_s = drain_s if watched.call.handed else 0.0
                watched.ends_s.append(now_s + min(drain_s, max(0.0, self.left_s(before, watched.uses))))
            if watched.ends_s and after is not None:
                watched.ends_s.append(now_s + max(0.0, self.left_s(after, watched.uses)))

    def take(self, step: object) -> None:
        match step:
            case Tick(seconds, slower, timer):
                self.clock.raw_rate = 1 - slower
                self.clock._pass(seconds)
                if timer:
                    self.running.review()
            case Grant(asked_s):
                t0_s = max(self.granted_s, self.clock.boot_s - asked_s)
                passed_s = self.clock.boot_s - t0_s
                now = self.clock.instant()
                self.granted_s = t0_s
                t0 = Instant(now.boot_s - passed_s, now.raw_s - passed_s, now.wall_s - passed_s)
                self.authority.granted({}, t0)
            case Change():
                self.policy = self._policy(step, self.policy.revision + 1)
                self.note_change(self.policy)
                self.book.put_tenant(self.policy)
            case Gone():
                self.note_change(None)
                self.book.drop_tenant(TENANT)
            case KeyEnds(key_id):
                known = self.book.key(key_id)
                if known is not None and not known.revoked:
                    for watched in self.calls:
                        watched.over = True
                    self.book.put_key(TenantKey(key_id=key_id, tenant=TENANT, hash="", revoked=True))
            case _:
                raise AssertionError
        for watched in self.calls:
            watched.over = watched.over or not self.covered(watched)


def passes(call: Ongoing) -> bool:
    try:
        call.check()
    except CutError:
        return False
    return True


@settings(max_examples=250)
@given(
    st.lists(st.tuples(st.sampled_from(list(USES)), st.booleans()), min_size=1, max_size=3),
    st.lists(steps, min_size=3, max_size=14),
)
def test_a_piece_passes_exactly_while_something_covers_its_call(
    calls: list[tuple[str, bool]], taken: list[object]
) -> None:
    async def scenario() -> None:
        ground = Ground()
        for kind, handed in calls:
            ground.begin(kind, handed=handed)
        for step in taken:
            ground.take(step)
            for watched in ground.calls:
                assert passes(watched.call) == (not watched.over)
                # What has no valid policy, or was said to end, is not acknowledged while it is here.
                assert not watched.ends_s or TENANT in ground.running.draining()
            for hold in ground.running.holds(ReplicaId("a")):
                assert hold.left_at(ground.clock.instant()) <= ground.allowed_s() + 1e-6

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()


async def test_a_key_that_ends_is_told_of_before_anything_else_of_its_tenant() -> None:
    """A later hold would cover what was sent with that key as well."""
    ground = Ground()
    ground.begin("client", handed=True)
    ground.take(KeyEnds(KEY.key_id))
    said = ground.handouts.message(ReplicaId("a"))
    assert [(fence.tenant, fence.key_id) for fence in said.fences] == [(TENANT, KEY.key_id)]


async def test_what_drains_is_sent_nowhere_that_the_newest_policy_does_not_allow() -> None:
    """A second address of a region that was removed while the first was tried."""
    ground = Ground()
    call = ground.running.enter(tenant=TENANT, key_id=KEY.key_id, uses=USES["client"])
    with call:
        call.reach(Right(FAR, True))
        ground.take(Change(frozenset({HOME, OUT}), Transfer.WITHIN_ALLOWED, TenantState.ACTIVE, 30.0, Spans()))
        call.check()  # it drains
        with pytest.raises(MeshError) as refused:
            call.reach(Right(FAR, True))
        assert refused.value.code is Code.NO_CAPACITY
