"""How an admin comes to know that a removal holds: one linearizable read, and a watch that tells what came after it.

Modelled (docs/decisions/0013): a pin that is committed already; gateways that acknowledge; other changes of the same
record, which leave the pin as it is or give back what it took; an admin that asks for a linearizable read, whose answer
is under way for a while, and follows a watch, which lags, breaks and goes on behind the last revision that it told of,
also when a backup of etcd was put back in between, so that the same revisions are other events. An acknowledgement says
"I have applied number n" and not which change n is.

Abstracted: no time: what is judged here is judged on acknowledgements (`core` has timers).

Promised: where the admin concludes, the history that it was told of last has, at the revision that it concludes on, the
pin, every gateway's acknowledgement, and no change that gave back what the pin took.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check

PIN, OTHER, BACK = "pin", "other", "back"


class Read(NamedTuple):
    """A linearizable read: what it was asked under, how far the store was, and of which history."""

    watch: int
    revision: int
    history: int


class State(NamedTuple):
    """The store, and what the admin knows of it.

    `watch` is the number of the connection, 0 while it is broken; `told` the last revision that it told of, from
    history `source`; `heard` the acknowledgements that it told of, `changed` the last revision that changed the record.
    """

    histories: tuple[tuple[str, ...], ...] = ((PIN,),)
    watch: int = 1
    connections: int = 1
    told: int = 1
    source: int = 0
    heard: frozenset[str] = frozenset()
    changed: int = 1
    asked: int = -1
    answer: Read | None = None
    read: Read | None = None
    concluded: str = ""


@dataclass(frozen=True)
class Following:
    """The machine.

    Attributes:
        gateways: What acknowledges.
        changes: How many other changes of the record there are, at most, in each history.
        connections: How often the watch is made, at most.
        without: The rule that is left out.
    """

    gateways: tuple[str, ...] = ("ack",)
    changes: int = 1
    connections: int = 2
    without: str = ""

    @property
    def start(self) -> State:
        return State()

    def broken(self, state: State) -> str:
        return state.concluded

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if state.concluded:
            return
        yield from self._store(state)
        yield from self._watch(state)
        yield from self._admin(state)

    def _store(self, state: State) -> Iterator[tuple[str, State]]:
        now = state.histories[-1]
        for gateway in self.gateways:
            if gateway not in now and now:
                yield f"{gateway} number {self._number(now)}", _put(state, gateway)
        if self._number(now) < 1 + self.changes:
            yield "another change", _put(state, OTHER)
            yield "a change gives back", _put(state, BACK)
        if len(state.histories) == 1:
            yield "a backup from before is put back", state._replace(histories=(*state.histories, ()), watch=0)

    def _watch(self, state: State) -> Iterator[tuple[str, State]]:
        if state.watch:
            yield "the watch breaks", state._replace(watch=0)
        elif state.connections < self.connections:
            at = state.connections + 1
            yield f"watch {at} goes on behind revision {state.told}", state._replace(watch=at, connections=at)
        now = state.histories[-1]
        if state.watch and state.told < len(now):
            event, told = now[state.told], state.told + 1
            heard = state._replace(told=told, source=len(state.histories) - 1)
            if event in self.gateways:
                yield f"told: {event}", heard._replace(heard=state.heard | {event})
            else:
                yield f"told: {event}", heard._replace(changed=told)

    def _admin(self, state: State) -> Iterator[tuple[str, State]]:
        if state.asked < 0:
            yield "the admin asks", state._replace(asked=state.watch)
        elif state.answer is None:
            at = len(state.histories) - 1
            yield "the store answers", state._replace(answer=Read(state.asked, len(state.histories[at]), at))
        else:
            answer = state.answer
            if self.without == "asked first":
                answer = answer._replace(watch=state.watch)
            seen = state.histories[answer.history][: answer.revision]
            after = state._replace(asked=-1, answer=None, read=answer)
            if PIN not in seen:
                after = after._replace(read=None)  # another store: the wait fails
            yield "the answer is here", after
        if state.read is not None and self._follows(state, state.read):
            known = state.heard | set(state.histories[state.read.history][: state.read.revision])
            if (
                known.issuperset(self.gateways)
                and BACK not in state.histories[state.read.history][: state.read.revision]
            ):
                yield "RETURN", state._replace(concluded=self._judged(state, state.read) or "")

    def _follows(self, state: State, read: Read) -> bool:
        unbroken = state.watch and read.watch == state.watch
        unchanged = state.changed <= read.revision
        return bool(unbroken or self.without == "unbroken") and bool(unchanged or self.without == "unchanged")

    def _judged(self, state: State, read: Read) -> str:
        """What was not so in the history that was told of last, up to where it was told or read."""
        at, upto = max((read.history, read.revision), (state.source, state.told))
        seen = state.histories[at][:upto]
        missing = [event for event in (PIN, *self.gateways) if event not in seen]
        if missing:
            return f"returned where the store has not: {missing[0]}"
        return "returned after a later change had given it back" if BACK in seen else ""

    def _number(self, history: tuple[str, ...]) -> int:
        return sum(event not in self.gateways for event in history)


def _put(state: State, event: str) -> State:
    return state._replace(histories=(*state.histories[:-1], (*state.histories[-1], event)))


def _check(configuration: str, machine: Following, at_least: int = 0) -> Check:
    return Check("following", configuration, machine, at_least, machine.without)


HOLD = (_check("a gateway, one more change", Following(), 4_000),)
LARGE = (_check("two gateways, one more change", Following(("ack 1", "ack 2")), 50_000),)
FOUND = tuple(
    _check("a gateway, one more change", Following(without=rule)) for rule in ("unbroken", "unchanged", "asked first")
)
