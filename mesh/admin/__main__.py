"""`python -m mesh.admin --config DIR --region R`: runs a region's admin until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from mesh import settings, tls
from mesh.admin.program import AdminProgram
from mesh.errors import Code, MeshError
from mesh.runtime import SystemClock, SystemEntropy, TaskGroupTasks
from mesh.telemetry import Log, speak_through
from mesh.types import RegionId


def main() -> int:
    """Runs an admin; the exit status is 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="python -m mesh.admin")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--region", required=True)
    options = parser.parse_args()
    failed = False
    try:
        uvloop.run(_run(options.config, RegionId(options.region)))
    except* MeshError as group:
        failed = True
        for error in _leaves(group):
            print(str(error), file=sys.stderr)  # noqa: T201 - our own words, for the operator who starts it
    return int(failed)


async def _run(config: Path, region_id: RegionId) -> None:
    tls.prepare_process(os.environ)  # noqa: TID251 - the one place where this program reads it
    loaded = settings.load(config)
    region = loaded.regions.get(region_id)
    if region is None:
        raise MeshError(Code.UNKNOWN_REGION)
    log = Log("admin", region_id, sys.stderr, models=loaded.models)
    speak_through(log)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    program = AdminProgram(
        settings=loaded,
        region=region,
        clock=SystemClock(),
        tasks=TaskGroupTasks,
        entropy=SystemEntropy(),
        log=log,
    )
    await program.run(stop)


def _leaves(group: BaseExceptionGroup[MeshError]) -> list[MeshError]:
    found: list[MeshError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
