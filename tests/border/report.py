"""What a run showed, as `reports/border.json` and `reports/border.md`: the figures of that run and nothing else.

Each layer of the proof writes a section of its own, and none adds its numbers to another's: a simulated episode and one
in the lab are not the same thing. Sections that a run did not write are not there.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from border.measure import rule_of_three

FOLDER = Path(__file__).parents[2] / "reports"
LAYERS = {
    "model": "Model: every reachable state of the protocol as it is written down",
    "simulation": "Simulation: the real gateway and admin code on a virtual clock, network and store",
    "lab": "Lab: the real programs in three network namespaces, and the border between them",
}


@dataclass
class Way:
    """What was tried on one way that content could take.

    Attributes:
        episodes: Independent tries: each with content, or a race, of its own. The bound counts these.
        requests: Calls that were made in them.
        faults: Faults that were injected, by kind.
        pins: Pins that raced with load.
        leaks: Where content was found that must not have been there.
        unserved: Answers 503.
        recovery_s: How long each return to service took.
    """

    name: str
    episodes: int = 0
    requests: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    pins: int = 0
    leaks: int = 0
    unserved: int = 0
    recovery_s: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """As it is written down, with the bound that follows."""
        return {**asdict(self), "bound": rule_of_three(self.episodes, self.leaks)}


class Report:
    """One layer's section. Written by `write`, which leaves the sections of other layers alone."""

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.paths: dict[str, Way] = {}
        self.facts: dict[str, Any] = {}
        """All else that was seen: delay matrix, leader, slopes, detectors; each a value that JSON has."""
        self.claims: dict[str, str] = {}
        """Claim: what it rests on in this layer."""

    def path(self, name: str) -> Way:
        """One way, made when first named."""
        return self.paths.setdefault(name, Way(name))

    def section(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {"paths": [path.row() for path in self.paths.values()], "claims": self.claims, "facts": self.facts}

    def write(self, folder: Path = FOLDER) -> None:
        """Puts this section into the report, and renders all of it."""
        folder.mkdir(exist_ok=True)
        with (folder / ".border.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = folder / "border.json"
            whole = json.loads(file.read_text()) if file.exists() else {}
            whole[self.layer] = self.section()
            file.write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
            (folder / "border.md").write_text(render(whole))


def render(whole: Mapping[str, Any]) -> str:
    """The report in words and tables."""
    out = ["# The border: what this run showed", ""]
    claims = [(claim, layer, why) for layer in LAYERS for claim, why in whole.get(layer, {}).get("claims", {}).items()]
    if claims:
        out += table(("claim", "rests on", "seen there"), claims)
    for layer, title in LAYERS.items():
        if layer in whole:
            out += [f"## {title}", "", *_layer(whole[layer])]
    return "\n".join(out).rstrip() + "\n"


def _layer(section: Mapping[str, Any]) -> list[str]:
    out: list[str] = []
    if section["paths"]:
        head = ("path", "episodes", "requests", "faults", "pins", "503", "leaks", "bound (95 %)", "recovery, s")
        out += table(head, [_way(row) for row in section["paths"]])
        out += [
            "The bound is the rule of three: without a leak in n independent episodes, fewer than 3/n would leak. "
            "It holds for its own row only.",
            "",
        ]
    for name, fact in sorted(section["facts"].items()):
        out += [f"### {name}", "", *_fact(fact), ""]
    return out


def _way(row: Mapping[str, Any]) -> Sequence[object]:
    faults = ", ".join(f"{kind} x{n}" for kind, n in sorted(row["faults"].items())) or "-"
    bound = "**leak**" if row["leaks"] else "-" if row["bound"] is None else f"{row['bound']:.3g}"
    seconds = sorted(row["recovery_s"])
    recovery = f"{seconds[0]:.1f} to {seconds[-1]:.1f} (n={len(seconds)})" if seconds else "-"
    counts = (row["episodes"], row["requests"], faults, row["pins"], row["unserved"], row["leaks"])
    return row["name"], *counts, bound, recovery


def _fact(fact: object) -> list[str]:
    match fact:
        case [dict(first), *_]:
            return table(tuple(first), [tuple(row.get(key, "-") for key in first) for row in fact])
        case dict():
            return table(("what", "value"), [(key, value) for key, value in fact.items()])
        case _:
            return [str(fact)]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown, with an empty line after it."""
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return [*lines, ""]


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
