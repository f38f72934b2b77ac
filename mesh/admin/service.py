"""The `Admin` service: the operator's words to and from `mesh.admin.tenants` and the ledger, and who may speak."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health  # pyright: ignore[reportAttributeAccessIssue]

from mesh.admin.control import ControlDesk
from mesh.admin.routes import Routes
from mesh.admin.shrinks import Patience, Progress, Shrinks
from mesh.admin.tenants import NamedTenant, Tenants
from mesh.control.barrier import Barrier, Standing
from mesh.control.changes import Outcome
from mesh.control.ops import checked_op_id
from mesh.control.records import KeyRecord
from mesh.errors import Code, MeshError
from mesh.ledger import Ledger
from mesh.policy.bundle import TenantPolicy
from mesh.ports import Clock
from mesh.tls import identity_of_grpc
from mesh.transport.grpc_server import Context, Failed, Handler, service, unary, unary_stream
from mesh.types import MemberId, RequestId, Revision, Role, TenantId
from mesh.v1 import admin_pb2 as pb
from mesh.v1 import router_pb2

ADMIN = pb.DESCRIPTOR.services_by_name["Admin"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
DEADLINE_S = 4.7
"""For any call: an operator is told within 5 s that the control store is away."""
T = TypeVar("T")
_DEFAULT_USAGE_S = 30 * 86_400
_PAGE = 1000
_MAX_TIME_S = 253_402_300_799  # the year 9999: what RFC 3339 can say


class AdminService:
    """The service of one region, for the operator's certificate only."""

    def __init__(
        self,
        *,
        tenants: Tenants,
        shrinks: Shrinks,
        barrier: Barrier,
        control: ControlDesk,
        ledger: Ledger,
        routes: Routes,
        clock: Clock,
    ) -> None:
        self._tenants = tenants
        self._shrinks = shrinks
        self._barrier = barrier
        self._control = control
        self._ledger = ledger
        self._routes = routes
        self._clock = clock

    def handlers(self, failed: Failed) -> list[grpc.GenericRpcHandler]:
        """`Admin` and `grpc.health.v1.Health`."""

        def operator(work: Callable[[Any], Awaitable[Message]], request: type[Message]) -> Handler:
            async def guarded(message: object, context: Context) -> Message:
                _check(context)
                return await self._in_time(work(message))

            return unary(guarded, request.FromString, failed)

        def follower(work: Callable[[Any], AsyncGenerator[Message]], request: type[Message]) -> Handler:
            async def guarded(message: object, context: Context) -> AsyncGenerator[Message]:
                _check(context)
                async with aclosing(work(message)) as answers:
                    async for answer in answers:
                        yield answer

            return unary_stream(guarded, request.FromString, failed)

        calls = {
            "CreateTenant": operator(self._create_tenant, pb.CreateTenantRequest),
            "FindTenant": operator(self._find_tenant, pb.FindTenantRequest),
            "ListTenants": operator(self._list_tenants, pb.ListTenantsRequest),
            "SuspendTenant": follower(self._suspend_tenant, pb.SuspendTenantRequest),
            "ResumeTenant": operator(self._resume_tenant, pb.ResumeTenantRequest),
            "Pin": follower(self._pin, pb.PinRequest),
            "SetAuthority": follower(self._set_authority, pb.SetAuthorityRequest),
            "SetTransfer": follower(self._set_transfer, pb.SetTransferRequest),
            "SetLabel": operator(self._set_label, pb.SetLabelRequest),
            "PrepareMove": operator(self._prepare_move, pb.PrepareMoveRequest),
            "LeaveHome": operator(self._leave_home, pb.LeaveHomeRequest),
            "FinishMove": follower(self._finish_move, pb.FinishMoveRequest),
            "PinStatus": operator(self._pin_status, pb.PinStatusRequest),
            "AttestDead": operator(self._attest_dead, pb.AttestDeadRequest),
            "ControlStatus": operator(self._control.status, pb.ControlStatusRequest),
            "Recover": follower(self._control.recover, pb.RecoverRequest),
            "CreateKey": operator(self._create_key, pb.CreateKeyRequest),
            "ListKeys": operator(self._list_keys, pb.ListKeysRequest),
            "FindKey": operator(self._find_key, pb.FindKeyRequest),
            "RevokeKey": follower(self._revoke_key, pb.RevokeKeyRequest),
            "Usage": operator(self._usage, pb.UsageRequest),
            "Disclosures": operator(self._disclosures, pb.DisclosuresRequest),
            "ExplainRoute": operator(self._explain_route, pb.ExplainRouteRequest),
        }
        return [service(ADMIN, calls), service(_HEALTH, {"Check": _health(failed)})]

    async def _in_time(self, work: Awaitable[T]) -> T:
        try:
            async with self._clock.timeout(DEADLINE_S):
                return await work
        except TimeoutError:
            pass
        raise MeshError(
            Code.POLICY_STORE_UNAVAILABLE,
            hint="It did not answer in time, so the change may have been made: look before you repeat it.",
        )

    async def _create_tenant(self, request: pb.CreateTenantRequest) -> pb.Tenant:
        return _tenant(await self._tenants.create(request.name, list(request.allowed), request.transfer, request.label))

    async def _find_tenant(self, request: pb.FindTenantRequest) -> pb.Tenant:
        return _tenant(await self._tenants.find(request.tenant))

    async def _list_tenants(self, _: pb.ListTenantsRequest) -> pb.ListTenantsResponse:
        return pb.ListTenantsResponse(items=[_tenant(tenant) for tenant in await self._tenants.all()])

    async def _resume_tenant(self, request: pb.ResumeTenantRequest) -> pb.Tenant:
        return _tenant(await self._tenants.resume(request.tenant))

    def _suspend_tenant(self, request: pb.SuspendTenantRequest) -> AsyncGenerator[pb.ShrinkProgress]:
        making = self._tenants.suspend(request.tenant, _op_id(request.patience))
        return self._follow(making, request.patience)

    def _pin(self, request: pb.PinRequest) -> AsyncGenerator[pb.ShrinkProgress]:
        making = self._tenants.pin(
            request.tenant, list(request.allowed), request.drain_ms / 1000, _op_id(request.patience)
        )
        return self._follow(making, request.patience)

    def _set_transfer(self, request: pb.SetTransferRequest) -> AsyncGenerator[pb.ShrinkProgress]:
        making = self._tenants.set_transfer(request.tenant, request.transfer, _op_id(request.patience))
        return self._follow(making, request.patience)

    async def _set_authority(self, request: pb.SetAuthorityRequest) -> AsyncGenerator[pb.ShrinkProgress]:
        making = self._tenants.set_authority(
            request.tenant,
            request.home_ms / 1000 if request.home_ms else None,
            request.foreign_ms / 1000 if request.foreign_ms else None,
            _op_id(request.patience),
        )
        async with aclosing(self._follow(making, request.patience)) as said:
            async for one in said:
                settled = await self._settled(TenantId(one.tenant.tenant), Revision(one.revision)) if one.done else None
                if settled is not None:
                    one.tenant.CopyFrom(_tenant(NamedTenant(settled, one.tenant.name)))
                yield one

    async def _settled(self, tenant: TenantId, revision: Revision) -> TenantPolicy | None:
        """What stands once older times of authority are forgotten, which nobody goes by any more.

        None where the tenant has left meanwhile, or may have: it has taken them along. None, too, where the store is
        away: they stay, and removals wait longer for them than they must. The change holds either way.
        """
        try:
            return (await self._in_time(self._tenants.settle_authority(tenant, revision))).tenant.policy
        except MeshError as error:
            if error.code not in (Code.TENANT_NOT_FOUND, Code.MOVE_UNFINISHED, Code.POLICY_STORE_UNAVAILABLE):
                raise
        return None

    async def _set_label(self, request: pb.SetLabelRequest) -> pb.Tenant:
        return _tenant(await self._tenants.set_label(request.tenant, request.label))

    async def _prepare_move(self, request: pb.PrepareMoveRequest) -> pb.Tenant:
        return _tenant(await self._tenants.prepare_move(request.tenant, request.home, request.name))

    async def _leave_home(self, request: pb.LeaveHomeRequest) -> pb.LeaveHomeResponse:
        outcome = await self._tenants.leave_home(request.tenant, request.new_home, request.op_id or None)
        return pb.LeaveHomeResponse(op_id=outcome.op_id, revision=outcome.revision)

    async def _finish_move(self, request: pb.FinishMoveRequest) -> AsyncGenerator[pb.ShrinkProgress]:
        if request.patience.op_id:
            # A move that is finished already looks for no record under it.
            checked_op_id(request.patience.op_id, self._clock.wall_s())
        outcome, record = await self._in_time(self._tenants.finish_move(request.tenant))
        policy = record.policy

        async def made() -> Outcome:
            return outcome

        async with aclosing(self._follow(made(), request.patience)) as said:
            async for one in said:
                if one.done:
                    # What the old home's record said of authority is in use nowhere any more.
                    policy = await self._settled(policy.tenant, policy.revision) or policy
                one.op_id = request.patience.op_id or one.op_id
                one.tenant.CopyFrom(_tenant(NamedTenant(policy, one.tenant.name)))
                yield one

    def _revoke_key(self, request: pb.RevokeKeyRequest) -> AsyncGenerator[pb.ShrinkProgress]:
        making = self._tenants.revoke_key(request.key_id, _op_id(request.patience))
        return self._follow(making, request.patience)

    async def _follow(self, making: Awaitable[Outcome], patience: pb.Patience) -> AsyncGenerator[pb.ShrinkProgress]:
        waiting = Patience(
            strict=patience.strict,
            timeout_s=patience.timeout_ms / 1000 if patience.timeout_ms else None,
            receipt=patience.receipt,
        )
        name: str | None = None
        async with aclosing(self._shrinks.follow(self._in_time(making), waiting)) as said:
            async for progress in said:
                if name is None:
                    name = await self._tenants.name_of(progress.outcome.tenant.policy.tenant)
                yield _progress(progress, name)

    async def _pin_status(self, _: pb.PinStatusRequest) -> pb.PinStatusResponse:
        return pb.PinStatusResponse(
            members=[
                pb.Member(
                    member=member.member,
                    region=member.region,
                    gateway=member.gateway,
                    grant_age_ms=round(member.grant_age_s * 1000),
                    shards=[
                        pb.ShardNumber(home=shard.home, shard=shard.index, applied=applied, head=head)
                        for shard, (applied, head) in sorted(member.shards.items())
                    ],
                    draining=[
                        pb.DrainingTenant(tenant=tenant, revision=drain.revision, left_ms=round(drain.left_s * 1000))
                        for tenant, drain in sorted(member.draining.items())
                    ],
                )
                for member in await self._barrier.status()
            ],
            open=[
                pb.OpenShrink(op_id=one.op_id, tenant=one.tenant, revision=one.revision, waited_ms=one.waited_ms)
                for one in self._shrinks.open()
            ],
        )

    async def _attest_dead(self, request: pb.AttestDeadRequest) -> pb.AttestDeadResponse:
        gateway = await self._barrier.attest(MemberId(request.member))
        return pb.AttestDeadResponse(member=request.member, gateway=gateway)

    async def _create_key(self, request: pb.CreateKeyRequest) -> pb.Key:
        made = await self._tenants.create_key(request.tenant)
        answer = _key(made.record)
        answer.key = made.text
        return answer

    async def _list_keys(self, request: pb.ListKeysRequest) -> pb.ListKeysResponse:
        return pb.ListKeysResponse(items=[_key(record) for record in await self._tenants.keys(request.tenant)])

    async def _find_key(self, request: pb.FindKeyRequest) -> pb.Key:
        return _key(await self._tenants.key(request.key_id))

    async def _usage(self, request: pb.UsageRequest) -> pb.UsageResponse:
        from_s, to_s = self._period(request)
        sums = await self._ledger.usage(await self._tenants.id_of(request.tenant), from_s, to_s)
        return pb.UsageResponse(
            items=[
                pb.UsageItem(
                    region=one.region,
                    model=one.model,
                    requests=one.requests,
                    refused=one.refused,
                    prompt_tokens=one.prompt_tokens,
                    completion_tokens=one.completion_tokens,
                )
                for one in sums
            ]
        )

    async def _disclosures(self, request: pb.DisclosuresRequest) -> pb.DisclosuresResponse:
        from_s, to_s = self._period(request)
        after = (request.after.at_ms, RequestId(request.after.request_id)) if request.HasField("after") else None
        found = await self._ledger.disclosures(
            await self._tenants.id_of(request.tenant), from_s, to_s, after=after, limit=_PAGE
        )
        return pb.DisclosuresResponse(
            items=[
                pb.Disclosure(
                    at_ms=one.at_ms,
                    region=one.region,
                    jurisdiction=one.jurisdiction,
                    key_id=one.key_id,
                    door=one.door,
                    request_id=one.request_id,
                )
                for one in found
            ],
            more=len(found) == _PAGE,
        )

    def _period(self, request: pb.UsageRequest | pb.DisclosuresRequest) -> tuple[int, int]:
        """The time that is asked for; the last 30 days where none is."""
        from_s, to_s = request.from_s, request.to_s
        if not from_s and not to_s:
            to_s = int(self._clock.wall_s()) + 1
            from_s = to_s - _DEFAULT_USAGE_S
        for param, value in (("from_s", from_s), ("to_s", to_s)):
            if not 0 <= value <= _MAX_TIME_S:
                raise MeshError(Code.INVALID_PARAMETER, param=param, hint="Seconds since 1970, UTC.")
        if from_s >= to_s:
            raise MeshError(Code.INVALID_PARAMETER, param="to_s", hint="The time must end after it begins.")
        return from_s, to_s

    async def _explain_route(self, request: pb.ExplainRouteRequest) -> router_pb2.ExplainResponse:
        return await self._routes.explain(await self._tenants.id_of(request.tenant), request.model)


def _health(failed: Failed) -> Handler:
    """This process answers. Whether the control store does is told by the calls that need it."""
    servicer = health.HealthServicer()

    async def check(message: object, context: Context) -> health_pb2.HealthCheckResponse:
        _check(context)
        await servicer.set(ADMIN, health_pb2.HealthCheckResponse.SERVING)
        return await servicer.Check(message, context)

    return unary(check, health_pb2.HealthCheckRequest.FromString, failed)


def _check(context: Context) -> None:
    identity = identity_of_grpc(context.auth_context())
    if identity is None or identity.role is not Role.OPERATOR:
        raise MeshError(Code.INVALID_API_KEY, hint="This port is for the operator's certificate.")


def _tenant(tenant: NamedTenant) -> pb.Tenant:
    policy = tenant.policy
    return pb.Tenant(
        tenant=policy.tenant,
        name=tenant.name,
        home=policy.home,
        allowed=sorted(policy.allowed),
        transfer=policy.transfer,
        state=policy.state,
        revision=policy.revision,
        label=policy.label,
    )


def _key(record: KeyRecord) -> pb.Key:
    return pb.Key(
        tenant=record.key.tenant,
        key_id=record.key.key_id,
        created_at=_rfc3339(record.created_s),
        revoked_at="" if record.revoked_s is None else _rfc3339(record.revoked_s),
    )


def _op_id(patience: pb.Patience) -> str | None:
    return patience.op_id or None


_STANDINGS = {
    Standing.WAITING: pb.MEMBER_STATE_WAITING,
    Standing.DRAINING: pb.MEMBER_STATE_DRAINING,
    Standing.ACKNOWLEDGED: pb.MEMBER_STATE_ACKNOWLEDGED,
    Standing.LAPSED: pb.MEMBER_STATE_LAPSED,
    Standing.TIMED_OUT: pb.MEMBER_STATE_TIMED_OUT,
}


def _progress(progress: Progress, name: str) -> pb.ShrinkProgress:
    outcome = progress.outcome
    return pb.ShrinkProgress(
        op_id=outcome.op_id,
        revision=outcome.revision,
        tenant=_tenant(NamedTenant(outcome.tenant.policy, name)),
        key=None if outcome.key is None else _key(outcome.key),
        members=[
            pb.MemberProgress(
                member=member.member,
                region=member.region,
                gateway=member.gateway,
                state=_STANDINGS[member.standing],
                left_ms=round(member.left_s * 1000),
            )
            for member in progress.members
        ],
        waited_ms=progress.waited_ms,
        recovery_left_ms=round(progress.recovery_left_s * 1000),
        done=progress.done,
        receipt=progress.receipt,
    )


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(min(max(seconds, 0), _MAX_TIME_S), UTC).isoformat().replace("+00:00", "Z")
