"""How long this replica may work on what: deadlines counted from its own pings, fences, and what has been carried out.

A gateway never says until when, for no two clocks agree. It names a *ping*, a report that this process sent, and says
how much authority was left when that arrived; the deadline is the moment of sending plus that, on this host's clocks.
Delays and pauses anywhere in between only shorten it, and hearing from a gateway again lengthens nothing by itself.

Each gateway speaks for its own work only. It numbers what it says, hops and messages alike, and the highest decides.
Holds no content and does no I/O. Belongs to one event loop; what engines ask of a `Stay` may be asked on any thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from mesh.errors import Code, MeshError
from mesh.ports import Clock, Instant
from mesh.routing.lease import Lease, parse_lease
from mesh.types import KeyId, PolicyNumber, ReplicaId, TenantId

MARGIN_S = 0.1
"""Subtracted from every deadline, beside the longest step of an engine: what a timer may be late by, twice."""
PING_LIFETIME_S = 60.0
"""A gateway names the newest ping that it heard; one that old is named by nobody who is joined."""
PINGS = 16_384
"""How many are remembered at most."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A gateway's word: a tenant's work may go on until `left_s` after the ping. See `handouts.HoldFor`."""

    tenant: TenantId
    ping: int
    left_s: float
    number: PolicyNumber


@dataclass(frozen=True, slots=True)
class Fence:
    """A gateway's word: refuse and end a tenant's work of below a state of policy; with `key_id`, that key's only."""

    tenant: TenantId
    below: PolicyNumber
    key_id: KeyId | None


@dataclass(frozen=True, slots=True)
class Deadline:
    """So long after a ping was sent."""

    sent: Instant
    left_s: float

    def left_at(self, now: Instant) -> float:
        """Nothing is left where the clocks have come apart: nobody knows what has passed."""
        return 0.0 if now.apart_from(self.sent) else self.left_s - now.most_since(self.sent)


@dataclass(frozen=True, slots=True)
class _Ping:
    source: Source
    stream: int
    sent: Instant


@dataclass(frozen=True, slots=True)
class _Word:
    """What was said of a tenant last. `ping` was the last one sent when it was heard."""

    order: tuple[int, int]
    holds: Sequence[tuple[PolicyNumber, Deadline]]
    ping: int

    def decide(self, stay: Stay) -> None:
        for upto, deadline in self.holds:
            if stay.number <= upto:
                stay.keep_to(self.order, deadline)
                return


@dataclass(frozen=True, slots=True)
class _Fence:
    """`ping` was the last one sent when it was heard last."""

    below: PolicyNumber
    ping: int


class Stay:
    """One hop that was admitted, until nothing of it is left here. Fulfils `engine.Stay`.

    Attributes:
        on_end: Called once, on the loop, when it has to end before it has.
    """

    def __init__(self, leases: Leases, source: Source, tenant: TenantId, key_id: KeyId | None, lease: Lease) -> None:
        """Of an admitted hop; see `Leases.admit`."""
        self.on_end: Callable[[], None] = _nothing
        self.source = source
        self.tenant = tenant
        self.key_id = key_id
        self.number = lease.number
        self.stream = 0
        self._leases = leases
        self._deadline = Deadline(leases.now(), 0.0)
        self._order = (0, 0)
        self._count = threading.Lock()
        self._places = 1  # the hop itself
        self._ended = self._closed = False

    # Any thread.

    def may_go_on(self) -> bool:
        """Whether a step of an engine that begins now surely ends before the deadline."""
        return not self._ended and self._leases.usable_s(self._deadline) > 0

    def entered(self) -> None:
        """Something of it has got a place in an engine."""
        with self._count:
            self._places += 1

    def left(self) -> None:
        """It has given that back, and no step computes with it any more."""
        with self._count:
            self._places -= 1
            gone = self._places == 0
        if gone:
            self._leases.is_gone(self)

    # The loop.

    @property
    def ended(self) -> bool:
        """Whether it has to end, or had to."""
        return self._ended

    def check(self) -> None:
        """Raises where it may not go on.

        Raises:
            MeshError: POLICY_STALE.
        """
        if not self.may_go_on():
            raise MeshError(Code.POLICY_STALE)

    def close(self) -> None:
        """The hop itself has been answered, or given up."""
        if not self._closed:
            self._closed, self.on_end = True, _nothing
            self.left()

    def end(self) -> None:
        """It must not go on, whatever is said later: no step begins for it any more, and whoever answers it is told."""
        if not self._ended:
            self._ended = True
            on_end, self.on_end = self.on_end, _nothing
            on_end()

    def keep_to(self, order: tuple[int, int], deadline: Deadline) -> None:
        """What was said in `order` decides, unless something later has."""
        if order > self._order:
            self._order, self._deadline = order, deadline

    def end_if_over(self) -> None:
        """Ends it once its deadline is near."""
        if not self._ended and not self.may_go_on():
            self.end()


class Source:
    """One gateway, as far as this process hears it: by one stream after the other.

    Attributes:
        on_heard: Called when `heard` has passed a message that asked for something to end. Of the others the next
            report tells: an answer to every answer would never stop.
    """

    def __init__(self, leases: Leases) -> None:
        """Made by `Leases.source`."""
        self.on_heard: Callable[[], None] = _nothing
        self._leases = leases
        self._stream = self._message = self._heard = 0
        # Whose the streams were; of one that brought no message it is not known.
        self._processes: dict[int, int] = {}
        self._alone: int | None = None
        self._words: dict[TenantId, _Word] = {}
        self._fences: dict[tuple[TenantId, KeyId | None], _Fence] = {}
        self._stays: dict[TenantId, dict[Stay, None]] = {}
        # What was to end with each message of this stream and is not gone yet, the oldest message first.
        self._ending: deque[tuple[int, set[Stay], bool]] = deque()

    @property
    def heard(self) -> int:
        """The highest message of this stream that was carried out, with all before it: what they end is gone."""
        return self._heard

    def begin(self) -> None:
        """A new stream begins. What its gateway does not know to be carried out, it says again there."""
        self._stream += 1
        self._message = self._heard = 0
        self._ending.clear()

    def ping(self) -> int:
        """The number of a report that is about to be sent on this stream."""
        return self._leases.note_ping(_Ping(self, self._stream, self._leases.now()))

    def said(
        self,
        message: int,
        holds: Sequence[Hold],
        fences: Sequence[Fence],
        *,
        process: int = 0,
        alone: bool = False,
    ) -> None:
        """A message came by this stream.

        Args:
            message: Its number; one that is not above the last changes nothing.
            holds: Of every tenant with work here.
            fences: All that were not carried out yet.
            process: Of the gateway that said it.
            alone: Whether no other process of this gateway lives: what those have sent ends.
        """
        if message <= self._message:
            return
        self._message = message
        order, last_ping = (self._stream, message), self._leases.last_ping
        upto: dict[TenantId, list[tuple[PolicyNumber, Deadline]]] = {}
        for hold in holds:
            deadline = self._leases.deadline(self, hold.ping, hold.left_s)
            upto.setdefault(hold.tenant, []).append((hold.number, deadline))
        for tenant, deadlines in upto.items():
            word = self._words[tenant] = _Word(order, sorted(deadlines, key=lambda one: one[0]), last_ping)
            for stay in self._of(tenant):
                word.decide(stay)
                stay.end_if_over()
        for fence in fences:
            at = fence.tenant, fence.key_id
            known = self._fences.get(at)
            self._fences[at] = _Fence(fence.below if known is None else max(fence.below, known.below), last_ping)
            for stay in self._of(fence.tenant):
                if self.is_fenced(stay):
                    stay.end()
        self._processes[self._stream] = process
        succeeds = alone and self._alone != process
        if succeeds:
            self._alone = process
            self._processes = {at: whose for at, whose in self._processes.items() if whose == process}
            self._leases.forget_streams(self, self._processes.keys())
            for stay in [stay for stays in self._stays.values() for stay in stays]:
                if stay.stream not in self._processes:
                    stay.end()
        ending = {stay for stays in self._stays.values() for stay in stays if stay.ended}
        self._ending.append((message, ending, bool(fences or ending or succeeds)))
        self._settle()

    def admit(self, stay: Stay, ping: _Ping, message: int, left_s: float) -> None:
        """Takes a hop in, or refuses it.

        Raises:
            MeshError: POLICY_STALE.
        """
        stay.stream = ping.stream
        order = (ping.stream, message)
        stay.keep_to(order, Deadline(ping.sent, left_s))
        stay.check()  # by its own word: what came too late is not what a later word was about
        word = self._words.get(stay.tenant)
        if word is not None:
            word.decide(stay)
        stay.check()
        if self.is_fenced(stay):
            raise MeshError(Code.POLICY_STALE)
        self._stays.setdefault(stay.tenant, {})[stay] = None

    def is_fenced(self, stay: Stay) -> bool:
        """Whether its gateway has had it refused. Who names no key is refused with any."""
        if stay.key_id is None:
            fences = [fence for (tenant, _), fence in self._fences.items() if tenant == stay.tenant]
        else:
            fences = [self._fences.get((stay.tenant, None)), self._fences.get((stay.tenant, stay.key_id))]
        return any(fence is not None and stay.number < fence.below for fence in fences)

    def release(self, stay: Stay) -> None:
        """Nothing of it is left."""
        stays = self._stays.get(stay.tenant, {})
        stays.pop(stay, None)
        if not stays:
            self._stays.pop(stay.tenant, None)
        for _, ending, _ in self._ending:
            ending.discard(stay)
        self._settle()

    def end_what_is_over(self) -> None:
        """Ends what has reached its deadline."""
        for tenant in list(self._stays):
            for stay in self._of(tenant):
                stay.end_if_over()

    def forget(self, oldest: int) -> None:
        """Forgets what only concerns hops that name a ping before `oldest`: those are refused by that alone.

        A hop that a word or a fence is about was sent before it was said, so it names a ping from before it was heard.
        """
        self._words = {tenant: word for tenant, word in self._words.items() if word.ping >= oldest}
        self._fences = {at: fence for at, fence in self._fences.items() if fence.ping >= oldest}

    def _of(self, tenant: TenantId) -> list[Stay]:
        return list(self._stays.get(tenant, ()))

    def _settle(self) -> None:
        was_asked = False
        while self._ending and not self._ending[0][1]:
            self._heard, _, asked = self._ending.popleft()
            was_asked = was_asked or asked
        if was_asked:
            self.on_heard()


class Leases:
    """What one replica process has been allowed, by all its gateways.

    Attributes:
        step_s: The longest step of its engines, in seconds: subtracted from every deadline.
        on_gone: Called, on any thread, when a hop has gone altogether; `settle` is then to be called on the loop.
    """

    def __init__(self, replica: ReplicaId, clock: Clock) -> None:
        """Of a process that has sent no ping yet."""
        self.step_s = 0.0
        self.on_gone: Callable[[], None] = self.settle
        self.last_ping = 0
        self._oldest = 1
        self._replica = replica
        self._clock = clock
        self._pings: dict[int, _Ping] = {}
        self._sources: list[Source] = []
        self._gone: deque[Stay] = deque()

    def source(self) -> Source:
        """One more gateway to listen to."""
        self._sources.append(Source(self))
        return self._sources[-1]

    def admit(self, text: bytes | None, tenant: TenantId, key_id: KeyId | None) -> Stay:
        """Takes a hop in by its lease. The caller closes what it gets.

        Args:
            text: The header `mesh-lease`.
            tenant: Whose hop it is.
            key_id: The key that it was admitted by.

        Raises:
            MeshError: POLICY_STALE without a lease, by one of another process or of an unknown ping, past its
                deadline, and below a fence.
        """
        lease = None if text is None else parse_lease(text)
        ping = None if lease is None else self._known(lease.ping)
        if lease is None or ping is None or lease.replica != self._replica:
            raise MeshError(Code.POLICY_STALE)
        stay = Stay(self, ping.source, tenant, key_id, lease)
        ping.source.admit(stay, ping, lease.message, lease.left_ms / 1000)
        return stay

    def tick(self) -> None:
        """Ends what has reached its deadline. To be called every 50 ms."""
        for source in self._sources:
            source.end_what_is_over()
        self._forget_pings()
        oldest = next(iter(self._pings), self.last_ping + 1)
        if oldest != self._oldest:
            self._oldest = oldest
            for source in self._sources:
                source.forget(oldest)

    def settle(self) -> None:
        """Takes note of the hops that have gone."""
        while self._gone:
            stay = self._gone.popleft()
            stay.source.release(stay)

    # For sources and stays.

    def now(self) -> Instant:
        """This moment. Any thread."""
        return self._clock.instant()

    def usable_s(self, deadline: Deadline) -> float:
        """For how long steps may still begin. Any thread."""
        return deadline.left_at(self._clock.instant()) - self.step_s - MARGIN_S

    def note_ping(self, ping: _Ping) -> int:
        """Remembers it; its number is above those of all streams."""
        self.last_ping += 1
        self._pings[self.last_ping] = ping
        if len(self._pings) > PINGS:
            del self._pings[next(iter(self._pings))]
        return self.last_ping

    def deadline(self, source: Source, number: int, left_s: float) -> Deadline:
        """By a ping that was sent to this gateway; over already, where there is no such."""
        ping = self._known(number)
        if ping is None or ping.source is not source:
            return Deadline(self.now(), 0.0)
        return Deadline(ping.sent, left_s)

    def forget_streams(self, source: Source, but: Collection[int]) -> None:
        """Takes nothing more in that names a ping of one of a gateway's streams, but for some."""
        self._pings = {
            number: ping for number, ping in self._pings.items() if ping.source is not source or ping.stream in but
        }

    def is_gone(self, stay: Stay) -> None:
        """Nothing of it is left. Any thread."""
        self._gone.append(stay)
        self.on_gone()

    def _known(self, number: int) -> _Ping | None:
        self._forget_pings()
        return self._pings.get(number)

    def _forget_pings(self) -> None:
        now = self.now()
        while self._pings:
            number, ping = next(iter(self._pings.items()))
            if now.most_since(ping.sent) <= PING_LIFETIME_S:
                return
            del self._pings[number]


def _nothing() -> None:
    pass
