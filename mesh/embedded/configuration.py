"""Derives an embedded mesh's settings folder from the repository's `regions/`.

What a region *is* stays (jurisdiction, name, models); where it listens, and on what it computes, is this machine's. All
models of a region share one process: torch and transformers cost each process 8 CPU-seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mesh
from mesh.embedded.addresses import Addresses
from mesh.embedded.home import Home, starting, write_private
from mesh.errors import Code, MeshError
from mesh.settings import Catalogue, Deployment, Front, Gateway, PolicyKey, Region, Settings, load_catalogue, render
from mesh.types import Endpoint, GatewayId, RegionId

_FROM = "127.0.0.1"
"""From where the kernel connects within 127/8."""
_CONNECTIONS = 200

DEFAULT_REGIONS = (RegionId("vn-1"), RegionId("ap-southeast-1"), RegionId("ap-northeast-1"))


def catalogue() -> Catalogue:
    """The regions and models of this checkout.

    Raises:
        MeshError: `invalid_settings`, with every fault.
    """
    return load_catalogue(Path(mesh.__file__).parents[1] / "regions")


def chosen(known: Catalogue, regions: Sequence[str] | None) -> tuple[RegionId, ...]:
    """The regions to run, in the order asked for, each once.

    Raises:
        MeshError: `unknown_region`.
    """
    names = tuple(dict.fromkeys(RegionId(region) for region in regions)) if regions else DEFAULT_REGIONS
    for name in names:
        if name not in known.regions:
            raise MeshError(
                Code.UNKNOWN_REGION, param="regions", hint=f"'--regions' takes: {', '.join(sorted(known.regions))}."
            )
    return names


def places(known: Catalogue) -> tuple[RegionId, ...]:
    """All regions in the order in which they get addresses: the default ones first."""
    return (*DEFAULT_REGIONS, *sorted(region for region in known.regions if region not in DEFAULT_REGIONS))


def embedded_settings(
    known: Catalogue,
    regions: Sequence[RegionId],
    home: Home,
    addresses: Addresses,
    models_dir: Path,
    accelerator: str,
    policy_keys: Mapping[RegionId, tuple[PolicyKey, ...]],
    control_epoch: int = 1,
    domain: str | None = None,
) -> Settings:
    """The settings of a mesh on this machine. With a domain, tenants have names under it, and each region a front."""
    return Settings(
        regions={
            region: replace(
                _embedded(known.regions[region], addresses, accelerator, domain), policy_keys=policy_keys[region]
            )
            for region in regions
        },
        models=known.models,
        etcd=(f"https://{addresses.etcd}",),
        pki=home.pki,
        key_hash="bcrypt",
        ledger=f"sqlite:///{home.ledger}/{{region}}.db",
        models_dir=models_dir,
        control_epoch=control_epoch,
    )


def write_settings(settings: Settings, folder: Path) -> None:
    """Replaces the settings folder."""
    with starting():
        half = folder.with_name(f".{folder.name}")
        shutil.rmtree(half, ignore_errors=True)
        (half / "regions").mkdir(mode=0o700, parents=True)
        for name, text in render(settings).items():
            write_private(half / name, text)
        shutil.rmtree(folder, ignore_errors=True)
        half.replace(folder)


def _embedded(region: Region, addresses: Addresses, accelerator: str, domain: str | None) -> Region:
    here = addresses.of(region.id)
    places = None if domain is None else here.front
    front = places and Front(http=places.http, grpc=places.grpc, sources=(_FROM,), connections=_CONNECTIONS)
    doors = front or here
    gateway = Gateway(
        id=GatewayId("g1"),
        http=here.http,
        grpc=here.grpc,
        internal=here.internal,
        peer=here.peer,
        operator=here.operator,
        proxied=places and places.proxied,
    )
    models = tuple(dict.fromkeys(model for deployment in region.deployments for model in deployment.models))
    deployment = Deployment(
        name="models",
        models=models,
        replicas=1,
        gpus_per_replica=1 if accelerator == "cuda" else 0,
        cpus_per_replica=1,
    )
    return replace(
        region,
        accelerator=accelerator,
        endpoint=Endpoint(
            region=region.id, jurisdiction=region.jurisdiction, http=f"https://{doors.http}", grpc=str(doors.grpc)
        ),
        admin=here.admin,
        gateways=(gateway,),
        deployments=(deployment,) if models else (),
        replica_host=here.host,
        front=front,
        domain=domain,
        provider={},
    )
