"""The checker finds what it is for, in histories written by hand, and nothing in good ones. It knows nothing of ours."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sim import check as module
from sim.check import check
from sim.history import History

Line = tuple[float, str, Mapping[str, object]]


def commit(t: float, revision: int, *permits: str, revoked: str | None = None, epoch: int = 0, home: str = "") -> Line:
    fields = {"tenant": "T", "revision": revision, "permits": permits, "revoked": revoked, "epoch": epoch, "home": home}
    return t, "commit", fields


def move(t: float, moves: int, home: str, to: str) -> Line:
    return t, "moved", {"tenant": "T", "moves": moves, "home": home, "new_home": to, "revision": 5}


def done(
    t: float, revision: int, *removed: str, judged: float = 0, outcome: str = "done", key: str | None = None, epoch: int = 0
) -> Line:  # fmt: skip
    fields = {"tenant": "T", "revision": revision, "removed": removed, "judged": judged or t, "revoked": key}
    return t, "returned", fields | {"outcome": outcome, "epoch": epoch}


def of(do: str, t: float, place: str = "SG", **more: object) -> Line:
    return t, do, {"tenant": "T", "jurisdiction": place, "request": "r", "key": "k", "host": "a"} | more


def admit(
    t: float, arrived: float, place: str = "SG", tenant: str = "T", key: str = "k", moves: int | None = 0
) -> Line:
    return of("admit", t, place, arrived=arrived, tenant=tenant, key=key, moves=moves)


def hold(t: float, what: str = "slot") -> Line:
    return of("hold", t, hold="h", what=what)


def at(t: float, do: str, **more: object) -> Line:
    return t, do, more


PIN = [commit(1, 5, "VN", "SG"), commit(10, 6, "VN")]
RETURNED = [*PIN, done(16, 6, "SG")]
MOVED = [commit(1, 5, "VN", "SG", home="A"), move(3, 1, "A", "B"), commit(3, 6, "VN", "SG", home="B")]

GOOD: dict[str, list[Line]] = {
    "nothing": [],
    "before it returns": [*PIN, admit(12, 12), of("step", 15, takes=0.9), done(16, 6, "SG")],
    "elsewhere": [*RETURNED, admit(17, 17, "VN"), of("forward", 17, "VN")],
    "another tenant": [*RETURNED, admit(17, 17, tenant="U"), of("step", 17, tenant="U", takes=1)],
    "refused late": [*RETURNED, of("receive", 17, accepted=False), of("refuse", 18, code="residency_refused")],
    "freed in time": [*PIN, hold(11), at(15, "free", host="a", hold="h"), done(16, 6, "SG")],
    "freed at that moment": [*PIN, hold(11), done(16, 6, "SG"), at(16, "free", host="a", hold="h")],
    "killed": [*PIN, hold(11), of("step", 15.9, takes=9), at(15.95, "died", host="a"), done(16, 6, "SG")],
    "stopped, and freed as it goes on": [
        *PIN, hold(11), at(12, "paused", host="a"), done(16, 6, "SG"), admit(20, 20, "VN"),
        at(30, "resumed", host="a"), at(30.05, "free", host="a", hold="h"), admit(40, 40, "VN"),
    ],
    "stopped in a step, and goes on just before": [
        *PIN, hold(11), at(12, "paused", host="a"), at(15.9, "resumed", host="a"), done(16, 6, "SG"),
        at(16.3, "free", host="a", hold="h"), admit(40, 40, "VN"),
    ],
    "stopped, and killed": [
        *PIN, hold(11), at(12, "paused", host="a"), done(16, 6, "SG"), at(30, "died", host="a"), admit(40, 40, "VN"),
    ],
    "permitted again": [*RETURNED, commit(20, 7, "VN", "SG"), admit(21, 21), hold(21), of("step", 22, takes=5)],
    "permitted again before it returned, after it was judged": [
        *PIN, commit(15.9, 7, "VN", "SG"), done(16, 6, "SG", judged=15.8), admit(17, 17),
    ],
    "superseded": [*PIN, commit(12, 7, "VN", "SG"), done(16, 6, "SG", outcome="superseded"), admit(17, 17)],
    "a later epoch permits again": [*RETURNED, commit(20, 3, "VN", "SG", epoch=1), admit(21, 21)],
    "suspended and resumed": [*PIN, commit(11, 7), done(17, 7, "*"), commit(18, 8, "VN"), admit(19, 19, "VN")],
    "another key": [commit(1, 2, "SG", revoked="k"), done(3, 2, key="k"), admit(4, 4, key="other")],
    "moved, and served by the new home": [*MOVED, at(4, "settled", tenant="T", moves=1), admit(5, 5, moves=1)],
    "moved, and not all have heard": [*MOVED, admit(4, 4), admit(5, 5, moves=1)],
    "moved, and another life has not heard": [*MOVED, admit(4, 4, moves=1), at(5, "died", host="a"), admit(6, 6)],
    "moved, and changed by the new home": [*MOVED, commit(4, 7, "VN", home="B")],
    "moved, and back": [
        *MOVED, move(5, 2, "B", "A"), commit(6, 9, "VN", home="A"), at(7, "settled", tenant="T", moves=2),
        admit(8, 8, moves=2),
    ],
    "moved, and no record any more": [*MOVED, at(4, "settled", tenant="T", moves=1), admit(5, 5, moves=None)],
    "an older one returns late": [
        *PIN, done(16, 6, "SG"), commit(20, 7, "VN", "SG"), commit(21, 8, "VN"), done(22, 6, "SG", judged=16),
    ],
}  # fmt: skip

BAD: dict[str, tuple[str, list[Line]]] = {
    "admitted": ("I1", [*RETURNED, admit(17, 17)]),
    "admitted by a gateway that slept on it": ("I2", [*RETURNED, admit(17, 15)]),
    "forwarded": ("I1", [*RETURNED, of("forward", 17)]),
    "taken": ("I3", [*RETURNED, of("receive", 17, accepted=True)]),
    "a step later": ("I2", [*RETURNED, of("step", 17, takes=0.1)]),
    "a step still": ("I2", [*PIN, of("step", 15.9, takes=0.2), done(16, 6, "SG")]),
    "a step of a stopped program still": (
        "I2",
        [*PIN, of("step", 15.9, takes=0.2), at(15.95, "paused", host="a"), done(16, 6, "SG")],
    ),
    "a slot still": ("I2", [*PIN, hold(11), done(16, 6, "SG"), admit(16.001, 16, "VN")]),
    "a slot still, at the end": ("I2", [*PIN, hold(11), done(16, 6, "SG")]),
    "a queue later": ("I2", [*RETURNED, hold(17, what="queue"), at(17, "free", host="a", hold="h")]),
    "a slot after a stop": (
        "I2",
        [*PIN, hold(11), at(12, "paused", host="a"), done(16, 6, "SG"), at(30, "resumed", host="a"), admit(31, 1, "VN")],
    ),
    "another host was killed": ("I2", [*PIN, hold(11), at(15, "died", host="b"), done(16, 6, "SG")]),
    "an older revision does not permit again": ("I1", [*RETURNED, commit(17, 4, "VN", "SG"), admit(18, 18)]),
    "an older epoch does not": (
        "I1",
        [commit(1, 1, "VN", epoch=2), done(2, 1, "SG", epoch=2), commit(3, 9, "VN", "SG", epoch=1), admit(4, 4)],
    ),
    "permitted again and out again": (
        "I1",
        [*RETURNED, commit(20, 7, "VN", "SG"), commit(21, 8, "VN"), done(28, 8, "SG"), admit(29, 29)],
    ),
    "should have been superseded": (
        "S",
        [*PIN, commit(11, 7, "VN", "SG"), commit(12, 8, "VN"), done(16, 6, "SG", judged=15), admit(17, 17)],
    ),
    "while suspended": ("I1", [*PIN, commit(11, 7), done(17, 7, "*"), admit(19, 19, "VN")]),
    "a key": ("I1", [commit(1, 2, "SG", revoked="k"), done(3, 2, key="k"), commit(4, 3, "SG"), admit(5, 5)]),
    "a key's work": ("I2", [hold(1), commit(1, 2, "SG", revoked="k"), done(3, 2, key="k")]),
    "served by the old home": ("M", [*MOVED, at(4, "settled", tenant="T", moves=1), admit(5, 5)]),
    "sent on by the old home": ("M", [*MOVED, at(4, "settled", tenant="T", moves=1), of("forward", 5)]),
    "back to the old home's": ("M", [*MOVED, admit(4, 4, moves=1), admit(5, 5)]),
    "changed by the old home": ("M", [*MOVED, commit(4, 7, "VN", home="A")]),
    "left twice": ("M", [*MOVED, move(4, 1, "A", "C")]),
    "a move left out": ("M", [*MOVED, move(4, 3, "B", "C")]),
    "over before it was": ("M", [at(4, "settled", tenant="T", moves=1)]),
    "given back by the new home": (
        "S",
        [*MOVED, commit(4, 7, home="B"), move(5, 2, "B", "C"), commit(6, 8, "VN", home="C"), done(9, 7, "*", judged=7)],
    ),
    "never committed": ("never committed", [done(16, 6, "SG")]),
    "committed twice": ("twice", [commit(1, 5, "VN"), commit(2, 5, "SG")]),
    "time": ("time goes back", [admit(5, 5), admit(4, 4)]),
}  # fmt: skip


def written(lines: list[Line]) -> list[str]:
    return [json.dumps({"t": t, "host": "world", "do": do, **fields}) for t, do, fields in lines]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_is_passed(name: str) -> None:
    assert check(written(GOOD[name])).violations == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_found_out(name: str) -> None:
    rule, lines = BAD[name]
    violations = check(written(lines)).violations
    assert len(violations) == 1
    assert rule in violations[0]


def test_what_was_looked_at_is_counted() -> None:
    counts = check(written([*RETURNED, admit(17, 17, "VN"), of("refuse", 18, code="x")])).counts
    assert (counts["promises"], counts["admit"], counts["refused after"], counts["returned"]) == (1, 1, 1, 1)


def test_what_a_history_writes_is_what_the_checker_reads() -> None:
    now = [0.0]
    history = History(lambda: now[0])
    common: dict[str, Any] = {"tenant": "T", "jurisdiction": "SG", "request": "r", "key": "k"}
    history.committed("admin", tenant="T", revision=1, permits=["VN"], key=None)
    history.held("a", "h", what="slot", tenant="T", jurisdiction="SG", key="k")
    history.returned("admin", tenant="T", revision=1, removed=["SG"], outcome="done", judged=0.0, acked=["x"])
    now[0] = 1.0
    history.admitted("a", **common, arrived=1.0)
    history.forwarded("a", **common)
    history.received("a", **common, accepted=True)
    history.stepped("a", **common, takes_s=0.5)
    history.refused("a", tenant="T", jurisdiction="SG", request="r", code="residency_refused")
    history.freed("a", "h")
    history.moved("admin", tenant="T", moves=1, home="A", new_home="B", revision=1)
    history.settled("admin", tenant="T", moves=1)
    common["jurisdiction"] = "VN"
    history.admitted("b", **common, arrived=1.0, moves=1)
    history.admitted("b", **common, arrived=1.0)
    found = check(history.lines)
    assert [violation.split(": ")[1] for violation in found.violations] == ["I2", "I1", "I1", "I3", "I2", "M"]
    assert found.counts["refused after"] == 1


def test_it_stands_alone(tmp_path: Path) -> None:
    source = Path(str(module.__file__))
    tree = ast.parse(source.read_text(encoding="utf-8"))
    names = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    names += [node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
    for lines, status in ((GOOD["superseded"], 0), (BAD["admitted"][1], 1)):
        (tmp_path / "history.jsonl").write_text("\n".join(written(lines)), encoding="utf-8")
        run = subprocess.run(
            [sys.executable, "-I", source, tmp_path / "history.jsonl"], capture_output=True, text=True, check=False
        )
        assert run.returncode == status
        assert f"{status} violations" in run.stdout
