"""A replica's stream to its gateways: at once, at every change, once a second; through cuts, restarts and silence."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from ports import free_port
from serving.fleet_lab import VN, FleetGateway, lab_pki

from mesh.runtime import SystemClock
from mesh.serving.announce import COALESCE_S, Announcer, Membership
from mesh.serving.leases import Fence, Leases
from mesh.settings import Address
from mesh.telemetry import Log
from mesh.tls import prepare_process
from mesh.types import PolicyNumber, ReplicaId, TenantId
from mesh.v1 import fleet_pb2 as pb


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepare_process(os.environ)
    return lab_pki(tmp_path_factory.mktemp("pki"))


class Announced:
    """An announcer at work, and what it says of itself."""

    def __init__(self, pki: Path, gateways: Sequence[Address], clock: SystemClock) -> None:
        self.running = 0
        membership = Membership(pki=pki, region=VN, gateways=gateways)
        log = Log("replica", "vn-1", io.StringIO(), strict=True)
        self.leases = Leases(ReplicaId("0" * 16), clock)
        self.announcer = Announcer(membership, self.report, self.leases, clock, log)

    def report(self, number: int) -> pb.ReplicaReport:
        state = pb.REPLICA_STATE_READY
        models = [pb.ModelReport(model="m", state=state, running=self.running)]
        return pb.ReplicaReport(number=number, replica="0" * 16, address="127.0.0.1:1", models=models)

    def change(self, running: int) -> None:
        self.running = running
        self.announcer.changed()


@asynccontextmanager
async def announcing(pki: Path, *gateways: Address, clock: SystemClock | None = None) -> AsyncGenerator[Announced]:
    announced = Announced(pki, gateways, clock or SystemClock())
    task = asyncio.get_running_loop().create_task(announced.announcer.run())
    try:
        yield announced
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_reports_at_once_at_every_change_and_every_second(pki: Path) -> None:
    gateway = FleetGateway()
    async with gateway.listening(pki) as address, announcing(pki, address) as announced:
        await gateway.until(lambda: len(gateway.reports) >= 1)
        announced.change(3)
        await gateway.until(lambda: gateway.reports[-1].models[0].running == 3)
        seen = len(gateway.reports)
        await gateway.until(lambda: len(gateway.reports) > seen)  # nothing changed: the heartbeat
        numbers = [report.number for report in gateway.reports]
        assert numbers == sorted(set(numbers))
        assert gateway.streams == 1


async def test_changes_in_a_crowd_are_told_together(pki: Path) -> None:
    gateway = FleetGateway()
    async with gateway.listening(pki) as address, announcing(pki, address) as announced:
        await gateway.until(lambda: len(gateway.reports) >= 1)
        before = len(gateway.reports)
        for running in range(1, 501):
            announced.change(running)
            await asyncio.sleep(0)
        await gateway.until(lambda: gateway.reports[-1].models[0].running == 500)
        assert len(gateway.reports) - before < 100


class Holding(SystemClock):
    """Crowds of changes never end."""

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        return asyncio.timeout(None) if seconds == COALESCE_S else super().timeout(seconds)

    async def sleep(self, seconds: float) -> None:
        await (asyncio.Event().wait() if seconds == COALESCE_S else super().sleep(seconds))


async def test_that_what_was_asked_for_has_ended_is_told_at_once(pki: Path) -> None:
    gateway = FleetGateway()
    async with gateway.listening(pki) as address, announcing(pki, address, clock=Holding()) as announced:
        await gateway.until(lambda: bool(gateway.reports))
        fence = Fence(TenantId("t_aaaaaaaaaaaaaaaa"), PolicyNumber(0, 2), None)
        announced.leases._sources[0].said(7, (), [fence])
        await gateway.until(lambda: gateway.reports[-1].heard == 7)


async def test_every_gateway_is_told_whatever_another_does(pki: Path) -> None:
    first, second = FleetGateway(), FleetGateway()
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(first.listening(pki))
        b = await stack.enter_async_context(second.listening(pki))
        dead = Address("127.0.0.1", 1)
        async with announcing(pki, dead, a, b) as announced:
            await first.until(lambda: bool(first.reports))
            await second.until(lambda: bool(second.reports))
            announced.change(7)
            await first.until(lambda: first.reports[-1].models[0].running == 7)
            await second.until(lambda: second.reports[-1].models[0].running == 7)


async def test_joins_again_when_a_gateway_restarts(pki: Path) -> None:
    gateway = FleetGateway()
    async with AsyncExitStack() as stack:
        async with gateway.listening(pki, free_port()) as address:
            announced = await stack.enter_async_context(announcing(pki, address))
            await gateway.until(lambda: bool(gateway.reports))
        assert gateway.open == 0
        announced.change(9)
        again = FleetGateway()
        async with again.listening(pki, address.port):
            await again.until(lambda: bool(again.reports))
            assert again.reports[0].models[0].running == 9


async def test_a_silent_gateway_is_dialled_again(pki: Path) -> None:
    gateway = FleetGateway()
    gateway.quiet = True
    async with gateway.listening(pki) as address, announcing(pki, address):
        await gateway.until(lambda: gateway.streams >= 2)
        gateway.quiet = False
        await gateway.until(lambda: gateway.open == 1)


async def test_settling_waits_for_those_that_are_joined(pki: Path) -> None:
    gateway = FleetGateway()
    async with gateway.listening(pki) as address, announcing(pki, address, Address("127.0.0.1", 1)) as announced:
        await gateway.until(lambda: len(gateway.reports) >= 2)
        announced.running = 5
        await announced.announcer.settle(30)
        assert gateway.reports[-1].models[0].running == 5


async def test_settling_ends_without_an_answer(pki: Path) -> None:
    gateway = FleetGateway()
    async with gateway.listening(pki) as address, announcing(pki, address) as announced:
        await gateway.until(lambda: len(gateway.reports) >= 2)
        gateway.quiet = True
        await announced.announcer.settle(0.2)


@pytest.mark.parametrize("attempt", range(8))
async def test_ends_when_its_gateway_ends_at_the_same_moment(pki: Path, attempt: int) -> None:
    # The end of the stream must not hide that the announcer was told to end: it would never come back.
    del attempt
    gateway, stack = FleetGateway(), AsyncExitStack()
    async with stack, gateway.listening(pki) as address:
        await stack.enter_async_context(announcing(pki, address))
        await gateway.until(lambda: bool(gateway.reports))
