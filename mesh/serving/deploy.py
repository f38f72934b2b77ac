"""Deploys a region's application to its Ray cluster, waits until every replica is ready, and ends.

    python -m mesh.serving.deploy --config DIR --region R --ray-address HOST:PORT

Doing it again changes what is different and restarts nothing else. Progress goes to standard error as JSON lines.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus

from mesh.errors import Code, MeshError
from mesh.serving.app import APP, build
from mesh.settings import Region, Settings, load
from mesh.telemetry import Log, speak_through
from mesh.tls import prepare_process
from mesh.types import RegionId

DEADLINE_S = 600.0
_LOOK_EVERY_S = 0.5
_ENDED = {ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY}


def deploy(settings: Settings, region: Region, config: Path, ray_address: str, log: Log) -> None:
    """Brings the region's cluster to what its file says.

    Raises:
        MeshError: START_FAILED where the cluster cannot be reached, or a deployment does not come up in `DEADLINE_S`.
    """
    began_s = time.monotonic()
    try:
        ray.init(address=ray_address, namespace="mesh", log_to_driver=False, logging_level=logging.ERROR)
        serve.start(proxy_location="Disabled")
        application = build(settings, region, config)
        if application is None:
            serve.delete(APP)
        else:
            serve.run_many(
                [serve.RunTarget(application, name=APP, route_prefix=None)],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            _wait(region, began_s, log)
    except (RayError, ConnectionError, RuntimeError, TimeoutError) as error:
        fault = type(error).__name__
    else:
        log.info("deploy.done", duration_s=round(time.monotonic() - began_s, 1))
        return
    log.error("deploy.ray_failed", error=fault)
    raise MeshError(Code.START_FAILED, hint=f"Ray did not deploy it ({fault}).")


def _wait(region: Region, began_s: float, log: Log) -> None:
    total = sum(deployment.replicas for deployment in region.deployments)
    shown: tuple[str, int] | None = None
    while time.monotonic() - began_s < DEADLINE_S:
        application = serve.status().applications.get(APP)
        if application is not None:
            states = [deployment.replica_states for deployment in application.deployments.values()]
            running = sum(count for state in states for name, count in state.items() if name == "RUNNING")
            now = (application.status.value, running)
            if now != shown:
                shown = now
                log.info("deploy.progress", replicas=total, running=running)
            if application.status == ApplicationStatus.RUNNING:
                return
            if application.status in _ENDED:
                raise MeshError(
                    Code.START_FAILED, hint="A replica did not come up; its log is in Ray's session folder."
                )
        time.sleep(_LOOK_EVERY_S)
    raise MeshError(Code.START_FAILED, hint=f"The replicas were not ready after {DEADLINE_S:g} s.")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line's program."""
    parser = argparse.ArgumentParser(prog="python -m mesh.serving.deploy")
    parser.add_argument("--config", type=Path, required=True, help="the configuration folder")
    parser.add_argument("--region", required=True)
    parser.add_argument("--ray-address", required=True, help="host:port of the cluster's head")
    options = parser.parse_args(arguments)
    config: Path = options.config.absolute()
    try:
        prepare_process(os.environ)  # noqa: TID251 - a program's start
        settings = load(config)
        region = settings.regions.get(RegionId(options.region))
        if region is None:
            raise MeshError(Code.INVALID_SETTINGS, hint="There is no such region in the configuration.")  # noqa: TRY301
        log = Log("deploy", region.id, sys.stderr, models=settings.models)
        speak_through(log)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it writes lines of its own that are no JSON
        deploy(settings, region, config, options.ray_address, log)
    except MeshError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - of the configuration and the cluster: nothing was served
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
