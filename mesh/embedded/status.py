"""The object of `mesh status`, from what the supervisor knows and what the parts answered. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mesh.embedded.addresses import Addresses
from mesh.embedded.parts import Part, PartState
from mesh.embedded.watching import View
from mesh.settings import Gateway, Region, Settings
from mesh.types import RegionId
from mesh.v1 import fleet_pb2

Row = dict[str, object]


class MeshState(StrEnum):
    """How a mesh, or a region of it, is."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    DOWN = "down"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the supervisor knows by itself.

    Attributes:
        parts: By name.
        started: The regions that have been ready once.
        stopping: Whether the mesh is being ended.
    """

    settings: Settings
    addresses: Addresses
    parts: Mapping[str, Part]
    started: frozenset[RegionId]
    stopping: bool = False


def gateway_part(region: Region, gateway: Gateway) -> str:
    """The name of a gateway's part."""
    return f"gateway-{region.id}-{gateway.id}"


def admin_part(region: RegionId) -> str:
    """The name of an admin's part."""
    return f"admin-{region}"


def front_part(region: RegionId) -> str:
    """The name of a front's part."""
    return f"front-{region}"


def ray_part(region: RegionId) -> str:
    """The name of a cluster's part."""
    return f"ray-{region}"


def deploy_part(region: RegionId) -> str:
    """The name of the driver that puts the application on a cluster."""
    return f"deploy-{region}"


def is_ready(region: Region, view: View) -> bool:
    """Whether a gateway takes calls, each of the region's models has a ready replica, and its admin serves."""
    return not lacks(region, view) and view.admins.get(region.id, False)


def status_of(known: Known, view: View) -> Row:
    """The whole object."""
    settings, pki = known.settings, known.settings.pki
    regions = [_region(known, view, region) for region in settings.regions.values()]
    etcd = known.parts["etcd"]
    healthy = view.etcd is not None and view.etcd.has_leader
    reasons = _reasons(known, view, healthy=healthy)
    states = {row["state"] for row in regions}
    if known.stopping:
        state = MeshState.STOPPING
    elif states == {MeshState.READY} and not reasons:
        state = MeshState.READY
    elif MeshState.STARTING in states and not any(part.given_up for part in known.parts.values()):
        state = MeshState.STARTING
    else:
        state = MeshState.DEGRADED
    return {
        "state": state.value,
        "reasons": reasons,
        "ca": str(pki / "doors-ca.pem"),
        "operator_cert": str(pki / "operator.pem"),
        "operator_key": str(pki / "operator.key"),
        "etcd": {
            "endpoints": list(settings.etcd),
            "healthy": healthy,
            "version": view.etcd.version if view.etcd else None,
            "pid": etcd.pid,
        },
        "control": _control(known, view),
        "regions": regions,
    }


def _region(known: Known, view: View, region: Region) -> Row:
    ray = known.parts[ray_part(region.id)]
    operator = next((gateway.operator for gateway in region.gateways), None)
    front = known.parts.get(front_part(region.id))
    return {
        "id": region.id,
        "jurisdiction": region.jurisdiction,
        "state": _state(known, view, region).value,
        "http": region.endpoint.http,
        "grpc": region.endpoint.grpc,
        "operator": f"http://{operator}",
        "admin": str(region.admin),
        "ray": {"state": ray.state.value, "pid": ray.pid},
        **({} if front is None else {"front": {"state": front.state.value, "pid": front.pid, "zone": region.zone}}),
        "gateways": [_gateway(known, view, region, gateway) for gateway in region.gateways],
        "replicas": replica_rows(view, region),
    }


def _state(known: Known, view: View, region: Region) -> MeshState:
    if is_ready(region, view):
        return MeshState.READY
    if region.id not in known.started:
        own = [part for name, part in known.parts.items() if _is_of(name, region)]
        return MeshState.DOWN if any(part.given_up for part in own) else MeshState.STARTING
    answered = any(view.gateways.get((region.id, gateway.id)) for gateway in region.gateways)
    return MeshState.DEGRADED if answered else MeshState.DOWN


def _gateway(known: Known, view: View, region: Region, gateway: Gateway) -> Row:
    part = known.parts[gateway_part(region, gateway)]
    said = view.gateways.get((region.id, gateway.id))
    if said is not None:
        state = PartState.READY if said.policy_loaded else PartState.STARTING
    else:
        state = PartState.STARTING if part.state is PartState.STARTING else PartState.DOWN
    return {"id": gateway.id, "state": state.value, "pid": part.pid}


def replica_rows(view: View, region: Region) -> list[Row]:
    """One row per process and model, as the first gateway that answers sees them."""
    rows: dict[tuple[str, str], Row] = {}
    for gateway in region.gateways:
        said = view.gateways.get((region.id, gateway.id))
        for replica in said.replicas if said else ():
            for model in replica.models:
                rows.setdefault((replica.replica, model.model), _replica(replica, model))
    return [rows[key] for key in sorted(rows)]


def _replica(replica: fleet_pb2.ReplicaReport, model: fleet_pb2.ModelReport) -> Row:
    state = fleet_pb2.ReplicaState.Name(model.state).removeprefix("REPLICA_STATE_").lower()
    return {
        "id": replica.replica,
        "model": model.model,
        "state": state,
        "pid": replica.pid,
        "running": model.running,
        "queued": model.queued,
        "slots": model.slots,
        "kv_used": round(model.kv_used, 4),
    }


def lacks(region: Region, view: View) -> list[str]:
    """What a region needs and does not have, in words; nothing where it can take calls."""
    said = [view.gateways.get((region.id, gateway.id)) for gateway in region.gateways]
    answers = [one for one in said if one is not None]
    if not answers:
        return ["no gateway answers"]
    if not any(one.policy_loaded for one in answers):
        return ["no gateway has loaded policy yet"]
    ready = {
        model.model
        for one in answers
        for replica in one.replicas
        for model in replica.models
        if model.state == fleet_pb2.REPLICA_STATE_READY
    }
    return [f"{model} has no ready replica" for model in sorted(region.models - ready)]


def _reasons(known: Known, view: View, *, healthy: bool) -> list[str]:
    reasons = [part.fault for part in known.parts.values() if part.fault is not None]
    if not healthy and known.parts["etcd"].fault is None:
        reasons.append(f"etcd does not answer; see {known.parts['etcd'].log}")
    for region in known.settings.regions.values():
        reasons.extend(went_back(region, view))
        reasons.extend(f"{region.id}: {lack}; see {_log(known, region, lack)}" for lack in lacks(region, view))
        if not view.admins.get(region.id, False):
            reasons.append(f"{region.id}: its admin does not answer; see {known.parts[admin_part(region.id)].log}")
    return reasons


def went_back(region: Region, view: View) -> list[str]:
    """Who in a region has seen the control store go back in time, or waits for what it lost."""
    back = f"{region.id}: the control store went back in time"
    see = "run 'mesh control recover'; see docs/operator.md, 'Recovery'"
    said = [(gateway, view.gateways.get((region.id, gateway.id))) for gateway in region.gateways]
    reasons = [
        f"{back}: gateway {gateway.id} saw it and serves nobody; {see}"
        for gateway, one in said
        if one is not None and one.store_went_back
    ]
    control = view.control.get(region.id)
    if control is not None and control.went_back:
        reasons.append(f"{back}: its admin saw it and changes nothing; {see}")
    elif control is not None and not control.published:
        reasons.append(f"{region.id}: its tenants are not published in control epoch {control.epoch}; {see}")
    return reasons


def _control(known: Known, view: View) -> Row:
    """The control epoch, and whether the control store was seen to have gone back in it."""
    admins = [one for one in view.control.values() if one is not None]
    gateways = [one for one in view.gateways.values() if one is not None]
    return {
        "epoch": known.settings.control_epoch,
        "went_back": any(one.went_back for one in admins) or any(one.store_went_back for one in gateways),
        "published": all(one.published for one in admins),
    }


def _log(known: Known, region: Region, lack: str) -> Path:
    if "gateway" in lack:
        return known.parts[gateway_part(region, region.gateways[0])].log
    return known.addresses.ray_temp(region.id) / "session_latest" / "logs"


def _is_of(part: str, region: Region) -> bool:
    own = {ray_part(region.id), deploy_part(region.id), admin_part(region.id), front_part(region.id)}
    own |= {"etcd", "weights"}
    return part in own | {gateway_part(region, gateway) for gateway in region.gateways}
