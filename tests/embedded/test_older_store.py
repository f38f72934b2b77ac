"""No gateway begins on a control store that is older than a home's ledger."""

import asyncio
import os
import uuid
from pathlib import Path

import pytest

from mesh.embedded.children import children
from mesh.embedded.older_store import OlderStore
from mesh.embedded.parts import Part, Program
from mesh.embedded.processes import INSTANCE, PART, Roll, end_all
from mesh.embedded.watching import View
from mesh.types import RegionId
from mesh.v1.admin_pb2 import ControlStatusResponse

AWAY = None
NEW = ControlStatusResponse(epoch=1, published=True)
SAME = ControlStatusResponse(epoch=1, published=True, compared=True)
BACK = ControlStatusResponse(epoch=1, published=True, compared=True, went_back=True)
SEEN = ControlStatusResponse(epoch=1, published=True, went_back=True)  # by an answer, before it compared
RAISED = ControlStatusResponse(epoch=2, compared=True)


@pytest.mark.parametrize(
    ("said", "excluded"),
    [
        ([(AWAY, AWAY)], [False]),
        ([(AWAY, SAME), (NEW, SAME), (SAME, SAME)], [False, False, True]),
        ([(SAME, SAME), (AWAY, SAME), (AWAY, AWAY)], [True, True, True]),
        ([(SAME, BACK), (SAME, AWAY), (AWAY, RAISED), (RAISED, RAISED)], [False, False, False, True]),
        ([(SAME, SAME), (SEEN, SAME), (AWAY, BACK)], [True, False, False]),
        ([(SAME, SAME), (BACK, BACK), (RAISED, AWAY)], [True, False, True]),
    ],
)
async def test_who_must_have_said_what(
    said: list[tuple[ControlStatusResponse | None, ControlStatusResponse | None]], excluded: list[bool]
) -> None:
    views = iter(
        View(None, {}, {}, {RegionId("vn-1"): first, RegionId("ap-southeast-1"): second}) for first, second in said
    )

    async def view() -> View:
        return next(views)

    older = OlderStore(view)
    assert [await older.is_excluded() for _ in said] == excluded


async def test_a_program_is_not_started_before_it_may_be(tmp_path: Path) -> None:
    instance, asked, may = uuid.uuid4().hex, asyncio.Semaphore(0), asyncio.Event()
    environ = {"PATH": os.environ["PATH"], INSTANCE: instance, PART: "part"}
    part = Part("part", tmp_path / "part.log")

    async def may_start() -> None:
        asked.release()
        await may.wait()

    async def check() -> None:
        pass

    with children() as own:
        roll = Roll(instance)
        try:
            program = Program(part, ["sh", "-c", "exec sleep 600"], environ, tmp_path, check, may_start)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(program.run(own, roll))
                await asked.acquire()
                assert part.pid is None
                assert not part.settled.is_set()
                may.set()
                await part.settled.wait()
                assert part.pid is not None
                running.cancel()
        finally:
            await asyncio.to_thread(end_all, roll, without=os.getpid(), grace_s=0.2)
