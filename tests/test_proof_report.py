"""The report of the proof: what layers wrote, by whom, and what of a claim was shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from proof_report import CLAIMS, LAYERS, Report, render, rule_of_three, short


def test_the_bound_is_there_only_without_a_leak() -> None:
    assert rule_of_three(300, 0) == pytest.approx(0.01)
    assert rule_of_three(2, 0) == 1
    assert rule_of_three(300, 1) is None
    assert rule_of_three(0, 0) is None


def test_a_report_keeps_what_other_layers_wrote_and_adds_nothing_up(tmp_path: Path) -> None:
    simulation, lab = Report("simulation"), Report("lab")
    simulation.path("pins").episodes = 2000
    simulation.claim("I1", "2000 episodes")
    row = lab.path("pins")
    row.episodes, row.requests, row.faults["etcd's leader killed"] = 12, 900, 3
    row.recovery_s += [1.5, 0.5]
    lab.facts["delay matrix"] = [{"from": "vn", "ms": 30.0}, {"from": "sg", "ms": 70}]
    simulation.write(tmp_path)
    lab.write(tmp_path)
    whole = json.loads((tmp_path / "border.json").read_text())
    assert whole["simulation"]["paths"][0]["episodes"] == 2000
    assert whole["lab"]["paths"][0] | {"bound": 0} == {
        "name": "pins",
        "episodes": 12,
        "requests": 900,
        "faults": {"etcd's leader killed": 3},
        "pins": 0,
        "leaks": 0,
        "unserved": 0,
        "recovery_s": [1.5, 0.5],
        "bound": 0,
    }
    assert whole["lab"]["paths"][0]["bound"] == pytest.approx(0.25)
    text = (tmp_path / "border.md").read_text()
    assert text == render(whole)
    assert "| pins | 12 | 900 | etcd's leader killed x3 | 0 | 0 | 0 | 0.25 | 0.5 to 1.5 (n=2) |" in text
    assert "- simulation: 2000 episodes\n" in text
    assert "2012" not in text
    assert "2,012" not in text


def test_a_leak_has_no_bound() -> None:
    lab = Report("lab")
    lab.path("pins").episodes, lab.path("pins").leaks = 100, 1
    assert "**leak**" in render({"lab": lab.section()})
    assert "LEAK: lab: pins: 1" in short({"lab": lab.section()})


def test_a_section_says_who_made_it_and_one_that_is_made_anew_replaces_it(tmp_path: Path) -> None:
    for episodes in (5, 7):
        section = Report("simulation")
        section.path("pins").episodes = episodes
        section.write(tmp_path)
    made = json.loads((tmp_path / "border.json").read_text())["simulation"]
    assert [row["episodes"] for row in made["paths"]] == [7]
    assert "pytest" in made["made"]["by"]
    assert made["made"]["began"] <= made["made"]["ended"]
    text = (tmp_path / "border.md").read_text()
    assert f"| simulation | {made['made']['by']} |" in text


def test_sections_of_different_states_of_the_code_are_not_taken_for_one_run() -> None:
    sections = {layer: Report(layer).section() for layer in ("model", "lab")}
    warning = "different states of the code"
    assert warning not in render(sections)
    sections["lab"]["made"]["of"] = "another"
    assert warning in render(sections)


def test_a_claim_is_shown_failed_or_not_shown() -> None:
    model, lab = Report("model"), Report("lab")
    model.claim("I1", "every state")
    lab.claim("I1", "a call came through", failed=True)
    lab.claim("I1", "all is well")
    whole = {"model": model.section(), "lab": lab.section()}
    assert f"**I1. {CLAIMS['I1'].sentence}**" in render(whole)
    assert "- model: every state\n- simulation: not shown\n" in render(whole)
    assert "- lab: **FAILED**: a call came through\n" in render(whole)
    assert "FAILED in lab. Shown by model. Not shown by simulation, rules left out." in short(whole)


def test_a_layer_says_only_what_rests_on_it() -> None:
    with pytest.raises(ValueError, match="does not rest"):
        Report("lab").claim("moves", "seen")
    assert all(set(claim.rests_on) <= LAYERS.keys() for claim in CLAIMS.values())
