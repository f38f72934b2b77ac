"""`mesh control recover`: after the control store was restored from a backup, or lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import typer
from rich.markup import escape

from mesh.cli.context import Here, Status, here_of
from mesh.cli.options import Json
from mesh.cli.output import Column, people, print_json, table, warn_unreachable, words
from mesh.cli.running import Running, running, unreachable
from mesh.control.records import FIRST_EPOCH
from mesh.errors import Code, MeshError
from mesh.types import RegionId
from mesh.v1.admin_pb2 import ControlStatusRequest, ControlStatusResponse, RecoverProgress, RecoverRequest

control = typer.Typer(no_args_is_help=True, help="Repair the control store's contents.")
AGAIN_TRIES = 60
"""How often admins that start anew are asked whether they are there, a second apart."""
_AGAIN_S = 1.0


@dataclass(slots=True)
class _Found:
    """What came of it, by region."""

    epoch: int
    raised: bool
    by_region: dict[RegionId, RecoverProgress] = field(default_factory=dict)
    unreachable: list[RegionId] = field(default_factory=list)
    refused: list[MeshError] = field(default_factory=list)


@control.callback()
def root() -> None:
    """Repair the control store's contents."""


@control.command("recover")
def recover(context: typer.Context, as_json: Json = False) -> None:
    """Publish policy again after etcd was restored or lost: in a new control epoch, from the homes' ledgers.

    Where it went back in time, gateways and admins first start anew with the next epoch. May be repeated: what is
    published already is left alone.
    """
    here = here_of(context)
    found = asyncio.run(_recover(here, here.supervisor.status(here.home)))
    for error in found.refused:
        raise error
    items = [
        {
            "region": region,
            "tenants": said.tenants,
            "published": said.published,
            "narrowed": list(said.narrowed),
            "keys_left_out": list(said.keys_left_out),
            "unknown": list(said.unknown),
        }
        for region, said in found.by_region.items()
    ]
    if as_json:
        more = {"unreachable": list(found.unreachable)}
        print_json({"epoch": found.epoch, "raised": found.raised, "items": items, **more})
    else:
        names = ("region", "tenants", "published", "narrowed", "keys_left_out", "unknown")
        people().print(table(items, [Column(name.replace("_", " "), name) for name in names]))
        _explain(found)
    if found.unreachable:
        raise typer.Exit(1)


async def _recover(here: Here, status: Status) -> _Found:
    sites = here.supervisor.sites(here.home).regions
    async with running(here, sites) as mesh:
        answers = await mesh.ask_all("ControlStatus", ControlStatusRequest(), ControlStatusResponse)
    for error in answers.refused.values():
        raise error
    if not answers.by_region:
        raise unreachable(answers.unreachable)
    said = status.get("control")
    back = any(one.went_back for one in answers.by_region.values())
    back = back or (isinstance(said, dict) and bool(said.get("went_back")))
    epochs = {region: one.epoch for region, one in answers.by_region.items()}
    epoch = await asyncio.to_thread(
        here.supervisor.recovery_epoch, here.home, epochs=epochs, went_back=back, progress=_say
    )
    found = _Found(epoch, raised=epoch > max(epochs.values()))
    async with running(here, sites) as mesh, asyncio.TaskGroup() as tasks:
        for region in mesh.sites:
            tasks.create_task(_publish(mesh, region, found), name=f"recover-{region}")
    return found


async def _publish(mesh: Running, region: RegionId, found: _Found) -> None:
    """One home's part. An admin that has just been started anew is waited for."""
    tries = AGAIN_TRIES if found.raised else 0
    try:
        await _until_there(mesh, region, found.epoch, tries)
        request = RecoverRequest(epoch=found.epoch)
        async for said in mesh.follow(region, "Recover", request, RecoverProgress):
            found.by_region[region] = said
            if said.done:
                _say(f"{region}: {said.published} of {said.tenants} tenants published")
    except MeshError as error:
        found.by_region.pop(region, None)
        if error.code is Code.REGION_UNREACHABLE:
            found.unreachable.append(region)
        else:
            found.refused.append(error)


async def _until_there(mesh: Running, region: RegionId, epoch: int, tries: int) -> None:
    for left in range(tries, -1, -1):
        try:
            said = await mesh.ask(region, "ControlStatus", ControlStatusRequest(), ControlStatusResponse)
        except MeshError as error:
            if error.code is not Code.REGION_UNREACHABLE or not left:
                raise
        else:
            if said.epoch == epoch:
                return
        await asyncio.sleep(_AGAIN_S)


def _explain(found: _Found) -> None:
    """What people must know of what was not published as it was."""
    console = words()
    if found.epoch == FIRST_EPOCH:
        # It is never published anew, and nobody waits for authority of an older one.
        console.print("Control epoch 1. The control store did not go back in time: there is nothing to publish.")
    else:
        console.print(
            f"Control epoch {found.epoch}. Until all older authority has run out, removals take their full time."
        )
    told = found.by_region.values()
    if any(said.narrowed or said.keys_left_out for said in told):
        console.print(
            "Narrowed: it is not known whether the last changes were made, so what they took away is gone and what "
            "they gave is not there. Ask for them again. Keys that were left out: make new ones.",
            style="yellow",
        )
    if any(said.unknown for said in told):
        console.print("Unknown: etcd has these tenants, the home's ledger does not. They stay refused.", style="red")
    warn_unreachable(list(found.unreachable))


def _say(text: str) -> None:
    words().print(f"[dim]·[/] {escape(text)}")
