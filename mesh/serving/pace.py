"""How long an engine's steps take: a step cannot be stopped, so it must not begin too late.

A start is a busy moment, and how busy the machine happens to be then must not decide for good. So what is measured at
start is the time that the thread had a processor; how long steps really take beside what else runs is seen as they run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

STEP_S = 0.5
"""No step is so large that it takes longer, where the smallest does not."""
ROOM = 2.0
"""How many times longer than its own time a step may take: the machine may be busy."""


HALVES_IN_S = 5.0
"""A step that took longer than expected counts half as much after so long: the machine was busy, and may not be now."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What a step took: its thread's own time, or by the clock where another device computes. Seconds."""

    own_s: float

    @property
    def longest_s(self) -> float:
        """What such a step may take."""
        return self.own_s * ROOM

    def may_double(self) -> bool:
        """Whether a step of twice the size is still short enough."""
        return 2 * self.own_s * ROOM <= STEP_S

    def times(self, factor: float) -> Pace:
        """As many times as much."""
        return Pace(self.own_s * factor)

    def plus(self, other: Pace) -> Pace:
        """One after the other."""
        return Pace(self.own_s + other.own_s)


def timed(step: Callable[[], object], *, on_cpu: bool) -> Pace:
    """Takes a step. Where another device computes, the thread only waits for it, and its own time says nothing."""
    own_s, wall_s = time.thread_time(), time.monotonic()
    step()
    own_s, wall_s = time.thread_time() - own_s, time.monotonic() - wall_s
    return Pace(own_s if on_cpu else wall_s)


class Longest:
    """The longest that a step may take: as measured at start, and longer while steps really do. One writing thread."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self.measured_s = 0.0
        self._now_s = now_s
        self._seen: tuple[float, float] = (0.0, 0.0)

    @property
    def longest_s(self) -> float:
        """Seconds, now. Any thread."""
        seen_s, at_s = self._seen
        return max(self.measured_s, seen_s * 0.5 ** ((self._now_s() - at_s) / HALVES_IN_S))

    @contextmanager
    def step(self) -> Generator[None]:
        """Around a step that is taken for somebody."""
        began_s = self._now_s()
        try:
            yield
        finally:
            ended_s = self._now_s()
            if ended_s - began_s >= self.longest_s:
                self._seen = (ended_s - began_s, ended_s)
