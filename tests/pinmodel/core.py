"""The heart of the protocol: one gateway in the jurisdiction J, its replica there, and the admin of the tenant's home.

Modelled (pins.md sections 2, 3 and 5): numbered changes of one shard; grants, kept answers and authority as a timer;
watch and fetch; admission, hops that lie in a socket's buffer, the replica's deadline and its fence; draining with a
frozen end; acknowledgements; a death attested; the return by acknowledgement, by timer and for silent members; the sweeper; S lowered,
raised, and J allowed again. Messages and answers may be lost or late, and the gateway may be killed at any time.

Abstracted: clocks are exact, so W = S (`clocks` has the rates); the gateway holds one piece of work at a time; a hop
says what is left of its authority and ages on its way (`replicas` shows how pings achieve that); records arrive whole
(`reading`) and verify (`records`).

Promised: once a removal of J has returned, nothing is admitted (I1) or runs (I2) in J, and no hop that was sent
before runs there (I3), until J is allowed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check


class Record(NamedTuple):
    """What the home signed: whether J is allowed, S there, and authority_before."""

    allowed: bool
    span: int
    before: int


class Gateway(NamedTuple):
    """A gateway, and what the admin of its region or the home sees of it in etcd.

    `age` is the time since t0 of the best answer that counts, `kept` are (head, age) of answers not caught up with;
    `asked` is (phase, age, head); `key` is its grant, `changed` since the admin last read it, `unchanged_for` so long.
    """

    alive: bool
    applied: int
    known: int
    age: int
    kept: tuple[tuple[int, int], ...]
    asked: tuple[str, int, int] | None
    draining: int
    key: bool
    changed: bool
    unchanged_for: int
    acked: tuple[int, int]


class Work(NamedTuple):
    """Work of the tenant in J: the gateway's side, a hop under way, the replica's side.

    `phase` is none, runs, drains (until `end`), closed (the replica has not confirmed). `hop` and `runs` are (time
    left, the shard's number it was sent under). The replica refuses what is below `fence`.
    """

    phase: str
    end: int
    hop: tuple[int, int] | None
    runs: tuple[int, int] | None
    fence: int


class Barrier(NamedTuple):
    """A shrink that has not returned: its number, W, time since its commit, whether J was removed or S lowered."""

    number: int
    wait: int
    age: int
    removal: bool
    member: bool


class State(NamedTuple):
    history: tuple[Record, ...]
    barriers: tuple[Barrier, ...]
    lowering: bool
    returned: bool
    gateway: Gateway
    work: Work


ATTESTED = (99, 0)
"""What counts as an acknowledgement of everything: the gateway is dead, and its replicas refuse what is left of it."""
IDLE = Work("none", 0, None, None, 0)


@dataclass(frozen=True)
class Core:
    """The machine.

    Attributes:
        commits: How many changes are made, at most.
        span: S at the start.
        cap: The fixed cap of S, in ticks.
        changes: Which changes are made beside a removal: `readd`, `lower`, `raise`, `other` (another tenant's).
        without: The rule that is left out.
    """

    commits: int
    span: int = 2
    cap: int = 2
    changes: frozenset[str] = frozenset({"readd"})
    without: str = ""

    @property
    def start(self) -> State:
        gateway = Gateway(True, 0, 0, self.cap, (), None, 0, False, False, 0, (0, 0))
        return State((Record(True, self.span, 0),), (), False, False, gateway, IDLE)

    def broken(self, state: State) -> str:
        if not state.returned:
            return ""
        if state.work.phase in {"runs", "drains"}:
            return "I1, I2: a gateway serves in J after the return"
        return "I2, I3: a replica works in J after the return" if state.work.runs else ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield "tick", self._tick(state)
        if state.gateway.alive:
            yield from self._grants(state)
            yield from self._reading(state)
            yield from self._serving(state)
        yield from self._replica(state)
        for name, after in self._admin(state):
            if after := self._trimmed(after):
                yield name, after

    def _trimmed(self, state: State) -> State | None:
        """The same state without what can no longer matter; None where nothing is promised any more."""
        if len(state.history) <= self.commits or state.barriers:
            return state
        if not state.returned:
            return None
        calm = state.gateway._replace(key=False, changed=False, unchanged_for=0, acked=(0, 0))
        return state._replace(gateway=calm, lowering=False)

    def _left(self, state: State, gateway: Gateway | None = None) -> int:
        """How much authority the gateway has for J."""
        gateway = gateway or state.gateway
        record = state.history[gateway.known]
        return max(0, record.span - gateway.age) if gateway.alive and record.allowed else 0

    def _tick(self, state: State) -> State:
        old, work = state.gateway, state.work
        asked = old.asked and (old.asked[0], min(self.cap, old.asked[1] + 1), old.asked[2])
        counts = old.key and (not old.changed or self.without == "silentearly")
        gateway = old._replace(
            age=min(self.cap, old.age + 1),
            kept=tuple((head, age + 1) for head, age in old.kept if age + 1 < self.cap),
            asked=asked,
            unchanged_for=min(self.cap, old.unchanged_for + 1) if counts else old.unchanged_for,
        )
        phase, end = work.phase, max(0, work.end - 1)
        if phase == "runs" and not self._left(state, gateway):
            phase = "closed"  # authority is a timer: it cuts
        elif phase == "drains":
            if self.without == "drainlive":
                end = max(0, state.history[gateway.known].span - gateway.age)
            if not end:
                phase = "closed"
        hop = work.hop
        if hop and self.without != "live":
            hop = (hop[0] - 1, hop[1]) if hop[0] > 1 else None
        runs = (work.runs[0] - 1, work.runs[1]) if work.runs and work.runs[0] > 1 else None
        barriers = tuple(barrier._replace(age=min(self.cap, barrier.age + 1)) for barrier in state.barriers)
        return state._replace(gateway=gateway, barriers=barriers, work=Work(phase, end, hop, runs, work.fence))

    # -- the gateway

    def _caught_up(self, gateway: Gateway) -> Gateway:
        """Counts the answers that the gateway has caught up with."""
        reached = [age for head, age in gateway.kept if head <= gateway.applied]
        kept = tuple(answer for answer in gateway.kept if answer[0] > gateway.applied)
        return gateway._replace(age=min([gateway.age, *reached]), kept=kept)

    def _grants(self, state: State) -> Iterator[tuple[str, State]]:
        gateway = state.gateway
        if self.without == "latemember" and not gateway.key and gateway.age < self.cap:
            yield "member key put", state._replace(gateway=gateway._replace(key=True, changed=True, unchanged_for=0))
        if gateway.asked is None:
            yield "grant sent", state._replace(gateway=gateway._replace(asked=("sent", 0, 0)))
            return
        yield "grant lost", state._replace(gateway=gateway._replace(asked=None))
        phase, age, head = gateway.asked
        if phase == "sent":
            after = gateway._replace(
                asked=("answered", age, len(state.history) - 1),
                key=gateway.key if self.without == "latemember" else True,
                changed=True,
                unchanged_for=gateway.unchanged_for if self.without == "silentearly" else 0,
            )
            yield "grant commits", state._replace(gateway=after)
            return
        if self.without == "t0recv":
            age = 0
        kept = dict(gateway.kept)
        if age < self.cap:
            kept[head] = min(age, kept.get(head, self.cap))
        after = gateway._replace(kept=tuple(sorted(kept.items())), asked=None)
        if self.without == "watchonly":
            after = after._replace(age=min(age, gateway.age))
        yield "grant answered", state._replace(gateway=self._caught_up(after))

    def _reading(self, state: State) -> Iterator[tuple[str, State]]:
        gateway, last = state.gateway, len(state.history) - 1
        applied = gateway.applied
        if applied < last:
            yield "watch", self._applied(state, applied + 1, applied + 1)
        if applied + 1 < last:
            yield "fetch", self._applied(state, last, last)
            if self.without == "gap":
                same = state.history[applied + 2] == state.history[applied + 1]
                known = gateway.known if same else applied + 2  # another tenant's change brings no record of this one
                yield "watch, one event lost", self._applied(state, applied + 2, known)
        draining = gateway.draining
        if self.without == "nodrain" or (self.without == "ackclose" and state.work.phase == "closed"):
            draining = 0
        if gateway.acked != (applied, draining):
            yield "ack", state._replace(gateway=gateway._replace(acked=(applied, draining)))

    def _applied(self, state: State, number: int, known: int) -> State:
        gateway, work = state.gateway, state.work
        old, new = state.history[gateway.known], state.history[known]
        after = self._caught_up(gateway._replace(applied=number, known=known))
        shrinks = old.allowed and not new.allowed
        if shrinks:
            if work.phase == "runs":
                # Its end is computed before the record is applied: later grants do not move it.
                work = work._replace(phase="drains", end=self._left(state))
            if self.without != "fence" or work.phase != "none":
                after = after._replace(draining=known)
        elif new.span < old.span and self.without != "lowerack":
            after = after._replace(draining=known)
        elif gateway.draining and self.without not in {"jumpack", "earlier drains"}:
            # What an earlier change has to drain, this one has to drain too.
            after = after._replace(draining=known)
        if work.phase == "runs" and not self._left(state, after):
            work = work._replace(phase="closed")
        return state._replace(gateway=after, work=work)

    def _serving(self, state: State) -> Iterator[tuple[str, State]]:
        gateway, work, left = state.gateway, state.work, self._left(state)
        number = gateway.applied
        if left and work.phase == "none" and not work.runs and not work.hop:
            yield "ADMIT", state._replace(work=work._replace(phase="runs", hop=(left, number)))
        until = left if work.phase == "runs" else work.end if work.phase == "drains" else 0
        if work.runs and until > work.runs[0]:
            yield "message to the replica", state._replace(work=work._replace(runs=(until, number)))
        if work.phase in {"runs", "drains"}:
            yield "gateway closes", state._replace(work=work._replace(phase="none", end=0, runs=None))
            yield "gateway closes, unheard", state._replace(work=work._replace(phase="closed", end=0))
        if work.phase == "closed" and not work.runs:
            yield "replica: none runs", state._replace(work=work._replace(phase="none"))
        if gateway.draining and work.phase != "drains":
            yield from self._confirmed(state, left)

    def _confirmed(self, state: State, left: int) -> Iterator[tuple[str, State]]:
        """The replica takes the gateway's number as its fence, ends what is below it, and confirms."""
        gateway, work = state.gateway, state.work
        if self.without == "fence":
            if not work.runs:
                yield "replica confirms", state._replace(gateway=gateway._replace(draining=0))
            return
        runs = None
        if work.phase == "runs" and work.runs:
            runs = (min(left, work.runs[0]), gateway.applied)
        phase = work.phase if work.phase == "runs" else "none"
        told = work._replace(phase=phase, fence=gateway.applied, runs=runs)
        yield "replica told and confirms", state._replace(gateway=gateway._replace(draining=0), work=told)

    def _replica(self, state: State) -> Iterator[tuple[str, State]]:
        gateway, work = state.gateway, state.work
        if work.hop:
            if work.hop[1] >= work.fence:
                left = max(work.hop, work.runs or work.hop)
                yield "hop arrives", state._replace(work=work._replace(hop=None, runs=left))
            yield "hop lost or refused", state._replace(work=work._replace(hop=None))
        if not gateway.alive and gateway.acked != ATTESTED:
            if self.without != "attest fence":
                told = work._replace(runs=None, fence=ATTESTED[0])
                yield (
                    "replica ends the dead one's work, attested",
                    state._replace(gateway=gateway._replace(acked=ATTESTED), work=told),
                )
            elif not work.runs:
                yield "nothing runs, attested", state._replace(gateway=gateway._replace(acked=ATTESTED))
        if gateway.alive:
            dead = gateway._replace(alive=False, age=self.cap, kept=(), asked=None, draining=0)
            gone = work._replace(phase="none", end=0)
            yield "gateway killed", state._replace(gateway=dead, work=gone)

    # -- the admin

    def _silent(self, gateway: Gateway, wait: int) -> bool:
        unchanged = not gateway.changed or self.without == "silentearly"
        return gateway.key and unchanged and gateway.unchanged_for >= wait

    def _read(self, gateway: Gateway) -> Gateway:
        """The admin has read the grants: from now on it can say for how long one did not change."""
        if not gateway.key or not gateway.changed:
            return gateway
        since = gateway.unchanged_for if self.without == "silentearly" else 0
        return gateway._replace(changed=False, unchanged_for=since)

    def _admin(self, state: State) -> Iterator[tuple[str, State]]:
        gateway, last = state.gateway, state.history[-1]
        if gateway.changed:
            yield "admin reads the grants", state._replace(gateway=self._read(gateway))
        if len(state.history) <= self.commits:
            for name, record in self._changes(state):
                yield f"COMMIT {len(state.history)} {name}", self._committed(state, record)
        for barrier in state.barriers:
            if not barrier.member or not gateway.key or self._silent(gateway, barrier.wait):
                yield f"RETURN {barrier.number} without waiting", self._return(state, barrier)
            elif self._acked(gateway, barrier):
                yield f"RETURN {barrier.number} by acknowledgement", self._return(state, barrier)
            elif barrier.age >= barrier.wait:
                yield f"RETURN {barrier.number} by timer", self._return(state, barrier)
        quiet = self.cap
        if self.without == "sweeprec":
            quiet = max(last.span, last.before)
        elif self.without == "sweepshort":
            quiet = self.cap - 1
        if gateway.key and not gateway.changed and gateway.unchanged_for >= quiet:
            yield "SWEEP", state._replace(gateway=gateway._replace(key=False, unchanged_for=0))

    def _changes(self, state: State) -> Iterator[tuple[str, Record]]:
        last = state.history[-1]
        lowered = last.span - 1
        if last.allowed:
            yield "removes J", last._replace(allowed=False)
            if "lower" in self.changes and lowered:
                before = {"newS": 0, "chainS": last.span}.get(self.without, max(last.before, last.span))
                yield f"lowers S to {lowered}", Record(True, lowered, before)
            if "lower" in self.changes and last.before and not state.lowering:
                yield "the lowering is over", last._replace(before=0)
            if "raise" in self.changes and last.span < self.cap:
                yield "raises S", last._replace(span=self.cap)
        elif "readd" in self.changes:
            yield "allows J again", last._replace(allowed=True)
        if "other" in self.changes:
            yield "of another tenant", last

    def _committed(self, state: State, record: Record) -> State:
        last, gateway = state.history[-1], state.gateway
        removal = last.allowed and not record.allowed
        lowering = record.span < last.span
        barriers = state.barriers
        if removal or lowering:
            wait = max(last.span, last.before) - (self.without == "shortW")
            member = gateway.key and not self._silent(gateway, wait)
            barriers += (Barrier(len(state.history), wait, 0, removal, member),)
        return state._replace(
            history=(*state.history, record),
            barriers=barriers,
            lowering=state.lowering or lowering,
            returned=state.returned and not record.allowed,
            gateway=self._read(gateway),
        )

    def _acked(self, gateway: Gateway, barrier: Barrier) -> bool:
        applied, draining = gateway.acked
        if self.without == "jumpack":
            return applied >= barrier.number and draining != barrier.number
        return applied >= barrier.number and draining < barrier.number

    def _return(self, state: State, barrier: Barrier) -> State:
        since = state.history[barrier.number :]
        superseded = any(record.allowed for record in since) and self.without != "supersede"
        rest = tuple(other for other in state.barriers if other != barrier)
        return state._replace(
            barriers=rest,
            lowering=any(not other.removal for other in rest),
            returned=state.returned or (barrier.removal and not superseded and not state.history[-1].allowed),
        )


def _core(configuration: str, machine: Core, at_least: int = 0) -> Check:
    return Check("core", configuration, machine, at_least, machine.without)


LOWER, OTHER = frozenset({"lower"}), frozenset({"other"})
HOLD = (
    _core("J removed", Core(1), 5_000),
    _core("S raised, J removed", Core(2, span=1, changes=frozenset({"raise"})), 10_000),
    _core("another tenant's changes between", Core(2, changes=OTHER), 20_000),
)
LARGE = (
    _core("J removed and allowed again", Core(2), 40_000),
    _core("J removed, allowed again, removed", Core(3), 300_000),
    _core("S lowered, then J removed", Core(3, changes=LOWER), 100_000),
    _core("three changes, others between", Core(3, changes=OTHER), 80_000),
    _core("every kind of change, two", Core(2, changes=frozenset({"readd", "lower", "raise", "other"})), 100_000),
)
FOUND = (
    *(
        _core("J removed", Core(1, without=rule))
        for rule in (
            "t0recv",
            "watchonly",
            "drainlive",
            "nodrain",
            "ackclose",
            "live",
            "latemember",
            "sweepshort",
            "attest fence",
            "shortW",
            "fence",
            "silentearly",
        )
    ),
    *(_core("another tenant's changes between", Core(2, changes=OTHER, without=rule)) for rule in ("gap", "jumpack")),
    _core("S lowered, then J removed", Core(2, changes=LOWER, without="newS")),
    _core("S lowered, then J removed", Core(3, changes=LOWER, without="lowerack")),
    _core("S raised, J removed", Core(2, span=1, changes=frozenset({"raise"}), without="sweeprec")),
    _core("S of three ticks lowered twice", Core(3, span=3, cap=3, changes=LOWER, without="chainS")),
    *(_core("J removed, allowed again, removed", Core(3, without=rule)) for rule in ("supersede", "earlier drains")),
)
