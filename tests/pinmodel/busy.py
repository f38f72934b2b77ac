"""A busy shard is late, never starved: a healthy gateway keeps its authority while others change the same shard all the time.

Modelled (pins.md section 3): grants that are asked for as soon as the last is answered; answers that name a head which
the watch has not brought yet, and are kept until it has; up to two changes of other tenants in a tick.

Abstracted: no faults: a grant is answered, and an event is brought, before its second tick ends. Heads are counted from
what has been applied, so that the shard's number may rise for ever.

Promised: authority never ends. (Nothing else here: what a grant may be used for is `core`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check

LATEST = 2


class State(NamedTuple):
    """`events` are the ages of changes that are not applied; `asked` and `kept` are (age, changes still to be applied).

    An answer whose `asked` has no second number has not been committed.
    """

    age: int
    events: tuple[int, ...]
    asked: tuple[int, int | None] | None
    kept: tuple[tuple[int, int], ...]
    commits: int


@dataclass(frozen=True)
class Busy:
    """The machine.

    Attributes:
        span: S, in ticks.
        a_tick: How many changes there are in a tick, at most.
        without: The rule that is left out.
    """

    span: int = 6
    a_tick: int = 2
    without: str = ""

    @property
    def start(self) -> State:
        return State(0, (), None, (), 0)

    def broken(self, state: State) -> str:
        return "a healthy gateway has no authority" if state.age >= self.span else ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        punctual = all(age < LATEST - 1 for age in state.events)
        if state.asked and state.asked[0] < LATEST - 1 and punctual:
            yield (
                "tick",
                state._replace(
                    age=state.age + 1,
                    events=tuple(age + 1 for age in state.events),
                    asked=(state.asked[0] + 1, state.asked[1]),
                    kept=tuple((age + 1, missing) for age, missing in state.kept if age + 1 < self.span),
                    commits=0,
                ),
            )
        if state.commits < self.a_tick:
            yield "COMMIT of another tenant", state._replace(events=(*state.events, 0), commits=state.commits + 1)
        if state.events:
            yield "event applied", self._applied(state)
        if state.asked is None:
            yield "grant sent", state._replace(asked=(0, None))
        elif state.asked[1] is None:
            yield "grant commits", state._replace(asked=(state.asked[0], len(state.events)))
        else:
            yield "grant answered", self._answered(state, *state.asked)

    def _applied(self, state: State) -> State:
        kept = tuple((age, missing - 1) for age, missing in state.kept)
        asked = state.asked
        if asked and asked[1] is not None:
            asked = (asked[0], max(-1, asked[1] - 1))
        reached = [age for age, missing in kept if missing <= 0]
        return state._replace(
            age=min([state.age, *reached]),
            events=state.events[1:],
            asked=asked,
            kept=tuple(answer for answer in kept if answer[1] > 0),
        )

    def _answered(self, state: State, age: int, missing: int | None) -> State:
        missing = missing or 0
        counts = missing == 0 if self.without == "exact" else missing <= 0
        if counts:
            return state._replace(age=min(state.age, age), asked=None)
        if self.without in {"exact", "kept"}:
            return state._replace(asked=None)
        return state._replace(asked=None, kept=tuple(sorted({*state.kept, (age, missing)})))


def _check(configuration: str, machine: Busy, at_least: int = 0) -> Check:
    return Check("busy", configuration, machine, at_least, machine.without)


HOLD = (_check("one change a tick", Busy(a_tick=1), 200),)
LARGE = (_check("two changes a tick", Busy(), 2_000), _check("three changes a tick", Busy(a_tick=3), 10_000))
FOUND = tuple(_check("one change a tick", Busy(a_tick=1, without=rule)) for rule in ("exact", "kept"))
