"""What stands in the control store, to and from bytes. A record that is not right in every part is no record.

A tenant's record and those of its keys are signed by its home; what they are held against comes from the region files,
never from the store. The tenant's id commits to the region where the tenant began; from there a chain of statements
leads to the home of now. A record by itself says only that it was signed by a home: whether that is the tenant's home
is for `homes.py`, which knows all statements.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from google.protobuf.message import DecodeError

from mesh.control import layout
from mesh.control.signing import Signer, fields, listed, verify
from mesh.control.statements import Chain, ChainError, read_chain, said_part, signed_part, wire_of
from mesh.policy.bundle import Spans, TenantKey, TenantPolicy
from mesh.policy.hostnames import is_public_label
from mesh.policy.shards import shard_of
from mesh.policy.shrink import Right, Shrink
from mesh.ports import Clock
from mesh.settings import PolicyKey, Settings
from mesh.types import Jurisdiction, KeyId, RegionId, Revision, TenantId, TenantState, Transfer
from mesh.v1 import control_pb2 as pb

NONCE_BYTES = 16
FIRST_EPOCH = 1
"""The control epoch of a mesh whose store was never recovered."""
_DOMAIN = b"mesh.tenant.v1"
_TENANT = re.compile(r"t_[a-z2-7]{16}")
_JURISDICTION = re.compile(r"[A-Z]{2}")
_STATES = {TenantState.ACTIVE: pb.TENANT_STATE_ACTIVE, TenantState.SUSPENDED: pb.TENANT_STATE_SUSPENDED}
_TRANSFERS = {Transfer.NEVER: pb.TRANSFER_NEVER, Transfer.WITHIN_ALLOWED: pb.TRANSFER_WITHIN_ALLOWED}
_Wire = TypeVar("_Wire", pb.PolicyRecord, pb.KeyRecord, pb.OpRecord)
_STATE_OF = {wire: state for state, wire in _STATES.items()}
_TRANSFER_OF = {wire: transfer for transfer, wire in _TRANSFERS.items()}


class Fault(StrEnum):
    """Why a record is none."""

    ENCODING = "encoding"
    PLACE = "place"
    TENANT = "tenant"
    HOME = "home"
    SIGNATURE = "signature"
    EPOCH = "epoch"
    VALUE = "value"
    CAP = "cap"
    OLDER = "older"
    CHAIN = "chain"
    FORK = "fork"


class RecordError(Exception):
    """A value of the store that does not count."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeTrust:
    """What the configuration says of one home: where it is, and what signs its tenants' policy."""

    jurisdiction: Jurisdiction
    keys: tuple[PolicyKey, ...]

    def verifies(self, signed_by: str, signature: bytes, payload: bytes, at_s: float) -> bool:
        """Whether one of the home's keys, valid at a time (seconds since 1970), signed this."""
        return verify(self.keys, signed_by, signature, payload, at_s)


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
    """A tenant's policy, and what its id commits to: the region where it began and 16 random bytes.

    Attributes:
        chain: The statements of all moves. Of a new home's first record all but the last, which the old home makes.
        left: It is the last word of a home that the tenant has left. `policy` is then what held before, one revision
            on, and serves nothing.
    """

    policy: TenantPolicy
    genesis: RegionId
    nonce: bytes
    chain: Chain = ()
    left: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it counts only once the old home has said that the tenant has left it."""
        return len(self.chain) < self.policy.moves

    @property
    def came_from(self) -> RegionId | None:
        """The home that it came from with its last move, and that has said so or will; None where it never moved."""
        if not self.policy.moves:
            return None
        if not self.is_first:
            return self.chain[-1].home
        return self.chain[-1].new_home if self.chain else self.genesis


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key, the policy revisions that its making and its last change made, and when (seconds since 1970, UTC).

    `moves` is how often the tenant's home had changed.
    """

    key: TenantKey
    home: RegionId
    moves: int = 0
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


def encode_tenant(record: TenantRecord, signer: Signer, epoch: int) -> bytes:
    """The record as bytes, signed by its home."""
    wire = _wire_of(record)
    wire.epoch, wire.signed_by = epoch, signer.key_id
    wire.signature = signer.sign(_signed_policy(wire))
    return wire.SerializeToString(deterministic=True)


def digest_of(record: TenantRecord) -> bytes:
    """SHA-256 of what a record says, whatever key and control epoch it is signed with."""
    wire = _wire_of(record)
    return hashlib.sha256(fields(b"mesh.first.v1", *_terms(wire), said_part(wire.chain))).digest()


def _wire_of(record: TenantRecord) -> pb.PolicyRecord:
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
        moves=policy.moves,
        shard=policy.shard.index,
        authority_home_ms=_ms(policy.authority.home_s),
        authority_foreign_ms=_ms(policy.authority.foreign_s),
        authority_before=[pb.Span(jurisdiction=at, ms=_ms(s)) for at, s in sorted(policy.authority_before.items())],
        out_since=[pb.Out(jurisdiction=at, revision=since) for at, since in sorted(policy.out_since.items())],
        drain_ms=_ms(policy.drain_s),
        chain=[wire_of(statement) for statement in record.chain],
        left=record.left,
        label=policy.label,
    )


def decode_tenant(at: layout.PolicyKey, value: bytes, trust: Trust) -> TenantRecord:
    """The record that stands at a key.

    Raises:
        RecordError: It is not one, or belongs elsewhere, or its home did not sign it for this epoch.
    """
    wire = _parse(pb.PolicyRecord, value)
    home, tenant = RegionId(wire.home), TenantId(wire.tenant)
    if (home, tenant) != (at.shard.home, at.tenant) or shard_of(home, tenant) != at.shard:
        raise RecordError(Fault.PLACE)
    if wire.shard != at.shard.index:
        raise RecordError(Fault.PLACE)
    if len(wire.nonce) != NONCE_BYTES or tenant_id(RegionId(wire.genesis), wire.nonce) != tenant:
        raise RecordError(Fault.TENANT)
    trusted = _verified(wire, _signed_policy(wire), trust)
    chain = _chain_of(wire, trust)
    state, transfer = _STATE_OF.get(wire.state), _TRANSFER_OF.get(wire.transfer)
    if state is None or transfer is None or wire.revision < 1 or wire.upstreams:
        raise RecordError(Fault.VALUE)
    allowed = _ascending(wire.allowed)
    if not allowed or (wire.label and not is_public_label(wire.label)):
        raise RecordError(Fault.VALUE)
    _ascending(span.jurisdiction for span in wire.authority_before)
    out = _ascending(one.jurisdiction for one in wire.out_since)
    if set(out) & set(allowed) or any(not 1 <= one.revision <= wire.revision for one in wire.out_since):
        raise RecordError(Fault.VALUE)
    spans_ms = [wire.authority_home_ms, wire.authority_foreign_ms, *(span.ms for span in wire.authority_before)]
    if not all(1 <= ms <= _ms(trust.cap_s) for ms in spans_ms):
        raise RecordError(Fault.CAP)
    policy = TenantPolicy(
        tenant=tenant,
        home=home,
        home_jurisdiction=trusted.jurisdiction,
        revision=Revision(wire.revision),
        state=state,
        allowed=frozenset(allowed),
        transfer=transfer,
        moves=wire.moves,
        authority=Spans(home_s=wire.authority_home_ms / 1000, foreign_s=wire.authority_foreign_ms / 1000),
        authority_before={Jurisdiction(span.jurisdiction): span.ms / 1000 for span in wire.authority_before},
        out_since={Jurisdiction(one.jurisdiction): Revision(one.revision) for one in wire.out_since},
        drain_s=wire.drain_ms / 1000,
        label=wire.label,
    )
    return TenantRecord(policy=policy, genesis=RegionId(wire.genesis), nonce=wire.nonce, chain=chain, left=wire.left)


def encode_key(record: KeyRecord, signer: Signer, epoch: int) -> bytes:
    """The record as bytes, signed by the home of the key's tenant."""
    wire = pb.KeyRecord(
        tenant=record.key.tenant,
        key_id=record.key.key_id,
        home=record.home,
        hash=record.key.hash,
        state=pb.KEY_STATE_REVOKED if record.key.revoked else pb.KEY_STATE_ACTIVE,
        revision=record.revision,
        created_revision=record.created_revision,
        created_s=record.created_s,
        revoked_s=record.revoked_s or 0,
        moves=record.moves,
        epoch=epoch,
        signed_by=signer.key_id,
    )
    wire.signature = signer.sign(_signed_key(wire))
    return wire.SerializeToString(deterministic=True)


def decode_key(at: layout.KeyKey, value: bytes, trust: Trust) -> KeyRecord:
    """The record of a key that stands at a key.

    Raises:
        RecordError: It is not one, or belongs elsewhere, or its home did not sign it for this epoch.
    """
    wire = _parse(pb.KeyRecord, value)
    home, tenant = RegionId(wire.home), TenantId(wire.tenant)
    if (home, tenant, wire.key_id) != (at.shard.home, at.tenant, at.key_id) or shard_of(home, tenant) != at.shard:
        raise RecordError(Fault.PLACE)
    _verified(wire, _signed_key(wire), trust)
    if wire.state not in (pb.KEY_STATE_ACTIVE, pb.KEY_STATE_REVOKED) or not wire.hash or wire.revision < 1:
        raise RecordError(Fault.VALUE)
    revoked = wire.state == pb.KEY_STATE_REVOKED
    key = TenantKey(key_id=KeyId(wire.key_id), tenant=tenant, hash=wire.hash, revoked=revoked)
    return KeyRecord(
        key=key,
        home=home,
        moves=wire.moves,
        revision=Revision(wire.revision),
        created_revision=Revision(wire.created_revision),
        created_s=wire.created_s,
        revoked_s=wire.revoked_s if revoked else None,
    )


def epoch_of(at: str, value: bytes) -> int:
    """The control epoch that a record at a key says it was signed for; 0 if it is not one."""
    is_key = isinstance(layout.parse(at), layout.KeyKey)
    try:
        return (_parse(pb.KeyRecord, value) if is_key else _parse(pb.PolicyRecord, value)).epoch
    except RecordError:
        return 0


def encode_head(changed: str, op_id: str) -> bytes:
    """A shard's head: the key that its transaction changed, and the change's op id, so that no two heads are alike."""
    return pb.HeadRecord(changed=changed, op=op_id).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpMark:
    """What a change left at its op key.

    Attributes:
        revision: The tenant's, that it made.
        asked: A digest of what was asked for: the same op id is not for anything else.
        shrink: What it took away, as far as a wait for it must know; None if nothing.
        key_id: The key that ended, if one did.
        drain_s: How long what ran could go on.
    """

    revision: Revision
    asked: bytes
    shrink: Shrink | None = None
    key_id: KeyId | None = None
    drain_s: float = 0.0


def encode_op(mark: OpMark) -> bytes:
    """What a change leaves at its op key."""
    wire = pb.OpRecord(revision=mark.revision, asked=mark.asked)
    if mark.shrink is not None:
        wire.barrier.span_ms = _ms(mark.shrink.span_s)
        wire.barrier.removed.extend(
            pb.Removed(jurisdiction=right.place, sent=right.sent) for right in sorted(mark.shrink.removed)
        )
        wire.barrier.lowered.extend(sorted(mark.shrink.lowered))
        wire.barrier.key_id = mark.key_id or ""
        wire.barrier.drain_ms = _ms(mark.drain_s)
    return wire.SerializeToString(deterministic=True)


def decode_op(value: bytes) -> OpMark:
    """What a change left.

    Raises:
        RecordError: It is not such a record.
    """
    wire = _parse(pb.OpRecord, value)
    if not wire.HasField("barrier"):
        return OpMark(revision=Revision(wire.revision), asked=wire.asked)
    barrier = wire.barrier
    shrink = Shrink(
        removed=frozenset(Right(Jurisdiction(one.jurisdiction), one.sent) for one in barrier.removed),
        lowered=frozenset(Jurisdiction(code) for code in barrier.lowered),
        span_s=barrier.span_ms / 1000,
    )
    return OpMark(
        revision=Revision(wire.revision),
        asked=wire.asked,
        shrink=shrink,
        key_id=KeyId(barrier.key_id) if barrier.key_id else None,
        drain_s=barrier.drain_ms / 1000,
    )


def next_revision(record: TenantRecord, **changes: object) -> TenantRecord:
    """The record after a change of its policy's fields, one revision on."""
    policy = replace(record.policy, revision=Revision(record.policy.revision + 1), **changes)  # pyright: ignore[reportArgumentType]
    return replace(record, policy=policy)


def _parse(kind: type[_Wire], value: bytes) -> _Wire:
    try:
        return kind.FromString(value)
    except DecodeError:
        pass
    raise RecordError(Fault.ENCODING)


def _verified(wire: pb.PolicyRecord | pb.KeyRecord, payload: bytes, trust: Trust) -> HomeTrust:
    """What is trusted of a record's home, once that home has signed it for this epoch."""
    home = trust.homes.get(RegionId(wire.home))
    if home is None:
        raise RecordError(Fault.HOME)
    if not home.verifies(wire.signed_by, wire.signature, payload, trust.now()):
        raise RecordError(Fault.SIGNATURE)
    if wire.epoch != trust.epoch:
        raise RecordError(Fault.EPOCH)
    return home


def _chain_of(wire: pb.PolicyRecord, trust: Trust) -> Chain:
    """The statements that a record carries, which must lead to its home, or for a last word away from there."""
    try:
        chain, end = read_chain(wire.chain, TenantId(wire.tenant), RegionId(wire.genesis), trust.homes, trust.epoch)
    except ChainError as error:
        raise RecordError(Fault.SIGNATURE if error.unsigned else Fault.CHAIN) from None
    if wire.left:
        fits = bool(chain) and chain[-1].home == wire.home and len(chain) == wire.moves
        fits = fits and chain[-1].revision == wire.revision - 1
    else:
        # A record under a home to which nothing leads is a takeover: it could widen a pin that is not its to set.
        # A first record is under one to which something may lead yet; it does not count before.
        fits = (end == wire.home) if len(chain) == wire.moves else (end != wire.home and len(chain) == wire.moves - 1)
    if not fits:
        raise RecordError(Fault.HOME)
    return chain


def _signed_policy(wire: pb.PolicyRecord) -> bytes:
    """What a home signs of a tenant's record: every field but the signature.

    One that never moved has no chain, and what has no label says so by leaving it out.
    """
    moved = (signed_part(wire.chain), int(wire.left)) if wire.chain or wire.left else ()
    return fields(b"mesh.policy.v1", *_terms(wire), wire.epoch, wire.signed_by, *moved)


def _terms(wire: pb.PolicyRecord) -> tuple[bytes | str | int, ...]:
    return (
        wire.tenant,
        wire.genesis,
        wire.nonce,
        wire.home,
        wire.moves,
        wire.shard,
        wire.revision,
        wire.state,
        listed(wire.allowed),
        listed(wire.upstreams),
        wire.transfer,
        wire.authority_home_ms,
        wire.authority_foreign_ms,
        listed(part for span in wire.authority_before for part in (span.jurisdiction, span.ms)),
        listed(part for out in wire.out_since for part in (out.jurisdiction, out.revision)),
        wire.drain_ms,
        *((b"label", wire.label) if wire.label else ()),
    )


def _signed_key(wire: pb.KeyRecord) -> bytes:
    """What a home signs of a key's record."""
    return fields(
        b"mesh.key.v1",
        wire.tenant,
        wire.key_id,
        wire.hash,
        wire.state,
        wire.revision,
        wire.home,
        wire.moves,
        wire.epoch,
        wire.created_revision,
        wire.created_s,
        wire.revoked_s,
        wire.signed_by,
    )


def _ascending(codes: Iterable[str]) -> tuple[Jurisdiction, ...]:
    """Jurisdictions, each once and in order: one set has one form."""
    found = tuple(codes)
    if list(found) != sorted(set(found)) or not all(_JURISDICTION.fullmatch(code) for code in found):
        raise RecordError(Fault.VALUE)
    return tuple(map(Jurisdiction, found))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
