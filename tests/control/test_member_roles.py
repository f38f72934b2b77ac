"""Members on a real etcd: who may write and read what, and whole rounds of a pin, also over a connection that is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from etcd_lab import Lab, Proxy, running_etcd
from trust_lab import changes_in, trust_in
from waiting import eventually

from mesh.control import layout
from mesh.control.barrier import Barrier, BarrierState, Standing
from mesh.control.feed import PolicyFeed
from mesh.control.grants import ClonedError, Membership
from mesh.control.members import Members
from mesh.control.memberships import Drain
from mesh.control.store import Compare, Delete, Put, Range, StoreDeniedError, WatchUp
from mesh.control.sweep import MemberSweeper
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook, Spans
from mesh.runtime import SystemEntropy, TaskGroupTasks
from mesh.types import GatewayId, Jurisdiction, MemberId, RegionId, Revision, Role, TenantId, Transfer

HOME, ABROAD = RegionId("vn-1"), RegionId("sg-1")
VN, SG = Jurisdiction("VN"), Jurisdiction("SG")
BOTH = frozenset({VN, SG})


async def test_a_gateway_writes_its_own_regions_members_and_an_admin_reads_all(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, (HOME, ABROAD)) as lab:
        gateway, admin = await lab.store(HOME, Role.GATEWAY), await lab.store(HOME, Role.ADMIN)
        other = await lab.store(ABROAD, Role.GATEWAY)
        member = MemberId("m")
        for store, region in ((gateway, HOME), (other, ABROAD), (admin, HOME)):
            puts = [Put(at(region, member), b"x") for at in (layout.grant_key, layout.ack_key)]
            assert (await store.txn([], [*puts, Range(*layout.HEADS)], timeout_s=30)).succeeded
        refused = [
            (gateway, [Put(layout.grant_key(ABROAD, member), b"x")]),
            (gateway, [Put(layout.ack_key(ABROAD, member), b"x")]),
            (gateway, [Delete(layout.grant_key(ABROAD, member))]),
            (gateway, [Put("/mesh/head/vn-1/0", b"x")]),
            (gateway, [Put("/mesh/policy/vn-1/0/t", b"x")]),
            (gateway, [Range(*layout.MEMBERS)]),
            (gateway, [Range(*layout.GRANTS)]),
            (admin, [Put(layout.grant_key(ABROAD, member), b"x")]),
            (admin, [Put(layout.ack_key(ABROAD, member), b"x")]),
            (admin, [Delete(*layout.ACKS)]),
        ]
        for store, ops in refused:
            with pytest.raises(StoreDeniedError):
                await store.txn([], ops, timeout_s=30)
        read = await admin.txn([], [Range(*layout.MEMBERS), Range("/mesh/policy/vn-1/0/t")], timeout_s=30)
        assert len(read.ranges[0].items) == 4
        assert read.cluster
        watch = admin.watch(*layout.ACKS, read.revision + 1)
        assert isinstance(await anext(watch), WatchUp)
        await watch.aclose()
        with pytest.raises(StoreDeniedError):
            await anext(gateway.watch(*layout.ACKS, read.revision + 1))
        # As its own region's sweeper an admin deletes, comparing.
        key = layout.grant_key(HOME, member)
        at = next(item.mod_revision for item in read.ranges[0].items if item.key == key)
        assert not (await admin.txn([Compare(key, at - 1)], [Delete(key)], timeout_s=30)).succeeded
        assert (await admin.txn([Compare(key, at)], [Delete(key)], timeout_s=30)).succeeded


class Gateway:
    """A gateway as far as grants go, on a real store."""

    def __init__(self, lab: Lab, region: RegionId) -> None:
        self.region = region
        self.lab = lab
        self.book = PolicyBook()
        self.authority = Authority()
        self.draining: dict[TenantId, Drain] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, group: asyncio.TaskGroup, *endpoints: str) -> None:
        store = await self.lab.store(self.region, Role.GATEWAY, *endpoints)
        self.membership = Membership(
            store=store,
            region=self.region,
            gateway=GatewayId("gw1"),
            authority=self.authority,
            draining=lambda: self.draining,
            clock=self.lab.clock,
            tasks=TaskGroupTasks,
            entropy=SystemEntropy(),
        )
        self.feed = PolicyFeed(store, self.book, self.lab.clock, trust_in(), listener=self.membership)
        self.tasks = [group.create_task(self.feed.run()), group.create_task(self.membership.run())]

    def left_s(self, tenant: TenantId, place: Jurisdiction) -> float:
        policy = self.book.tenant(tenant)
        if policy is None or place not in policy.allowed:
            return 0.0
        return self.authority.left_s(policy, place, self.lab.clock.instant())

    def kill(self) -> None:
        for task in self.tasks:
            task.cancel()


class World:
    """A home's admin, and gateways at home and abroad."""

    def __init__(self, lab: Lab, group: asyncio.TaskGroup) -> None:
        self.lab = lab
        self.group = group
        self.home, self.abroad = Gateway(lab, HOME), Gateway(lab, ABROAD)

    async def start(self, foreign_s: float, *endpoints: str) -> None:
        store = await self.lab.store(HOME, Role.ADMIN)
        self.changes = changes_in(store, HOME, self.lab.clock)
        members = Members(store, self.lab.clock, TaskGroupTasks)
        self.members_task = self.group.create_task(members.run())
        self.barrier = Barrier(store=store, region=HOME, members=members, trust=trust_in(), clock=self.lab.clock)
        made = await self.changes.create_tenant(bytes(16), BOTH, Transfer.WITHIN_ALLOWED)
        self.tenant = made.tenant.policy.tenant
        await self.changes.set_authority(self.tenant, Spans(home_s=600.0, foreign_s=foreign_s))
        await self.home.start(self.group)
        await self.abroad.start(self.group, *endpoints)
        await eventually(lambda: min(self.home.left_s(self.tenant, VN), self.abroad.left_s(self.tenant, SG)) > 0)

    async def pin(self, *places: Jurisdiction) -> list[BarrierState]:
        outcome = await self.changes.set_allowed(self.tenant, frozenset(places))
        return [state async for state in self.barrier.wait(outcome)]


@asynccontextmanager
async def world_on(lab: Lab, *endpoints: str, foreign_s: float = 600.0) -> AsyncGenerator[World]:
    """`foreign_s` is long, where none waits for its end: on a busy machine a renewal may take seconds."""
    async with asyncio.TaskGroup() as group:
        world = World(lab, group)
        await world.start(foreign_s, *endpoints)
        yield world
        for task in (*world.home.tasks, *world.abroad.tasks, world.members_task):
            task.cancel()


async def gone(world: World, gateway: Gateway) -> None:
    """It leaves: its keys stay where the store does not answer in time."""
    while gateway.region in {row.region for row in await world.barrier.status()}:
        await gateway.membership.leave()


async def test_rounds_of_a_pin_on_a_real_store(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, (HOME, ABROAD)) as lab, world_on(lab) as world:
        for _ in range(5):
            states = await world.pin(VN)
            assert states[-1].done
            assert {member.standing for member in states[-1].members} == {Standing.ACKNOWLEDGED}
            assert world.abroad.left_s(world.tenant, SG) == 0
            assert world.abroad.book.tenant(world.tenant).allowed == {VN}  # type: ignore[union-attr]
            await world.changes.set_allowed(world.tenant, BOTH)
        rows = await world.barrier.status()
        assert {row.region for row in rows} == {HOME, ABROAD}
        await eventually(lambda: world.abroad.left_s(world.tenant, SG) > 0)
        # Work that drains keeps the pin waiting, until it has ended.
        revision = world.abroad.book.tenant(world.tenant).revision + 1  # type: ignore[union-attr]
        world.abroad.draining[world.tenant] = Drain(Revision(revision), 2.0)
        outcome = await world.changes.set_allowed(world.tenant, frozenset({VN}))
        seen: list[Standing] = []
        async for state in world.barrier.wait(outcome, strict=True):
            seen += [member.standing for member in state.members if member.region == ABROAD]
            if seen[-1] is Standing.DRAINING:
                world.abroad.draining.clear()
                world.abroad.membership.changed()
        assert seen[-1] is Standing.ACKNOWLEDGED
        assert Standing.DRAINING in seen


async def test_a_gateway_that_is_cut_off_has_lost_its_authority_when_a_pin_returns(tmp_path: Path) -> None:
    async with (
        running_etcd(tmp_path, (HOME, ABROAD)) as lab,
        Proxy(lab.etcd.port).running() as proxy,
        world_on(lab, proxy.endpoint, foreign_s=8.0) as world,
    ):
        assert (await world.pin(VN))[-1].done
        await world.changes.set_allowed(world.tenant, BOTH)
        await eventually(lambda: world.abroad.left_s(world.tenant, SG) > 0)
        proxy.close()
        states = await world.pin(VN)
        assert states[-1].done
        assert world.abroad.left_s(world.tenant, SG) == 0
        standings = {member.region: member.standing for member in states[-1].members}
        assert standings == {HOME: Standing.ACKNOWLEDGED, ABROAD: Standing.TIMED_OUT}
        assert states[-1].waited_ms >= 1000
        assert world.abroad.membership.failures
        # A second one need not wait for whoever is known to be silent.
        await world.changes.set_allowed(world.tenant, BOTH)
        states = await world.pin(VN)
        assert {member.region: member.standing for member in states[-1].members} == {
            HOME: Standing.ACKNOWLEDGED,
            ABROAD: Standing.LAPSED,
        }
        await world.changes.set_allowed(world.tenant, BOTH)
        proxy.open()
        await eventually(lambda: world.abroad.left_s(world.tenant, SG) > 0)
        assert (await world.pin(VN))[-1].done


async def test_without_a_quorum_a_wait_that_runs_ends_and_authority_runs_out(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, (HOME, ABROAD)) as lab, world_on(lab, foreign_s=8.0) as world:
        world.abroad.kill()
        await gone(world, world.abroad)
        silent = Gateway(lab, ABROAD)
        await silent.start(world.group)
        await eventually(lambda: silent.left_s(world.tenant, SG) > 0)
        silent.draining[world.tenant] = Drain(Revision(1000), 2.0)
        outcome = await world.changes.set_allowed(world.tenant, frozenset({VN}))
        assert len(outcome.members) == 2
        lab.etcd.kill()
        states = [state async for state in world.barrier.wait(outcome)]
        assert states[-1].done
        assert not states[-1].current
        assert silent.left_s(world.tenant, SG) == 0
        lab.etcd.start()
        renewals = world.home.membership.renewals
        await eventually(lambda: world.home.membership.renewals > renewals)
        states: list[BarrierState] = []
        while not states or not states[-1].current:  # it is asked for a second at most, and may be busy
            states = [state async for state in world.barrier.wait(outcome)]
            assert states[-1].done
        silent.kill()


async def test_members_that_left_were_attested_or_were_swept_are_gone(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, (HOME, ABROAD)) as lab, world_on(lab) as world:
        admin = await lab.store(ABROAD, Role.ADMIN)
        there = Barrier(
            store=admin,
            region=ABROAD,
            members=Members(admin, lab.clock, TaskGroupTasks),
            trust=trust_in(),
            clock=lab.clock,
        )
        world.abroad.kill()
        assert await there.attest(world.abroad.membership.member) == "gw1"
        assert [row.region for row in await world.barrier.status()] == [HOME]
        await gone(world, world.home)
        assert await world.barrier.status() == ()
        assert world.home.left_s(world.tenant, VN) == 0
        await admin.txn([], [Put(layout.grant_key(ABROAD, MemberId("dead")), b"")], timeout_s=30)
        sweeper = MemberSweeper(admin, ABROAD, 0.5, lab.clock)
        assert await sweeper.sweep() == 0
        while not await sweeper.sweep():
            await asyncio.sleep(0.05)
        assert await world.barrier.status() == ()


async def test_a_copy_is_found_out_by_a_real_store(tmp_path: Path) -> None:
    async with running_etcd(tmp_path, (HOME, ABROAD)) as lab:
        gateway, twin = Gateway(lab, ABROAD), Gateway(lab, ABROAD)
        with pytest.RaisesGroup(ClonedError, flatten_subgroups=True):
            async with asyncio.TaskGroup() as group:
                await gateway.start(group)
                await eventually(lambda: gateway.membership.renewals > 0)
                await twin.start(group)
                one, other = gateway.membership, twin.membership
                other.member, other._mod_revision, other._last = one.member, one._mod_revision, one._last
                await asyncio.Event().wait()
