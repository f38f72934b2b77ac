"""The supervisor's program, started by `mesh.embedded.up` and by nobody else.

Its standard output is a pipe to whoever asked for the start: JSON lines of progress, then `{"ready": ...}` or
`{"error": ...}`. Nobody need read it. Its standard input stays open as long as the mesh shall run, or brings `DETACH`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from mesh.embedded.addresses import Addresses, addresses_of, taken
from mesh.embedded.authority import make_pki
from mesh.embedded.commands import DETACH, SUPERVISOR
from mesh.embedded.configuration import catalogue, embedded_settings, places, write_settings
from mesh.embedded.control_epoch import control_epoch
from mesh.embedded.front import haproxy_binary
from mesh.embedded.home import Home, cache_folder
from mesh.embedded.policy_keys import check_policy_keys, policy_keys
from mesh.embedded.processes import Roll, end_all, read_record
from mesh.embedded.ray_cluster import make_temp
from mesh.embedded.status import Row
from mesh.embedded.supervisor import Plan, supervise
from mesh.errors import Code, MeshError
from mesh.tls import prepare_process
from mesh.types import RegionId

_CLEAN_UP_GRACE_S = 3.0


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs a mesh until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m mesh.embedded")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--regions", required=True)
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--domain")
    parser.add_argument("--etcd", type=Path, required=True)
    options = parser.parse_args(argv)
    # A core dump would hold what is in memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    home = Home(options.home)
    regions = [RegionId(region) for region in str(options.regions).split(",")]
    try:
        with home.locked() as mine:
            if mine:
                return _run(home, regions, options, environ)
        _fail(MeshError(Code.ALREADY_RUNNING, hint="It is just starting or stopping; ask 'mesh status'."))
    except* MeshError as group:
        _fail(_first(group))
    return 1


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _fail(error: MeshError) -> None:
    _say({"error": {"code": error.code, "hint": error.hint}})


def _run(home: Home, regions: Sequence[RegionId], options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    known = catalogue()
    cache = cache_folder(environ)
    addresses = addresses_of(home, cache, places(known))
    roll = Roll(addresses.instance, read_record(home.records, addresses.instance))
    _clean_up(roll)
    _check_free(addresses, regions)
    make_temp(addresses.temp)
    domain: str | None = options.domain
    haproxy = None if domain is None else haproxy_binary()
    if domain is not None and haproxy is None:
        hint = "Tenants' names need a front, and there is no HAProxy: run scripts/setup, or install haproxy."
        raise MeshError(Code.START_FAILED, hint=hint)
    check_policy_keys(home, regions)
    _make_pki(home, addresses, regions, domain)
    gpus = gpus_here() if options.accelerator == "cuda" else 0
    if options.accelerator == "cuda" and not gpus:
        raise MeshError(Code.START_FAILED, hint="There is no NVIDIA GPU here: leave '--accelerator cuda' out.")
    settings = embedded_settings(
        known,
        regions,
        home,
        addresses,
        cache / "models",
        options.accelerator,
        policy_keys(home.pki, regions),
        control_epoch(home),
        domain,
    )
    write_settings(settings, home.config)
    plan = Plan(
        home=home,
        addresses=addresses,
        settings=settings,
        environ=environ,
        etcd=options.etcd,
        haproxy=haproxy,
        gpus=gpus,
    )
    asyncio.run(_until_stopped(plan, roll))
    return 0


def _make_pki(home: Home, addresses: Addresses, regions: Sequence[RegionId], domain: str | None) -> None:
    hosts: dict[RegionId, list[str]] = {}
    zones: dict[RegionId, str] = {}
    for region in regions:
        place = addresses.of(region)
        hosts[region] = [place.host]
        if domain is not None and place.front is not None:
            hosts[region].append(place.front.http.host)
            zones[region] = f"{region}.{domain}"
    make_pki(home.pki, hosts, [addresses.etcd.host], zones=zones)


async def _until_stopped(plan: Plan, roll: Roll) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Whoever holds the other end wants the mesh as long as it lives itself, until it says otherwise.
    loop.add_reader(sys.stdin.fileno(), _read_lifeline, loop, stopping)
    await supervise(plan, roll, _say, stopping)


def _read_lifeline(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    said = os.read(sys.stdin.fileno(), 1)
    loop.remove_reader(sys.stdin.fileno())
    if said != DETACH:
        stopping.set()


def _clean_up(roll: Roll) -> None:
    """Ends what a supervisor that was killed left behind."""
    # Another supervisor that lives although we hold the lock has just found it taken: it leaves by itself, and says so.
    left = end_all(roll, without=os.getpid(), grace_s=_CLEAN_UP_GRACE_S, spared=SUPERVISOR)
    if left:
        _say({"progress": f"ended {len(left)} processes that an earlier start of this mesh left behind"})


def _check_free(addresses: Addresses, regions: Sequence[RegionId]) -> None:
    busy = taken(addresses.listeners(regions))
    if busy:
        raise MeshError(
            Code.START_FAILED,
            hint=f"Another program listens on {', '.join(map(str, busy))}. End it, or use another MESH_HOME: "
            "each picks addresses of its own.",
        )


def gpus_here() -> int:
    """The machine's NVIDIA GPUs."""
    return sum(1 for device in Path("/dev").glob("nvidia*") if device.name.removeprefix("nvidia").isdecimal())


def _say(row: Row) -> None:
    """Tells whoever listens, and the log."""
    line = json.dumps(row)
    if "ready" not in row:
        with suppress(OSError):  # the disk is full: no reason to end, still less to end half-way
            os.write(sys.stderr.fileno(), f"{line}\n".encode())
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        # Nobody listens any more; what comes next goes nowhere.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process


if __name__ == "__main__":
    own = os.environ  # noqa: TID251 - read once
    prepare_process(own)
    if os.fork():
        os._exit(0)  # the mesh belongs to nobody's job control
    sys.exit(main(sys.argv[1:], dict(own)))
