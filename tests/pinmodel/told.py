"""What searches of the models tell the report of the proof."""

from __future__ import annotations

from collections.abc import Sequence

from pinmodel.catalogue import ADDED, STATED
from pinmodel.explore import Check, Outcome
from proof_report import Report
from proof_rules import RULES

Searched = Sequence[tuple[Check, Outcome]]
MODELS: dict[str, tuple[str, ...]] = {
    "I1": ("core", "forward", "members"),
    "I2": ("core", "replicas"),
    "I3": ("forward", "replicas"),
    "return": ("core", "acks", "following", "clocks"),
    "changes": ("reading", "busy"),
    "signed": ("records", "ledger"),
    "clocks": ("clocks", "twins"),
    "restored": ("epochs", "ledger"),
    "moves": ("moves", "records"),
}
"""Which models each claim of the report leans on."""
SENTENCES = {**RULES, **STATED, **ADDED}
"""What each rule says."""


def section(report: Report, searched: Searched) -> Report:
    """All that was searched, in `report`."""
    report.facts["the protocol as it is"] = [
        {
            "model": check.model,
            "configuration": check.configuration,
            "states": outcome.states,
            "every state": "yes" if outcome.whole else "no",
            "found": outcome.broken or "holds",
            "CPU s": round(outcome.seconds, 2),
        }
        for check, outcome in searched
        if not check.mutant
    ]
    report.facts["the protocol with one rule left out"] = [
        {
            "model": check.model,
            "rule": check.mutant,
            "says": SENTENCES[check.mutant],
            "configuration": check.configuration,
            "found": outcome.broken or "**not found**",
            "in steps": len(outcome.trace),
            "states": outcome.states,
            "CPU s": round(outcome.seconds, 2),
        }
        for check, outcome in searched
        if check.mutant
    ]
    for name, models in MODELS.items():
        concerned = [(check, outcome) for check, outcome in searched if check.model in models]
        surprises = [f"{check.model}: {outcome.surprise(check)}" for check, outcome in concerned]
        broken = [text for text in surprises if not text.endswith(": ")]
        if broken:
            report.claim(name, "; ".join(broken), failed=True)
        elif {check.model for check, _ in concerned if not check.mutant} == set(models):
            report.claim(name, _held(concerned))
    return report


def _held(concerned: Searched) -> str:
    sizes = dict[str, int]()
    for check, outcome in concerned:
        if not check.mutant:
            sizes[check.model] = max(sizes.get(check.model, 0), outcome.states)
    rules = sorted({check.mutant for check, _ in concerned if check.mutant})
    told = ", ".join(f"`{model}` (up to {states:,})" for model, states in sizes.items())
    return f"holds in every state of {told}; found broken without any of: {', '.join(rules) or '-'}"
