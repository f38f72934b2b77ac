"""`control`, `gateway` and `admin` take time, randomness and tasks as arguments, so that they can run in a simulation."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "mesh"
FILES = sorted(
    path
    for floor in ("control", "gateway", "admin")
    for path in (ROOT / floor).rglob("*.py")
    if path.stem != "__main__"
)
# A program's start is its edge; hashing is a thread by nature, and enters a simulation at the `Hasher` protocol.
FILES.remove(ROOT / "control" / "hashing.py")
BANNED_MODULES = {"time", "random", "secrets", "threading"}
BANNED_NAMES = {
    "asyncio": {"TaskGroup", "timeout", "timeout_at", "wait_for", "sleep", "create_task", "ensure_future", "run"},
    "datetime": {"now", "utcnow"},
    "uuid": {"uuid1", "uuid4"},
}


def offences(source: str) -> list[str]:
    """What a module takes for itself instead of being given it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [alias.name for alias in names if alias.name in BANNED_MODULES]
            case ast.ImportFrom(module=module, names=names) if module in BANNED_MODULES:
                found.append(str(module))
            case ast.ImportFrom(module="asyncio", names=names):
                found += [alias.name for alias in names if alias.name in BANNED_NAMES["asyncio"]]
            case ast.Attribute(value=ast.Name(id=module), attr=name) if name in BANNED_NAMES.get(module, ()):
                found.append(f"{module}.{name}")
            case ast.Attribute(value=ast.Call(func=ast.Attribute(attr="get_running_loop")), attr="time" | "call_later"):
                found.append("loop.time")
            case _:
                pass
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_taken(path: Path) -> None:
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "from random import random",
        "import asyncio\nasyncio.timeout(1)",
        "from asyncio import TaskGroup",
        "import asyncio\nasyncio.get_running_loop().time()",
    ],
)
def test_an_offence_is_seen(line: str) -> None:
    assert offences(line)
