"""Clocks that run wrong: what ages by them, what waits by them, and how long a wait must be.

Modelled (pins.md sections 3 and 5): a gateway with three clocks, an admin with a clock of its own. All count
the same oscillator, which may be wrong by `error` ticks in any time of length S, on each machine; BOOTTIME and
MONOTONIC may also be slewed, alike, by a tick more or less in each tick; RAW is not. In suspend BOOTTIME counts, RAW and MONOTONIC do not. The
machine may also be paused from outside, which only the wall clock shows later. Authority ages by the larger, waits by
the smaller. An admin may die at any time; its successor starts its wait anew.

Abstracted: one gateway, one shrink; its work ends with its authority; etcd answers or does not. The bound on the rate
is a number of ticks per lease, not rho; W = S + 2 errors is W = S(1 + rho)/(1 - rho) in this unit.

Promised: after the return the gateway has no authority, so nothing runs or is admitted (I1, I2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check


class Elapsed(NamedTuple):
    """What a gateway's clocks say has passed since t0: BOOTTIME, RAW, suspend, and how far RAW may still fall behind.

    `apart` says that the wall clock and BOOTTIME have moved apart since.
    """

    boot: int
    raw: int
    slept: int
    error: int
    apart: bool


class Asked(NamedTuple):
    phase: str
    since: Elapsed
    head: int


class State(NamedTuple):
    """`shrink` is none, waits, returned; the admin's wait is (what its clock says, by how much that may still run ahead)."""

    shrink: str
    waited: tuple[int, int]
    applied: int
    since: Elapsed | None
    asked: Asked | None
    acked: int
    pauses: int


@dataclass(frozen=True)
class Clocks:
    """The machine.

    Attributes:
        span: S, in ticks.
        error: By how many ticks RAW may run wrong in a time of length S, either way.
        wait: W, in ticks; without it S + 2 errors.
        slews: Whether BOOTTIME and MONOTONIC may be slewed.
        sleeps: Whether the machine may be suspended.
        pauses: How often it may be paused from outside.
        without: The rule that is left out.
    """

    span: int = 2
    error: int = 1
    wait: int = 0
    slews: bool = False
    sleeps: bool = False
    pauses: int = 0
    without: str = ""

    @property
    def start(self) -> State:
        return State("none", (0, 0), 0, None, None, 0, self.pauses)

    def broken(self, state: State) -> str:
        if state.shrink == "returned" and state.applied == 0 and self._live(state):
            return "I1, I2: authority after the return"
        return ""

    def _age(self, since: Elapsed) -> int:
        if self.without == "slew":
            return since.boot
        if self.without == "suspend":
            return since.raw
        if self.without == "larger of two sums":
            return max(since.boot, since.raw)
        return max(since.boot, since.raw + since.slept)

    def _live(self, state: State) -> bool:
        if state.since is None:
            return False
        if self.without == "static":
            return True
        apart = state.since.apart and self.without != "wall"
        return not apart and self._age(state.since) < self.span

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._time(state)
        yield from self._gateway(state)
        if state.shrink == "none":
            yield "COMMIT", state._replace(shrink="waits", waited=(0, self.error))
        if state.shrink == "waits":
            if state.waited != (0, self.error):
                yield "another admin takes over", state._replace(waited=(0, self.error))
            if state.waited[0] >= self._wait():
                yield "RETURN by timer", state._replace(shrink="returned")
            if state.acked:
                yield "RETURN by acknowledgement", state._replace(shrink="returned")

    def _wait(self) -> int:
        return (self.wait or self.span + 2 * self.error) - (self.without == "shortW")

    def _time(self, state: State) -> Iterator[tuple[str, State]]:
        waits = [state.waited]
        if state.shrink == "waits":
            counted, error = state.waited
            limit = self._wait()
            waits = [(min(limit, counted + 1 + fast), error - fast) for fast in range(min(1, error) + 1)]
        for waited in waits:
            ahead = state._replace(waited=waited)
            for slewed in (-1, 0, 1) if self.slews else (0,):
                for behind in (0, 1):
                    name = f"tick: RAW +{1 - behind}" + (f", BOOTTIME slewed by {slewed}" if slewed else "")
                    yield name, self._passed(ahead, lambda since, b=behind, s=slewed: self._awake(since, b, s))
            if self.sleeps:
                yield "tick, suspended", self._passed(ahead, self._asleep)
            if state.pauses:
                paused = ahead._replace(pauses=state.pauses - 1)
                yield "tick, paused from outside", self._passed(paused, lambda since: since._replace(apart=True))

    def _awake(self, since: Elapsed, behind: int, slewed: int) -> Elapsed:
        # A clock that has used up what it may run wrong is right for the rest of this lease.
        late = min(behind, since.error)
        return since._replace(
            boot=min(self.span, max(0, since.boot + 1 - late + slewed)),
            raw=min(self.span, since.raw + 1 - late),
            error=since.error - late,
        )

    def _asleep(self, since: Elapsed) -> Elapsed:
        return since._replace(boot=min(self.span, since.boot + 1), slept=min(self.span, since.slept + 1))

    def _passed(self, state: State, on: Callable[[Elapsed], Elapsed]) -> State:
        since = state.since and on(state.since)
        asked = state.asked and state.asked._replace(since=on(state.asked.since))
        after = state._replace(since=since, asked=asked)
        # What is over stays over: one state for all of them.
        return after if self._live(after) else after._replace(since=None)

    def _gateway(self, state: State) -> Iterator[tuple[str, State]]:
        if state.asked is None:
            fresh = Elapsed(0, 0, 0, self.error, apart=False)
            yield "grant sent", state._replace(asked=Asked("sent", fresh, 0))
        else:
            yield "grant lost", state._replace(asked=None)
            if state.asked.phase == "sent":
                head = 0 if state.shrink == "none" else 1
                yield "grant commits", state._replace(asked=Asked("answered", state.asked.since, head))
            elif state.asked.head <= state.applied:
                since = state.asked.since
                if self.without == "t0recv":
                    since = Elapsed(0, 0, 0, self.error, apart=False)
                yield "grant answered", state._replace(asked=None, since=since)
        if state.shrink != "none" and not state.applied:
            yield "applies, cuts", state._replace(applied=1)
        if state.acked < state.applied:
            yield "ack", state._replace(acked=1)
        if state.since or state.asked:
            yield "gateway killed and started", state._replace(since=None, asked=None, applied=0)


def _check(configuration: str, machine: Clocks, at_least: int = 0) -> Check:
    return Check("clocks", configuration, machine, at_least, machine.without)


HOLD = (
    _check("rates, S 2, error 1", Clocks(), 200),
    _check("slews and suspend, S 3, error 1", Clocks(span=3, slews=True, sleeps=True), 2_000),
    _check("pauses, S 3, error 1", Clocks(span=3, pauses=2), 1_000),
)
LARGE = (
    _check("everything, S 4, error 1", Clocks(span=4, slews=True, sleeps=True, pauses=2), 10_000),
    _check("rates, S 6, error 2", Clocks(span=6, error=2), 5_000),
)
FOUND = (
    _check("rates, S 2, error 1", Clocks(without="shortW")),
    _check("rates, S 2, error 1", Clocks(without="t0recv")),
    _check("rates, S 2, error 1", Clocks(without="static")),
    _check("slews, S 2, error 1", Clocks(slews=True, without="slew")),
    _check("suspend, S 2, error 1", Clocks(sleeps=True, without="suspend")),
    _check(
        "slews and suspend, S 4, error 0",
        Clocks(span=4, error=0, slews=True, sleeps=True, without="larger of two sums"),
    ),
    _check("pauses, S 2, error 1", Clocks(pauses=2, without="wall")),
)
