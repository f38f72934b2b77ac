"""A replica process: hosts models, answers hops on a port of its own, announces itself to the region's gateways.

It knows nothing of Ray: `mesh.serving.app` runs it in a thread of a Ray actor, and

    python -m mesh.serving.replica --config DIR --region R --deployment D

runs it as an ordinary process, which ends when a model of it dies, or by SIGTERM once it has finished what runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from mesh.content.frames import CONTENT_TYPE, FrameKind, encode
from mesh.errors import Code, MeshError
from mesh.http1 import Request, Server, listen
from mesh.ports import Clock
from mesh.runtime import SystemClock
from mesh.serving.announce import Announcer, Membership
from mesh.serving.engine import Engine
from mesh.serving.hop import MAX_CALL_S, Hop
from mesh.serving.hosted import EngineFactory, ModelHost
from mesh.serving.hygiene import protect_process
from mesh.serving.leases import Leases
from mesh.settings import Address, Deployment, Model, Region, Settings, load
from mesh.telemetry import Log, speak_through
from mesh.tls import check_tls13, prepare_process, server_context
from mesh.types import RegionId, ReplicaId, ReplicaState, Role, Usage
from mesh.v1 import fleet_pb2 as pb

BUSY_LOOK_S = 0.05
IDLE_LOOK_S = 0.5
TICK_S = 0.05
"""How often deadlines are looked at."""
SETTLE_S = 2.0
"""How long the gateways have to confirm that this replica drains, before it refuses calls."""
_STATES = {
    ReplicaState.STARTING: pb.REPLICA_STATE_STARTING,
    ReplicaState.READY: pb.REPLICA_STATE_READY,
    ReplicaState.DRAINING: pb.REPLICA_STATE_DRAINING,
    ReplicaState.DEAD: pb.REPLICA_STATE_DEAD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which replica this is: a deployment of a region, on one address of a machine."""

    settings: Settings
    region: Region
    deployment: Deployment
    host: str

    @property
    def models(self) -> tuple[Model, ...]:
        """What it hosts."""
        return tuple(self.settings.models[id_] for id_ in self.deployment.models)


def find_place(settings: Settings, region: str, deployment: str, host: str | None) -> Place:
    """The place of these names. `host` is where to listen if the region's file does not say it.

    Raises:
        MeshError: INVALID_SETTINGS where there is none.
    """
    found = settings.regions.get(RegionId(region))
    if found is None:
        raise MeshError(Code.INVALID_SETTINGS, hint="There is no such region in the configuration.")
    hosted = next((one for one in found.deployments if one.name == deployment), None)
    if hosted is None:
        raise MeshError(Code.INVALID_SETTINGS, hint="The region has no deployment of this name.")
    address = found.replica_host or host
    if address is None:
        raise MeshError(Code.INVALID_SETTINGS, hint="The region's file has no replica_host: give the address to use.")
    return Place(settings=settings, region=found, deployment=hosted, host=address)


class Replica:
    """One replica process. Belongs to one event loop; `sequences` and `fault` may be read from any thread."""

    def __init__(self, place: Place, make: EngineFactory, clock: Clock, log: Log) -> None:
        self.id = ReplicaId(secrets.token_hex(8))
        self._place = place
        self._clock = clock
        self._log = log
        self._host = ModelHost(place.models, make, clock, log)
        self._address: Address | None = None
        self._failed: MeshError | None = None
        self._stopping = asyncio.Event()
        membership = Membership(
            pki=place.settings.pki, region=place.region.id, gateways=[g.internal for g in place.region.gateways]
        )
        self._leases = Leases(self.id, clock)
        self._announcer = Announcer(membership, self._report, self._leases, clock, log)

    def sequences(self) -> int:
        """Running and waiting, over all models."""
        return sum(stats.running + stats.queued for _, stats in self._host.states().values())

    def fault(self) -> str | None:
        """The model that will never serve again in this process, if there is one. After `run` that is all of them."""
        return self._host.dead()

    def stop(self) -> None:
        """Asks `run` to finish what runs and return."""
        self._stopping.set()

    async def run(self, ready: Callable[[], None], died: Callable[[], None]) -> None:
        """Serves until `stop`.

        Args:
            ready: Called once every model has produced something.
            died: Called once when an engine has died. The other models are served on, until `stop`.

        Raises:
            MeshError: START_FAILED where a model does not come up or the port is not fit.
        """
        settings, region = self._place.settings, self._place.region
        hop = Hop(region.id, self._host, self._leases, settings.max_body_bytes, self._clock, self._log)
        loop = asyncio.get_running_loop()

        def settle_soon() -> None:
            with contextlib.suppress(RuntimeError):  # a loop that was closed has nobody to tell
                loop.call_soon_threadsafe(self._leases.settle)

        self._leases.on_gone = settle_soon
        context = server_context(settings.pki, region.id, Role.REPLICA)
        async with listen(hop.handle, self._place.host, 0, tls=context, fault=_fault) as server:
            await check_tls13(self._place.host, server.port)
            self._address = Address(self._place.host, server.port)
            self._log.info("replica.listening", replica=self.id, port=server.port, pid=os.getpid())
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._announcer.run(), name="announcer"),
                    tasks.create_task(self._watch(died), name="replica-watch"),
                    tasks.create_task(self._keep_deadlines(), name="replica-deadlines"),
                    tasks.create_task(self._start(ready), name="replica-start"),
                ]
                try:
                    await self._stopping.wait()
                finally:
                    await self._drain(server)
                    for task in background:
                        task.cancel()
        await asyncio.to_thread(self._host.stop)
        if self._failed is not None:
            raise self._failed

    async def _start(self, ready: Callable[[], None]) -> None:
        def changed() -> None:
            # Before anything is sent here for a model that has just become ready.
            self._leases.step_s = self._host.longest_step_s()
            self._announcer.changed()

        try:
            await self._host.start(changed)
        except MeshError as error:
            self._failed = error
            self.stop()
        else:
            self._log.info("replica.ready", replica=self.id)
            ready()

    async def _drain(self, server: Server) -> None:
        """First the gateways know, then nobody gets in, then what is in flight ends."""
        self._host.draining = True
        await self._announcer.settle(SETTLE_S)
        self._host.closed = True
        await server.drain(MAX_CALL_S)
        self._log.info("replica.drained", replica=self.id)

    async def _keep_deadlines(self) -> None:
        """Ends what has reached its deadline, whether or not anybody is heard of."""
        while True:
            self._leases.step_s = self._host.longest_step_s()
            self._leases.tick()
            await self._clock.sleep(TICK_S)

    async def _watch(self, died: Callable[[], None]) -> None:
        """Announces every change of load or state: engines change them on threads of their own."""
        seen, told = self._look(), False
        while True:
            now = self._look()
            if now != seen:
                seen = now
                self._announcer.changed()
            if self.fault() is not None and not told:
                told = True
                self._log.error("replica.model_died", replica=self.id, model=self.fault())
                died()
            if any(running or queued for _, running, queued in now):
                await self._clock.sleep(BUSY_LOOK_S)
                continue
            self._host.touched.clear()
            try:
                async with self._clock.timeout(IDLE_LOOK_S):
                    await self._host.touched.wait()
            except TimeoutError:
                continue
            await self._clock.sleep(0)  # the call that took an engine is about to queue

    def _look(self) -> list[tuple[ReplicaState, int, int]]:
        return [(state, stats.running, stats.queued) for state, stats in self._host.states().values()]

    def _report(self, number: int) -> pb.ReplicaReport:
        return pb.ReplicaReport(
            number=number,
            replica=self.id,
            address=str(self._address),
            pid=os.getpid(),
            models=[
                pb.ModelReport(
                    model=model,
                    state=_STATES[state],
                    running=stats.running,
                    queued=stats.queued,
                    slots=stats.slots,
                    queue_limit=stats.queue_limit,
                    kv_used=stats.kv_used,
                )
                for model, (state, stats) in self._host.states().items()
            ],
        )


def engine_factory(place: Place) -> EngineFactory:
    """Makes this place's engines. What runs models is imported with the first, off the loop: it takes seconds."""
    threads = max(1, round(place.deployment.cpus_per_replica))

    def make(model: Model) -> Engine:
        from mesh.serving.engines import make_engine  # noqa: PLC0415

        return make_engine(model, place.settings.models_dir, place.region.accelerator, threads)

    return make


def _fault(error: MeshError, request: Request | None) -> tuple[int, Sequence[tuple[bytes, bytes]], bytes]:
    """What the server itself finds. Only a gateway that is broken sees it."""
    del request
    head = ((b"content-type", CONTENT_TYPE),)
    said = json.dumps({"code": error.code.value}).encode()
    return error.row.http, head, encode(FrameKind.ERROR, Usage(), said)


async def serve_until_signal(place: Place, make: EngineFactory, log: Log) -> bool:
    """Runs a replica as this process. Whether it ended well: by SIGTERM or SIGINT, with all models alive."""
    replica = Replica(place, make, SystemClock(), log)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, replica.stop)
    all_alive = True

    def died() -> None:
        nonlocal all_alive
        all_alive = False
        replica.stop()

    try:
        await replica.run(lambda: None, died)
    except MeshError as error:
        failed = error
    else:
        return all_alive
    log.error("replica.failed", code=failed.code.value)
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line's program."""
    parser = argparse.ArgumentParser(prog="python -m mesh.serving.replica")
    parser.add_argument("--config", type=Path, required=True, help="the configuration folder")
    parser.add_argument("--region", required=True)
    parser.add_argument("--deployment", required=True)
    parser.add_argument("--host", help="where to listen, if the region's file has no replica_host")
    options = parser.parse_args(arguments)
    try:
        prepare_process(os.environ)  # noqa: TID251 - a program's start
        settings = load(options.config)
        place = find_place(settings, options.region, options.deployment, options.host)
    except MeshError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - of the configuration: nothing was served yet
        return 1
    log = Log("replica", place.region.id, sys.stderr, models=settings.models)
    speak_through(log)
    protect_process()
    return 0 if uvloop.run(serve_until_signal(place, engine_factory(place), log)) else 1


if __name__ == "__main__":
    sys.exit(main())
