"""`mesh tenant move`: whom it asks, in which order, and what it says when one of them is away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.world import World, world

from mesh.cli.app import run

ACME = "t_aaaaaaaaaaaaaaaa"
OLD, NEW = "vn-1", "ap-southeast-1"
MOVE = ["tenant", "move", "acme", "--home", NEW]


@pytest.fixture
def mesh(tmp_path: Path):
    with world(tmp_path) as made:
        made.admins[OLD].add("acme", ACME, ["VN", "SG"])
        yield made


def asked(mesh: World, region: str) -> list[str]:
    return [name for name, _ in mesh.admins[region].calls if name != "FindTenant"]


def test_a_move_answers_as_a_change_and_the_tenant_has_its_new_home(
    mesh: World, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*MOVE, "--strict", "--timeout", "2m", "--json"], mesh.here) == 0
    out, err = capfd.readouterr()
    answer = json.loads(out)
    assert (answer["tenant"], answer["name"], answer["home"], answer["revision"]) == (ACME, "acme", NEW, 2)
    assert (answer["waited_ms"], len(answer["acked"]), len(answer["timed_out"])) == (6100, 1, 1)
    assert err.count("acknowledged") == 1
    assert (asked(mesh, OLD), asked(mesh, NEW)) == (["LeaveHome"], ["PrepareMove", "FinishMove"])
    requests = {name: request for admin in mesh.admins.values() for name, request in admin.calls}
    assert (requests["PrepareMove"].name, requests["PrepareMove"].home) == ("acme", OLD)
    patience = requests["FinishMove"].patience
    assert requests["LeaveHome"].op_id == patience.op_id == answer["op_id"]
    assert (patience.strict, patience.timeout_ms) == (True, 120_000)
    # All else finds it there.
    assert run(["tenant", "show", "acme", "--json"], mesh.here) == 0
    assert json.loads(capfd.readouterr().out)["home"] == NEW
    assert run(["pin", "acme", "--allow", "SG", "--json"], mesh.here) == 0
    assert asked(mesh, NEW)[-1] == "Pin"


def test_asked_again_it_waits_again_and_nothing_leaves(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*MOVE, "--json"], mesh.here) == 0
    assert run([*MOVE, "--json"], mesh.here) == 0
    assert (asked(mesh, OLD), asked(mesh, NEW)) == (["LeaveHome"], ["PrepareMove", "FinishMove", "FinishMove"])
    capfd.readouterr()


def test_a_tenant_that_is_changed_meanwhile_is_prepared_again(mesh: World) -> None:
    mesh.admins[OLD].unready = 2
    assert run([*MOVE, "--json"], mesh.here) == 0
    assert asked(mesh, NEW) == ["PrepareMove"] * 3 + ["FinishMove"]
    assert asked(mesh, OLD) == ["LeaveHome"] * 3


def test_one_that_is_changed_all_the_time_is_given_up(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    mesh.admins[OLD].unready = 99
    assert run([*MOVE, "--json"], mesh.here) == 1
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["error"]["code"] == "move_unfinished"


def test_the_old_homes_admin_is_away(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    mesh.stop(OLD)
    assert run([*MOVE, "--json"], mesh.here) == 1
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["error"]["code"] == "region_unreachable"
    assert asked(mesh, NEW) == [], "nothing was begun"


def test_the_old_homes_admin_dies_before_it_answers(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    mesh.admins[NEW].on_prepared = lambda: mesh.stop(OLD)
    assert run([*MOVE, "--json"], mesh.here) == 1
    err = capfd.readouterr().err
    assert json.loads(err.splitlines()[-1])["error"]["code"] == "region_unreachable"
    assert "is not known" in err
    assert f"--home {NEW} --resume " in err


def test_the_new_homes_admin_dies_once_the_tenant_has_left(mesh: World, capfd: pytest.CaptureFixture[str]) -> None:
    mesh.admins[OLD].on_left = lambda: mesh.stop(NEW)
    assert run([*MOVE, "--json"], mesh.here) == 1
    err = capfd.readouterr().err
    assert json.loads(err.splitlines()[-1])["error"]["code"] == "region_unreachable"
    assert f"its home is {NEW} now" in err
    assert f"mesh tenant move TENANT --home {NEW}" in err


@pytest.mark.parametrize(("home", "code"), [("mars-1", "unknown_region")])
def test_what_is_no_home(mesh: World, capfd: pytest.CaptureFixture[str], home: str, code: str) -> None:
    assert run(["tenant", "move", "acme", "--home", home, "--json"], mesh.here) == 1
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["error"]["code"] == code
    assert asked(mesh, OLD) == []
