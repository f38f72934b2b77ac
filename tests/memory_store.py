"""A linearizable store in memory: what `mesh.control.store.Store` promises, in the smallest form, with faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from mesh.control.store import (
    CompactedError,
    Compare,
    Delete,
    Event,
    KeyValue,
    Op,
    Put,
    Range,
    RangeResult,
    StoreUnavailableError,
    TxnResult,
    WatchBatch,
    WatchDown,
    WatchNews,
    WatchUp,
)

PAGE = 3
"""Small, so that reads take several steps and changes come in between."""


class MemoryStore:
    """One store; every call gives way to other tasks first, so that any interleaving can happen."""

    def __init__(self) -> None:
        self.revision = 1
        self.cluster = 1
        self.compacted = 0
        self.history: list[Event] = []
        self.down = False
        self.lose_answers = 0
        """So many transactions run and are then reported as lost."""
        self.cuts = 0
        """Grows by one: every watch loses its connection once."""
        self.forget = 0
        """So many batches are left out of every watch: what no store may do."""
        self.before_txn: Callable[[], None] = lambda: None
        self.watching = 0
        self.told = 0
        self._states: list[dict[str, KeyValue]] = [{}, {}]
        """As of each revision."""
        self._news = asyncio.Event()

    async def range(self, request: Range, *, timeout_s: float) -> RangeResult:
        await self._reach()
        return self._range(request)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout_s: float
    ) -> TxnResult:
        if any(isinstance(op, Put) for op in then):
            self.before_txn()
        await self._reach()
        now = self._at(self.revision)
        holds = all((now[one.key].mod_revision if one.key in now else 0) == one.mod_revision for one in compares)
        ops = then if holds else otherwise
        writes = [op for op in ops if not isinstance(op, Range)]
        if writes:
            self.revision += 1
            self._states.append(dict(self._states[-1]))
        ranges: list[RangeResult] = []
        for op in ops:
            # In their order: a read sees what was put before it in the same transaction, and nothing after it.
            if isinstance(op, Range):
                ranges.append(self._range(op))
            else:
                self._write(op)
        if writes:
            self._wake()
        if writes and self.lose_answers:
            self.lose_answers -= 1
            raise StoreUnavailableError("UNAVAILABLE")
        return TxnResult(self.revision, holds, tuple(ranges), self.cluster)

    async def watch(self, key: str, end: str, start: int) -> AsyncGenerator[WatchNews]:
        self.watching += 1
        try:
            cuts = self.cuts
            yield WatchUp()
            while True:
                if start <= self.compacted:
                    raise CompactedError(self.compacted)
                if cuts != self.cuts:
                    cuts = self.cuts
                    yield WatchDown("UNAVAILABLE")
                    yield WatchUp()
                batch = [event for event in self.history if event.mod_revision >= start and key <= event.key < end]
                if batch:
                    # Two revisions at most: catching up takes several batches.
                    last = sorted({event.mod_revision for event in batch})[:2][-1]
                    start = last + 1
                    if self.forget:
                        self.forget -= 1
                        continue
                    yield WatchBatch(tuple(event for event in batch if event.mod_revision <= last))
                    continue
                self.told = self.revision
                self._news.clear()
                await self._news.wait()
        finally:
            self.watching -= 1

    def compact(self, revision: int) -> None:
        self.compacted = max(self.compacted, min(revision, self.revision))
        self._wake()

    def cut(self) -> None:
        self.cuts += 1
        self._wake()

    def restore(self, revision: int) -> None:
        """What a backup of that revision brings back: all that came later never was."""
        del self._states[revision + 1 :]
        self.history = [event for event in self.history if event.mod_revision <= revision]
        self.revision = revision
        self.cut()

    def value(self, key: str) -> KeyValue | None:
        return self._at(self.revision).get(key)

    def _wake(self) -> None:
        self._news.set()

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailableError("UNAVAILABLE")

    def _range(self, request: Range) -> RangeResult:
        revision = request.revision or self.revision
        if request.revision and request.revision < self.compacted:
            raise CompactedError(self.compacted)
        state = self._at(revision)
        if request.end is None:
            found = [state[request.key]] if request.key in state else []
        else:
            found = [state[key] for key in sorted(state) if request.key <= key < request.end]
        limit = min(request.limit or len(found), PAGE) if request.limit else len(found)
        return RangeResult(self.revision, tuple(found[:limit]), len(found) > limit)

    def _write(self, op: Op) -> None:
        now = self._states[-1]
        match op:
            case Put(key, value):
                old = now.get(key)
                new = KeyValue(key, value, self.revision, old.version + 1 if old else 1)
                now[key] = new
                self.history.append(Event(key, self.revision, new.version, value, old))
            case Delete(key, end):
                for gone in [one for one in now if (one == key if end is None else key <= one < end)]:
                    self.history.append(Event(gone, self.revision, 0, None, now.pop(gone)))
            case Range():
                pass

    def _at(self, revision: int) -> dict[str, KeyValue]:
        return self._states[revision]
