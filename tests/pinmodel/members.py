"""Who is waited for: a gateway's grant key, and who may take it away.

Modelled (pins.md sections 3 and 5): a shrink waits for the gateways that have a grant key at its commit. The key is put
by the grant's own transaction; the sweeper deletes it when it saw it unchanged for W, in a transaction that it may
decide on long before it is sent. As a mutant, the key hangs on an etcd lease instead, that outlives the authority by
a tick: a leader that was replaced goes on to count, sees no renewal, and has the lease revoked by its successor.

Abstracted: clocks are exact, W = S = the cap. The gateway never hears of the shrink, so only time can end its authority.

Promised: after the return the gateway has no authority (I1, I2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check


class State(NamedTuple):
    """`asked` is (phase, age); `seen` is for how long the sweeper saw the key unchanged, none before it looked again.

    `leases` is what the leader, and the one before it, believe to be left of the lease.
    """

    age: int
    asked: tuple[str, int] | None
    key: bool
    seen: int | None
    sweeping: str
    leases: tuple[int, int | None]
    shrink: str
    waited: int


@dataclass(frozen=True)
class Members:
    """The machine.

    Attributes:
        span: S, in ticks.
        without: The rule that is left out.
    """

    span: int = 2
    without: str = ""

    @property
    def start(self) -> State:
        return State(self.span, None, False, None, "", (0, None), "none", 0)

    def broken(self, state: State) -> str:
        return "I1, I2: authority after the return" if state.shrink == "returned" and state.age < self.span else ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield "tick", self._tick(state)
        if state.asked is None:
            yield "grant sent", state._replace(asked=("sent", 0))
        else:
            yield from self._asked(state, *state.asked)
        if self.without == "lease":
            yield from self._lease(state)
        else:
            yield from self._sweeper(state)
        if state.shrink == "none":
            yield "COMMIT", state._replace(shrink="waits" if state.key else "returned")
        elif state.shrink == "waits" and state.waited >= self.span:
            yield "RETURN by timer", state._replace(shrink="returned")

    def _tick(self, state: State) -> State:
        leader, old = state.leases
        return state._replace(
            age=min(self.span, state.age + 1),
            asked=state.asked and (state.asked[0], min(self.span, state.asked[1] + 1)),
            seen=None if state.seen is None else min(self.span, state.seen + 1),
            leases=(max(0, leader - 1), None if old is None else max(0, old - 1)),
            waited=min(self.span, state.waited + 1) if state.shrink == "waits" else 0,
        )

    def _asked(self, state: State, phase: str, age: int) -> Iterator[tuple[str, State]]:
        yield "grant lost", state._replace(asked=None)
        if phase == "sent":
            # A grant that commits after the shrink names a head that this gateway never applies.
            answered = ("answered", age) if state.shrink == "none" else None
            sweeping = "changed" if state.sweeping else ""
            leases = (self.span + 1, state.leases[1])
            yield (
                "grant commits",
                state._replace(asked=answered, key=True, seen=None, sweeping=sweeping, leases=leases),
            )
        else:
            yield "grant answered", state._replace(asked=None, age=min(age, state.age))

    def _sweeper(self, state: State) -> Iterator[tuple[str, State]]:
        if state.key and state.seen is None:
            yield "sweeper looks", state._replace(seen=0)
        if state.key and state.seen == self.span and not state.sweeping:
            yield "sweeper decides", state._replace(sweeping="unchanged")
        if state.sweeping:
            sweeps = state.key and (state.sweeping == "unchanged" or self.without == "sweeper compares")
            swept = state._replace(sweeping="")
            yield "SWEEP", swept._replace(key=False, seen=None) if sweeps else swept

    def _lease(self, state: State) -> Iterator[tuple[str, State]]:
        leader, old = state.leases
        if state.key and old is None:
            yield "another leader", state._replace(leases=(self.span + 1, leader))
        if state.key and (not leader or old == 0):
            who = "the leader before" if old == 0 else "the leader"
            yield f"lease revoked by {who}", state._replace(key=False, leases=(0, None))


def _check(configuration: str, machine: Members, at_least: int = 0) -> Check:
    return Check("members", configuration, machine, at_least, machine.without)


HOLD = (_check("S 2", Members(), 200),)
LARGE = (_check("S 6", Members(6), 2_000),)
FOUND = tuple(_check("S 2", Members(without=rule)) for rule in ("lease", "sweeper compares"))
