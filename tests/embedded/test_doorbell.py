"""The supervisor's socket."""

import asyncio
from pathlib import Path

import pytest

from mesh.embedded.commands import down, status
from mesh.embedded.doorbell import Tell, ask, doorbell
from mesh.embedded.home import Home
from mesh.errors import Code, MeshError


async def echo(op: str, tell: Tell) -> None:
    await tell({"progress": "..."})
    await tell({"op": op})


async def test_lines_come_back_however_long_the_folders_name_is(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    async with doorbell(folder, echo):
        assert (folder / "supervisor.sock").stat().st_mode & 0o777 == 0o600
        rows = await asyncio.to_thread(lambda: list(ask(folder, "status", 30)))
    assert rows == [{"progress": "..."}, {"op": "status"}]
    assert list(folder.iterdir()) == []


async def test_what_is_no_question_does_no_harm(tmp_path: Path) -> None:
    async with doorbell(tmp_path, echo):
        for line in (b"", b"\n", b"[]\n", b"{\n", b"x" * 100_000 + b"\n"):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "supervisor.sock"))
            writer.write(line)
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
        assert len(await asyncio.to_thread(lambda: list(ask(tmp_path, "x", 30)))) == 2


async def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "supervisor.sock").write_text("")
    async with doorbell(tmp_path, echo):
        assert len(await asyncio.to_thread(lambda: list(ask(tmp_path, "x", 30)))) == 2


def test_nothing_runs_here(tmp_path: Path) -> None:
    made = Home(tmp_path / "made")
    made.make()
    for folder in (tmp_path / "missing", made.path):
        for command in (status, lambda home: down(home, lambda _: None)):
            with pytest.raises(MeshError) as caught:
                command(folder)
            assert caught.value.code is Code.NOT_RUNNING
            assert str(folder) in caught.value.message
    assert not (tmp_path / "missing").exists()
