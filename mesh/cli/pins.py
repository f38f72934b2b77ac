"""`mesh pin`: where a tenant's prompts may be, who has authority, what was certified. `mesh gateway attest-dead`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from typer.core import TyperGroup

from mesh.cli.context import here_of
from mesh.cli.options import Allow, Json, Resume, Strict, TenantArgument, Timeout, jurisdictions, seconds_of
from mesh.cli.output import Column, UsageFault, people, print_json, show_object, table, warn_unreachable, words
from mesh.cli.running import Answers, Running, ask_mesh, find_tenant, unreachable
from mesh.cli.shrinks import change, waited
from mesh.control.receipts import MOST_BYTES, verify_receipt
from mesh.control.records import HomeTrust
from mesh.errors import Code, MeshError
from mesh.settings import load_catalogue
from mesh.types import RegionId
from mesh.v1.admin_pb2 import (
    AttestDeadRequest,
    AttestDeadResponse,
    Member,
    Patience,
    PinRequest,
    PinStatusRequest,
    PinStatusResponse,
)


class _TenantOrCommand(TyperGroup):
    """`mesh pin TENANT --allow …` beside `mesh pin status`: what is no command's name is a tenant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's, which Typer carries within it
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["set", *args]
        return super().parse_args(ctx, args)


pins = typer.Typer(
    cls=_TenantOrCommand,
    no_args_is_help=True,
    help="Pin a tenant: mesh pin TENANT --allow VN,SG. Once it returns, the pin holds in every region.",
)
gateways = typer.Typer(no_args_is_help=True, help="Say what only an operator can know of a gateway.")


@pins.command("set", hidden=True)
def pin(
    context: typer.Context,
    tenant: TenantArgument,
    allow: Allow,
    drain: Annotated[
        str | None,
        typer.Option(
            metavar="5s", help="How long what runs in a removed jurisdiction may go on. By default it is cut at once."
        ),
    ] = None,
    strict: Strict = False,
    timeout: Timeout = None,
    receipt: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what happened, signed by the tenant's home.", show_default=False),
    ] = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Set the jurisdictions in which a tenant's prompts may be, and wait until that holds everywhere."""
    allowed, drain_s = jurisdictions(allow), seconds_of(drain, "drain") or 0.0
    if receipt is not None:
        _check_writable(receipt)

    async def ask(mesh: Running, patience: Patience) -> tuple[RegionId, str, Message]:
        found = await find_tenant(mesh, tenant)
        request = PinRequest(tenant=found.tenant, allowed=allowed, drain_ms=int(drain_s * 1000), patience=patience)
        return RegionId(found.home), "Pin", request

    done = change(
        here_of(context),
        ask,
        resume=f"mesh pin TENANT --allow {','.join(allowed)}",
        op_id=resume,
        strict=strict,
        timeout_s=seconds_of(timeout, "timeout"),
        receipt=receipt is not None,
    )
    pinned = done.tenant
    answer = {"tenant": pinned.tenant, "revision": pinned.revision, "allowed": list(pinned.allowed), **waited(done)}
    if receipt is not None:
        _write(receipt, done.receipt)
    show_object(answer, as_json=as_json)


@pins.command("status")
def pin_status(context: typer.Context, as_json: Json = False) -> None:
    """Show every gateway process that was granted authority, and the changes that are being waited for."""

    async def ask(mesh: Running) -> Answers[PinStatusResponse]:
        return await mesh.ask_all("PinStatus", PinStatusRequest(), PinStatusResponse)

    answers = ask_mesh(here_of(context), ask)
    for error in answers.refused.values():
        raise error
    if not answers.by_region:
        raise unreachable(answers.unreachable)
    # Every admin sees every member; the one that has watched a grant for longest knows its age best.
    members: dict[str, Member] = {}
    for answer in answers.by_region.values():
        for member in answer.members:
            known = members.get(member.member)
            if known is None or member.grant_age_ms > known.grant_age_ms:
                members[member.member] = member
    items = [_member(members[key]) for key in sorted(members, key=lambda key: (members[key].region, key))]
    waiting = [
        {"op_id": one.op_id, "tenant": one.tenant, "revision": one.revision, "waited_ms": one.waited_ms}
        for answer in answers.by_region.values()
        for one in answer.open
    ]
    more = {"open": waiting, "unreachable": list(answers.unreachable)}
    if as_json:
        print_json({"items": items, **more})
        return
    rows = [
        {
            **item,
            "behind": sum(shard["applied"] < shard["head"] for shard in item["shards"]),
            "draining": ", ".join(one["tenant"] for one in item["draining"]) or "-",
        }
        for item in items
    ]
    columns = [Column(name.replace("_", " "), name) for name in ("region", "gateway", "member", "grant_age_ms")]
    people().print(table(rows, [*columns, Column("shards behind", "behind"), Column("draining", "draining")]))
    for one in waiting:
        words().print(f"Being waited for: revision {one['revision']} of {one['tenant']}, {one['waited_ms']} ms so far.")
    warn_unreachable(more["unreachable"])


@pins.command("verify")
def verify(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As 'mesh pin --receipt FILE' wrote it.")],
    regions: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The region files with the homes' public keys. By default those of the mesh of MESH_HOME.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a receipt offline, with the public key in its home's region file."""
    catalogue = here_of(context).catalogue() if regions is None else load_catalogue(regions)
    try:
        with file.open("rb") as opened:
            text = opened.read(MOST_BYTES + 1).decode("utf-8")
    except UnicodeDecodeError:
        raise MeshError(Code.INVALID_RECEIPT) from None
    except OSError as error:
        raise UsageFault(f"The file cannot be read: {error.strerror}.", param="file") from None
    homes = {
        region.id: HomeTrust(jurisdiction=region.jurisdiction, keys=region.policy_keys)
        for region in catalogue.regions.values()
    }
    statement = verify_receipt(text, homes)
    show_object({"valid": True, **statement}, as_json=as_json)


@gateways.command("attest-dead")
def attest_dead(
    context: typer.Context,
    member: Annotated[str, typer.Argument(metavar="UUID", help="As 'mesh pin status' shows it.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask again.")] = False,
    as_json: Json = False,
) -> None:
    """Say that a gateway process is dead and that nothing it sent runs any more: then nobody waits for it."""
    if not yes and not as_json:
        typer.confirm(
            "If it lives, or a replica still works for it, a pin can return while what it removed is served. Sure?",
            abort=True,
            err=True,
        )

    async def ask(mesh: Running) -> AttestDeadResponse:
        answers = await mesh.ask_all("PinStatus", PinStatusRequest(), PinStatusResponse)
        for answer in answers.by_region.values():
            for known in answer.members:
                if known.member == member:
                    request = AttestDeadRequest(member=member)
                    return await mesh.ask(RegionId(known.region), "AttestDead", request, AttestDeadResponse)
        if answers.unreachable:
            raise unreachable(answers.unreachable)
        raise MeshError(Code.MEMBER_NOT_FOUND)

    said = ask_mesh(here_of(context), ask)
    show_object({"member": said.member, "gateway": said.gateway}, as_json=as_json)


def _member(member: Member) -> dict[str, Any]:
    return {
        "region": member.region,
        "gateway": member.gateway,
        "member": member.member,
        "grant_age_ms": member.grant_age_ms,
        "shards": [
            {"home": shard.home, "shard": shard.shard, "applied": shard.applied, "head": shard.head}
            for shard in member.shards
        ],
        "draining": [
            {"tenant": one.tenant, "revision": one.revision, "left_ms": one.left_ms} for one in member.draining
        ],
    }


def _check_writable(path: Path) -> None:
    """Before anything is changed: a receipt that cannot be written should not be learnt of afterwards."""
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise UsageFault("The receipt cannot be written there.", param="receipt")


def _write(path: Path, receipt: str) -> None:
    try:
        path.write_text(receipt + "\n", "utf-8")
    except OSError as error:
        words().print(f"The receipt could not be written ({error.strerror}); it follows.", style="red")
        words().print(json.dumps(json.loads(receipt), ensure_ascii=False), soft_wrap=True, markup=False)
