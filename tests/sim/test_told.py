"""What a campaign tells the report: figures as they came, and what is broken as broken."""

from __future__ import annotations

from collections import Counter

from proof_report import CLAIMS, Report
from proof_rules import rule_of
from sim.campaign import play
from sim.mutants import MUTANTS, NOT_EXPRESSED
from sim.told import RULES, Found, Tally, rules_section, section


def test_a_section_has_the_figures_of_its_episodes() -> None:
    tally = play([(8, "t0recv", False), (9, None, False)])
    told = section(Report("simulation"), tally).section()
    [row] = told["paths"]
    assert (row["episodes"], row["leaks"], row["bound"]) == (2, 0, 1.0)
    assert row["requests"] == tally.counts["admit"] + tally.counts["refuse"] > 0
    assert row["faults"] == tally.struck
    assert sum(tally.struck.values()) >= sum(tally.faults.values()) > 0
    assert told["facts"]["what was looked at"]["of these aimed at a rule"] == 1
    assert told["facts"]["what was looked at"]["seeds"] == "8 to 9"
    assert set(told["claims"]) == {"I1", "I2", "I3", "moves"}
    assert "FAILED" not in str(told["claims"])


def test_what_was_found_is_told_as_failed() -> None:
    found = Found(7, "fence", ("I3: taken in SG",), ())
    tally = Tally(episodes=3, seeds=[5, 6, 7], counts=Counter(promises=3), found=[found])
    told = section(Report("simulation"), tally).section()
    assert told["paths"][0]["bound"] is None
    assert "FAILED" in told["claims"]["I3"]
    assert "FAILED" not in told["claims"]["I1"]
    assert told["facts"]["what was found"] == [{"seed": 7, "aim": "fence", "what": "I3: taken in SG"}]


def test_rules_left_out_are_told_with_their_seeds() -> None:
    told = rules_section(Report("rules left out"), {"slew": 3, "twin": 8, "fence": None}).section()
    assert told["claims"]["clocks"] == "each found within its first 8 seeds: slew, twin"
    assert "FAILED" in told["claims"]["I3"]
    assert "I1" not in told["claims"]
    [rows] = [rows for name, rows in told["facts"].items() if name.startswith("rules left out")]
    assert [(row["rule"], row["seeds needed"]) for row in rows] == [
        ("slew", 3),
        ("twin", 8),
        ("fence", "**not found**"),
    ]


def test_every_rule_stands_at_one_claim() -> None:
    rules = [rule for rules in RULES.values() for rule in rules]
    assert sorted(rules) == sorted(MUTANTS)
    assert RULES.keys() <= CLAIMS.keys()
    assert not NOT_EXPRESSED.keys() & set(rules)


def test_every_rule_has_its_sentence() -> None:
    assert all(map(rule_of, [*MUTANTS, *NOT_EXPRESSED]))


def test_what_moves_came_to_is_told() -> None:
    tally = play([(1, "movefallback", False), (1, "restored move", False)])
    told = section(Report("simulation"), tally).section()
    looked = told["facts"]["what was looked at"]
    assert looked["episodes in which a tenant moved"] == 2
    assert (
        looked["times that a tenant left its home"] >= looked["moves that were over, as whoever moved it was told"] >= 2
    )
    assert looked["calls let in or sent on after a tenant had left its home"] > 0
    assert told["claims"]["moves"].startswith("in 2 episodes: in 2 of them")
    broken = Tally(episodes=1, seeds=[1], found=[Found(1, None, ("M: at 1 it was served",), ())])
    assert "FAILED" in section(Report("simulation"), broken).section()["claims"]["moves"]
