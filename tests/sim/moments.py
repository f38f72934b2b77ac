"""The protocol's moments, by name, and what is to happen at them.

Times drawn at random hardly ever meet the narrow windows of a protocol. So whoever stands between the product and the
simulated world says when something happens (`fire`), and faults, pins and clients can be tied to that: "at the second
grant that this gateway sends after the change was committed".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

NAMES = (
    "grant_sent", "grant_committed", "grant_answered",
    "ack_sent", "ack_committed", "ack_answered",
    "change_sent", "change_committed", "change_answered",
    "judge_sent", "judge_committed", "judge_answered",
    "admitted", "hop_sent", "hop_arrived", "chunk_sent", "step_began",
    "ping_sent", "fleet_message", "replica_message", "fence_sent", "fence_confirmed",
    "peer_sent", "peer_arrived", "returned",
    "prepare_committed", "leave_sent", "leave_committed", "finish_sent", "move_over",
)  # fmt: skip
"""The first twelve are the store's; the others are fired by the adapters over hops, `Fleet` and doors."""


@dataclass(frozen=True, slots=True)
class At:
    """A time, in true seconds from the start."""

    seconds: float


@dataclass(frozen=True, slots=True)
class After:
    """A moment.

    Attributes:
        moment: Its name.
        nth: Which one, from 1.
        host: Where it is to happen; None is anywhere.
        since: Count only from this other moment on.
        delay_s: So much later.
    """

    moment: str
    nth: int = 1
    host: str | None = None
    since: str | None = None
    delay_s: float = 0.0


When = At | After


@dataclass(eq=False)
class _Waiting:
    after: After
    action: Callable[[], None]
    left: int = field(default=0)


class Moments:
    """Who waits for which moment.

    Attributes:
        seen: How often each has come.
    """

    def __init__(self, later: Callable[[float, Callable[[], None]], object]) -> None:
        """`later` does something so many seconds from now."""
        self.seen: Counter[str] = Counter()
        self._later = later
        self._unarmed: dict[str, list[_Waiting]] = {}
        self._waiting: dict[str, list[_Waiting]] = {}

    def when(self, after: After, action: Callable[[], None]) -> None:
        """Does something once, at a moment; without a delay in the midst of it."""
        if after.moment not in NAMES or after.since not in (None, *NAMES):
            raise ValueError(f"no such moment: {after}")
        waiting = _Waiting(after, action, after.nth)
        if after.since is None:
            self._waiting.setdefault(after.moment, []).append(waiting)
        else:
            self._unarmed.setdefault(after.since, []).append(waiting)

    def fire(self, name: str, host: str) -> None:
        """It happens now, at a host."""
        self.seen[name] += 1
        due: list[_Waiting] = []
        kept: list[_Waiting] = []
        for one in self._waiting.pop(name, ()):
            if one.after.host in (None, host):
                one.left -= 1
            (kept if one.left else due).append(one)
        if kept:
            self._waiting[name] = kept
        for one in self._unarmed.pop(name, ()):
            self._waiting.setdefault(one.after.moment, []).append(one)
        for one in due:
            if one.after.delay_s:
                self._later(one.after.delay_s, one.action)
            else:
                one.action()
