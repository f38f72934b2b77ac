"""A replica's deadlines: pings, their names, late and reordered messages, restarts, and steps that cannot be stopped.

Modelled (pins.md section 4): a replica names its pings and notes when it sent them; a message of the gateway (a hop, or
a later one) says which ping it answers and how much authority was left when that ping *arrived*; the replica's deadline
is its own send time plus that. Messages are numbered and may wait anywhere, overtake each other on different
connections, and reach a replica process that was started anew. A shrink is committed at any time; it returns by timer
after W, or as soon as the gateway has refused and drained and the replica has confirmed the fence.

Abstracted: clocks are exact, W = S. The gateway's authority is one number that a grant sets back to S until the shrink
commits. One piece of work. A step of the engine takes `step` ticks and cannot be stopped in between.

Promised: nothing runs in the replica after the return (I2), nor does what was sent before and arrives after (I3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pinmodel.explore import Check


class Ping(NamedTuple):
    life: int
    number: int


class Noted(NamedTuple):
    """A ping as the gateway noted it: its name, and the authority that was left when it arrived."""

    ping: Ping
    left: int


class Message(NamedTuple):
    """From the gateway: its number, the ping that it answers, what was left then. `end` says: refuse what is older."""

    number: int
    noted: Noted
    end: bool


class Replica(NamedTuple):
    """A process: which life, the age of its pings, the highest message seen, its deadline, a step under way.

    `kept` is for how long it still remembers that number.
    """

    life: int
    pings: tuple[int, ...]
    highest: int
    kept: int
    works: bool
    deadline: int
    step: int


class State(NamedTuple):
    left: int
    shrink: str
    applied: bool
    wait: int
    on_way: Ping | None
    noted: Noted | None
    sent: int
    messages: frozenset[Message]
    confirmed: bool
    replica: Replica


@dataclass(frozen=True)
class Replicas:
    """The machine.

    Attributes:
        span: S, in ticks.
        step: How long a step of the engine takes, in ticks.
        pings: How many pings a life of the replica sends, at most.
        messages: How many messages the gateway sends, at most.
        lives: How often the replica is started, at most.
        without: The rule that is left out.
    """

    span: int = 3
    step: int = 1
    pings: int = 2
    messages: int = 3
    lives: int = 2
    without: str = ""

    @property
    def start(self) -> State:
        return State(self.span, "none", False, 0, None, None, 0, frozenset(), False, Replica(1, (), 0, 0, False, 0, 0))

    def broken(self, state: State) -> str:
        if state.shrink == "returned" and state.replica.step:
            return "I2, I3: the replica works after the return"
        return ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield "tick", self._tick(state)
        yield from self._gateway(state)
        yield from self._shrink(state)
        yield from self._replica(state)

    def _tick(self, state: State) -> State:
        replica = state.replica
        deadline = max(0, replica.deadline - 1)
        kept = max(0, replica.kept - 1)
        replica = replica._replace(
            highest=replica.highest if kept else 0,
            kept=kept,
            pings=tuple(min(self.span, age + 1) for age in replica.pings),
            deadline=deadline,
            step=max(0, replica.step - 1),
            works=replica.works and bool(deadline),
        )
        return state._replace(left=max(0, state.left - 1), wait=max(0, state.wait - 1), replica=replica)

    def _gateway(self, state: State) -> Iterator[tuple[str, State]]:
        if state.shrink == "none" and state.left < self.span:
            yield "grant", state._replace(left=self.span)
        if state.on_way:
            noted = Noted(state.on_way, state.left)
            yield "ping arrives", state._replace(on_way=None, noted=noted)
            yield "ping lost", state._replace(on_way=None)
        if state.sent >= self.messages or len(state.messages) > 1 or not state.noted:
            return
        number = state.sent + 1
        if state.left and not state.applied:
            # The check is made here; the gateway may then stand still, or the message lie in a buffer.
            noted = state.noted if self.without != "pauseadmit" else Noted(state.noted.ping, state.left)
            message = Message(number, noted, end=False)
            yield "ADMIT, hop sent", state._replace(sent=number, messages=state.messages | {message})
        if state.applied:
            message = Message(number, state.noted, end=True)
            yield "fence sent", state._replace(sent=number, messages=state.messages | {message})

    def _shrink(self, state: State) -> Iterator[tuple[str, State]]:
        if state.shrink == "none":
            yield "COMMIT", state._replace(shrink="committed", wait=self.span)
        elif state.shrink != "returned":
            if not state.applied:
                yield "gateway applies", state._replace(applied=True)
            if not state.wait:
                yield "RETURN by timer", state._replace(shrink="returned")
            if state.confirmed:
                yield "RETURN by acknowledgement", state._replace(shrink="returned")

    def _replica(self, state: State) -> Iterator[tuple[str, State]]:
        replica = state.replica
        if len(replica.pings) < self.pings and not state.on_way:
            number = len(replica.pings) + 1
            pinged = replica._replace(pings=(*replica.pings, 0))
            yield "ping sent", state._replace(on_way=Ping(replica.life, number), replica=pinged)
        if replica.life < self.lives:
            yield "replica restarts", state._replace(replica=Replica(replica.life + 1, (), 0, 0, False, 0, 0))
        for message in state.messages:
            rest = state._replace(messages=state.messages - {message})
            what = "fence" if message.end else "hop"
            yield f"{what} {message.number} arrives", self._heard(rest, message)
            yield f"{what} {message.number} lost", rest
        needs = 1 if self.without == "longstep" else self.step
        if replica.works and not replica.step and replica.deadline >= needs:
            yield "engine step", state._replace(replica=replica._replace(step=self.step))

    def _heard(self, state: State, message: Message) -> State:
        replica = state.replica
        known = message.noted.ping.life == replica.life or self.without == "pingreuse"
        known = known and message.noted.ping.number <= len(replica.pings)
        old = message.number <= replica.highest and self.without != "fence"
        if message.end:
            # It may be of an older life: then this one holds nothing that the gateway's work could be.
            ended = replica._replace(
                highest=max(replica.highest, message.number), kept=self.span, works=False, deadline=0
            )
            if self.without == "fence kept":
                # Only for the deadlines that it was given, not for those that lie in buffers.
                ended = ended._replace(kept=replica.deadline, highest=ended.highest if replica.deadline else 0)
            if replica.step:
                return state._replace(replica=ended)  # it confirms when the step has ended: ask again
            return state._replace(replica=ended, confirmed=True)
        if not known or old:
            return state
        left = message.noted.left - replica.pings[message.noted.ping.number - 1]
        if self.without == "live":
            left = self.span
        elif self.without == "pauseadmit":
            left = message.noted.left
        if left <= 0:
            return state
        highest = max(message.number, replica.highest)
        replica = replica._replace(highest=highest, kept=self.span, works=True, deadline=left)
        return state._replace(replica=replica)


def _check(configuration: str, machine: Replicas, at_least: int = 0) -> Check:
    return Check("replicas", configuration, machine, at_least, machine.without)


HOLD = (
    _check("S 2, one ping, one restart", Replicas(span=2, pings=1, messages=2), 1_000),
    _check("steps of two ticks", Replicas(span=3, step=2, pings=1, messages=2, lives=1), 1_000),
)
LARGE = (
    _check("S 3, two pings, three messages, one restart", Replicas(), 100_000),
    _check("two restarts", Replicas(span=3, pings=1, messages=3, lives=3), 100_000),
    _check("steps of two ticks, S 4, three messages", Replicas(span=4, step=2, pings=1, lives=1), 10_000),
)
FOUND = (
    _check("S 2", Replicas(span=2, pings=1, messages=2, lives=1, without="live")),
    _check("S 2", Replicas(span=2, pings=1, messages=2, lives=1, without="pauseadmit")),
    _check("one restart", Replicas(span=3, pings=1, messages=2, without="pingreuse")),
    _check("steps of two ticks", Replicas(span=3, step=2, pings=1, messages=2, lives=1, without="longstep")),
    _check("S 3", Replicas(span=3, pings=1, messages=2, lives=1, without="fence")),
    _check("S 3", Replicas(span=3, pings=1, messages=2, lives=1, without="fence kept")),
)
