"""What many episodes came to, and what a campaign tells the report of the proof: one section for the code as it is, one for the rules left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from proof_report import Report
from proof_rules import rule_of
from sim.episode import LENGTH_S
from sim.faults import WEIGHTS
from sim.moving import BREAKS, STAGES
from sim.mutants import MUTANTS, NOT_EXPRESSED

PHASES = ("before", "waiting", "after")
RULES: dict[str, tuple[str, ...]] = {
    "I1": ("t0recv", "watchonly", "sendhome", "stalekey", "op-last"),
    "I2": ("drainlive", "live", "longstep", "lowerack", "attestearly"),
    "I3": ("pauseadmit", "pingreuse", "fence", "senderdecides"),
    "return": (
        "latemember", "jumpack", "nodrain", "cumulative", "ackclose", "silentearly", "shortW", "newS", "chainS",
        "supersede", "sweepshort", "sweeprec",
    ),
    "changes": ("gap",),
    "signed": ("replay", "unsigned", "ledgerlate"),
    "clocks": ("slew", "static", "twin"),
    "restored": ("restore", "lostmember"),
    "moves": ("unsigned move", "movefallback", "fork", "both homes' S", "both shards", "late question"),
}  # fmt: skip
"""Which rules each claim of the report leans on: each stands where its name in docs/pins.md does."""


@dataclass(frozen=True)
class Found:
    """A seed that came to something."""

    seed: int
    aim: str | None
    violations: tuple[str, ...]
    errors: tuple[str, ...]


@dataclass
class Tally:
    """Of many episodes.

    Attributes:
        aimed: How many of them were aimed at a rule.
        seeds: Those that were played.
        faults: In how many episodes a kind of fault began in which phase of the first shrink.
        moving: Of episodes in which the tenant moved: in how many a kind of fault began at which stage of a move.
        struck: How often a kind of fault began.
        counts: What the checker looked at.
    """

    episodes: int = 0
    aimed: int = 0
    steps: int = 0
    seeds: list[int] = field(default_factory=list)
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    moving: Counter[tuple[str, str]] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    found: list[Found] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Together."""
        self.episodes += other.episodes
        self.steps += other.steps
        self.aimed += other.aimed
        self.seeds += other.seeds
        self.faults += other.faults
        self.moving += other.moving
        self.struck += other.struck
        self.counts += other.counts
        self.found += other.found


def missing(tally: Tally) -> list[str]:
    """Faults that can strike at any time, and did not begin in each phase; those aimed at moves, likewise."""
    kinds = [*WEIGHTS, "leave"]
    phases = [f"{kind}/{phase}" for kind in kinds for phase in PHASES if not tally.faults[kind, phase]]
    stages = [f"{kind}/{stage}" for kind in BREAKS for stage in STAGES[1:] if not tally.moving[kind, stage]]
    return phases + stages


def table(tally: Tally) -> str:
    """In how many episodes which fault began in which phase."""
    kinds = sorted({kind for kind, _ in tally.faults})
    lines = [f"{'fault':12} {'before':>8} {'waiting':>8} {'after':>8}"]
    lines += [f"{kind:12} " + " ".join(f"{tally.faults[kind, phase]:8}" for phase in PHASES) for kind in kinds]
    lines += ["", f"{'in a move':12} " + " ".join(f"{stage:>8}" for stage in STAGES)]
    moving = sorted({kind for kind, _ in tally.moving})
    lines += [f"{kind:12} " + " ".join(f"{tally.moving[kind, stage]:8}" for stage in STAGES) for kind in moving]
    return "\n".join(lines)


def section(report: Report, tally: Tally) -> Report:
    """The code as it is, in `report`."""
    row = report.path("removals that race with calls and faults")
    counts = tally.counts
    row.episodes, row.leaks, row.pins = tally.episodes, len(tally.found), counts["returned"]
    row.requests = counts["admit"] + counts["refuse"]
    row.faults = dict(tally.struck)
    report.facts["what was looked at"] = {
        "episodes": tally.episodes,
        "of these aimed at a rule": tally.aimed,
        "seeds": f"{min(tally.seeds)} to {max(tally.seeds)}",
        "virtual seconds of each": LENGTH_S,
        "steps of programs": tally.steps,
        "calls admitted": counts["admit"],
        "calls refused": counts["refuse"],
        "steps of engines": counts["step"],
        "removals, revocations and suspensions that returned": counts["returned"],
        "promises that then held": counts["promises"],
        "calls refused by such a promise": counts["refused after"],
        "hops that came too late, refused": counts["refused late"],
        "episodes in which a tenant moved": counts["moving"],
        "times that a tenant left its home": counts["moved"],
        "moves that were over, as whoever moved it was told": counts["settled"],
        "calls let in or sent on after a tenant had left its home": counts["after a move"],
        "states looked at while something ran": counts["looked"],
        "promises broken": len(tally.found),
    }
    kinds = sorted({kind for kind, _ in tally.faults})
    report.facts["in how many episodes a fault began, by the phase of the first removal"] = [
        {"fault": kind, **{phase: tally.faults[kind, phase] for phase in PHASES}} for kind in kinds
    ]
    moving = sorted({kind for kind, _ in tally.moving})
    report.facts["in how many episodes a fault began while a tenant moved, by the stage of the move"] = [
        {"fault": kind, **{stage: tally.moving[kind, stage] for stage in STAGES}} for kind in moving
    ]
    if tally.found:
        report.facts["what was found"] = [
            {"seed": one.seed, "aim": one.aim or "-", "what": "; ".join([*one.violations, *one.errors][:3])}
            for one in tally.found
        ]
    broken = [one for one in tally.found if one.violations]
    for name, seen in (
        ("I1", f"{counts['refused after']} calls refused after a return, of {counts['promises']} promises"),
        ("I2", f"{counts['step']} steps of engines, {counts['looked']} states in which something ran"),
        ("I3", f"{counts['refused late']} hops that came after a return, each refused"),
        ("moves", f"in {counts['moving']} of them tenants left a home {counts['moved']} times"),
    ):
        rule = "M: " if name == "moves" else name
        hit = [one for one in broken if any(rule in text for text in one.violations)]
        told = f"in {tally.episodes} episodes: {seen}"
        report.claim(name, f"seeds {[one.seed for one in hit]}" if hit else told, failed=bool(hit))
    return report


def rules_section(report: Report, firsts: Mapping[str, int | None]) -> Report:
    """Rules left out one at a time, in `report`."""
    claim_of = {rule: name for name, rules in RULES.items() for rule in rules}
    report.facts["rules left out, and the seeds that it took to find the promise broken"] = [
        {
            "rule": rule,
            "says": rule_of(rule),
            "claim": claim_of.get(rule, "-"),
            "seeds needed": "**not found**" if seed is None else seed,
            "tried at most": MUTANTS[rule].seeds,
        }
        for rule, seed in firsts.items()
    ]
    report.facts["rules that no part of the code can leave out"] = [
        {"rule": rule, "says": rule_of(rule), "why": why} for rule, why in NOT_EXPRESSED.items()
    ]
    for name, rules in RULES.items():
        tried = [rule for rule in rules if rule in firsts]
        missed = [rule for rule in tried if firsts[rule] is None]
        if missed:
            report.claim(name, f"not found: {', '.join(missed)}", failed=True)
        elif tried:
            most = max(firsts[rule] or 0 for rule in tried)
            seeds = "its first seed" if most == 1 else f"its first {most} seeds"
            report.claim(name, f"each found within {seeds}: {', '.join(tried)}")
    return report
