"""Which sixteenth of a home's tenants a tenant is in: what is numbered, and granted, together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from mesh.types import RegionId, TenantId

SHARDS = 16
"""Of each home. A shard's number is its head key's etcd version."""
_KEPT = 16_384
"""Answers that are kept: asked before each piece of a body, hop and answer, the digest alone took most of that time."""


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """A sixteenth of a home's tenants. `index` is 0 to 15."""

    home: RegionId
    index: int


def shard_of(home: RegionId, tenant: TenantId) -> Shard:
    """Where a tenant's records are: for good, as long as its home stays."""
    return _shard_of(home, tenant)


@lru_cache(_KEPT)
def _shard_of(home: RegionId, tenant: TenantId) -> Shard:
    return Shard(home, hashlib.sha256(tenant.encode()).digest()[0] % SHARDS)
