"""The supervisor's Unix socket, `run/supervisor.sock`: one JSON line asks, JSON lines answer.

{"op": "hello"}     {"regions": [...], "state": ..., "pid": ...}    at once
{"op": "status"}    the object of `mesh status`
{"op": "raise-epoch"} {"epoch": n} when every program has the next control epoch's configuration and starts anew
{"op": "stop"}      {"progress": "..."} ..., then {"stopped": [...]} when all has ended
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import cast

from mesh.embedded.home import starting
from mesh.embedded.status import Row

Tell = Callable[[Row], Awaitable[None]]
Answer = Callable[[str, Tell], Awaitable[None]]
"""Answers an operation with one line or more."""
_LINE_BYTES = 65_536


@asynccontextmanager
async def doorbell(folder: Path, answer: Answer) -> AsyncGenerator[None]:
    """Listens in a folder of mode 700; the caller holds the home's lock, so a socket that is there is nobody's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def tell(row: Row) -> None:
            writer.write(json.dumps(row).encode() + b"\n")
            await writer.drain()

        try:
            with suppress(OSError, ValueError):  # hung up, or no line of ours
                question = json.loads(await reader.readline())
                if isinstance(question, dict):
                    await answer(str(cast("Row", question).get("op")), tell)
        finally:
            writer.close()

    with _bound(folder) as listener:
        async with await asyncio.start_unix_server(serve, sock=listener, limit=_LINE_BYTES):
            yield


def ask(folder: Path, op: str, timeout_s: float) -> Iterator[Row]:
    """Asks the supervisor; yields each line of its answer. Blocks.

    Raises:
        OSError: Nobody listens, or nothing comes for `timeout_s`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, _named(folder) as path:
        connection.settimeout(timeout_s)
        connection.connect(path)
        connection.sendall(json.dumps({"op": op}).encode() + b"\n")
        with connection.makefile("rb") as lines:
            for line in lines:
                yield cast("Row", json.loads(line))


@contextmanager
def _bound(folder: Path) -> Generator[socket.socket]:
    with _named(folder) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        with starting():
            Path(path).unlink(missing_ok=True)
            listener.bind(path)
            Path(path).chmod(0o600)
        try:
            yield listener
        finally:
            Path(path).unlink(missing_ok=True)


@contextmanager
def _named(folder: Path) -> Generator[str]:
    """The socket's path, short whatever the folder's is: a socket's path may have 107 bytes."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/supervisor.sock"
    finally:
        os.close(descriptor)
