"""What stands in the control store, to and from bytes. A record that is not right in every part is no record.

Signatures come with the guarantee behind a pin; until then the store's access rights by home are what a record's
origin rests on, and the tenant's id, which commits to the region where the tenant began.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from google.protobuf.message import DecodeError

from mesh.control import layout
from mesh.policy.bundle import TenantKey, TenantPolicy
from mesh.policy.shards import shard_of
from mesh.ports import Clock
from mesh.settings import PolicyKey, Settings
from mesh.types import Jurisdiction, KeyId, RegionId, Revision, TenantId, TenantState, Transfer
from mesh.v1 import control_pb2 as pb

NONCE_BYTES = 16
_DOMAIN = b"mesh.tenant.v1"
_TENANT = re.compile(r"t_[a-z2-7]{16}")
_JURISDICTION = re.compile(r"[A-Z]{2}")
_STATES = {TenantState.ACTIVE: pb.TENANT_STATE_ACTIVE, TenantState.SUSPENDED: pb.TENANT_STATE_SUSPENDED}
_TRANSFERS = {Transfer.NEVER: pb.TRANSFER_NEVER, Transfer.WITHIN_ALLOWED: pb.TRANSFER_WITHIN_ALLOWED}
_Wire = TypeVar("_Wire", pb.PolicyRecord, pb.KeyRecord, pb.OpRecord)
_STATE_OF = {wire: state for state, wire in _STATES.items()}
_TRANSFER_OF = {wire: transfer for transfer, wire in _TRANSFERS.items()}


class RecordError(Exception):
    """A value of the store that is not a record. `field` is the first one at fault, in our own words."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeTrust:
    """What the configuration says of one home: where it is, and what signs its tenants' policy."""

    jurisdiction: Jurisdiction
    keys: tuple[PolicyKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What records are held against. It comes from the region files, never from the control store.

    Attributes:
        epoch: The control epoch.
        cap_s: The longest that a grant may be good for.
        now: Seconds since 1970, for the days on which a key is valid.
    """

    homes: Mapping[RegionId, HomeTrust]
    epoch: int
    cap_s: float
    now: Callable[[], float]


def trust_of(settings: Settings, clock: Clock) -> Trust:
    """What a mesh's configuration trusts."""
    return Trust(
        homes={
            region.id: HomeTrust(jurisdiction=region.jurisdiction, keys=region.policy_keys)
            for region in settings.regions.values()
        },
        epoch=settings.control_epoch,
        cap_s=settings.authority_cap_s,
        now=clock.wall_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRecord:
    """A tenant's policy, and what its id commits to: the region where it began and 16 random bytes."""

    policy: TenantPolicy
    genesis: RegionId
    nonce: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key, the policy revisions that its making and its last change made, and when (seconds since 1970, UTC)."""

    key: TenantKey
    home: RegionId
    created_revision: Revision
    revision: Revision
    created_s: int
    revoked_s: int | None


def tenant_id(genesis: RegionId, nonce: bytes) -> TenantId:
    """The id of the tenant that began in `genesis` with this nonce.

    Lengths are hashed with the fields: without them `vn-1` and `vn-10` could share an id.
    """
    digest = hashlib.sha256()
    for field in (_DOMAIN, genesis.encode(), nonce):
        digest.update(len(field).to_bytes(4, "big") + field)
    return TenantId("t_" + base64.b32encode(digest.digest()).decode().lower()[:16])


def is_tenant_id(text: str) -> bool:
    """Whether a text has the form of a tenant's id."""
    return _TENANT.fullmatch(text) is not None


def encode_tenant(record: TenantRecord) -> bytes:
    """The record as bytes."""
    policy = record.policy
    return pb.PolicyRecord(
        tenant=policy.tenant,
        genesis=record.genesis,
        nonce=record.nonce,
        home=policy.home,
        revision=policy.revision,
        state=_STATES[policy.state],
        allowed=sorted(policy.allowed),
        transfer=_TRANSFERS[policy.transfer],
    ).SerializeToString(deterministic=True)


def decode_tenant(at: layout.PolicyKey, value: bytes, trust: Trust) -> TenantRecord:
    """The record that stands at a key.

    Raises:
        RecordError: It is not one, or belongs elsewhere.
    """
    wire = _parse(pb.PolicyRecord, value)
    home, tenant = RegionId(wire.home), TenantId(wire.tenant)
    state, transfer = _STATE_OF.get(wire.state), _TRANSFER_OF.get(wire.transfer)
    allowed = tuple(wire.allowed)
    if (home, tenant) != (at.shard.home, at.tenant) or shard_of(home, tenant) != at.shard:
        raise RecordError("place")
    if len(wire.nonce) != NONCE_BYTES or tenant_id(RegionId(wire.genesis), wire.nonce) != tenant:
        raise RecordError("tenant")
    if wire.genesis != home:
        # Nothing moves yet, so a record under another home is a takeover: it could widen a pin that is not its to set.
        raise RecordError("home")
    trusted = trust.homes.get(home)
    if trusted is None:
        raise RecordError("home")
    if state is None or transfer is None or wire.revision < 1:
        raise RecordError("state, transfer or revision")
    if not allowed or list(allowed) != sorted(set(allowed)) or not _are_jurisdictions(allowed):
        raise RecordError("allowed")
    policy = TenantPolicy(
        tenant=tenant,
        home=home,
        home_jurisdiction=trusted.jurisdiction,
        revision=Revision(wire.revision),
        state=state,
        allowed=frozenset(Jurisdiction(code) for code in allowed),
        transfer=transfer,
    )
    return TenantRecord(policy=policy, genesis=RegionId(wire.genesis), nonce=wire.nonce)


def encode_key(record: KeyRecord) -> bytes:
    """The record as bytes."""
    return pb.KeyRecord(
        tenant=record.key.tenant,
        key_id=record.key.key_id,
        home=record.home,
        hash=record.key.hash,
        state=pb.KEY_STATE_REVOKED if record.key.revoked else pb.KEY_STATE_ACTIVE,
        revision=record.revision,
        created_revision=record.created_revision,
        created_s=record.created_s,
        revoked_s=record.revoked_s or 0,
    ).SerializeToString(deterministic=True)


def decode_key(at: layout.KeyKey, value: bytes) -> KeyRecord:
    """The record of a key that stands at a key.

    Raises:
        RecordError: It is not one, or belongs elsewhere.
    """
    wire = _parse(pb.KeyRecord, value)
    home, tenant = RegionId(wire.home), TenantId(wire.tenant)
    if (home, tenant, wire.key_id) != (at.shard.home, at.tenant, at.key_id):
        raise RecordError("place")
    if shard_of(home, tenant) != at.shard:
        raise RecordError("place")
    if wire.state not in (pb.KEY_STATE_ACTIVE, pb.KEY_STATE_REVOKED) or not wire.hash or wire.revision < 1:
        raise RecordError("state, hash or revision")
    revoked = wire.state == pb.KEY_STATE_REVOKED
    key = TenantKey(key_id=KeyId(wire.key_id), tenant=tenant, hash=wire.hash, revoked=revoked)
    return KeyRecord(
        key=key,
        home=home,
        revision=Revision(wire.revision),
        created_revision=Revision(wire.created_revision),
        created_s=wire.created_s,
        revoked_s=wire.revoked_s if revoked else None,
    )


def encode_head(changed: str) -> bytes:
    """A shard's head: the key that its transaction changed."""
    return pb.HeadRecord(changed=changed).SerializeToString(deterministic=True)


def encode_op(revision: Revision) -> bytes:
    """What a change leaves at its op key."""
    return pb.OpRecord(revision=revision).SerializeToString(deterministic=True)


def decode_op(value: bytes) -> Revision:
    """The policy revision that a change made.

    Raises:
        RecordError: It is not such a record.
    """
    return Revision(_parse(pb.OpRecord, value).revision)


def next_revision(record: TenantRecord, **changes: object) -> TenantRecord:
    """The record after a change of its policy's fields, one revision on."""
    policy = replace(record.policy, revision=Revision(record.policy.revision + 1), **changes)  # pyright: ignore[reportArgumentType]
    return replace(record, policy=policy)


def _parse(kind: type[_Wire], value: bytes) -> _Wire:
    try:
        return kind.FromString(value)
    except DecodeError:
        pass
    raise RecordError("encoding")


def _are_jurisdictions(codes: Iterable[str]) -> bool:
    return all(_JURISDICTION.fullmatch(code) for code in codes)
