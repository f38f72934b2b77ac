"""Detectors first prove themselves: each leak that was made on purpose is found, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from border.canary import LANGUAGES, Canaries, Encode, Hit
from border.evidence import files_below, search_each, search_legs
from leaks.alone import given_up, granted
from leaks.crossing import BorderNumbers
from leaks.parts import Parts
from leaks.plants import ALONE, IN_PROCESS, IN_SIMULATION, Leak
from leaks.small_mesh import SmallMesh
from leaks.traffic import DETECTORS, OPEN, Found, Traffic
from proof_report import Report
from sim.campaign import first_seed, play
from sim.episode import Episode
from sim.mutants import MUTANTS

ENDED = {
    "served": {"200"},
    "streamed": {"200"},
    "served another": {"200"},
    "wrong country": {"451"},
    "model abroad": {"404"},
    "replica dies": {"502"},
    "bug": {"500"},
    "in the model's name": {"404"},
    "in the path": {"404"},
    "in the key": {"401"},
    "sent on": {"200"},
    "gRPC, served": {"OK"},
    "gRPC, bug": {"INTERNAL"},
    "gRPC, in the model's name": {"NOT_FOUND"},
    "out of the pin": {"404"},
}
PLANTED = "leaks made on purpose in one process, each with one part replaced"
SIMULATED = "leaks made on purpose in the simulation"
CLEAN = "what the detectors looked at without a leak, and found nothing"


async def played(
    parts: Parts, folder: Path, pki: Path, tokenizers: Mapping[str, Encode]
) -> tuple[Traffic, dict[str, set[str]], Found]:
    """All the traffic through a mesh with these parts; how calls ended, and what the detectors found."""
    mesh = SmallMesh(folder, pki, parts)
    traffic = Traffic(mesh, tokenizers)
    async with mesh.running():
        ended = await traffic.send()
    return traffic, ended, traffic.found()


async def test_without_a_leak_nothing_is_found(
    tmp_path: Path, pki: Path, tokenizers: Mapping[str, Encode], report: Report
) -> None:
    """The positive control with it: what globex's pin lets cross is seen on its way, in each script."""
    traffic, ended, found = await played(Parts(), tmp_path, pki, tokenizers)
    assert ended == ENDED
    hits = [hit for each in found.hits.values() for hit in each]
    judge(report, not hits, f"found without a leak: {hits[:3]}")
    assert all(found.looked[detector] for detector in DETECTORS)
    hits, _ = search_legs(traffic.sent_on, traffic.mesh.legs())
    assert {(hit.place, hit.language) for hit in hits} == {(place, one) for place in OPEN for one in LANGUAGES}
    kept = {path.name for path in tmp_path.rglob("home/vn/*")}
    assert {"gateway.log", "spans.json", "ledger-vn-1.db"} <= kept
    row = report.path("the small mesh as it is")
    row.episodes, row.requests = len(traffic.said), len(traffic.said) + len(traffic.points)
    report.facts[CLEAN] = found.looked


@pytest.mark.parametrize("name", IN_PROCESS)
async def test_a_leak_is_found(
    name: str, tmp_path: Path, pki: Path, tokenizers: Mapping[str, Encode], report: Report
) -> None:
    leak = IN_PROCESS[name]
    parts = leak.parts()
    if isinstance(parts, BorderNumbers):
        parts.encode = tokenizers["smollm2"]
    _, _, found = await played(parts, tmp_path, pki, tokenizers)
    hits = found.hits[leak.detector]
    scripts = set(LANGUAGES) if leak.everywhere else set[str]()
    judge(report, bool(hits) and {hit.language for hit in hits} >= scripts, f"not found in each script: {name}")
    tell(report, name, leak, hits)


def judge(report: Report, good: bool, what: str) -> None:
    """A detector that does not see, or sees what is not there, is told before the test fails."""
    if not good:
        report.claim("seen", what, failed=True)
    assert good, what


def tell(report: Report, name: str, leak: Leak, hits: Sequence[Hit]) -> None:
    """Into the report."""
    packed = " in gzip" if all("compressed" in hit.place for hit in hits) else ""
    rows = report.facts.setdefault(PLANTED, [])
    rows.append(
        {
            "leak": name,
            "found by": leak.detector,
            "hits": len(hits),
            "scripts": "-" if hits[0].language == "any" else len({hit.language for hit in hits}),
            "places": ", ".join(sorted({hit.place.partition(" (")[0] for hit in hits})[:2]),
            "forms": ", ".join(sorted({hit.form for hit in hits})[:4]) + packed,
        }
    )


@pytest.mark.parametrize("leaks", [False, True])
async def test_the_control_store(leaks: bool, tmp_path: Path, tokenizers: Mapping[str, Encode], report: Report) -> None:
    """Its own files are searched."""
    name = "a note in a gateway's record in the control store"
    leak, canaries = ALONE[name], Canaries(tokenizers)
    texts = [canaries.make(name, language).text for language in LANGUAGES]
    await granted(leak.parts() if leaks else Parts(), tmp_path, texts)
    hits, looked = search_each(canaries, files_below(tmp_path / "data", set()), tmp_path)
    assert looked
    wanted = set(LANGUAGES) if leaks else set[str]()
    judge(report, {hit.language for hit in hits} == wanted, f"{name}: {'not found' if leaks else hits[:3]}")
    if leaks:
        tell(report, name, leak, hits)


@pytest.mark.parametrize("leaks", [False, True])
async def test_what_was_given_up(leaks: bool, tokenizers: Mapping[str, Encode], report: Report) -> None:
    """Nothing of it arrives that had not arrived when it was."""
    name = "a hop that is given up is closed, not reset"
    leak, canaries = ALONE[name], Canaries(tokenizers)
    text = canaries.make(name, "en").text.encode() + b" "
    came, before = await given_up(leak.parts() if leaks else Parts(), text * ((4 << 20) // len(text)))
    assert canaries.search("before", came[:before])
    hits = canaries.search("a leg, after the hop was given up", came[before:])
    judge(report, bool(hits) == leaks, f"{name}: {'not found' if leaks else hits[:3]}")
    if leaks:
        tell(report, name, leak, hits)


@pytest.mark.parametrize("name", IN_SIMULATION)
def test_a_leak_in_the_simulation_is_found(name: str, report: Report) -> None:
    """And the same seed without it breaks nothing."""
    rule = IN_SIMULATION[name]
    seed = first_seed(rule, range(1, MUTANTS[rule].seeds + 1))
    judge(report, seed is not None, f"not found: {name}")
    assert seed is not None
    judge(report, play([(seed, rule, False)]).found == [], f"found without a leak: seed {seed}, {rule}")
    rows = report.facts.setdefault(SIMULATED, [])
    checked = Episode(seed, rule, MUTANTS[rule].parts()).run().checked
    judge(report, bool(checked), f"the checker of histories does not see: {name}")
    rows.append({"leak": name, "rule left out": rule, "found by": "watch and checker of histories", "seed": seed})


def test_each_leak_was_found(report: Report) -> None:
    """Comes last: says so where all the tests above have run."""
    found = {row["leak"] for name in (PLANTED, SIMULATED) for row in report.facts.get(name, [])}
    wanted = {*IN_PROCESS, *ALONE, *IN_SIMULATION}
    assert len(wanted) >= 15
    if found == wanted and CLEAN in report.facts:
        report.claim("seen", f"{len(found)} leaks, each found; without them the same calls show nothing")
