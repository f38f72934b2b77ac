"""What the mesh's programs are given instead of taking it: time, randomness and tasks.

`control`, `gateway` and `admin` take these as arguments, so that the same code runs on a virtual clock in a
simulation. `mesh.runtime` holds the real ones. Lint bans `asyncio.TaskGroup`, `asyncio.timeout` and `loop.time` there.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, Self

RHO = 1e-3
"""By how much the rate of a host's MONOTONIC_RAW may differ from true time."""
_APART_S = 0.1


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment as one host sees it, on three clocks, in seconds.

    What runs out is aged by `most_since`, what is waited for by `least_since`: a clock that is slewed or stops while
    the machine sleeps then only shortens what may be done and lengthens what must be waited for.

    Attributes:
        boot_s: CLOCK_BOOTTIME: counts suspend, and may be slewed.
        raw_s: CLOCK_MONOTONIC_RAW, which is not slewed, plus the time in suspend, which it does not count.
        wall_s: Seconds since 1970, UTC: may be set.
    """

    boot_s: float
    raw_s: float
    wall_s: float

    def most_since(self, earlier: Instant) -> float:
        """The larger of what the two monotonic clocks say has passed."""
        return max(self.boot_s - earlier.boot_s, self.raw_s - earlier.raw_s)

    def least_since(self, earlier: Instant) -> float:
        """The smaller of the two."""
        return min(self.boot_s - earlier.boot_s, self.raw_s - earlier.raw_s)

    def apart_from(self, earlier: Instant) -> bool:
        """Whether the wall clock and BOOTTIME have moved apart since: one of them was set, or the process was moved."""
        elapsed_s = self.boot_s - earlier.boot_s
        return abs(self.wall_s - earlier.wall_s - elapsed_s) > _APART_S + RHO * max(0.0, elapsed_s)


class Clock(Protocol):
    """Time, as one host sees it."""

    def now_s(self) -> float:
        """Monotonic seconds; only differences mean something."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970, UTC. For records, never for deadlines."""
        ...

    def instant(self) -> Instant:
        """This moment on all clocks, for authority, deadlines of work and waits of a pin."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        ...

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """Cancels its body after `seconds` and then raises `TimeoutError`."""
        ...


class Tasks(Protocol):
    """Tasks with one parent: leaving the `async with` waits for all; a failure cancels the others, in order."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> bool | None: ...

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """Starts a child."""
        ...


class TaskFactory(Protocol):
    """Makes a group of tasks."""

    def __call__(self) -> Tasks:
        """A new, empty group."""
        ...


class Entropy(Protocol):
    """Randomness."""

    def token(self, size_bytes: int) -> bytes:
        """Random bytes that nobody can guess."""
        ...

    def coin(self) -> float:
        """Uniform in [0, 1), not secret."""
        ...
