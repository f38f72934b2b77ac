"""Who the members are, since when each has been silent, and what each says it has applied, as one admin has seen it.

Silence is told by the store's own revisions: a grant that stands as it was first seen W ago was not renewed since, and
whoever put it has surely lost what it gave. An admin that has just started has seen nothing, so nobody is silent to it.

Acknowledgements are followed by a watch. It tells a waiting admin when it is worth asking, and where it has followed
without a break from before a linearizable read, what became since of all that was read: see `Following`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from mesh.control import layout
from mesh.control.memberships import Ack, Member, decode_ack, grant_of, members_of
from mesh.control.store import (
    CompactedError,
    Event,
    Range,
    Store,
    StoreError,
    StoreUnavailableError,
    WatchBatch,
    WatchDown,
    WatchUp,
)
from mesh.ports import Clock, Instant, TaskFactory
from mesh.telemetry.log import Log
from mesh.types import MemberId

_PERIOD_S = 1.0
_TIMEOUT_S = 1.0
_READ_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 2.0


@dataclass(frozen=True, slots=True)
class SeenAck:
    """An acknowledgement, when it was put and when it was seen; `ack` is None if it says nothing."""

    mod_revision: int
    ack: Ack | None
    seen: Instant


@dataclass(eq=False, slots=True)
class Following:
    """One wait, to which the watch tells what concerns it.

    Attributes:
        record: The key of the record that is waited for.
        rung: Set whenever an acknowledgement was heard of, or that the record was put.
        changed: The store's revision when the record was put last, as far as the watch has told.
    """

    record: str
    rung: asyncio.Event
    changed: int = 0


class Members:
    """What an admin has seen of all members. `run` keeps it current."""

    def __init__(self, store: Store, clock: Clock, tasks: TaskFactory, log: Log | None = None) -> None:
        self._store = store
        self._clock = clock
        self._tasks = tasks
        self._log = log
        self._failing = False
        self._revision = 0
        self._grants: dict[layout.GrantKey, tuple[int, Instant]] = {}
        self._acks: dict[layout.AckKey, SeenAck] = {}
        self._waiting: dict[Following, None] = {}  # in order: a set would be in the order of addresses
        self._unbroken: object | None = None
        self._answered: Instant | None = None

    async def run(self) -> None:
        """Reads the grants once a second and follows the acknowledgements, for ever."""
        async with self._tasks() as tasks:
            tasks.spawn(self._poll(), "member-poll")
            tasks.spawn(self._follow(), "ack-watch")

    def observe(self, members: Mapping[MemberId, Member], revision: int, received: Instant) -> None:
        """Takes in a read of all grants.

        Args:
            members: All of them.
            revision: The store's, in that answer.
            received: When the answer was here: a grant was put before that, never after.
        """
        if revision < self._revision:
            return  # overtaken on its way; a store that went back is noticed by those who ask
        self._revision = revision
        here = {grant_of(member, seen): seen.mod_revision for member, seen in members.items()}
        for grant, mod_revision in here.items():
            known = self._grants.get(grant)
            if known is None or known[0] != mod_revision:
                self._grants[grant] = (mod_revision, received)
        for gone in self._grants.keys() - here.keys():
            del self._grants[gone]

    def silent_for(self, grant: layout.GrantKey, mod_revision: int, now: Instant) -> float:
        """For how many seconds at least a grant that was put then has surely stood; 0 if it was not seen."""
        known = self._grants.get(grant)
        return now.least_since(known[1]) if known is not None and known[0] == mod_revision else 0.0

    def store_answers(self) -> bool:
        """Whether the store answered a linearizable read within the last two of its reads' periods."""
        return self._answered is not None and self._clock.instant().most_since(self._answered) <= 2 * _PERIOD_S

    def ack(self, at: layout.AckKey) -> SeenAck | None:
        """The newest acknowledgement that was heard of: a hint."""
        return self._acks.get(at)

    @property
    def unbroken(self) -> object | None:
        """The watch as it is connected now; None while it is not, and another object after each break.

        What a linearizable read shows that was asked for while it was the same object as now, and what the watch has
        told since, is the store as it was at the event that was heard of last. Across a break that is not known: the
        store may be another one, with the same revisions.
        """
        return self._unbroken

    @contextmanager
    def following(self, record: str) -> Generator[Following]:
        """Tells what the watch says of acknowledgements, and of one record, given by its key."""
        following = Following(record, asyncio.Event())
        self._waiting[following] = None
        try:
            yield following
        finally:
            self._waiting.pop(following, None)

    async def _poll(self) -> None:
        while True:
            began_s = self._clock.now_s()
            try:
                answer = await self._store.range(Range(*layout.GRANTS), timeout_s=_TIMEOUT_S)
            except StoreError as error:
                self._note(error)
            else:
                self._failing = False
                self._answered = self._clock.instant()
                if answer.revision < self._revision:
                    # Polls follow each other: this is an older store, and what was seen of the other says nothing here.
                    self._revision = 0
                    self._grants.clear()
                self.observe(members_of(answer.items), answer.revision, self._clock.instant())
            await self._clock.sleep(max(0.0, _PERIOD_S - (self._clock.now_s() - began_s)))

    async def _follow(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                answer = await self._store.range(Range(*layout.ACKS), timeout_s=_READ_TIMEOUT_S)
                self._acks.clear()
                for item in answer.items:
                    self._hear(item.key, item.mod_revision, item.value)
                self._ring()
                async with aclosing(self._store.watch(*layout.ALL, answer.revision + 1)) as watch:
                    async for news in watch:
                        match news:
                            case WatchBatch(events):
                                backoff_s = _FIRST_BACKOFF_S
                                self._take(events)
                            case WatchUp():
                                self._unbroken = object()
                            case WatchDown():
                                self._unbroken = None
                                self._acks.clear()  # it may have been of another store, with the same revisions
            except CompactedError:
                pass  # read them all again
            except StoreError as error:
                self._note(error)
            finally:
                self._unbroken = None
            await self._clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    def _take(self, events: Sequence[Event]) -> None:
        acked = False
        for event in events:
            if event.key < layout.ACKS[1]:
                acked = True
                self._hear(event.key, event.mod_revision, event.value)
            for following in self._waiting:
                if event.key == following.record:
                    following.changed = event.mod_revision
                    following.rung.set()
        if acked:
            self._ring()

    def _hear(self, key: str, mod_revision: int, value: bytes | None) -> None:
        at = layout.parse_member(key)
        if not isinstance(at, layout.AckKey):
            return
        if value is None:
            self._acks.pop(at, None)
        else:
            self._acks[at] = SeenAck(mod_revision, decode_ack(value), self._clock.instant())

    def _ring(self) -> None:
        for following in self._waiting:
            following.rung.set()

    def _note(self, error: StoreError) -> None:
        if self._log is not None and not self._failing:
            reason = error.reason if isinstance(error, StoreUnavailableError) else None
            self._log.warning("members.unavailable", error=type(error).__name__, grpc_status=reason)
        self._failing = True
