"""Processes as Linux shows them, and ending exactly those that belong to one mesh.

A pid alone names nothing: it is used again. A process is (pid, start time). Whether it is ours is told by

- its initial environment: MESH_INSTANCE, and MESH_PART for the part that it belongs to;
- its session: each part leads one of its own, and children stay in it. Ray's agents overwrite their environment with
  the title that they set, and an orphan loses its parent; the session outlives both;
- the record that a supervisor keeps while it lives.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mesh.embedded.home import read_json, write_private

INSTANCE = "MESH_INSTANCE"
PART = "MESH_PART"
_PROC = Path("/proc")
_ZOMBIE = "Z"
_VARIABLE = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*=")
"""How an environment begins. A long title is written over its beginning, and may leave the rest as it was."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process. `started` is in clock ticks since boot: with the pid it is unique until the next boot."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What `/proc/PID/stat` says of one."""

    process: Process
    name: str
    parent: int
    session: int
    zombie: bool


@dataclass(frozen=True, slots=True)
class Owned:
    """A process of ours and the part it belongs to."""

    process: Process
    part: str
    session: int


def look(pid: int) -> Seen | None:
    """One process, or None where there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The name is in brackets and may hold anything, brackets too.
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return Seen(Process(pid, int(fields[19])), name, int(fields[1]), int(fields[3]), fields[0] == _ZOMBIE)


def look_around() -> dict[int, Seen]:
    """All processes, by pid."""
    seen = (look(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdecimal())
    return {one.process.pid: one for one in seen if one is not None}


def marks_of(pid: int) -> Mapping[str, str] | None:
    """The mesh's marks in a process's initial environment; None where it overwrote that, as Ray's agents do."""
    try:
        raw = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    if not _VARIABLE.match(raw):
        return None
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0"))
    wanted = (INSTANCE.encode(), PART.encode())
    return {name.decode(): value.decode("utf-8", "replace") for name, _, value in pairs if name in wanted}


def boot_id() -> str:
    """Changes with every boot: records of an older one are void."""
    return (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()


class Roll:
    """Which processes of this host belong to one mesh. Filled by `refresh`; remembers what it saw.

    Args:
        instance: The mesh's mark.
        known: What an earlier supervisor recorded.
    """

    def __init__(self, instance: str, known: Iterable[Owned] = ()) -> None:
        self._instance = instance
        self._owned = {one.process: one for one in known}
        self._strangers: set[Process] = set()
        self._sessions = {one.session: one.part for one in self._owned.values()}

    def lead(self, process: Process, part: str) -> None:
        """Notes a part's first process, which leads a session of its own."""
        self._owned[process] = Owned(process, part, process.pid)
        self._sessions[process.pid] = part

    def refresh(self, *, without: int) -> dict[Process, Owned]:
        """Looks at the host; returns the living ones, without the process `without` (the one that asks)."""
        around = look_around()
        living = {one.process for one in around.values() if not one.zombie}
        owned: dict[Process, Owned] = {}
        strangers: set[Process] = set()
        for pid in sorted(around):
            seen = around[pid]
            if seen.process not in living or pid == without:
                continue
            if seen.process in self._strangers and seen.session not in self._sessions:
                strangers.add(seen.process)
                continue
            part = self._part_of(seen)
            if part is None:
                strangers.add(seen.process)
            else:
                owned[seen.process] = Owned(seen.process, part, seen.session)
        self._owned, self._strangers = owned, strangers
        self._sessions = {one.session: one.part for one in owned.values() if one.session != _own_session()}
        return owned

    def _part_of(self, seen: Seen) -> str | None:
        known = self._owned.get(seen.process)
        if known is not None:
            return known.part
        marks = marks_of(seen.process.pid)
        if marks is not None:
            return marks.get(PART, "?") if marks.get(INSTANCE) == self._instance else None
        # A session's number is not used again while a process is in it, so one that was ours still is.
        return self._sessions.get(seen.session)


def _own_session() -> int:
    return os.getsid(0)


def end(processes: Sequence[Process], *, grace_s: float) -> list[Process]:
    """Asks processes to end, then makes them; blocks at most `grace_s` and a little.

    Returns:
        Those that were there.
    """
    handles: dict[int, Process] = {}
    try:
        for process in processes:
            handle = _open(process)
            if handle is not None:
                handles[handle] = process
        there = list(handles.values())
        _signal(handles, signal.SIGTERM)
        left = _wait(handles, grace_s)
        _signal(left, signal.SIGKILL)
        _wait(left, 5.0)
    finally:
        for handle in handles:
            os.close(handle)
    return there


def is_living(process: Process) -> bool:
    """Whether it still runs; a zombie does not."""
    seen = look(process.pid)
    return seen is not None and seen.process == process and not seen.zombie


def open_handle(process: Process) -> int | None:
    """A pidfd of exactly this process: readable once it has ended. The caller closes it. None: it has ended."""
    return _open(process)


def write_record(path: Path, instance: str, owned: Iterable[Owned]) -> None:
    """Writes down what is running, for whoever cleans up after this supervisor."""
    rows = [
        {"pid": one.process.pid, "started": one.process.started, "part": one.part, "session": one.session}
        for one in owned
    ]
    write_private(path, json.dumps({"boot": boot_id(), "instance": instance, "processes": rows}))


def read_record(path: Path, instance: str) -> list[Owned]:
    """What `write_record` wrote, if it was for this mark and in this boot.

    Rows whose pid has another start time do no harm.
    """
    record = read_json(path)
    if (record.get("boot"), record.get("instance")) != (boot_id(), instance):
        return []
    try:
        rows = cast("list[dict[str, object]]", record["processes"])
        return [
            Owned(Process(int(str(row["pid"])), int(str(row["started"]))), str(row["part"]), int(str(row["session"])))
            for row in rows
        ]
    except (KeyError, ValueError, TypeError):
        return []


def end_all(roll: Roll, *, without: int, grace_s: float, spared: str = "") -> list[Owned]:
    """Ends every process of a mesh, also those that are born meanwhile; blocks.

    Args:
        roll: Knows them.
        without: The pid of the one that asks.
        grace_s: How long they may take.
        spared: A part that is left alone.

    Returns:
        All that were ended.
    """
    ended: dict[Process, Owned] = {}
    for round_ in range(5):
        owned = {one: row for one, row in roll.refresh(without=without).items() if row.part != spared}
        if not owned:
            break
        ended |= owned
        end(list(owned), grace_s=grace_s if round_ == 0 else 0.2)
    return list(ended.values())


def _open(process: Process) -> int | None:
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return None
    # The handle now holds whoever has this pid: look whether it is the one that is meant.
    if is_living(process):
        return handle
    os.close(handle)
    return None


def _signal(handles: Iterable[int], number: signal.Signals) -> None:
    for handle in handles:
        try:
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            continue


def _wait(handles: Mapping[int, Process], limit_s: float) -> dict[int, Process]:
    """Those that have not ended within the time."""
    left = dict(handles)
    poll = select.poll()
    for handle in left:
        poll.register(handle, select.POLLIN)
    deadline_s = time.monotonic() + limit_s
    while left and (remaining_s := deadline_s - time.monotonic()) > 0:
        for handle, _ in poll.poll(remaining_s * 1000):
            poll.unregister(handle)
            left.pop(handle, None)
    return left
