"""`mesh.control.store.Store` as one host's program sees the simulated cluster, with the rights of its certificate."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

from sim.hosts import Host
from sim.kv import Data
from sim.moments import Moments
from sim.net import Courier
from sim.store import Cluster, Commit, Member, Stream, Work, kind_of

from mesh.control import roles
from mesh.control.store import (
    CompactedError,
    Compare,
    Op,
    Range,
    RangeResult,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
    TxnResult,
    WatchBatch,
    WatchDown,
    WatchNews,
    WatchUp,
)
from mesh.types import RegionId, Role

_WATCH_OPENS_S = 5.0
_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0
_KEEPALIVE_S = 10.0
_SILENT_S = 3.0


class User:
    """A certificate: who it says it is, and what it may read and write. The rights are those that `roles` sets up."""

    def __init__(self, role: Role, region: RegionId) -> None:
        self.name = roles.user_of(role, region)
        of = roles._admin if role is Role.ADMIN else roles._gateway  # pyright: ignore[reportPrivateUsage]
        rights = of(region)
        read = [
            span for span, kind in rights.items() if kind in (roles.pb.Permission.READ, roles.pb.Permission.READWRITE)
        ]
        write = [
            span for span, kind in rights.items() if kind in (roles.pb.Permission.WRITE, roles.pb.Permission.READWRITE)
        ]
        self._read, self._write = _joined(read), _joined(write)

    def may_read(self, key: str, end: str | None) -> bool:
        """A range needs read on all between its ends."""
        return _covers(self._read, key, end)

    def may_write(self, key: str, end: str | None) -> bool:
        """As `may_read`."""
        return _covers(self._write, key, end)

    def may(self, compares: Sequence[Compare], ops: Sequence[Op]) -> bool:
        """A whole transaction, both its branches."""
        return all(self.may_read(one.key, None) for one in compares) and all(
            (self.may_read if isinstance(op, Range) else self.may_write)(op.key, getattr(op, "end", None)) for op in ops
        )


class SimStore:
    """The store. Make a new one for each life of a program.

    Fires the moments `<kind>_sent` and `<kind>_answered`, where kind is that of `store.Commit`.
    """

    def __init__(self, cluster: Cluster, host: Host, user: User, moments: Moments) -> None:
        self._cluster = cluster
        self._host = host
        self._user = user
        self._moments = moments
        near = [member for member in cluster.members if member.host.site == host.site]
        self._members = near + [member for member in cluster.members if member not in near]
        self._at = 0
        self._lanes: dict[Member, tuple[Courier, Courier]] = {}
        self._asked: dict[asyncio.Future[Any], Member] = {}

    async def range(self, request: Range, *, timeout_s: float) -> RangeResult:
        """See `Store`."""
        if not self._user.may_read(request.key, request.end):
            raise StoreDeniedError("PERMISSION_DENIED")
        clock = self._host.clock
        kind = kind_of([request])
        deadline_s, backoff_s = clock.now_s() + timeout_s, _FIRST_BACKOFF_S
        while True:
            at, left_s = self._at, deadline_s - clock.now_s()
            try:
                return await self._ask(
                    kind, lambda data: data.range(request), max(0.001, min(left_s, timeout_s / len(self._members)))
                )
            except StoreUnavailableError:
                self._leave(at)
                if clock.now_s() + backoff_s >= deadline_s:
                    raise
            await clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout_s: float
    ) -> TxnResult:
        """See `Store`."""
        compares, then, otherwise = tuple(compares), tuple(then), tuple(otherwise)
        if not self._user.may(compares, then + otherwise):
            raise StoreDeniedError("PERMISSION_DENIED")
        kind, at = kind_of(then), self._at
        if any(isinstance(op, Range) and op.serializable for op in then):
            return await self._near([op for op in then if isinstance(op, Range)], timeout_s)

        def run(data: Data) -> TxnResult:
            result, events = data.txn(compares, then, otherwise)
            return self._cluster.apply(Commit(self._host.name, self._user.name, kind, compares, then, result, events))

        try:
            return await self._ask(kind, run, timeout_s)
        except StoreUnavailableError:
            self._leave(at)
            raise

    async def watch(self, key: str, end: str, start: int) -> AsyncGenerator[WatchNews]:
        """See `Store`."""
        if not self._user.may_read(key, end):
            raise StoreDeniedError("watch")
        clock, backoff_s = self._host.clock, _FIRST_BACKOFF_S
        while True:
            at = self._at
            watch = _Watch(self._cluster, self._host, self._members[at], key, end, start)
            try:
                async with clock.timeout(_WATCH_OPENS_S):
                    await watch.opened()
                yield WatchUp()
                while True:
                    events = await watch.next()
                    backoff_s, start = _FIRST_BACKOFF_S, events[-1].mod_revision + 1
                    yield WatchBatch(events)
            except TimeoutError:
                reason = "DEADLINE_EXCEEDED"
            except StoreUnavailableError as error:
                reason = error.reason
            finally:
                watch.close()
            yield WatchDown(reason)
            self._leave(at)
            await clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, _MAX_BACKOFF_S)

    async def _near(self, reads: Sequence[Range], timeout_s: float) -> TxnResult:
        """What one member has, as it has it: nobody else is asked."""
        cluster, member, at = self._cluster, self._members[self._at], self._at
        answer: asyncio.Future[Any] = cluster.net.loop.create_future()
        out, back = self._lanes_to(member)
        self._asked[answer] = member

        def settle(result: TxnResult | CompactedError) -> None:
            if answer.done():
                return
            if isinstance(result, CompactedError):
                answer.set_exception(StoreUnavailableError("OUT_OF_RANGE"))
            else:
                answer.set_result(result)

        def at_member() -> None:
            now = member.applied
            try:
                found = [cluster.data.range(replace(one, revision=now), now) for one in reads]
            except CompactedError as error:
                back.send(settle, error)
            else:
                back.send(settle, TxnResult(now, succeeded=True, ranges=tuple(found), cluster=cluster.cluster_id))

        out.send(at_member)
        try:
            async with self._host.clock.timeout(timeout_s):
                return await answer
        except TimeoutError:
            self._leave(at)
            raise StoreUnavailableError("DEADLINE_EXCEEDED") from None
        except StoreUnavailableError:
            self._leave(at)
            raise
        finally:
            self._asked.pop(answer, None)

    async def _ask(self, kind: str, work: Work, timeout_s: float) -> Any:
        cluster, member = self._cluster, self._members[self._at]
        answer: asyncio.Future[Any] = cluster.net.loop.create_future()
        out, back = self._lanes_to(member)
        self._asked[answer] = member

        def settle(result: object) -> None:
            if not answer.done():
                if isinstance(result, StoreError):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

        def at_member() -> None:
            term = cluster.term
            if cluster.leader is member:
                cluster.propose(term, work, answered)
            elif self._carry(member, cluster.leader, cluster.propose, term, work, relay) is None:
                cluster.net.later(0.3, at_member)

        def relay(result: object) -> None:
            if self._carry(cluster.leader, member, answered, result) is None:
                cluster.net.later(0.3, relay, result)

        def answered(result: object) -> None:
            revision = getattr(result, "revision", 0) if not isinstance(result, StoreError) else 0
            cluster.once_applied(member, revision, lambda: back.send(settle, result))

        self._fire(f"{kind}_sent")
        out.send(at_member)
        try:
            async with self._host.clock.timeout(timeout_s):
                result = await answer
        except TimeoutError:
            raise StoreUnavailableError("DEADLINE_EXCEEDED") from None
        finally:
            self._asked.pop(answer, None)
        self._fire(f"{kind}_answered")
        return result

    def _fire(self, moment: str) -> None:
        if not moment.startswith("other"):
            self._moments.fire(moment, self._host.name)

    def _carry(self, source: Member, target: Member, action: Callable[..., object], *args: object) -> float | None:
        return self._cluster.net.carry(source.host, target.host, 0.0, action, *args)

    def _lanes_to(self, member: Member) -> tuple[Courier, Courier]:
        if member not in self._lanes:
            net = self._cluster.net

            def lost() -> None:
                """The connection: whoever waits for an answer over it is told."""
                self._lanes.pop(member, None)
                for answer in [answer for answer, at in self._asked.items() if at is member]:
                    if not answer.done():
                        answer.set_exception(StoreUnavailableError("UNAVAILABLE"))

            self._lanes[member] = (
                Courier(net, self._host, member.host, lost),
                Courier(net, member.host, self._host, lost),
            )
        return self._lanes[member]

    def _leave(self, at: int) -> None:
        if self._at == at:
            self._at = (at + 1) % len(self._members)


class _Watch:
    """One attempt of a watch at one member: as its client keeps it."""

    def __init__(self, cluster: Cluster, host: Host, member: Member, key: str, end: str, start: int) -> None:
        self._cluster = cluster
        self._member = member
        self._out = Courier(cluster.net, host, member.host, self._lose)
        self._back = Courier(cluster.net, member.host, host, self._lose)
        self._stream = Stream(self._back, key, end, start, self._arrive)
        self._got: deque[Any] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._closed = False
        self._heard = True
        self._process = host.process
        self._out.send(self._register)
        self._timer = cluster.net.later(_KEEPALIVE_S, self._ping)

    async def opened(self) -> None:
        """Once the member follows."""
        await self._next()

    async def next(self) -> tuple[Any, ...]:
        """Whole revisions."""
        return await self._next()

    def close(self) -> None:
        """Ends it, at the member as soon as that hears of it."""
        self._closed = True
        self._timer.cancel()
        self._back.stop()
        self._out.stop()
        self._out.send(self._member.streams.pop, self._stream, None)

    async def _next(self) -> Any:
        while not self._got:
            self._waiting = self._cluster.net.loop.create_future()
            await self._waiting
        item = self._got.popleft()
        if isinstance(item, StoreError):
            raise item
        return item

    def _register(self) -> None:
        self._member.streams[self._stream] = None
        self._stream.tell(())
        self._cluster.feed(self._member, self._stream)

    def _arrive(self, item: object) -> None:
        if not self._closed:
            self._got.append(item)
            if self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(None)

    def _lose(self) -> None:
        self._arrive(StoreUnavailableError("UNAVAILABLE"))

    def _ping(self) -> None:
        """gRPC's keepalive: a connection that does not answer is lost."""
        if self._process is not None and not self._process.alive:
            self._member.streams.pop(self._stream, None)
            return
        self._heard = False
        self._out.send(self._back.send, self._pong)
        self._timer = self._cluster.net.later(_SILENT_S, self._check)

    def _pong(self) -> None:
        self._heard = True

    def _check(self) -> None:
        if not self._heard:
            self._lose()
        self._timer = self._cluster.net.later(_KEEPALIVE_S - _SILENT_S, self._ping)


def _joined(spans: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Ranges that touch are one."""
    found: list[tuple[str, str]] = []
    for key, end in sorted(spans):
        if found and key <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((key, end))
    return found


def _covers(spans: list[tuple[str, str]], key: str, end: str | None) -> bool:
    last = key + "\0" if end is None else end
    return any(first <= key and last <= stop for first, stop in spans)
