"""Reads and writes a configuration folder; checks what only whole files can tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import yaml

from mesh.errors import SettingsError
from mesh.policy.hostnames import host_name
from mesh.settings.document import Faults, read_document
from mesh.settings.model import (
    JURISDICTIONS,
    Address,
    Catalogue,
    Deployment,
    Front,
    Gateway,
    Model,
    PolicyKey,
    Region,
    Settings,
)
from mesh.settings.provider import read_provider
from mesh.settings.table import Table, is_address, parse_address
from mesh.types import Endpoint, GatewayId, Jurisdiction, ModelId, ModelKind, RegionId

_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_ID_RULE = "1 to 32 of a-z, 0-9 and -, beginning and ending with a letter or digit"
_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MODEL_RULE = "a model's id: 1 to 64 of a-z, 0-9, '.', '_' and '-'"
_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(?:\.[A-Za-z_][A-Za-z0-9_]{0,63}){0,7}")
_NAME = re.compile(r"\S(?:.{0,78}\S)?")
_ANY = re.compile(r"[^\x00-\x1f\x7f]{1,4096}")
_LEDGER = re.compile(r"(?:sqlite|postgresql)(?:\+[a-z0-9]+)?://[^\x00-\x1f\x7f]{1,2048}")
_PORT = re.compile(r":[0-9]+$")
_ORIGIN_RULE = "https://host or https://host:port, without a path"
_MEMBER_RULE = "https://host:port"
_PUBLIC = re.compile(r"[0-9a-f]{64}")
_PUBLIC_RULE = "64 hex digits in lower case: the 32 bytes of an Ed25519 public key"
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAY_RULE = "a day as 'YYYY-MM-DD', in quotes"
_HOST_RULE = "a host's name or address"
_DOMAIN = re.compile(r"(?=.{1,200}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DOMAIN_RULE = "a DNS name in lower case, without a final dot, such as mesh.example"
_SOURCE_RULE = "an IP address in its shortest form, such as 10.20.0.2"
_PORTS = ("http", "grpc", "internal", "peer", "operator")


def load(folder: Path) -> Settings:
    """Reads and checks a configuration folder.

    Relative paths in it are relative to it.

    Raises:
        SettingsError: With every fault found, as `file: path: what is wrong and what to do`.
    """
    faults = Faults()
    catalogue = _catalogue(folder / "models.yaml", "models.yaml", folder / "regions", "regions/", faults)
    mesh = Table(read_document(folder / "mesh.yaml", "mesh.yaml", faults), "mesh.yaml", "", faults)
    settings = Settings(
        regions=catalogue.regions,
        models=catalogue.models,
        etcd=_etcd(mesh),
        pki=folder.absolute() / mesh.text("pki", _ANY, "the folder of certificates"),
        key_hash=mesh.choice("key_hash", ("bcrypt", "sha256")),
        ledger=_ledger(mesh, len(catalogue.regions)),
        models_dir=folder.absolute() / mesh.text("models_dir", _ANY, "the folder of converted weights"),
        otlp=str(mesh.address("otlp")) if mesh.has("otlp") else None,
        max_body_bytes=mesh.integer("max_body_bytes", 1024, 1024**3)
        if mesh.has("max_body_bytes")
        else Settings.__dataclass_fields__["max_body_bytes"].default,
        control_epoch=mesh.integer("control_epoch", 1, 2**31) if mesh.has("control_epoch") else 1,
        authority_cap_s=mesh.integer("authority_cap", 10, 7 * 86_400)
        if mesh.has("authority_cap")
        else Settings.__dataclass_fields__["authority_cap_s"].default,
    )
    mesh.close()
    if faults.items:
        raise SettingsError(faults.items)
    return settings


def load_catalogue(folder: Path) -> Catalogue:
    """Reads and checks a folder of region files with `models.yaml` beside them, such as the repository's `regions/`.

    Raises:
        SettingsError: As `load`.
    """
    faults = Faults()
    catalogue = _catalogue(folder / "models.yaml", "models.yaml", folder, "", faults)
    if faults.items:
        raise SettingsError(faults.items)
    return catalogue


def render(settings: Settings) -> dict[str, str]:
    """The files of a configuration folder, by their names in it: `load` of them gives equal settings.

    Paths are written as they are; give absolute ones.
    """
    mesh: dict[str, object] = {
        "etcd": list(settings.etcd),
        "pki": str(settings.pki),
        "key_hash": settings.key_hash,
        "ledger": settings.ledger,
        "models_dir": str(settings.models_dir),
        "otlp": settings.otlp,
        "max_body_bytes": settings.max_body_bytes,
        "control_epoch": settings.control_epoch,
        "authority_cap": settings.authority_cap_s,
    }
    files = {"mesh.yaml": _yaml(mesh), "models.yaml": _yaml({i: _model_out(m) for i, m in settings.models.items()})}
    return files | {f"regions/{i}.yaml": _yaml(_region_out(r)) for i, r in settings.regions.items()}


def _catalogue(models_path: Path, models_file: str, folder: Path, prefix: str, faults: Faults) -> Catalogue:
    models = _models(Table(read_document(models_path, models_file, faults), models_file, "", faults))
    regions: dict[RegionId, Region] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".yaml" and path != models_path)
        strangers = sorted(path.name for path in folder.iterdir() if path.suffix == ".yml")
    except OSError as error:
        faults.add(prefix or "regions/", "", f"cannot be listed ({type(error).__name__}); it holds a file a region")
        return Catalogue(regions={}, models=models)
    for name in strangers:
        faults.add(prefix + name, "", "ends in .yml and would be overlooked; name it .yaml")
    ids: dict[str, str] = {}
    signers: dict[bytes, str] = {}
    for path in paths:
        file = prefix + path.name
        region = _region(Table(read_document(path, file, faults), file, "", faults), path.stem, models)
        if region.id in ids:
            faults.add(file, "id", f"is also the id in {ids[region.id]}; ids are unique")
        elif region.id:
            ids[region.id] = file
            regions[region.id] = region
        for i, key in enumerate(region.policy_keys):
            if key.public in signers:
                text = f"stands in {signers[key.public]} too; each home signs with keys of its own"
                faults.add(file, f"policy_keys[{i}].public", text)
            elif key.public:
                signers[key.public] = file
    if not paths:
        faults.add(prefix or "regions/", "", "holds no region; write <id>.yaml")
    _check_names(regions, ids, faults)
    return Catalogue(regions=regions, models=models)


def _check_names(regions: Mapping[RegionId, Region], files: Mapping[str, str], faults: Faults) -> None:
    """No name of one region's doors may be one of another's: a certificate would be good for both."""
    for region in regions.values():
        for other in regions.values():
            if other is region or other.zone is None:
                continue
            under = f".{other.zone}"
            if region.zone is not None and region.zone.endswith(under):
                faults.add(files[region.id], "domain", f"makes names that are also those of {other.id}; take another")
            for key, address in (("http", region.endpoint.http), ("grpc", region.endpoint.grpc)):
                host = host_name(address.removeprefix("https://"))
                if host == other.zone or host.endswith(under):
                    faults.add(files[region.id], f"endpoint.{key}", f"is a name of {other.id}; take another")


def _models(table: Table) -> dict[ModelId, Model]:
    models: dict[ModelId, Model] = {}
    for key in table.keys():  # noqa: SIM118 - a Table is no mapping
        entry = table.table(key)
        if not _MODEL.fullmatch(key):
            entry.fault(None, f"must be {_MODEL_RULE}")
        model = Model(
            id=ModelId(key),
            kind=ModelKind(entry.choice("kind", list(ModelKind)) or ModelKind.CHAT),
            package=entry.text("package", _PACKAGE, "the name of a Python package"),
            context=entry.integer("context", 1, 1 << 22),
            slots=entry.integer("slots", 1, 4096),
            queue=entry.integer("queue", 0, 65536),
        )
        entry.close()
        models[model.id] = model
    return models


def _region(table: Table, stem: str, models: Mapping[ModelId, Model]) -> Region:
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
        domain=table.text("domain", _DOMAIN, _DOMAIN_RULE) if table.has("domain") else None,
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


def _front(table: Table) -> Front:
    front = Front(
        http=table.address("http"),
        grpc=table.address("grpc"),
        sources=table.texts("sources", _ANY, _SOURCE_RULE),
        connections=table.integer("connections", 1, 1_000_000),
    )
    for i, source in enumerate(front.sources):
        if not is_address(source):
            table.fault(f"sources[{i}]", f"must be {_SOURCE_RULE}")
    table.close()
    return front


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


def _policy_key_out(key: PolicyKey) -> dict[str, object]:
    days = {"valid_from": key.valid_from, "valid_until": key.valid_until}
    out: dict[str, object] = {"id": key.id, "public": key.public.hex()}
    return out | {name: day.isoformat() for name, day in days.items() if day is not None}


def _deployments(table: Table, accelerator: str, models: Mapping[ModelId, Model]) -> tuple[Deployment, ...]:
    deployments: list[Deployment] = []
    for entry in table.tables("deployments", least=0):
        deployment = Deployment(
            name=entry.text("name", _ID, _ID_RULE),
            models=tuple(ModelId(model) for model in entry.texts("models", _MODEL, _MODEL_RULE)),
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


def _check_ports(region: Region, table: Table) -> None:
    """No two listeners of a region may want one port; each `operator` on loopback may be on a machine of its own."""
    taken: dict[Address, str] = {region.admin: "admin"}
    for i, gateway in enumerate(region.gateways):
        own: set[Address] = set()
        for port in (*_PORTS, "proxied"):
            address: Address | None = getattr(gateway, port)
            here = f"gateways[{i}].{port}"
            if address is None or not address.port:
                continue  # none is wanted, or a fault already
            if address in own or (address in taken and port != "operator"):
                table.fault(here, f"is the address of {taken.get(address, 'another port of this gateway')} too")
            own.add(address)
            taken.setdefault(address, here)


def _origin(endpoint: Table) -> str:
    text = endpoint.text("http", _ANY, _ORIGIN_RULE)
    parts = text.removeprefix("https://")
    if not text or (text.startswith("https://") and parse_address(parts if _PORT.search(parts) else parts + ":443")):
        return text
    endpoint.fault("http", f"must be {_ORIGIN_RULE}")
    return ""


def _etcd(mesh: Table) -> tuple[str, ...]:
    members = mesh.texts("etcd", _ANY, _MEMBER_RULE)
    for i, member in enumerate(members):
        if not (member.startswith("https://") and parse_address(member.removeprefix("https://"))):
            mesh.fault(f"etcd[{i}]", f"must be {_MEMBER_RULE}")
    return members


def _ledger(mesh: Table, regions: int) -> str:
    url = mesh.text("ledger", _LEDGER, "a SQLAlchemy URL of SQLite or PostgreSQL")
    if url and regions > 1 and "{region}" not in url:
        mesh.fault("ledger", "must hold {region}: a ledger never leaves its region, so regions cannot share one")
    return url


def _replica_host(table: Table) -> str | None:
    if not table.has("replica_host"):
        return None
    host = table.text("replica_host", _ANY, _HOST_RULE)
    if host and parse_address(f"[{host}]:1" if ":" in host else f"{host}:1") is None:
        table.fault("replica_host", f"must be {_HOST_RULE}")
    return host


def _region_out(region: Region) -> dict[str, object]:
    out: dict[str, object] = {
        "id": region.id,
        "jurisdiction": region.jurisdiction,
        "name": region.name,
        "accelerator": region.accelerator,
        "endpoint": {"http": region.endpoint.http, "grpc": region.endpoint.grpc},
        "admin": str(region.admin),
        "gateways": [_gateway_out(gateway) for gateway in region.gateways],
        "deployments": [
            {
                "name": d.name,
                "models": list(d.models),
                "replicas": d.replicas,
                "gpus_per_replica": d.gpus_per_replica,
                "cpus_per_replica": d.cpus_per_replica,
            }
            for d in region.deployments
        ],
    }
    if region.front is not None:
        front = region.front
        out["front"] = {
            "http": str(front.http),
            "grpc": str(front.grpc),
            "sources": list(front.sources),
            "connections": front.connections,
        }
    if region.domain is not None:
        out["domain"] = region.domain
    if region.policy_keys:
        out["policy_keys"] = [_policy_key_out(key) for key in region.policy_keys]
    if region.replica_host is not None:
        out["replica_host"] = region.replica_host
    if region.provider:
        out["provider"] = dict(region.provider)
    return out


def _gateway_out(gateway: Gateway) -> dict[str, str]:
    out = {"id": str(gateway.id)} | {port: str(getattr(gateway, port)) for port in _PORTS}
    return out if gateway.proxied is None else out | {"proxied": str(gateway.proxied)}


def _model_out(model: Model) -> dict[str, object]:
    return {
        "kind": model.kind.value,
        "package": model.package,
        "context": model.context,
        "slots": model.slots,
        "queue": model.queue,
    }


class _Writer(yaml.SafeDumper):
    """Writes equal values out each time: what we write has no anchors, since we read none."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def _yaml(value: object) -> str:
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)
