"""`mesh usage T --disclosures`: the calls that doors outside a tenant's pin refused, from every region's ledger."""

from __future__ import annotations

from datetime import UTC, datetime

from mesh.cli.output import Column
from mesh.cli.running import Running
from mesh.errors import Code, MeshError
from mesh.types import RegionId
from mesh.v1.admin_pb2 import Disclosure, DisclosuresRequest, DisclosuresResponse

DISCLOSURE_COLUMNS = [Column(name.replace("_", " "), name) for name in
                      ("at", "region", "jurisdiction", "key_id", "door", "request_id")]  # fmt: skip


async def disclosures(
    mesh: Running, tenant: str, from_s: int, to_s: int
) -> tuple[list[dict[str, object]], list[RegionId]]:
    """All of them in [from_s, to_s), by time; and the regions that did not answer, of which nothing is shown.

    Raises:
        MeshError: What a region refuses.
    """
    request = DisclosuresRequest(tenant=tenant, from_s=from_s, to_s=to_s)
    answers = await mesh.ask_all("Disclosures", request, DisclosuresResponse)
    for error in answers.refused.values():
        raise error
    items: list[Disclosure] = []
    away = list(answers.unreachable)
    for region, page in answers.by_region.items():
        try:
            items += await _whole(mesh, region, request, page)
        except MeshError as error:
            if error.code is not Code.REGION_UNREACHABLE:
                raise
            away.append(region)
    items.sort(key=lambda item: (item.at_ms, item.request_id))
    return [_fields(item) for item in items], away


async def _whole(
    mesh: Running, region: RegionId, request: DisclosuresRequest, page: DisclosuresResponse
) -> list[Disclosure]:
    """The items of a first page and of those behind it."""
    items = list(page.items)
    while page.more and page.items:
        following = DisclosuresRequest(
            tenant=request.tenant, from_s=request.from_s, to_s=request.to_s, after=page.items[-1]
        )
        page = await mesh.ask(region, "Disclosures", following, DisclosuresResponse)
        items += page.items
    return items


def _fields(item: Disclosure) -> dict[str, object]:
    at = datetime.fromtimestamp(item.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return {
        "at": at.replace("+00:00", "Z"),
        "region": item.region,
        "jurisdiction": item.jurisdiction,
        "key_id": item.key_id,
        "door": item.door,
        "request_id": item.request_id,
    }
