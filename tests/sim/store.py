"""An etcd cluster behind `mesh.control.store.Store`: its members, its quorum, its elections, and what breaks them.

One `Data`; members add delay, lag and ways to be cut off. A request goes client, member, leader, quorum and back, each
leg over the simulated wires: so its outcome can be unknown, and it can commit late. The client does as
`mesh.control.etcd` does: a member that fails is left for the next; reads are repeated within their time, transactions
never; a watch resumes behind the last whole revision. Left out: leases and
fragments, and that calls go back to the nearest member after a while.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sim.hosts import Host
from sim.kv import Data, InvalidError
from sim.net import Courier, Net

from mesh.control import layout
from mesh.control.store import CompactedError, Compare, Event, Op, Range, StoreUnavailableError, TxnResult

_TICK_S = 0.25
ELECTION_S = 1.25
"""A leader without a majority for so long loses its place; a member without a leader for so long ends its watches."""
_REVISIONS_AT_ONCE = 3
Work = Callable[[Data], Any]


@dataclass(frozen=True, slots=True)
class Commit:
    """A transaction that has run.

    Attributes:
        host: Where it came from.
        user: By whose certificate.
        kind: `grant`, `ack`, `change`, `judge` (it read grants and wrote none) or `other`.
    """

    host: str
    user: str
    kind: str
    compares: tuple[Compare, ...]
    then: tuple[Op, ...]
    result: TxnResult
    events: tuple[Event, ...]


def kind_of(ops: Sequence[Op]) -> str:
    """What a transaction is about: see `Commit`."""
    writes = [op.key for op in ops if not isinstance(op, Range)]
    for key in writes:
        if key.startswith(layout.POLICIES[0]):
            return "change"
        if key.startswith(layout.GRANTS[0]):
            return "grant"
        if key.startswith(layout.MEMBERS[0]):
            return "ack"
    reads = [op for op in ops if isinstance(op, Range)]
    if not writes and any(op.key <= layout.GRANTS[0] < (op.end or "") for op in reads):
        return "judge"
    return "other"


class Member:
    """One member: a host whose kernel answers as long as it has power."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.applied = 1
        self.lag_s = 0.0
        self.apply_at = 0.0
        self.alone_s = 0.0
        self.streams: dict[Stream, None] = {}
        self.waiting: list[tuple[int, Callable[[], None]]] = []


class Stream:
    """A watch as its member keeps it."""

    def __init__(self, lane: Courier, key: str, end: str, start: int, arrive: Callable[[Any], None]) -> None:
        self.lane = lane
        self.key = key
        self.end = end
        self.start = start
        self._arrive = arrive

    def tell(self, item: object) -> None:
        """Sends the client something."""
        self.lane.send(self._arrive, item)


class Cluster:
    """The members together.

    Attributes:
        data: What was committed.
        leader: Who leads now.
        cluster_id: Changes when a backup is restored.
        on_commit: Called for each transaction at the moment at which it runs.
    """

    def __init__(self, net: Net, hosts: Sequence[Host], seed: object) -> None:
        self.net = net
        self.data = Data()
        self.members = [Member(host) for host in hosts]
        self.leader = self.members[0]
        self.term = 1
        self.cluster_id = 1
        self.on_commit: list[Callable[[Commit], None]] = []
        self.lose_answers = 0
        """So many transactions run and are never answered."""
        self._random = random.Random(f"{seed}/etcd")
        self._lost_s = 0.0
        self._last = 0.0
        net.later(_TICK_S, self._tick)

    # --- one log

    def propose(self, term: int, work: Work, reply: Callable[[object], None]) -> None:
        """At the leader: `work` runs when it commits; `reply` takes its result, or an error."""
        if term != self.term:
            reply(StoreUnavailableError("UNAVAILABLE"))
            return
        delay_s = self._quorum_s(self.leader)
        if delay_s is None:
            self.net.later(0.1, self.propose, term, work, reply)
            return
        self._last = max(self._last, self.net.loop.time() + delay_s)
        self.net.loop.call_at(
            self._last, self._commit, term, self.cluster_id, work, reply, context=self.net.loop.world.context
        )

    def apply(self, commit: Commit) -> TxnResult:
        """A transaction has run: tells whoever watches, and the members."""
        for told in self.on_commit:
            told(commit)
        if commit.events:
            for member in self.members:
                self._replicate(member, self.data.revision)
        return replace(commit.result, cluster=self.cluster_id)

    def _commit(self, term: int, cluster_id: int, work: Work, reply: Callable[[object], None]) -> None:
        if term != self.term:
            # The entry may be in the new leader's log or not; nobody is told which.
            if cluster_id == self.cluster_id and self._random.random() < 0.5:
                _run(work, self.data)
            reply(StoreUnavailableError("UNAVAILABLE"))
            return
        result = _run(work, self.data)
        if self.lose_answers and isinstance(result, TxnResult):
            self.lose_answers -= 1
            return
        reply(result)

    def _quorum_s(self, leader: Member) -> float | None:
        """The delay until a majority has it, or None without one."""
        trips: list[float] = []
        for other in self.members:
            if other is not leader and self._joined(leader, other):
                there = self.net.link(leader.host.name, other.host.name)
                back = self.net.link(other.host.name, leader.host.name)
                jitter_s = (there.jitter_s + back.jitter_s) * self._random.random()
                trips.append(there.delay_s + back.delay_s + jitter_s)
        need = len(self.members) // 2
        if not leader.host.on or len(trips) < need:
            return None
        return sorted(trips)[need - 1] if need else 0.0

    def _joined(self, one: Member, other: Member) -> bool:
        links = (self.net.link(one.host.name, other.host.name), self.net.link(other.host.name, one.host.name))
        return one.host.on and other.host.on and all(link.up for link in links)

    # --- members

    def _replicate(self, member: Member, revision: int) -> None:
        if member is not self.leader and not self._joined(self.leader, member):
            self.net.later(0.5, self._replicate, member, revision)
            return
        link = None if member is self.leader else self.net.link(self.leader.host.name, member.host.name)
        delay_s = member.lag_s + (link.delay_s if link else 0.0)
        member.apply_at = max(member.apply_at, self.net.loop.time() + delay_s)
        self.net.loop.call_at(
            member.apply_at, self._applied, member, revision, self.cluster_id, context=self.net.loop.world.context
        )

    def _applied(self, member: Member, revision: int, cluster_id: int) -> None:
        if cluster_id != self.cluster_id:
            return
        member.applied = max(member.applied, min(revision, self.data.revision))
        waiting, member.waiting = member.waiting, []
        for needed, action in waiting:
            self.once_applied(member, needed, action)
        for stream in list(member.streams):
            self.feed(member, stream)

    def once_applied(self, member: Member, revision: int, action: Callable[[], None]) -> None:
        """A member answers when it has applied what it answers about."""
        if member.applied >= revision:
            action()
        else:
            member.waiting.append((revision, action))

    def feed(self, member: Member, stream: Stream) -> None:
        """Tells a watch what its member has applied."""
        try:
            found = self.data.since(stream.start, member.applied, stream.key, stream.end)
        except CompactedError as error:
            member.streams.pop(stream, None)
            stream.tell(error)
            return
        stream.start = max(stream.start, member.applied + 1)
        for at in range(0, len(found), _REVISIONS_AT_ONCE):
            stream.tell(tuple(event for _, events in found[at : at + _REVISIONS_AT_ONCE] for event in events))

    def end_streams(self, member: Member) -> None:
        """A member ends its watches: it has no leader, or its process goes."""
        streams, member.streams = member.streams, {}
        for stream in streams:
            stream.tell(StoreUnavailableError("UNAVAILABLE"))

    def _tick(self) -> None:
        if self._quorum_s(self.leader) is not None:
            self._lost_s = 0.0
        else:
            self._lost_s += _TICK_S
            if self._lost_s >= ELECTION_S:
                self.elect()
        for member in self.members:
            alone = member is not self.leader and not self._joined(self.leader, member)
            member.alone_s = member.alone_s + _TICK_S if alone or self._lost_s else 0.0
            if member.alone_s >= ELECTION_S:
                self.end_streams(member)
        self.net.later(_TICK_S, self._tick)

    # --- what can happen to it

    def elect(self) -> None:
        """Another member leads, if one has a majority."""
        able = [one for one in self.members if one is not self.leader and self._quorum_s(one) is not None]
        if able:
            self.leader, self.term, self._lost_s = self._random.choice(able), self.term + 1, 0.0

    def compact(self, revision: int) -> None:
        """Forgets the history below a revision."""
        self.data.compact(revision)

    def cut_watches(self) -> None:
        """Every watch loses its connection once."""
        for member in self.members:
            self.end_streams(member)

    def restore(self, revision: int) -> None:
        """An older backup is put back, on all members: what came later never was."""
        self.data.go_back_to(revision)
        self.term += 1
        self.cluster_id += 1
        for member in self.members:
            member.applied, member.waiting = self.data.revision, []
        self.cut_watches()


def _run(work: Work, data: Data) -> object:
    try:
        return work(data)
    except CompactedError as error:
        return error
    except InvalidError:
        return StoreUnavailableError("INVALID_ARGUMENT")
