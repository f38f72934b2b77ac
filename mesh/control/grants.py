"""A gateway's own grant: what makes it a member, and what its authority counts from.

Every 2 s it notes the time, and *then* asks for one transaction: put its grant, read all heads. The answer's numbers
stood at some moment after that time; who has applied them may act from then on. The grant's key is the membership, so
nobody gains authority without being waited for.

The put compares the grant with what is known of it: an attempt that was given up never comes late, one that was swept
meanwhile is never brought back, and a copy of this process is found out.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import LiteralString

from mesh.control import layout
from mesh.control.acks import AckWriter
from mesh.control.memberships import ATTEMPT_BYTES, Ack, Drain, Grant, decode_grant, encode_grant, members_of
from mesh.control.store import (
    Compare,
    Delete,
    KeyValue,
    Put,
    Range,
    Store,
    StoreError,
    StoreUnavailableError,
    TxnResult,
    prefix_end,
)
from mesh.policy.authority import Authority
from mesh.policy.shards import Shard
from mesh.ports import Clock, Entropy, Instant, TaskFactory
from mesh.telemetry.log import Log
from mesh.types import GatewayId, MemberId, RegionId, TenantId

PERIOD_S = 2.0
"""From the beginning of one renewal to that of the next."""
_TIMEOUT_S = 1.5
_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 0.5
_RENEW_TIMEOUT_S = 4.0
_LEAVE_TIMEOUT_S = 2.0
_UNHEARD = 200_000
"""Attempts without an answer that one member remembers: at the fastest pace more than a day of them, 20 MB."""
_LIVES_S = 2 * PERIOD_S
"""Whoever lives and is heard renews its grant within this."""


class ClonedError(Exception):
    """Somebody else goes by this member's id: this process was copied, and must end."""


@dataclass(slots=True)
class _Seen:
    """What linearizable answers have shown of the store: none that is asked for later may show less."""

    revision: int = 0
    cluster: int = 0
    heads: dict[Shard, KeyValue] | None = None

    def is_after(self, revision: int, cluster: int, heads: Mapping[Shard, KeyValue]) -> bool:
        """Whether an answer can have come from the same history."""
        if revision < self.revision or (cluster and self.cluster and cluster != self.cluster):
            return False
        for shard, known in (self.heads or {}).items():
            head = heads.get(shard)
            if head is None or head.version < known.version:
                return False
            if head.version == known.version and head.mod_revision != known.mod_revision:
                return False
        return True


class Membership:
    """A gateway's grant and acknowledgement. Fulfils the feed's listener.

    Attributes:
        member: This process' id; another one is drawn if the grant was taken away, and where the clocks moved apart.
        went_back_once: Whether the store was seen to have gone back in time. Then no authority is left, and none comes
            again in this process: what a removal was waited for with may be undone. It ends with a new control epoch.
        drawn: Every id that it has had.
        renewals: Grants that were heard of.
        failures: Attempts that were not.
        answered: Called with every shard's number in a grant's answer.
    """

    def __init__(
        self,
        *,
        store: Store,
        region: RegionId,
        gateway: GatewayId,
        authority: Authority,
        draining: Callable[[], Mapping[TenantId, Drain]],
        clock: Clock,
        tasks: TaskFactory,
        entropy: Entropy,
        log: Log | None = None,
    ) -> None:
        self.went_back_once = False
        self.drawn: set[MemberId] = set()
        self.renewals = 0
        self.failures = 0
        self.answered: Callable[[Mapping[Shard, int]], None] = _nobody
        self._store = store
        self._region = region
        self._gateway = gateway
        self._authority = authority
        self._draining = draining
        self._clock = clock
        self._tasks = tasks
        self._entropy = entropy
        self._log = log
        self._left = False
        self._applied: dict[Shard, int] = {}
        self._seen = _Seen()
        self._heard: Instant | None = None
        self._wanted: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self.member = self._draw_member()
        self._mod_revision = 0
        self._last = b""
        self._unheard: set[bytes] = set()
        self._acks = AckWriter(store, layout.ack_key(region, self.member), self._state, self._own_grant, clock, log)

    @property
    def grant_age_s(self) -> float | None:
        """How old the last answer is, in seconds since it was asked for; None before the first."""
        return None if self._heard is None else self._clock.instant().most_since(self._heard)

    async def run(self) -> None:
        """Renews the grant and writes acknowledgements, for ever.

        Raises:
            ClonedError: In a group: the process must end.
        """
        async with self._tasks() as tasks:
            tasks.spawn(self._renew_for_ever(), "grant")
            tasks.spawn(self._acks.run(), "ack")

    async def renew(self) -> None:
        """Renews now, for whoever must know policy as it stands at this moment. Many share one renewal.

        Raises:
            StoreError: It was not granted.
        """
        if self._left or self.went_back_once:
            raise StoreUnavailableError("FAILED_PRECONDITION")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.append(done)
        self._wake.set()
        try:
            async with self._clock.timeout(_RENEW_TIMEOUT_S):
                await done
        except TimeoutError:
            raise StoreUnavailableError("DEADLINE_EXCEEDED") from None
        finally:
            if done in self._wanted:
                self._wanted.remove(done)

    def applied(self, shard: Shard, number: int) -> None:
        """All changes of a shard up to this number are in the policy book."""
        self._applied[shard] = number
        self._authority.applied(shard, number)
        self._acks.changed()

    def went_back(self) -> None:
        """The store was seen to be older than it was."""
        if not self.went_back_once:
            self.went_back_once = True
            if self._log is not None:
                self._log.error("grant.store_went_back", revision=self._seen.revision, instance=self.member)
        self._authority.drop()
        self._applied.clear()
        self._fail_waiting(StoreUnavailableError("DATA_LOSS"))

    def changed(self) -> None:
        """What is draining has changed."""
        self._acks.changed()

    async def leave(self) -> None:
        """Gives up authority for good and deletes the member's keys, so that no removal waits for it.

        Only for a gateway whose work has all ended, in its replicas too. If the store does not answer in time the keys
        stay, as those of a gateway that died.
        """
        self._left = True
        self._acks.stop()
        self._authority.drop()
        self._fail_waiting(StoreUnavailableError("CANCELLED"))
        deletes = [Delete(at(self._region, self.member)) for at in (layout.ack_key, layout.grant_key)]
        try:
            await self._store.txn([], deletes, timeout_s=_LEAVE_TIMEOUT_S)
        except StoreError as error:
            self._note_failure(error)

    async def _renew_for_ever(self) -> None:
        backoff_s = 0.0
        while not self._left and not self.went_back_once:
            began_s = self._clock.now_s()
            self._wake.clear()
            waiting, self._wanted = self._wanted, []
            try:
                await self._renew_once()
            except StoreError as error:
                self.failures += 1
                if not backoff_s:
                    self._note_failure(error)
                _settle(waiting, error)
                # Short: what is left of authority runs out meanwhile. And not cut short by whoever wants a renewal.
                backoff_s = min(max(_FIRST_BACKOFF_S, backoff_s * 2), _MAX_BACKOFF_S)
                await self._clock.sleep(backoff_s)
            else:
                backoff_s = 0.0
                _settle(waiting, None)
                await self._until_due(PERIOD_S - (self._clock.now_s() - began_s))
            finally:
                _settle(waiting, StoreUnavailableError("CANCELLED"))

    async def _until_due(self, seconds: float) -> None:
        """Until the next renewal is due, or is wanted now."""
        if seconds > 0:
            with suppress(TimeoutError):
                async with self._clock.timeout(seconds):
                    await self._wake.wait()
                    # It moves the grant, by which acknowledgements go: whoever wants many must not keep those back.
                    await self._acks.tried()

    async def _renew_once(self) -> None:
        """One grant. An answer that only tells what became of an earlier attempt is followed by another attempt."""
        while True:
            # The time first: nothing that is decided from here on may be missed and yet be acted on.
            t0 = self._clock.instant()
            if self._heard is not None and t0.apart_from(self._heard):
                # Perhaps this is a copy of a process that lives: it may have nothing that the other has.
                self._warn("grant.clocks_apart")
                self._heard = None
                self._start_anew()
            if len(self._unheard) >= _UNHEARD:
                # Any of them may be the one that stands, so none can be forgotten by the member that made them. Another
                # begins, from nothing, which after so long is all that there is.
                self._warn("grant.unheard")
                self._heard = None
                self._start_anew()
            seen = _Seen(self._seen.revision, self._seen.cluster, dict(self._seen.heads or {}))
            applied = dict(self._applied)
            attempt = self._entropy.token(ATTEMPT_BYTES)
            self._unheard.add(attempt)
            key = layout.grant_key(self._region, self.member)
            put = Put(key, encode_grant(Grant(self._gateway, attempt, self._last)))
            answer = await self._store.txn(
                [Compare(key, self._mod_revision)],
                [Range(key), put, Range(*layout.HEADS)],
                [Range(key), Range(*layout.HEADS)],
                timeout_s=_TIMEOUT_S,
            )
            if self._left or self.went_back_once:
                raise StoreUnavailableError("CANCELLED")
            heads = _heads(answer.ranges[1].items)
            if not seen.is_after(answer.revision, answer.cluster, heads) or _is_below(heads, applied):
                self.went_back()
                raise StoreUnavailableError("DATA_LOSS")
            if self._is_granted(answer, attempt):
                self._seen = _Seen(answer.revision, answer.cluster, heads)
                self._heard = t0
                self.renewals += 1
                numbers = {shard: head.version for shard, head in heads.items()}
                self._authority.granted(numbers, t0)
                self.answered(numbers)
                self._acks.changed()
                return

    def _is_granted(self, answer: TxnResult, attempt: bytes) -> bool:
        """Whether this attempt stands. Otherwise what does stand is taken in, or is not to be explained."""
        here = answer.ranges[0].items[0] if answer.ranges[0].items else None
        grant = decode_grant(here.value) if here is not None else None
        if answer.succeeded:
            if here is not None and (grant is None or grant.attempt != self._last):
                raise self._cloned()
            self._mod_revision, self._last = answer.revision, attempt
            self._unheard.clear()
            return True
        if here is None:
            self._warn("grant.taken_away")
            self._start_anew()
        elif grant is not None and grant.attempt in self._unheard:
            # Its answer was lost.
            self._mod_revision, self._last = here.mod_revision, grant.attempt
            self._unheard.clear()
        else:
            raise self._cloned()
        return False

    def _start_anew(self) -> None:
        """Another member begins, from nothing: removals no longer wait for this one, or for another process as well."""
        self._authority.suspend()
        self.member = self._draw_member()
        self._mod_revision, self._last = 0, b""
        self._unheard.clear()
        self._acks.move(layout.ack_key(self._region, self.member))

    def _cloned(self) -> ClonedError:
        self._left = True
        self._acks.stop()
        self._authority.drop()
        if self._log is not None:
            self._log.error("grant.cloned", instance=self.member)
        return ClonedError("another process renews this grant")

    def _draw_member(self) -> MemberId:
        member = MemberId(str(uuid.UUID(bytes=self._entropy.token(16), version=4)))
        self.drawn.add(member)
        return member

    def _state(self) -> Ack:
        return Ack(dict(self._applied), dict(self._draining()))

    def _own_grant(self) -> Compare | None:
        """How the grant stands if nobody but this process has put it; None while there is none."""
        if not self._mod_revision or self._heard is None or self._clock.instant().apart_from(self._heard):
            return None
        return Compare(layout.grant_key(self._region, self.member), self._mod_revision)

    def _fail_waiting(self, error: StoreError) -> None:
        waiting, self._wanted = self._wanted, []
        _settle(waiting, error)

    def _note_failure(self, error: StoreError) -> None:
        if self._log is not None:
            reason = error.reason if isinstance(error, StoreUnavailableError) else None
            self._log.warning("grant.failed", error=type(error).__name__, grpc_status=reason)

    def _warn(self, event: LiteralString) -> None:
        if self._log is not None:
            self._log.warning(event, instance=self.member)


async def bury(
    store: Store, region: RegionId, gateway: GatewayId, own: Membership, clock: Clock, log: Log | None = None
) -> None:
    """Deletes the grants that earlier processes of a gateway have left, so that no removal waits for them.

    Only where they are known to be dead, and where no replica works for them any more: it is as good as their own word.
    One that is renewed all the same lives, as the copy of a process does that ended because it had found the copy.
    Tried until the store takes it.
    """
    prefix = layout.grant_prefix(region)
    first: Mapping[MemberId, int] | None = None
    while True:
        try:
            answer = await store.range(Range(prefix, prefix_end(prefix)), timeout_s=_TIMEOUT_S)
            # After the clocks moved apart an id of its own may be that of a process it is a copy of.
            found = {
                member: seen.mod_revision
                for member, seen in members_of(answer.items).items()
                if seen.gateway == gateway and member not in own.drawn
            }
            if first is not None:
                for member in [member for member, revision in found.items() if first.get(member) == revision]:
                    grant, ack = layout.grant_key(region, member), layout.ack_key(region, member)
                    done = await store.txn(
                        [Compare(grant, found[member])], [Delete(grant), Delete(ack)], timeout_s=_TIMEOUT_S
                    )
                    if log is not None and done.succeeded:
                        log.warning("member.attested_dead", instance=member, gateway=gateway, revision=done.revision)
                return
        except StoreError:
            await clock.sleep(PERIOD_S)
            continue
        if not found:
            return
        first = found
        await clock.sleep(_LIVES_S)


def _nobody(_: Mapping[Shard, int]) -> None:
    """Nobody is told."""


def _settle(waiting: Iterable[asyncio.Future[None]], error: StoreError | None) -> None:
    for one in waiting:
        if not one.done():
            if error is None:
                one.set_result(None)
            else:
                one.set_exception(error)


def _heads(items: Iterable[KeyValue]) -> dict[Shard, KeyValue]:
    found: dict[Shard, KeyValue] = {}
    for item in items:
        at = layout.parse(item.key)
        if isinstance(at, layout.HeadKey):
            found[at.shard] = item
    return found


def _is_below(heads: Mapping[Shard, KeyValue], applied: Mapping[Shard, int]) -> bool:
    """Whether a number that was applied before the asking is more than the store knows of."""
    return any(number and (shard not in heads or heads[shard].version < number) for shard, number in applied.items())
