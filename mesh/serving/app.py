"""The Ray Serve side of a replica: Ray places it, watches it, rolls it. No byte of a call goes through Ray.

The replica runs in a thread of the actor with a loop of its own, so that neither Serve's loop nor the calls can hold
the other up.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import threading
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path

import ray
import uvloop
from ray import serve
from ray.serve import Application
from ray.serve._private import replica as serve_replica

from mesh.errors import Code, MeshError
from mesh.runtime import SystemClock
from mesh.serving.hop import MAX_CALL_S
from mesh.serving.hosted import EngineFactory
from mesh.serving.hygiene import protect_process
from mesh.serving.replica import Place, Replica, engine_factory, find_place
from mesh.settings import Deployment, Region, Settings, load
from mesh.telemetry import Log, speak_through
from mesh.tls import prepare_process

APP = "mesh"
HEALTH_EVERY_S, HEALTH_TIMEOUT_S = 2.0, 10.0
START_TRIES = 3
_MARGIN_S = 10.0
_SERVE_PORT = "add_port_to_grpc_server"


class ReplicaActor:
    """What Serve starts: one process of a deployment. Ready when every model has produced something."""

    async def __init__(self, config: str, region: str, deployment: str, *others: object) -> None:
        """Starts the replica and waits for it.

        Args:
            config: The configuration folder, at the same place on every machine of the region.
            region: The region's id.
            deployment: The deployment's name.
            others: Serve wants the deployments of one application to hang together; they do not use each other.

        Raises:
            MeshError: START_FAILED or INVALID_SETTINGS.
        """
        del others
        prepare_process(os.environ)  # noqa: TID251 - a program's start
        protect_process()
        close_serve_port()
        settings = load(Path(config))
        place = find_place(settings, region, deployment, ray.util.get_node_ip_address())
        log = Log("replica", place.region.id, sys.stderr, models=settings.models)
        speak_through(log)
        self._thread = ReplicaThread(place, engine_factory(place), log)
        self._thread.start()
        await asyncio.wrap_future(self._thread.ready)

    def check_health(self) -> None:
        """Serve replaces a replica whose health check raises."""
        self._thread.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load that Serve does not see: sequences that run and wait."""
        return {"sequences": float(self._thread.sequences())}

    async def __del__(self) -> None:
        """Drains: Serve waits for it, `graceful_shutdown_timeout_s` at most."""
        self._thread.stop()
        await asyncio.wrap_future(self._thread.done)


class ReplicaThread:
    """A replica and its loop in a thread. `ready` and `done` are set from that thread."""

    def __init__(self, place: Place, make: EngineFactory, log: Log) -> None:
        self.ready: Future[None] = Future()
        self.done: Future[None] = Future()
        self._place = place
        self._make = make
        self._log = log
        self._loop: asyncio.AbstractEventLoop | None = None
        self._replica: Replica | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mesh-replica", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Asks it to drain and end; any thread, at any time."""
        self._stopped.set()
        loop, replica = self._loop, self._replica
        if loop is not None and replica is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(replica.stop)
            except RuntimeError:
                return  # it closed just now: it has ended

    def check(self) -> None:
        """Raises if it will never serve again.

        Raises:
            MeshError: REPLICA_FAILED.
        """
        if not self._thread.is_alive() or (self._replica is not None and self._replica.fault() is not None):
            raise MeshError(Code.REPLICA_FAILED)

    def sequences(self) -> int:
        """What runs and waits."""
        return 0 if self._replica is None else self._replica.sequences()

    def _work(self) -> None:
        try:
            uvloop.run(self._serve())
        except MeshError as error:
            self._end(error)
        except BaseException as error:  # noqa: BLE001 - the thread's edge: its text may hold content
            self._log.error("replica.thread_failed", error=type(error).__name__)
            self._end(MeshError(Code.START_FAILED))
        else:
            self._end(MeshError(Code.START_FAILED, hint="It was stopped before it was ready."))

    def _end(self, unless_ready: MeshError) -> None:
        if not self.ready.done():
            self.ready.set_exception(unless_ready)
        self.done.set_result(None)

    async def _serve(self) -> None:
        self._replica = Replica(self._place, self._make, SystemClock(), self._log)
        self._loop = asyncio.get_running_loop()
        if self._stopped.is_set():
            return
        # An engine's death is Serve's to act on: its next health check fails, and it starts another replica.
        await self._replica.run(lambda: self.ready.set_result(None), lambda: None)


def close_serve_port() -> None:
    """Keeps Serve from opening a port of its own in this process. Call it before Serve calls the actor initialized.

    For handles of other deployments every replica opens a gRPC port, on all interfaces, in clear text, and unpickles
    what comes. There is no setting for it, and the mesh has no use for it.

    Raises:
        MeshError: START_FAILED with a Ray in which it is done otherwise: better no replica than that port.
    """
    if not hasattr(serve_replica, _SERVE_PORT):
        raise MeshError(Code.START_FAILED, hint="This version of Ray is not the one that the mesh was made for.")
    setattr(serve_replica, _SERVE_PORT, _no_port)


def _no_port(server: object, address: str) -> int:
    del server, address
    return 0


def build(settings: Settings, region: Region, config: Path) -> Application | None:
    """The region's application: one Serve deployment for each of the region's. None where it has none.

    The first is Serve's "ingress" by name only: nothing ever calls it through Ray.
    """
    if not region.deployments:
        return None
    first, *others = region.deployments
    return _bind(settings, region, first, config, *(_bind(settings, region, one, config) for one in others))


def _bind(
    settings: Settings, region: Region, deployment: Deployment, config: Path, *others: Application
) -> Application:
    wrapped = serve.deployment(
        name=deployment.name,
        num_replicas=deployment.replicas,
        ray_actor_options={"num_cpus": deployment.cpus_per_replica, "num_gpus": deployment.gpus_per_replica},
        graceful_shutdown_timeout_s=MAX_CALL_S + _MARGIN_S,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=HEALTH_EVERY_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        max_constructor_retry_count=START_TRIES,
    )(ReplicaActor)
    # Without a version of its own Serve draws one at random, and deploying the same again would restart every replica.
    return wrapped.options(version=_version(settings, region, deployment), _internal=True).bind(
        str(config), str(region.id), deployment.name, *others
    )


def _version(settings: Settings, region: Region, deployment: Deployment) -> str:
    """Changes with all that a running replica has read: then Serve replaces it, one after the other."""
    read = (
        version("mesh"),
        deployment.models,
        [settings.models[model] for model in deployment.models],
        (deployment.cpus_per_replica, deployment.gpus_per_replica),
        (region.accelerator, region.replica_host, [gateway.internal for gateway in region.gateways]),
        (settings.pki, settings.models_dir, settings.max_body_bytes),
    )
    return hashlib.sha256(repr(read).encode()).hexdigest()[:16]
