"""Time that moves when a test says so, timer by timer: what is due happens in order, and as fast as it can."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Self

from mesh.ports import Instant

_STEPS = 60
"""Turns of the event loop in which everything that is ready has happened: nothing here waits for the outside."""


class ManualClock:
    """A host's clocks. RAW goes `raw_rate` times as fast as BOOTTIME."""

    def __init__(self, raw_rate: float = 1.0) -> None:
        self.boot_s = 1000.0
        self.raw_s = 500.0
        self.raw_rate = raw_rate
        self.wall_ahead_s = 1_790_000_000.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def now_s(self) -> float:
        return self.boot_s

    def wall_s(self) -> float:
        return self.boot_s + self.wall_ahead_s

    def instant(self) -> Instant:
        return Instant(boot_s=self.boot_s, raw_s=self.raw_s, wall_s=self.wall_s())

    async def sleep(self, seconds: float) -> None:
        done = asyncio.Event()
        self._at(seconds, done.set)
        await done.wait()

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return _Timeout(self, seconds)

    async def advance(self, seconds: float) -> None:
        """Lets time pass, and everything happen that is due by then."""
        until_s = self.boot_s + seconds
        await self.settle()
        while self._timers and self._timers[0][0] <= until_s:
            due_s, _, ring = heapq.heappop(self._timers)
            self._pass(max(0.0, due_s - self.boot_s))
            ring()
            await self.settle()
        self._pass(until_s - self.boot_s)
        await self.settle()

    async def settle(self) -> None:
        """Everything happens that needs no time."""
        for _ in range(_STEPS):
            await asyncio.sleep(0)

    def _pass(self, seconds: float) -> None:
        self.boot_s += seconds
        self.raw_s += seconds * self.raw_rate

    def _at(self, seconds: float, ring: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._timers, (self.boot_s + max(0.0, seconds), self._count, ring))


class _Timeout:
    """`asyncio.timeout`, expired by the manual clock."""

    def __init__(self, clock: ManualClock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._left = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._clock._at(self._seconds, self._ring)
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        self._left = True
        return await self._timeout.__aexit__(*exc)  # pyright: ignore[reportArgumentType]

    def _ring(self) -> None:
        if not self._left:
            self._timeout.reschedule(0)  # long ago: at once
