"""Keeps the real world out while an episode runs: clocks, entropy, threads, sockets, files, processes.

Two nets. An audit hook sees sockets, files and processes by whatever name they were called. Clocks, entropy and the
start of a thread raise no audit event, so their names are replaced. What slips through both (`from time import
monotonic` done earlier, `datetime.now`, `random.Random()`) is looked for in the source: see `test_ground.py`.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import NoReturn

from sim.loop import ForbiddenError

_CLOCKS = (
    "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time",
    "process_time_ns", "thread_time", "clock_gettime", "clock_gettime_ns", "localtime", "gmtime", "sleep",
)  # fmt: skip
_RANDOM = (
    "random", "randint", "randrange", "choice", "choices", "shuffle", "sample", "uniform", "getrandbits",
    "expovariate", "seed", "_urandom",
)  # fmt: skip
"""`secrets` and `uuid4` end in `_urandom` and `os.urandom`."""
_REFUSED = [
    *((time, name) for name in _CLOCKS),
    *((random, name) for name in _RANDOM),
    (os, "urandom"),
    (os, "getrandom"),
    (threading, "_start_new_thread"),
]
_EVENTS = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.system", "time.sleep")


class _Net:
    closed = False
    installed = False


def _watch(event: str, args: tuple[object, ...]) -> None:
    if _Net.closed and (
        event.startswith(_EVENTS) or (event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so")))
    ):
        raise ForbiddenError(f"{event} in a simulation")


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise ForbiddenError(f"{name} in a simulation")

    return refuse


@contextlib.contextmanager
def kept_out() -> Generator[None]:
    """Until it is left, whatever reaches for the real world fails."""
    if not _Net.installed:  # an audit hook cannot be taken away again
        sys.addaudithook(_watch)
        _Net.installed = True
    kept = [(module, name, getattr(module, name)) for module, name in _REFUSED if hasattr(module, name)]
    for module, name, _ in kept:
        setattr(module, name, _refusal(f"{module.__name__}.{name}"))
    _Net.closed = True
    try:
        yield
    finally:
        _Net.closed = False
        for module, name, value in kept:
            setattr(module, name, value)
