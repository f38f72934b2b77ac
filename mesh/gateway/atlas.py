"""The configured mesh as routing sees it from one region."""

from __future__ import annotations

from mesh.policy.hostnames import DoorNames, host_name
from mesh.routing.fleet import Atlas, CatalogueModel, Site
from mesh.settings import Address, Catalogue, Gateway, Settings
from mesh.tls import door_name
from mesh.types import RegionId


def atlas_of(settings: Settings, here: RegionId) -> Atlas:
    """What exists, loaded or not."""
    return Atlas(
        here=here,
        sites={
            region.id: Site(
                region=region.id, jurisdiction=region.jurisdiction, endpoint=region.endpoint, zone=region.zone
            )
            for region in settings.regions.values()
        },
        models={
            model.id: CatalogueModel(
                id=model.id,
                kind=model.kind,
                context=model.context,
                regions=frozenset(region.id for region in settings.regions.values() if model.id in region.models),
            )
            for model in settings.models.values()
        },
    )


def door_names(known: Settings | Catalogue, region: RegionId, gateway: Gateway) -> DoorNames:
    """The names by which a gateway's doors are called."""
    here = known.regions[region]
    plain = (here.endpoint.http.removeprefix("https://"), here.endpoint.grpc, str(gateway.http), str(gateway.grpc))
    return DoorNames(
        plain=frozenset({*map(host_name, plain), door_name(region)}),
        zone=here.zone,
        zones=frozenset(one.zone for one in known.regions.values() if one.zone is not None),
    )


def peers_of(settings: Settings, here: RegionId) -> dict[RegionId, list[Address]]:
    """Where the other regions' gateways take parcels."""
    return {
        region.id: [gateway.peer for gateway in region.gateways]
        for region in settings.regions.values()
        if region.id != here
    }
