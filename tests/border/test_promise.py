"""The checker of histories proves itself: each planted leak is found, and what is no leak is not. Needs no lab."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from border import promise
from border.promise import BUSY, LEG_S, SETTLE_S, judge

Line = dict[str, Any]
RETURNED = 100.0
WIDENED = 110.0


def call(sent: float, code: str, *tokens: float, place: str = "SG", served_in: str | None = None, **more: Any) -> Line:
    row = {"do": "call", "tenant": "t", "place": place, "served_in": served_in, "sent": sent, "tokens": list(tokens)}
    row |= {"door": "http"}
    return row | {"end": max([sent, *tokens]) + 0.01, "code": code} | more


def record(began: float, ended: float, code: str, tokens: int = 0, door: str = "http", **more: Any) -> Line:
    row = {"do": "record", "tenant": "t", "place": "SG", "door": door, "began": began, "ended": ended}
    return row | {"code": code, "tokens": tokens} | more


GOOD: list[Line] = [
    {"do": "tenant", "tenant": "t", "runs_in": ["SG"]},
    {"do": "pin", "tenant": "t", "removed": ["SG"], "invoked": 99.0, "returned": RETURNED, "outcome": "done"},
    {"do": "widen", "tenant": "t", "given": ["SG"], "invoked": WIDENED},
    call(90, "ok", 91, 92, served_in="SG"),
    call(98, "residency_refused", 98.5, 99.2, served_in="SG"),
    call(99.9, "residency_refused", 99.95, RETURNED + LEG_S / 2, served_in="SG"),
    call(101, "residency_refused"),
    call(101, "policy_stale"),
    call(101, "unreachable"),
    call(101, "residency_refused", door="peer"),
    call(101, "model_not_found", place="VN"),
    call(101, "ok", 102, place="VN", served_in="VN"),
    call(109, "no_capacity", end=WIDENED + 1),  # it may have been admitted after that
    call(111, "ok", 112, served_in="SG"),
    call(98, "ok", 105, served_in="SG", door="peer"),  # its line was cut when it was answered
    record(98, 99.5, "ok", 8, door="peer"),
    call(101, "ok", 102, served_in="SG", tenant="another"),
    record(90, 92, "ok", 8),
    record(98, 99.5, "residency_refused", 3),
    record(101, 101.1, "residency_refused"),
    record(101, 101.1, "residency_refused", door="peer"),
    record(109, 112, "ok", 8),
    record(111, 112, "ok", 8),
    {"do": "busy", "place": "SG", "from": 98.0, "to": 98.3, "share": 0.9},
    {"do": "busy", "place": "SG", "from": 99.9, "to": 100.2, "share": 0.9},
    {"do": "busy", "place": "SG", "from": 101.0, "to": 101.3, "share": BUSY / 2},
    {"do": "busy", "place": "JP", "from": 101.0, "to": 101.3, "share": 0.9},
    {"do": "runs", "place": "SG", "at": 99.0, "sequences": 3},
    {"do": "runs", "place": "SG", "at": 105.0, "sequences": 0},
]

LEAKS: dict[str, tuple[str, Line]] = {
    "served directly": ("I1", call(101, "ok", 102, served_in="SG")),
    "admitted, though not served": ("I1", call(101, "no_capacity")),
    "admitted, though the model is not there": ("I1", call(101, "model_not_found")),
    "sent on and served there": ("I1", call(101, "ok", 102, place="VN", served_in="SG")),
    "taken in there, served elsewhere": ("I1", call(101, "ok", 102, served_in="VN")),
    "a single token to a later call": ("I1", call(101, "residency_refused", 101.2, served_in="SG")),
    "a stream that goes on": ("I2", call(99, "ok", 99.5, 101.5, 102, served_in="SG")),
    "a stream that goes on beyond the next change": ("I2", call(99, "ok", 99.5, 105, 115, served_in="SG")),
    "a stream from there to another door": ("I2", call(99, "ok", 99.5, 101.5, place="VN", served_in="SG")),
    "a stream that is passed on there": ("I2", call(99, "ok", 99.5, 101.5, served_in="VN")),
    "recorded as admitted": ("I1", record(101, 102, "ok", 8)),
    "recorded as failed after it was admitted": ("I1", record(101, 102, "replica_failed")),
    "recorded with tokens": ("I1", record(101, 102, "residency_refused", 3)),
    "a parcel that is taken up": ("I3", call(101, "ok", 102, served_in="SG", door="peer")),
    "a parcel that is admitted": ("I3", call(101, "no_capacity", door="peer")),
    "sent before and taken up later": ("I3", record(101, 102, "ok", 8, door="peer")),
    "recorded until after the return": ("I2", record(99, 102, "ok", 8)),
    "a parcel that runs on": ("I2", record(99, 102, "ok", 8, door="peer")),
    "a model computes": ("I2", {"do": "busy", "place": "SG", "from": 102.0, "to": 102.3, "share": BUSY * 2}),
    "a place says that it runs": ("I2", {"do": "runs", "place": "SG", "at": 102.0, "sequences": 1}),
}


def test_a_good_history_has_no_violation_and_was_looked_at() -> None:
    verdict = judge(GOOD)
    assert verdict.violations == []
    assert verdict.counts["promises"] == 1
    assert verdict.counts["calls sent after a return"] == 3
    assert verdict.counts["parcels sent after a return"] == 1
    assert verdict.counts["http records that began after a return"] == 2
    assert verdict.counts["peer records that began after a return"] == 1
    assert verdict.counts["looks at a processor"] == 1
    assert verdict.counts["looks at a status"] == 1


@pytest.mark.parametrize("leak", LEAKS)
def test_each_planted_leak_is_found(leak: str) -> None:
    rule, line = LEAKS[leak]
    (violation,) = judge([*GOOD, line]).violations
    assert violation.startswith(rule)
    assert judge([line, *reversed(GOOD)]).violations == [violation]  # lines may come in any order


@pytest.mark.parametrize("leak", LEAKS)
def test_nothing_is_promised_before_the_return_nor_after_the_next_change(leak: str) -> None:
    line = LEAKS[leak][1]
    for outcome in ({"outcome": "asked", "returned": None}, {"returned": 200.0}):
        without = [one | outcome if one["do"] == "pin" else one for one in GOOD if one["do"] != "widen"]
        assert judge([*without, line]).violations == []
    at_once = [one | {"invoked": 100.01} if one["do"] == "widen" else one for one in GOOD]
    assert judge([*at_once, line]).violations == []


def test_a_place_is_still_only_when_all_are_out() -> None:
    line = LEAKS["a model computes"][1]
    another: Line = {"do": "tenant", "tenant": "another", "runs_in": ["SG"]}
    assert judge([*GOOD, another, line]).violations == []
    out: Line = {"do": "pin", "tenant": "another", "removed": ["SG"], "invoked": 99, "returned": 100, "outcome": "done"}
    good = [one for one in GOOD if one.get("tenant") != "another"]
    assert len(judge([*good, another, out, line]).violations) == 1
    late = out | {"returned": line["from"] - SETTLE_S / 2}
    assert judge([*good, another, late, line]).violations == []


def test_a_gateway_that_stood_still_may_note_later_what_ended_before() -> None:
    line = record(99, 106, "residency_refused", 3)
    assert len(judge([*GOOD, line]).violations) == 1
    stood: Line = {"do": "stopped", "place": "SG", "from": 98.5, "to": 105.8}
    assert judge([*GOOD, stood, line]).violations == []
    # Its own word excuses no token that a client saw, nor what it did long after it went on.
    assert len(judge([*GOOD, stood, call(99, "ok", 106, served_in="SG")]).violations) == 1
    assert len(judge([*GOOD, stood, record(99, 108, "ok", 3)]).violations) == 1
    assert len(judge([*GOOD, stood | {"place": "JP"}, line]).violations) == 1


def test_it_stands_alone(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    for lines, status in ((GOOD, 0), ([*GOOD, LEAKS["served directly"][1]], 1)):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [sys.executable, "-I", "-S", str(promise.__file__), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert ("I1: SG takes up a call" in done.stdout) is bool(status)
