"""One fault, the removals that raced with it, and what is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from border.calls import now_s
from border.races import PLACES, WATCH_S, Line, Pin, Racer, Races
from proof_report import Report

UNSERVED = ("policy_stale", "no_capacity", "replica_failed", "unreachable", "region_unreachable")
"""How a call ends that the mesh could not serve though the pin permits it: 503, 502, or no answer at all."""
STATUS_503 = ("policy_stale", "no_capacity")


@dataclass
class Episode:
    """A fault from its beginning until all is well again.

    Attributes:
        began: When it was injected.
        healed: When what was broken had been put right, or started again.
        asked: Its removals.
    """

    name: str
    races: Races
    began: float
    healed: float | None = None
    faults: int = 1
    asked: list[Future[Pin]] = field(default_factory=list)

    def pin(self, *racers: Racer, after_s: float = 0.0, apart_s: float = 0.0) -> list[Future[Pin]]:
        """Takes these out of their places, one after the other."""
        asked = [self.races.pin(racer, after_s=after_s + n * apart_s) for n, racer in enumerate(racers)]
        self.asked += asked
        return asked

    def is_healed(self) -> None:
        """What was broken has been put right."""
        self.healed = now_s()

    def returned(self, asked: Iterable[Future[Pin]], *, watch_s: float = WATCH_S) -> list[Pin]:
        """Waits for removals, and lets the load try to get in afterwards."""
        pins = [one.result() for one in asked]
        for pin in pins:
            assert pin.outcome == "done", (self.name, pin.attempts)
        self.races.watch({pin.racer.removed for pin in pins}, watch_s)
        return pins

    def pins(self) -> list[Pin]:
        """All removals of this episode."""
        return [one.result() for one in self.asked]


@contextmanager
def episode(races: Races, report: Report, name: str) -> Generator[Episode]:
    """One fault: begins when all is well, ends when all is well again, and asks the checker.

    Raises:
        AssertionError: The promise was broken, or a removal never returned.
    """
    races.make_well()
    one = Episode(name, races, began=now_s())
    yield one
    if one.healed is None:
        one.is_healed()
    pins = one.pins()
    for pin in pins:
        assert pin.outcome == "done", (name, pin.attempts)
    races.make_well()
    verdict = races.verdict()
    _note(one, report, pins, verdict.violations)
    assert verdict.violations == [], name
    # A history in which nothing was tried after a return would show nothing.
    assert verdict.counts["calls sent after a return"] > 0


def _note(one: Episode, report: Report, pins: Sequence[Pin], violations: Sequence[str]) -> None:
    calls = [row for row in one.races.calls() if row["end"] >= one.began and row["door"] != "peer"]
    stayer = [row for row in calls if row["tenant"] == one.races.stayer.id]
    codes = Counter(row["code"] for row in calls if row["code"] in UNSERVED)
    row = report.path(f"removals: {one.name}")
    row.episodes += len(pins)
    row.pins += len(pins)
    row.requests += len(calls)
    row.faults[one.name] = row.faults.get(one.name, 0) + one.faults
    row.leaks += len(violations)
    row.unserved += sum(codes[code] for code in STATUS_503)
    outages = {place: out for place in PLACES if (out := outage(stayer, place, one)) is not None}
    row.recovery_s += [round(recovery_s, 2) for _, recovery_s in outages.values()]
    shown = ", ".join(f"{place} {away_s:.1f} s, {back_s:.1f} s after" for place, (away_s, back_s) in outages.items())
    facts = report.facts.setdefault("faults: service of a tenant that stays", [])
    facts.append(
        {
            "fault": one.name,
            "lasted, s": round((one.healed or one.began) - one.began, 1),
            "calls": len(stayer),
            "not served": sum(row["code"] != "ok" for row in stayer),
            "out of service for, and back after the repair": shown or "never out",
            "all calls not served, by code": ", ".join(f"{code} {n}" for code, n in sorted(codes.items())) or "none",
        }
    )
    removals = report.facts.setdefault("faults: removals", [])
    removals += [told(one.name, pin) for pin in pins]


def told(name: str, pin: Pin) -> dict[str, Any]:
    """One removal, as a row."""
    assert pin.returned is not None
    return {
        "fault": name,
        "home": pin.racer.home,
        "removed": pin.racer.removed,
        "returned after, s": round(pin.returned - pin.invoked, 2),
        "waited, ms": pin.waited_ms,
        "accounted for": pin.accounted(),
        "asked": len(pin.attempts),
        "answers before": ", ".join(sorted({one[:60] for one in pin.attempts[:-1]})) or "-",
    }


def outage(rows: Sequence[Line], place: str, one: Episode) -> tuple[float, float] | None:
    """For how long a place did not serve, from the first call that failed on, and how long after the repair it did.

    None where each call was served; a place that served again before the repair counts as 0.
    """
    there = sorted((row for row in rows if row["place"] == place), key=lambda row: row["end"])
    failed = [row for row in there if row["code"] != "ok"]
    if not failed:
        return None
    back = next((row["end"] for row in there if row["code"] == "ok" and row["sent"] >= failed[-1]["sent"]), None)
    assert back is not None
    assert one.healed is not None
    return back - failed[0]["sent"], max(0.0, back - one.healed)
