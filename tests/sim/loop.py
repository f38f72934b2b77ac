"""A deterministic event loop: virtual time, nothing of the real world, and a seed that picks who runs next.

Every callback belongs to a `Process` (one life of one host), found in the callback's context, so that wake-ups, timers
and futures that the network resolves land in the right queue. asyncio promises first in, first out within one loop and
code may lean on it; between two processes nothing is promised. So a process has a queue of its own, served in order,
and the seed picks the process whose next callback runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")
MAX_STEPS = 3_000_000


class ForbiddenError(RuntimeError):
    """Simulated code reached for the real world."""


class StuckError(RuntimeError):
    """Nothing is left that could ever run, or there is no end of it."""


class Process:
    """One life of one program: its queue, its tasks in the order in which they began, and whether it may run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: dict[asyncio.Task[Any], None] = {}  # a set would be in the order of addresses
        self.spawned = 0
        self.frozen: list[tuple[float, asyncio.TimerHandle]] | None = None
        self.frozen_at = 0.0
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)


class SimLoop(asyncio.BaseEventLoop):
    """The loop. Ask `time()` for the true time; a host's own clocks are in `hosts.py`.

    Attributes:
        world: The process of all that is not simulated code: wires, kernels, the store, faults.
        steps: Callbacks that ran.
        errors: What no part of the simulation should ever do.
    """

    def __init__(self, seed: object) -> None:
        super().__init__()
        self.set_debug(False)  # else PYTHONASYNCIODEBUG changes the run
        self.world = Process("world")
        self.processes = [self.world]
        self.steps = 0
        self.errors: list[str] = []
        self._now = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._sequence = 0
        self._random = random.Random(f"{seed}/schedule").random  # text is hashed with SHA-512, never with hash()
        self._runnable = [self.world]
        self._current: Process | None = None
        self._deferred: list[Callable[[], None]] = []
        self.set_task_factory(self._make_task)

    # --- what asyncio asks for

    def time(self) -> float:
        """True virtual seconds."""
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> Any:
        """As asyncio's."""
        self._refuse_if_closed()
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        self._refuse_if_closed()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        # Handles compare by time alone: the number settles ties.
        heapq.heappush(self._timers, (when, self._sequence, handle))
        self._sequence += 1
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Notes it. The default one logs, and logging reads the wall clock."""
        if not self.is_closed():
            self.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _refuse_if_closed(self) -> None:
        if self._closed:  # pyright: ignore[reportAttributeAccessIssue]
            raise RuntimeError("Event loop is closed")

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # left in the heap until it is due

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        # It runs when memory is freed, which is no moment that a seed decides.
        if not self.is_closed():
            self.errors.append(f"async generator left unfinished: {agen.__qualname__}")

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        process = (context or contextvars.copy_context()).get(PROCESS, self.world)
        process.spawned += 1  # the default name counts over the whole interpreter
        task = asyncio.Task(work, loop=loop, name=f"{process.name}/{process.spawned}", context=context)
        process.tasks[task] = None
        task.add_done_callback(lambda done: process.tasks.pop(done, None), context=self.world.context)
        return task

    # --- processes

    def spawn(self, process: Process, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Starts a task of a process from outside of it."""
        if process not in self.processes:
            self.processes.append(process)
            self._runnable.append(process)
        return self.create_task(work, name=name, context=process.context.copy())

    def between_steps(self, process: Process, action: Callable[[], None]) -> None:
        """Does something to a process: at once, or if its code is what runs now, as soon as that gives way.

        Nothing of the process runs in between.
        """
        if self._current is process:
            self._deferred.append(action)
        else:
            action()

    def kill(self, process: Process) -> None:
        """As SIGKILL: no callback runs again, no `finally`, no CancelledError.

        Its tasks stay referenced until `bury`: else their `finally` blocks would run whenever memory is freed.
        """
        process.alive = False
        process.ready.clear()
        process.frozen = None
        if process in self._runnable:
            self._runnable.remove(process)
        for task in process.tasks:
            task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]

    def freeze(self, process: Process) -> None:
        """Stops a process and its timers, as MONOTONIC stands still while a machine sleeps."""
        if process.frozen is None and process.alive:
            process.paused = True
            process.frozen_at = self._now
            own = [timer for timer in self._timers if timer[2]._context.get(PROCESS, self.world) is process]
            process.frozen = [(when, handle) for when, _, handle in sorted(own, key=lambda timer: timer[:2])]
            kept = [timer for timer in self._timers if timer[2]._context.get(PROCESS, self.world) is not process]
            heapq.heapify(kept)
            self._timers[:] = kept

    def thaw(self, process: Process) -> None:
        """Lets it go on; its timers are late by as long as it was frozen."""
        frozen, process.frozen = process.frozen, None
        process.paused = False
        for when, handle in frozen or ():
            heapq.heappush(self._timers, (when + self._now - process.frozen_at, self._sequence, handle))
            self._sequence += 1

    # --- a run

    def _enqueue(self, handle: asyncio.Handle) -> None:
        process = handle._context.get(PROCESS, self.world)
        if process.alive:
            process.ready.append(handle)

    def _run_once(self) -> None:
        """Many steps at once: asyncio calls this again and again, which would cost as much as a step does."""
        timers, runnable = self._timers, self._runnable
        while not self._stopping:  # pyright: ignore[reportAttributeAccessIssue]
            if timers and timers[0][0] <= self._now:
                self._due()
            ready = [process for process in runnable if process.ready and not process.paused]
            if not ready:
                if not timers:
                    raise StuckError(f"nothing is left to run at {self._now}")
                self._now = timers[0][0]
                continue
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise StuckError(f"{self.steps} steps at {self._now}")
            process = ready[0] if len(ready) == 1 else ready[int(self._random() * len(ready))]
            handle = process.ready.popleft()
            if not handle._cancelled:
                self._current = process
                handle._run()
                self._current = None
                while self._deferred:
                    self._deferred.pop(0)()

    def _due(self) -> None:
        """Queues the timers whose time has come."""
        timers, now = self._timers, self._now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if not handle._cancelled:
                self._enqueue(handle)

    def leaks(self) -> list[str]:
        """Tasks and timers that a clean end has left behind. Killed processes and the world are not asked."""
        asked = [process for process in self.processes if process.alive and process is not self.world]
        found = [f"task {task.get_name()}" for process in asked for task in process.tasks if not task.done()]
        for when, _, handle in sorted(self._timers, key=lambda timer: timer[:2]):
            process = handle._context.get(PROCESS, self.world)
            if process in asked and not handle._cancelled:
                found.append(f"timer of {process.name} at {when:.3f}")
        return found

    def bury(self) -> None:
        """Closes the loop and what was killed. Only now may its code run: whatever it does, nobody listens."""
        self.close()
        remaining = [task for process in self.processes for task in process.tasks]
        hook, sys.unraisablehook = sys.unraisablehook, _ignore
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for task in remaining:
                    task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
                    _close(task)
                for process in self.processes:
                    process.tasks.clear()
                    process.ready.clear()
                self._timers.clear()
        finally:
            sys.unraisablehook = hook


def _ignore(_: object) -> None:
    pass


def _close(task: asyncio.Task[Any]) -> None:
    for _ in range(20):  # one that awaits in a `finally` refuses each time, one await further
        try:
            task.get_coro().close()  # pyright: ignore[reportOptionalMemberAccess, reportUnknownMemberType]
        except BaseException:
            continue
        return


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise ForbiddenError(f"loop.{name} in a simulation")

    return refuse


for _name in (
    "run_in_executor", "call_soon_threadsafe", "getaddrinfo", "getnameinfo", "create_connection", "create_server",
    "create_datagram_endpoint", "create_unix_connection", "create_unix_server", "add_reader", "add_writer",
    "sock_recv", "sock_sendall", "sock_connect", "sock_accept", "sendfile", "connect_read_pipe",
    "connect_write_pipe", "subprocess_exec", "subprocess_shell", "add_signal_handler",
):  # fmt: skip
    setattr(SimLoop, _name, _refusal(_name))


class _Ordered(dict[Any, None]):
    """What `TaskGroup` needs of a set, in the order of entry."""

    add = dict.setdefault

    def discard(self, item: object) -> None:
        self.pop(item, None)


class OrderedTasks:
    """The `Tasks` port: children are cancelled in the order in which they began.

    `asyncio.TaskGroup` keeps them in a set, so in the order of their addresses.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._group._tasks = _Ordered()  # pyright: ignore[reportAttributeAccessIssue]

    async def __aenter__(self) -> OrderedTasks:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> bool | None:
        return await self._group.__aexit__(*exc)

    def spawn(self, work: Coroutine[object, object, None], name: str) -> None:
        """Starts a child."""
        self._group.create_task(work, name=name)
