"""A gateway's hand-outs and a replica's leases against each other, over any order of hops, messages, pings and faults.

Two hosts whose clocks go at different rates, a stream that keeps its order and breaks, hops that arrive in any order,
late or never. What is held to be true: when the gateway takes a fence for confirmed, nothing below it runs or is ever
admitted again; nothing runs without authority; and after a lowering, nothing from before it runs for longer than what
is left now. What happens is drawn from a seed, with the moves of the protocol likelier than its accidents.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from serving.lease_lab import REPLICA, HandClock, T

from mesh.errors import MeshError
from mesh.ports import RHO, Instant
from mesh.serving.leases import Fence, Hold, Leases, Stay
from mesh.transport.handouts import Fenced, HandOuts, HoldFor, Said
from mesh.types import KeyId, PolicyNumber

KEYS = (KeyId("k_1"), KeyId("k_2"))
STEP_S = 0.3


@dataclass(eq=False)
class Work:
    """One hop, on its way or at the replica. `steps_until` is when its engine's step ends, in true time."""

    lease: bytes
    number: PolicyNumber
    key: KeyId
    stay: Stay | None = None
    steps_until: float = 0.0


@dataclass
class Promise:
    """Something that was asked for, and what it is about."""

    asked: Fenced
    below: PolicyNumber | None
    key: KeyId | None
    confirmed_at: float | None = None
    granted: Instant | None = None
    hops: list[Work] = field(default_factory=list)


class Border:
    """One gateway, one replica, and what lies between them."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.now = 0.0
        rates = [1 - RHO, 1.0, 1 + RHO]
        self.rates = dice.choice(rates), dice.choice(rates)
        self.here, self.there = HandClock(), HandClock()
        self.out = HandOuts(self.here)
        self.leases = Leases(REPLICA, self.there)
        self.leases.step_s = STEP_S
        self.source = self.leases.source()
        self.source.begin()
        self.joined = False  # as the gateway sees it
        self.pings: list[tuple[int, int]] = []
        self.messages: list[Said] = []
        self.flying: list[Work] = []
        self.landed: list[Work] = []
        self.promises: list[Promise] = []
        self.number = 1
        self.allowed = True
        self.span_s = 6.0
        self.authority_until = 0.0  # the latest ever, in true time
        self.frozen: tuple[PolicyNumber, Instant, float] | None = None
        self.out.holds = self.holds
        self.renew()

    MOVES: tuple[tuple[str, int], ...] = (
        ("renew", 6),
        ("exchange", 10),
        ("replica_pings", 3),
        ("report_arrives", 6),
        ("gateway_writes", 4),
        ("message_arrives", 6),
        ("stream_breaks", 1),
        ("hop_is_sent", 10),
        ("hop_arrives", 9),
        ("engine_steps", 8),
        ("work_is_done", 2),
        ("another_tenant_changes", 1),
        ("pin", 3),
        ("drain_is_cut", 4),
        ("allow_again", 3),
        ("revoke", 1),
        ("lower", 1),
        ("raise_again", 1),
        ("time_passes", 14),
    )

    def go(self, steps: int) -> None:
        names, weights = zip(*self.MOVES, strict=True)
        for name in self.dice.choices(names, weights, k=steps):
            move: Callable[[], None] = getattr(self, name)
            move()
            self.check()

    # The gateway's policy and authority.

    def left_at(self, then: Instant) -> float:
        return self.span_s - then.most_since(self.granted) if self.allowed else 0.0

    def renew(self) -> None:
        self.granted, self.granted_at = self.here.instant(), self.now
        self.reach()

    def reach(self) -> None:
        self.authority_until = max(self.authority_until, self.granted_at + self.span_s / (1 - RHO))

    def holds(self, _: object) -> list[HoldFor]:
        found = [HoldFor(T, self.left_at, PolicyNumber(0, self.number))] if self.allowed else []
        if self.frozen is not None:
            upto, since, left_s = self.frozen
            found.insert(0, HoldFor(T, lambda then: left_s - then.most_since(since), upto))
        return found

    def another_tenant_changes(self) -> None:
        self.number += 1

    def promise(self, below: PolicyNumber, key: KeyId | None = None) -> None:
        self.promises.append(Promise(self.out.fence(T, below, key), below, key))

    def pin(self) -> None:
        if not self.allowed or self.frozen is not None:
            return
        left_s, drain_s = self.left_at(self.here.instant()), self.dice.choice([0.0, 0.0, 1.0, 5.0])
        self.number += 1
        self.allowed = False
        if drain_s and left_s > 0:
            # What runs may finish: its end is fixed now, and the fence comes after it.
            self.frozen = PolicyNumber(0, self.number - 1), self.here.instant(), min(drain_s, left_s)
        else:
            self.promise(PolicyNumber(0, self.number))

    def drain_is_cut(self) -> None:
        if self.frozen is not None:
            below = PolicyNumber(0, self.frozen[0].number + 1)
            self.frozen = None
            self.promise(below)

    def allow_again(self) -> None:
        if not self.allowed:
            self.number += 1
            self.allowed = True
            self.renew()

    def revoke(self) -> None:
        self.number += 1
        self.promise(PolicyNumber(0, self.number), self.dice.choice(KEYS))

    def lower(self) -> None:
        if self.span_s > 2.0 and self.allowed:
            self.number += 1
            self.span_s = 2.0
            hops = [*self.flying, *self.landed]
            self.promises.append(Promise(self.out.lowered(T), None, None, hops=hops))

    def raise_again(self) -> None:
        if self.span_s < 6.0:
            self.number += 1
            self.span_s = 6.0
            self.reach()
            self.promises = [promise for promise in self.promises if promise.below is not None]

    # The stream: in order, until it breaks.

    def exchange(self) -> None:
        """A whole round, with what was under way before it."""
        self.replica_pings()
        while self.pings:
            self.report_arrives()
        self.gateway_writes()
        while self.messages:
            self.message_arrives()

    def replica_pings(self) -> None:
        self.pings.append((self.source.ping(), self.source.heard))

    def report_arrives(self) -> None:
        if self.pings:
            self.out.pinged(REPLICA, *self.pings.pop(0))
            self.joined = True

    def gateway_writes(self) -> None:
        if self.joined:
            self.messages.append(self.out.message(REPLICA))

    def message_arrives(self) -> None:
        if self.messages:
            said = self.messages.pop(0)
            holds = [Hold(one.tenant, said.seen, one.left_ms / 1000, one.number) for one in said.holds]
            self.source.said(said.message, holds, [Fence(one.tenant, one.below, one.key_id) for one in said.fences])

    def stream_breaks(self) -> None:
        """The replica joins anew; the gateway may have seen the end of the old stream, or see the new one first."""
        self.pings.clear()
        self.messages.clear()
        if self.joined and self.dice.random() < 0.6:
            self.out.gone(REPLICA)
            self.joined = False
        self.source.begin()

    # Hops.

    def hop_is_sent(self) -> None:
        key = self.dice.choice(KEYS)
        if not self.allowed or len(self.flying) > 3 or any(promise.key == key for promise in self.promises):
            return  # a revoked key sends nothing any more
        number = PolicyNumber(0, self.number)
        lease = self.out.lease(REPLICA, T, self.left_at, number)
        if lease is not None:
            self.flying.append(Work(lease.encode(), number, key))

    def hop_arrives(self) -> None:
        """Any of them, and now and then one is lost."""
        if self.flying:
            work = self.flying.pop(self.dice.randrange(len(self.flying)))
            if self.dice.random() < 0.9:
                with suppress(MeshError):
                    work.stay = self.leases.admit(work.lease, T, work.key)
                    work.stay.entered()
                    self.landed.append(work)

    def engine_steps(self) -> None:
        """A step for each that may go on, the longest there is or a short one; the others leave."""
        for work in list(self.landed):
            assert work.stay is not None
            if work.stay.may_go_on():
                work.steps_until = self.now + self.dice.choice([0.05, STEP_S])
            elif self.now >= work.steps_until:
                self._let_go(work)

    def work_is_done(self) -> None:
        if self.landed and self.now >= self.landed[0].steps_until:
            self._let_go(self.landed[0])

    def _let_go(self, work: Work) -> None:
        assert work.stay is not None
        self.landed.remove(work)
        work.stay.close()
        work.stay.left()

    # Time.

    def time_passes(self) -> None:
        seconds = self.dice.choice([0.01, 0.05, 0.3, 0.3, 1.0, 1.0, 1.9, 3.0, 5.95, 6.1])
        self.now += seconds
        gateway, replica = self.rates
        self.here.go(seconds, boot=gateway, raw=gateway)
        self.there.go(seconds, boot=replica, raw=replica)
        if self.dice.random() < 0.7:
            self.leases.tick()

    # What is promised.

    def check(self) -> None:
        running = [
            work
            for work in self.landed
            if (work.stay is not None and work.stay.may_go_on()) or work.steps_until > self.now
        ]
        assert not running or self.now <= self.authority_until, "it runs without authority"
        for promise in self.promises:
            if promise.confirmed_at is None and promise.asked.confirmed:
                promise.confirmed_at = self.now
            if promise.confirmed_at is None:
                continue
            if promise.below is not None:
                below = [work for work in running if work.number < promise.below and promise.key in (None, work.key)]
                assert not below, "it runs behind a fence"
            elif promise.granted is None:
                promise.granted = self.granted
            elif promise.granted is self.granted and self.here.instant().most_since(self.granted) > 2.0 * (1 + 3 * RHO):
                assert not [work for work in running if work in promise.hops], "it runs longer than the lowered span"


@settings(max_examples=400)
@given(seed=st.integers(0, 2**48))
def test_what_is_promised_holds_in_any_order_of_events(seed: int) -> None:
    Border(random.Random(seed)).go(150)
