"""One process that became two: a machine that was copied, with the gateway in it.

Modelled (pins.md section 3): a gateway P renews its grant; at any time it is copied, and its copy Q goes on with all
that P knew. Each attempt to renew has a random id, and the grant's value holds it; a transaction puts it only where
the value is explained: one of the process's own attempts, or none; else the process learns that it has a twin. A shrink waits for every UUID that had a grant, by acknowledgement or by timer.

Two kinds of copy. One that is *shown* by the clocks (a snapshot that is started later): its authority is dropped, it
takes a new UUID, and the promise holds at all times. One that is not shown: for a time of S both may serve, which is
not promised; from then on it must hold again, because one of them has found the other, or has lost its authority.

Abstracted: clocks are exact, W = S. Nothing drains: what runs is cut when the change is applied. One shrink.

Promised: after the return neither of the two has authority under the older record (I1, I2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check


class Asked(NamedTuple):
    """An attempt: its id, time since t0; once committed, the head, and the id that the grant held before."""

    attempt: int
    age: int
    head: int | None
    before: int


class Process(NamedTuple):
    """A process: its UUID, what it applied, the age of its grant, the attempt that was last acknowledged, open ones."""

    uuid: int
    applied: bool
    age: int
    asked: Asked | None
    known: int
    open: frozenset[int]


class State(NamedTuple):
    """`grants` are the attempts that each UUID's key holds, 0 for none; `shrink` is none, waits, void, returned."""

    processes: tuple[Process | None, Process | None]
    grants: tuple[int, int]
    acks: frozenset[int]
    shrink: str
    members: frozenset[int]
    waited: int
    copied: int | None
    attempts: int


@dataclass(frozen=True)
class Twins:
    """The machine.

    Attributes:
        shown: Whether the copy's clocks show that it was copied.
        span: S, in ticks.
        attempts: How many grants are asked for, at most.
        without: The rule that is left out.
    """

    shown: bool
    span: int = 2
    attempts: int = 4
    without: str = ""

    @property
    def start(self) -> State:
        first = Process(0, applied=False, age=self.span, asked=None, known=0, open=frozenset())
        return State((first, None), (0, 0), frozenset(), "none", frozenset(), 0, None, 0)

    def broken(self, state: State) -> str:
        if state.shrink != "returned":
            return ""
        for name, process in zip("PQ", state.processes, strict=True):
            if process and not process.applied and process.age < self.span:
                return f"I1, I2: {name} has authority after the return"
        return ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if state.shrink == "void":
            return
        yield "tick", self._tick(state)
        for at, name in enumerate("PQ"):
            process = state.processes[at]
            if process:
                yield from self._process(state, at, name, process)
        first = state.processes[0]
        if state.copied is None and first:
            yield "P is copied", self._copied(state, first)
        if state.shrink == "none":
            # A copy that no clock shows: what is committed before both have had time to find out is not promised.
            promised = self.shown or state.copied is None or state.copied >= self.span
            members = frozenset(uuid for uuid, attempt in enumerate(state.grants) if attempt)
            yield "COMMIT", state._replace(shrink="waits" if promised else "void", members=members)
        if state.shrink == "waits":
            if state.members <= state.acks:
                yield "RETURN by acknowledgement", state._replace(shrink="returned")
            elif state.waited >= self.span:
                yield "RETURN by timer", state._replace(shrink="returned")

    def _tick(self, state: State) -> State:
        def older(process: Process | None) -> Process | None:
            if process is None:
                return None
            asked = process.asked and process.asked._replace(age=min(self.span, process.asked.age + 1))
            return process._replace(age=min(self.span, process.age + 1), asked=asked)

        return state._replace(
            processes=(older(state.processes[0]), older(state.processes[1])),
            waited=min(self.span, state.waited + 1) if state.shrink == "waits" else 0,
            copied=state.copied if self.shown or state.copied is None else min(self.span, state.copied + 1),
        )

    def _copied(self, state: State, first: Process) -> State:
        # A connection is not copied: an answer that is under way finds P only. What P knew, its copy knows.
        copy = first._replace(asked=None)
        shrink = state.shrink
        if self.shown:
            copy = copy._replace(age=self.span)
            if self.without != "new UUID":
                copy = Process(1, copy.applied, self.span, None, 0, frozenset())
        elif shrink == "waits":
            shrink = "void"
        return state._replace(processes=(first, copy), copied=0, shrink=shrink)

    def _process(self, state: State, at: int, name: str, process: Process) -> Iterator[tuple[str, State]]:
        def put(after: Process | None, **others: object) -> State:
            pair = (after, state.processes[1]) if at == 0 else (state.processes[0], after)
            return state._replace(processes=pair, **others)  # pyright: ignore[reportArgumentType]

        asked = process.asked
        if asked is None:
            if state.attempts < self.attempts:
                attempt = state.attempts + 1
                sent = process._replace(asked=Asked(attempt, 0, None, 0), open=process.open | {attempt})
                yield f"{name}: grant sent", put(sent, attempts=attempt)
        else:
            yield f"{name}: grant lost", put(process._replace(asked=None))
            if asked.head is None:
                head = 0 if state.shrink == "none" else 1
                held = state.grants[process.uuid]
                answer = asked._replace(head=head, before=held)
                grants = list(state.grants)
                if self._explained(process, held) or self.without in {"put compares", "twin"}:
                    grants[process.uuid] = asked.attempt
                yield f"{name}: grant commits", put(process._replace(asked=answer), grants=tuple(grants))
            else:
                yield f"{name}: grant answered", put(self._answered(process, asked))
        if state.shrink != "none" and not process.applied:
            yield f"{name}: applies, cuts", put(process._replace(applied=True))
        held = state.grants[process.uuid]
        mine = (held == process.known and held) or self.without == "ack compares"
        if state.shrink == "waits" and process.applied and process.uuid not in state.acks and mine:
            yield f"{name}: ack", put(process, acks=state.acks | {process.uuid})

    def _explained(self, process: Process, held: int) -> bool:
        return held == process.known or held in process.open

    def _answered(self, process: Process, asked: Asked) -> Process | None:
        if not self._explained(process, asked.before) and self.without != "twin":
            return None  # there is another one: exit
        age = min(process.age, asked.age) if asked.head == 0 or process.applied else process.age
        return process._replace(asked=None, known=asked.attempt, open=frozenset(), age=age)


def _check(configuration: str, machine: Twins, at_least: int = 0) -> Check:
    return Check("twins", configuration, machine, at_least, machine.without)


HOLD = (
    _check("shown by the clocks", Twins(shown=True, attempts=2), 10_000),
    _check("not shown, S later", Twins(shown=False, span=1, attempts=3), 20_000),
)
LARGE = (
    _check("shown by the clocks, three attempts", Twins(shown=True, attempts=3), 200_000),
    _check("not shown, S 2 later", Twins(shown=False, attempts=3), 100_000),
)
FOUND = (
    _check("not shown, S later", Twins(shown=False, span=1, attempts=3, without="twin")),
    _check("not shown, S later", Twins(shown=False, span=1, attempts=3, without="ack compares")),
    _check("not shown, S later", Twins(shown=False, span=1, attempts=3, without="put compares")),
    _check("shown by the clocks", Twins(shown=True, attempts=3, without="new UUID")),
)
