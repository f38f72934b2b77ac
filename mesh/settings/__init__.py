"""A mesh's configuration: which regions there are, what they host, where the doors and the store are.

One folder holds it, the same for every program of a mesh:

    mesh.yaml           control store, certificates, key hashing, ledger, telemetry
    models.yaml         the catalogue: what a deployment may host
    regions/<id>.yaml   one file a region

`load` reads it once, strictly: an unknown key, a bad value or a reference to nothing is a fault, and all faults are
reported together. Nothing here is secret; secrets are files that it names.

The `regions/` folder of the repository holds `models.yaml` beside the region files: `load_catalogue` reads it, and
`render` writes what `load` reads.
"""

from mesh.settings.catalogue import load_catalogue
from mesh.settings.folder import load
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
from mesh.settings.region import DOMAIN_RULE, is_domain
from mesh.settings.rendering import render
from mesh.settings.table import is_address

__all__ = [
    "DOMAIN_RULE",
    "JURISDICTIONS",
    "Address",
    "Catalogue",
    "Deployment",
    "Front",
    "Gateway",
    "Model",
    "PolicyKey",
    "Region",
    "Settings",
    "is_address",
    "is_domain",
    "load",
    "load_catalogue",
    "render",
]
