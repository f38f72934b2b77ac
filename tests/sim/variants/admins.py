"""What an admin waits for, sweeps and keeps."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from trust_lab import Notebook

from mesh.control import edits, layout
from mesh.control.barrier import Barrier, BarrierState
from mesh.control.changes import Changes, Outcome
from mesh.control.epoch import EpochStart
from mesh.control.members import Members
from mesh.control.moves import Moves
from mesh.control.records import TenantRecord
from mesh.control.store import Compare, Op
from mesh.control.sweep import MemberSweeper
from mesh.policy.bundle import Spans, TenantPolicy
from mesh.ports import Clock, Instant
from mesh.types import RegionId, Revision, TenantId


class SilentByKey(Members):
    """Takes a grant for silent that has been renewed since it was last looked at."""

    def silent_for(self, grant: layout.GrantKey, mod_revision: int, now: Instant) -> float:
        known = self._grants.get(grant)
        return 0.0 if known is None else now.least_since(known[1])


class NeverSuperseded(Barrier):
    async def wait(self, change: Any, **given: Any) -> AsyncGenerator[BarrierState]:
        async with aclosing(super().wait(change, **given)) as states:
            async for state in states:
                yield replace(state, superseded=False, done=True) if state.superseded else state


class NoCompare(MemberSweeper):
    async def _delete(self, compares: Sequence[Compare], deletes: Sequence[Op]) -> int:
        return await super()._delete([], deletes)


class ForgetsOlder(Changes):
    """A second change of S keeps the last value only."""

    async def set_authority(self, tenant: TenantId, authority: Spans, op_id: str | None = None) -> Outcome:
        def edit(policy: TenantPolicy) -> Any:
            after = edits.with_authority(replace(policy, authority_before={}), authority)
            return after, edits.taken_by_authority(after)

        return await self._change_policy(tenant, op_id, edit, ("set_authority",))


class ForgetsOldHome(Moves):
    """The new home's record keeps no times of the old home's."""

    def _first(self, record: TenantRecord, home: RegionId) -> TenantRecord:
        first = super()._first(record, home)
        return replace(first, policy=replace(first.policy, authority_before={}))


class TakesBack(Moves):
    """A home that is asked late to make ready does so, whatever it has said since."""

    def _check_next(self, own: TenantRecord | None, first: TenantRecord) -> None:
        pass


def moves_by(kind: type[Moves]) -> Callable[..., Changes]:
    """Changes whose moves are of that kind."""

    def changes(*given: Any, **named: Any) -> Changes:
        changes = Changes(*given, **named)
        was = changes.moves
        changes.moves = kind(was._commits, was._home, was._clock, was._entropy, was._trust, was._journal)
        return changes

    return changes


class BeganLongAgo(EpochStart):
    """After a recovery the members that the store knows are all."""

    def left_s(self, now: Instant) -> float:
        return 0.0


class Late:
    """Keeps a record once it was sent."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self._pending: list[tuple[str, bytes, int, Revision]] = []

    async def signed(self, key: str, value: bytes, epoch: int, revision: Revision) -> int:
        for row in self._pending:
            await self._notebook.signed(*row)
        self._pending = [(key, value, epoch, revision)]
        return 0

    async def made(self, numbers: Sequence[int]) -> None:
        pass

    async def unmade(self, number: int) -> None:
        self._pending.clear()

    async def signed_move(self, key: str, value: bytes, epoch: int, revision: Revision, *, last: bool) -> int:
        return await self._notebook.signed_move(key, value, epoch, revision, last=last)

    async def last_words(self, key: str) -> Sequence[tuple[int, bytes]]:
        return await self._notebook.last_words(key)


def one_second_less(outcome: Outcome) -> Outcome:
    """W is too short."""
    shrink = outcome.shrink
    return outcome if shrink is None else replace(outcome, shrink=replace(shrink, span_s=shrink.span_s - 1.0))


def by_the_new_record(outcome: Outcome) -> Outcome:
    """W by the new record alone."""
    shrink, policy = outcome.shrink, outcome.tenant.policy
    if shrink is None:
        return outcome
    places = {right.place for right in shrink.removed} | shrink.lowered
    return replace(outcome, shrink=replace(shrink, span_s=max(policy.span_s(place) for place in places)))


def by_the_old_home_alone(outcome: Outcome) -> Outcome:
    """Who knows that the tenant has left is done with."""
    return replace(outcome, beside={})


def sweeps_after_a_second(store: Any, region: RegionId, _: float, clock: Clock) -> MemberSweeper:
    return MemberSweeper(store, region, 1.0, clock)


def another_op_id(op_id: str, attempt: int) -> str:
    """A retry is a new order."""
    return f"{op_id[:-1]}{attempt}" if attempt else op_id
