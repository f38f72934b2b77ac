"""The pin protocol, model by model: as it is it holds in every state; with any one of its rules left out it does not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pinmodel.catalogue import ADDED, FOUND, HOLD, LARGE, RULES, STATED
from pinmodel.explore import Check, Outcome, explore
from pinmodel.told import MODELS, SENTENCES, section
from proof_report import CLAIMS, Report
from proof_rules import RULES as RULES_IN_WORDS

# The searches take seconds of one core; on a machine that others use, they take as long as it gives them.

_CAMPAIGN = Path(__file__).parents[2] / "scripts/campaign"
_ALL_RULES = [(section, rule) for section, rules in RULES.items() for rule in rules]


def _name(check: Check) -> str:
    return " ".join(filter(None, (check.model, check.mutant, f"({check.configuration})")))


@pytest.fixture(scope="module")
def searched() -> Generator[list[tuple[Check, Outcome]]]:
    """What was searched, for the report: written when all of it was."""
    report, searched = Report("model"), list[tuple[Check, Outcome]]()
    yield searched
    if len(searched) == len(HOLD) + len(FOUND):
        section(report, searched).write()


@pytest.mark.parametrize("check", HOLD, ids=_name)
def test_the_protocol_holds(check: Check, searched: list[tuple[Check, Outcome]]) -> None:
    outcome = explore(check.machine)
    searched.append((check, outcome))
    assert not outcome.surprise(check)


@pytest.mark.parametrize("check", FOUND, ids=_name)
def test_a_rule_that_is_left_out_is_found(check: Check, searched: list[tuple[Check, Outcome]]) -> None:
    outcome = explore(check.machine)
    searched.append((check, outcome))
    assert not outcome.surprise(check)
    assert outcome.trace


@pytest.mark.parametrize(("section", "rule"), _ALL_RULES)
def test_every_rule_has_a_mutant_in_some_model(section: str, rule: str) -> None:
    assert any(check.mutant == rule for check in FOUND), f"pins.md section {section}: {rule}"


def test_every_mutant_is_a_rule_that_is_written_down() -> None:
    named = {rule for _, rule in _ALL_RULES}
    assert {check.mutant for check in FOUND} == named | STATED.keys() | ADDED.keys()


def test_configurations_have_names_of_their_own_and_say_how_much_they_must_see() -> None:
    held = [*HOLD, *LARGE]
    assert len({_name(check) for check in [*held, *FOUND]}) == len(held) + len(FOUND)
    assert all(check.at_least > 0 and not check.mutant for check in held)
    assert all(check.mutant for check in FOUND)


@pytest.mark.parametrize(("options", "status"), [(["model", "--model", "busy", "--json"], 0), (["else"], 2), ([], 2)])
def test_the_campaign_answers_in_json_and_by_its_status(options: list[str], status: int) -> None:
    ran = subprocess.run([_CAMPAIGN, *options], capture_output=True, text=True, check=False)
    assert ran.returncode == status
    if not status:
        answer = json.loads(ran.stdout)
        assert answer["ok"]
        assert {search["model"] for search in answer["searches"]} == {"busy"}
        assert {"", "exact", "kept"} == {search["without"] for search in answer["searches"]}


@dataclass(frozen=True)
class _Ring:
    """Counts up to a size and begins again; a state may be forbidden."""

    size: int
    forbidden: int = -1

    @property
    def start(self) -> int:
        return 0

    def steps(self, state: int) -> list[tuple[str, int]]:
        return [("up", (state + 1) % self.size), ("twice", (state + 2) % self.size)]

    def broken(self, state: int) -> str:
        return "forbidden" if state == self.forbidden else ""


def test_the_search_sees_every_state_and_the_shortest_way() -> None:
    assert explore(_Ring(9)).states == 9
    assert explore(_Ring(9)).whole
    found = explore(_Ring(9, forbidden=5))
    assert found.trace in {("up", "twice", "twice"), ("twice", "up", "twice"), ("twice", "twice", "up")}


def test_a_search_that_is_given_up_has_not_held() -> None:
    outcome = explore(_Ring(1_000), limit=10)
    assert not outcome.whole
    assert "not finished" in outcome.surprise(Check("ring", "", _Ring(1_000), 1))


def test_what_a_check_expects_can_fail() -> None:
    assert "missed" in explore(_Ring(9)).surprise(Check("ring", "", _Ring(9), mutant="rule"))
    assert "forbidden" in explore(_Ring(9, 3)).surprise(Check("ring", "", _Ring(9, 3)))
    assert "only 9" in explore(_Ring(9)).surprise(Check("ring", "", _Ring(9), at_least=10))


def test_what_was_searched_is_told_with_what_it_shows() -> None:
    held = Check("moves", "small", _Ring(9)), Outcome(9, 0.1, whole=True)
    also = Check("records", "small", _Ring(7)), Outcome(7, 0.1, whole=True)
    found = (
        Check("moves", "small", _Ring(9), mutant="fork"),
        Outcome(3, 0.1, whole=False, broken="I1", trace=("a", "b")),
    )
    missed = Check("moves", "small", _Ring(9), mutant="lease"), Outcome(9, 0.1, whole=True)
    told = section(Report("model"), [held, also, found]).section()
    assert told["claims"] == {
        "moves": "holds in every state of `moves` (up to 9), `records` (up to 7); found broken without any of: fork"
    }
    assert [(row["rule"], row["in steps"]) for row in told["facts"]["the protocol with one rule left out"]] == [
        ("fork", 2)
    ]
    assert section(Report("model"), [held, found]).section()["claims"] == {}
    assert "FAILED" in section(Report("model"), [held, also, missed]).section()["claims"]["moves"]


def test_every_rule_has_its_sentence() -> None:
    assert {rule for _, rule in _ALL_RULES} <= SENTENCES.keys()
    own = {**STATED, **ADDED}
    assert all(RULES_IN_WORDS.get(rule, text) == text for rule, text in own.items()), "one rule, one sentence"


def test_every_model_stands_at_a_claim() -> None:
    assert {model for models in MODELS.values() for model in models} == {check.model for check in HOLD}
    assert {name for name, claim in CLAIMS.items() if "model" in claim.rests_on} == MODELS.keys()
