"""Removals that race with load and with faults: the promise is kept each time, and service comes back.

Four tenants are taken out of a country again and again while their clients call there, by both doors and by another
country that sends their calls on; a fifth stays where it is, and tells when a country serves. What clients, gateways
and the processor saw goes into one history, and `border.promise` judges all of it after each fault.
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from border.calls import now_s, wait_until
from border.countries import ABROAD, Countries, Say
from border.episodes import Episode, episode
from border.namespaces import COUNTRIES, PEER, RTT_MS, Router
from border.races import Racer, Races
from proof_report import Report

from mesh.v1 import admin_pb2

pytestmark = [pytest.mark.border, pytest.mark.fault]
EVERYWHERE = tuple(one.jurisdiction for one in COUNTRIES.values())
TIMED = 11
UPLOADS, UPLOAD_BYTES = 4, 900_000
Fault = Callable[[str], AbstractContextManager[Episode]]


@pytest.fixture(scope="module")
def races(countries: Countries, report: Report) -> Generator[Races]:
    countries.relay(on=False)
    racers: list[Racer] = []
    for name, home, removed in (("v1", "vn", "SG"), ("j1", "jp", "SG"), ("v2", "vn", "JP"), ("s1", "sg", "JP")):
        tenant = countries.tenant(f"race-{name}", *EVERYWHERE, home=home, transfer="within_allowed")
        racers.append(Racer(tenant, home, removed, tuple(place for place in EVERYWHERE if place != removed)))
    stayer = countries.tenant("race-stays", *EVERYWHERE)
    races = Races(countries, countries.network.folder, racers, stayer)
    for racer in racers:
        races.set_authority(racer.tenant, racer.home)
    races.set_authority(stayer, "vn")
    races.start()
    try:
        yield races
        conclude(races, report)
    finally:
        races.close()
        races.write(Path(__file__).parents[2] / "build" / "border-history.jsonl")


@pytest.fixture
def fault(races: Races, report: Report) -> Fault:
    return lambda name: episode(races, report, name)


@pytest.fixture
def router(races: Races) -> Generator[Router]:
    yield races.countries.router
    races.countries.router.heal()


def test_how_long_a_removal_takes(countries: Countries, say: Say, report: Report) -> None:
    """With healthy gateways and nothing to drain, asked of the admin of each country. Reported, not asserted."""
    countries.relay(on=False)
    leader, slowest_ms = countries.leader(), max(RTT_MS.values())
    rows = report.facts.setdefault("how long a removal takes", [])
    for home in COUNTRIES:
        removed = "JP" if home == "sg" else "SG"
        tenant = countries.tenant(f"timed-{home}", *EVERYWHERE, home=home, transfer="within_allowed")
        waited_ms, whole_ms, acked = list[int](), list[float](), 0
        for _ in range(TIMED):
            allowed = [place for place in EVERYWHERE if place != removed]
            began_s = now_s()
            answer = countries.admin(home, "Pin", admin_pb2.PinRequest(tenant=tenant.id, allowed=allowed))
            whole_ms.append((now_s() - began_s) * 1000)
            said = answer.parse(admin_pb2.ShrinkProgress)[-1]
            assert said.done
            waited_ms.append(said.waited_ms)
            acked += all(member.state == admin_pb2.MEMBER_STATE_ACKNOWLEDGED for member in said.members)
            again = admin_pb2.PinRequest(tenant=tenant.id, allowed=EVERYWHERE)
            assert countries.admin(home, "Pin", again).code == "OK"
        row = {
            "asked in": home,
            "etcd's leader": leader,
            "removals": TIMED,
            "all acknowledged": acked,
            "waited since the commit, ms, median": round(statistics.median(waited_ms)),
            "least": min(waited_ms),
            "most": max(waited_ms),
            "from asking to the answer, ms, median": round(statistics.median(whole_ms)),
            "4 x slowest pair + 150 ms": 4 * slowest_ms + 150,
        }
        rows.append(row)
        say(f"removals asked in {home}: {row}")


def test_removals_without_a_fault(races: Races, fault: Fault, report: Report) -> None:
    with fault("none") as one:
        one.faults = 0
        one.returned(one.pin(*races.racers, apart_s=0.3))
    # What is looked for is there while it is permitted: else it would be no wonder that it is not there later.
    assert 0 not in races.while_permitted().values(), races.while_permitted()


def test_the_leader_of_the_control_store_is_killed(races: Races, fault: Fault) -> None:
    leader = wait_until(races.countries.leader, "a leader", deadline_s=60)
    member = races.countries.parts[f"etcd-{leader}"]
    with fault("etcd's leader killed") as one:
        asked = one.pin(*races.racers, apart_s=0.4)
        member.kill()
        one.returned(asked)
        member.start()


def test_the_control_store_loses_its_quorum(races: Races, fault: Fault) -> None:
    """What was committed before returns by its timer meanwhile; nothing else is promised until the store is back."""
    members = [races.countries.parts[f"etcd-{name}"] for name in ("sg", "jp")]
    first, *others = races.racers
    with fault("etcd without a quorum") as one:
        with races.standing_still("sg"):
            asked = one.pin(first)
            wait_until(lambda: races.waits(first.home), "the change is made", deadline_s=60)
            for member in members:
                member.kill()
            one.pin(*others)
            (pin,) = one.returned(asked)
            assert pin.attempts == ["OK"]
        # Until the home's own authority has run out, too.
        races.wait_code(races.stayer.id, "VN", "policy_stale", one.began)
        assert not any(each.done() for each in one.asked if each not in asked)
        for member in members:
            member.start()
        one.is_healed()
        one.returned(one.asked)


def test_a_country_is_cut_off(races: Races, fault: Fault, router: Router) -> None:
    with fault("sg cut off, both ways") as one:
        v1, j1 = by_place(races, "SG")
        router.cut("sg", "*")
        waits = one.pin(v1)
        one.pin(*by_place(races, "JP"), after_s=0.5)
        one.returned(waits)
        # Whoever has been silent for W is not waited for.
        one.returned(one.pin(j1))
        router.heal("sg", "*")
        one.is_healed()
        one.returned(one.asked)


@pytest.mark.parametrize(("source", "target"), [("sg", "*"), ("*", "sg")], ids=["out", "in"])
def test_a_country_is_cut_off_one_way(races: Races, fault: Fault, router: Router, source: str, target: str) -> None:
    way = "outwards" if source == "sg" else "inwards"
    with fault(f"sg cut off, {way} only") as one:
        router.cut(source, target, both=False)
        asked = one.pin(*by_place(races, "SG"), apart_s=0.3)
        one.pin(*by_place(races, "JP"), after_s=0.2)
        one.returned(asked)
        router.heal(source, target, both=False)
        one.is_healed()
        one.returned(one.asked)


def test_what_is_under_way_when_a_country_is_cut_off_is_refused_there(
    races: Races, fault: Fault, router: Router
) -> None:
    """Content for sg is under way, and so is the change, when sg is cut off; it heals once the removal has returned."""
    racers = by_place(races, "SG")
    with fault("sg cut off while content and the change are under way") as one, ThreadPoolExecutor(UPLOADS) as pool:
        before = crossed(router, "vn>sg")
        uploads = [pool.submit(races.upload, racers[0], "vn", ABROAD, UPLOAD_BYTES) for _ in range(UPLOADS)]
        wait_until(lambda: crossed(router, "vn>sg") > before + UPLOAD_BYTES // 8, "content crosses", deadline_s=60)
        asked = one.pin(*racers)
        threading.Event().wait(0.02)
        router.cut("sg", "*")
        one.returned(asked)
        router.heal("sg", "*")
        one.is_healed()
        races.watch(["SG"])
        for upload in uploads:
            upload.result()


def test_a_home_is_cut_off_while_it_writes(races: Races, fault: Fault, router: Router) -> None:
    """Whether its change was made is not known then; asked for again with the same id, it is made once."""
    racers = [racer for racer in races.racers if racer.home == "vn"]
    with fault("the home cut off while it writes") as one:
        # Longer than an admin waits for the store, and shorter.
        for delay_s, cut_s in ((0.03, 7.0), (0.08, 1.0)):
            asked = one.pin(*racers)
            threading.Event().wait(delay_s)
            router.cut("vn", "*")
            threading.Event().wait(cut_s)
            router.heal("vn", "*")
            one.is_healed()
            one.returned(asked, watch_s=0.6)
            for racer in racers:
                races.widen(racer)
        one.faults = 2


def test_a_gateway_is_killed(races: Races, fault: Fault) -> None:
    gateway = races.countries.parts["gateway-sg-g1"]
    first, *others = races.racers
    with fault("sg's gateway killed") as one:
        asked = one.pin(first)
        gateway.kill()
        asked += one.pin(*others, after_s=0.3, apart_s=0.2)
        # As a supervisor does: it has seen the end of the one before.
        gateway.start()
        one.is_healed()
        one.returned(asked)


def test_gateways_stand_still(races: Races, fault: Fault) -> None:
    """For 8 s and for 1 s in sg, for 30 s in jp: what goes on after a removal has returned finds that it may not."""
    there = by_place(races, "SG")
    with fault("gateways stopped for 1 s, 8 s and 30 s") as one:
        one.faults = 3
        began = now_s()
        with races.standing_still("jp"):
            with races.standing_still("sg"):
                asked = one.pin(*races.racers, after_s=0.2)
                pins = [each.result() for each in asked]
                threading.Event().wait(max(0.0, began + 8 - now_s()))
            one.returned(asked)
            assert all({"timed out", "lapsed"} & set(pin.members.values()) for pin in pins)
            for racer in there:
                races.widen(racer)
            races.wait_served([racer.tenant.id for racer in there], "SG", now_s())
            # Whoever has been silent for W, as jp's, is not waited for.
            with races.standing_still("sg"):
                asked = one.pin(*there)
                threading.Event().wait(1.0)
            one.returned(asked)
            threading.Event().wait(max(0.0, began + 30 - now_s()))
        one.is_healed()
        races.watch(["JP", "SG"])


def test_a_replica_is_killed_in_mid_stream(races: Races, fault: Fault) -> None:
    first, *others = races.racers
    with fault("sg's replica killed in mid-stream") as one:
        pid = races.countries.replica_pid("sg")
        wait_until(lambda: races.runs("SG"), "a model runs in sg", deadline_s=120)
        asked = one.pin(first)
        os.kill(pid, signal.SIGKILL)
        asked += one.pin(*others, after_s=0.2, apart_s=0.3)
        one.returned(asked)


def test_an_admin_is_killed_between_the_steps_of_a_change(races: Races, fault: Fault) -> None:
    """Before and after its commit, before its answer, and while it waits; who asks again with the same id waits on."""
    admin, gateway = races.countries.parts["admin-vn"], races.countries.parts["gateway-sg-g1"]
    racers = [racer for racer in races.racers if racer.home == "vn"]
    with fault("the home's admin killed between the steps of a change") as one:
        for delay_s in (0.05, 0.2):
            asked = one.pin(*racers)
            threading.Event().wait(delay_s)
            admin.kill()
            admin.start()
            one.returned(asked, watch_s=0.6)
            for racer in racers:
                races.widen(racer)
        with races.standing_still("sg"):
            asked = one.pin(*racers)
            wait_until(lambda: races.waits("vn") >= len(racers), "the admin waits", deadline_s=60)
            admin.kill()
            admin.start()
            wait_until(lambda: races.waits("vn") >= len(racers), "it waits again", deadline_s=60)
        one.is_healed()
        one.returned(asked)
        one.faults = 3
    assert gateway.runs


def test_the_control_store_is_restored_from_a_backup(races: Races, fault: Fault, tmp_path: Path) -> None:
    """The backup is validly signed and wider than what was promised since."""
    countries = races.countries
    with fault("etcd restored from a backup") as one:
        countries.back_up_store(tmp_path / "backup")
        one.returned(one.pin(*races.racers))
        restored = now_s()
        countries.restore_store(tmp_path / "backup")
        # Nobody was told: who ran before sees it, and acts on nothing.
        races.wait_code(races.stayer.id, "VN", "policy_stale", restored)
        races.watch(["SG", "JP"])
        one.is_healed()
        countries.recover_store()
        races.wait_served([races.stayer.id], "SG", now_s())
        races.watch(["SG", "JP"])
        # Who was a gateway in the history that was lost is not known: each removal takes its full time for a while.
        v1 = by_place(races, "SG")[0]
        races.widen(v1)
        races.wait_served([v1.tenant.id], "SG", now_s())
        one.returned(one.pin(v1))


def conclude(races: Races, report: Report) -> None:
    """What all of the history shows of each part of the promise."""
    verdict = races.verdict()
    counts, broken = verdict.counts, {one[:2] for one in verdict.violations}
    looked = "faults: what was looked at while a promise held"
    report.facts[looked] = {**dict(sorted(counts.items())), **races.while_permitted()}
    seen = {
        "I1": f"{counts['calls sent after a return']} calls of clients that were sent after {counts['promises']} "
        "removals had returned, under load and faults: none admitted there",
        "I2": f"{counts['calls that ran and were cut']} calls that ran there were cut, and "
        f"{counts['looks at a processor']} looks at the processes that run models, after a return, saw no work",
        "I3": f"{counts['parcels sent after a return']} parcels of a gateway that asks nobody, sent after the return: "
        "none taken up",
    }
    for name, what in seen.items():
        report.claim(name, what, failed=name in broken)


def crossed(router: Router, line: str) -> int:
    """Bytes of content so far."""
    return router.lines()[line]["ports"].get(str(PEER), {"bytes": 0})["bytes"]


def by_place(races: Races, place: str) -> list[Racer]:
    return [racer for racer in races.racers if racer.removed == place]
