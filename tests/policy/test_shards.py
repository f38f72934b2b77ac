"""Where a tenant's records are: for good, and found without a digest for each piece of content."""

from __future__ import annotations

import hashlib

from mesh.policy.shards import SHARDS, Shard, shard_of
from mesh.types import RegionId, TenantId

HOME = RegionId("vn-1")


def test_a_shard_is_the_digest_of_the_tenant_whatever_was_asked_before() -> None:
    tenants = [TenantId(f"t_{number:016d}") for number in range(40_000)]
    for _ in range(2):
        for tenant in tenants[::7]:
            index = hashlib.sha256(tenant.encode()).digest()[0] % SHARDS
            assert shard_of(HOME, tenant) == Shard(HOME, index)
            assert shard_of(RegionId("sg-1"), tenant) == Shard(RegionId("sg-1"), index)


def test_what_is_asked_again_is_not_computed_again() -> None:
    first = shard_of(HOME, TenantId("t_aaaaaaaaaaaaaaaa"))
    assert shard_of(HOME, TenantId("t_aaaaaaaaaaaaaaaa")) is first
    # Not for ever: what is kept does not grow with what is asked.
    for number in range(40_000):
        shard_of(HOME, TenantId(f"t_{number:016d}"))
    assert shard_of(HOME, TenantId("t_aaaaaaaaaaaaaaaa")) is not first
