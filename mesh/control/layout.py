"""Every key of the control store is built and read here. The store's access rights depend on this layout.

    /mesh/ack/<region>/<uuid>                                   that region's gateways
    /mesh/grant/<region>/<uuid>                                 that region's gateways
    /mesh/head/<home>/<shard>                                   that home's admin, as all below
    /mesh/op/<home>/<tenant>/<op id>
    /mesh/op/<home>/recovery
    /mesh/policy/<home>/<shard>/<tenant>
    /mesh/policy/<home>/<shard>/<tenant>/key/<key id>

`FEED` covers heads, ops and policies by one range, so that one watch tells of all of them in the store's order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mesh.control.store import prefix_end
from mesh.policy.shards import Shard, shard_of
from mesh.types import KeyId, MemberId, RegionId, TenantId

_ROOT = "/mesh/"
ACKS = (_ROOT + "ack/", _ROOT + "ack0")
GRANTS = (_ROOT + "grant/", _ROOT + "grant0")
MEMBERS = (_ROOT + "ack/", GRANTS[1])
"""Acknowledgements and grants: what says who the members are and how far each has come."""
HEADS = (_ROOT + "head/", _ROOT + "head0")
POLICIES = (_ROOT + "policy/", _ROOT + "policy0")
FEED = (HEADS[0], POLICIES[1])
ALL = (MEMBERS[0], FEED[1])
"""One watch of all of it tells in the store's order who acknowledged what, and what became of the records."""


@dataclass(frozen=True, slots=True)
class HeadKey:
    """The key of a shard's head."""

    shard: Shard


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """The key of a tenant's record."""

    shard: Shard
    tenant: TenantId


@dataclass(frozen=True, slots=True)
class GrantKey:
    """The key of a member's grant."""

    region: RegionId
    member: MemberId


@dataclass(frozen=True, slots=True)
class AckKey:
    """The key of a member's acknowledgement."""

    region: RegionId
    member: MemberId


@dataclass(frozen=True, slots=True)
class KeyKey:
    """The key of a record of one of a tenant's keys."""

    shard: Shard
    tenant: TenantId
    key_id: KeyId


def head_key(shard: Shard) -> str:
    """`/mesh/head/<home>/<shard>`; the shard as one hex digit."""
    return f"{_ROOT}head/{shard.home}/{shard.index:x}"


def shard_prefix(shard: Shard) -> str:
    """What the keys of a shard's records begin with."""
    return f"{_ROOT}policy/{shard.home}/{shard.index:x}/"


def home_prefix(home: RegionId) -> str:
    """What the keys of a home's records begin with."""
    return f"{_ROOT}policy/{home}/"


def policy_key(home: RegionId, tenant: TenantId) -> str:
    """The key of a tenant's record."""
    return shard_prefix(shard_of(home, tenant)) + tenant


def tenant_range(home: RegionId, tenant: TenantId) -> tuple[str, str]:
    """The range of a tenant's record and all its keys' records. Ids have one length, so no other's lie between."""
    record = policy_key(home, tenant)
    return record, prefix_end(record + "/")


def key_prefix(home: RegionId, tenant: TenantId) -> str:
    """What the keys of the records of a tenant's keys begin with."""
    return policy_key(home, tenant) + "/key/"


def key_key(home: RegionId, tenant: TenantId, key_id: KeyId) -> str:
    """The key of the record of one key."""
    return key_prefix(home, tenant) + key_id


def op_key(home: RegionId, tenant: TenantId, op_id: str) -> str:
    """The key that one change leaves, so that it is never made twice."""
    return f"{_ROOT}op/{home}/{tenant}/{op_id}"


def recovery_key(home: RegionId) -> str:
    """The key that a home's recovery leaves."""
    return f"{_ROOT}op/{home}/recovery"


def op_prefix(home: RegionId) -> str:
    """What the keys of a home's changes begin with."""
    return f"{_ROOT}op/{home}/"


def head_prefix(home: RegionId) -> str:
    """What the keys of a home's heads begin with."""
    return f"{_ROOT}head/{home}/"


def grant_prefix(region: RegionId) -> str:
    """What the keys of a region's grants begin with."""
    return f"{_ROOT}grant/{region}/"


def ack_prefix(region: RegionId) -> str:
    """What the keys of a region's acknowledgements begin with."""
    return f"{_ROOT}ack/{region}/"


def grant_key(region: RegionId, member: MemberId) -> str:
    """The key of a member's grant."""
    return grant_prefix(region) + member


def ack_key(region: RegionId, member: MemberId) -> str:
    """The key of a member's acknowledgement."""
    return ack_prefix(region) + member


_MEMBER = re.compile(r"/mesh/(?P<kind>grant|ack)/(?P<region>[^/]+)/(?P<member>[^/]+)")


def parse_member(key: str) -> GrantKey | AckKey | None:
    """What a key of `MEMBERS` stands for; None for anything unknown."""
    found = _MEMBER.fullmatch(key)
    if found is None:
        return None
    kind = GrantKey if found["kind"] == "grant" else AckKey
    return kind(RegionId(found["region"]), MemberId(found["member"]))


_PARSED = re.compile(
    r"/mesh/(?:head/(?P<head_home>[^/]+)/(?P<head_shard>[0-9a-f])"
    r"|policy/(?P<home>[^/]+)/(?P<shard>[0-9a-f])/(?P<tenant>[^/]+)(?:/key/(?P<key>[^/]+))?)"
)


def parse(key: str) -> HeadKey | PolicyKey | KeyKey | None:
    """What a key of the feed's range stands for; None for ops and for anything unknown."""
    found = _PARSED.fullmatch(key)
    if found is None:
        return None
    if found["head_home"]:
        return HeadKey(Shard(RegionId(found["head_home"]), int(found["head_shard"], 16)))
    shard, tenant = Shard(RegionId(found["home"]), int(found["shard"], 16)), TenantId(found["tenant"])
    if found["key"]:
        return KeyKey(shard, tenant, KeyId(found["key"]))
    return PolicyKey(shard, tenant)
