"""Ops: the marks that changes leave, so that none is made twice. They are kept for a week, then swept."""

from __future__ import annotations

import re
import uuid

from mesh.control import layout
from mesh.control.store import Delete, Range, Store, prefix_end
from mesh.errors import Code, MeshError
from mesh.ports import Clock, Entropy
from mesh.types import RegionId

KEPT_S = 7 * 86_400
_TAKEN_S = 6 * 86_400
_AHEAD_S = 3_600.0
_BATCH = 100
_TIMEOUT_S = 5.0
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def new_op_id(clock: Clock, entropy: Entropy) -> str:
    """A UUIDv7: its age can be told by itself."""
    random = int.from_bytes(entropy.token(10), "big")
    time_ms = int(clock.wall_s() * 1000)
    number = time_ms << 80 | 7 << 76 | (random >> 68 & 0xFFF) << 64 | 2 << 62 | random & ((1 << 62) - 1)
    return str(uuid.UUID(int=number))


def made_at_s(op_key: str) -> float | None:
    """When an op key's id was drawn, in seconds since 1970; None if it is not of our making."""
    op_id = op_key.rpartition("/")[2]
    return (uuid.UUID(op_id).int >> 80) / 1000 if _UUID7.fullmatch(op_id) else None


def checked_op_id(op_id: str, now_s: float) -> str:
    """A caller's op id, if its mark surely still stands where it was used before.

    Raises:
        MeshError: `invalid_parameter`, `op_id`: it is older than six days, or no UUIDv7 of our time.
    """
    made_s = made_at_s(op_id)
    if made_s is None or not now_s - _TAKEN_S <= made_s <= now_s + _AHEAD_S:
        raise MeshError(Code.INVALID_PARAMETER, param="op_id", hint="It is a UUIDv7 of the last six days.")
    return op_id


async def sweep(store: Store, home: RegionId, now_s: float) -> int:
    """Deletes a home's ops that are older than `KEPT_S`, and tells how many.

    Args:
        store: As that home's admin.
        home: Whose ops.
        now_s: Seconds since 1970.

    Raises:
        StoreError: Not all were looked at.
    """
    prefix = layout.op_prefix(home)
    key, end, swept = prefix, prefix_end(prefix), 0
    while True:
        page = await store.range(Range(key, end, limit=_BATCH), timeout_s=_TIMEOUT_S)
        times = ((item.key, made_at_s(item.key)) for item in page.items)
        old = [Delete(at) for at, made_s in times if made_s is not None and made_s < now_s - KEPT_S]
        if old:
            await store.txn((), old, timeout_s=_TIMEOUT_S)
            swept += len(old)
        if not page.more:
            return swept
        key = page.items[-1].key + "\0"
