"""Reads the catalogue: `models.yaml` and the region files; checks what only all of them can tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from mesh.errors import SettingsError
from mesh.policy.hostnames import host_name
from mesh.settings.document import Faults, read_document
from mesh.settings.model import Catalogue, Model, Region
from mesh.settings.region import MODEL_ID, MODEL_ID_RULE, read_region
from mesh.settings.table import Table
from mesh.types import ModelId, ModelKind, RegionId

_PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}(?:\.[A-Za-z_][A-Za-z0-9_]{0,63}){0,7}")


def load_catalogue(folder: Path) -> Catalogue:
    """Reads and checks a folder of region files with `models.yaml` beside them, such as the repository's `regions/`.

    Raises:
        SettingsError: As `load`.
    """
    faults = Faults()
    catalogue = read_catalogue(folder / "models.yaml", "models.yaml", folder, "", faults)
    if faults.items:
        raise SettingsError(faults.items)
    return catalogue


def read_catalogue(models_path: Path, models_file: str, folder: Path, prefix: str, faults: Faults) -> Catalogue:
    """Reads `models.yaml` and the region files of a folder.

    Args:
        models_path: Of `models.yaml`.
        models_file: How faults call it.
        folder: Of the region files.
        prefix: How faults call that folder; empty where it needs no name.
        faults: Takes what is wrong.
    """
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
        region = read_region(Table(read_document(path, file, faults), file, "", faults), path.stem, models)
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


def _models(table: Table) -> dict[ModelId, Model]:
    models: dict[ModelId, Model] = {}
    for key in table.keys():  # noqa: SIM118 - a Table is no mapping
        entry = table.table(key)
        if not MODEL_ID.fullmatch(key):
            entry.fault(None, f"must be {MODEL_ID_RULE}")
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
