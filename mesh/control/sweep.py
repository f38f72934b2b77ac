"""Deletes the grants and acknowledgements that dead gateways of one region have left.

Only what has stood unchanged for as long as any authority can last, W of the cap on every tenant's span, as the sweeper
itself has seen, and only if it still stands so when it is deleted. A shorter wait would take a member out of a removal
that must still wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.control import layout
from mesh.control.store import Compare, Delete, KeyValue, Op, Range, Store, StoreError, prefix_end
from mesh.policy.authority import wait_s
from mesh.ports import Clock, Instant
from mesh.telemetry.log import Log
from mesh.types import RegionId

PERIOD_S = 60.0
_TIMEOUT_S = 5.0


class MemberSweeper:
    """The sweeper of one region: its admin's."""

    def __init__(self, store: Store, region: RegionId, cap_s: float, clock: Clock, log: Log | None = None) -> None:
        self._store = store
        self._region = region
        self._wait_s = wait_s(cap_s)
        self._clock = clock
        self._log = log
        self._seen: dict[str, tuple[int, Instant]] = {}

    async def run(self) -> None:
        """Looks once a minute, for ever."""
        while True:
            try:
                swept = await self.sweep()
            except StoreError as error:
                if self._log is not None:
                    self._log.warning("members.sweep_failed", error=type(error).__name__)
            else:
                if swept and self._log is not None:
                    self._log.info("members.swept", count=swept)
            await self._clock.sleep(PERIOD_S)

    async def sweep(self) -> int:
        """Looks once, and tells how many keys it deleted.

        Raises:
            StoreError: Not all were looked at.
        """
        prefixes = (layout.grant_prefix(self._region), layout.ack_prefix(self._region))
        ranges = [Range(prefix, prefix_end(prefix)) for prefix in prefixes]
        answer = await self._store.txn((), ranges, timeout_s=_TIMEOUT_S)
        received = self._clock.instant()
        grants, acks = ({item.key: item for item in found.items} for found in answer.ranges)
        self._note([*grants.values(), *acks.values()], received)
        swept = 0
        for key, item in grants.items():
            if self._is_dead(key, received):
                ack = layout.ack_prefix(self._region) + key.removeprefix(prefixes[0])
                swept += await self._delete([Compare(key, item.mod_revision)], [Delete(key), Delete(ack)])
        for key, item in acks.items():
            grant = prefixes[0] + key.removeprefix(prefixes[1])
            if grant not in grants and self._is_dead(key, received):
                swept += await self._delete([Compare(grant, 0), Compare(key, item.mod_revision)], [Delete(key)])
        return swept

    def _note(self, items: Sequence[KeyValue], received: Instant) -> None:
        """Keeps when each key was first seen as it stands; it was put before that."""
        self._seen = {
            item.key: known
            if (known := self._seen.get(item.key)) is not None and known[0] == item.mod_revision
            else (item.mod_revision, received)
            for item in items
        }

    def _is_dead(self, key: str, now: Instant) -> bool:
        return now.least_since(self._seen[key][1]) >= self._wait_s

    async def _delete(self, compares: Sequence[Compare], deletes: Sequence[Op]) -> int:
        done = await self._store.txn(compares, deletes, timeout_s=_TIMEOUT_S)
        return len(deletes) if done.succeeded else 0
