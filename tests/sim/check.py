"""Reads histories and says where the promise was broken. Stands alone: it knows the lines, and nothing that made them.

    python check.py [FILE ...]      or from standard input

Once a shrink of a tenant has returned as `done`, for each jurisdiction that it removed (or for the key that it revoked):

    I1  no call whose headers arrive later is admitted there or forwarded there
    I2  nothing that was admitted before runs there: no engine step, no slot, no place in a queue, no stream
    I3  what was sent there before and arrives later is refused

until a later revision of the tenant permits it again. A key that was revoked stays so. A shrink that a later revision
had overtaken when it was judged must not return as `done` (S). docs/pins.md, "The promise".

Revisions are the tenant's own, whatever its home is. When a home has said that a tenant left it (M):

    - only its new home changes it
    - once who moved it was told that the move is over, nobody acts on the record of a home that it has left
    - whoever has acted on the new home's record never again acts on an older home's
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESUMED_S = 0.55
"""What was stopped goes on where it stood: a step that had begun ends, at most 0.4 s, and the program notices that its
time is over. While it was stopped nothing ran, and no step may begin."""
_ALL = "*"
Line = dict[str, Any]


@dataclass
class Verdict:
    """What was found.

    Attributes:
        violations: One sentence each, with its line's number.
        counts: What was looked at, so that an empty history is not taken for a proof.
    """

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class _Promise:
    revision: tuple[int, int]
    since: float


@dataclass
class _Hold:
    line: Line
    number: int
    due: float | None = None


class _Reader:
    def __init__(self) -> None:
        self.verdict = Verdict()
        self.number = 0
        self.now = 0.0
        self.commits: dict[str, list[Line]] = {}
        self.promises: dict[tuple[str, str], _Promise] = {}
        self.keys: dict[tuple[str, str], _Promise] = {}
        self.homes: dict[str, str] = {}
        self.moves: dict[str, int] = {}
        self.settled: dict[str, int] = {}
        self.known: dict[tuple[str, str], int] = {}
        self.holds: dict[tuple[str, str], _Hold] = {}
        self.steps: list[tuple[float, Line]] = []
        self.paused: set[str] = set()
        self.resumed: dict[str, float] = {}

    def read(self, line: Line) -> None:
        """One more line."""
        self.number += 1
        if line["t"] < self.now:
            self.say("time goes back")
        self.now = line["t"]
        self.overdue(self.now)
        act = getattr(self, f"on_{line['do']}", None)
        if act is not None:
            self.verdict.counts[line["do"]] += 1
            act(line)

    def say(self, text: str) -> None:
        self.verdict.violations.append(f"line {self.number}, {self.now:.6f}: {text}")

    # --- shrinks

    def on_commit(self, line: Line) -> None:
        tenant, revision = line["tenant"], _revision(line)
        commits = self.commits.setdefault(tenant, [])
        home = line.get("home")
        if home and self.homes.get(tenant, home) != home:
            self.say(f"M: {home} put revision {revision[1]} of {tenant}, which is at {self.homes[tenant]}")
            return
        if any(_revision(one) == revision for one in commits):
            self.say(f"revision {revision[1]} of {tenant} was committed twice")
        commits.append(line)
        for (whose, place), promise in list(self.promises.items()):
            permitted = place in line["permits"] or (place == _ALL and line["permits"])
            if whose == tenant and permitted and revision > promise.revision:
                del self.promises[whose, place]

    def on_returned(self, line: Line) -> None:
        tenant, revision = line["tenant"], _revision(line)
        if line["outcome"] != "done":
            return
        commits = self.commits.get(tenant, [])
        if not any(_revision(one) == revision for one in commits):
            self.say(f"revision {revision[1]} of {tenant} returned and was never committed")
        for place in line["removed"]:
            again = [one for one in commits if _revision(one) > revision and _permits(one, place)]
            if any(one["t"] <= line["judged"] for one in again):
                self.say(f"S: revision {revision[1]} returned as done, and a later one had permitted {place} again")
            if not again:
                self.promise(self.promises, (tenant, place), revision)
        if line["revoked"]:
            self.promise(self.keys, (tenant, line["revoked"]), revision)
        self.look_at_what_runs()

    def promise(
        self, promises: dict[tuple[str, str], _Promise], about: tuple[str, str], revision: tuple[int, int]
    ) -> None:
        self.verdict.counts["promises"] += 1
        known = promises.get(about)
        if known is None or known.revision < revision:
            promises[about] = _Promise(revision, self.now)

    def broken(self, line: Line) -> _Promise | None:
        """The promise that forbids what a line tells of."""
        tenant = line["tenant"]
        key = line.get("key")
        return (
            self.promises.get((tenant, line["jurisdiction"]))
            or self.promises.get((tenant, _ALL))
            or (self.keys.get((tenant, key)) if key else None)
        )

    # --- moves

    def on_moved(self, line: Line) -> None:
        tenant = line["tenant"]
        if self.homes.get(tenant, line["home"]) != line["home"]:
            self.say(f"M: {line['home']} says that {tenant} left, and it is at {self.homes[tenant]}")
            return
        if line["moves"] != self.moves.get(tenant, 0) + 1:
            self.say(f"M: move {line['moves']} of {tenant} follows on move {self.moves.get(tenant, 0)}")
        self.homes[tenant], self.moves[tenant] = line["new_home"], line["moves"]

    def on_settled(self, line: Line) -> None:
        tenant = line["tenant"]
        if line["moves"] > self.moves.get(tenant, 0):
            self.say(f"M: move {line['moves']} of {tenant} is over, and its home never said that it left")
        self.settled[tenant] = max(line["moves"], self.settled.get(tenant, 0))

    def by_record(self, line: Line) -> None:
        """Whether what a line tells of was done by the record of a home that the tenant has left."""
        tenant, moves, who = line["tenant"], line.get("moves", 0), (line["host"], line["tenant"])
        if moves is None or tenant not in self.homes:
            return
        self.verdict.counts["after a move"] += 1
        if moves < max(self.settled.get(tenant, 0), self.known.get(who, 0)):
            self.say(f"M: {line['request']} is served by the record of a home that {tenant} has left")
        self.known[who] = max(moves, self.known.get(who, 0))

    # --- calls

    def on_admit(self, line: Line) -> None:
        self.by_record(line)
        promise = self.broken(line)
        if promise is not None:
            rule = "I1" if line["arrived"] > promise.since else "I2"
            self.say(
                f"{rule}: {line['request']} came at {line['arrived']} and was admitted in {line['jurisdiction']},"
                f" out since {promise.since}"
            )

    def on_forward(self, line: Line) -> None:
        self.by_record(line)
        promise = self.broken(line)
        if promise is not None:
            self.say(f"I1: {line['request']} was forwarded to {line['jurisdiction']}, out since {promise.since}")

    def on_receive(self, line: Line) -> None:
        promise = self.broken(line)
        if promise is not None:
            if line["accepted"]:
                self.say(f"I3: {line['request']} was taken in {line['jurisdiction']}, out since {promise.since}")
            else:
                self.verdict.counts["refused late"] += 1

    def on_refuse(self, line: Line) -> None:
        if self.broken(line) is not None:
            self.verdict.counts["refused after"] += 1

    # --- work

    def on_step(self, line: Line) -> None:
        promise = self.broken(line)
        if promise is not None:
            self.say(f"I2: a step of {line['request']} began in {line['jurisdiction']}, out since {promise.since}")
        self.steps = [step for step in self.steps if step[0] > self.now]
        self.steps.append((line["t"] + line["takes"], line))

    def on_hold(self, line: Line) -> None:
        promise = self.broken(line)
        if promise is not None:
            self.say(f"I2: a {line['what']} was taken in {line['jurisdiction']}, out since {promise.since}")
        self.holds[line["host"], line["hold"]] = _Hold(line, self.number)

    def on_free(self, line: Line) -> None:
        self.holds.pop((line["host"], line["hold"]), None)

    def on_died(self, line: Line) -> None:
        self.holds = {at: hold for at, hold in self.holds.items() if at[0] != line["host"]}
        self.steps = [step for step in self.steps if step[1]["host"] != line["host"]]
        self.paused.discard(line["host"])
        self.known = {who: moves for who, moves in self.known.items() if who[0] != line["host"]}

    def on_paused(self, line: Line) -> None:
        self.paused.add(line["host"])

    def on_resumed(self, line: Line) -> None:
        self.paused.discard(line["host"])
        self.resumed[line["host"]] = self.now
        for (host, _), hold in self.holds.items():
            if host == line["host"] and hold.due is not None:
                hold.due = self.now + RESUMED_S

    def look_at_what_runs(self) -> None:
        """A promise has begun: what is there must have ended."""
        for ends, step in self.steps:
            if ends > self.now and self.broken(step) is not None:
                self.say(f"I2: a step of {step['request']} runs in {step['jurisdiction']} until {ends:.6f}")
        self.steps = [step for step in self.steps if self.broken(step[1]) is None]
        for (host, _), hold in self.holds.items():
            if hold.due is None and self.broken(hold.line) is not None:
                resumed = self.resumed.get(host)
                hold.due = self.now if resumed is None else max(self.now, resumed + RESUMED_S)

    def overdue(self, now: float) -> None:
        for at, hold in list(self.holds.items()):
            if hold.due is not None and now > hold.due and at[0] not in self.paused:
                self.say(
                    f"I2: a {hold.line['what']} of line {hold.number} is still held in {hold.line['jurisdiction']}"
                )
                del self.holds[at]


def check(lines: Iterable[str]) -> Verdict:
    """Reads one history."""
    reader = _Reader()
    for line in lines:
        reader.read(json.loads(line))
    reader.overdue(float("inf"))
    return reader.verdict


def _revision(line: Line) -> tuple[int, int]:
    return line.get("epoch", 0), line["revision"]


def _permits(commit: Line, place: str) -> bool:
    return bool(commit["permits"]) if place == _ALL else place in commit["permits"]


def main(files: list[str]) -> int:
    """Prints what was found; 1 if anything was."""
    counts: Counter[str] = Counter()
    found = 0
    for name in files or ["-"]:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        verdict = check(text.splitlines())
        counts.update(verdict.counts)
        found += len(verdict.violations)
        for violation in verdict.violations:
            print(f"{name}: {violation}")
    print(f"{found} violations; looked at {dict(sorted(counts.items()))}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
