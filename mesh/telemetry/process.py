"""Takes over the ways in which a process speaks by itself: tracebacks and the logs of libraries.

Both quote what they worked on: a `JSONDecodeError` carries its whole document, a task that nobody awaited prints its
arguments. They become events with the names of classes and places in code, and no text.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from types import TracebackType

from mesh.telemetry.log import Log

_ROOTS = (str(Path(__file__).parents[2]) + "/",)


def speak_through(log: Log) -> None:
    """Sends this process's uncaught errors and library logs of level warning and above through `log`."""

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            log.warning("process.interrupted")
            return
        log.error("process.uncaught", error=kind.__name__, cause=_cause(error), where=where(trace))

    def in_thread(args: threading.ExceptHookArgs) -> None:
        log.error("process.thread_failed", error=args.exc_type.__name__, where=where(args.exc_traceback))

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        kind = args.exc_type
        log.error("process.unraisable", error=kind.__name__, where=where(args.exc_traceback))

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
    root = logging.getLogger()
    root.handlers[:] = [_Handler(log)]
    root.setLevel(logging.WARNING)


def where(trace: TracebackType | None) -> str | None:
    """The innermost place of a traceback that is code of the mesh, else the innermost of all: `mesh/x.py:12`."""
    found: str | None = None
    ours = False
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        here = path.startswith(_ROOTS) and "/.venv/" not in path
        if here or not ours:
            found, ours = f"{_short(path)}:{trace.tb_lineno}", here
        trace = trace.tb_next
    return found


def _short(path: str) -> str:
    for root in _ROOTS:
        if path.startswith(root) and "/.venv/" not in path:
            return path.removeprefix(root)
    return "/".join(Path(path).parts[-2:]).lstrip("/").replace("-", "_").lower()


def _cause(error: BaseException) -> str | None:
    """The first leaf of a group, or what an error came from."""
    if isinstance(error, BaseExceptionGroup):
        leaf: BaseException = error.exceptions[0]
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        return type(leaf).__name__
    return type(error.__cause__).__name__ if error.__cause__ else None


class _Handler(logging.Handler):
    """A library's record as an event: who, how bad, which error, where; not what it says."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        trace = record.exc_info[2] if record.exc_info else None
        say = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        say(
            "library.logged",
            logger=record.name,
            error=kind.__name__ if kind else None,
            where=where(trace) or f"{_short(record.pathname)}:{record.lineno}",
        )
