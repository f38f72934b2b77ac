"""The operator's desk: the commands for a mesh whose etcd, admins and gateways run on other hosts.

A desk is a folder with `config/`, the mesh's settings as all its programs read them, and `pki/`: both CAs and the
operator's certificate and key. What is not in these files is asked of admins and gateways. What nobody told, such as
how etcd is, is null.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from cryptography import x509

from mesh.cli.context import DESK_PAGE, Site, Sites, Status, desk_settings
from mesh.cli.running import CALL_TIMEOUT_S
from mesh.control.records import FIRST_EPOCH
from mesh.embedded.status import MeshState, is_ready, lacks, replica_rows, went_back
from mesh.embedded.watching import View, observer
from mesh.errors import Code, MeshError
from mesh.settings import Gateway, Region, Settings
from mesh.tls import OPERATOR_REGION, Identity, client_context
from mesh.types import RegionId, Role

Row = dict[str, object]


class Desk:
    """A mesh that runs elsewhere; see `mesh.cli.context.Supervisor`."""

    def up(self, home: Path, **_: object) -> NoReturn:
        """Refuses."""
        hint = f"{home} is the desk of a mesh that runs on other hosts. Let MESH_HOME name an empty or a new folder."
        raise MeshError(Code.START_FAILED, hint=hint)

    def down(self, home: Path, **_: object) -> NoReturn:
        """Refuses."""
        hint = f"{home} is the desk of a mesh that runs on other hosts: end its programs there."
        raise MeshError(Code.NOT_RUNNING, hint=hint)

    def recovery_epoch(
        self, home: Path, *, epochs: Mapping[RegionId, int], went_back: bool, progress: Callable[[str], None]
    ) -> int:
        """The one of the settings, if the admins have it and nobody saw the control store go back in it."""
        own, newest, file = desk_settings(home).control_epoch, max(epochs.values()), home / "config" / "mesh.yaml"
        old = [f"{region} ({epoch})" for region, epoch in epochs.items() if epoch < own]
        everywhere = "in the mesh.yaml of every region, restart all gateways and admins, and repeat this command."
        if newest > own:
            hint = f"{file} has control epoch {own}, and admins run with {newest}: bring the regions' settings here."
        elif old:
            hint = f"Admins run with an older control epoch: {', '.join(old)}. Set 'control_epoch: {own}' {everywhere}"
        elif went_back:
            hint = f"Begin the next control epoch by hand: set 'control_epoch: {own + 1}' in {file} and {everywhere}"
            if own > FIRST_EPOCH:
                hint += f" A gateway that runs since before epoch {own} began only needs the restart."
        else:
            return own
        raise MeshError(Code.INVALID_SETTINGS, param="control_epoch", hint=hint)

    def status(self, home: Path) -> Status:
        """What admins and gateways say, asked now."""
        settings = desk_settings(home)
        _check_certificate(settings.pki)
        return desk_status(settings, asyncio.run(_view(settings)))

    def sites(self, home: Path) -> Sites:
        """Those of the settings; nobody is asked."""
        settings = desk_settings(home)
        _check_certificate(settings.pki)
        regions = [
            Site(region.id, region.jurisdiction, "", region.endpoint.http, str(region.admin))
            for region in settings.regions.values()
        ]
        return Sites(regions, str(settings.pki / "doors-ca.pem"))


def desk_status(settings: Settings, view: View) -> Status:
    """The object of `mesh status` as far as it is known: what only the regions' hosts could tell is null."""
    regions = [_region(view, region) for region in settings.regions.values()]
    reasons = [reason for region in settings.regions.values() for reason in _reasons(settings, view, region)]
    ready = not reasons and all(row["state"] == MeshState.READY for row in regions)
    return {
        "state": (MeshState.READY if ready else MeshState.DEGRADED).value,
        "reasons": reasons,
        "ca": str(settings.pki / "doors-ca.pem"),
        "operator_cert": str(settings.pki / "operator.pem"),
        "operator_key": str(settings.pki / "operator.key"),
        "etcd": {"endpoints": list(settings.etcd), "healthy": None, "version": None, "pid": None},
        "control": _control(settings, view),
        "regions": regions,
    }


def _check_certificate(pki: Path) -> None:
    """What is wrong with it here would otherwise look as if every region were away."""
    try:
        client_context(pki, OPERATOR_REGION, Role.OPERATOR)
    except MeshError as error:
        hint = f"{error.hint} A desk has the mesh's CA and an operator's certificate and key; see {DESK_PAGE}."
        raise MeshError(error.code, hint=hint) from None
    path = pki / "operator.pem"
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    until = certificate.not_valid_after_utc
    if until < datetime.now(UTC):
        hint = f"{path}: was good until {until.isoformat()}; put a new certificate and its key there."
        raise MeshError(Code.INVALID_SETTINGS, hint=hint)
    names = [one.value for one in certificate.extensions if isinstance(one.value, x509.SubjectAlternativeName)]
    uris = [uri for name in names for uri in name.get_values_for_type(x509.UniformResourceIdentifier)]
    identity = Identity.parse(uris[0]) if len(uris) == 1 else None
    if identity is None or identity.role is not Role.OPERATOR:
        raise MeshError(Code.INVALID_SETTINGS, hint=f"{path}: is no operator's certificate; see {DESK_PAGE}.")


async def _view(settings: Settings) -> View:
    async with observer(settings, CALL_TIMEOUT_S) as asked:
        return await asked.view()


def _region(view: View, region: Region) -> Row:
    operator = region.gateways[0].operator
    if is_ready(region, view):
        state = MeshState.READY
    else:
        state = MeshState.DEGRADED if _answers(view, region) else MeshState.DOWN
    return {
        "id": region.id,
        "jurisdiction": region.jurisdiction,
        "state": state.value,
        "http": region.endpoint.http,
        "grpc": region.endpoint.grpc,
        "operator": f"{'http' if operator.is_loopback else 'https'}://{operator}",
        "admin": str(region.admin),
        "ray": {"state": None, "pid": None},
        "gateways": [_gateway(view, region, gateway) for gateway in region.gateways],
        "replicas": replica_rows(view, region),
    }


def _answers(view: View, region: Region) -> bool:
    """Whether anyone of a region does."""
    return view.admins[region.id] or any(view.gateways[region.id, gateway.id] for gateway in region.gateways)


def _gateway(view: View, region: Region, gateway: Gateway) -> Row:
    said = view.gateways[region.id, gateway.id]
    if said is None:
        return {"id": gateway.id, "state": MeshState.DOWN.value, "pid": None}
    state = MeshState.READY if said.policy_loaded else MeshState.STARTING
    return {"id": gateway.id, "state": state.value, "pid": said.pid}


def _reasons(settings: Settings, view: View, region: Region) -> list[str]:
    if not _answers(view, region):
        return [f"{region.id}: nobody answers from here, neither its admin ({region.admin}) nor a gateway"]
    reasons = [*went_back(region, view), *(f"{region.id}: {lack}" for lack in lacks(region, view))]
    for gateway in region.gateways:
        said = view.gateways[region.id, gateway.id]
        if said is not None and said.policy_loaded and not said.policy_live:
            reasons.append(f"{region.id}: gateway {gateway.id} has lost the control store")
    control = view.control[region.id]
    if control is not None and control.epoch != settings.control_epoch:
        reasons.append(
            f"{region.id}: its admin runs with control epoch {control.epoch}, the settings here have "
            f"{settings.control_epoch}; see docs/operator.md, 'Recovery'"
        )
    if not view.admins[region.id]:
        reasons.append(f"{region.id}: its admin does not answer from here ({region.admin})")
    return reasons


def _control(settings: Settings, view: View) -> Row:
    admins = list(view.control.values())
    seen = [None if one is None else one.went_back for one in admins]
    seen += [None if one is None else one.store_went_back for one in view.gateways.values()]
    missing = _any(None if one is None else not one.published for one in admins)
    return {
        "epoch": settings.control_epoch,
        "went_back": _any(seen),
        "published": None if missing is None else not missing,
    }


def _any(told: Iterable[bool | None]) -> bool | None:
    """Whether one is true; None where that is not known, since one was not told."""
    known = list(told)
    return True if True in known else None if None in known else False
