"""The configured mesh as routing sees it from one region."""

from __future__ import annotations

from mesh.routing.fleet import Atlas, CatalogueModel, Site
from mesh.settings import Address, Settings
from mesh.types import RegionId


def atlas_of(settings: Settings, here: RegionId) -> Atlas:
    """What exists, loaded or not."""
    return Atlas(
        here=here,
        sites={
            region.id: Site(region=region.id, jurisdiction=region.jurisdiction, endpoint=region.endpoint)
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


def peers_of(settings: Settings, here: RegionId) -> dict[RegionId, list[Address]]:
    """Where the other regions' gateways take parcels."""
    return {
        region.id: [gateway.peer for gateway in region.gateways]
        for region in settings.regions.values()
        if region.id != here
    }
