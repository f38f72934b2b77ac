"""Several changes of one tenant at once: acknowledgements, retries of the same op, and what a later change supersedes.

Modelled (pins.md section 5): callers that pin, widen and try again with the op id that they have, in any order; another
tenant's changes of the same shard; a gateway that applies changes one by one or several at a time, drains what a change
no longer permits, and writes acknowledgements {applied number, revisions still draining}; op keys that are swept.

Abstracted: no time and no faults: every return is by acknowledgement (`core` has timers). One gateway, which serves in
the tenant's home and in two more jurisdictions, S and J, one stream in each.

Promised: once a pin has returned, nothing runs outside what it allows (I1, I2), until another op widens it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check

ALL = frozenset("SJ")
TARGETS: dict[str, frozenset[str]] = {
    "pin to home and J": frozenset("J"),
    "pin to home": frozenset(),
    "allow S again": ALL,
}
OTHER = "other tenant"


class Change(NamedTuple):
    """A number of the shard: whose op made it, and what the tenant's record allows from then on."""

    op: str
    allowed: frozenset[str]


class State(NamedTuple):
    """`ops` are the op keys in etcd, `aged` the ops older than six days, `waits` the ops whose callers wait."""

    history: tuple[Change, ...]
    ops: frozenset[str]
    aged: frozenset[str]
    waits: frozenset[int]
    promised: frozenset[str]
    applied: int
    runs: frozenset[str]
    draining: frozenset[tuple[int, str]]
    acked: tuple[int, frozenset[int]]


@dataclass(frozen=True)
class Acks:
    """The machine.

    Attributes:
        changes: How many changes are committed, at most.
        ages: Whether op keys grow old and are swept.
        without: The rule that is left out.
    """

    changes: int = 3
    ages: bool = False
    without: str = ""

    @property
    def start(self) -> State:
        nothing = frozenset[str]()
        first = (Change("", ALL),)
        return State(first, nothing, nothing, frozenset(), nothing, 0, nothing, frozenset(), (0, frozenset()))

    def broken(self, state: State) -> str:
        places = sorted(state.promised & state.runs)
        return f"I1, I2: work in {places[0]} after the return" if places else ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._callers(state)
        yield from self._gateway(state)

    def _callers(self, state: State) -> Iterator[tuple[str, State]]:
        last = state.history[-1]
        if len(state.history) <= self.changes:
            for op, allowed in TARGETS.items():
                known = op in state.ops
                if self.without == "op-last":
                    known = op == next((change.op for change in reversed(state.history) if change.op != OTHER), "")
                too_old = op in state.aged and self.without != "old op"
                if not known and not too_old:
                    yield f"COMMIT {len(state.history)}: {op}", self._committed(state, op, allowed)
            yield (
                f"COMMIT {len(state.history)}: {OTHER}",
                state._replace(history=(*state.history, Change(OTHER, last.allowed))),
            )
        if self.ages:
            for op in sorted(state.ops - state.aged):
                yield f"six days pass after: {op}", state._replace(aged=state.aged | {op})
            for op in sorted(state.ops & state.aged):
                yield f"op key swept: {op}", state._replace(ops=state.ops - {op})
        for number in sorted(state.waits):
            if self._acked(state, number):
                yield f"RETURN {number}", self._return(state, number)

    def _committed(self, state: State, op: str, allowed: frozenset[str]) -> State:
        number = len(state.history)
        again = any(change.op == op for change in state.history)
        return state._replace(
            history=(*state.history, Change(op, allowed)),
            ops=state.ops | {op},
            waits=state.waits | {number},
            # Whoever asked for an op a second time wanted its answer, and no new change.
            promised=state.promised if again else state.promised - allowed,
        )

    def _acked(self, state: State, number: int) -> bool:
        applied, draining = state.acked
        if self.without == "jumpack":
            return applied >= number and number not in draining
        return applied >= number and not any(revision >= number for revision in draining)

    def _return(self, state: State, number: int) -> State:
        mine = state.history[number].allowed
        since = state.history[number + 1 :]
        later = frozenset[str]().union(*(change.allowed for change in since))
        removed = ALL - mine
        if later & removed and self.without != "supersede":
            removed = frozenset()  # it ends as `superseded`: nothing is promised
        return state._replace(waits=state.waits - {number}, promised=state.promised | removed)

    def _gateway(self, state: State) -> Iterator[tuple[str, State]]:
        last = len(state.history) - 1
        for to in sorted({state.applied + 1, last}):
            if state.applied < to <= last:
                yield f"applies {to}", self._applied(state, to)
        served = state.history[state.applied].allowed
        for place in "SJ":
            if place in state.runs:
                rest = frozenset(entry for entry in state.draining if entry[1] != place)
                yield f"ends in {place}", state._replace(runs=state.runs - {place}, draining=rest)
            elif place in served:
                yield f"ADMIT in {place}", state._replace(runs=state.runs | {place})
        ack = self._ack(state)
        if ack is not None and ack != state.acked:
            yield "ack", state._replace(acked=ack)

    def _applied(self, state: State, to: int) -> State:
        ends = state.runs - state.history[to].allowed
        if self.without == "earlier drains":
            ends -= {place for _, place in state.draining}
        return state._replace(applied=to, draining=state.draining | {(to, place) for place in ends})

    def _ack(self, state: State) -> tuple[int, frozenset[int]] | None:
        draining = frozenset(revision for revision, _ in state.draining)
        if self.without == "nodrain":
            draining = frozenset()
        if self.without == "cumulative ack":
            # One number: the highest that has nothing of its own to drain.
            own = state.history[state.applied].op != OTHER and state.applied in draining
            return None if own else (state.applied, frozenset())
        return state.applied, draining


def _check(configuration: str, machine: Acks, at_least: int = 0) -> Check:
    return Check("acks", configuration, machine, at_least, machine.without)


HOLD = (_check("three changes", Acks(), 4_000),)
LARGE = (_check("five changes", Acks(5), 50_000), _check("three changes, op keys swept", Acks(3, ages=True), 50_000))
FOUND = (
    *(
        _check("three changes", Acks(without=rule))
        for rule in ("cumulative ack", "jumpack", "nodrain", "op-last", "supersede", "earlier drains")
    ),
    _check("three changes, op keys swept", Acks(ages=True, without="old op")),
)
