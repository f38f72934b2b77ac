"""What a run of the proof showed, as `reports/border.json` and `reports/border.md`: its figures and nothing else.

Each layer of the proof writes sections of its own, and none adds its numbers to another's: a simulated episode and one
in the lab are not the same thing. A section says when and by which command it was made; one that was made anew replaces
the one before. `scripts/test` begins without any, so that what it leaves is of that run.

    python tests/proof_report.py        the short form, on standard output
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "reports"
LAYERS = {
    "model": "Model: every reachable state of the protocol as it is written down",
    "simulation": "Simulation: the real gateway and admin code on a virtual clock, network and store",
    "rules left out": "Simulation: the same with one rule left out of the code",
    "detectors": "Detectors: leaks that were made on purpose",
    "lab": "Lab: the real programs in three network namespaces, and the border between them",
}


@dataclass(frozen=True)
class Claim:
    """What is claimed, and the layers that it rests on."""

    sentence: str
    rests_on: tuple[str, ...]


_PROMISE = ("model", "simulation", "rules left out", "lab")
_PROTOCOL = ("model", "rules left out")
CLAIMS = {
    "I1": Claim("Nothing is admitted in, or sent to, a removed jurisdiction once the removal has returned.", _PROMISE),
    "I2": Claim("Nothing that was admitted there before still runs.", _PROMISE),
    "I3": Claim("What was on its way there is refused there.", _PROMISE),
    "return": Claim("A removal does not return before it holds.", _PROTOCOL),
    "changes": Claim("No gateway misses a change.", _PROTOCOL),
    "signed": Claim("Nobody but its home widens a tenant's pin.", _PROTOCOL),
    "clocks": Claim("Clocks that are slewed, set or asleep, and copies of a process, break nothing.", _PROTOCOL),
    "restored": Claim("A store that went back in time widens nothing, where that is seen or declared.", _PROTOCOL),
    "moves": Claim("A home that moves opens nothing.", ("model", "simulation", "rules left out")),
    "content": Claim("Content crosses no border that the pin does not open: nothing of it in clear.", ("lab",)),
    "volume": Claim("Content crosses no border that the pin does not open: not a byte for a byte of it.", ("lab",)),
    "kept": Claim("Nothing of a prompt is kept.", ("lab",)),
    "seen": Claim("A leak would have been seen: each that was made on purpose was.", ("detectors", "lab")),
}
"""What the proof is about; docs/pins.md and docs/auditor.md say the same in more words."""


def rule_of_three(tries: int, leaks: int) -> float | None:
    """With no leak in so many independent tries: below this rate with 95 % confidence. None where there was one."""
    return None if leaks or tries < 1 else min(1.0, 3 / tries)


@dataclass
class Way:
    """What was tried on one way that content, or a call, could take.

    Attributes:
        episodes: Independent tries: each with content, or a race, of its own. The bound counts these.
        requests: Calls that were made in them.
        faults: Faults that were injected, by kind.
        pins: Pins that raced with load.
        leaks: Where content was found that must not have been there, or the promise broken.
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
    """One section. Written by `write`, which leaves the other sections alone."""

    def __init__(self, layer: str) -> None:
        """A section of a layer; its time begins here."""
        self.layer = layer
        self.paths: dict[str, Way] = {}
        self.facts: dict[str, Any] = {}
        """All else that was seen: delay matrix, leader, slopes; each a value that JSON has."""
        self.claims: dict[str, str] = {}
        self.began = _now()

    def path(self, name: str) -> Way:
        """One way, made when first named."""
        return self.paths.setdefault(name, Way(name))

    def claim(self, name: str, seen: str, *, failed: bool = False) -> None:
        """What this layer saw of a claim, one of `CLAIMS`; or that the claim, or the proof of it, failed: that stays."""
        if self.layer not in CLAIMS[name].rests_on:
            raise ValueError(f"the claim {name} does not rest on {self.layer}")
        if failed or not self.claims.get(name, "").startswith(_FAILED):
            self.claims[name] = f"{_FAILED}: {seen}" if failed else seen

    def section(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        made = {"by": _command(), "of": _code(), "began": self.began, "ended": _now()}
        paths = [path.row() for path in self.paths.values()]
        return {"made": made, "paths": paths, "claims": self.claims, "facts": self.facts}

    def write(self, folder: Path = FOLDER) -> None:
        """Puts this section into the report, and renders all of it."""
        folder.mkdir(exist_ok=True)
        with (folder / ".border.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = folder / "border.json"
            whole = json.loads(file.read_text()) if file.exists() else {}
            whole[self.layer] = self.section()
            file.write_text(json.dumps(whole, indent=2) + "\n")
            (folder / "border.md").write_text(render(whole))


def render(whole: Mapping[str, Any]) -> str:
    """The report in words and tables."""
    out = ["# Borders that hold: what this run showed", ""]
    made = [(layer, one["by"], one["began"], one["ended"], one["of"]) for layer, one in _each(whole, "made")]
    out += table(("section", "made by", "began", "ended", "state of the code"), made)
    if len({of for *_, of in made}) > 1:
        out += ["**These sections are of different states of the code.**", ""]
    out += ["## What is claimed, and what of it was shown", ""]
    out += [
        "Each claim has the layers that it rests on. No figure is added up across layers. A layer that says "
        f"`{_NOT}` has nothing of it in this report: it was not part of this run, or its tests do not show it yet.",
        "",
    ]
    for name, claim in CLAIMS.items():
        out += [f"**{name}. {claim.sentence}**", "", _verdict(whole, name), ""]
        out += [f"- {layer}: {_shown(whole, layer, name)}" for layer in claim.rests_on] + [""]
    more = [(layer, name, seen) for layer, said in _each(whole, "claims") for name, seen in said.items()]
    out += [f"- {layer}: {name}: {seen}" for layer, name, seen in more if name not in CLAIMS] + [""]
    for layer, title in LAYERS.items():
        if layer in whole:
            out += [f"## {title}", "", *_layer(whole[layer])]
    return "\n".join(out).rstrip() + "\n"


def short(whole: Mapping[str, Any]) -> str:
    """A line for each claim: which layers showed it in this run, and which did not."""
    lines: list[str] = []
    for name, claim in CLAIMS.items():
        lines += [f"{name:9} {claim.sentence}", f"{'':9} {_verdict(whole, name)}"]
    leaks = [(layer, row) for layer, rows in _each(whole, "paths") for row in rows if row["leaks"]]
    lines += [f"LEAK: {layer}: {row['name']}: {row['leaks']}" for layer, row in leaks]
    return "\n".join(lines)


_NOT, _FAILED = "not shown", "**FAILED**"


def _shown(whole: Mapping[str, Any], layer: str, name: str) -> str:
    return whole.get(layer, {}).get("claims", {}).get(name, _NOT)


def _verdict(whole: Mapping[str, Any], name: str) -> str:
    """One line: which layers showed a claim, which did not, and where it failed."""
    told = {"FAILED in": list[str](), "Shown by": list[str](), "Not shown by": list[str]()}
    for layer in CLAIMS[name].rests_on:
        seen = _shown(whole, layer, name)
        told["FAILED in" if seen.startswith(_FAILED) else "Not shown by" if seen == _NOT else "Shown by"].append(layer)
    return " ".join(f"{words} {', '.join(layers)}." for words, layers in told.items() if layers)


def _each(whole: Mapping[str, Any], part: str) -> list[tuple[str, Any]]:
    return [(layer, whole[layer][part]) for layer in LAYERS if layer in whole]


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
    for name, fact in section["facts"].items():
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
    if isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command() -> str:
    """How this process was started, without folders of this machine."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        name = program.parent.name
    else:
        name = f"{program.parent.name}/{program.stem}" if program.suffix else program.name
    return " ".join([name, *sys.argv[1:]])


def _code() -> str:
    """The commit, with `-dirty` where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    ran = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "unknown"


if __name__ == "__main__":
    print(short(json.loads((FOLDER / "border.json").read_text())))
    print(f"\nThe whole report: {FOLDER / 'border.md'}")
