"""One region's Ray cluster: started, the region's Serve application deployed on it, watched, ended, started anew.

Without a GCS and a raylet nothing of a cluster is worth keeping: when one of them ends, what is left of that region's
Ray is ended and a new cluster started. Only this region's: `ray stop` would end every cluster of the machine.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.embedded.addresses import RayPorts
from mesh.embedded.children import Child, Children, has_ended
from mesh.embedded.home import starting, write_private
from mesh.embedded.parts import Part, how_it_ended, keep, stop
from mesh.embedded.processes import PART, Process, Roll, look
from mesh.errors import Code, MeshError
from mesh.types import RegionId

_START_S = 180.0
_DEPLOY_S = 900.0
_GRACE_S = 2.0
_OBJECT_STORE_BYTES = 75 * 1024 * 1024
"""Ray's least: nothing of ours goes through it."""
_CORES = ("gcs_server", "raylet")
_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A cluster to keep running.

    Attributes:
        part: `ray-<region>`.
        deploy: `deploy-<region>`: the driver that puts the application on it.
        temp: Its folder for sockets and logs; short.
        kept_logs: Where the logs of its last end are kept.
        environ: With the token's file and all else that Ray needs.
        weights: Waits until the models can be loaded.
    """

    region: RegionId
    part: Part
    deploy: Part
    ports: RayPorts
    temp: Path
    kept_logs: Path
    token: Path
    config: Path
    environ: Mapping[str, str]
    gpus: int
    weights: Callable[[], Awaitable[None]]

    async def run(self, children: Children, roll: Roll, me: int) -> None:
        """Keeps it running. `me`: the supervisor's pid."""

        async def attempt() -> str:
            try:
                return await self._attempt(children, roll, me)
            finally:
                self.part.pid = None
                self._keep_logs()

        await keep(self.part, attempt)

    async def _attempt(self, children: Children, roll: Roll, me: int) -> str:
        await self._end_rest(roll, me)
        self._make_folders()
        child = self._start(children, roll, self.part, self._ray_start())
        try:
            async with asyncio.timeout(_START_S):
                code = await child.ended
        except TimeoutError:
            return f"took longer than {_START_S:.0f} s to start"
        cores = self._cores(roll, me)
        if code or len(cores) < len(_CORES):
            return f"did not start (status {code})"
        self.part.pid = cores["gcs_server"].pid
        return await self._watch(children, roll, cores)

    async def _watch(self, children: Children, roll: Roll, cores: Mapping[str, Process]) -> str:
        """Deploys, and waits for the first of what the cluster cannot be without to end."""
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def over(how: str) -> None:
            if not ended.done():
                ended.set_result(how)

        async def guard(name: str, process: Process) -> None:
            await has_ended(process)
            over(f"lost its {name}")

        async def put() -> None:
            await self.weights()
            fault = await self._deploy(children, roll)
            if fault is not None:
                over(fault)
            else:
                self.part.ready()

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(guard(name, process), name=name) for name, process in cores.items()]
            running.append(tasks.create_task(put(), name=self.deploy.name))
            how = await ended
            for task in running:
                task.cancel()
        return how

    async def _deploy(self, children: Children, roll: Roll) -> str | None:
        """Puts the application on the cluster; tells what went wrong, or None."""
        argv = [sys.executable, "-m", "mesh.serving.deploy", "--config", str(self.config), "--region", self.region]
        child = self._start(children, roll, self.deploy, [*argv, "--ray-address", str(self.ports.gcs)])
        self.deploy.pid = child.process.pid
        try:
            async with asyncio.timeout(_DEPLOY_S):
                code = await child.ended
        except TimeoutError:
            return f"could not be deployed on within {_DEPLOY_S:.0f} s (see {self.deploy.log})"
        finally:
            self.deploy.pid = None
        if code:
            return f"could not be deployed on: the driver {how_it_ended(code)} (see {self.deploy.log})"
        self.deploy.ready()
        return None

    def _start(self, children: Children, roll: Roll, part: Part, argv: list[str]) -> Child:
        child = children.start(argv, {**self.environ, PART: part.name}, part.log, folder=self.temp)
        roll.lead(child.process, part.name)
        return child

    def _ray_start(self) -> list[str]:
        return [
            sys.executable,
            *("-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1"),
            *self.ports.options(),
            f"--temp-dir={self.temp}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            *("--num-cpus=2", f"--num-gpus={self.gpus}"),
            *("--include-dashboard=false", "--include-log-monitor=false", "--no-monitor", "--disable-usage-stats"),
        ]

    def _make_folders(self) -> None:
        with starting():
            shutil.rmtree(self.temp, ignore_errors=True)
            self.temp.mkdir(mode=0o700, parents=True)
        write_private(self.token, secrets.token_hex(_TOKEN_BYTES))

    def _keep_logs(self) -> None:
        """Ray's logs lie in its temporary folder: what they say of an end is kept beside ours."""
        with suppress(OSError, shutil.Error):
            shutil.rmtree(self.kept_logs, ignore_errors=True)
            shutil.copytree(self.temp / "session_latest" / "logs", self.kept_logs)

    def _cores(self, roll: Roll, me: int) -> dict[str, Process]:
        owned = roll.refresh(without=me).values()
        seen = [look(one.process.pid) for one in owned if one.part == self.part.name]
        return {one.name: one.process for one in seen if one is not None and one.name in _CORES}

    async def _end_rest(self, roll: Roll, me: int) -> None:
        """Ends all of this region's Ray, by mark, session and record, until nothing is left."""
        parts = (self.part.name, self.deploy.name)
        for _ in range(5):
            left = [one.process for one in roll.refresh(without=me).values() if one.part in parts]
            if not left:
                return
            await stop(left, _GRACE_S)


def make_temp(folder: Path) -> None:
    """Makes the folder that all clusters of a home share in /tmp.

    Raises:
        MeshError: `start_failed` where somebody else made it: its owner could put files in Ray's way.
    """
    with starting():
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if folder.is_symlink() or not folder.is_dir() or found.st_uid != Path("/proc/self").stat().st_uid:
            raise MeshError(Code.START_FAILED, hint=f"{folder} belongs to somebody else. Remove it.")
        folder.chmod(0o700)
