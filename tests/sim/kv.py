"""etcd's data: a map with history, and transactions on it. No time, no network.

As etcd 3.4: operations of a transaction see those before them; a key's version starts again at 1 after a delete; a
range at a revision below the compacted one fails, as does a watch; an event's previous value is gone with its revision.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

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
    TxnResult,
)


class InvalidError(Exception):
    """A request that etcd refuses as it is."""


class Data:
    """What all members agree on."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self._keys: list[str] = []
        self._versions: dict[str, list[tuple[int, KeyValue | None]]] = {}
        self._log: list[tuple[int, tuple[Event, ...]]] = []

    def get(self, key: str, revision: int = 0) -> KeyValue | None:
        """One key, now or as of a revision."""
        for at, item in reversed(self._versions.get(key, ())):
            if not revision or at <= revision:
                return item
        return None

    def range(self, request: Range, now: int | None = None) -> RangeResult:
        """Reads. `now` is the revision that an answer shows, where a transaction is under way."""
        now = self.revision if now is None else now
        if request.revision and request.revision < self.compacted:
            raise CompactedError(self.compacted)
        if request.revision > now:
            raise InvalidError("required revision is a future revision")
        found: list[KeyValue] = []
        for key in self._between(request.key, request.end):
            item = self.get(key, request.revision)
            if item is not None:
                if request.limit and len(found) == request.limit:
                    return RangeResult(now, tuple(found), more=True)
                found.append(item)
        return RangeResult(now, tuple(found))

    def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]
    ) -> tuple[TxnResult, tuple[Event, ...]]:
        """Runs one branch, all of it or nothing; what it changed comes with the answer."""
        for branch in (then, otherwise):
            _check(branch)
        held = all((item.mod_revision if (item := self.get(one.key)) else 0) == one.mod_revision for one in compares)
        ops = then if held else otherwise
        for op in ops:  # before anything is written
            if isinstance(op, Range) and op.revision:
                self.range(op)
        events: list[Event] = []
        ranges: list[RangeResult] = []
        for op in ops:
            match op:
                case Range():
                    ranges.append(self.range(op, self.revision + bool(events)))
                case Put(key, value):
                    events.append(self._put(key, value))
                case Delete(key, end):
                    events.extend(self._delete(key, end))
        if events:
            self.revision += 1
            self._log.append((self.revision, tuple(events)))
        return TxnResult(self.revision, held, tuple(ranges)), tuple(events)

    def since(self, revision: int, upto: int, key: str, end: str) -> list[tuple[int, tuple[Event, ...]]]:
        """Whole revisions of [key, end), from one to another, both included.

        Raises:
            CompactedError: They are gone.
        """
        if revision < self.compacted:
            raise CompactedError(self.compacted)
        found: list[tuple[int, tuple[Event, ...]]] = []
        for at, events in self._log[bisect_left(self._log, (revision,)) :]:
            if at > upto:
                break
            told = tuple(self._as_told(event) for event in events if key <= event.key < end)
            if told:
                found.append((at, told))
        return found

    def compact(self, revision: int) -> None:
        """Forgets what was before `revision`."""
        self.compacted = max(self.compacted, min(revision, self.revision))

    def go_back_to(self, revision: int) -> None:
        """As a restored backup: later revisions never were, and will be used a second time for other events."""
        self.revision = revision
        self.compacted = min(self.compacted, revision)
        del self._log[bisect_left(self._log, (revision + 1,)) :]
        for versions in self._versions.values():
            while versions and versions[-1][0] > revision:
                versions.pop()

    def _between(self, key: str, end: str | None) -> list[str]:
        if end is None:
            return [key]
        return self._keys[bisect_left(self._keys, key) : bisect_left(self._keys, end)]

    def _put(self, key: str, value: bytes) -> Event:
        before, at = self.get(key), self.revision + 1
        item = KeyValue(key, value, at, before.version + 1 if before else 1)
        self._set(key, at, item)
        return Event(key, at, item.version, value, before)

    def _delete(self, key: str, end: str | None) -> list[Event]:
        events: list[Event] = []
        at = self.revision + 1
        for one in self._between(key, end):
            before = self.get(one)
            if before is not None:
                self._set(one, at, None)
                events.append(Event(one, at, 0, None, before))
        return events

    def _set(self, key: str, at: int, item: KeyValue | None) -> None:
        if key not in self._versions:
            insort(self._keys, key)
            self._versions[key] = []
        self._versions[key].append((at, item))

    def _as_told(self, event: Event) -> Event:
        if event.mod_revision > self.compacted or event.before is None:
            return event
        return Event(event.key, event.mod_revision, event.version, event.value, None)


def _check(ops: Sequence[Op]) -> None:
    """A key is put once in a transaction, and not both put and deleted."""
    put: list[str] = [op.key for op in ops if isinstance(op, Put)]
    if len(put) != len(dict.fromkeys(put)):
        raise InvalidError("duplicate key given in txn request")
    for op in ops:
        if isinstance(op, Delete) and any(key == op.key if op.end is None else op.key <= key < op.end for key in put):
            raise InvalidError("duplicate key given in txn request")
