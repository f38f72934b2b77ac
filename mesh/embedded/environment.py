"""The environment of what the supervisor starts: a few names of the operator's, and ours. No secret rides along."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mesh.embedded.processes import INSTANCE, PART
from mesh.tls import GRPC_SUITES

_PASSED_ON = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "PYTHONPATH",
    "TMPDIR",
    "TZ",
    "USER",
    "XDG_CACHE_HOME",
)
_RAY_LOG_BYTES = 5 * 1024 * 1024


def part_environment(environ: Mapping[str, str], instance: str, part: str, *, threads: int) -> dict[str, str]:
    """What every part gets.

    Args:
        environ: The supervisor's own.
        instance: The mesh's mark.
        part: Its name.
        threads: How many threads a part's arithmetic may use.
    """
    suites, value = GRPC_SUITES
    return {
        **{name: environ[name] for name in _PASSED_ON if name in environ},
        INSTANCE: instance,
        PART: part,
        suites: value,
        "GRPC_VERBOSITY": "NONE",
        "GRPC_ENABLE_FORK_SUPPORT": "0",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_ARENA_MAX": "2",
    }


def ray_environment(token: Path) -> dict[str, str]:
    """What Ray and its drivers get besides: a token, loopback only, and nothing started on suspicion."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # In spite of its name: with it and 127.0.0.1 as node address every port of Ray's is on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_maximum_startup_concurrency": "2",
        # Ray's own 15 would starve a model beside anything else that runs; a little, so that a door answers first.
        "RAY_worker_niceness": "5",
        "RAY_ROTATION_MAX_BYTES": str(_RAY_LOG_BYTES),
        "RAY_ROTATION_BACKUP_COUNT": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }


def threads_each(regions: Sequence[object]) -> int:
    """How many threads one region's arithmetic gets, so that all together fit the machine."""
    return max(1, len(os.sched_getaffinity(0)) // len(regions))
