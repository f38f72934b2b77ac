"""Asks the parts how they are, and puts what they say together as `mesh status` shows it.

Every question has a deadline and is put when somebody wants to know: nothing here is remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.control.etcd import EtcdStore, MemberStatus, open_store_as_root
from mesh.runtime import SystemClock
from mesh.settings import Gateway, Region, Settings
from mesh.tls import grpc_channel_credentials, grpc_channel_options
from mesh.types import GatewayId, RegionId, Role
from mesh.v1 import admin_pb2, admin_pb2_grpc, fleet_pb2, fleet_pb2_grpc

_Check = Callable[..., Awaitable[health_pb2.HealthCheckResponse]]
DEADLINE_S = 1.0
"""Of a question to a part on this machine."""
_RECONNECT = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000)]


@dataclass(frozen=True, slots=True)
class View:
    """What was answered just now.

    Attributes:
        etcd: None where it does not answer, or is not asked.
        gateways: A gateway's own words, None where it does not answer.
        admins: Whether each region's admin serves.
        control: How each region's admin sees the control store, None where it does not answer.
    """

    etcd: MemberStatus | None
    gateways: Mapping[tuple[RegionId, GatewayId], fleet_pb2.GatewayStatus | None]
    admins: Mapping[RegionId, bool]
    control: Mapping[RegionId, admin_pb2.ControlStatusResponse | None] = field(
        default_factory=dict[RegionId, "admin_pb2.ControlStatusResponse | None"]
    )


class Observer:
    """Open channels to gateways and admins; make it with `observer`."""

    def __init__(
        self,
        gateways: Mapping[tuple[RegionId, GatewayId], grpc.aio.Channel],
        admins: Mapping[RegionId, grpc.aio.Channel],
        deadline_s: float,
    ) -> None:
        self._gateways = {key: fleet_pb2_grpc.InspectStub(channel) for key, channel in gateways.items()}
        self._admins = {region: health_pb2_grpc.HealthStub(channel) for region, channel in admins.items()}
        self.admin_channels = admins
        self._deadline_s = deadline_s

    async def view(self) -> View:
        """Asks everybody at once, but not etcd."""
        async with asyncio.TaskGroup() as tasks:
            gateways = {key: tasks.create_task(self.gateway(*key)) for key in self._gateways}
            admins = {region: tasks.create_task(self.admin(region)) for region in self._admins}
            control = {region: tasks.create_task(self.control(region)) for region in self._admins}
        return View(
            None,
            {key: task.result() for key, task in gateways.items()},
            {region: task.result() for region, task in admins.items()},
            {region: task.result() for region, task in control.items()},
        )

    async def gateway(self, region: RegionId, gateway: GatewayId) -> fleet_pb2.GatewayStatus | None:
        """One gateway's own words."""
        call = self._gateways[region, gateway].Status(fleet_pb2.StatusRequest(), timeout=self._deadline_s)
        try:
            return cast("fleet_pb2.GatewayStatus", await call)
        except grpc.aio.AioRpcError:
            return None

    async def control(self, region: RegionId) -> admin_pb2.ControlStatusResponse | None:
        """How a region's admin sees the control store."""
        call = admin_pb2_grpc.AdminStub(self.admin_channels[region]).ControlStatus(
            admin_pb2.ControlStatusRequest(), timeout=self._deadline_s
        )
        try:
            return cast("admin_pb2.ControlStatusResponse", await call)
        except grpc.aio.AioRpcError:
            return None

    async def admin(self, region: RegionId) -> bool:
        """Whether a region's admin serves."""
        check = cast("_Check", self._admins[region].Check)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            answer = await check(health_pb2.HealthCheckRequest(), timeout=self._deadline_s)
        except grpc.aio.AioRpcError:
            return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING


class Watcher(Observer):
    """An observer that asks etcd, too; make it with `watcher`."""

    def __init__(
        self,
        store: EtcdStore,
        gateways: Mapping[tuple[RegionId, GatewayId], grpc.aio.Channel],
        admins: Mapping[RegionId, grpc.aio.Channel],
    ) -> None:
        super().__init__(gateways, admins, DEADLINE_S)
        self.store = store

    async def view(self) -> View:
        """Asks everybody at once."""
        async with asyncio.TaskGroup() as tasks:
            etcd = tasks.create_task(self.store.status(timeout_s=DEADLINE_S))
            rest = tasks.create_task(super().view())
        return replace(rest.result(), etcd=etcd.result()[0])


@asynccontextmanager
async def watcher(settings: Settings) -> AsyncGenerator[Watcher]:
    """Opens channels as the operator, and to the store as its root; nothing connects before it is asked."""
    async with open_store_as_root(settings.etcd, settings.pki, SystemClock()) as store, _channels(settings) as opened:
        yield Watcher(store, *opened)


@asynccontextmanager
async def observer(settings: Settings, deadline_s: float) -> AsyncGenerator[Observer]:
    """Opens channels as the operator; nothing connects before it is asked."""
    async with _channels(settings) as opened:
        yield Observer(*opened, deadline_s)


@asynccontextmanager
async def _channels(
    settings: Settings,
) -> AsyncGenerator[tuple[Mapping[tuple[RegionId, GatewayId], grpc.aio.Channel], Mapping[RegionId, grpc.aio.Channel]]]:
    """To each gateway's internal port, and to each admin."""
    operator = grpc_channel_credentials(settings.pki, None, Role.OPERATOR)

    def channel(address: object, role: Role, region: RegionId) -> grpc.aio.Channel:
        options = [*grpc_channel_options(role, region), *_RECONNECT]
        return grpc.aio.secure_channel(str(address), operator, options=options)

    async with AsyncExitStack() as stack:
        gateways = {
            (region.id, gateway.id): await stack.enter_async_context(channel(gateway.internal, Role.GATEWAY, region.id))
            for region, gateway in all_gateways(settings)
        }
        admins = {
            region.id: await stack.enter_async_context(channel(region.admin, Role.ADMIN, region.id))
            for region in settings.regions.values()
        }
        yield gateways, admins


def all_gateways(settings: Settings) -> Iterable[tuple[Region, Gateway]]:
    """Each gateway with its region."""
    return ((region, gateway) for region in settings.regions.values() for gateway in region.gateways)
