"""`mesh tenant`, `mesh key`, `mesh pin`, `mesh usage` and `mesh route explain`: what an operator asks of admins."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from google.protobuf.message import Message

from mesh.cli.context import here_of
from mesh.cli.disclosures import DISCLOSURE_COLUMNS, disclosures
from mesh.cli.options import (
    Allow,
    Json,
    Resume,
    Strict,
    TenantArgument,
    Timeout,
    jurisdictions,
    moment,
    rfc3339,
    seconds_of,
    spans_of,
)
from mesh.cli.output import Column, UsageFault, people, print_json, show_items, show_object, table, words
from mesh.cli.running import Running, ask_mesh, find_tenant, home_of_key, is_tenant_id, unreachable
from mesh.cli.shrinks import change, waited
from mesh.errors import Code, MeshError
from mesh.types import RegionId, Transfer
from mesh.v1.admin_pb2 import (
    CreateKeyRequest,
    CreateTenantRequest,
    ExplainRouteRequest,
    Key,
    ListKeysRequest,
    ListKeysResponse,
    ListTenantsRequest,
    ListTenantsResponse,
    Patience,
    ResumeTenantRequest,
    RevokeKeyRequest,
    SetAuthorityRequest,
    SetLabelRequest,
    SetTransferRequest,
    SuspendTenantRequest,
    Tenant,
    UsageRequest,
    UsageResponse,
)
from mesh.v1.router_pb2 import ExplainResponse, Outcome, Verdict

DEFAULT_PERIOD = timedelta(days=30)
SLOW_REVOCATION_S = 60.0
"""From here on a span is worth a warning when it is set."""
tenants = typer.Typer(no_args_is_help=True, help="Make, show and suspend tenants.")
keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke a tenant's keys.")
routes = typer.Typer(no_args_is_help=True, help="Ask where calls go.")

_TENANT_COLUMNS = [Column(name, name) for name in ("name", "tenant", "home", "allowed", "transfer", "state")]
_USAGE_COLUMNS = [
    Column("region", "region"),
    Column("model", "model"),
    Column("requests", "requests"),
    Column("refused", "refused"),
    Column("prompt tokens", "prompt_tokens"),
    Column("completion tokens", "completion_tokens"),
]


@tenants.command("create")
def create_tenant(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The tenant's name, kept in its home region only.", show_default=False)],
    allow: Allow,
    home: Annotated[
        str | None,
        typer.Option(metavar="REGION", help="Its home. By default the first region that runs in the first of --allow."),
    ] = None,
    transfer: Annotated[
        Transfer, typer.Option(help="Whether its calls may be forwarded to other jurisdictions of its pin.")
    ] = Transfer.NEVER,
    label: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What its hostnames begin with instead of its id. It is public: anyone can see it in DNS and TLS.",
            show_default=False,
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Make a tenant, pinned to the jurisdictions that it allows."""
    allowed = jurisdictions(allow)

    async def ask(mesh: Running) -> Tenant:
        request = CreateTenantRequest(name=name, allowed=allowed, transfer=transfer.value, label=label)
        return await mesh.ask(_home(mesh, home, allowed[0]), "CreateTenant", request, Tenant)

    show_object(tenant_object(ask_mesh(here_of(context), ask)), as_json=as_json)


@tenants.command("show")
def show_tenant(context: typer.Context, tenant: TenantArgument, as_json: Json = False) -> None:
    """Show a tenant: its home, its pin, its state."""
    show_object(tenant_object(ask_mesh(here_of(context), lambda mesh: find_tenant(mesh, tenant))), as_json=as_json)


@tenants.command("list")
def list_tenants(context: typer.Context, as_json: Json = False) -> None:
    """List the tenants of every region that answers."""
    answers = ask_mesh(
        here_of(context), lambda mesh: mesh.ask_all("ListTenants", ListTenantsRequest(), ListTenantsResponse)
    )
    for error in answers.refused.values():
        raise error
    items = [tenant_object(tenant) for answer in answers.by_region.values() for tenant in answer.items]
    show_items(items, _TENANT_COLUMNS, as_json=as_json, more={"unreachable": list(answers.unreachable)})


@tenants.command("suspend")
def suspend_tenant(
    context: typer.Context,
    tenant: TenantArgument,
    strict: Strict = False,
    timeout: Timeout = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Stop serving a tenant, until it is resumed: what runs is cut, and it is refused everywhere once this returns."""

    async def ask(mesh: Running, patience: Patience) -> tuple[RegionId, str, Message]:
        found = await find_tenant(mesh, tenant)
        return (
            RegionId(found.home),
            "SuspendTenant",
            SuspendTenantRequest(tenant=found.tenant, patience=patience),
        )

    done = change(
        here_of(context),
        ask,
        resume="mesh tenant suspend TENANT",
        op_id=resume,
        strict=strict,
        timeout_s=seconds_of(timeout, "timeout"),
    )
    show_object({**tenant_object(done.tenant), **waited(done)}, as_json=as_json)


@tenants.command("set")
def set_tenant(
    context: typer.Context,
    tenant: TenantArgument,
    authority: Annotated[
        str | None,
        typer.Option(
            metavar="home=15m,foreign=6s",
            help="For how long a gateway that is cut off may go on serving the tenant, in its home's jurisdiction and "
            "elsewhere: exactly as long a removal, a suspension or a revoked key may have to wait.",
        ),
    ] = None,
    transfer: Annotated[
        Transfer | None, typer.Option(help="Whether its calls may be forwarded to other jurisdictions of its pin.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What its hostnames begin with instead of its id, for anyone to see; '' for its id alone.",
            show_default=False,
        ),
    ] = None,
    strict: Strict = False,
    timeout: Timeout = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Set one of a tenant's terms."""
    if sum(one is not None for one in (authority, transfer, label)) != 1:
        raise UsageFault("Say what to set: --authority, --transfer or --label.", param="authority")
    if label is not None:
        show_object(tenant_object(ask_mesh(here_of(context), _labelling(tenant, label))), as_json=as_json)
        return
    home_s, foreign_s = (None, None) if authority is None else spans_of(authority)

    async def ask(mesh: Running, patience: Patience) -> tuple[RegionId, str, Message]:
        found = await find_tenant(mesh, tenant)
        if transfer is not None:
            terms = SetTransferRequest(tenant=found.tenant, transfer=transfer.value, patience=patience)
            return RegionId(found.home), "SetTransfer", terms
        request = SetAuthorityRequest(
            tenant=found.tenant,
            # 0 leaves a value as it is; somebody who writes it is told that it is too short.
            home_ms=0 if home_s is None else max(1, int(home_s * 1000)),
            foreign_ms=0 if foreign_s is None else max(1, int(foreign_s * 1000)),
            patience=patience,
        )
        return RegionId(found.home), "SetAuthority", request

    done = change(
        here_of(context),
        ask,
        resume=f"mesh tenant set TENANT {f'--transfer {transfer}' if transfer else f'--authority {authority}'}",
        op_id=resume,
        strict=strict,
        timeout_s=seconds_of(timeout, "timeout"),
    )
    show_object({**tenant_object(done.tenant), **waited(done)}, as_json=as_json)
    longest_s = max(home_s or 0, foreign_s or 0)
    if longest_s > SLOW_REVOCATION_S:
        words().print(
            f"A revoked key or a suspension may now have to wait up to {longest_s:g} s for a gateway that is cut off.",
            style="yellow",
        )


@tenants.command("resume")
def resume_tenant(context: typer.Context, tenant: TenantArgument, as_json: Json = False) -> None:
    """Serve a suspended tenant again."""

    async def ask(mesh: Running) -> Tenant:
        found = await find_tenant(mesh, tenant)
        request = ResumeTenantRequest(tenant=found.tenant)
        return await mesh.ask(RegionId(found.home), "ResumeTenant", request, Tenant)

    show_object(tenant_object(ask_mesh(here_of(context), ask)), as_json=as_json)


@keys.command("create")
def create_key(context: typer.Context, tenant: TenantArgument, as_json: Json = False) -> None:
    """Make a key. It is shown now and never again."""

    async def ask(mesh: Running) -> Key:
        found = await find_tenant(mesh, tenant)
        return await mesh.ask(RegionId(found.home), "CreateKey", CreateKeyRequest(tenant=found.tenant), Key)

    key = ask_mesh(here_of(context), ask)
    answer = {"tenant": key.tenant, "key_id": key.key_id, "key": key.key, "created_at": key.created_at}
    show_object(answer, as_json=as_json)
    if not as_json:
        words().print("Keep the key now: it is stored nowhere.", style="yellow")


@keys.command("list")
def list_keys(context: typer.Context, tenant: TenantArgument, as_json: Json = False) -> None:
    """List a tenant's keys, without their secrets."""

    async def ask(mesh: Running) -> ListKeysResponse:
        found = await find_tenant(mesh, tenant)
        return await mesh.ask(RegionId(found.home), "ListKeys", ListKeysRequest(tenant=found.tenant), ListKeysResponse)

    items = [
        {
            "tenant": key.tenant,
            "key_id": key.key_id,
            "created_at": key.created_at,
            "revoked_at": key.revoked_at or None,
        }
        for key in ask_mesh(here_of(context), ask).items
    ]
    columns = [Column("key id", "key_id"), Column("created", "created_at"), Column("revoked", "revoked_at")]
    show_items(items, columns, as_json=as_json)


@keys.command("revoke")
def revoke_key(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="As 'mesh key list' shows it.", show_default=False)],
    strict: Strict = False,
    timeout: Timeout = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """End a key for good: what runs with it is cut, and it is refused everywhere once this returns."""

    async def ask(mesh: Running, patience: Patience) -> tuple[RegionId, str, Message]:
        return await home_of_key(mesh, key_id), "RevokeKey", RevokeKeyRequest(key_id=key_id, patience=patience)

    done = change(
        here_of(context),
        ask,
        resume="mesh key revoke KEY_ID",
        op_id=resume,
        strict=strict,
        timeout_s=seconds_of(timeout, "timeout"),
    )
    show_object({"key_id": done.key.key_id, "revoked_at": done.key.revoked_at, **waited(done)}, as_json=as_json)


def usage(
    context: typer.Context,
    tenant: TenantArgument,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="A date or RFC 3339. By default 30 days before --to.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Not included. By default now.")] = None,
    only_disclosures: Annotated[
        bool,
        typer.Option(
            "--disclosures",
            help="Instead, the calls that a region outside its pin refused: what they sent was there for a moment.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a tenant used: requests and tokens, by region and model."""
    # The second that is running is not over: it is included, so that a call just made is seen.
    until = moment(to, "to") if to else datetime.fromtimestamp(int(time.time()) + 1, UTC)
    since = moment(from_, "from") if from_ else max(until - DEFAULT_PERIOD, datetime.fromtimestamp(0, UTC))
    if since >= until:
        raise UsageFault("--from must be before --to.", param="from")

    async def ask(mesh: Running) -> dict[str, object]:
        id_ = tenant if is_tenant_id(tenant) else (await find_tenant(mesh, tenant)).tenant
        period = {"tenant": id_, "from": rfc3339(since), "to": rfc3339(until)}
        from_s, to_s = int(since.timestamp()), int(until.timestamp())
        if only_disclosures:
            shown, away = await disclosures(mesh, id_, from_s, to_s)
            return {**period, "unreachable": away, "items": shown}
        request = UsageRequest(tenant=id_, from_s=from_s, to_s=to_s)
        answers = await mesh.ask_all("Usage", request, UsageResponse)
        for error in answers.refused.values():
            raise error
        items = [
            {
                "region": item.region,
                "model": item.model,
                "requests": item.requests,
                "refused": item.refused,
                "prompt_tokens": item.prompt_tokens,
                "completion_tokens": item.completion_tokens,
            }
            for answer in answers.by_region.values()
            for item in answer.items
        ]
        return {**period, "unreachable": list(answers.unreachable), "items": items}

    answer = ask_mesh(here_of(context), ask)
    if as_json:
        print_json(answer)
        return
    items = answer["items"]
    assert isinstance(items, list)  # noqa: S101 - built above
    columns = DISCLOSURE_COLUMNS if only_disclosures else _USAGE_COLUMNS
    show_items(items, columns, as_json=False, more=answer)


@routes.command("explain")
def explain_route(
    context: typer.Context,
    tenant: Annotated[str, typer.Option(help="A tenant's name or id.", show_default=False)],
    model: Annotated[str, typer.Option(help="A model's id.", show_default=False)],
    at: Annotated[
        str | None, typer.Option(metavar="REGION", help="Where the call comes in. By default the tenant's home.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Explain where a call of a tenant would be served, and why not elsewhere."""

    async def ask(mesh: Running) -> ExplainResponse:
        entry = mesh.site(at).id if at else None
        found = await find_tenant(mesh, tenant)
        request = ExplainRouteRequest(tenant=found.tenant, model=model)
        return await mesh.ask(entry or RegionId(found.home), "ExplainRoute", request, ExplainResponse)

    said = ask_mesh(here_of(context), ask)
    reasons = [
        {
            "region": reason.region,
            "verdict": Verdict.Name(reason.verdict).removeprefix("VERDICT_").lower(),
            "code": reason.code,
            "text": reason.text,
        }
        for reason in said.reasons
    ]
    answer = {
        "tenant": said.tenant,
        "model": said.model,
        "at": said.at,
        "outcome": Outcome.Name(said.outcome).removeprefix("OUTCOME_").lower(),
        "region": said.region or None,
        "code": said.code or None,
    }
    if as_json:
        print_json({**answer, "reasons": reasons})
        return
    show_object(answer, as_json=False)
    people().print(table(reasons, [Column(name, name) for name in ("region", "verdict", "code", "text")]))


def _labelling(tenant: str, label: str) -> Callable[[Running], Awaitable[Tenant]]:
    async def ask(mesh: Running) -> Tenant:
        found = await find_tenant(mesh, tenant)
        request = SetLabelRequest(tenant=found.tenant, label=label)
        return await mesh.ask(RegionId(found.home), "SetLabel", request, Tenant)

    return ask


def _home(mesh: Running, named: str | None, jurisdiction: str) -> RegionId:
    if named is not None:
        return mesh.site(named).id
    sites = [site for site in mesh.sites.values() if site.jurisdiction == jurisdiction]
    for site in sites:
        if site.state != "down":
            return site.id
    if sites:
        raise unreachable([site.id for site in sites])
    raise MeshError(
        Code.UNKNOWN_REGION,
        param="home",
        hint=f"None runs in {jurisdiction}; name one of another allowed jurisdiction with --home: "
        f"{', '.join(mesh.sites)}.",
    )


def tenant_object(tenant: Tenant) -> dict[str, object]:
    """A tenant as every command answers it."""
    return {
        "tenant": tenant.tenant,
        "name": tenant.name,
        "home": tenant.home,
        "allowed": list(tenant.allowed),
        "transfer": tenant.transfer,
        "state": tenant.state,
        "revision": tenant.revision,
        "label": tenant.label or None,
    }
