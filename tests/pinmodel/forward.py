"""Sending abroad: a gateway in the home's jurisdiction V forwards to one in J; each decides for itself, each by S(T, J).

Modelled (pins.md sections 3 to 5): grants of both gateways; authority for (T, V) and (T, J) from one grant, with an S
for each; parcels that lie in buffers between the two for any time; the receiver's own check; the removal of J and the
suspension of the tenant, their W, acknowledgements and timers; lost and late messages.

Abstracted: clocks are exact, W = S. Both gateways are members all the time; nothing drains, what runs is cut when the
change is applied; an answer that is not caught up with is dropped (`core` has the rest). What a kernel does with a
buffer was measured, not modelled: here a parcel that was handed over may arrive at any later time.

Promised: after the return nothing is forwarded to J or admitted there (I1), nothing runs in what was removed (I2), and
what was sent before and arrives after is refused (I3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check

V, J = 0, 1


class Gateway(NamedTuple):
    """The change it has applied and acknowledged, the age of its best grant, and what it asked: (phase, age, head)."""

    applied: int
    acked: int
    age: int
    asked: tuple[str, int, int] | None


class Barrier(NamedTuple):
    number: int
    wait: int
    age: int
    removed: tuple[int, ...]


class State(NamedTuple):
    """`history` holds what each change leaves allowed; `parcel` is none, sent, or late: sent after the return."""

    history: tuple[frozenset[int], ...]
    barriers: tuple[Barrier, ...]
    returned: frozenset[int]
    gateways: tuple[Gateway, Gateway]
    runs: tuple[bool, bool]
    parcel: str


@dataclass(frozen=True)
class Forward:
    """The machine.

    Attributes:
        spans: S for V, the home's jurisdiction, and for J, in ticks.
        commits: How many changes are made, at most.
        without: The rule that is left out.
    """

    spans: tuple[int, int] = (2, 1)
    commits: int = 1
    without: str = ""

    @property
    def start(self) -> State:
        gateway = Gateway(0, 0, max(self.spans), None)
        return State((frozenset({V, J}),), (), frozenset(), (gateway, gateway), (False, False), "none")

    def broken(self, state: State) -> str:
        if state.parcel == "late":
            return "I1: forwarded to J after the return"
        if state.runs[J] and J in state.returned:
            return "I1, I2, I3: work in J after the return"
        return "I2: work in V after the return" if state.runs[V] and V in state.returned else ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield "tick", self._tick(state)
        for place, name in ((V, "sender"), (J, "receiver")):
            yield from self._gateway(state, place, name)
        yield from self._work(state)
        yield from self._admin(state)

    def _left(self, state: State, at: int, place: int) -> int:
        """How much authority the gateway that is in `at` has for `place`."""
        gateway = state.gateways[at]
        if place not in state.history[gateway.applied]:
            return 0
        span = self.spans[V if self.without == "sendhome" and at == V else place]
        return max(0, span - gateway.age)

    def _cut(self, state: State) -> State:
        """Authority is a timer: what has none left ends."""
        return state._replace(runs=tuple(state.runs[at] and bool(self._left(state, at, at)) for at in (V, J)))

    def _tick(self, state: State) -> State:
        most = max(self.spans)
        aged = tuple(
            gateway._replace(
                age=min(most, gateway.age + 1),
                asked=gateway.asked and (gateway.asked[0], min(most, gateway.asked[1] + 1), gateway.asked[2]),
            )
            for gateway in state.gateways
        )
        barriers = tuple(barrier._replace(age=min(most, barrier.age + 1)) for barrier in state.barriers)
        return self._cut(state._replace(gateways=aged, barriers=barriers))

    def _gateway(self, state: State, at: int, name: str) -> Iterator[tuple[str, State]]:
        gateway = state.gateways[at]

        def put(after: Gateway) -> State:
            return state._replace(gateways=(after, state.gateways[J]) if at == V else (state.gateways[V], after))

        if gateway.asked is None:
            yield f"{name}: grant sent", put(gateway._replace(asked=("sent", 0, 0)))
        else:
            phase, age, head = gateway.asked
            yield f"{name}: grant lost", put(gateway._replace(asked=None))
            if phase == "sent":
                committed = ("answered", age, len(state.history) - 1)
                yield f"{name}: grant commits", put(gateway._replace(asked=committed))
            else:
                best = min(age, gateway.age) if head <= gateway.applied else gateway.age
                yield f"{name}: grant answered", put(gateway._replace(asked=None, age=best))
        if gateway.applied < len(state.history) - 1:
            yield f"{name}: applies", self._cut(put(gateway._replace(applied=gateway.applied + 1)))
        if gateway.acked < gateway.applied:
            yield f"{name}: ack", put(gateway._replace(acked=gateway.applied))

    def _work(self, state: State) -> Iterator[tuple[str, State]]:
        for at, name in ((V, "V"), (J, "J")):
            runs = state.runs
            if runs[at]:
                yield f"ends in {name}", state._replace(runs=(False, runs[J]) if at == V else (runs[V], False))
            elif self._left(state, at, at):
                yield f"ADMIT in {name}", state._replace(runs=(True, runs[J]) if at == V else (runs[V], True))
        if state.parcel == "none" and self._left(state, V, J):
            yield "FORWARD to J", state._replace(parcel="late" if J in state.returned else "sent")
        if state.parcel == "sent":
            yield "parcel lost or refused", state._replace(parcel="none")
            if self._left(state, J, J) or self.without == "senderdecides":
                yield "parcel ADMITTED in J", state._replace(parcel="none", runs=(state.runs[V], True))

    def _admin(self, state: State) -> Iterator[tuple[str, State]]:
        last = state.history[-1]
        if len(state.history) <= self.commits:
            for name, allowed in (("J removed", last & {V}), ("suspended", frozenset[int]())):
                if allowed != last:
                    gone = tuple(sorted(last - allowed))
                    barrier = Barrier(len(state.history), max(self.spans[place] for place in gone), 0, gone)
                    barriers = (*state.barriers, barrier)
                    yield f"COMMIT {name}", state._replace(history=(*state.history, allowed), barriers=barriers)
        for barrier in state.barriers:
            acked = all(gateway.acked >= barrier.number for gateway in state.gateways)
            if acked or barrier.age >= barrier.wait:
                how = "acknowledgement" if acked else "timer"
                rest = tuple(other for other in state.barriers if other != barrier)
                returned = state.returned | frozenset(barrier.removed)
                yield f"RETURN {barrier.number} by {how}", state._replace(barriers=rest, returned=returned)


def _check(configuration: str, machine: Forward, at_least: int = 0) -> Check:
    return Check("forward", configuration, machine, at_least, machine.without)


HOLD = (_check("S(V) 2, S(J) 1, one change", Forward(), 20_000),)
LARGE = (
    _check("S(V) 2, S(J) 1, two changes", Forward(commits=2), 50_000),
    _check("S(V) 3, S(J) 2, one change", Forward(spans=(3, 2)), 50_000),
    _check("S(V) 3, S(J) 1, two changes", Forward(spans=(3, 1), commits=2), 100_000),
)
FOUND = (
    _check("S(V) 2, S(J) 1, one change", Forward(without="sendhome")),
    _check("S(V) 2, S(J) 1, one change", Forward(without="senderdecides")),
)
