"""Many episodes: of the protocol as it is, or with a rule left out; what they covered, and what was found.

    campaign sim --seeds N [--from SEED]               the protocol as it is; 1 if a promise was broken
    campaign sim --mutant RULE [--seeds N]             that rule left out, by seeds aimed at it; 1 if it was not found
    campaign sim --mutants                             all of them, each by its own number of seeds
    campaign sim --replay SEED [--mutant RULE]         one episode's history on standard output

A seed decides an episode, byte for byte: what is found is replayed by its seed. Every eighth plain seed is aimed at a
rule in turn, with nothing left out: what finds mutants must find nothing there.

The first and the third write a section of `reports/border.md`. With `--json` what was found is one JSON object on
standard output.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any

from proof_report import Report
from sim.episode import Episode
from sim.mutants import MUTANTS
from sim.orders import SCRIPTS
from sim.told import Found, Tally, rules_section, section, table

AIMED_EVERY = 8
_CHUNK = 10
Job = tuple[int, str | None, bool]
"""A seed, its aim, and whether the rule is left out."""


def plain_aim(seed: int) -> str | None:
    """What a seed of the protocol as it is aims at."""
    aims = list(SCRIPTS)
    return None if seed % AIMED_EVERY else aims[seed // AIMED_EVERY % len(aims)]


def play(jobs: Iterable[Job]) -> Tally:
    """Plays them, one after the other."""
    tally = Tally()
    for seed, aim, left_out in jobs:
        parts = MUTANTS[aim or ""].parts() if left_out else None
        played = Episode(seed, aim, parts).run()
        tally.episodes += 1
        tally.steps += played.steps
        tally.seeds.append(seed)
        tally.aimed += aim is not None
        tally.faults.update(dict.fromkeys(played.faults, 1))
        tally.moving.update(dict.fromkeys(played.moving, 1))
        for (kind, _), times in played.faults.items():
            tally.struck[kind] += times
        tally.counts.update(played.counts)
        tally.counts["moving"] += played.counts["moved"] > 0
        violations = played.violations or played.checked
        if violations or played.errors:
            tally.found.append(Found(seed, aim, violations, played.errors))
    return tally


def play_all(jobs: list[Job], processes: int) -> Iterator[Tally]:
    """Plays them in so many processes: the tallies as they come, in the jobs' order."""
    chunks = [jobs[at : at + _CHUNK] for at in range(0, len(jobs), _CHUNK)]
    if processes == 1:
        yield from map(play, chunks)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_settle) as pool:
        yield from pool.map(play, chunks)


def _settle() -> None:
    """What is loaded stays: the collector need not look at it before each episode."""
    gc.collect()
    gc.freeze()


def plain(seeds: range, processes: int, said: Any = None) -> Tally:
    """The protocol as it is."""
    tally, began_s = Tally(), time.monotonic()
    for one in play_all([(seed, plain_aim(seed), False) for seed in seeds], processes):
        tally.add(one)
        if said is not None:
            rate = tally.episodes / (time.monotonic() - began_s)
            said(f"{tally.episodes} of {len(seeds)} episodes, {rate:.1f} a second, {len(tally.found)} found")
            for found in one.found:
                said(f"found: seed {found.seed}")
    return tally


def first_seed(rule: str, seeds: Iterable[int]) -> int | None:
    """The first of these seeds in which a promise is broken without a rule."""
    for seed in seeds:
        if any(one.violations for one in play([(seed, rule, True)]).found):
            return seed
    return None


def mutants(rules: list[str], processes: int, seeds: int | None = None) -> dict[str, int | None]:
    """For each rule the first seed that finds it left out."""
    asked = [(rule, range(1, (seeds or MUTANTS[rule].seeds) + 1)) for rule in rules]
    if processes == 1:
        return {rule: first_seed(rule, those) for rule, those in asked}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_settle) as pool:
        firsts = list(pool.map(first_seed, *zip(*asked, strict=True)))
    return dict(zip(rules, firsts, strict=True))


def main(given: list[str]) -> int:
    """The command; see above."""
    parser = argparse.ArgumentParser(
        prog="campaign sim", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, help="how many (2000; for a rule left out, its own number)")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="SEED")
    parser.add_argument("--mutant", choices=sorted(MUTANTS), metavar="RULE")
    parser.add_argument("--mutants", action="store_true", help="every rule")
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--aim", choices=sorted(SCRIPTS), metavar="RULE", help="with --replay: nothing left out")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(given)
    if args.replay is not None:
        return _replay(args)
    report, rules_report = Report("simulation"), Report("rules left out")
    tally, firsts = Tally(), dict[str, int | None]()
    if args.mutant or args.mutants:
        firsts = mutants([args.mutant] if args.mutant else list(MUTANTS), args.processes, args.seeds)
        for rule, seed in firsts.items():
            _say(f"{rule}: " + ("not found" if seed is None else f"found by --replay {seed} --mutant {rule}"))
        if args.mutants:
            rules_section(rules_report, firsts).write()
    else:
        tally = plain(range(args.first, args.first + (args.seeds or 2000)), args.processes, _say)
        section(report, tally).write()
        _say(table(tally))
        for one in tally.found:
            aimed = f" --aim {one.aim}" if one.aim else ""
            _say(f"--replay {one.seed}{aimed}: {'; '.join([*one.violations[:2], *one.errors[:2]])}")
    good = not tally.found and None not in firsts.values()
    if args.json:
        seen = report.section() if tally.episodes else {}
        print(json.dumps({"ok": good, "found": [asdict(one) for one in tally.found], "rules": firsts, **seen}))
    return 0 if good else 1


def _replay(args: argparse.Namespace) -> int:
    aim = args.mutant or args.aim or plain_aim(args.replay)
    played = Episode(args.replay, aim, MUTANTS[args.mutant].parts() if args.mutant else None).run()
    print("\n".join(played.lines))
    for text in (*played.violations, *played.checked, *played.errors):
        _say(text)
    _say(f"digest {played.digest}")
    return 1 if played.violations or played.checked or played.errors else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
