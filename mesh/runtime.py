"""The real clock, tasks and randomness of a process (see `mesh.ports`)."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Self

from mesh.ports import Instant

_APART_S = 0.001


class SystemClock:
    """The host's clock."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()

    def instant(self) -> Instant:
        """This moment on all clocks."""
        while True:
            before_s = time.clock_gettime(time.CLOCK_MONOTONIC)
            boot_s, raw_s = time.clock_gettime(time.CLOCK_BOOTTIME), time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
            wall_s, after_s = time.time(), time.clock_gettime(time.CLOCK_MONOTONIC)
            # Read apart, they would tell of a suspend that never was, or of a wall clock that was set.
            if after_s - before_s < _APART_S:
                return Instant(boot_s=boot_s, raw_s=raw_s + boot_s - before_s, wall_s=wall_s)

    async def sleep(self, seconds: float) -> None:
        """Waits on the running loop."""
        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """`asyncio.timeout`."""
        return asyncio.timeout(seconds)


class TaskGroupTasks:
    """`asyncio.TaskGroup` behind the `Tasks` port."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        return await self._group.__aexit__(*exc)  # pyright: ignore[reportArgumentType]

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """Starts a child task."""
        self._group.create_task(work, name=name)


class SystemEntropy:
    """The operating system's randomness, and a fast coin."""

    def token(self, size_bytes: int) -> bytes:
        """From the operating system."""
        return secrets.token_bytes(size_bytes)

    def coin(self) -> float:
        """From a Mersenne twister: not secret."""
        return random.random()  # noqa: S311 - a coin for load balancing
