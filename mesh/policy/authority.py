"""The right, limited in time, to act on policy as last seen. Pure: told of grants, of what was applied, and of now.

A grant's answer says: at some moment after `t0` the shards' numbers were these. Whoever has applied at least a shard's
number knows all that had been decided for its tenants by then, and may act on it from `t0` until `t0` + S, where S is
the tenant's own span for the jurisdiction. Every shrink waits at least that long for whoever does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.policy.bundle import TenantPolicy
from mesh.policy.shards import Shard
from mesh.ports import RHO, Instant
from mesh.types import Jurisdiction

_KEPT = 64
"""Answers that one shard keeps while it has not caught up with them: two minutes of grants."""
_MARGIN_S = 0.1


def wait_s(span_s: float) -> float:
    """How long a shrink must wait to be sure that nobody acts on what it took away, W(S): both clocks may run wrong."""
    return span_s * (1 + RHO) / (1 - RHO) + _MARGIN_S


class Authority:
    """What one process may still act on."""

    def __init__(self) -> None:
        self._applied: dict[Shard, int] = {}
        self._since: dict[Shard, Instant] = {}
        self._ahead: dict[Shard, list[tuple[int, Instant]]] = {}
        self._latest: tuple[Mapping[Shard, int], Instant] | None = None

    def granted(self, heads: Mapping[Shard, int], t0: Instant) -> None:
        """A grant was answered.

        Args:
            heads: Every shard's number in the answer; a shard that is not there has never been written.
            t0: When this process was about to ask: never when it heard.
        """
        self.look(t0)
        before, self._latest = self._latest, (heads, t0)
        for shard, number in heads.items():
            if shard not in self._since and before is not None and shard not in before[0]:
                self._raise(shard, before[1])
            if self._applied.get(shard, 0) >= number:
                self._raise(shard, t0)
            else:
                # A busy shard is late, never starved: what it has not caught up with is kept, the oldest first.
                kept = self._ahead.setdefault(shard, [])
                if len(kept) < _KEPT:
                    kept.append((number, t0))

    def applied(self, shard: Shard, number: int) -> None:
        """All changes of a shard up to this number are in the policy book."""
        self._applied[shard] = number
        ahead = self._ahead.get(shard)
        if ahead:
            for reached in [t0 for head, t0 in ahead if head <= number]:
                self._raise(shard, reached)
            self._ahead[shard] = [answer for answer in ahead if answer[0] > number]

    def drop(self) -> None:
        """None is left, and what was applied no longer counts: the store went back, or this process is leaving."""
        self._applied.clear()
        self.suspend()

    def suspend(self) -> None:
        """None is left until the next grant: the clocks cannot be told."""
        self._since.clear()
        self._ahead.clear()
        self._latest = None

    def look(self, now: Instant) -> None:
        """To be called often: once the clocks have moved apart none is left until the next grant, even if they meet."""
        if self._latest is not None and now.apart_from(self._latest[1]):
            self.suspend()

    def number(self, shard: Shard) -> int:
        """A shard's applied number; 0 before its first change."""
        return self._applied.get(shard, 0)

    def since(self, shard: Shard) -> Instant | None:
        """From when on authority over a shard's tenants counts; None where there is none."""
        since = self._since.get(shard)
        if since is None and self._latest is not None and shard not in self._latest[0]:
            return self._latest[1]  # nothing had been written to it by then
        return since

    def left_s(self, policy: TenantPolicy, place: Jurisdiction, now: Instant) -> float:
        """For how long this process may still act on a policy in a jurisdiction, or send there; 0 where it may not."""
        since = self.since(policy.shard)
        if since is None or now.apart_from(since):
            return 0.0
        return max(0.0, policy.span_s(place) - now.most_since(since))

    def left_at_s(self, policy: TenantPolicy, place: Jurisdiction, then: Instant, now: Instant) -> float:
        """How much was left at an earlier moment, as is known now: what a deadline that began then may be set to.

        A grant that was asked for after `then` adds what surely passed in between.
        """
        since = self.since(policy.shard)
        if since is None or now.apart_from(since) or self.left_s(policy, place, now) <= 0:
            return 0.0
        passed_s = then.most_since(since)
        if passed_s < 0:
            passed_s = -since.least_since(then)
        return max(0.0, policy.span_s(place) - passed_s)

    def _raise(self, shard: Shard, t0: Instant) -> None:
        known = self._since.get(shard)
        # Grants are asked for one after the other, so the later of two began later on every clock.
        if known is None or t0.boot_s > known.boot_s:
            self._since[shard] = t0
