"""Every command of the README does what it says, in order, in one shell, against the running mesh.

`.mesh/` stands for this mesh's home, and `initech` for a tenant of this run. A block after `<!-- run elsewhere: WHERE -->` is run there and not here.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2e.live import ROOT, Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.timeout(300, func_only=True)]
_BLOCK = re.compile(r"(?:^<!-- run elsewhere: ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    elsewhere: str


def blocks() -> Iterator[Block]:
    for elsewhere, language, text in _BLOCK.findall((ROOT / "README.md").read_text()):
        yield Block(language, text, elsewhere)


def _environment(saved: Path) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in saved.read_bytes().decode().split("\0") if entry)


def test_every_block_runs(mesh: Mesh, tmp_path: Path) -> None:
    told: dict[str, str] = {}
    environ, saved = mesh.environ(), tmp_path / "environ"
    # What a reader has: the commands of the environment that `scripts/up` made.
    environ["PATH"] = f"{ROOT / '.venv/bin'}{os.pathsep}{environ['PATH']}"
    for block in blocks():
        text = block.text.replace(".mesh/", f"{mesh.home}/").replace("initech", f"initech-{mesh.mark}")
        if block.elsewhere or block.language not in {"sh", "python"}:
            continue
        if block.language == "sh":
            command = ["bash", "-euo", "pipefail", "-c", f"{text}\nenv -0 > {saved}"]
        else:
            command = ["python", "-W", "error", "-c", text]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        if block.language == "sh":
            environ = _environment(saved)
        told[block.text] = done.stdout
    shown = "\n".join(told.values())
    assert "451" in shown
    assert "residency_refused" in shown
    assert "chat.completion" in shown
    assert "384" in shown
    assert all(out.strip() for text, out in told.items() if "export" not in text), told


def test_what_is_run_elsewhere_is_there() -> None:
    skipped = [block for block in blocks() if block.elsewhere]
    assert len(skipped) == 2
    for block in skipped:
        where = next(word for word in re.split(r"\s", block.elsewhere) if word.startswith("tests/"))
        assert (ROOT / where).exists()
        program = block.text.split()[0]
        assert os.access(ROOT / program, os.X_OK)
