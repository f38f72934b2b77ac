"""A part of the mesh: something that is started, watched, and started again when it ends.

Two kinds: a program (`Program`), and a region's Ray cluster (`ray_cluster.py`). Both go by the same rules: pauses grow
from half a second to ten; five failures in a row, and the part is given up, with the name of the log that says why.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mesh.embedded.children import Child, Children
from mesh.embedded.processes import Process, Roll, end
from mesh.errors import MeshError

_LONGEST_PAUSE_S = 10.0
_TRIES = 5
_STEADY_S = 30.0
"""What was ready this long had started well: its end begins a new row of failures. The time that it took to fail to
start, a minute for a driver, say, is none of it."""
LOG_BYTES = 5 * 1024 * 1024


class PartState(StrEnum):
    """How a part is."""

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"


@dataclass(slots=True)
class Backoff:
    """Counts failures in a row.

    Attributes:
        first_pause_s: The pause after the first failure; it doubles with each.
    """

    failures: int = 0
    first_pause_s: float = 0.5

    def failed(self, ran_s: float) -> float | None:
        """Takes note of an end `ran_s` seconds after it was ready; tells the pause before the next try, or None."""
        self.failures = 1 if ran_s >= _STEADY_S else self.failures + 1
        if self.failures >= _TRIES:
            return None
        return min(self.first_pause_s * 2 ** (self.failures - 1), _LONGEST_PAUSE_S)


@dataclass(slots=True)
class Part:
    """What the supervisor knows of one part.

    Attributes:
        name: Unique, such as `gateway-vn-1-g1`; also the name of its log.
        log: Where it says why it ended.
        pid: Of its first process while it runs.
        fault: What is wrong now, in words with the log's name; None while nothing is.
        given_up: It is not started again.
        told: Its readiness was announced.
    """

    name: str
    log: Path
    state: PartState = PartState.STARTING
    pid: int | None = None
    fault: str | None = None
    given_up: bool = False
    told: bool = False
    backoff: Backoff = field(default_factory=Backoff)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is ready for the first time, or given up."""
    ready_at_s: float | None = None
    """When this try became ready, by the loop's clock."""

    def ready(self) -> None:
        """It works."""
        self.ready_at_s = asyncio.get_running_loop().time()
        self.state, self.fault = PartState.READY, None
        self.settled.set()

    def ended(self, how: str, pause_s: float | None) -> None:
        """It ended; it is started again after the pause, or no more."""
        self.pid = None
        self.state = PartState.DOWN
        self.given_up = pause_s is None
        then = "it is not started again" if pause_s is None else "it is started again"
        self.fault = f"{self.name} {how}; {then}; see {self.log}"
        if self.given_up:
            self.settled.set()


async def keep(part: Part, attempt: Callable[[], Awaitable[str]]) -> None:
    """Runs `attempt` again and again until it is given up. An attempt returns, in words, how it ended."""
    loop = asyncio.get_running_loop()
    while True:
        part.state, part.ready_at_s = PartState.STARTING, None
        try:
            how = await attempt()
        except MeshError as error:
            # A full disk, say, or no more processes: that ends this try, not the parts that run.
            how = f"could not be started ({error.hint.removesuffix('.')})"
        pause_s = part.backoff.failed(0 if part.ready_at_s is None else loop.time() - part.ready_at_s)
        part.ended(how, pause_s)
        if pause_s is None:
            return
        await asyncio.sleep(pause_s)


async def at_once() -> None:
    """What need not be waited for."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to keep running.

    Attributes:
        check: Waits until it works; it may ask again and again, and is cancelled when the program ends.
        may_start: Waits, before each start, until it may be.
    """

    part: Part
    argv: Sequence[str]
    environ: Mapping[str, str]
    folder: Path
    check: Callable[[], Awaitable[None]]
    may_start: Callable[[], Awaitable[None]] = at_once

    async def run(self, children: Children, roll: Roll) -> None:
        """Keeps it running; ends it when cancelled."""

        async def attempt() -> str:
            await self.may_start()
            child = children.start(self.argv, self.environ, self.part.log, folder=self.folder)
            roll.lead(child.process, self.part.name)
            self.part.pid = child.process.pid
            return await watched(child, self.part, self.check)

        await keep(self.part, attempt)


async def watched(child: Child, part: Part, check: Callable[[], Awaitable[None]]) -> str:
    """Waits for a child's end, and meanwhile for its readiness; returns how it ended.

    A child that fails the check (a port that takes TLS 1.2, say) is ended.
    """
    fault: MeshError | None = None

    async def until_ready() -> None:
        nonlocal fault
        try:
            await check()
            part.ready()
        except MeshError as error:
            fault = error
            await stop([child.process], 0)

    async with asyncio.TaskGroup() as tasks:
        readiness = tasks.create_task(until_ready(), name=f"{part.name}-check")
        code = await child.ended
        if fault is None:
            readiness.cancel()
    return f"failed its check: {fault.hint}" if fault else how_it_ended(code)


def how_it_ended(code: int) -> str:
    """An exit status in words."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"


async def stop(processes: Sequence[Process], grace_s: float) -> None:
    """Ends processes without holding the loop."""
    await asyncio.to_thread(end, processes, grace_s=grace_s)


def bound_logs(folder: Path, limit_bytes: int = LOG_BYTES) -> None:
    """Keeps each log to its size: what is too long becomes `<part>.log.1`, and the file starts anew.

    Programs append, so a file that is cut goes on at its beginning.
    """
    for log in folder.glob("*.log"):
        with suppress(OSError):
            if log.stat().st_size > limit_bytes:
                shutil.copyfile(log, log.with_name(log.name + ".1"))
                with log.open("r+b") as file:
                    file.truncate(0)
