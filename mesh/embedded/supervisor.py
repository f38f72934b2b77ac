"""Runs one embedded mesh: starts its parts, keeps them running, answers how they are, ends them all.

Everything here lives in one event loop; the lifetime of `supervise` is the lifetime of the mesh.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc.aio

from mesh.control.roles import set_up
from mesh.control.store import StoreError
from mesh.embedded.addresses import Addresses
from mesh.embedded.children import Children, children
from mesh.embedded.configuration import write_settings
from mesh.embedded.control_epoch import keep_control_epoch
from mesh.embedded.doorbell import Tell, doorbell
from mesh.embedded.environment import part_environment, ray_environment, threads_each
from mesh.embedded.etcd_server import etcd_command
from mesh.embedded.front import render_front
from mesh.embedded.home import Home, write_private
from mesh.embedded.older_store import OlderStore
from mesh.embedded.parts import Part, Program, at_once, bound_logs, keep, stop, watched
from mesh.embedded.processes import Owned, Process, Roll, end_all, write_record
from mesh.embedded.ray_cluster import RayCluster
from mesh.embedded.samples import make_samples
from mesh.embedded.status import (
    Known,
    Row,
    admin_part,
    deploy_part,
    front_part,
    gateway_part,
    is_ready,
    ray_part,
    status_of,
)
from mesh.embedded.watching import View, Watcher, all_gateways, watcher
from mesh.errors import Code, MeshError
from mesh.settings import Catalogue, Front, Gateway, Region, Settings
from mesh.tls import check_tls13
from mesh.types import RegionId

Say = Callable[[Row], None]
_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 0.3
_START_S = 1800.0
"""Generous: the first start converts weights, on whatever machine this is."""
_GATEWAY_GRACE_S = 8.0
_RAY_GRACE_S = 3.0
_ETCD_GRACE_S = 5.0
_REST_GRACE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        environ: The supervisor's own environment.
        etcd: The etcd binary.
        haproxy: What runs the fronts; None where no region has one.
        gpus: GPUs that each cluster may use; 0 where the accelerator is the CPU.
    """

    home: Home
    addresses: Addresses
    settings: Settings
    environ: Mapping[str, str]
    etcd: Path
    haproxy: Path | None
    gpus: int


async def supervise(plan: Plan, roll: Roll, say: Say, stopping: asyncio.Event) -> None:
    """Runs the mesh until it is told to stop, by `stopping` or through the doorbell; leaves nothing running.

    Args:
        plan: What to run.
        roll: Holds no living process.
        say: Told of progress, and of `{"ready": status}`.
        stopping: Set by signals, and by the doorbell.

    Raises:
        MeshError: `start_failed`, once everything that was started has been ended again.
    """
    with children() as own:
        async with watcher(plan.settings) as asked:
            mesh = _Mesh(plan, say, asked, own, roll, stopping)
            async with doorbell(plan.home.run, mesh.answer):
                try:
                    await mesh.run()
                finally:
                    stopping.set()
                    await mesh.end()


@dataclass(slots=True)
class _Mesh:
    """A running mesh."""

    plan: Plan
    say: Say
    watcher: Watcher
    children: Children
    roll: Roll
    stopping: asyncio.Event
    parts: dict[str, Part] = field(default_factory=dict)
    started: set[RegionId] = field(default_factory=set)
    told: set[RegionId] = field(default_factory=set)
    up: bool = False
    weights: asyncio.Event = field(default_factory=asyncio.Event)
    callers: list[asyncio.Future[list[Row]]] = field(default_factory=list)
    me: int = field(default_factory=os.getpid)

    async def run(self) -> None:
        """Until it is told to stop, or does not get started."""
        failure: MeshError | None = None

        async def begin() -> None:
            nonlocal failure
            try:
                await self.begin()
            except MeshError as error:
                failure = error
                self.stopping.set()

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work, name=name) for name, work in self.works().items()]
            running.append(tasks.create_task(begin(), name="begin"))
            await self.stopping.wait()
            for task in running:
                task.cancel()
        if failure is not None:
            raise failure

    def works(self) -> Mapping[str, Coroutine[object, object, None]]:
        """What runs side by side."""
        older = OlderStore(self.watcher.view)

        async def until_not_older() -> None:
            await _until(older.is_excluded)

        works = {"look": self.look(), "etcd": self.etcd(), "weights": self.convert()}
        for region, gateway in all_gateways(self.plan.settings):
            name = gateway_part(region, gateway)
            command, check = self.gateway_command(region, gateway), self.until_gateway(region, gateway)
            works[name] = self.serve(name, command, check, until_not_older)
        for i, region in enumerate(self.plan.settings.regions.values()):
            if region.front is not None and self.plan.haproxy is not None:
                works[front_part(region.id)] = self.front(self.plan.haproxy, region, region.front)
            name = admin_part(region.id)
            works[name] = self.serve(name, self.admin_command(region), self.until_admin(region))
            works[ray_part(region.id)] = self.cluster(region, i).run(self.children, self.roll, self.me)
        return works

    # What the parts are.

    async def etcd(self) -> None:
        """The control store, with users and rights, in TLS 1.3."""
        plan, addresses = self.plan, self.plan.addresses
        data = plan.home.etcd / "data"
        command = etcd_command(plan.etcd, data, plan.settings.pki, addresses)

        async def check() -> None:
            while True:
                with suppress(StoreError):
                    await set_up(self.watcher.store, plan.settings.regions)
                    break
                await asyncio.sleep(_ASK_EVERY_S)
            for address in (addresses.etcd, addresses.etcd_peer):
                await check_tls13(address.host, address.port)

        await self.program("etcd", command, check).run(self.children, self.roll)

    async def front(self, haproxy: Path, region: Region, front: Front) -> None:
        """What clients reach a region by, where it has a domain."""
        settings, name = self.plan.settings, front_part(region.id)
        config = self.plan.home.run / f"{name}.cfg"
        write_private(config, render_front(Catalogue(regions=settings.regions, models=settings.models), region))

        async def passes() -> bool:
            try:
                await check_tls13(front.http.host, front.http.port)
                await check_tls13(front.grpc.host, front.grpc.port)
            except MeshError:
                return False  # no gateway stands behind it yet
            return True

        argv = [str(haproxy), "-db", "-f", str(config)]
        await self.program(name, argv, lambda: _until(passes)).run(self.children, self.roll)

    async def convert(self) -> None:
        """The models' weights, once for all homes; then there is nothing left to keep running."""
        part = self.part("weights")
        folder = str(self.plan.settings.models_dir)
        argv = [sys.executable, "-m", "mesh.serving.weights", "--models-dir", folder]

        async def attempt() -> str:
            part.log.unlink(missing_ok=True)  # what is in it is shown as progress
            environ = self.environ_of(part.name)
            child = self.children.start(argv, environ, part.log, folder=self.plan.home.path)
            self.roll.lead(child.process, part.name)
            how = await watched(child, part, lambda: self.follow(part.log))
            if child.ended.result() == 0:
                part.ready()
                self.weights.set()
                await asyncio.Event().wait()  # until the mesh stops
            return how

        await keep(part, attempt)

    async def serve(
        self,
        name: str,
        argv: list[str],
        check: Callable[[], Coroutine[object, object, None]],
        may_start: Callable[[], Awaitable[None]] = at_once,
    ) -> None:
        """A gateway or an admin, once the store knows its users."""
        program = replace(self.program(name, argv, check), may_start=may_start)
        await self.part("etcd").settled.wait()
        await program.run(self.children, self.roll)

    def gateway_command(self, region: Region, gateway: Gateway) -> list[str]:
        """What runs a gateway."""
        config = str(self.plan.home.config)
        own = ["--config", config, "--region", region.id, "--gateway", gateway.id]
        # Each starts only when the one before has been reaped.
        return [sys.executable, "-m", "mesh.gateway", *own, "--alone"]

    def admin_command(self, region: Region) -> list[str]:
        """What runs an admin."""
        return [sys.executable, "-m", "mesh.admin", "--config", str(self.plan.home.config), "--region", region.id]

    def until_gateway(self, region: Region, gateway: Gateway) -> Callable[[], Coroutine[object, object, None]]:
        """Waits until a gateway answers."""

        async def answers() -> bool:
            return await self.watcher.gateway(region.id, gateway.id) is not None

        return lambda: _until(answers)

    def until_admin(self, region: Region) -> Callable[[], Coroutine[object, object, None]]:
        """Waits until an admin serves."""
        return lambda: _until(lambda: self.watcher.admin(region.id))

    def cluster(self, region: Region, number: int) -> RayCluster:
        """A region's Ray cluster."""
        plan, name = self.plan, ray_part(region.id)
        token = plan.home.run / f"{name}.token"
        environ = self.environ_of(name) | ray_environment(token)
        if plan.gpus:
            environ["CUDA_VISIBLE_DEVICES"] = str(number % plan.gpus)
        return RayCluster(
            region=region.id,
            part=self.part(name),
            deploy=self.part(deploy_part(region.id)),
            ports=plan.addresses.of(region.id).ray,
            temp=plan.addresses.ray_temp(region.id),
            kept_logs=plan.home.logs / name,
            token=token,
            config=plan.home.config,
            environ=environ,
            gpus=1 if plan.gpus else 0,
            weights=self.until_weights,
        )

    async def until_weights(self) -> None:
        """Waits until the models can be loaded."""
        await self.weights.wait()

    def program(self, name: str, argv: list[str], check: Callable[[], Coroutine[object, object, None]]) -> Program:
        """A program of ours."""
        return Program(self.part(name), argv, self.environ_of(name), self.plan.home.path, check)

    def part(self, name: str) -> Part:
        """A part, made when first named."""
        return self.parts.setdefault(name, Part(name, self.plan.home.log_of(name)))

    def environ_of(self, part: str) -> dict[str, str]:
        """A part's initial environment."""
        plan = self.plan
        threads = threads_each(list(plan.settings.regions))
        return part_environment(plan.environ, plan.addresses.instance, part, threads=threads)

    # What the supervisor itself does.

    async def begin(self) -> None:
        """Waits until every region is ready and the samples are made, and says so.

        Raises:
            MeshError: `start_failed`.
        """
        try:
            async with asyncio.timeout(_START_S):
                samples = False
                while True:
                    view = await self.watcher.view()
                    self.tell_progress(view)
                    if given_up := [part for part in self.parts.values() if part.given_up]:
                        raise MeshError(Code.START_FAILED, hint=f"{given_up[0].fault}.")
                    if not samples and _recovering(view):
                        self.say({"progress": "the control store went back in time: run 'mesh control recover'"})
                        samples = True  # they are there again after it
                    if samples and any(said is not None and said.went_back for said in view.control.values()):
                        break  # until then no gateway is started
                    compared = all(said is not None and said.compared for said in view.control.values())
                    if not samples and compared and self.parts["etcd"].settled.is_set() and all(view.admins.values()):
                        samples = await self.samples()
                    if samples and len(self.told) == len(self.plan.settings.regions):
                        break
                    await asyncio.sleep(_ASK_EVERY_S)
        except TimeoutError:
            reasons = "; ".join(str(reason) for reason in await self.reasons())
            raise MeshError(Code.START_FAILED, hint=f"Not ready after {_START_S:.0f} s: {reasons}.") from None
        self.up = True
        self.say({"ready": await self.status()})

    def tell_progress(self, view: View) -> None:
        """Says which parts have become ready since it was last asked."""
        for part in self.parts.values():
            if part.settled.is_set() and not part.told and not part.given_up:
                part.told = True
                self.say({"progress": f"{part.name}: ready"})
        for region in self.plan.settings.regions.values():
            if region.id not in self.told and is_ready(region, view):
                self.started.add(region.id)
                self.told.add(region.id)
                self.say({"progress": f"region {region.id}: ready"})

    async def samples(self) -> bool:
        """Whether the sample tenants are there now."""
        try:
            await make_samples(self.plan.home, self.watcher.admin_channels, lambda text: self.say({"progress": text}))
        except grpc.aio.AioRpcError:
            return False  # asked again until the start is given up
        return True

    async def look(self) -> None:
        """Keeps the record of what runs, and the logs to their size."""
        recorded: set[Process] = set()
        while True:
            owned = self.roll.refresh(without=self.me)
            if set(owned) != recorded:
                with suppress(MeshError):  # a full disk: tried again, and the marks tell without it
                    write_record(self.plan.home.records, self.plan.addresses.instance, owned.values())
                    recorded = set(owned)
            bound_logs(self.plan.home.logs)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def follow(self, log: Path) -> None:
        """Says what is written to a log, line by line, until it is cancelled."""
        told = ""
        while True:
            line = _last_line(log)
            if line not in ("", told):
                told = line
                self.say({"progress": f"weights: {line}"})
            await asyncio.sleep(_ASK_EVERY_S)

    async def status(self) -> Row:
        """What `mesh status` shows, asked now."""
        view = await self.watcher.view()
        regions = self.plan.settings.regions.values()
        self.started |= {region.id for region in regions if is_ready(region, view)}
        known = Known(
            settings=self.plan.settings,
            addresses=self.plan.addresses,
            parts=self.parts,
            started=frozenset(self.started),
            stopping=self.stopping.is_set(),
        )
        return status_of(known, view)

    async def reasons(self) -> list[object]:
        """Why it is not ready."""
        reasons = (await self.status())["reasons"]
        return list(reasons) if isinstance(reasons, list) else []

    async def answer(self, op: str, tell: Tell) -> None:
        """Answers the doorbell."""
        match op:
            case "hello":
                state = "stopping" if self.stopping.is_set() else "running" if self.up else "starting"
                regions = self.plan.settings.regions
                domain = next(iter(regions.values())).domain
                await tell({"regions": list(regions), "domain": domain, "state": state, "pid": self.me})
            case "status":
                await tell(await self.status())
            case "raise-epoch":
                try:
                    await tell({"epoch": await self.raise_epoch()})
                except MeshError as error:
                    await tell({"error": {"code": error.code, "hint": error.hint}})
            case "stop":
                caller: asyncio.Future[list[Row]] = asyncio.get_running_loop().create_future()
                self.callers.append(caller)
                self.stopping.set()
                await tell({"stopped": await caller})
            case _:
                await tell({"error": {"code": Code.NOT_FOUND, "message": "unknown op"}})

    async def raise_epoch(self) -> int:
        """Begins the next control epoch and ends what runs by the old one's configuration: it is started again."""
        plan = self.plan
        epoch = plan.settings.control_epoch + 1
        keep_control_epoch(plan.home, epoch)
        self.plan = replace(plan, settings=replace(plan.settings, control_epoch=epoch))
        write_settings(self.plan.settings, plan.home.config)
        old = [
            one
            for one in self.roll.refresh(without=self.me).values()
            if one.part.startswith(("gateway-", "admin-")) and one.part in self.parts
        ]
        for one in old:
            self.parts[one.part].backoff.failures = 0  # it is none of theirs
        await stop([one.process for one in old], _GATEWAY_GRACE_S)
        return epoch

    async def end(self) -> None:
        """Ends everything, doors first, and makes sure that nothing is left."""
        plan = self.plan
        self.say({"progress": "stopping"})
        ended = self.roll.refresh(without=self.me)

        async def end_parts(prefixes: tuple[str, ...], grace_s: float) -> None:
            await stop([one.process for one in ended.values() if one.part.startswith(prefixes)], grace_s)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(end_parts(("front-", "gateway-", "admin-", "deploy-", "weights"), _GATEWAY_GRACE_S))
            tasks.create_task(end_parts(("ray-",), _RAY_GRACE_S))
        await end_parts(("etcd",), _ETCD_GRACE_S)
        rest = await asyncio.to_thread(end_all, self.roll, without=self.me, grace_s=_REST_GRACE_S)
        with suppress(OSError):
            shutil.rmtree(plan.addresses.temp)
        with suppress(OSError):
            plan.home.records.unlink(missing_ok=True)
        rows = stopped_rows([*ended.values(), *(one for one in rest if one.process not in ended)])
        self.say({"progress": f"stopped: {len(rows)} processes"})
        for caller in self.callers:
            if not caller.done():
                caller.set_result(rows)
        await asyncio.sleep(0.05 if self.callers else 0)  # lets who asked to stop read the answer


def _recovering(view: View) -> bool:
    """Whether the control store waits for its recovery: nothing can be made in it."""
    known = [said for said in view.control.values() if said is not None and said.compared]
    return any(said.went_back or not said.published for said in known)


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Asks until the answer is yes: other programs tell nobody when they are ready."""
    while True:
        if await holds():
            return
        await asyncio.sleep(_ASK_EVERY_S)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def stopped_rows(owned: list[Owned]) -> list[Row]:
    """What `mesh down` shows of ended processes."""
    return [{"name": one.part, "pid": one.process.pid} for one in sorted(owned, key=lambda one: one.part)]
