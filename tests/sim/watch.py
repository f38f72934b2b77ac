"""Watches an episode from its true state: what was promised, and whether anything happens that must not any more.

It looks at whatever happens that a promise may forbid, at the moment at which it does, and when a promise begins at
all that is there. So between two looks nothing can begin to break one. It also writes the history, from which
`check.py` must come to the same conclusion without knowing what is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from sim.history import History
from sim.hosts import Host
from sim.wire import Asked

from mesh.types import Jurisdiction, KeyId, TenantId

ALL = "*"
_AT_ONCE_S = 1e-6
_RESUMED_S = 0.55


@dataclass(frozen=True, slots=True)
class There:
    """Something that takes room somewhere now: an engine's place, or a call at a gateway."""

    host: Host
    what: str
    tenant: TenantId
    place: str
    key_id: KeyId | None


@dataclass
class Watch:
    """The promises of an episode.

    Attributes:
        there: Tells all that takes room now, on hosts that live.
        moves_of: How often a tenant has moved as a host's program knows it; None where that has no policy of it.
        later: Does something so many seconds from now.
        violations: What broke a promise.
        seen: How often it looked at what, while a promise stood.
    """

    history: History
    now: Callable[[], float]
    later: Callable[[float, Callable[[], None]], object]
    there: Callable[[], Iterator[There]]
    moves_of: Callable[[Host, TenantId], int | None]
    violations: list[str] = field(default_factory=list)
    seen: int = 0
    _promises: dict[tuple[TenantId, str], tuple[int, int]] = field(default_factory=dict)
    _resumed: dict[str, float] = field(default_factory=dict)
    _keys: set[tuple[TenantId, KeyId]] = field(default_factory=set)
    _homes: dict[TenantId, str] = field(default_factory=dict)
    _settled: dict[TenantId, int] = field(default_factory=dict)
    _known: dict[tuple[str, int, TenantId], int] = field(default_factory=dict)
    _permits: dict[TenantId, list[tuple[tuple[int, int], float, frozenset[str]]]] = field(default_factory=dict)

    # --- promises

    def committed(
        self, host: str, tenant: TenantId, revision: int, permits: Iterable[str], key: KeyId | None, epoch: int,
        home: str,
    ) -> None:  # fmt: skip
        """A tenant's record was put, by a home that it has as far as that home says."""
        permitted, number = frozenset(str(place) for place in permits), (epoch, revision)
        self.history.committed(
            host, tenant=tenant, revision=revision, permits=permitted, key=key, epoch=epoch, home=home
        )  # fmt: skip
        if self._homes.get(tenant, home) != home:
            self.broken("M", f"{home} put revision {revision}, and the tenant is at {self._homes[tenant]}")
            return
        self._permits.setdefault(tenant, []).append((number, self.now(), permitted))
        for (whose, place), since in list(self._promises.items()):
            if whose == tenant and number > since and (place in permitted or (place == ALL and permitted)):
                del self._promises[whose, place]

    def returned(
        self, host: str, tenant: TenantId, revision: int, removed: Iterable[str], key: KeyId | None, judged: float,
        outcome: str, epoch: int,
    ) -> None:  # fmt: skip
        """A change has come back to who asked for it."""
        gone, number = frozenset(str(place) for place in removed), (epoch, revision)
        self.history.returned(
            host,
            tenant=tenant,
            revision=revision,
            removed=gone,
            outcome=outcome,
            judged=judged,
            key=key,
            epoch=epoch,
        )
        if outcome != "done":
            return
        for place in gone:
            back = [
                at
                for later, at, permitted in self._permits.get(tenant, ())
                if later > number and (place in permitted or (place == ALL and permitted))
            ]
            if not back:
                self._promises[tenant, place] = max(number, self._promises.get((tenant, place), number))
            elif min(back) <= judged:
                self.broken("S", f"revision {revision} returned as done, and {place} was permitted again")
        if key is not None:
            self._keys.add((tenant, key))
        self.look()
        self.later(_AT_ONCE_S, lambda: self.look(ended=True))

    def moved(self, host: str, tenant: TenantId, moves: int, home: str, new_home: str, revision: int) -> None:
        """A home has said that a tenant left it."""
        self.history.moved(host, tenant=tenant, moves=moves, home=home, new_home=new_home, revision=revision)
        if self._homes.get(tenant, home) != home:
            self.broken("M", f"{home} says that the tenant left, and it is at {self._homes[tenant]}")
            return
        self._homes[tenant] = new_home

    def settled(self, host: str, tenant: TenantId, moves: int) -> None:
        """Nobody acts on a record of fewer moves, says who waited for that."""
        self.history.settled(host, tenant=tenant, moves=moves)
        self._settled[tenant] = max(moves, self._settled.get(tenant, 0))

    def _by_record(self, what: str, host: Host, tenant: TenantId) -> int | None:
        """After how many moves the record is by which a gateway acts on a tenant now, which must not be too few."""
        moves, life = self.moves_of(host, tenant), (host.name, host.lives, tenant)
        if moves is None or tenant not in self._homes:
            return moves
        if moves < max(self._settled.get(tenant, 0), self._known.get(life, 0)):
            self.broken("M", f"{what} by a home that the tenant has left, at {host.name}")
        self._known[life] = max(moves, self._known.get(life, 0))
        return moves

    def forbids(self, tenant: TenantId, place: str, key: KeyId | None) -> bool:
        """Whether a promise stands against it."""
        return (
            (tenant, place) in self._promises
            or (tenant, ALL) in self._promises
            or (key is not None and (tenant, key) in self._keys)
        )

    def broken(self, rule: str, text: str) -> None:
        """A promise is broken, or a rule that has no line in the history."""
        self.violations.append(f"{rule}: at {self.now():.6f} {text}")

    def look(self, *, ended: bool = False) -> None:
        """At all that is there. `ended`: also what was told to end must be gone by now."""
        if not self._promises and not self._keys:
            return
        for one in self.there():
            self.seen += 1
            if (ended or one.what != "stream") and self._is_late(one):
                self.broken("I2", f"a {one.what} is held in {one.place} at {one.host.name}")

    def resumed(self, host: str) -> None:
        """A host goes on that was stopped: a step that it was in ends, and soon nothing must be left there either."""
        self._resumed[host] = self.now()
        self.later(_RESUMED_S + _AT_ONCE_S, lambda: self.look(ended=True))

    def _is_late(self, one: There) -> bool:
        process, resumed = one.host.process, self._resumed.get(one.host.name)
        if process is None or process.paused or (resumed is not None and self.now() <= resumed + _RESUMED_S):
            return False
        return self.forbids(one.tenant, one.place, one.key_id)

    def _must_not(self, rule: str, what: str, host: Host, place: str, tenant: TenantId, key: KeyId | None) -> None:
        if self._promises or self._keys:
            self.seen += 1
            if self.forbids(tenant, place, key):
                self.broken(rule, f"{what} in {place} by {host.name}")

    # --- what happens

    def admitted(self, host: Host, place: Jurisdiction, asked: Asked, arrived: float) -> None:
        self._must_not("I1", "a call was admitted", host, place, asked.tenant, asked.key_id)
        moves = self._by_record("a call was admitted", host, asked.tenant)
        self.history.admitted(
            host.name, tenant=asked.tenant, jurisdiction=place, request=asked.request_id, key=asked.key_id,
            arrived=arrived, moves=moves,
        )  # fmt: skip

    def forwarded(self, host: Host, place: Jurisdiction, asked: Asked) -> None:
        self._must_not("I1", "a piece was sent to be", host, place, asked.tenant, asked.key_id)
        moves = self._by_record("a piece was sent", host, asked.tenant)
        self.history.forwarded(
            host.name, tenant=asked.tenant, jurisdiction=place, request=asked.request_id, key=asked.key_id, moves=moves
        )

    def received(self, host: Host, place: Jurisdiction, asked: Asked, *, accepted: bool) -> None:
        if accepted:
            self._must_not("I3", "something was taken", host, place, asked.tenant, asked.key_id)
        self.history.received(
            host.name, tenant=asked.tenant, jurisdiction=place, request=asked.request_id, key=asked.key_id,
            accepted=accepted,
        )  # fmt: skip

    def refused(self, host: Host, place: Jurisdiction, asked: Asked, code: str) -> None:
        self.history.refused(
            host.name, tenant=asked.tenant, jurisdiction=place, request=asked.request_id, code=code
        )  # fmt: skip

    def stepped(self, host: Host, place: Jurisdiction, asked: Asked, takes_s: float) -> None:
        self._must_not("I2", "a step began", host, place, asked.tenant, asked.key_id)
        self.history.stepped(
            host.name, tenant=asked.tenant, jurisdiction=place, request=asked.request_id, key=asked.key_id,
            takes_s=takes_s,
        )  # fmt: skip

    def held(self, host: Host, hold: str, what: str, place: Jurisdiction, asked: Asked) -> None:
        self._must_not("I2", f"a {what} was taken", host, place, asked.tenant, asked.key_id)
        self.history.held(
            host.name, hold, what=what, tenant=asked.tenant, jurisdiction=place, key=asked.key_id
        )  # fmt: skip

    def freed(self, host: Host, hold: str) -> None:
        self.history.freed(host.name, hold)
