"""How a reader learns what a shard's number means: one watch, gaps, and fetches in pages.

Modelled (pins.md section 2): changes of one shard, of this tenant or another, each a transaction that puts the record
and the head; events that carry the head's version, its mod_revision and those before it; a watch that loses events, is
cancelled, or is created late and sends again what a fetch has shown; a fetch that reads the head and the records in two
pages, at one revision, while changes go on; an operator who deletes a head, so that its version begins again at 1.

Abstracted: no time. The store's revision counts changes of this shard only. The tenant's record is its revision.

Promised: whoever has applied a head knows the record as of that head, or a newer one. Authority, acknowledgements and
returns are all told by the head that was applied, so I1 to I3 rest on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check


class Head(NamedTuple):
    version: int
    mod: int


NO_HEAD = Head(0, 0)


class Change(NamedTuple):
    """One transaction: the head before and after it, and whether it put this tenant's record; mod is its revision."""

    before: Head
    head: Head
    record: bool
    deleted: bool


class State(NamedTuple):
    """`fetch` is the revision that a fetch is pinned to and the head it read, or none; `gap` says that one is due.

    `heads_seen` and `records_seen` are how far each watch has delivered; with one watch they are the same.
    """

    log: tuple[Change, ...]
    heads_seen: int
    records_seen: int
    applied: Head
    record: int
    fetch: tuple[int, Head] | None
    gap: bool


@dataclass(frozen=True)
class Reading:
    """The machine.

    Attributes:
        changes: How many transactions there are, at most.
        deletes: Whether an operator may delete the head.
        without: The rule that is left out.
    """

    changes: int = 4
    deletes: bool = False
    without: str = ""

    @property
    def start(self) -> State:
        return State((), 0, 0, NO_HEAD, 0, None, gap=True)

    def broken(self, state: State) -> str:
        due = max((change.head.mod for change in state.log[: state.applied.mod] if change.record), default=0)
        if state.record < due:
            return f"I1 to I3: number {state.applied.version} is applied with a record that is older"
        return ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._store(state)
        yield from self._fetch(state)
        yield from self._watch(state)

    def _store(self, state: State) -> Iterator[tuple[str, State]]:
        if len(state.log) >= self.changes:
            return
        before = state.log[-1].head if state.log else NO_HEAD
        mod = len(state.log) + 1
        if state.log and state.log[-1].deleted:
            before = NO_HEAD
        head = Head(before.version + 1, mod)
        for name, record in (("this tenant's", True), ("another tenant's", False)):
            change = Change(before, head, record, deleted=False)
            yield f"COMMIT {mod} {name}", state._replace(log=(*state.log, change))
        if self.deletes and before != NO_HEAD:
            gone = Change(before, Head(0, mod), record=False, deleted=True)
            yield f"head deleted at {mod}", state._replace(log=(*state.log, gone))

    def _fetch(self, state: State) -> Iterator[tuple[str, State]]:
        if state.fetch is None:
            if state.gap:
                at = len(state.log)
                head = state.log[-1].head if state.log else NO_HEAD
                yield f"fetch at {at}, first page: the head", state._replace(fetch=(at, head))
            return
        at, head = state.fetch
        if self.without == "one revision":
            # Each page shows what is newest: here the records came first.
            head = state.log[-1].head if state.log else NO_HEAD
        record = max((change.head.mod for change in state.log[:at] if change.record), default=0)
        # The new watch begins at the next revision; a watch that was there before goes on where it is.
        began = at
        if self.without == "old events":
            began = min(at, state.heads_seen)
        whole = state._replace(fetch=None, gap=False, applied=head, record=record, heads_seen=began, records_seen=began)
        yield f"fetch at {at}, last page", whole

    def _watch(self, state: State) -> Iterator[tuple[str, State]]:
        if state.gap:
            return
        yield "watch cancelled", state._replace(gap=True)
        if state.heads_seen < len(state.log):
            change = state.log[state.heads_seen]
            rest = state._replace(heads_seen=state.heads_seen + 1)
            if self.without != "twowatch":
                rest = rest._replace(records_seen=rest.heads_seen)
                yield f"event {change.head.mod} lost", rest
            yield f"event {change.head.mod}", self._event(rest, change)
        if self.without == "twowatch" and state.records_seen < len(state.log):
            change = state.log[state.records_seen]
            record = change.head.mod if change.record else state.record
            yield f"record of {change.head.mod}", state._replace(records_seen=state.records_seen + 1, record=record)

    def _event(self, state: State, change: Change) -> State:
        follows = change.before == state.applied and not change.deleted
        if self.without != "no prev_kv":
            follows = follows and change.before != NO_HEAD  # of what was deleted and put again nothing is known
        if self.without == "gap":
            follows = not change.deleted
        elif self.without == "mod_revision":
            follows = change.before.version == state.applied.version and change.before != NO_HEAD and not change.deleted
        elif self.without == "old events" and change.head.mod <= state.applied.mod:
            # It is applied again, and what it brings is older than what the fetch showed.
            return state._replace(record=change.head.mod if change.record else state.record)
        if not follows:
            return state._replace(gap=True)
        record = change.head.mod if change.record and self.without != "twowatch" else state.record
        return state._replace(applied=change.head, record=record)


def _check(configuration: str, machine: Reading, at_least: int = 0) -> Check:
    return Check("reading", configuration, machine, at_least, machine.without)


HOLD = (
    _check("four changes", Reading(), 1_000),
    _check("four changes, heads deleted", Reading(deletes=True), 2_000),
)
LARGE = (
    _check("eight changes", Reading(8), 50_000),
    _check("six changes, heads deleted", Reading(6, deletes=True), 50_000),
)
FOUND = (
    *(_check("four changes", Reading(without=rule)) for rule in ("gap", "twowatch", "one revision", "old events")),
    _check("four changes, heads deleted", Reading(deletes=True, without="no prev_kv")),
    _check("five changes, heads deleted", Reading(5, deletes=True, without="mod_revision")),
)
