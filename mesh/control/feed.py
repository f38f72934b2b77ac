"""Keeps a gateway's policy book equal to the control store, by one watch that knows when it missed something.

Every change puts its record and its shard's head in one transaction, and the head's etcd version rises by exactly one.
An event is applied only if its head follows exactly the head that was applied before (version and mod_revision).
Anything else is a gap, and the shard is read again. What its home has not signed, or is older than what was seen, does
not count: its tenant is refused, and that is counted and logged. Which home's record counts of a tenant that has moved
is for `homes.py`; what lies under the others is kept aside, since it may count from the next event on. A store whose
history is not the one that was read any more (restored, begun anew) is told to the listener and read anew. The
protocol: docs/architecture.md, "Policy".
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from itertools import groupby
from typing import LiteralString, Protocol

from mesh.control import layout
from mesh.control.homes import Claims
from mesh.control.records import Fault, KeyRecord, RecordError, Trust, decode_key, decode_tenant
from mesh.control.store import (
    CompactedError,
    Event,
    KeyValue,
    Range,
    Store,
    StoreError,
    StoreUnavailableError,
    WatchBatch,
    WatchDown,
    WatchNews,
    WatchUp,
    prefix_end,
)
from mesh.policy.bundle import PolicyBook, TenantPolicy
from mesh.policy.shards import Shard, shard_of
from mesh.ports import Clock
from mesh.telemetry.log import Log
from mesh.types import KeyId, Revision, TenantId

PAGE = 500
"""Records read at once: an answer stays far below the transport's limit."""
_READ_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0


class FeedListener(Protocol):
    """Is told how far the book is."""

    def applied(self, shard: Shard, number: int) -> None:
        """The book holds all changes of a shard up to this number."""
        ...

    def went_back(self) -> None:
        """The store's history is not the one that was read: nothing that was granted or applied counts."""
        ...


class _WentBackError(Exception):
    """The store's history is another one; the listener has been told."""


class PolicyFeed:
    """Fills a book from the store's policy records and keeps it current. Reads only.

    Attributes:
        live: Whether a member is telling of changes now. No evidence of freshness.
        applied: The store's revision up to which the book is complete.
        gaps: Shards that were read again.
        told: How often the watch has told of changes.
        invalid: Records that did not count, by why.
        backs: How often the store's history was another one than what had been read.
    """

    def __init__(
        self,
        store: Store,
        book: PolicyBook,
        clock: Clock,
        trust: Trust,
        log: Log | None = None,
        listener: FeedListener | None = None,
    ) -> None:
        self.live = False
        self.applied = 0
        self.gaps = 0
        self.told = 0
        self.invalid: Counter[Fault] = Counter()
        self.backs = 0
        self._store = store
        self._book = book
        self._clock = clock
        self._trust = trust
        self._log = log
        self._listener = listener
        self._heads: dict[Shard, KeyValue] = {}
        self._fetched: dict[Shard, int] = {}
        self._known: dict[Shard, _Held] = {}
        self._claims: dict[TenantId, Claims] = {}
        self._opened: dict[TenantId, set[KeyId]] = {}
        self._newest: dict[TenantId, tuple[int, Revision]] = {}
        # What the watch tells, a load and a read of one shard are taken in one after the other.
        self._order = asyncio.Lock()
        self._torn: set[Shard] = set()
        self._leaving: dict[TenantId, None] = {}
        self._anew = False

    def number(self, shard: Shard) -> int:
        """A shard's applied number; 0 before its first change."""
        head = self._heads.get(shard)
        return 0 if head is None else head.version

    async def catch_up(self, shard: Shard, number: int) -> bool:
        """Reads a shard that the store says has come to `number`; false if that is applied by now.

        Raises:
            StoreError: It was not read whole.
        """
        async with self._order:
            if not self._book.loaded or self._anew or self.number(shard) >= number:
                return False
            try:
                await self._refetch(shard)
            except _WentBackError:
                self._anew = True  # what the watch tells next does not belong to what is known: it begins anew
            return True

    async def run(self) -> None:
        """Loads and follows, for ever: a store that cannot be read is tried again."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                async with self._order:
                    await self._load()
                backoff_s = _FIRST_BACKOFF_S
                await self._follow()
            except _WentBackError:
                pass
            except CompactedError:
                # What was forgotten can only be had by reading it all.
                self._note("policy.compacted")
            except StoreError as error:
                self._note("policy.unavailable", error=type(error).__name__, grpc_status=_status(error))
            finally:
                self.live = False
            await self._clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def _load(self) -> None:
        """Reads everything, as of one revision."""
        heads: dict[Shard, KeyValue] = {}
        seen: dict[Shard, _Held] = {}
        pinned = 0
        self._anew = False
        async for revision, items in self._pages(*layout.HEADS, 0):
            pinned = revision
            for item in items:
                at = layout.parse(item.key)
                if isinstance(at, layout.HeadKey):
                    heads[at.shard] = item
        if await self._is_other_history(pinned, self._heads, heads):
            self._note_back(pinned)
        async for _, items in self._pages(*layout.POLICIES, pinned):
            self._apply(items, seen)
        self._leaving.clear()
        self._drop_all_but(seen)
        self._known = seen
        self._heads = heads
        self._fetched = {}
        self._torn.clear()
        self.applied = pinned
        if not self._book.loaded:
            self._book.loaded = True
        if self._log is not None:
            self._log.info("policy.loaded", revision=pinned)
        for shard, head in heads.items():
            self._tell(shard, head.version)

    async def _follow(self) -> None:
        """Applies changes as they come, until the watch cannot go on."""
        async with aclosing(self._store.watch(*layout.FEED, self.applied + 1)) as watch:
            async for news in watch:
                async with self._order:
                    await self._take(news)

    async def _take(self, news: WatchNews) -> None:
        if self._anew:
            raise _WentBackError
        match news:
            case WatchUp():
                await self._check_history()
                self.live = True
            case WatchDown(reason):
                self.live = False
                self._note("policy.watch_lost", grpc_status=reason)
            case WatchBatch(events):
                self.told += 1
                for revision, group in groupby(events, key=lambda event: event.mod_revision):
                    await self._change(revision, list(group))

    async def _check_history(self) -> None:
        """Raises if the store's history is not the one that was read.

        A watch from a revision that a restored store has not reached again would tell of nothing until then; and where
        it has got further already, of a history that does not belong to what is known.
        """
        answer = await self._store.range(Range(*layout.HEADS), timeout_s=_READ_TIMEOUT_S)
        now = {at.shard: item for item in answer.items if isinstance(at := layout.parse(item.key), layout.HeadKey)}
        if await self._is_other_history(answer.revision, self._heads, now):
            self._note_back(answer.revision)
            raise _WentBackError

    async def _is_other_history(
        self, revision: int, known: Mapping[Shard, KeyValue], now: Mapping[Shard, KeyValue]
    ) -> bool:
        """Whether heads as read linearizably at a revision cannot have come from those that were applied before."""
        if revision < self.applied:
            return True
        moved: list[KeyValue] = []
        for shard, head in known.items():
            found = now.get(shard)
            if found is None:
                return True
            if found.version > head.version and found.mod_revision > head.mod_revision:
                moved.append(head)
            elif found != head:
                return True
        if not moved:
            return False
        # A store that was restored and has got further since: what was applied never stood in its history.
        then = [Range(head.key, revision=head.mod_revision) for head in moved]
        try:
            answer = await self._store.txn((), then, timeout_s=_READ_TIMEOUT_S)
        except CompactedError:
            return False  # so far back nobody can tell any more
        return any(result.items != (head,) for result, head in zip(answer.ranges, moved, strict=True))

    def _note_back(self, revision: int) -> None:
        self.backs += 1
        if self._log is not None:
            self._log.error("policy.store_went_back", revision=revision, applied=self.applied)
        self._heads = {}
        self._fetched = {}
        self.applied = 0
        if self._listener is not None:
            self._listener.went_back()

    def _tell(self, shard: Shard, number: int) -> None:
        if self._listener is not None:
            self._listener.applied(shard, number)

    async def _change(self, revision: int, events: list[Event]) -> None:
        """Applies all events of one revision, or reads the shards anew that they do not follow on."""
        by_shard: dict[Shard, list[Event]] = {}
        for event in events:
            at = layout.parse(event.key)
            if at is not None and revision > self._fetched.get(at.shard, 0):
                by_shard.setdefault(at.shard, []).append(event)
        for shard, changes in by_shard.items():
            # What was read in part may be newer than these: to put them over it would take away what counts.
            head = None if shard in self._torn else self._successor(shard, changes)
            if head is None:
                if shard in self._heads:
                    self.gaps += 1
                    self._note("policy.gap", home=shard.home, shard=shard.index, revision=revision)
                await self._refetch(shard)
            else:
                self._apply((_as_item(event) for event in changes), self._known, revision)
                await self._follow_moves(shard)
                self._heads[shard] = head
                self._tell(shard, head.version)
        self.applied = max(self.applied, revision)

    def _successor(self, shard: Shard, changes: list[Event]) -> KeyValue | None:
        """The head that these changes put, if they are a record or more and the head next to the one applied."""
        heads = [event for event in changes if isinstance(layout.parse(event.key), layout.HeadKey)]
        if len(heads) != 1 or len(changes) == 1 or any(event.value is None for event in changes):
            return None
        head, known = heads[0], self._heads.get(shard)
        # A shard's first head follows on nothing that could be compared: it is read, like after a gap.
        follows = known is not None and head.before == known and head.version == known.version + 1
        return _as_item(head) if follows else None

    async def _refetch(self, shard: Shard) -> None:
        """Reads one shard, and where a tenant that was served has left it, the one that it has gone to."""
        await self._reread(shard)
        try:
            await self._follow_moves(shard)
        finally:
            self._tell_of(shard)  # also where the other one was not read: the tenant is refused then

    async def _follow_moves(self, shard: Shard) -> None:
        """Decides on tenants that have left for a home of which nothing is known here yet: it is read before.

        The new home's record was there first. Only where shards are read one by one can a last word be known before it.
        Until it is told as applied, nobody relies on its being acted on; so no shard is, before all is decided.
        """
        reread: dict[Shard, None] = {shard: None}
        try:
            while self._leaving:
                tenant = next(iter(self._leaving))
                home = self._claims[tenant].lacks
                other = None if home is None else shard_of(home, tenant)
                if other is not None and other not in reread:
                    await self._reread(other)
                    reread[other] = None
                else:
                    del self._leaving[tenant]
                    self._decide(tenant)
        finally:
            for tenant in self._leaving:
                self._decide(tenant)
            self._leaving.clear()
            for other in reread:
                if other != shard:
                    self._tell_of(other)

    def _tell_of(self, shard: Shard) -> None:
        head = self._heads.get(shard)
        if head is not None:
            self._tell(shard, head.version)

    async def _reread(self, shard: Shard) -> None:
        """Reads one shard as of one revision; its events up to there do not count any more."""
        answer = await self._store.range(Range(layout.head_key(shard)), timeout_s=_READ_TIMEOUT_S)
        known = {shard: self._heads[shard]} if shard in self._heads else {}
        now = dict(zip((shard,), answer.items, strict=False))
        if await self._is_other_history(answer.revision, known, now):
            self._note_back(answer.revision)
            raise _WentBackError
        prefix, seen = layout.shard_prefix(shard), dict[Shard, _Held]()
        self._torn.add(shard)
        async for _, items in self._pages(prefix, prefix_end(prefix), answer.revision):
            self._apply(items, seen)
        self._torn.discard(shard)
        held = seen.get(shard, _Held())
        self._drop(shard, self._known.get(shard, _Held()), held)
        self._known[shard] = held
        self._fetched[shard] = answer.revision
        if answer.items:
            self._heads[shard] = answer.items[0]
        else:
            self._heads.pop(shard, None)

    async def _pages(self, key: str, end: str, revision: int) -> AsyncGenerator[tuple[int, tuple[KeyValue, ...]]]:
        """A range in pages, all as of one revision: `revision`, or if 0 that of the first page."""
        while True:
            answer = await self._store.range(Range(key, end, limit=PAGE, revision=revision), timeout_s=_READ_TIMEOUT_S)
            revision = revision or answer.revision
            yield revision, answer.items
            if not answer.more:
                return
            key = answer.items[-1].key + "\0"

    def _apply(self, items: Iterable[KeyValue], seen: dict[Shard, _Held], told: float = math.inf) -> None:
        """Takes in records, notes in `seen` which are valid, and then puts into the book what counts.

        What the watch has told, of revision `told`, may be older than what was read of another home's shard meanwhile.
        """
        touched: dict[TenantId, None] = {}
        for item in items:
            at = layout.parse(item.key)
            if not isinstance(at, layout.PolicyKey | layout.KeyKey):
                continue
            touched[at.tenant] = None
            held, claims = seen.setdefault(at.shard, _Held()), self._claims.setdefault(at.tenant, Claims())
            try:
                if isinstance(at, layout.PolicyKey):
                    claims.take(decode_tenant(at, item.value, self._trust), item.mod_revision, told)
                    held.tenants.add(at.tenant)
                else:
                    claims.take_key(self._own_key(at, item.value))
                    held.keys.add((at.tenant, at.key_id))
                    if at.shard.home not in claims.records:
                        # Kept aside: it opens nothing, unless its home has a valid record of the tenant yet.
                        self._note_invalid(at, Fault.TENANT, item.mod_revision)
            except RecordError as error:
                if isinstance(at, layout.PolicyKey) or not claims.has_left(at.shard.home):
                    self._note_invalid(at, error.fault, item.mod_revision)
                if error.fault is not Fault.FORK:
                    # No valid record: absent. What lies under another home is left as it is.
                    _drop_from(claims, at)
        for tenant in touched:
            if self._book.tenant(tenant) is not None and self._claims[tenant].has_moved_on:
                self._leaving[tenant] = None
            else:
                self._decide(tenant)

    def _own_key(self, at: layout.KeyKey, value: bytes) -> KeyRecord:
        """A key's record, which is never in the place of another tenant's key."""
        record, known = decode_key(at, value, self._trust), self._book.key(at.key_id)
        if known is not None and known.tenant != at.tenant:
            raise RecordError(Fault.PLACE)
        return record

    def _decide(self, tenant: TenantId) -> None:
        """Puts into the book what counts of a tenant, its policy before its keys; refuses it where nothing does."""
        claims = self._claims[tenant]
        record = None
        try:
            record = claims.current()
            if record is not None:
                self._put_tenant(record.policy)
        except RecordError as error:
            home = claims.home
            if home is not None:
                self._note_invalid(layout.PolicyKey(shard_of(home, tenant), tenant), error.fault, self.applied)
                claims.drop(home)
            record = None
        opened = self._opened.setdefault(tenant, set())
        if record is None:
            self._book.drop_tenant(tenant)
            closed = {key_id for key_id in opened if not claims.holds_key(key_id)}
        else:
            keys = claims.current_keys(record)
            for key_id, one in keys.items():
                known = self._book.key(key_id)
                if known is None or (known.tenant == tenant and known != one.key):
                    self._book.put_key(one.key)
            closed = opened - keys.keys()
            opened |= keys.keys()
        for key_id in closed:
            self._book.drop_key(key_id)
        opened -= closed

    def _put_tenant(self, policy: TenantPolicy) -> None:
        """A tenant's policy. An older one than was seen never counts: somebody put it back, or the store went back."""
        if policy.place < self._newest.get(policy.tenant, policy.place):
            raise RecordError(Fault.OLDER)
        self._newest[policy.tenant] = policy.place
        self._book.put_tenant(policy)

    def _drop_all_but(self, seen: Mapping[Shard, _Held]) -> None:
        """Forgets what is not in a whole read; that a read which failed half-way had taken in, too."""
        for tenant, claims in list(self._claims.items()):
            for home in list(claims.records.keys() | claims.keys.keys()):
                held = seen.get(shard_of(home, tenant), _Held())
                if tenant not in held.tenants:
                    claims.drop(home)
                for key_id in list(claims.keys.get(home, ())):
                    if (tenant, key_id) not in held.keys:
                        claims.drop_key(home, key_id)
            self._decide(tenant)

    def _drop(self, shard: Shard, known: _Held, held: _Held) -> None:
        """Forgets what was known of a shard and is not in a whole read of it."""
        gone = known.keys - held.keys
        for tenant in known.tenants - held.tenants:
            self._claims[tenant].drop(shard.home)
        for tenant, key_id in gone:
            self._claims[tenant].drop_key(shard.home, key_id)
        for tenant in (known.tenants - held.tenants) | {tenant for tenant, _ in gone}:
            self._decide(tenant)

    def _note_invalid(self, at: layout.PolicyKey | layout.KeyKey, fault: Fault, revision: int) -> None:
        """An alarm: in a store that only admins write, each record that is not valid is a fault or an attack."""
        self.invalid[fault] += 1
        if self._log is not None:
            home, tenant = at.shard.home, at.tenant
            self._log.error("policy.invalid_record", fault=fault, home=home, tenant=tenant, revision=revision)

    def _note(self, event: LiteralString, **fields: str | float | bool | None) -> None:
        if self._log is not None:
            self._log.warning(event, **fields)


class _Held:
    """What of a shard is valid."""

    def __init__(self) -> None:
        self.tenants: set[TenantId] = set()
        self.keys: set[tuple[TenantId, KeyId]] = set()


def _drop_from(claims: Claims, at: layout.PolicyKey | layout.KeyKey) -> None:
    if isinstance(at, layout.PolicyKey):
        claims.drop(at.shard.home)
    else:
        claims.drop_key(at.shard.home, at.key_id)


def _as_item(event: Event) -> KeyValue:
    return KeyValue(event.key, event.value or b"", event.mod_revision, event.version)


def _status(error: StoreError) -> str | None:
    return error.reason if isinstance(error, StoreUnavailableError) else None
