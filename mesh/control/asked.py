"""A change as it is asked for, and what is told of one that was made before, or that is so already. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mesh.control.drafts import Before, Draft, Outcome, existing
from mesh.control.records import OpMark, RecordError, TenantRecord, decode_op
from mesh.control.store import KeyValue, Range, RangeResult
from mesh.errors import Code, MeshError
from mesh.policy.shards import Shard
from mesh.types import KeyId, RegionId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A change as it is asked for.

    Attributes:
        given: Whether the op id is the caller's, who may have used it before.
        asked: A digest of it.
        more: To be read with what it starts from.
    """

    tenant: TenantId
    key_id: KeyId | None
    op_id: str
    given: bool
    asked: bytes
    edit: Callable[[Before], Draft]
    more: tuple[Range, ...]


def left_homes(record: TenantRecord | None, home: RegionId) -> list[RegionId]:
    """The homes that a tenant has had, but for one."""
    return [] if record is None else sorted({one.home for one in record.chain} - {home})


def told(
    before: Before, mark: OpMark, request: Request, *, resumed: bool, beside: Mapping[Shard, int] | None = None
) -> Outcome:
    """What an op key tells of a change that was made."""
    if mark.asked != request.asked:
        raise MeshError(Code.INVALID_PARAMETER, param="op_id", hint="It was another change's; leave it out.")
    return Outcome(
        # Also where the tenant has left since: whoever asks waits for what this home has changed.
        tenant=before.tenant or before.found or existing(before),
        key=before.key,
        changed=True,
        revision=mark.revision,
        op_id=request.op_id,
        resumed=resumed,
        # As of now, so at least as high as in the commit: whoever has applied this has applied that.
        number=before.number,
        members=before.members,
        shrink=mark.shrink,
        key_id=mark.key_id,
        drain_s=mark.drain_s,
        committed=before.read,
        beside=beside or {},
    )


def unchanged(before: Before, draft: Draft, request: Request) -> Outcome:
    """What stands already. Whoever asked for it may have gone before it held everywhere, so it is waited for again."""
    return Outcome(
        tenant=draft.tenant,
        key=draft.key,
        changed=False,
        revision=draft.tenant.policy.revision,
        op_id=request.op_id,
        resumed=False,
        number=before.number,
        members=before.members,
        shrink=draft.shrink,
        key_id=draft.key_id,
        drain_s=draft.tenant.policy.drain_s,
        committed=before.read,
    )


def number_of(head: RangeResult) -> int:
    """A shard's number, by what stands at its head's key; 0 before its first change."""
    return head.items[0].version if head.items else 0


def mark_of(item: KeyValue | None) -> OpMark | None:
    """What a change has left at its op key; `internal_error` where that cannot be read."""
    try:
        return decode_op(item.value) if item else None
    except RecordError:
        pass
    raise MeshError(Code.INTERNAL_ERROR, hint="An op's record in the control store is not valid.")
