"""Reads one region's file; checks what the file itself can tell, beside the catalogue's models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

from mesh.settings.model import JURISDICTIONS, Address, Deployment, Front, Gateway, Model, PolicyKey, Region
from mesh.settings.provider import read_provider
from mesh.settings.table import LINE, Table, is_address, parse_address
from mesh.types import Endpoint, GatewayId, Jurisdiction, ModelId, RegionId

MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MODEL_ID_RULE = "a model's id: 1 to 64 of a-z, 0-9, '.', '_' and '-'"
_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_ID_RULE = "1 to 32 of a-z, 0-9 and -, beginning and ending with a letter or digit"
_NAME = re.compile(r"\S(?:.{0,78}\S)?")
_PORT = re.compile(r":[0-9]+$")
_ORIGIN_RULE = "https://host or https://host:port, without a path"
_PUBLIC = re.compile(r"[0-9a-f]{64}")
_PUBLIC_RULE = "64 hex digits in lower case: the 32 bytes of an Ed25519 public key"
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAY_RULE = "a day as 'YYYY-MM-DD', in quotes"
_HOST_RULE = "a host's name or address"
_DOMAIN = re.compile(r"(?=.{1,200}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
DOMAIN_RULE = "a DNS name in lower case, without a final dot, such as mesh.example"
_SOURCE_RULE = "an IP address in its shortest form, such as 10.20.0.2"
_PORTS = ("http", "grpc", "internal", "peer", "operator", "proxied")


def is_domain(text: str) -> bool:
    """Whether a region's tenants can have names under it: see `DOMAIN_RULE`."""
    return _DOMAIN.fullmatch(text) is not None


def read_region(table: Table, stem: str, models: Mapping[ModelId, Model]) -> Region:
    """The region of a file called `<stem>.yaml`, which may host these models. Faults are the table's."""
    id_ = RegionId(table.text("id", _ID, _ID_RULE))
    if id_ and id_ != stem:
        table.fault("id", "must be the file's name without .yaml")
    jurisdiction = Jurisdiction(table.choice("jurisdiction", JURISDICTIONS))
    name = table.text("name", _NAME, "1 to 80 characters on one line")
    if not name.isprintable():
        table.fault("name", "must be printable characters only")
    accelerator = table.choice("accelerator", ("cpu", "cuda"))
    endpoint = table.table("endpoint")
    http, grpc = _origin(endpoint), str(endpoint.address("grpc"))
    endpoint.close()
    region = Region(
        id=id_,
        jurisdiction=jurisdiction,
        name=name,
        accelerator=accelerator,
        endpoint=Endpoint(region=id_, jurisdiction=jurisdiction, http=http, grpc=grpc),
        admin=table.address("admin"),
        gateways=_gateways(table),
        deployments=_deployments(table, accelerator, models),
        front=_front(table.table("front")) if table.has("front") else None,
        domain=table.text("domain", _DOMAIN, DOMAIN_RULE) if table.has("domain") else None,
        policy_keys=_policy_keys(table) if table.has("policy_keys") else (),
        replica_host=_replica_host(table),
        provider=read_provider(table.table("provider")) if table.has("provider") else {},
    )
    table.close()
    _check_ports(region, table)
    for i, gateway in enumerate(region.gateways):
        if (gateway.proxied is None) is not (region.front is None):
            table.fault(f"gateways[{i}].proxied", "and 'front' need each other; give both or neither")
    return region


def _origin(endpoint: Table) -> str:
    text = endpoint.text("http", LINE, _ORIGIN_RULE)
    parts = text.removeprefix("https://")
    if not text or (text.startswith("https://") and parse_address(parts if _PORT.search(parts) else parts + ":443")):
        return text
    endpoint.fault("http", f"must be {_ORIGIN_RULE}")
    return ""


def _gateways(table: Table) -> tuple[Gateway, ...]:
    gateways: list[Gateway] = []
    for entry in table.tables("gateways"):
        gateway = Gateway(
            id=GatewayId(entry.text("id", _ID, _ID_RULE)),
            http=entry.address("http"),
            grpc=entry.address("grpc"),
            internal=entry.address("internal"),
            peer=entry.address("peer"),
            operator=entry.address("operator"),
            proxied=entry.address("proxied") if entry.has("proxied") else None,
        )
        if gateway.id and any(other.id == gateway.id for other in gateways):
            entry.fault("id", "is another gateway's too; ids are unique in a region")
        entry.close()
        gateways.append(gateway)
    return tuple(gateways)


def _deployments(table: Table, accelerator: str, models: Mapping[ModelId, Model]) -> tuple[Deployment, ...]:
    deployments: list[Deployment] = []
    for entry in table.tables("deployments", least=0):
        deployment = Deployment(
            name=entry.text("name", _ID, _ID_RULE),
            models=tuple(ModelId(model) for model in entry.texts("models", MODEL_ID, MODEL_ID_RULE)),
            replicas=entry.integer("replicas", 1, 1000),
            gpus_per_replica=entry.number("gpus_per_replica", 0, 64),
            cpus_per_replica=entry.number("cpus_per_replica", 0, 1024),
        )
        if deployment.name and any(other.name == deployment.name for other in deployments):
            entry.fault("name", "is another deployment's too; names are unique in a region")
        for i, model in enumerate(deployment.models):
            if model not in models:
                entry.fault(f"models[{i}]", "is not in models.yaml; add it there or name another")
        if accelerator == "cpu" and deployment.gpus_per_replica > 0:
            entry.fault("gpus_per_replica", "must be 0 where the accelerator is cpu")
        entry.close()
        deployments.append(deployment)
    return tuple(deployments)


def _front(table: Table) -> Front:
    front = Front(
        http=table.address("http"),
        grpc=table.address("grpc"),
        sources=table.texts("sources", LINE, _SOURCE_RULE),
        connections=table.integer("connections", 1, 1_000_000),
    )
    for i, source in enumerate(front.sources):
        if not is_address(source):
            table.fault(f"sources[{i}]", f"must be {_SOURCE_RULE}")
    table.close()
    return front


def _policy_keys(table: Table) -> tuple[PolicyKey, ...]:
    keys: list[PolicyKey] = []
    for entry in table.tables("policy_keys"):
        key = PolicyKey(
            id=entry.text("id", _ID, _ID_RULE),
            public=bytes.fromhex(entry.text("public", _PUBLIC, _PUBLIC_RULE)),
            valid_from=_day(entry, "valid_from"),
            valid_until=_day(entry, "valid_until"),
        )
        if key.id and any(other.id == key.id for other in keys):
            entry.fault("id", "is another policy key's too; ids are unique in a region")
        if key.valid_from and key.valid_until and key.valid_from > key.valid_until:
            entry.fault("valid_until", "is before 'valid_from'")
        entry.close()
        keys.append(key)
    return tuple(keys)


def _day(table: Table, key: str) -> date | None:
    if not table.has(key):
        return None
    text = table.text(key, _DAY, _DAY_RULE)
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        table.fault(key, f"must be {_DAY_RULE}")
    return None


def _replica_host(table: Table) -> str | None:
    if not table.has("replica_host"):
        return None
    host = table.text("replica_host", LINE, _HOST_RULE)
    if host and parse_address(f"[{host}]:1" if ":" in host else f"{host}:1") is None:
        table.fault("replica_host", f"must be {_HOST_RULE}")
    return host


def _check_ports(region: Region, table: Table) -> None:
    """No two listeners of a region may want one port; each `operator` on loopback may be on a machine of its own."""
    taken: dict[Address, str] = {region.admin: "admin"}
    for i, gateway in enumerate(region.gateways):
        own: set[Address] = set()
        for port in _PORTS:
            address: Address | None = getattr(gateway, port)
            here = f"gateways[{i}].{port}"
            if address is None or not address.port:
                continue  # none is wanted, or a fault already
            if address in own or (address in taken and port != "operator"):
                table.fault(here, f"is the address of {taken.get(address, 'another port of this gateway')} too")
            own.add(address)
            taken.setdefault(address, here)
