"""Starting and ending a home from outside: interrupted, killed, twice, in the way of somebody else. No region gets ready.

A start is watched until etcd is up, which is soon; what a whole mesh does is tested in tests/e2e.
"""

import os
import queue
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mesh.embedded import down, status, up
from mesh.embedded.addresses import Addresses, addresses_of, taken
from mesh.embedded.commands import SUPERVISOR
from mesh.embedded.configuration import catalogue, places
from mesh.embedded.home import Home, cache_folder
from mesh.embedded.processes import Roll, read_record
from mesh.errors import Code, MeshError
from mesh.types import RegionId

VN = RegionId("vn-1")
ME = os.getpid()


class Start:
    """`up` in a thread: what it says, and how it ends."""

    def __init__(self, home: Path, regions: list[str]) -> None:
        self.said: queue.Queue[str] = queue.Queue()
        self.error: MeshError | None = None

        def run() -> None:
            try:
                up(home, regions, "cpu", True, self.said.put)
            except MeshError as error:
                self.error = error
            self.said.put("over")

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def until_one_of(self, *words: str) -> str:
        """Waits until one of these was said; tells which."""
        lines: list[str] = []
        while True:
            line = self.said.get(timeout=240)
            lines.append(line)
            assert line != "over", (lines, str(self.error))
            for one in words:
                if one in line:
                    return one

    def over(self) -> MeshError:
        self.thread.join(timeout=240)
        assert self.error is not None
        return self.error


def roll_of(home: Path) -> Roll:
    made = Home(home)
    instance = addresses(home).instance
    return Roll(instance, read_record(made.records, instance))


def addresses(home: Path) -> Addresses:
    return addresses_of(Home(home), cache_folder(os.environ), places(catalogue()))


@pytest.fixture
def home(tmp_path: Path) -> Generator[Path]:
    folder = tmp_path / "home"
    yield folder
    with suppress(MeshError):
        down(folder, print)
    if (folder / "addresses.json").exists():
        assert roll_of(folder).refresh(without=ME) == {}
        assert taken(addresses(folder).listeners([VN])) == []


@contextmanager
def starting(home: Path) -> Generator[Start]:
    start = Start(home, ["vn-1"])
    try:
        start.until_one_of("etcd: ready")
        yield start
    finally:
        with suppress(MeshError):
            down(home, print)
        start.thread.join(timeout=240)


def supervisor_of(home: Path) -> int:
    return next(pid.pid for pid, one in roll_of(home).refresh(without=ME).items() if one.part == SUPERVISOR)


def test_status_and_down_while_it_starts(home: Path) -> None:
    with starting(home) as start:
        while True:
            now = status(home)
            assert now["state"] == "starting"
            assert now["reasons"]
            etcd = now["etcd"]
            assert isinstance(etcd, dict)
            if etcd["healthy"]:  # it is asked for a second, which may be too short on a busy machine
                break
        stopped = down(home, print)["stopped"]
        assert isinstance(stopped, list)
        assert {row["name"] for row in stopped} >= {"etcd"}
        assert etcd["pid"] in {row["pid"] for row in stopped}
        assert not addresses(home).temp.exists()
        start.over()
    with pytest.raises(MeshError, match="not_running"):
        status(home)


def test_a_second_start_with_other_regions_is_refused(home: Path) -> None:
    with starting(home):
        with pytest.raises(MeshError) as caught:
            up(home, ["vn-1", "ap-southeast-1"], "cpu", True, print)
        assert caught.value.code is Code.ALREADY_RUNNING
        assert "mesh down" in caught.value.message
        assert status(home)["state"] == "starting"


def test_a_second_start_with_the_same_regions_waits_with_the_first(home: Path) -> None:
    with starting(home):
        second = Start(home, ["vn-1"])
        second.until_one_of("runs here already")
        down(home, print)
        assert second.over().code in (Code.START_FAILED, Code.NOT_RUNNING, Code.ALREADY_RUNNING)


def test_two_starts_at_once_make_one_mesh(home: Path) -> None:
    starts = [Start(home, ["vn-1"]) for _ in range(2)]
    try:
        said = {start: start.until_one_of("etcd: ready", "runs here already") for start in starts}
        assert sorted(said.values()) == ["etcd: ready", "runs here already"]
        owned = [one.part for one in roll_of(home).refresh(without=ME).values()]
        assert owned.count(SUPERVISOR) == 1
        assert owned.count("etcd") == 1
    finally:
        down(home, print)
        for start in starts:
            start.thread.join(timeout=240)


def test_a_killed_supervisor_is_cleaned_up_by_down(home: Path) -> None:
    with starting(home) as start:
        os.kill(supervisor_of(home), signal.SIGKILL)
        assert start.over().code is Code.START_FAILED
        stopped = down(home, print)["stopped"] if roll_of(home).refresh(without=ME) else []
        assert isinstance(stopped, list)
    assert roll_of(home).refresh(without=ME) == {}


def test_a_killed_supervisor_is_cleaned_up_by_the_next_start(home: Path) -> None:
    with starting(home) as start:
        os.kill(supervisor_of(home), signal.SIGKILL)
        start.over()
        left = set(roll_of(home).refresh(without=ME))
    with starting(home):
        assert not left & set(roll_of(home).refresh(without=ME))
        assert status(home)["state"] == "starting"


def test_an_address_in_use_is_named(home: Path) -> None:
    Home(home).make()
    address = addresses(home).etcd
    with socket.create_server((address.host, address.port)):
        with pytest.raises(MeshError) as caught:
            up(home, ["vn-1"], "cpu", True, print)
        assert caught.value.code is Code.START_FAILED
        assert str(address) in caught.value.message
        assert "MESH_HOME" in caught.value.message


def test_session_keys_are_not_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", "/tmp/keys")
    with pytest.raises(MeshError, match="SSLKEYLOGFILE"):
        up(home, ["vn-1"], "cpu", True, print)
    assert not home.exists()


def test_a_region_that_is_not_known(home: Path) -> None:
    with pytest.raises(MeshError) as caught:
        up(home, ["mars-1"], "cpu", True, print)
    assert caught.value.code is Code.UNKNOWN_REGION
    assert not home.exists()
