"""Reads a configuration folder: `mesh.yaml` and the catalogue beside it."""

from __future__ import annotations

import re
from pathlib import Path

from mesh.errors import SettingsError
from mesh.settings.catalogue import read_catalogue
from mesh.settings.document import Faults, read_document
from mesh.settings.model import Settings
from mesh.settings.table import LINE, Table, parse_address

_LEDGER = re.compile(r"(?:sqlite|postgresql)(?:\+[a-z0-9]+)?://[^\x00-\x1f\x7f]{1,2048}")
_MEMBER_RULE = "https://host:port"


def load(folder: Path) -> Settings:
    """Reads and checks a configuration folder.

    Relative paths in it are relative to it.

    Raises:
        SettingsError: With every fault found, as `file: path: what is wrong and what to do`.
    """
    faults = Faults()
    catalogue = read_catalogue(folder / "models.yaml", "models.yaml", folder / "regions", "regions/", faults)
    mesh = Table(read_document(folder / "mesh.yaml", "mesh.yaml", faults), "mesh.yaml", "", faults)
    settings = Settings(
        regions=catalogue.regions,
        models=catalogue.models,
        etcd=_etcd(mesh),
        pki=folder.absolute() / mesh.text("pki", LINE, "the folder of certificates"),
        key_hash=mesh.choice("key_hash", ("bcrypt", "sha256")),
        ledger=_ledger(mesh, len(catalogue.regions)),
        models_dir=folder.absolute() / mesh.text("models_dir", LINE, "the folder of converted weights"),
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


def _etcd(mesh: Table) -> tuple[str, ...]:
    members = mesh.texts("etcd", LINE, _MEMBER_RULE)
    for i, member in enumerate(members):
        if not (member.startswith("https://") and parse_address(member.removeprefix("https://"))):
            mesh.fault(f"etcd[{i}]", f"must be {_MEMBER_RULE}")
    return members


def _ledger(mesh: Table, regions: int) -> str:
    url = mesh.text("ledger", _LEDGER, "a SQLAlchemy URL of SQLite or PostgreSQL")
    if url and regions > 1 and "{region}" not in url:
        mesh.fault("ledger", "must hold {region}: a ledger never leaves its region, so regions cannot share one")
    return url
