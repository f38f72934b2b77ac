"""`mesh control recover`: who is asked, when the epoch grows, what is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.world import World, world

from mesh.cli.app import run

ACME = "t_aaaaaaaaaaaaaaaa"


@pytest.fixture
def mesh(tmp_path: Path):
    with world(tmp_path) as made:
        made.admins["vn-1"].add("acme", ACME, ["VN", "SG"])
        yield made


def epochs_asked(mesh: World) -> list[int]:
    return [request.epoch for admin in mesh.admins.values() for name, request in admin.calls if name == "Recover"]


def test_nothing_went_back_so_the_epoch_stays(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["control", "recover", "--json"], mesh.here) == 0
    answer = json.loads(capfd.readouterr().out)
    assert (answer["epoch"], answer["raised"], answer["unreachable"]) == (1, False, [])
    assert mesh.supervisor.raised == 0
    assert epochs_asked(mesh) == [1, 1]


@pytest.mark.parametrize("who", ["admin", "gateway"])
def test_whoever_saw_it_begins_a_new_epoch(mesh: World, capfd: pytest.CaptureFixture[str], who: str) -> None:
    if who == "admin":
        mesh.admins["ap-southeast-1"].went_back = True
    else:
        assert mesh.supervisor.found is not None
        mesh.supervisor.found = {**mesh.supervisor.found, "control": {"epoch": 1, "went_back": True}}
    mesh.admins["vn-1"].narrowed = (ACME,)
    assert run(["control", "recover", "--json"], mesh.here) == 0
    answer = json.loads(capfd.readouterr().out)
    assert (answer["epoch"], answer["raised"]) == (2, True)
    assert sorted(answer["items"], key=lambda item: item["region"])[1] == {
        "region": "vn-1",
        "tenants": 2,
        "published": 2,
        "narrowed": [ACME],
        "keys_left_out": [],
        "unknown": [],
    }
    assert mesh.supervisor.raised == 1
    assert epochs_asked(mesh) == [2, 2]


def test_people_are_told_what_was_narrowed(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    mesh.admins["vn-1"].narrowed = (ACME,)
    assert run(["control", "recover"], mesh.here) == 0
    out, err = capfd.readouterr()
    assert ACME in out
    assert "Ask for them again" in err


def test_people_are_told_whether_removals_wait(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["control", "recover"], mesh.here) == 0
    err = capfd.readouterr().err
    assert "nothing to publish" in err
    assert "full time" not in err
    mesh.admins["vn-1"].went_back = True
    assert run(["control", "recover"], mesh.here) == 0
    assert "removals take their full time" in capfd.readouterr().err


def test_a_region_that_is_away_is_told_and_the_rest_is_done(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    mesh.stop("ap-southeast-1")
    assert run(["control", "recover", "--json"], mesh.here) == 1
    answer = json.loads(capfd.readouterr().out)
    assert [item["region"] for item in answer["items"]] == ["vn-1"]
    assert answer["unreachable"] == ["ap-southeast-1"]


def test_a_pin_says_once_that_it_waits_because_of_a_recovery(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    mesh.admins["vn-1"].recovering_ms = 6000
    assert run(["pin", "acme", "--allow", "VN"], mesh.here) == 0
    assert capfd.readouterr().err.count("The control store was restored") == 1
    mesh.admins["vn-1"].recovering_ms = 0
    assert run(["pin", "acme", "--allow", "VN"], mesh.here) == 0
    assert "The control store was restored" not in capfd.readouterr().err
