"""Starts programs as children and tells when they have ended. One per process: it reaps every child, orphans too.

The supervisor is a child subreaper: what its children leave behind becomes its own, so that nothing escapes it. As it
waits for *any* child, nothing else in the process may: no `subprocess.run`, no asyncio subprocesses.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mesh.embedded.home import starting
from mesh.embedded.processes import Process, look, open_handle

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Child:
    """A program that was started. `ended` gets its exit status, negative for a signal."""

    process: Process
    ended: asyncio.Future[int]


class Children:
    """The children of this process; open it with `children`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._started: dict[int, tuple[subprocess.Popen[bytes], asyncio.Future[int]]] = {}

    def start(self, argv: Sequence[str], environ: Mapping[str, str], log: Path, *, folder: Path) -> Child:
        """Starts a program in a session of its own, with its words appended to a file.

        It gets SIGTERM when this process dies.

        Raises:
            MeshError: `start_failed` where the program or the log is not to be had.
        """
        supervisor = os.getpid()

        def settle() -> None:
            # Between fork and exec: only calls that need no lock.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != supervisor:  # died before the line above took hold
                os._exit(1)

        with starting(), os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as words:
            popen = subprocess.Popen(  # noqa: S603 - our own programs
                argv,
                env=dict(environ),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,
                preexec_fn=settle,
            )
        ended: asyncio.Future[int] = self._loop.create_future()
        self._started[popen.pid] = (popen, ended)
        seen = look(popen.pid)  # a zombie at worst: only `reap` removes it
        return Child(seen.process if seen else Process(popen.pid, 0), ended)

    def reap(self) -> None:
        """Takes note of every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            popen, ended = self._started.pop(pid, (None, None))
            code = os.waitstatus_to_exitcode(status)
            if popen is not None:
                popen.returncode = code  # it was reaped here: it must not wait for whoever gets its pid next
            if ended is not None and not ended.done():
                ended.set_result(code)


@contextmanager
def children() -> Generator[Children]:
    """Makes this process the parent of all that it starts, and of what those leave behind.

    Runs in the main thread, in an event loop: a child's death signal is sent when the *thread* that made it ends.
    """
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    loop = asyncio.get_running_loop()
    own = Children(loop)
    loop.add_signal_handler(signal.SIGCHLD, own.reap)
    try:
        yield own
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


async def has_ended(process: Process) -> None:
    """Waits until a process, child or not, has ended."""
    handle = open_handle(process)
    if handle is None:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(handle, _set, ended)
    try:
        await ended
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
