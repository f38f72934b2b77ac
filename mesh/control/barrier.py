"""Waits until a change that takes something away holds everywhere: the return rule of a pin.

Whether it does is judged (`standing.py`) on the tenant's record, the grants and the acknowledgements as they stood at
one revision of the store, not older than a linearizable read that was asked for after the commit: that read itself, or
what an unbroken watch has made of it since. So no further round trip follows the last acknowledgement
(docs/decisions/0013). What time alone decides is judged on a read that is asked for just before. Where the tenant has
left this home meanwhile, what its next homes have put is read as well: they may have given back what was taken.

For some time after a recovery of the store every wait takes its full W: see `epoch.py`.

Where the store cannot be read when W is over, the wait ends by its timer alone. That is sound: the members are those of
the commit itself, and the timer needs nobody's word. Only whether a *later* change gave back what this one took is then
not known; such a change was made by somebody else while this one was under way.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from mesh.control import layout
from mesh.control.epoch import EpochStart
from mesh.control.history import StoreHistory
from mesh.control.later import LaterChanges, other_store
from mesh.control.members import Following, Members, SeenAck
from mesh.control.memberships import Ack, Drain, decode_ack, grant_of, members_of
from mesh.control.records import Trust
from mesh.control.standing import (
    BarrierState,
    Committed,
    MemberState,
    Standing,
    View,
    judge,
)
from mesh.control.store import (
    Compare,
    Delete,
    KeyValue,
    Range,
    Store,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
)
from mesh.errors import Code, MeshError
from mesh.policy.authority import wait_s
from mesh.policy.shards import Shard
from mesh.ports import Clock, Instant
from mesh.telemetry.log import Log
from mesh.types import GatewayId, MemberId, RegionId, TenantId

__all__ = ["Barrier", "BarrierState", "MemberRow", "MemberState", "Standing"]
_TICK_S = 1.0
_READ_S = 1.0
_SHORTEST_S = 0.005
_AHEAD_S = 0.5
"""So long before the timer is over the store is asked once more, so that nothing is left to be asked when it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRow:
    """One member as it is now.

    Attributes:
        grant_age_s: For how long its grant has surely stood, as this admin has seen.
        shards: Every shard that was ever written: the number that the member has applied, and the shard's.
    """

    member: MemberId
    region: RegionId
    gateway: str
    grant_age_s: float
    shards: Mapping[Shard, tuple[int, int]]
    draining: Mapping[TenantId, Drain]


class Barrier:
    """Waits until changes of this home's tenants hold everywhere, and tells how the members stand."""

    def __init__(
        self,
        *,
        store: Store,
        region: RegionId,
        members: Members,
        trust: Trust,
        clock: Clock,
        log: Log | None = None,
        history: StoreHistory | None = None,
        start: EpochStart | None = None,
    ) -> None:
        self._store = store
        self._region = region
        self._members = members
        self._trust = trust
        self._clock = clock
        self._log = log
        self._history = history or StoreHistory()
        self._start = start or EpochStart(trust)

    async def wait(
        self, change: Committed, *, strict: bool = False, deadline_s: float | None = None
    ) -> AsyncGenerator[BarrierState]:
        """Tells how far a change has come: at each step, at least once a second, and at last how it ended.

        May be closed at any time: the change stays, and is waited for again by whoever asks for it again.

        Args:
            change: What was committed. One that takes nothing away is done at once.
            strict: Acknowledgements and attestations only, no timer.
            deadline_s: For how long to wait, from now; None is for as long as it takes.

        Raises:
            MeshError: `internal_error`: the store is not the one that the change was made in.
        """
        if change.shrink is None:
            yield BarrierState(members=(), done=True, current=True, waited_ms=_waited_ms(change, self._clock.instant()))
            return
        wait = _Wait(
            self._store,
            self._members,
            self._trust,
            self._clock,
            change,
            history=self._history,
            start=self._start,
            strict=strict,
            deadline_s=deadline_s,
        )
        policy = change.tenant.policy
        with self._members.following(layout.policy_key(policy.home, policy.tenant)) as following:
            while True:
                if (state := wait.news()) is not None:
                    yield state
                    if state.over:
                        return
                await wait.read()
                if (state := wait.news(judged=True)) is not None:
                    yield state
                    if state.over:
                        return
                while (heard := await wait.hear(following)) is not _Heard.READ:
                    if (state := wait.news(judged=heard is _Heard.ALL)) is not None:
                        yield state
                        if state.over:
                            return

    async def status(self) -> tuple[MemberRow, ...]:
        """All members, as they stand now.

        Raises:
            MeshError: `policy_store_unavailable`.
        """
        try:
            answer = await self._store.txn((), [Range(*layout.MEMBERS), Range(*layout.HEADS)], timeout_s=_READ_S)
        except StoreError as error:
            raise _unasked(error) from None
        items, now = answer.ranges[0].items, self._clock.instant()
        heads = {
            at.shard: item.version
            for item in answer.ranges[1].items
            if isinstance(at := layout.parse(item.key), layout.HeadKey)
        }
        acks = _acks_of(items, now)
        rows: list[MemberRow] = []
        for member, seen in sorted(members_of(items).items(), key=lambda one: (one[1].region, one[1].gateway, one[0])):
            grant = grant_of(member, seen)
            heard = acks.get(layout.AckKey(grant.region, grant.member))
            ack = (heard.ack if heard is not None else None) or Ack()
            rows.append(
                MemberRow(
                    member=member,
                    region=seen.region,
                    gateway=seen.gateway,
                    grant_age_s=self._members.silent_for(grant, seen.mod_revision, now),
                    shards={shard: (ack.applied.get(shard, 0), number) for shard, number in heads.items()},
                    draining=ack.draining,
                )
            )
        return tuple(rows)

    async def attest(self, member: MemberId) -> GatewayId:
        """Takes somebody's word that a gateway process of this region is dead, its work in its replicas too.

        Its grant is deleted, so that no admin waits for it, unless it is renewed meanwhile. Whoever is dead has none
        left to attest again. A process that lives after all finds its grant gone, and gives up its authority.

        Returns:
            Which gateway it was.

        Raises:
            MeshError: `member_not_found`; `invalid_parameter`: it has just renewed its grant;
                `policy_store_unavailable`.
        """
        grant, ack = layout.grant_key(self._region, member), layout.ack_key(self._region, member)
        if layout.parse_member(grant) != layout.GrantKey(self._region, member):
            raise MeshError(Code.MEMBER_NOT_FOUND)
        try:
            found = (await self._store.range(Range(grant), timeout_s=_READ_S)).items
            if not found:
                raise MeshError(Code.MEMBER_NOT_FOUND)
            deletes = [Delete(grant), Delete(ack)]
            done = await self._store.txn([Compare(grant, found[0].mod_revision)], deletes, timeout_s=_READ_S)
        except StoreError as error:
            raise _unasked(error) from None
        if not done.succeeded:
            raise MeshError(Code.INVALID_PARAMETER, param="member", hint="It has just renewed its grant: it lives.")
        gateway = members_of(found)[member].gateway
        if self._log is not None:
            self._log.warning("member.attested_dead", instance=member, gateway=gateway or None, revision=done.revision)
        return GatewayId(gateway)


class _Heard(Enum):
    """What a wait makes of what it heard, or of the time: nothing ends, it is time to read, or all is known."""

    SOME = auto()
    READ = auto()
    ALL = auto()


class _Wait:
    """One wait: what was read and heard, and what was said of it."""

    def __init__(
        self,
        store: Store,
        members: Members,
        trust: Trust,
        clock: Clock,
        change: Committed,
        *,
        history: StoreHistory,
        start: EpochStart,
        strict: bool,
        deadline_s: float | None,
    ) -> None:
        self._store = store
        self._members = members
        self._clock = clock
        self._change = change
        self._history = history
        self._start = start
        self._strict = strict
        self._until_s = math.inf if deadline_s is None else clock.now_s() + deadline_s
        self._wait_s = 0.0 if change.shrink is None else wait_s(change.shrink.span_s)
        self._grants = {grant_of(member, seen): seen.mod_revision for member, seen in change.members.items()}
        silent = self._silent(self._grants, change.committed)
        self._view = View(grants=None, silent=silent, run_out=frozenset(), acks={})
        self._revision = max(self._grants.values(), default=0)
        self._superseded = False
        self._later = LaterChanges(store, trust, change)
        self._fresh = False
        self._watch: object | None = None
        self._read_s = self._said_s = clock.now_s()
        self._said: BarrierState | None = None

    async def read(self) -> None:
        """Reads the record, the grants and the acknowledgements; without an answer what is known stays."""
        self._fresh, self._read_s = False, self._clock.now_s()
        self._watch, watch = None, self._members.unbroken
        policy = self._change.tenant.policy
        ranges = [Range(layout.policy_key(policy.home, policy.tenant)), Range(*layout.MEMBERS)]
        seen = self._history.seen()
        try:
            # Once the timer is over, no answer changes that.
            most_s = _AHEAD_S if self._over_s(self._clock.instant()) <= 0 else _READ_S
            answer = await self._store.txn((), ranges, timeout_s=max(_SHORTEST_S, self._left_s(most_s)))
            received = self._clock.instant()
            try:
                self._history.take(answer, seen)
            except MeshError:
                raise other_store() from None
            record, members = answer.ranges[0].items, answer.ranges[1].items
            if answer.revision < self._revision or not record:
                raise other_store()
            self._revision = answer.revision
            self._members.observe(members_of(members), answer.revision, received)
            grants = {grant_of(member, seen): seen.mod_revision for member, seen in members_of(members).items()}
            self._view = View(
                grants=grants,
                silent=self._view.silent,
                run_out=self._view.run_out | self._silent(grants, received),
                acks=_acks_of(members, received, self._view.acks),
            )
            self._superseded = self._superseded or await self._later.gave_back(record[0])
        except StoreUnavailableError:
            return
        except StoreError as error:
            raise _unasked(error) from None
        # Of what another home puts the watch that is followed here does not tell: it is read again.
        self._fresh, self._watch = True, None if self._later.left else watch

    def news(self, *, judged: bool = False) -> BarrierState | None:
        """The state, if it differs from what was said last, or nothing was said for a second.

        Args:
            judged: Whether what is known is of one moment, and that is now: only then a wait may end.
        """
        now, now_s = self._clock.instant(), self._clock.now_s()
        state = self._state(now, judged=judged)
        said = self._said
        if (
            said is not None
            and not state.over
            and now_s < self._said_s + _TICK_S
            and _standings(said) == _standings(state)
        ):
            return None
        self._said, self._said_s = state, now_s
        return state

    async def hear(self, following: Following) -> _Heard:
        """Waits for what the watch tells, or until it is time to read."""
        now, now_s = self._clock.instant(), self._clock.now_s()
        left_s = self._left_s(self._read_s + _TICK_S - now_s)
        recovery_left_s = self._recovery_left_s(now)
        if recovery_left_s > 0:
            left_s = min(left_s, recovery_left_s)
        if not self._strict:
            over_s = self._over_s(now)
            if over_s <= 0:
                return _Heard.READ  # which ends it
            if self._read_s < now_s + over_s - _AHEAD_S:
                silent_s = [
                    self._wait_s - self._members.silent_for(grant, mod_revision, now)
                    for grant, mod_revision in (self._view.grants or {}).items()
                    if grant in self._grants
                ]
                left_s = min(left_s, max(0.0, over_s - _AHEAD_S), *(one for one in silent_s if one > 0))
            else:
                # By the slower of the clocks: not to wake a moment too early, and ask again.
                left_s = min(left_s, over_s + _SHORTEST_S)
        try:
            async with self._clock.timeout(max(left_s, _SHORTEST_S)):
                await following.rung.wait()
        except TimeoutError:
            if self._clock.now_s() - self._read_s >= _TICK_S or self._over_s(self._clock.instant()) > 0:
                return _Heard.READ
        following.rung.clear()
        now, heard = self._clock.instant(), self._heard()
        if not all(member.accounted for member in judge(self._change, heard, now, strict=self._strict)):
            return _Heard.SOME
        if not self._follows(following, now):
            return _Heard.READ
        self._view = heard
        return _Heard.ALL

    def _follows(self, following: Following, now: Instant) -> bool:
        """Whether what was read and heard is the store as it was at what was heard last.

        A record that was put since is read again. What a timer ends has no event that says how old all else is that is
        known: there the read must be young.
        """
        return (
            self._watch is not None
            and self._watch is self._members.unbroken
            and following.changed <= self._revision
            and (self._over_s(now) > 0 or self._clock.now_s() - self._read_s < _TICK_S)
        )

    def _over_s(self, now: Instant) -> float:
        """In how many seconds, at the latest, nobody has authority any more from before the change; inf if strict."""
        return math.inf if self._strict else self._wait_s - now.least_since(self._change.committed)

    def _state(self, now: Instant, *, judged: bool) -> BarrierState:
        change, strict = self._change, self._strict
        is_over = self._over_s(now) <= 0
        members = judge(change, self._view, now, strict=strict)
        recovery_left_s = self._recovery_left_s(now)
        known = recovery_left_s <= 0 and all(member.accounted for member in members)
        done = judged and (self._fresh or is_over) and known
        superseded = judged and self._superseded
        if not done:
            members = judge(change, self._heard(), now, strict=strict)
        return BarrierState(
            members=members,
            done=done and not superseded,
            superseded=superseded,
            out_of_patience=not done and not superseded and self._clock.now_s() >= self._until_s,
            current=done and self._fresh,
            waited_ms=_waited_ms(change, now),
            recovery_left_s=recovery_left_s,
        )

    def _recovery_left_s(self, now: Instant) -> float:
        """For how long those whom nobody knows any more may still act by what was; strict waits wait for them, too."""
        over_s = self._wait_s - now.least_since(self._change.committed)
        return max(0.0, min(over_s, self._start.left_s(now)))

    def _heard(self) -> View:
        """What was read, and what was heard since."""
        acks = dict(self._view.acks)
        for grant in self._grants:
            at = layout.AckKey(grant.region, grant.member)
            heard, known = self._members.ack(at), acks.get(at)
            if heard is not None and (known is None or heard.mod_revision > known.mod_revision):
                acks[at] = heard
        return replace(self._view, acks=acks)

    def _silent(self, grants: Mapping[layout.GrantKey, int], at: Instant) -> frozenset[layout.GrantKey]:
        """Those of the change's members whose grant had stood for W when it was read."""
        return frozenset(
            grant
            for grant, mod_revision in grants.items()
            if grant in self._grants and self._members.silent_for(grant, mod_revision, at) >= self._wait_s
        )

    def _left_s(self, most_s: float) -> float:
        return min(most_s, self._until_s - self._clock.now_s())


def _acks_of(
    items: Iterable[KeyValue], received: Instant, known: Mapping[layout.AckKey, SeenAck] | None = None
) -> dict[layout.AckKey, SeenAck]:
    found: dict[layout.AckKey, SeenAck] = {}
    for item in items:
        at = layout.parse_member(item.key)
        if isinstance(at, layout.AckKey):
            before = known.get(at) if known is not None else None
            is_same = before is not None and before.mod_revision == item.mod_revision
            found[at] = before if before and is_same else SeenAck(item.mod_revision, decode_ack(item.value), received)
    return found


def _standings(state: BarrierState) -> tuple[Standing, ...]:
    return tuple(member.standing for member in state.members)


def _waited_ms(change: Committed, now: Instant) -> int:
    return max(0, round(now.least_since(change.committed) * 1000))


def _unasked(error: StoreError) -> MeshError:
    if isinstance(error, StoreDeniedError):
        return MeshError(Code.INTERNAL_ERROR, hint="The control store refuses this program's certificate.")
    return MeshError(Code.POLICY_STORE_UNAVAILABLE)
