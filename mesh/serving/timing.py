"""How long a step of an engine takes where nothing else runs, so that none is begun which may not end in time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_RUNS = 2


def least_s(work: Callable[[], None], device: torch.device) -> float:
    """Seconds that a piece of work takes: the least of a few runs, of which the first also brings its memory in.

    On a CPU this thread's processor time counts where that is less than what has passed: a machine that is busy
    starting other programs would otherwise pass for a slow one, for good. A device's work is waited for.
    """
    took: list[float] = []
    for _ in range(_RUNS):
        began_s, used_s = time.perf_counter(), time.thread_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passed_s = time.perf_counter() - began_s
        took.append(min(passed_s, time.thread_time() - used_s) if device.type == "cpu" else passed_s)
    return min(took)
