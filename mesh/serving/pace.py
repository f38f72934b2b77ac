"""How long an engine's steps take, measured at start: a step cannot be stopped, so it must not begin too late.

A start is a busy moment, and how busy the machine happens to be must not decide for good how much is done in one step.
So the size of a step follows from the time that its thread had a processor, and what it may take from both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

STEP_S = 0.5
"""No step is so large that it takes longer, where the smallest does not."""
ROOM = 2.0
"""How many times longer than its own time a step may take: the machine may be busy."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What a step took: its thread's own time, and by the clock. Seconds."""

    own_s: float
    wall_s: float

    @property
    def longest_s(self) -> float:
        """What such a step may take."""
        return max(self.own_s * ROOM, self.wall_s)

    def may_double(self) -> bool:
        """Whether a step of twice the size is still short enough."""
        return 2 * self.own_s * ROOM <= STEP_S

    def times(self, factor: float) -> Pace:
        """As many times as much."""
        return Pace(self.own_s * factor, self.wall_s * factor)

    def plus(self, other: Pace) -> Pace:
        """One after the other."""
        return Pace(self.own_s + other.own_s, self.wall_s + other.wall_s)


def timed(step: Callable[[], object], *, on_cpu: bool) -> Pace:
    """Takes a step. Where another device computes, the thread only waits for it, and its own time says nothing."""
    own_s, wall_s = time.thread_time(), time.monotonic()
    step()
    own_s, wall_s = time.thread_time() - own_s, time.monotonic() - wall_s
    return Pace(own_s if on_cpu else wall_s, wall_s)
