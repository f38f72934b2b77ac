"""Fills `cluster.yaml`, the template of Ray's cluster launcher, from a region file.

The filling is structured: the template is YAML with `${name}` where one value goes; values are put into the parsed
document, so nothing a region file holds can become structure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import yaml

from mesh.errors import SettingsError
from mesh.settings import Region

_WHOLE = re.compile(r"\$\{([a-z_.]+)\}")


def render_cluster(template: Path, region: Region) -> str:
    """The cluster file of a region, as `ray up` takes it.

    Raises:
        SettingsError: When the region has no provider, or the template asks for what there is not.
    """
    if not region.provider:
        raise SettingsError([f"regions/{region.id}.yaml: provider: is missing; say on which machines the region runs"])
    document = cast("dict[str, object]", yaml.safe_load(template.read_text()))
    kind = str(region.provider["type"])
    values = _values(region)
    shared = cast("dict[str, object]", _fill(document["all"], values))
    own = cast("dict[str, object]", _fill(document[kind], values))
    return yaml.safe_dump({**shared, **own}, sort_keys=False, width=120)


def _values(region: Region) -> dict[str, object]:
    values: dict[str, object] = {"region": region.id, "jurisdiction": region.jurisdiction}

    def add(prefix: str, table: Mapping[str, object]) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                add(f"{prefix}{key}.", cast("Mapping[str, object]", value))
            else:
                values[prefix + key] = value

    add("provider.", region.provider)
    zones = values.get("provider.availability_zones")
    if isinstance(zones, list):
        values["provider.availability_zones"] = ",".join(map(str, cast("list[object]", zones)))
    workers = values.get("provider.worker_ips")
    if isinstance(workers, list):
        values["provider.workers"] = len(cast("list[object]", workers))
    gateways, most = values.get("provider.gateway.count"), values.get("provider.gpu.most")
    if isinstance(gateways, int) and isinstance(most, int):
        values["provider.workers"] = gateways + most
    return values


def _fill(node: object, values: Mapping[str, object]) -> object:
    if isinstance(node, dict):
        table = cast("Mapping[str, object]", node)
        return {str(_fill(key, values)): _fill(value, values) for key, value in table.items()}
    if isinstance(node, list):
        return [_fill(item, values) for item in cast("list[object]", node)]
    if not isinstance(node, str):
        return node
    whole = _WHOLE.fullmatch(node)
    if whole:
        return _value(whole[1], values)
    return _WHOLE.sub(lambda match: str(_value(match[1], values)), node)


def _value(name: str, values: Mapping[str, object]) -> object:
    if name not in values:
        raise SettingsError([f"cluster.yaml: ${{{name}}}: no region file of this provider has that; correct the name"])
    return values[name]
