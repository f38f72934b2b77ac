"""Authority that counts from the wrong moment, by the wrong clock, or for the wrong place."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.control.overdue import Overdue
from mesh.policy.authority import Authority
from mesh.policy.bundle import TenantPolicy
from mesh.policy.shards import Shard
from mesh.ports import Clock, Instant
from mesh.types import Here, Jurisdiction


class FromReceipt(Authority):
    def __init__(self, _: Here, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def granted(self, heads: Mapping[Shard, int], t0: Instant) -> None:
        super().granted(heads, self._clock.instant())


class WhateverApplied(Authority):
    """Whose watch lags acts on what it has not applied."""

    def granted(self, heads: Mapping[Shard, int], t0: Instant) -> None:
        super().granted(heads, t0)
        for shard in heads:
            self._raise(shard, t0)


class ByBoottime(Authority):
    def left_s(self, policy: TenantPolicy, place: Jurisdiction, now: Instant) -> float:
        since = self.since(policy.shard)
        if since is None:
            return 0.0
        return max(0.0, policy.span_s(place) - (now.boot_s - since.boot_s))


class WithoutWall(Authority):
    """Does not notice that BOOTTIME and RAW stood still."""

    def look(self, now: Instant) -> None:
        pass

    def left_s(self, policy: TenantPolicy, place: Jurisdiction, now: Instant) -> float:
        since = self.since(policy.shard)
        return 0.0 if since is None else max(0.0, policy.span_s(place) - now.most_since(since))


class HomeSends(Authority):
    """Sends abroad for as long as it may serve at home."""

    def left_s(self, policy: TenantPolicy, place: Jurisdiction, now: Instant) -> float:
        return super().left_s(policy, policy.home_jurisdiction, now)


class Patient(Overdue):
    """Waits for the watch, for ever: otherwise what was not applied is mostly read before it shows."""

    def answered(self, heads: Mapping[Shard, int]) -> None:
        pass


def at_home_sends(here: Here, _: Clock) -> Authority:
    """At home only: elsewhere it is the product's own."""
    return HomeSends() if here.jurisdiction == "VN" else Authority()
