"""What the command line does with an embedded mesh: start it, end it, ask it. Blocks; knows nothing of terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, cast

from mesh.embedded.addresses import Addresses, addresses_of
from mesh.embedded.configuration import catalogue, chosen, places
from mesh.embedded.doorbell import ask
from mesh.embedded.environment import part_environment
from mesh.embedded.etcd_binary import find_etcd
from mesh.embedded.home import Home, cache_folder, starting
from mesh.embedded.processes import Roll, end, end_all, read_record
from mesh.errors import Code, MeshError
from mesh.tls import GRPC_SUITES, prepare_process
from mesh.types import RegionId

Progress = Callable[[str], None]
Row = Mapping[str, object]
_STATUS_S = 10.0
_STOP_S = 60.0
_RACE_S = 30.0
_POLL_S = 0.2
_GRACE_S = 5.0
SUPERVISOR = "supervisor"
DETACH = b"d"
"""Written to the supervisor's standard input: it is to live on when that is closed."""


def up(
    home: Path,
    regions: Sequence[str] | None,
    accelerator: str,
    detach: bool,
    progress: Progress,
    *,
    domain: str | None = None,
    ready: Callable[[Row], None] | None = None,
) -> Row:
    """Starts a mesh.

    Args:
        home: Its folder; made if missing.
        regions: Region ids, or None for the three default ones.
        accelerator: `cpu` or `cuda`.
        detach: Return when every region is ready, and leave the mesh running. Else it lives as long as this call: until
            Ctrl-C or SIGTERM, or until somebody ends it.
        progress: Told in words what is being done.
        domain: Under which tenants have names; then each region has a front. None: neither.
        ready: Told the status once, when every region is ready.

    Returns:
        The object of `mesh status`, as of the moment when it was ready. A mesh of the same regions that runs here
        already is left alone; its status is returned as soon as it is ready.

    Raises:
        MeshError: `already_running` with other regions or another domain, `unknown_region`, `invalid_settings`,
            `start_failed`.
    """
    environ = _environ()
    # Refuses SSLKEYLOGFILE before anything is started.
    prepare_process({**environ, GRPC_SUITES[0]: GRPC_SUITES[1]})
    known = catalogue()
    wanted = chosen(known, regions)
    place = Home(home.absolute())
    place.make()
    running = _running(place)
    if running is not None:
        return _join(place, running, wanted, domain, progress, ready)
    addresses = addresses_of(place, cache_folder(environ), places(known))
    etcd = find_etcd(cache_folder(environ), environ, progress)
    with _spawned(place, addresses, wanted, accelerator, domain, etcd, environ) as supervisor:
        status = _attend(supervisor, progress)
        if status is None:  # another supervisor was faster
            return _join(place, _wait_for_hello(place), wanted, domain, progress, ready)
        if ready is not None:
            ready(status)
        if detach:
            supervisor.detach()
        else:
            _stay(supervisor, progress)
        return status


def down(home: Path, progress: Progress) -> Row:
    """Ends a mesh, or what a killed one left behind.

    Returns:
        `{"stopped": [{"name", "pid"}]}`.

    Raises:
        MeshError: `not_running`; `start_failed` where it does not end.
    """
    place = Home(home.absolute())
    if not place.run.is_dir():
        raise _nothing(place)
    progress("stopping")
    stopped: Row | None = None
    with suppress(OSError):
        for row in ask(place.run, "stop", _STOP_S):
            stopped = row if "stopped" in row else stopped
    if stopped is None:
        return _clear(place, progress)
    _wait_for_lock(place)
    return stopped


def status(home: Path) -> Row:
    """The object of `mesh status`, asked now.

    Raises:
        MeshError: `not_running`.
    """
    place = Home(home.absolute())
    try:
        for row in ask(place.run, "status", _STATUS_S):
            return row
    except OSError:
        pass
    raise _nothing(place)


def raise_epoch(home: Path, progress: Progress) -> int:
    """Begins the next control epoch: gateways and admins start anew with it, and this home keeps it.

    Raises:
        MeshError: `not_running`; `start_failed` where it could not be kept.
    """
    place = Home(home.absolute())
    progress("beginning a new control epoch: gateways and admins start anew")
    try:
        for row in ask(place.run, "raise-epoch", _STOP_S):
            if "error" in row:
                raise MeshError(Code.START_FAILED, hint=str(cast("Row", row["error"])["hint"]))
            return int(cast("int", row["epoch"]))
    except OSError:
        pass
    raise _nothing(place)


def _environ() -> dict[str, str]:
    return dict(os.environ)  # noqa: TID251 - read once, for what is started


def _nothing(place: Home) -> MeshError:
    return MeshError(Code.NOT_RUNNING, hint=f"Start one with 'mesh up' (its folder would be {place.path}).")


def _running(place: Home) -> Row | None:
    """What the supervisor of this home says of itself; None where none answers."""
    try:
        for row in ask(place.run, "hello", _STATUS_S):
            return row
    except OSError:
        pass
    return None


def _join(
    place: Home,
    running: Row | None,
    wanted: Sequence[RegionId],
    domain: str | None,
    progress: Progress,
    ready: Callable[[Row], None] | None,
) -> Row:
    """A second start: says that one runs, and waits with it until it is ready."""
    if running is None:
        raise _ended(place)
    regions = cast("list[str]", running["regions"])
    if set(regions) != set(wanted):
        raise MeshError(
            Code.ALREADY_RUNNING,
            hint=f"It runs {', '.join(regions)}. End it with 'mesh down', or use another MESH_HOME.",
        )
    its = running.get("domain")
    if its != domain:
        has = "no domain" if its is None else f"the domain {its}"
        raise MeshError(
            Code.ALREADY_RUNNING, hint=f"It runs with {has}. End it with 'mesh down', or use another MESH_HOME."
        )
    if running["state"] == "stopping":
        raise MeshError(Code.ALREADY_RUNNING, hint="It is stopping; start again when it has ended.")
    progress(f"a mesh with these regions runs here already (pid {running['pid']})")
    while running is not None and running["state"] == "starting":
        time.sleep(_POLL_S)
        running = _running(place)
    if running is None or running["state"] == "stopping":
        raise _ended(place)
    now = status(place.path)
    if ready is not None:
        ready(now)
    return now


def _wait_for_hello(place: Home) -> Row | None:
    """What another supervisor, that has the lock, says once it listens; None where it ended before."""
    deadline_s = time.monotonic() + _RACE_S
    while time.monotonic() < deadline_s:
        running = _running(place)
        if running is not None:
            return running
        with place.locked() as mine:
            if mine:
                return None
        time.sleep(_POLL_S)
    return None


def _ended(place: Home) -> MeshError:
    return MeshError(
        Code.START_FAILED, hint=f"The mesh that was starting here was ended; see {place.log_of(SUPERVISOR)}."
    )


@contextmanager
def _spawned(
    place: Home,
    addresses: Addresses,
    regions: Sequence[RegionId],
    accelerator: str,
    domain: str | None,
    etcd: Path,
    environ: Mapping[str, str],
) -> Generator[_Supervisor]:
    argv = [sys.executable, "-m", "mesh.embedded", "--home", str(place.path), "--regions", ",".join(regions)]
    argv += ["--accelerator", accelerator, "--etcd", str(etcd)]
    argv += [] if domain is None else ["--domain", domain]
    log = place.log_of(SUPERVISOR)
    with starting(), os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as words:
        popen = subprocess.Popen(  # noqa: S603 - our own program
            argv,
            env=part_environment(environ, addresses.instance, SUPERVISOR, threads=1),
            cwd=place.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            start_new_session=True,
        )
    supervisor = _Supervisor(popen, log)
    try:
        yield supervisor
    finally:
        supervisor.let_go()


@dataclass(slots=True)
class _Supervisor:
    """The supervisor as its starter sees it: what it says, and the lifeline that keeps it."""

    popen: subprocess.Popen[bytes]
    log: Path

    def says(self) -> Iterator[Row]:
        """Its lines until it ends."""
        for line in cast("IO[bytes]", self.popen.stdout):
            with suppress(ValueError):
                yield cast("Row", json.loads(line))

    def detach(self) -> None:
        """Lets the mesh live on without its starter."""
        with suppress(OSError):
            cast("IO[bytes]", self.popen.stdin).write(DETACH)
            cast("IO[bytes]", self.popen.stdin).flush()

    def let_go(self) -> None:
        """Closes both pipes: a mesh that is not detached ends by that."""
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()
        self.popen.wait()  # the first process only, which left at once


def _attend(supervisor: _Supervisor, progress: Progress) -> Row | None:
    """Shows progress until the mesh is ready; None where another supervisor holds the home."""
    with _as_interrupt():
        try:
            for row in supervisor.says():
                if "ready" in row:
                    return cast("Row", row["ready"])
                if "error" in row:
                    error = cast("Row", row["error"])
                    if error["code"] == Code.ALREADY_RUNNING:
                        return None
                    raise MeshError(Code(str(error["code"])), hint=str(error["hint"]))
                progress(str(row.get("progress")))
        except KeyboardInterrupt:
            _stop(supervisor, progress)
            raise
    raise MeshError(Code.START_FAILED, hint=f"The supervisor ended; see {supervisor.log}.")


def _stay(supervisor: _Supervisor, progress: Progress) -> None:
    """Stays with an attached mesh until it ends, or ends it at Ctrl-C."""
    with _as_interrupt():
        try:
            for row in supervisor.says():
                progress(str(row.get("progress") or row))
        except KeyboardInterrupt:
            _stop(supervisor, progress)


def _stop(supervisor: _Supervisor, progress: Progress) -> None:
    """Ends a mesh that is not detached, and shows how."""
    cast("IO[bytes]", supervisor.popen.stdin).close()
    for row in supervisor.says():
        progress(str(row.get("progress") or row))


@contextmanager
def _as_interrupt() -> Generator[None]:
    """Lets SIGTERM end a foreground mesh as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _clear(place: Home, progress: Progress) -> Row:
    """Ends what is there although no supervisor answers: it was killed, or it hangs."""
    if not place.addresses.exists():
        raise _nothing(place)
    addresses = addresses_of(place, cache_folder(_environ()), ())
    roll = Roll(addresses.instance, read_record(place.records, addresses.instance))
    owned = roll.refresh(without=os.getpid())
    # The supervisor first: it would start again what it sees end.
    end([one.process for one in owned.values() if one.part == SUPERVISOR], grace_s=_STOP_S)
    left = end_all(roll, without=os.getpid(), grace_s=_GRACE_S)
    ended = {one.process: one for one in [*owned.values(), *left]}
    if not ended:
        raise _nothing(place)
    progress("ended what a mesh that was killed had left behind")
    place.records.unlink(missing_ok=True)
    rows = sorted(ended.values(), key=lambda one: one.part)
    return {"stopped": [{"name": one.part, "pid": one.process.pid} for one in rows]}


def _wait_for_lock(place: Home) -> None:
    """Until the supervisor has really gone, so that a start right after finds the home free."""
    deadline_s = time.monotonic() + _STOP_S
    while time.monotonic() < deadline_s:
        with place.locked() as mine:
            if mine:
                return
        time.sleep(_POLL_S)
    raise MeshError(Code.START_FAILED, hint=f"The supervisor does not end; see {place.log_of(SUPERVISOR)}.")
