"""The protocol with one rule left out, for each rule that the code can express: a part of an episode is replaced.

None of it patches a module: each is a variant of an object that the episode is put together from, so what is found is
found in the product's own code around it. `NOT_EXPRESSED` says which rules cannot be left out this way, and why.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from sim.hosts import Host
from sim.parts import ROGUE, SECRET, Parts, PlainHasher, RestingRunning
from trust_lab import Notebook, policy_key_of

from mesh.control import edits, layout
from mesh.control.barrier import Barrier, BarrierState
from mesh.control.changes import Changes, Journal, Outcome
from mesh.control.epoch import EpochStart
from mesh.control.feed import PolicyFeed
from mesh.control.grants import Membership
from mesh.control.homes import Claims
from mesh.control.members import Members
from mesh.control.memberships import Ack, Drain, decode_grant
from mesh.control.moves import Moves
from mesh.control.overdue import Overdue
from mesh.control.records import Fault, HomeTrust, RecordError, TenantRecord, Trust
from mesh.control.signing import fields, verify
from mesh.control.store import Compare, Event, KeyValue, Op, Range, TxnResult
from mesh.control.sweep import MemberSweeper
from mesh.gateway.keyring import Caller, Keyring
from mesh.gateway.running import Running
from mesh.gateway.story import Story
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook, Spans, TenantPolicy
from mesh.policy.decide import Permit, decide
from mesh.policy.shards import Shard
from mesh.policy.shrink import Rights
from mesh.ports import Clock, Entropy, Instant
from mesh.serving.leases import Leases, Stay
from mesh.settings import PolicyKey
from mesh.transport.fleet_hub import FleetHub
from mesh.types import Here, Jurisdiction, KeyId, PolicyNumber, RegionId, ReplicaId, Revision, TenantId

# --- authority


class _FromReceipt(Authority):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def granted(self, heads: Mapping[Shard, int], t0: Instant) -> None:
        super().granted(heads, self._clock.instant())


class _WhateverApplied(Authority):
    """Whose watch lags acts on what it has not applied."""

    def granted(self, heads: Mapping[Shard, int], t0: Instant) -> None:
        super().granted(heads, t0)
        for shard in heads:
            self._raise(shard, t0)


class _ByBoottime(Authority):
    def left_s(self, policy: TenantPolicy, place: Jurisdiction, now: Instant) -> float:
        since = self.since(policy.shard)
        if since is None:
            return 0.0
        return max(0.0, policy.span_s(place) - (now.boot_s - since.boot_s))


class _WithoutWall(Authority):
    """Does not notice that BOOTTIME and RAW stood still."""

    def look(self, now: Instant) -> None:
        pass

    def left_s(self, policy: TenantPolicy, place: Jurisdiction, now: Instant) -> float:
        since = self.since(policy.shard)
        return 0.0 if since is None else max(0.0, policy.span_s(place) - now.most_since(since))


class _HomeSends(Authority):
    """Sends abroad for as long as it may serve at home."""

    def left_s(self, policy: TenantPolicy, place: Jurisdiction, now: Instant) -> float:
        return super().left_s(policy, policy.home_jurisdiction, now)


class T0recv(Parts):
    def authority(self, here: Here, clock: Clock) -> Authority:
        return _FromReceipt(clock)


class _Patient(Overdue):
    """Waits for the watch, for ever: otherwise what was not applied is mostly read before it shows."""

    def answered(self, heads: Mapping[Shard, int]) -> None:
        pass


class Watchonly(Parts):
    def authority(self, here: Here, clock: Clock) -> Authority:
        return _WhateverApplied()

    def overdue(self, feed: PolicyFeed, clock: Clock) -> Overdue:
        return _Patient(feed, clock)


class Slew(Parts):
    def authority(self, here: Here, clock: Clock) -> Authority:
        return _ByBoottime()


class Static(Parts):
    def authority(self, here: Here, clock: Clock) -> Authority:
        return _WithoutWall()


class Sendhome(Parts):
    def authority(self, here: Here, clock: Clock) -> Authority:
        return _HomeSends() if here.jurisdiction == "VN" else Authority()


# --- grants and acknowledgements


class _GrantedBeforePut(Membership):
    """Reads first, and puts its grant with the next renewal."""

    _has_read = False

    async def _renew_once(self) -> None:
        if self._has_read:
            await super()._renew_once()
            return
        t0 = self._clock.instant()
        heads = await self._store.range(Range(*layout.HEADS), timeout_s=1.5)
        parsed = [(layout.parse(item.key), item.version) for item in heads.items]
        self._authority.granted({at.shard: number for at, number in parsed if isinstance(at, layout.HeadKey)}, t0)
        self._has_read = True


class _AcksWhatIsKnown(Membership):
    """Acknowledges the numbers of its last grant, whether it has applied them or not."""

    def _state(self) -> Ack:
        known = {shard: head.version for shard, head in (self._seen.heads or {}).items()}
        return Ack(self._applied | known, dict(self._draining()))

    async def _renew_once(self) -> None:
        await super()._renew_once()
        self._acks.changed()


class _NoTwin(Membership):
    """Takes whatever stands at its grant for its own."""

    def _is_granted(self, answer: TxnResult, attempt: bytes) -> bool:
        if not answer.succeeded and answer.ranges[0].items:
            self._mod_revision = answer.ranges[0].items[0].mod_revision
            return False
        self._last = _attempt_of(answer, self._last)
        return super()._is_granted(answer, attempt)


class _NeverBack(Membership):
    def went_back(self) -> None:
        self._seen.heads, self._seen.revision, self._seen.cluster = None, 0, 0
        self._applied.clear()


def _attempt_of(answer: TxnResult, last: bytes) -> bytes:
    here = answer.ranges[0].items
    grant = decode_grant(here[0].value) if here else None
    return last if grant is None else grant.attempt


class Latemember(Parts):
    def membership(self, **given: Any) -> Membership:
        return _GrantedBeforePut(**given)


class Jumpack(Parts):
    def membership(self, **given: Any) -> Membership:
        return _AcksWhatIsKnown(**given)


class Twin(Parts):
    def membership(self, **given: Any) -> Membership:
        return _NoTwin(**given)


class Nodrain(Parts):
    def draining(self, running: Running) -> Callable[[], Mapping[TenantId, Drain]]:
        return dict


class Restore(Parts):
    def membership(self, **given: Any) -> Membership:
        return _NeverBack(**given)

    def feed(self, *given: Any) -> PolicyFeed:
        return _TakesOlder(*given)

    def book(self) -> PolicyBook:
        return _NoFloor()


# --- what runs


class _DrainsAsGranted(RestingRunning):
    """What drains goes on for the whole drain while grants come."""

    _freezing = False

    def tenant_changes(self, before: TenantPolicy, after: TenantPolicy | None) -> None:
        self._freezing = True
        try:
            super().tenant_changes(before, after)
        finally:
            self._freezing = False

    def left_s(self, policy: TenantPolicy, uses: Rights, now: Instant) -> float:
        return 1e6 if self._freezing else super().left_s(policy, uses, now)


class _DrainsTheFirst(RestingRunning):
    """Tells only of the oldest revision that it drains."""

    def tenant_changes(self, before: TenantPolicy, after: TenantPolicy | None) -> None:
        known = self._drains.of.get(before.tenant)
        first = None if known is None else known.revision
        super().tenant_changes(before, after)
        if first is not None:
            self._drains.of[before.tenant].revision = first


class Drainlive(Parts):
    def running(self, **given: Any) -> Running:
        return _DrainsAsGranted(**given)


class Cumulative(Parts):
    def running(self, **given: Any) -> Running:
        return _DrainsTheFirst(**given)


# --- replicas


class _Live(Leases):
    """Counts from when it hears, not from when it sent the ping."""

    def _known(self, number: int) -> Any:
        ping = super()._known(number)
        return None if ping is None else replace(ping, sent=self.now())


class _LateHops(Leases):
    """A hop counts from when it comes."""

    def admit(self, text: bytes | None, tenant: TenantId, key_id: KeyId | None) -> Stay:
        self._admitting = True
        try:
            return super().admit(text, tenant, key_id)
        finally:
            self._admitting = False

    _admitting = False

    def _known(self, number: int) -> Any:
        ping = super()._known(number)
        return replace(ping, sent=self.now()) if ping is not None and self._admitting else ping


class _NoFence(Leases):
    """Ends what a fence is about, and forgets it."""

    def source(self) -> Any:
        source = super().source()
        said = source.said

        def heard(*given: Any, **named: Any) -> None:
            said(*given, **named)
            source._fences.clear()

        source.said = heard
        return source


class _AtOnce:
    confirmed = True


class _ClosesOnly(FleetHub):
    """Believes that what it has closed has ended."""

    def fence(self, tenant: TenantId, below: PolicyNumber, key_id: KeyId | None = None) -> Any:
        super().fence(tenant, below, key_id)
        return _AtOnce()


class _LowersAlone(FleetHub):
    def lowered(self, tenant: TenantId) -> Any:
        super().lowered(tenant)
        return _AtOnce()


class _HeardByAll(FleetHub):
    def all_heard(self, processes: int) -> bool:
        return True


class Attestearly(Parts):
    """A process attests the death of the one before it, whatever the replicas still do for that."""

    def hub(self, **given: Any) -> FleetHub:
        return _HeardByAll(**given)


class Live(Parts):
    def leases(self, replica: ReplicaId, clock: Clock) -> Leases:
        return _Live(replica, clock)


class Pauseadmit(Parts):
    def leases(self, replica: ReplicaId, clock: Clock) -> Leases:
        return _LateHops(replica, clock)


class Pingreuse(Parts):
    def replica_id(self, host: Host) -> ReplicaId:
        return ReplicaId("0123456789abcdef")


class Longstep(Parts):
    def measured_step_s(self, longest_s: float) -> float:
        return -0.1  # nor the margin: the step alone decides


class Fence(Parts):
    def leases(self, replica: ReplicaId, clock: Clock) -> Leases:
        return _NoFence(replica, clock)


class Ackclose(Parts):
    def hub(self, **given: Any) -> FleetHub:
        return _ClosesOnly(**given)


class Lowerack(Parts):
    def hub(self, **given: Any) -> FleetHub:
        return _LowersAlone(**given)


# --- Peer


class _BelievesSender(Story[Any, Any]):
    def _permit_forwarded(self, tenant: TenantId, key_id: KeyId, entry: RegionId) -> Permit:
        policy = self._book.tenant(tenant)
        assert policy is not None
        wide = replace(policy, allowed=policy.allowed | {self._here.jurisdiction})
        permit = decide(wide, self._here, lambda *_: 1.0)
        assert isinstance(permit, Permit)
        return permit


class Senderdecides(Parts):
    def story(self, **given: Any) -> Story[Any, Any]:
        return _BelievesSender(**given)


# --- the feed


class _NoGap(PolicyFeed):
    """Takes each head for the next one."""

    def _successor(self, shard: Shard, changes: list[Event]) -> KeyValue | None:
        heads = [event for event in changes if isinstance(layout.parse(event.key), layout.HeadKey)]
        if len(heads) != 1 or len(changes) == 1:
            return super()._successor(shard, changes)
        head = heads[0]
        return KeyValue(head.key, head.value or b"", head.mod_revision, head.version)


class _TakesOlder(PolicyFeed):
    def _put_tenant(self, policy: TenantPolicy) -> None:
        self._newest[policy.tenant] = policy.place
        self._book.put_tenant(policy)


class _NoFloor(PolicyBook):
    def put_tenant(self, policy: TenantPolicy) -> None:
        self._floors.pop(policy.tenant, None)
        super().put_tenant(policy)


@dataclass(frozen=True, kw_only=True)
class _AnyHome(HomeTrust):
    """Takes a statement of any home for one of this home's."""

    everybody: tuple[PolicyKey, ...] = ()

    def verifies(self, signed_by: str, signature: bytes, payload: bytes, at_s: float) -> bool:
        if super().verifies(signed_by, signature, payload, at_s):
            return True
        says_that_it_left = payload.startswith(fields(b"mesh.move.v1"))
        return says_that_it_left and any(verify((key,), signed_by, signature, payload, at_s) for key in self.everybody)


class _Claimed(Claims):
    """The record of the most moves counts, whether anything leads to it or not."""

    def current(self) -> TenantRecord | None:
        there = [record for record in self.records.values() if not record.left]
        return max(there, key=lambda record: record.policy.place, default=None)


class _FallsBack(Claims):
    """Where nothing counts, what the tenant's last home said before it left does, or whatever it says after it."""

    def take(self, record: TenantRecord) -> None:
        try:
            super().take(record)
        except RecordError as error:
            if error.fault is not Fault.OLDER:
                raise
            self.records[record.policy.home] = record

    def current(self) -> TenantRecord | None:
        home = self.home
        stale = [record for record in self.records.values() if not (record.left or record.is_first)]
        stale = [record for record in stale if record.policy.home != home]
        if stale:
            return max(stale, key=lambda record: record.policy.revision)
        with suppress(RecordError):
            found = super().current()
            if found is not None:
                return found
        words = [record for record in self.records.values() if record.left]
        if not words:
            return None
        word = max(words, key=lambda record: record.policy.moves)
        policy = replace(word.policy, moves=word.policy.moves - 1, revision=word.chain[-1].revision)
        return replace(word, policy=policy, chain=word.chain[:-1], left=False)


class _FollowsLast(Claims):
    """Of two statements the one counts that was seen last."""

    def take(self, record: TenantRecord) -> None:
        with suppress(RecordError):
            super().take(record)
        self._statements.update((statement.moves, statement) for statement in record.chain)
        self._forked = False


class _Making(dict[TenantId, Claims]):
    """The claims of a feed, each of another kind than the feed makes them."""

    def __init__(self, kind: type[Claims]) -> None:
        super().__init__()
        self._kind = kind

    def setdefault(self, key: TenantId, default: Claims | None = None) -> Claims:
        return super().setdefault(key, self._kind())


def _feed_by(kind: type[Claims], given: Sequence[Any]) -> PolicyFeed:
    feed = PolicyFeed(*given)
    feed._claims = _Making(kind)
    return feed


class UnsignedMove(Parts):
    """A statement of whoever signs one leads to a home, and so does a home's own claim."""

    def feed(self, *given: Any) -> PolicyFeed:
        return _feed_by(_Claimed, given)

    def trust(self, trust: Trust) -> Trust:
        everybody = tuple(key for known in trust.homes.values() for key in known.keys)
        homes = {
            home: _AnyHome(jurisdiction=known.jurisdiction, keys=known.keys, everybody=everybody)
            for home, known in trust.homes.items()
        }
        return replace(trust, homes=homes)


class Movefallback(Parts):
    def feed(self, *given: Any) -> PolicyFeed:
        return _feed_by(_FallsBack, given)


class Fork(Parts):
    def feed(self, *given: Any) -> PolicyFeed:
        return _feed_by(_FollowsLast, given)


class Gap(Parts):
    def feed(self, *given: Any) -> PolicyFeed:
        return _NoGap(*given)


class Replay(Parts):
    def feed(self, *given: Any) -> PolicyFeed:
        return _TakesOlder(*given)

    def book(self) -> PolicyBook:
        return _NoFloor()


class Unsigned(Parts):
    """Any key signs for every home."""

    def trust(self, trust: Trust) -> Trust:
        rogue = policy_key_of(ROGUE, "k9")
        return replace(
            trust,
            homes={
                home: HomeTrust(jurisdiction=known.jurisdiction, keys=(*known.keys, rogue))
                for home, known in trust.homes.items()
            },
        )


class _Stale(Keyring):
    """Remembers a key's state with its hash."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._callers: dict[str, tuple[Caller, float]] = {}

    async def identify(self, credential: str | None) -> Caller:
        known = self._callers.get(credential or "")
        if known is None or self._clock.now_s() > known[1]:
            known = await super().identify(credential), self._clock.now_s() + 60.0
            self._callers[credential or ""] = known
        return known[0]


class _BelievesKeyring(Story[Any, Any]):
    def _permit(self, key_id: KeyId, tenant: TenantId) -> Permit:
        policy = self._book.tenant(tenant)
        assert policy is not None
        permit = decide(policy, self._here, self._left_s)
        if not isinstance(permit, Permit):
            raise self.refusal(permit.code, policy)
        return permit


class Stalekey(Parts):
    def keyring(self, *, book: PolicyBook, clock: Clock, entropy: Entropy) -> Keyring:
        return _Stale(book=book, mac_secret=SECRET, hasher=PlainHasher(), clock=clock, entropy=entropy)

    def story(self, **given: Any) -> Story[Any, Any]:
        return _BelievesKeyring(**given)


# --- the admin's


class _SilentByKey(Members):
    """Takes a grant for silent that has been renewed since it was last looked at."""

    def silent_for(self, grant: layout.GrantKey, mod_revision: int, now: Instant) -> float:
        known = self._grants.get(grant)
        return 0.0 if known is None else now.least_since(known[1])


class _NeverSuperseded(Barrier):
    async def wait(self, change: Any, **given: Any) -> AsyncGenerator[BarrierState]:
        async with aclosing(super().wait(change, **given)) as states:
            async for state in states:
                yield replace(state, superseded=False, done=True) if state.superseded else state


class _NoCompare(MemberSweeper):
    async def _delete(self, compares: Sequence[Compare], deletes: Sequence[Op]) -> int:
        return await super()._delete([], deletes)


class _ForgetsOlder(Changes):
    """A second change of S keeps the last value only."""

    async def set_authority(self, tenant: TenantId, authority: Spans, op_id: str | None = None) -> Outcome:
        def edit(policy: TenantPolicy) -> Any:
            after = edits.with_authority(replace(policy, authority_before={}), authority)
            return after, edits.taken_by_authority(after)

        return await self._change_policy(tenant, op_id, edit, ("set_authority",))


class _ForgetsOldHome(Moves):
    """The new home's record keeps no times of the old home's."""

    def _first(self, record: TenantRecord, home: RegionId) -> TenantRecord:
        first = super()._first(record, home)
        return replace(first, policy=replace(first.policy, authority_before={}))


class _MovesAnew(Changes):
    """Changes whose moves are of that kind."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        was = self.moves
        self.moves = _ForgetsOldHome(was._commits, was._home, was._clock, was._entropy, was._trust, was._journal)


class _BeganLongAgo(EpochStart):
    def left_s(self, now: Instant) -> float:
        return 0.0


class Lostmember(Parts):
    """After a recovery the members that the store knows are all."""

    def start(self, trust: Trust) -> EpochStart:
        return _BeganLongAgo(trust)


class Silentearly(Parts):
    def members(self, *given: Any) -> Members:
        return _SilentByKey(*given)


class ShortW(Parts):
    def outcome(self, outcome: Outcome) -> Outcome:
        shrink = outcome.shrink
        return outcome if shrink is None else replace(outcome, shrink=replace(shrink, span_s=shrink.span_s - 1.0))


class NewS(Parts):
    """W by the new record alone."""

    def outcome(self, outcome: Outcome) -> Outcome:
        shrink, policy = outcome.shrink, outcome.tenant.policy
        if shrink is None:
            return outcome
        places = {right.place for right in shrink.removed} | shrink.lowered
        return replace(outcome, shrink=replace(shrink, span_s=max(policy.span_s(place) for place in places)))


class ChainS(Parts):
    def changes(self, *given: Any, **named: Any) -> Changes:
        return _ForgetsOlder(*given, **named)


class BothHomesS(Parts):
    def changes(self, *given: Any, **named: Any) -> Changes:
        return _MovesAnew(*given, **named)


class Supersede(Parts):
    def barrier(self, **given: Any) -> Barrier:
        return _NeverSuperseded(**given)


class Sweepshort(Parts):
    def sweeper(self, store: Any, region: RegionId, cap_s: float, clock: Clock) -> MemberSweeper:
        return MemberSweeper(store, region, 1.0, clock)


class Sweeprec(Parts):
    def sweeper(self, store: Any, region: RegionId, cap_s: float, clock: Clock) -> MemberSweeper:
        return _NoCompare(store, region, cap_s, clock)


class OpLast(Parts):
    """A retry is a new order."""

    def op_id(self, op_id: str, attempt: int) -> str:
        return f"{op_id[:-1]}{attempt}" if attempt else op_id


class _Late:
    """Keeps a record once it was sent."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self._pending: list[tuple[str, bytes, int, Revision]] = []

    async def signed(self, key: str, value: bytes, epoch: int, revision: Revision) -> int:
        for row in self._pending:
            await self._notebook.signed(*row)
        self._pending = [(key, value, epoch, revision)]
        return 0

    async def made(self, numbers: Sequence[int]) -> None:
        pass

    async def unmade(self, number: int) -> None:
        self._pending.clear()

    async def signed_move(self, key: str, value: bytes, epoch: int, revision: Revision, *, last: bool) -> int:
        return await self._notebook.signed_move(key, value, epoch, revision, last=last)

    async def last_words(self, key: str) -> Sequence[tuple[int, bytes]]:
        return await self._notebook.last_words(key)


class Ledgerlate(Parts):
    def journal(self, notebook: Notebook) -> Journal:
        return _Late(notebook)


@dataclass(frozen=True)
class Mutant:
    """A rule left out.

    Attributes:
        parts: How an episode is put together without it.
        seeds: In how many seeds from 1 on, aimed at it, it is found at least once.
    """

    parts: Callable[[], Parts]
    seeds: int = 40


MUTANTS: dict[str, Mutant] = {
    "t0recv": Mutant(T0recv),
    "watchonly": Mutant(Watchonly),
    "slew": Mutant(Slew),
    "static": Mutant(Static),
    "sendhome": Mutant(Sendhome),
    "latemember": Mutant(Latemember),
    "jumpack": Mutant(Jumpack),
    "twin": Mutant(Twin),
    "nodrain": Mutant(Nodrain),
    "cumulative": Mutant(Cumulative),
    "drainlive": Mutant(Drainlive),
    "live": Mutant(Live),
    "pauseadmit": Mutant(Pauseadmit),
    "pingreuse": Mutant(Pingreuse),
    "longstep": Mutant(Longstep),
    "fence": Mutant(Fence),
    "ackclose": Mutant(Ackclose),
    "lowerack": Mutant(Lowerack),
    "senderdecides": Mutant(Senderdecides),
    "gap": Mutant(Gap),
    "replay": Mutant(Replay),
    "unsigned": Mutant(Unsigned),
    "restore": Mutant(Restore),
    "lostmember": Mutant(Lostmember),
    "silentearly": Mutant(Silentearly),
    "shortW": Mutant(ShortW),
    "newS": Mutant(NewS),
    "chainS": Mutant(ChainS),
    "supersede": Mutant(Supersede),
    "attestearly": Mutant(Attestearly),
    "sweepshort": Mutant(Sweepshort),
    "sweeprec": Mutant(Sweeprec),
    "op-last": Mutant(OpLast),
    "ledgerlate": Mutant(Ledgerlate),
    "stalekey": Mutant(Stalekey),
    "unsigned move": Mutant(UnsignedMove),
    "movefallback": Mutant(Movefallback),
    "fork": Mutant(Fork),
    "both homes' S": Mutant(BothHomesS),
}

NOT_EXPRESSED: dict[str, str] = {
    "exact": "It breaks no promise: a busy shard would only be refused. The model has it.",
    "lease": "The store that the product knows has no leases.",
    "twowatch": "The feed has one watch; a second would be another program.",
}
"""Rules that no variant of a part leaves out, and why."""
