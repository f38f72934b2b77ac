"""Which records count, and the feed that reads them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from sim.parts import ROGUE
from trust_lab import policy_key_of

from mesh.control import layout
from mesh.control.feed import PolicyFeed
from mesh.control.homes import Claims
from mesh.control.records import Fault, HomeTrust, RecordError, TenantRecord, Trust
from mesh.control.signing import fields, verify
from mesh.control.store import Event, KeyValue
from mesh.policy.bundle import PolicyBook, TenantPolicy
from mesh.policy.shards import Shard
from mesh.settings import PolicyKey
from mesh.types import TenantId


class NoGap(PolicyFeed):
    """Takes each head for the next one."""

    def _successor(self, shard: Shard, changes: list[Event]) -> KeyValue | None:
        heads = [event for event in changes if isinstance(layout.parse(event.key), layout.HeadKey)]
        if len(heads) != 1 or len(changes) == 1:
            return super()._successor(shard, changes)
        head = heads[0]
        return KeyValue(head.key, head.value or b"", head.mod_revision, head.version)


class TakesOlder(PolicyFeed):
    def _put_tenant(self, policy: TenantPolicy) -> None:
        self._newest[policy.tenant] = policy.place
        self._book.put_tenant(policy)


class NoFloor(PolicyBook):
    def put_tenant(self, policy: TenantPolicy) -> None:
        self._floors.pop(policy.tenant, None)
        super().put_tenant(policy)


@dataclass(frozen=True, kw_only=True)
class AnyHome(HomeTrust):
    """Takes a statement of any home for one of this home's."""

    everybody: tuple[PolicyKey, ...] = ()

    def verifies(self, signed_by: str, signature: bytes, payload: bytes, at_s: float) -> bool:
        if super().verifies(signed_by, signature, payload, at_s):
            return True
        says_that_it_left = payload.startswith(fields(b"mesh.move.v1"))
        return says_that_it_left and any(verify((key,), signed_by, signature, payload, at_s) for key in self.everybody)


class Claimed(Claims):
    """The record of the most moves counts, whether anything leads to it or not."""

    def current(self) -> TenantRecord | None:
        there = [record for record in self.records.values() if not record.left]
        return max(there, key=lambda record: record.policy.place, default=None)


class FallsBack(Claims):
    """Where nothing counts, what the tenant's last home said before it left does, or whatever it says after it."""

    def take(self, record: TenantRecord, put: int, stood: float = inf) -> None:
        try:
            super().take(record, put, stood)
        except RecordError as error:
            if error.fault is not Fault.OLDER:
                raise
            self.records[record.policy.home] = record

    def current(self) -> TenantRecord | None:
        home = self.home
        stale = [record for record in self.records.values() if not (record.left or record.is_first)]
        stale = [record for record in stale if record.policy.home != home]
        if stale:
            return max(stale, key=lambda record: record.policy.revision)
        with suppress(RecordError):
            found = super().current()
            if found is not None:
                return found
        words = [record for record in self.records.values() if record.left]
        if not words:
            return None
        word = max(words, key=lambda record: record.policy.moves)
        policy = replace(word.policy, moves=word.policy.moves - 1, revision=word.chain[-1].revision)
        return replace(word, policy=policy, chain=word.chain[:-1], left=False)


class FollowsLast(Claims):
    """Of two statements the one counts that was seen last."""

    def take(self, record: TenantRecord, put: int, stood: float = inf) -> None:
        with suppress(RecordError):
            super().take(record, put, stood)
        self._statements.update((statement.moves, statement) for statement in record.chain)
        self._forked = False


class Making(dict[TenantId, Claims]):
    """The claims of a feed, each of another kind than the feed makes them."""

    def __init__(self, kind: type[Claims]) -> None:
        super().__init__()
        self._kind = kind

    def setdefault(self, key: TenantId, default: Claims | None = None) -> Claims:
        return super().setdefault(key, self._kind())


def feed_by(kind: type[Claims]) -> Callable[..., PolicyFeed]:
    """A feed whose claims are of that kind."""

    def feed(*given: Any) -> PolicyFeed:
        feed = PolicyFeed(*given)
        feed._claims = Making(kind)
        return feed

    return feed


def anybody_moves(trust: Trust) -> Trust:
    """A statement of whoever signs one leads to a home, and so does a home's own claim."""
    everybody = tuple(key for known in trust.homes.values() for key in known.keys)
    homes = {
        home: AnyHome(jurisdiction=known.jurisdiction, keys=known.keys, everybody=everybody)
        for home, known in trust.homes.items()
    }
    return replace(trust, homes=homes)


def anybody_signs(trust: Trust) -> Trust:
    """Any key signs for every home."""
    rogue = policy_key_of(ROGUE, "k9")
    return replace(
        trust,
        homes={
            home: HomeTrust(jurisdiction=known.jurisdiction, keys=(*known.keys, rogue))
            for home, known in trust.homes.items()
        },
    )
