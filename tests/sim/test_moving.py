"""Episodes in which a tenant moves do what they are for: what is put that lies is seen, and what is waited for waits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sim.episode import Episode, Played
from sim.gateway import SimGateway
from sim.mutants import MUTANTS

from mesh.control.records import Fault

SEEDS = range(1, 5)


def lines(played: Played, do: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, played.lines) if line["do"] == do]


def kept(seed: int, aim: str | None) -> tuple[Episode, Played]:
    episode = Episode(seed, aim)
    played = episode.run()
    assert (played.violations, played.checked, played.errors) == ((), (), ())
    return episode, played


def alarms(episode: Episode) -> set[Fault]:
    gateways = [one for one in episode.programs.values() if isinstance(one, SimGateway)]
    return {fault for gateway in gateways for fault, times in gateway.feed.invalid.items() if times}


@pytest.mark.parametrize(
    ("aim", "seen"),
    [
        ("fork", {Fault.FORK}),
        ("movefallback", {Fault.ENCODING, Fault.OLDER}),
        ("unsigned move", {Fault.SIGNATURE}),
        ("last word", {Fault.OLDER, Fault.SIGNATURE}),
    ],
)
def test_a_lie_about_a_tenants_home_is_seen_and_opens_nothing(aim: str, seen: set[Fault]) -> None:
    found = set[Fault]()
    for seed in SEEDS:
        episode, played = kept(seed, aim)
        lies = [
            line for line in lines(played, "fault") if line["kind"] in ("fork", "spoil", "usurp", "claim", "relapse")
        ]
        assert len(lies) == 1
        found |= alarms(episode)
        assert played.counts["refused after"] > 0
    assert seen <= found


def test_a_removal_that_the_next_home_gives_back_does_not_return_as_done() -> None:
    for seed in SEEDS:
        _, played = kept(seed, "overtaken by a move")
        [returned] = [line for line in lines(played, "returned") if line["removed"]]
        assert returned["outcome"] == "superseded"
        [moved] = lines(played, "moved")
        assert moved["t"] < returned["t"]


def test_a_gateway_that_is_cut_off_is_waited_for_when_its_tenant_moves() -> None:
    """It serves by the old home's record for as long as that allowed, and not once the move is over."""
    for seed in SEEDS:
        _, played = kept(seed, "both homes' S")
        [moved], [settled] = lines(played, "moved"), lines(played, "settled")
        late = [line for line in lines(played, "admit") if line["t"] > moved["t"] and not line.get("moves", 0)]
        by_old = [line for line in late if line["host"] == "gw-vn" and line["tenant"] == moved["tenant"]]
        assert by_old
        assert max(line["t"] for line in by_old) < settled["t"]


def test_times_that_the_new_home_has_lowered_are_not_forgotten_while_somebody_goes_by_older_ones() -> None:
    """A gateway that knows of the move is cut off before it hears of them; a pin waits for it."""
    for seed in SEEDS:
        _, played = kept(seed, "both shards")
        [moved] = lines(played, "moved")
        lowered, pinned = [line for line in lines(played, "commit") if line["host"] == "admin-sg"][:2]
        [returned] = [line for line in lines(played, "returned") if line["removed"]]
        served = [line for line in lines(played, "admit") if line["host"] == "gw-vn" and line["t"] > pinned["t"]]
        assert moved["t"] < lowered["t"] < pinned["t"] < returned["t"]
        assert pinned["revision"] == returned["revision"]
        assert any(line["moves"] == 1 and line["tenant"] == moved["tenant"] for line in served)


def test_a_question_that_comes_late_puts_nothing() -> None:
    for seed in SEEDS:
        episode, played = kept(seed, "late question")
        assert [order.do for order in episode.orders] == ["move", "suspend", "move", "late"]
        assert [(line["home"], line["moves"]) for line in lines(played, "prepared")] == [
            ("vn-10", 1),
            ("ap-southeast-1", 2),
        ]
        assert [line["moves"] for line in lines(played, "settled")] == [1, 2]
        assert played.counts["refused after"] > 0


def test_what_a_restored_store_forgot_of_a_move_is_published_again() -> None:
    moved = 0
    for seed in SEEDS:
        _, played = kept(seed, "recovered move")
        epochs = [line["epoch"] for line in lines(played, "commit")]
        assert max(epochs) == 2
        moved += bool(lines(played, "settled"))
    assert moved


def test_serving_by_the_old_homes_record_shows_in_the_history() -> None:
    found = [Episode(seed, "movefallback", MUTANTS["movefallback"].parts()).run() for seed in SEEDS]
    assert all(played.violations for played in found)
    assert any(": M: " in text for played in found for text in played.checked)
