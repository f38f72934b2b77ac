"""Homes that a test trusts."""

from __future__ import annotations

from mesh.control.records import HomeTrust, Trust
from mesh.types import Jurisdiction, RegionId

HOMES = {
    RegionId("vn-1"): Jurisdiction("VN"),
    RegionId("vn-10"): Jurisdiction("VN"),
    RegionId("sg-1"): Jurisdiction("SG"),
    RegionId("ap-southeast-1"): Jurisdiction("SG"),
}


def trust_in(epoch: int = 1, cap_s: float = 86_400, now_s: float = 1_790_000_000) -> Trust:
    """Trust in these homes."""
    return Trust(
        homes={home: HomeTrust(jurisdiction=place, keys=()) for home, place in HOMES.items()},
        epoch=epoch,
        cap_s=cap_s,
        now=lambda: now_s,
    )
