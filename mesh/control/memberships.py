"""Grants and acknowledgements, to and from bytes: who the members are, and how far each says that it has come.

A value that is not right in every part says nothing: a member without a readable acknowledgement has acknowledged
nothing. Its grant's key alone makes it a member, whatever stands there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError

from mesh.control import layout
from mesh.control.records import is_tenant_id
from mesh.control.store import KeyValue
from mesh.policy.shards import SHARDS, Shard
from mesh.types import GatewayId, MemberId, RegionId, Revision, TenantId
from mesh.v1 import control_pb2 as pb

ATTEMPT_BYTES = 16
_GATEWAY = re.compile(r"[a-z]{1,8}[0-9]{1,4}")
_MOST_LEFT_MS = 1 << 40
_Wire = TypeVar("_Wire", pb.GrantRecord, pb.AckRecord)


@dataclass(frozen=True, slots=True)
class Grant:
    """What stands at a member's grant: the gateway, and the random ids of this attempt and of the last one heard of."""

    gateway: GatewayId
    attempt: bytes
    last: bytes


@dataclass(frozen=True, slots=True)
class Drain:
    """What of a tenant has not ended yet though its policy no longer allows it.

    Attributes:
        revision: The newest one applied: it is not acknowledged, nor is any before it.
        left_s: When it ends at the latest, in seconds from now.
    """

    revision: Revision
    left_s: float


@dataclass(frozen=True, slots=True)
class Ack:
    """What a member has applied, and what has not ended yet. `left_s` counts from when it was written."""

    applied: Mapping[Shard, int] = field(default_factory=dict)
    draining: Mapping[TenantId, Drain] = field(default_factory=dict)

    def covers(self, shard: Shard, number: int, tenant: TenantId, revision: Revision) -> bool:
        """Whether it acknowledges a tenant's revision, which was its shard's change of this number."""
        drain = self.draining.get(tenant)
        return self.applied.get(shard, 0) >= number and (drain is None or drain.revision < revision)


NOTHING_YET = Ack()


@dataclass(frozen=True, slots=True)
class Member:
    """A gateway process that was granted authority.

    Attributes:
        region: Where its grant stands: only that region's gateways and admin can have put it.
        mod_revision: When its grant was last put, as a revision of the store.
        gateway: What it says it is; empty where that cannot be read.
    """

    region: RegionId
    mod_revision: int
    gateway: str


def members_of(items: Iterable[KeyValue]) -> dict[MemberId, Member]:
    """The members in a read of `layout.GRANTS`, or of more.

    An id is one member's, unless somebody takes another region's for its own: that one must not hide the other, and is
    listed with its region before it.
    """
    found: dict[MemberId, Member] = {}
    for item in items:
        at = layout.parse_member(item.key)
        if isinstance(at, layout.GrantKey):
            grant = decode_grant(item.value)
            member = at.member if at.member not in found else MemberId(f"{at.region}/{at.member}")
            found[member] = Member(at.region, item.mod_revision, grant.gateway if grant else "")
    return found


def grant_of(member: MemberId, seen: Member) -> layout.GrantKey:
    """Which grant a member of `members_of` is."""
    return layout.GrantKey(seen.region, MemberId(member.rpartition("/")[2]))


def encode_grant(grant: Grant) -> bytes:
    """The grant as bytes."""
    return pb.GrantRecord(gateway=grant.gateway, attempt=grant.attempt, last=grant.last).SerializeToString(
        deterministic=True
    )


def decode_grant(value: bytes) -> Grant | None:
    """A grant, or None if it is not one."""
    wire = _parse(pb.GrantRecord, value)
    if wire is None or not _GATEWAY.fullmatch(wire.gateway):
        return None
    if len(wire.attempt) != ATTEMPT_BYTES or len(wire.last) not in (0, ATTEMPT_BYTES):
        return None
    return Grant(GatewayId(wire.gateway), wire.attempt, wire.last)


def encode_ack(ack: Ack) -> bytes:
    """The acknowledgement as bytes."""
    return pb.AckRecord(
        applied=[
            pb.AppliedShard(home=shard.home, shard=shard.index, number=number)
            for shard, number in sorted(ack.applied.items())
        ],
        draining=[
            pb.Draining(tenant=tenant, revision=drain.revision, left_ms=max(0, round(drain.left_s * 1000)))
            for tenant, drain in sorted(ack.draining.items())
        ],
    ).SerializeToString(deterministic=True)


def decode_ack(value: bytes) -> Ack | None:
    """An acknowledgement, or None if it is not one in every part: then nothing is acknowledged."""
    wire = _parse(pb.AckRecord, value)
    if wire is None:
        return None
    applied: dict[Shard, int] = {}
    for one in wire.applied:
        shard = Shard(RegionId(one.home), one.shard)
        if not one.home or one.shard >= SHARDS or one.number < 1 or shard in applied:
            return None
        applied[shard] = one.number
    draining: dict[TenantId, Drain] = {}
    for one in wire.draining:
        tenant = TenantId(one.tenant)
        if not is_tenant_id(tenant) or one.revision < 1 or one.left_ms > _MOST_LEFT_MS or tenant in draining:
            return None
        draining[tenant] = Drain(Revision(one.revision), one.left_ms / 1000)
    return Ack(applied, draining)


def _parse(kind: type[_Wire], value: bytes) -> _Wire | None:
    try:
        return kind.FromString(value)
    except DecodeError:
        return None
