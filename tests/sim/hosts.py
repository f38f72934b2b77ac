"""Hosts: their clocks, their randomness, and what can happen to the machine below a program."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from sim.loop import Process, SimLoop

from mesh.ports import Instant

if TYPE_CHECKING:
    from sim.tcp import Channel, Listener

Program = Callable[["Host"], Coroutine[Any, Any, None]]
_EPOCH_S = 1_750_000_000.0


class HostClock:
    """A host's clocks over true time; they outlive its processes. Fulfils `mesh.ports.Clock`.

    Attributes:
        rate: How fast its crystal goes. RAW shows it as it is, and counts what the machine slept (see `ports.Instant`).
        slew: By what the time daemon multiplies it for BOOTTIME and the wall clock.
    """

    def __init__(self, loop: SimLoop, boot_s: float, raw_s: float, wall_s: float) -> None:
        self.rate = 1.0
        self.slew = 1.0
        self._loop = loop
        self._at = loop.time()
        self._then = Instant(boot_s, raw_s, wall_s)

    def instant(self) -> Instant:
        """All clocks."""
        passed, then = (self._loop.time() - self._at) * self.rate, self._then
        slewed = passed * self.slew
        return Instant(then.boot_s + slewed, then.raw_s + passed, then.wall_s + slewed)

    def now_s(self) -> float:
        """BOOTTIME."""
        return self._then.boot_s + (self._loop.time() - self._at) * self.rate * self.slew

    def wall_s(self) -> float:
        """The wall clock."""
        return self._then.wall_s + (self._loop.time() - self._at) * self.rate * self.slew

    async def sleep(self, seconds: float) -> None:
        """Waits by this host's clock, again where it was slewed meanwhile."""
        end = self.now_s() + seconds
        await asyncio.sleep(seconds / (self.rate * self.slew))
        while (left := end - self.now_s()) > 1e-6:
            await asyncio.sleep(left / (self.rate * self.slew))

    def timeout(self, seconds: float) -> asyncio.Timeout:
        """By this host's clock as it goes now."""
        return asyncio.timeout(seconds / (self.rate * self.slew))

    def change(
        self,
        *,
        rate: float | None = None,
        slew: float | None = None,
        step_s: float = 0.0,
        lost_s: float = 0.0,
    ) -> None:
        """From now on. `step_s` sets the wall clock alone; `lost_s` is time that only the wall clock has seen."""
        then, self._at = self.instant(), self._loop.time()
        self._then = Instant(then.boot_s - lost_s, then.raw_s - lost_s, then.wall_s + step_s)
        self.rate = self.rate if rate is None else rate
        self.slew = self.slew if slew is None else slew

    def copy(self) -> HostClock:
        """One that shows the same from now on, until either is changed."""
        now = self.instant()
        twin = HostClock(self._loop, now.boot_s, now.raw_s, now.wall_s)
        twin.rate, twin.slew = self.rate, self.slew
        return twin


class SeededEntropy:
    """`mesh.ports.Entropy` of one life of one program."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(str(seed))

    def token(self, size_bytes: int) -> bytes:
        """Bytes that the seed decides."""
        return self._random.randbytes(size_bytes)

    def coin(self) -> float:
        """Uniform in [0, 1)."""
        return self._random.random()

    def copy(self) -> SeededEntropy:
        """One that will draw the same."""
        twin = SeededEntropy(0)
        twin._random.setstate(self._random.getstate())
        return twin


class Host:
    """A machine with one program, and the kernel that outlives it.

    Attributes:
        site: Where it stands: what its wires' delays are drawn from.
        on: Whether it has power. A kernel without power answers nothing.
        entropy: Of the present life.
        channels: Open ends of connections, in the order in which they were opened.
        ends: How each life's program ended by itself, None where it simply returned.
        may_end_by: Errors that a program may end by; any other is an error of the episode.
    """

    def __init__(self, loop: SimLoop, name: str, site: str, seed: object, said: Callable[[str, str], None]) -> None:
        draw = random.Random(f"{seed}/clock/{name}").uniform
        self.loop = loop
        self.name = name
        self.site = site
        self.clock = HostClock(loop, draw(1e3, 1e6), draw(1e3, 1e6), _EPOCH_S + loop.time() + draw(-0.05, 0.05))
        self.on = True
        self.lives = 0
        self.entropy = SeededEntropy(f"{seed}/entropy/{name}/0")
        self.process: Process | None = None
        self.channels: dict[Channel, None] = {}
        self.listeners: dict[int, Listener] = {}
        self.ends: list[BaseException | None] = []
        self.may_end_by: tuple[type[BaseException], ...] = ()
        self._seed = seed
        self._said = said
        self._program: Program | None = None
        self._main: asyncio.Task[None] | None = None
        self._pauses = 0

    @property
    def running(self) -> bool:
        """Whether its program lives."""
        return self.process is not None and self.process.alive

    def start(self, program: Program, *, entropy: SeededEntropy | None = None) -> None:
        """Begins a life of a program."""
        self.lives += 1
        self.on = True
        self.entropy = entropy or SeededEntropy(f"{self._seed}/entropy/{self.name}/{self.lives}")
        self._program, self.process = program, Process(f"{self.name}#{self.lives}")
        self._said(self.name, "started")
        self._main = self.loop.spawn(self.process, program(self), self.process.name)
        life = self.process
        self._main.add_done_callback(lambda main: self._ended(life, main), context=self.loop.world.context)

    def kill(self, *, power: bool = False) -> None:
        """The program dies as by SIGKILL, and its kernel closes its sockets, unless the power goes too."""
        if self.process is not None and self.process.alive:
            process = self.process
            self.loop.between_steps(process, lambda: self._die(process, power=power))
        elif power:
            self.on = False

    def restart(self) -> None:
        """Begins the next life of the same program, if it ever began one."""
        if self._program is not None:
            self.kill()
            self.start(self._program)

    def pause(self, *, suspend: bool = False) -> None:
        """As SIGSTOP: no callback runs; the kernel's buffers, the net and the clocks go on.

        With `suspend` the machine sleeps: RAW and its timers stand still, too. Pauses of one host may overlap.
        """
        self._pauses += 1
        if self.process is None or not self.process.alive:
            return
        if suspend:
            self.loop.between_steps(self.process, lambda: self._sleep(self.process))
        elif not self.process.paused:
            self.process.paused = True
            self._said(self.name, "paused")

    def resume(self) -> None:
        """Ends a pause."""
        self._pauses = max(0, self._pauses - 1)
        if self._pauses == 0 and self.process is not None and self.process.paused:
            self.loop.thaw(self.process)
            self._said(self.name, "resumed")

    async def stop(self) -> None:
        """Cancels the program and waits until it has ended."""
        if self._main is not None and self.running:
            while self._pauses:
                self.resume()
            self._main.cancel()
            await asyncio.wait([self._main])

    def _sleep(self, process: Process | None) -> None:
        if process is not None and process.alive and process.frozen is None:
            if not process.paused:
                self._said(self.name, "paused")
            self.loop.freeze(process)

    def _die(self, process: Process, *, power: bool) -> None:
        if not process.alive:
            return
        self.loop.kill(process)
        self._gone(power=power)

    def _gone(self, *, power: bool) -> None:
        self._pauses = 0
        self.on = not power
        self._said(self.name, "died")
        self.listeners.clear()
        for channel in list(self.channels):
            channel.orphan(power=power)
        self.channels.clear()

    def _ended(self, process: Process, main: asyncio.Task[None]) -> None:
        """The program ended by itself: its process is gone, and with it its sockets."""
        if main.cancelled():
            return  # by `stop`, which wants to see what it left behind
        fault = main.exception()
        self.ends.append(fault)
        if fault is not None and not isinstance(fault, self.may_end_by):
            self.loop.errors.append(f"{self.name}: {fault!r}")
        if process is self.process:
            self._die(process, power=False)
