"""`mesh tenant move`: brings a tenant from its home to another one, and waits until nobody acts on the old one's word.

The name of a tenant is known in its home only. The operator, who may ask both, carries it from the one to the other.
"""

from __future__ import annotations

from typing import Annotated

import typer
from google.protobuf.message import Message

from mesh.cli.context import here_of
from mesh.cli.options import Json, Resume, Strict, TenantArgument, Timeout, seconds_of
from mesh.cli.output import show_object, words
from mesh.cli.running import Running, find_tenant
from mesh.cli.shrinks import change, waited
from mesh.cli.tenants import tenant_object
from mesh.errors import Code, MeshError
from mesh.types import RegionId
from mesh.v1.admin_pb2 import (
    FinishMoveRequest,
    LeaveHomeRequest,
    LeaveHomeResponse,
    Patience,
    PrepareMoveRequest,
    Tenant,
)

_TRIES = 3
"""A tenant that was changed after the new home had made ready is prepared again."""


def move_tenant(
    context: typer.Context,
    tenant: TenantArgument,
    home: Annotated[
        str, typer.Option(metavar="REGION", help="Its new home, in a jurisdiction of its pin.", show_default=False)
    ],
    strict: Strict = False,
    timeout: Timeout = None,
    resume: Resume = None,
    as_json: Json = False,
) -> None:
    """Move a tenant's home to another region. Its id, its keys and its pin stay, and it is served meanwhile."""
    command = f"mesh tenant move TENANT --home {home}"
    left: list[str] = []

    async def ask(mesh: Running, patience: Patience) -> tuple[RegionId, str, Message]:
        new = mesh.site(home).id
        found = await find_tenant(mesh, tenant)
        if found.home != new:
            await _leave(mesh, found, new, patience.op_id, command)
            left.append(found.home)
        return new, "FinishMove", FinishMoveRequest(tenant=found.tenant, patience=patience)

    try:
        done = change(
            here_of(context),
            ask,
            resume=command,
            op_id=resume,
            strict=strict,
            timeout_s=seconds_of(timeout, "timeout"),
        )
    except MeshError as error:
        if left and error.code in (Code.REGION_UNREACHABLE, Code.POLICY_STORE_UNAVAILABLE):
            words().print(
                f"The tenant has left {left[0]}: its home is {home} now, and gateways go by that. That nobody acts on "
                "what was is not promised yet. To finish it:",
                style="yellow",
            )
            words().print(f"  {command}", soft_wrap=True)
        raise
    show_object({**tenant_object(done.tenant), **waited(done)}, as_json=as_json)


async def _leave(mesh: Running, tenant: Tenant, new: RegionId, op_id: str, command: str) -> None:
    """Has the new home make ready, and the old one say that the tenant has left."""
    old = RegionId(tenant.home)
    prepare = PrepareMoveRequest(tenant=tenant.tenant, home=old, name=tenant.name)
    leave = LeaveHomeRequest(tenant=tenant.tenant, new_home=new, op_id=op_id)
    for attempt in range(1, _TRIES + 1):
        await mesh.ask(new, "PrepareMove", prepare, Tenant)
        try:
            await mesh.ask(old, "LeaveHome", leave, LeaveHomeResponse)
        except MeshError as error:
            if error.code is Code.MOVE_UNFINISHED and attempt < _TRIES:
                continue
            if error.code in (Code.REGION_UNREACHABLE, Code.POLICY_STORE_UNAVAILABLE):
                words().print(
                    f"{new} is ready. Whether {old} has said that the tenant has left is not known; it is served "
                    "either way. To go on:",
                    style="yellow",
                )
                words().print(f"  {command} --resume {op_id}", soft_wrap=True)
            raise
        else:
            return
