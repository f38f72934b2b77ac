"""Which sixteenth of a home's tenants a tenant is in: what is numbered, and granted, together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from mesh.types import RegionId, TenantId

SHARDS = 16
"""Of each home. A shard's number is its head key's etcd version."""


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """A sixteenth of a home's tenants. `index` is 0 to 15."""

    home: RegionId
    index: int


def shard_of(home: RegionId, tenant: TenantId) -> Shard:
    """Where a tenant's records are: for good, as long as its home stays."""
    return Shard(home, hashlib.sha256(tenant.encode()).digest()[0] % SHARDS)
