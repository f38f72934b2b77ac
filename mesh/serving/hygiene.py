"""What a process that sees content does to itself before it sees any."""

from __future__ import annotations

import resource


def protect_process() -> None:
    """Leaves no core file behind, whatever the machine's limits say: memory holds prompts.

    The process stays readable for its own user (`PR_SET_DUMPABLE` is left alone): otherwise `/proc/PID` would belong to
    root, and `mesh down`, run by that user, could not tell by its environment that the process is the mesh's.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
