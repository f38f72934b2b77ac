"""Which processes belong to a mesh, and ending exactly those. Real processes throughout."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from mesh.embedded.processes import (
    INSTANCE,
    PART,
    Owned,
    Process,
    Roll,
    end,
    end_all,
    is_living,
    look,
    read_record,
    write_record,
)

ME = os.getpid()
Start = Callable[..., subprocess.Popen[bytes]]
SLEEPER = ["sleep", "600"]


@pytest.fixture
def start() -> Generator[Start]:
    """Starts a program in a session of its own; all are gone after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(argv: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
        popen = subprocess.Popen(argv, env={"PATH": os.environ["PATH"], **environ}, start_new_session=True, stdout=-1)
        started.append(popen)
        # A program that is just being loaded has no environment for a moment.
        while popen.poll() is None and not Path(f"/proc/{popen.pid}/environ").read_bytes():
            pass
        return popen

    yield run
    for popen in started:
        popen.kill()
        popen.wait()
        if popen.stdout is not None:
            popen.stdout.close()


def process_of(popen: subprocess.Popen[bytes]) -> Process:
    seen = look(popen.pid)
    assert seen is not None
    return seen.process


def marked(instance: str, part: str) -> dict[str, str]:
    return {INSTANCE: instance, PART: part}


def test_a_marked_process_is_found_and_its_part_named(start: Start) -> None:
    instance = uuid.uuid4().hex
    ours = process_of(start(SLEEPER, marked(instance, "gateway-vn-1-g1")))
    start(SLEEPER, marked(uuid.uuid4().hex, "gateway-vn-1-g1"))  # another home's
    start(SLEEPER, {})
    found = Roll(instance).refresh(without=ME)
    assert found == {ours: Owned(ours, "gateway-vn-1-g1", ours.pid)}


def test_a_process_that_lost_its_mark_is_found_by_its_session(start: Start) -> None:
    # Ray's agents overwrite their environment; one without any looks the same from outside.
    instance = uuid.uuid4().hex
    shell = start(["sh", "-c", "env -i sleep 600 & echo $!; wait"], marked(instance, "ray-vn-1"))
    assert shell.stdout is not None
    child = look(int(shell.stdout.readline()))
    assert child is not None
    roll = Roll(instance)
    roll.lead(process_of(shell), "ray-vn-1")
    # Between its fork and its exec it still has the shell's environment: either way it is ours.
    assert roll.refresh(without=ME)[child.process].part == "ray-vn-1"
    # It stays ours when its leader has ended, for whoever reads the record.
    shell.kill()
    shell.wait()
    remembered = Roll(instance, [Owned(child.process, "ray-vn-1", shell.pid)])
    assert [one.part for one in remembered.refresh(without=ME).values()] == ["ray-vn-1"]
    assert end([child.process], grace_s=5) == [child.process]


def test_a_recorded_pid_that_another_process_has_now_is_left_alone(start: Start) -> None:
    stranger = process_of(start(SLEEPER, {}))
    before = Process(stranger.pid, stranger.started - 1)
    roll = Roll(uuid.uuid4().hex, [Owned(before, "etcd", stranger.pid)])
    assert roll.refresh(without=ME) == {}
    assert end([before], grace_s=1) == []
    assert end_all(roll, without=ME, grace_s=1) == []
    assert is_living(stranger)


def test_who_does_not_listen_is_killed(start: Start) -> None:
    deaf = start(["sh", "-c", "trap '' TERM; echo; while :; do sleep 600; done"], {})
    assert deaf.stdout is not None
    deaf.stdout.readline()
    end([process_of(deaf)], grace_s=0.1)
    assert deaf.wait() == -signal.SIGKILL


def test_who_listens_is_not_killed(start: Start) -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(flush=True); time.sleep(600)"
    polite = start([sys.executable, "-c", code], {})
    assert polite.stdout is not None
    polite.stdout.readline()
    end([process_of(polite)], grace_s=30)
    assert polite.wait() == 7


def test_what_is_born_while_all_is_ended_is_ended_too(start: Start) -> None:
    instance = uuid.uuid4().hex
    heir = start(
        ["sh", "-c", "trap 'sleep 600 & exit' TERM; echo; while :; do sleep 0.05; done"], marked(instance, "a")
    )
    assert heir.stdout is not None
    heir.stdout.readline()
    roll = Roll(instance)
    ended = end_all(roll, without=ME, grace_s=20)
    assert len(ended) >= 2
    assert roll.refresh(without=ME) == {}


def test_record(tmp_path: Path, start: Start) -> None:
    one = process_of(start(SLEEPER, {}))
    owned = [Owned(one, "etcd", one.pid)]
    record = tmp_path / "processes.json"
    assert read_record(record, "x") == []
    write_record(record, "x", owned)
    assert record.stat().st_mode & 0o777 == 0o600
    assert read_record(record, "x") == owned
    assert read_record(record, "of-another-mesh") == []
    text = record.read_text()
    record.write_text(text.replace('"boot": "', '"boot": "another'))
    assert read_record(record, "x") == []
    record.write_text(text[:-10])
    assert read_record(record, "x") == []


def test_a_name_with_brackets_and_spaces(start: Start, tmp_path: Path) -> None:
    odd = tmp_path / "a) R 1 (b"
    odd.symlink_to("/bin/sleep")
    popen = start([str(odd), "600"], {})
    seen = look(popen.pid)
    assert seen is not None
    assert seen.parent == ME
    assert seen.session == popen.pid
