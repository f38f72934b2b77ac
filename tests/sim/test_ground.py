"""Episodes replay: one seed, one history. And what simulated code must not do, since no run would show it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sim.aims import AIMS
from sim.faults import draw, phases
from sim.moments import NAMES
from sim.trial import PALETTE, Trial

ROOT = Path(__file__).parents[2]
SEEDS = range(1, 7)


def test_one_seed_one_history_forwards_and_backwards_and_between_others() -> None:
    forwards = {seed: Trial(seed).run() for seed in SEEDS}
    assert not [error for result in forwards.values() for error in result.errors]
    backwards = {seed: Trial(seed).run().history.digest() for seed in reversed(SEEDS)}
    assert backwards == {seed: result.history.digest() for seed, result in forwards.items()}
    assert len(set(backwards.values())) == len(SEEDS)


def test_one_seed_one_history_in_another_process() -> None:
    shown: list[str] = []
    for at in (1, 2):
        env = dict(os.environ, PYTHONHASHSEED=str(at * 7919), PADDING="x" * at * 977, PYTHONPATH=f"{ROOT / 'tests'}")
        seeds = ["3", "4", "5"] if at == 1 else ["4", "1", "3", "5"]
        run = subprocess.run(
            [sys.executable, "-m", "sim.trial", *seeds], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        shown.append("\n".join(line for line in sorted(run.stdout.splitlines()) if line[0] in "345"))
    assert shown[0] == shown[1]
    assert shown[0].splitlines()[0].split()[1] == Trial(3).run().history.digest()


def test_faults_of_all_kinds_happen_in_all_phases_they_can() -> None:
    met = {fault.kind for seed in range(100, 130) for fault in draw(seed, PALETTE)}
    assert {"cut", "one_way", "slow", "loss", "pause", "kill", "lag", "partition", "reorder", "election"} <= met
    lines: list[dict[str, object]] = [
        {"t": 1, "do": "fault", "kind": "cut"}, {"t": 2, "do": "commit"}, {"t": 3, "do": "fault", "kind": "cut"},
        {"t": 4, "do": "returned"}, {"t": 5, "do": "fault", "kind": "kill"},
    ]  # fmt: skip
    assert phases(lines) == {("cut", "before"), ("cut", "waiting"), ("kill", "after")}


@pytest.mark.parametrize("aim", AIMS)
def test_a_seed_can_be_aimed_at_a_rule(aim: str) -> None:
    """At moments that exist; and what is aimed happens, where the ground has the moment."""
    assert {recipe.moment for recipe in AIMS[aim]} | {recipe.since for recipe in AIMS[aim]} <= {None, *NAMES}
    result = Trial(1, aim).run()
    assert result.errors == ()
    assert Trial(1, aim).run().history.digest() == result.history.digest()


SIMULATED = ("control", "gateway", "admin", "policy", "routing")
REAL = {
    "control/etcd.py", "control/hashing.py", "control/roles.py", "control/signing.py",
    "gateway/program.py", "gateway/__main__.py", "admin/program.py", "admin/__main__.py", "admin/service.py",
}  # fmt: skip
"""What does not enter the simulation: it meets the world outside itself."""
BANNED_CALLS = {
    ("asyncio", "wait"), ("asyncio", "as_completed"), ("asyncio", "all_tasks"), ("asyncio", "TaskGroup"),
    ("asyncio", "timeout"), ("asyncio", "timeout_at"), ("asyncio", "wait_for"), ("asyncio", "sleep"),
    ("asyncio", "create_task"), ("asyncio", "to_thread"), ("datetime", "now"), ("datetime", "utcnow"),
    ("random", "Random"), ("weakref", "WeakSet"), ("uuid", "uuid1"),
    ("uuid", "uuid4"),
}  # fmt: skip
BANNED_IMPORTS = {"time", "random", "secrets", "threading"}


def broken_habits(source: str) -> Iterator[str]:
    """What differs from run to run, or reads a clock that is not the host's, and shows in no import rule."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in BANNED_IMPORTS)
        elif isinstance(node, ast.ImportFrom) and node.module in BANNED_IMPORTS:
            yield node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in BANNED_CALLS:
                yield f"{node.value.id}.{node.attr}"
        elif (
            isinstance(node, ast.Subscript)
            and getattr(node.value, "id", "") == "set"
            and "asyncio." in ast.unparse(node)
        ):
            yield "a set in the order of addresses"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("hash", "id"):
                yield node.func.id
            elif any(word.arg == "key" and getattr(word.value, "id", "") in ("id", "hash") for word in node.keywords):
                yield "sorted by address"


def test_simulated_code_has_no_habit_that_breaks_a_replay() -> None:
    found = {
        f"{path.relative_to(ROOT / 'mesh')}: {habit}"
        for package in SIMULATED
        for path in sorted((ROOT / "mesh" / package).rglob("*.py"))
        if str(path.relative_to(ROOT / "mesh")) not in REAL
        for habit in broken_habits(path.read_text(encoding="utf-8"))
    }
    assert found == set()


@pytest.mark.parametrize(
    "source",
    [
        "from time import monotonic", "import secrets", "await asyncio.wait(tasks)", "datetime.now(UTC)",
        "for task in asyncio.as_completed(tasks): pass", "order = hash(name)", "sorted(things, key=id)",
        "async with asyncio.timeout(3): pass", "random.Random()", "waiting: set[asyncio.Event] = set()",
    ],
)  # fmt: skip
def test_each_such_habit_is_found(source: str) -> None:
    wrapped = "async def main():\n    " + source
    assert list(broken_habits(wrapped))
