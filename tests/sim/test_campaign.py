"""The campaign of a run: the protocol as it is keeps its promise in 2,000 episodes; each rule left out breaks it.

Takes minutes, on two processes. `scripts/campaign sim` plays more; a finding there is replayed by its seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from proof_report import Report
from sim.campaign import first_seed, mutants, plain, plain_aim, play
from sim.episode import Episode
from sim.mutants import MUTANTS, NOT_EXPRESSED
from sim.orders import SCRIPTS
from sim.told import Tally, missing, rules_section, section

ROOT = Path(__file__).parents[2]
SEEDS = range(1, 2001)
PROCESSES = 2
pytestmark = [pytest.mark.sim, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def tally() -> Tally:
    report = Report("simulation")
    tally = plain(SEEDS, PROCESSES)
    section(report, tally).write()
    return tally


def test_no_promise_is_broken(tally: Tally) -> None:
    assert tally.episodes == len(SEEDS)
    assert [(one.seed, one.aim, one.violations, one.errors) for one in tally.found] == []


def test_it_was_put_to_the_test(tally: Tally) -> None:
    """Each fault in each phase of a pin, and enough promises, and enough that came after them."""
    assert missing(tally) == []
    assert tally.counts["promises"] > 0.8 * len(SEEDS)
    assert tally.counts["refused after"] > 10 * len(SEEDS)
    assert tally.counts["refused late"] > 50
    assert tally.counts["step"] > 50 * len(SEEDS)
    assert tally.counts["moving"] > 0.2 * len(SEEDS)
    assert tally.counts["after a move"] > 2 * len(SEEDS)


def test_each_rule_left_out_is_found() -> None:
    report = Report("rules left out")
    firsts = mutants(list(MUTANTS), PROCESSES)
    rules_section(report, firsts).write()
    assert {rule for rule, seed in firsts.items() if seed is None} == set()


def test_every_mutant_has_seeds_that_are_aimed_at_it() -> None:
    assert set(MUTANTS) <= set(SCRIPTS)
    assert not set(MUTANTS) & set(NOT_EXPRESSED)


def test_one_seed_one_history() -> None:
    """In this process, with other episodes between, and in another one."""
    wanted = {seed: Episode(seed, plain_aim(seed)).run().digest for seed in (7, 8, 16)}
    play([(3, None, False)])
    assert {seed: Episode(seed, plain_aim(seed)).run().digest for seed in reversed(wanted)} == wanted
    for seed, digest in wanted.items():
        env = dict(os.environ, PYTHONHASHSEED=str(seed * 7919), PADDING="x" * seed * 97, PYTHONPATH=f"{ROOT / 'tests'}")
        command = [sys.executable, "-m", "sim.campaign", "--replay", str(seed)]
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        assert run.stderr.splitlines()[-1] == f"digest {digest}"


def test_what_a_mutant_breaks_is_found_again() -> None:
    first = first_seed("shortW", range(1, 10))
    assert first is not None
    parts = MUTANTS["shortW"].parts
    one, other = (Episode(first, "shortW", parts()).run() for _ in range(2))
    assert one.violations == other.violations != ()
    assert (one.checked, one.digest) == (other.checked, other.digest)
    assert one.checked != ()


def test_the_campaign_answers_in_json_and_by_its_status() -> None:
    command = [ROOT / "scripts/campaign", "sim", "--mutant", "fence", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(run.stdout)
    assert answer["ok"]
    assert answer["rules"]["fence"] >= 1
