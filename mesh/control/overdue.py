"""Has a shard read that the store says has gone on, where the watch keeps silent of it.

A watch can be up and tell nothing: a network that swallows one direction, a member that has stopped. Until it breaks,
grants are answered by others, and say that shards are further than what is applied: authority over their tenants runs
out, though the store can be asked. Such a read is what follows a gap too, so it is as good as what the watch tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from mesh.control.feed import PolicyFeed
from mesh.control.store import StoreError, StoreUnavailableError
from mesh.policy.shards import Shard
from mesh.ports import Clock
from mesh.telemetry.log import Log

OVERDUE_S = 1.5
"""A change that is known of and was not told of for so long is asked for: by the second grant that knows of it, so that
the shortest span of authority, which is longer than two grants' periods as a rule, does not run out before."""


class Overdue:
    """Holds what grants' answers say of the shards against what the feed has applied.

    Attributes:
        reads: Shards that were read.
    """

    def __init__(self, feed: PolicyFeed, clock: Clock, log: Log | None = None) -> None:
        self.reads = 0
        self._feed = feed
        self._clock = clock
        self._log = log
        self._waiting: dict[Shard, tuple[int, float]] = {}
        self._due: dict[Shard, int] = {}
        self._wake = asyncio.Event()
        self._silent_at = -1

    def answered(self, heads: Mapping[Shard, int]) -> None:
        """A grant's answer: every shard's number, at some moment before."""
        now_s, feed = self._clock.now_s(), self._feed
        # Nothing has come since the last read: it is known to be silent, and no longer waited for.
        silent = feed.told == self._silent_at
        for shard, number in heads.items():
            applied, waiting = feed.number(shard), self._waiting.get(shard)
            if applied >= number:
                self._waiting.pop(shard, None)
                continue
            if waiting is None or applied >= waiting[0]:
                waiting = self._waiting[shard] = (number, now_s)
            if silent or now_s - waiting[1] >= OVERDUE_S:
                self._due[shard] = number
                self._wake.set()

    async def run(self) -> None:
        """Reads what is overdue, for ever; what could not be read is asked for again by the next answer."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, {}
            for shard, number in due.items():
                try:
                    if await self._feed.catch_up(shard, number):
                        self.reads += 1
                        self._silent_at = self._feed.told
                        self._note(shard, number)
                except StoreError as error:
                    if self._log is not None:
                        reason = error.reason if isinstance(error, StoreUnavailableError) else None
                        self._log.warning("policy.unavailable", error=type(error).__name__, grpc_status=reason)

    def _note(self, shard: Shard, number: int) -> None:
        if self._log is not None:
            self._log.warning("policy.watch_silent", home=shard.home, shard=shard.index, number=number)
