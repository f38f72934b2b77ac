"""`scripts/campaign model`: searches every model and every mutant, also in the large configurations if asked.

All of them together write a section of `reports/border.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from pinmodel.catalogue import FOUND, HOLD, LARGE
from pinmodel.explore import Check, Outcome, explore
from pinmodel.told import section
from proof_report import Report


def main() -> int:
    """Runs the searches; 1 if one of them found what it should not, or missed what it should find."""
    options = argparse.ArgumentParser(
        prog="campaign model", description="Searches the models of the pin protocol, state by state."
    )
    options.add_argument("--large", action="store_true", help="also the large configurations: some minutes")
    options.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options.add_argument("--model", help="only this one")
    chosen = options.parse_args()
    checks = [
        check for check in (*HOLD, *FOUND, *(LARGE if chosen.large else ())) if chosen.model in {None, check.model}
    ]
    if not checks:
        options.error("there is no such model")
    report, results = Report("model"), list[tuple[Check, Outcome]]()
    for check in checks:
        outcome = explore(check.machine)
        results.append((check, outcome))
        print(_line(check, outcome), file=sys.stderr if chosen.json else sys.stdout, flush=True)
    if chosen.model is None:
        section(report, results).write()
    surprises = [(check, outcome) for check, outcome in results if outcome.surprise(check)]
    if chosen.json:
        print(json.dumps({"ok": not surprises, "searches": [_entry(check, outcome) for check, outcome in results]}))
    else:
        states = sum(outcome.states for check, outcome in results if not check.mutant)
        print(f"{len(results)} searches, {states:,} states of the protocol as it is, {len(surprises)} surprises")
    for check, outcome in surprises:
        print(f"{check.model} ({check.configuration}): {outcome.surprise(check)}", file=sys.stderr)
    return 1 if surprises else 0


def _line(check: Check, outcome: Outcome) -> str:
    if outcome.surprise(check):
        verdict = "SURPRISE"
    elif check.mutant:
        verdict = f"without {check.mutant}: found in {len(outcome.trace)} steps"
    else:
        verdict = "holds"
    return f"{check.model:<10} {check.configuration:<46} {outcome.states:>11,} {outcome.seconds:>8.1f} s  {verdict}"


def _entry(check: Check, outcome: Outcome) -> dict[str, object]:
    return {
        "model": check.model,
        "configuration": check.configuration,
        "without": check.mutant,
        "surprise": outcome.surprise(check),
        **asdict(outcome),
    }


if __name__ == "__main__":
    sys.exit(main())
