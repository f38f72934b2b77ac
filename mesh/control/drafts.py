"""What a change starts from, what it makes of that, what came of it; and the journal that keeps what is signed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mesh.control import layout
from mesh.control.memberships import Member
from mesh.control.records import KeyRecord, OpMark, RecordError, TenantRecord, Trust, decode_key, decode_tenant
from mesh.control.store import Compare, KeyValue, RangeResult
from mesh.errors import Code, MeshError
from mesh.policy.shards import Shard
from mesh.policy.shrink import Shrink
from mesh.ports import Instant
from mesh.types import KeyId, MemberId, Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What there is after a change, and what a wait for it must know.

    Attributes:
        tenant: The record that stands, with `revision` or a later one.
        key: The key that was made or that ended.
        changed: False where everything was so already; `shrink` then says what earlier changes took away.
        revision: What every member must have done with: the one that was made, or where nothing changed, the newest.
        op_id: Asks for the same change again.
        resumed: Whether it had been made before under this op id.
        number: The shard's, that holds the change; 0 where nothing is waited for.
        beside: Numbers of other shards that every member must have come to as well.
        members: Who held a grant when it was made; read afterwards where it was not made now.
        shrink: What it took away; None if nothing.
        key_id: The key that ended, if one did.
        drain_s: How long what runs may go on where it is no longer allowed.
        committed: When the answer was received that told of it.
    """

    tenant: TenantRecord
    key: KeyRecord | None
    changed: bool
    revision: Revision
    op_id: str
    resumed: bool
    number: int
    members: Mapping[MemberId, Member]
    shrink: Shrink | None
    key_id: KeyId | None
    drain_s: float
    committed: Instant
    beside: Mapping[Shard, int] = field(default_factory=dict)


class Journal(Protocol):
    """Keeps every signed record of a home, for the day on which the control store must be written anew."""

    async def signed(self, key: str, value: bytes, epoch: int, revision: Revision) -> int:
        """Keeps a record that is about to be sent, for good, and numbers it."""
        ...

    async def made(self, numbers: Sequence[int]) -> None:
        """Notes that records surely came into the store."""
        ...

    async def unmade(self, number: int) -> None:
        """Forgets one that surely never came into the store."""
        ...

    async def signed_move(self, key: str, value: bytes, epoch: int, revision: Revision, *, last: bool) -> int:
        """As `signed`, for a home's last word of a tenant, or for the first one of a home that it is to come to.

        From a last word on nothing else about the tenant is signed, until it is to come back.

        Raises:
            MeshError: `move_unfinished`: another last word was signed, and may have been sent.
        """
        ...

    async def last_words(self, key: str) -> Sequence[tuple[int, bytes]]:
        """The last words for a record's key that were signed and are not known to have been made, and their numbers."""
        ...


@dataclass(frozen=True, slots=True)
class Before:
    """What a change starts from, as of one revision of the store; 0 where a record was never put.

    Attributes:
        tenant: The record that counts, with the statements of all moves; None where there is none.
        found: The one that stands, whether it counts or not.
        more: What else was asked for.
    """

    tenant: TenantRecord | None
    found: TenantRecord | None
    tenant_at: int
    key: KeyRecord | None
    key_at: int
    op: OpMark | None
    number: int
    members: Mapping[MemberId, Member]
    read: Instant
    more: tuple[RangeResult, ...]

    @property
    def is_unfinished(self) -> bool:
        """Whether the record that stands is a new home's first one, and counts."""
        return self.tenant is not None and self.found is not None and self.found.is_first


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a change makes of what stands. `compares` must hold as well for it to be made."""

    tenant: TenantRecord
    key: KeyRecord | None = None
    changed: bool
    shrink: Shrink | None = None
    key_id: KeyId | None = None
    drain_s: float = 0.0
    compares: tuple[Compare, ...] = ()


def existing(before: Before) -> TenantRecord:
    """The tenant's record; `tenant_not_found` where there is none."""
    if before.tenant is None:
        raise MeshError(Code.TENANT_NOT_FOUND)
    return before.tenant


def tenant_record(item: KeyValue, trust: Trust) -> TenantRecord | None:
    """The tenant's record that stands at a key, or None."""
    at = layout.parse(item.key)
    if not isinstance(at, layout.PolicyKey):
        return None
    try:
        return decode_tenant(at, item.value, trust)
    except RecordError:
        return None


def key_record(item: KeyValue, trust: Trust) -> KeyRecord | None:
    """The record of a key that stands at a key, or None."""
    at = layout.parse(item.key)
    if not isinstance(at, layout.KeyKey):
        return None
    try:
        return decode_key(at, item.value, trust)
    except RecordError:
        return None
