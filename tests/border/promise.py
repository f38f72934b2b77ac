"""Reads a history of calls, removals and places, and says where the promise was broken. Stands alone: it imports nothing.

    python promise.py [FILE ...]      or from standard input

Each line is a JSON object; all times are seconds of one clock. Lines may come in any order.

    {"do": "tenant", "tenant", "runs_in": [JURISDICTION]}          where it may run at all: a place without any is still
    {"do": "pin", "tenant", "removed": [...], "invoked", "returned": T | null, "outcome": "done" | CODE}
    {"do": "widen", "tenant", "given": [...], "invoked"}           from then on it may run there again
    {"do": "call", "tenant", "place", "served_in": J | null, "door", "sent", "tokens": [T], "end", "code"}
                                                                   a client's; by the door "peer" another place's
    {"do": "record", "tenant", "place", "door", "began", "ended", "tokens": N, "code"}                 a gateway's
    {"do": "busy", "place", "from", "to", "share"}                 of a core, by the processes that run models there
    {"do": "runs", "place", "at", "sequences": N}                  what a place says that it runs and has queued
    {"do": "stopped", "place", "from", "to"}                       its gateway stood still: it notes later what ended before

From the return of a removal that is done, until somebody asks for the place to be allowed again:

    I1  a call whose headers are sent later is refused there, and is not served from there wherever it was sent
    I2  nothing that was admitted before runs there: no token comes to a client, no record of a gateway ends, nothing is
        busy
    I3  what another place sent on there, and is taken up there later, is refused
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REFUSED = frozenset(
    {
        "residency_refused",
        "policy_stale",
        "invalid_api_key",
        "tenant_suspended",
        "region_unreachable",
        "unreachable",
        "late",
        "broken",
        "cancelled",
        "deadline_exceeded",
        "request_timeout",
    }
)
"""How a call ends that was not admitted, or of which nothing is known; each other code is one of a call that was."""
LEG_S = 1.0
"""For what left a place before the return: the client's own leg, and how late a busy client reads it."""
SETTLE_S = 0.75
"""What stands for itself after the return: a status that was true a moment ago, a sample of the processor's time."""
BUSY = 0.3
"""The share of a core above which a model runs; without work its process takes some hundredths."""
_MS = 0.002
"""Records are in whole milliseconds."""
Line = Mapping[str, Any]


@dataclass
class Verdict:
    """What was found.

    Attributes:
        violations: One sentence each.
        counts: What was looked at while a promise held, so that an empty history is not taken for a proof.
    """

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Span:
    """For how long a promise holds."""

    since: float
    until: float

    def holds(self, at: float) -> bool:
        return self.since < at < self.until


def judge(history: Iterable[Line]) -> Verdict:
    """What a whole history shows."""
    lines: dict[str, list[Line]] = {}
    for line in history:
        lines.setdefault(line["do"], []).append(line)
    verdict, spans = Verdict(), promises(lines)
    verdict.counts["promises"] = sum(map(len, spans.values()))
    for line in lines.get("call", ()):
        _call(line, spans, verdict)
    stopped = lines.get("stopped", ())
    for line in lines.get("record", ()):
        _record(line, spans, stopped, verdict)
    still = {place: _still(place, lines.get("tenant", ()), spans) for place in {place for _, place in spans}}
    for line in lines.get("busy", ()):
        if any(one.holds(line["from"] - SETTLE_S) and one.holds(line["to"]) for one in still.get(line["place"], ())):
            verdict.counts["looks at a processor"] += 1
            if line["share"] > BUSY:
                verdict.violations.append(f"I2: {line['place']} is busy at {line['from']:.3f}: {line['share']:.2f}")
    for line in lines.get("runs", ()):
        if any(one.holds(line["at"]) and one.holds(line["at"] - 2 * SETTLE_S) for one in still.get(line["place"], ())):
            verdict.counts["looks at a status"] += 1
            if line["sequences"]:
                verdict.violations.append(f"I2: {line['place']} runs {line['sequences']} at {line['at']:.3f}")
    return verdict


def promises(lines: Mapping[str, Sequence[Line]]) -> dict[tuple[str, str], list[Span]]:
    """For each tenant and place, when it is promised that nothing runs there."""
    spans: dict[tuple[str, str], list[Span]] = {}
    for pin in lines.get("pin", ()):
        if pin["outcome"] != "done":
            continue
        for place in pin["removed"]:
            again = [
                line["invoked"]
                for line in lines.get("widen", ())
                if line["tenant"] == pin["tenant"] and place in line["given"] and line["invoked"] > pin["invoked"]
            ]
            span = Span(pin["returned"], min(again, default=float("inf")))
            if span.since < span.until:
                spans.setdefault((pin["tenant"], place), []).append(span)
    return spans


def _still(place: str, tenants: Sequence[Line], spans: Mapping[tuple[str, str], Sequence[Span]]) -> list[Span]:
    """When nobody may run in a place."""
    there = [line["tenant"] for line in tenants if place in line["runs_in"]]
    if not there:
        return []
    still = list(spans.get((there[0], place), ()))
    for tenant in there[1:]:
        both = [
            Span(max(a.since, b.since), min(a.until, b.until)) for a in still for b in spans.get((tenant, place), ())
        ]
        still = [one for one in both if one.since < one.until]
    return still


def _call(line: Line, spans: Mapping[tuple[str, str], Sequence[Span]], verdict: Verdict) -> None:
    direct, served = line["place"], line["served_in"]
    for place in {direct, served} - {None}:
        for span in spans.get((line["tenant"], place), ()):
            is_parcel = line["door"] == "peer"
            late = [at for at in line["tokens"] if span.holds(at - LEG_S) and span.holds(at)]
            # A parcel's answer crosses a border, which may have been cut when it left: its place's record tells when
            # that was.
            if late and line["sent"] <= span.since and not is_parcel:
                verdict.violations.append(
                    f"I2: {place} sends or passes on {len(late)} tokens to {line['tenant']}, the last {late[-1] - span.since:.3f} s after "
                    f"the return; the call was sent {line['sent'] - span.since:+.3f} s from it"
                )
            if not span.holds(line["sent"]):
                continue
            judged_s = line["tokens"][0] if line["tokens"] else line["end"]
            if not span.holds(judged_s):
                verdict.counts["calls that cannot be judged"] += 1
                continue
            verdict.counts["parcels sent after a return" if is_parcel else "calls sent after a return"] += 1
            admitted = bool(line["tokens"]) if served == place else line["code"] not in REFUSED
            if admitted:
                verdict.violations.append(
                    f"{'I3' if is_parcel else 'I1'}: {place} takes up a call of {line['tenant']} that was sent to {direct} "
                    f"{line['sent'] - span.since:.3f} s after the return: {line['code']}"
                )


def _record(
    line: Line, spans: Mapping[tuple[str, str], Sequence[Span]], stopped: Sequence[Line], verdict: Verdict
) -> None:
    place = line["place"]
    admitted = line["code"] not in REFUSED or line["tokens"] > 0
    if line["code"] in REFUSED and line["tokens"] and (line["tenant"], place) in spans:
        verdict.counts["calls that ran and were cut"] += 1
    for span in spans.get((line["tenant"], place), ()):
        if span.holds(line["began"] - _MS):
            if not span.holds(line["ended"]) and not admitted:
                continue
            verdict.counts[f"{line['door']} records that began after a return"] += 1
            # What began just before it was allowed again may have been admitted after that.
            if admitted and span.holds(line["ended"]):
                rule = "I3" if line["door"] == "peer" else "I1"
                verdict.violations.append(
                    f"{rule}: a gateway of {place} took up a call of {line['tenant']} {line['began'] - span.since:.3f} s "
                    f"after the return: {line['code']}"
                )
        elif admitted and line["began"] <= span.since < line["ended"] and span.holds(line["ended"] - LEG_S):
            stood = [one for one in stopped if one["place"] == place and one["from"] <= span.since <= one["to"] + LEG_S]
            if any(line["ended"] <= one["to"] + 2 * LEG_S for one in stood):
                verdict.counts["records that a stopped gateway made later"] += 1
                continue
            verdict.violations.append(
                f"I2: a call of {line['tenant']} ran in {place} until {line['ended'] - span.since:.3f} s after the return"
            )


def main(files: Sequence[str]) -> int:
    """The command."""
    texts = [Path(file).read_text("utf-8") for file in files] or [sys.stdin.read()]
    verdict = judge(json.loads(line) for text in texts for line in text.splitlines() if line.strip())
    for violation in verdict.violations:
        print(violation)
    print(", ".join(f"{number} {what}" for what, number in sorted(verdict.counts.items())))
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
