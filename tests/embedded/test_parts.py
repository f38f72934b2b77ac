"""Parts are started again, and given up in the end; nothing that they leave behind escapes."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.embedded import parts
from mesh.embedded.children import Children, children, has_ended
from mesh.embedded.parts import Backoff, Part, PartState, Program, bound_logs, keep
from mesh.embedded.processes import INSTANCE, PART, Process, Roll, end_all, look
from mesh.errors import Code, MeshError


@pytest.mark.parametrize(
    ("ran_s", "pauses"),
    [
        ([0, 0, 0, 0, 0], [0.5, 1, 2, 4, None]),
        ([0, 0, 0, 0, 31, 0], [0.5, 1, 2, 4, 0.5, 1]),
        ([100, 100, 100, 100, 100, 100], [0.5] * 6),
    ],
)
def test_backoff(ran_s: list[float], pauses: list[float | None]) -> None:
    backoff = Backoff()
    assert [backoff.failed(one) for one in ran_s] == pauses


def test_a_pause_has_a_bound() -> None:
    pause_s = Backoff(3).failed(0)
    assert pause_s is not None
    assert pause_s <= 10


async def never() -> None:
    await asyncio.Event().wait()


class Lab:
    """One part under supervision, in a folder of its own."""

    def __init__(self, folder: Path, own: Children) -> None:
        self.instance = uuid.uuid4().hex
        self.folder = folder
        self.children = own
        self.roll = Roll(self.instance)
        self.part = Part("part", folder / "part.log", backoff=Backoff(first_pause_s=0.001))

    def program(self, script: str, check: Callable[[], Awaitable[None]]) -> Program:
        environ = {"PATH": os.environ["PATH"], INSTANCE: self.instance, PART: "part"}
        return Program(self.part, ["sh", "-c", script], environ, self.folder, check)

    def starts(self) -> int:
        return len((self.folder / "starts").read_text().splitlines())


@asynccontextmanager
async def lab(folder: Path) -> AsyncGenerator[Lab]:
    with children() as own:
        made = Lab(folder, own)
        try:
            yield made
        finally:
            await asyncio.to_thread(end_all, made.roll, without=os.getpid(), grace_s=0.2)
    assert made.roll.refresh(without=os.getpid()) == {}


async def test_a_part_that_cannot_start_is_given_up(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        await made.program("echo x >> starts; echo why >&2; exit 3", never).run(made.children, made.roll)
        assert made.starts() == 5
        assert made.part.given_up
        assert made.part.settled.is_set()
        assert made.part.state is PartState.DOWN
        assert made.part.fault == f"part ended with status 3; it is not started again; see {made.part.log}"
        assert made.part.log.read_text() == "why\n" * 5


async def test_a_killed_part_is_started_again(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        ready: asyncio.Queue[int | None] = asyncio.Queue()

        async def check() -> None:
            ready.put_nowait(made.part.pid)

        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(made.program("exec sleep 600", check).run(made.children, made.roll))
            first = await ready.get()
            assert first is not None
            await made.part.settled.wait()
            os.kill(first, signal.SIGKILL)
            second = await ready.get()
            assert second not in (None, first)
            running.cancel()


async def test_a_part_that_fails_its_check_is_ended(tmp_path: Path) -> None:

    async def check() -> None:
        raise MeshError(Code.START_FAILED, hint="It takes TLS 1.2.")

    async with lab(tmp_path) as made:
        await made.program("exec sleep 600", check).run(made.children, made.roll)
        assert made.part.given_up
        assert made.part.fault is not None
        assert "It takes TLS 1.2." in made.part.fault


async def test_a_part_that_takes_long_to_fail_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever it took, it was never ready.
    monkeypatch.setattr(parts, "_STEADY_S", 1e-9)
    async with lab(tmp_path) as made:
        await made.program("echo x >> starts; exit 3", never).run(made.children, made.roll)
        assert made.starts() == 5
        assert made.part.given_up


async def test_a_part_that_had_started_well_begins_a_new_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_STEADY_S", 1e-9)
    async with lab(tmp_path) as made:
        sixth: asyncio.Event = asyncio.Event()
        tries = 0

        async def attempt() -> str:
            nonlocal tries
            tries += 1
            if tries == 6:
                sixth.set()
            made.part.ready()
            return "ended"

        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(keep(made.part, attempt))
            await sixth.wait()
            running.cancel()
        assert not made.part.given_up


async def test_a_part_that_cannot_be_started_is_a_failed_try(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        made.part.log = tmp_path / "no-such-folder" / "part.log"
        await made.program("exit 0", never).run(made.children, made.roll)
        assert made.part.given_up
        assert made.part.fault is not None
        assert "no-such-folder" in made.part.fault


async def test_orphans_belong_to_the_supervisor(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        # As `ray start` does: the daemon outlives what started it, without a parent.
        child = made.children.start(
            ["sh", "-c", "sleep 600 & echo $! > daemon"],
            {"PATH": os.environ["PATH"], INSTANCE: made.instance, PART: "ray"},
            made.part.log,
            folder=tmp_path,
        )
        made.roll.lead(child.process, "ray")
        assert await child.ended == 0
        daemon = look(int((tmp_path / "daemon").read_text()))
        assert daemon is not None
        assert daemon.parent == os.getpid()
        assert made.roll.refresh(without=os.getpid())[daemon.process].part == "ray"
        os.kill(daemon.process.pid, signal.SIGKILL)
        await has_ended(daemon.process)


async def test_an_exit_status_is_the_programs_own(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        codes = [
            await made.children.start(["sh", "-c", script], {}, made.part.log, folder=tmp_path).ended
            for script in ("exit 0", "exit 9", "kill -KILL $$")
        ]
        assert codes == [0, 9, -9]


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    async with lab(tmp_path) as made:
        with pytest.raises(MeshError, match="no-such-program"):
            made.children.start([str(tmp_path / "no-such-program")], {}, made.part.log, folder=tmp_path)


KILLED = """
import asyncio, os, sys
from pathlib import Path
from mesh.embedded.children import children
async def main():
    with children() as own:
        print(own.start(["sleep", "600"], {"PATH": os.environ["PATH"]}, Path(sys.argv[1]), folder=Path("/")).process.pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_children_end_with_a_killed_supervisor(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "log")], stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        seen = look(int(popen.stdout.readline()))
        assert seen is not None
        popen.kill()
    await has_ended(seen.process)


async def test_has_ended_of_a_pid_that_is_somebody_else() -> None:
    await has_ended(Process(os.getpid(), 1))


def test_logs_have_a_bound(tmp_path: Path) -> None:
    log = tmp_path / "etcd.log"
    with log.open("a") as words:
        words.write("0123456789")
        words.flush()
        bound_logs(tmp_path, 10)
        assert log.read_text() == "0123456789"
        words.write("a")
        words.flush()
        bound_logs(tmp_path, 10)
        assert log.read_text() == ""
        words.write("b")
        words.flush()
    assert log.read_text() == "b"
    assert (tmp_path / "etcd.log.1").read_text() == "0123456789a"
