"""What the mesh's programs are given instead of taking it: time, randomness and tasks.

`control`, `gateway` and `admin` take these as arguments, so that the same code runs on a virtual clock in a
simulation. `mesh.runtime` holds the real ones. Lint bans `asyncio.TaskGroup`, `asyncio.timeout` and `loop.time` there.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Protocol, Self


class Clock(Protocol):
    """Time, as one host sees it."""

    def now_s(self) -> float:
        """Monotonic seconds; only differences mean something."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970, UTC. For records, never for deadlines."""
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
