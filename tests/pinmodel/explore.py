"""Explicit-state search: every state that a machine can reach, breadth first, and the shortest way to a forbidden one.

A machine is a small description of a part of the pin protocol. Its states are tuples; time is counted in ticks. A rule
that is left out of a machine (`without`) makes a *mutant*, in which the search must find a forbidden state: a check
that finds nothing in a protocol known to be wrong would prove nothing about one believed to be right.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol


class Machine(Protocol):
    """What is searched."""

    @property
    def start(self) -> Hashable:
        """The first state."""
        ...

    def steps(self, state: Any) -> Iterable[tuple[str, Hashable]]:
        """All that can happen in a state: a name of what happens, and the state after it."""
        ...

    def broken(self, state: Any) -> str:
        """Which promise does not hold in a state, in words; empty if all do."""
        ...


@dataclass(frozen=True, slots=True)
class Check:
    """One machine in one configuration, and what the search of it must find.

    Attributes:
        model: The model's name.
        configuration: Which of its configurations, in words.
        machine: What is searched.
        at_least: A search that holds and saw fewer states saw too little to count.
        mutant: The rule that was left out; empty for the protocol as it is, which must hold.
    """

    model: str
    configuration: str
    machine: Machine
    at_least: int = 0
    mutant: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found.

    Attributes:
        states: How many different states it reached.
        seconds: CPU time that it took.
        whole: Whether it reached every state; false where it found a forbidden one or met its limit.
        broken: The promise that a state broke; empty if none did.
        trace: The shortest way there.
    """

    states: int
    seconds: float
    whole: bool
    broken: str = ""
    trace: tuple[str, ...] = ()

    def surprise(self, check: Check) -> str:
        """In what the search differs from what the check asks for; empty if in nothing."""
        if check.mutant:
            return "" if self.broken else f"the search missed that the rule {check.mutant} was left out"
        if self.broken:
            return f"{self.broken}: " + " > ".join(self.trace)
        if not self.whole:
            return f"the search was not finished after {self.states} states"
        return f"only {self.states} states" if self.states < check.at_least else ""


def explore(machine: Machine, limit: int = 20_000_000) -> Outcome:
    """Searches a machine, nearest states first.

    Args:
        machine: What to search.
        limit: After how many states the search is given up.
    """
    collects = gc.isenabled()
    gc.disable()  # states hold no cycles, and the collector would walk through all of them again and again
    try:
        return _search(machine, limit)
    finally:
        if collects:
            gc.enable()


def _search(machine: Machine, limit: int) -> Outcome:
    began = time.process_time()
    start = machine.start
    came_from: dict[Hashable, tuple[Hashable, str] | None] = {start: None}
    ahead = deque([start])
    while ahead:
        state = ahead.popleft()
        broken = machine.broken(state)
        if broken:
            trace = _way_to(state, came_from)
            return Outcome(len(came_from), time.process_time() - began, whole=False, broken=broken, trace=trace)
        for name, after in machine.steps(state):
            if after not in came_from:
                came_from[after] = (state, name)
                ahead.append(after)
        if len(came_from) > limit:
            return Outcome(len(came_from), time.process_time() - began, whole=False)
    return Outcome(len(came_from), time.process_time() - began, whole=True)


def _way_to(state: Hashable, came_from: dict[Hashable, tuple[Hashable, str] | None]) -> tuple[str, ...]:
    names: list[str] = []
    while (step := came_from[state]) is not None:
        state, name = step
        names.append(name)
    return tuple(reversed(names))
