"""`python -m mesh.gateway --config DIR --region R --gateway G`: runs one gateway until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop

from mesh import settings, tls
from mesh.errors import Code, MeshError, SettingsError
from mesh.gateway.program import GatewayProgram
from mesh.runtime import SystemClock, SystemEntropy, TaskGroupTasks
from mesh.telemetry import Log, Telemetry, speak_through
from mesh.types import RegionId, Role


def main() -> int:
    """Runs a gateway; the exit status is 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="python -m mesh.gateway")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--region", required=True)
    parser.add_argument("--gateway", required=True)
    parser.add_argument(
        "--alone",
        action="store_true",
        help="Whoever starts this has seen the end of every earlier process of this gateway.",
    )
    options = parser.parse_args()
    status = 0
    try:
        uvloop.run(_run(options.config, RegionId(options.region), options.gateway, alone=options.alone))
    except* MeshError as group:
        for error in _leaves(group):
            print(str(error), file=sys.stderr)  # noqa: T201 - our own words, for the operator who starts it
        status = 1
    return status


async def _run(config: Path, region_id: RegionId, gateway_id: str, *, alone: bool) -> None:
    tls.prepare_process(os.environ)  # noqa: TID251 - the one place where this program reads it
    loaded = settings.load(config)
    region = loaded.regions.get(region_id)
    if region is None:
        raise MeshError(Code.UNKNOWN_REGION)
    gateway = next((one for one in region.gateways if one.id == gateway_id), None)
    if gateway is None:
        raise SettingsError([f"{region_id}.yaml: gateways: no gateway of the id given with --gateway"])
    log = Log("gateway", region_id, sys.stderr, models=loaded.models)
    speak_through(log)
    telemetry = Telemetry(
        "gateway",
        region_id,
        models=loaded.models,
        otlp=loaded.otlp,
        otlp_credentials=tls.grpc_channel_credentials(loaded.pki, region_id, Role.GATEWAY) if loaded.otlp else None,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    program = GatewayProgram(
        settings=loaded,
        region=region_id,
        gateway=gateway,
        pid=os.getpid(),
        alone=alone,
        clock=SystemClock(),
        tasks=TaskGroupTasks,
        entropy=SystemEntropy(),
        log=log,
        telemetry=telemetry,
    )
    try:
        await program.run(stop)
    finally:
        await asyncio.to_thread(telemetry.close)


def _leaves(group: BaseExceptionGroup[MeshError]) -> list[MeshError]:
    found: list[MeshError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
