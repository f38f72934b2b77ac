"""Writes a configuration folder."""

from __future__ import annotations

from dataclasses import fields
from datetime import date
from enum import Enum
from typing import cast

import yaml

from mesh.settings.model import Address, Deployment, Front, Gateway, Model, PolicyKey, Region, Settings


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
    files = {"mesh.yaml": _yaml(mesh), "models.yaml": _yaml({i: _model(m) for i, m in settings.models.items()})}
    return files | {f"regions/{i}.yaml": _yaml(_region(r)) for i, r in settings.regions.items()}


def _model(model: Model) -> dict[str, object]:
    table = _table(model)
    del table["id"]  # the key under which it stands
    return table


def _region(region: Region) -> dict[str, object]:
    table = _table(region)
    table["endpoint"] = {"http": region.endpoint.http, "grpc": region.endpoint.grpc}
    table["provider"] = dict(region.provider)
    for key in ("policy_keys", "provider"):
        if not table[key]:
            del table[key]  # none is said by leaving it out
    return table


def _table(value: Region | Gateway | Front | Deployment | PolicyKey | Model) -> dict[str, object]:
    """What is known of it, by its fields' names."""
    known = ((field.name, getattr(value, field.name)) for field in fields(value))
    return {name: _plain(one) for name, one in known if one is not None}


def _plain(value: object) -> object:
    """As YAML has it."""
    match value:
        case Gateway() | Front() | Deployment() | PolicyKey():
            return _table(value)
        case tuple():
            return [_plain(one) for one in cast("tuple[object, ...]", value)]
        case Address():
            return str(value)
        case Enum():
            return value.value
        case bytes():
            return value.hex()
        case date():
            return value.isoformat()
        case _:
            return value


class _Writer(yaml.SafeDumper):
    """Writes equal values out each time: what we write has no anchors, since we read none."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def _yaml(value: object) -> str:
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)
