"""A move, and a pin by the new home while gateways still lag behind the old one.

Modelled (pins.md sections 2, 3 and 5): a tenant moves from home A to home B, that is from a shard of A to one of B; then B
removes J. One gateway in J follows both shards, each at its own pace, since a gap in one is fetched while events of the
other go on. Its grant gives authority for each shard apart. S for J was 2 under A's record and is 1 under B's.

Abstracted: clocks are exact, W = S. Nothing drains: what runs is cut when the change is applied.

Promised: once B's removal of J has returned the gateway serves in J by neither home's record (I1, I2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check

BY_A, BY_B = 2, 1
"""S for J under each home's record."""
FIRST, REMOVED = 1, 2
"""B's shard: its first record, and the one without J, which carries the statement."""


class Numbers(NamedTuple):
    """A's shard: 1 from the statement on. B's: none, the first record, J removed."""

    a: int
    b: int


class State(NamedTuple):
    """`ages` are those of the grants that count for each shard; `asked` is (age, the answer's numbers)."""

    store: Numbers
    applied: Numbers
    acked: Numbers
    ages: tuple[int, int]
    asked: tuple[int, Numbers | None] | None
    moved_for: int
    removed_for: int
    move_over: bool
    wait: int
    returned: bool


@dataclass(frozen=True)
class Moves:
    """The machine; `without` is the rule that is left out."""

    without: str = ""

    @property
    def start(self) -> State:
        none = Numbers(0, 0)
        return State(none, none, none, (BY_A, BY_A), None, 0, 0, move_over=False, wait=0, returned=False)

    def broken(self, state: State) -> str:
        return "I1, I2: served in J after the return" if state.returned and self._permits(state) else ""

    def _permits(self, state: State) -> bool:
        """Whether the gateway permits J, by the record of the home that it takes for the tenant's."""
        a, b = state.applied
        moved = a == 1 or (b == REMOVED and self.without != "chain carried")
        if not moved:
            return state.ages[0] < BY_A
        return b == FIRST and state.ages[1] < BY_B

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield "tick", self._tick(state)
        yield from self._homes(state)
        yield from self._gateway(state)

    def _tick(self, state: State) -> State:
        return state._replace(
            ages=(min(BY_A, state.ages[0] + 1), min(BY_A, state.ages[1] + 1)),
            asked=state.asked and (min(BY_A, state.asked[0] + 1), state.asked[1]),
            moved_for=min(BY_A, state.moved_for + 1) if state.store.a else 0,
            removed_for=min(BY_A, state.removed_for + 1) if state.store.b == REMOVED else 0,
        )

    def _homes(self, state: State) -> Iterator[tuple[str, State]]:
        a, b = state.store
        if b < FIRST:
            yield "B puts its first record", state._replace(store=Numbers(a, FIRST))
        elif not a:
            yield "A states the move", state._replace(store=Numbers(1, b))
        elif b == FIRST:
            # Its record names A's S until the move's own barrier is over.
            wait = BY_B if state.move_over or self.without == "both homes' S" else max(BY_A, BY_B)
            yield "B COMMITS: J removed", state._replace(store=Numbers(a, REMOVED), wait=wait)
        if a and not state.move_over and (state.acked.a or state.moved_for >= BY_A):
            yield "the move is over", state._replace(move_over=True)
        if b == REMOVED and not state.returned:
            if state.acked.b == REMOVED:
                yield "RETURN by acknowledgement", state._replace(returned=True)
            elif state.removed_for >= state.wait:
                yield "RETURN by timer", state._replace(returned=True)

    def _gateway(self, state: State) -> Iterator[tuple[str, State]]:
        if state.asked is None:
            yield "grant sent", state._replace(asked=(0, None))
        else:
            age, heads = state.asked
            yield "grant lost", state._replace(asked=None)
            if heads is None:
                yield "grant commits", state._replace(asked=(age, state.store))
            else:
                reached = [head <= applied for head, applied in zip(heads, state.applied, strict=True)]
                ages = [min(old, age) if good else old for old, good in zip(state.ages, reached, strict=True)]
                yield "grant answered", state._replace(asked=None, ages=(ages[0], ages[1]))
        for shard in (0, 1):
            if state.applied[shard] < state.store[shard]:
                applied = list(state.applied)
                applied[shard] += 1
                yield f"applies {'AB'[shard]} {applied[shard]}", state._replace(applied=Numbers(*applied))
        if state.acked != state.applied:
            yield "ack", state._replace(acked=state.applied)


class Asked(NamedTuple):
    """Of `Again`: `store`, `applied` and `acked` as in `State`; `waits` is the number of B's shard that is waited for."""

    store: Numbers
    applied: Numbers
    acked: Numbers
    age: int
    waits: int
    asked_for: int
    returned: bool


@dataclass(frozen=True)
class Again:
    """A removal that A made and nobody has waited for; then the move; then it is asked for again at B.

    A's shard: 1 from the removal on, 2 from the statement on. B's: its first record, which has J out already, and that
    record put again with the statement. What stands already B would only wait for; but of its first record an
    acknowledgement says nothing, since a gateway that has not heard of the statement goes by A's.
    """

    without: str = ""

    @property
    def start(self) -> Asked:
        none = Numbers(0, 0)
        return Asked(none, none, none, BY_A, waits=0, asked_for=0, returned=False)

    def broken(self, state: Asked) -> str:
        a, b = state.applied
        permits = a == 0 and b < REMOVED and state.age < BY_A
        return "I1, I2: served in J after the return" if state.returned and permits else ""

    def steps(self, state: Asked) -> Iterator[tuple[str, Asked]]:
        a, b = state.store
        aged = min(BY_A, state.asked_for + 1) if state.waits else 0
        yield "tick", state._replace(age=min(BY_A, state.age + 1), asked_for=aged)
        if a == 0:
            yield "A COMMITS: J removed", state._replace(store=Numbers(1, b))
        elif b < FIRST:
            yield "B puts its first record", state._replace(store=Numbers(a, FIRST))
        elif a == 1:
            yield "A states the move", state._replace(store=Numbers(2, b))
        elif not state.waits:
            if self.without == "put again":
                yield "asked again at B: nothing changes", state._replace(waits=FIRST)
            else:
                yield "asked again at B: put again", state._replace(store=Numbers(a, REMOVED), waits=REMOVED)
        if state.waits and (state.acked.b >= state.waits or state.asked_for >= BY_A):
            yield "RETURN", state._replace(returned=True)
        if state.applied == state.store:
            yield "grant", state._replace(age=0)
        elif state.store.a == 0:
            yield "grant by what A has", state._replace(age=0)
        for shard in (0, 1):
            if state.applied[shard] < state.store[shard]:
                applied = list(state.applied)
                applied[shard] += 1
                yield f"applies {'AB'[shard]} {applied[shard]}", state._replace(applied=Numbers(*applied))
        if state.acked != state.applied:
            yield "ack", state._replace(acked=state.applied)


def _check(configuration: str, machine: Moves | Again, at_least: int = 0) -> Check:
    return Check("moves", configuration, machine, at_least, machine.without)


HOLD = (_check("S 2 becomes S 1", Moves(), 2_000), _check("a removal asked for again", Again(), 100))
LARGE: tuple[Check, ...] = ()
FOUND = (
    *(_check("S 2 becomes S 1", Moves(rule)) for rule in ("chain carried", "both homes' S")),
    _check("a removal asked for again", Again("put again")),
)
