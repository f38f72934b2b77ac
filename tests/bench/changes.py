"""What others lose while one shard is written to without a pause: a home's admin, an etcd, and a gateway abroad.

    bench changes [--rates 0,10,50,100,200,max] [--seconds S] [--runs N] [--json]

The admin makes changes of its tenants through `Changes`, each signed, in the ledger, and committed; the etcd and the
ledger are real. The gateway is a process of its own (`reader.py`), with as many tenants of the same shard that nobody
changes, each with calls that run. Told is what is left of *their* authority, how far the gateway is behind the shard,
and what a change costs it. Each rate is measured in each run; the table has the medians of the runs, and of what may
never happen the sums. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.reader import Config, command
from etcd_lab import Lab, running_etcd
from trust_lab import signer_of, trust_in

from mesh.control.changes import Changes
from mesh.control.records import tenant_id
from mesh.errors import MeshError
from mesh.ledger import open_ledger
from mesh.policy.shards import Shard, shard_of
from mesh.runtime import SystemEntropy, TaskGroupTasks
from mesh.telemetry import Log
from mesh.types import Jurisdiction, RegionId, Role, TenantId, Transfer

HOME, ABROAD = RegionId("vn-1"), RegionId("sg-1")
SHARD = Shard(HOME, 0)
WRITTEN = 16
"""Tenants that are changed, each by one change at a time."""
OTHERS = 16
CALLS = 4
"""Running calls of each of the others."""
BOTH = frozenset({Jurisdiction("VN"), Jurisdiction("SG")})
SUMS = ("looks", "without_authority", "calls_cut", "gaps", "overdue", "invalid", "grants_failed", "failed")
LEAST = ("home_left_s_min", "foreign_left_s_min")
Told = dict[str, Any]
MOST = ("behind_max", "caught_up_ms_max", "loop_late_ms_max")


@dataclass
class Writer:
    """A home's admin that changes its tenants, each in turn back and forth."""

    changes: Changes
    tenants: Sequence[TenantId]
    made: int = 0
    failed: int = 0

    async def write(self, per_s: float | None, seconds: float) -> None:
        """Makes changes for so long: so many a second, evenly, or as many as there can be."""
        began_s = perf_counter()
        slots = count()

        async def work(tenant: TenantId) -> None:
            transfer = Transfer.NEVER
            while True:
                due_s = began_s if per_s is None else began_s + next(slots) / per_s
                if max(due_s, perf_counter()) >= began_s + seconds:
                    return
                await asyncio.sleep(max(0.0, due_s - perf_counter()))
                try:
                    await self.changes.set_transfer(tenant, transfer)
                except MeshError:
                    self.failed += 1
                    continue
                self.made += 1
                transfer = Transfer.WITHIN_ALLOWED if transfer is Transfer.NEVER else Transfer.NEVER

        async with asyncio.TaskGroup() as tasks:
            for tenant in self.tenants:
                tasks.create_task(work(tenant))


def nonces(shard: Shard) -> Iterator[bytes]:
    """Of tenants that all are in one shard."""
    for number in count():
        nonce = number.to_bytes(16, "big")
        if shard_of(shard.home, tenant_id(shard.home, nonce)) == shard:
            yield nonce


@asynccontextmanager
async def admin_of(lab: Lab, folder: Path) -> AsyncGenerator[Changes]:
    """The home's admin, with a ledger on this machine's disk."""
    log, store = Log("admin", HOME, sys.stderr), await lab.store(HOME, Role.ADMIN)
    url = f"sqlite:///{folder / 'ledger.db'}"
    async with open_ledger(url, HOME, clock=lab.clock, tasks=TaskGroupTasks, log=log) as ledger:
        yield Changes(store, HOME, lab.clock, SystemEntropy(), signer_of(HOME), trust_in(), ledger)


class Gateway:
    """The reading process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, what: str) -> Told:
        """One command and its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(what.encode() + b"\n")
        return await self.answer()

    async def answer(self) -> Told:
        """The next line."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit("The reading process has ended.")
        return json.loads(line)


@asynccontextmanager
async def gateway_of(config: Config) -> AsyncGenerator[Gateway]:
    """Starts the reader; returns once it has authority. It is killed at the end."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command(config), stdin=pipe, stdout=pipe, env=dict(os.environ))
    try:
        gateway = Gateway(process)
        await gateway.answer()
        yield gateway
    finally:
        process.kill()
        await process.wait()


async def measure(rates: Sequence[float | None], seconds: float, runs: int) -> list[dict[str, object]]:
    """A row for each rate: None is as many as there can be."""
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as name:
        folder = Path(name)
        async with running_etcd(folder, (HOME, ABROAD)) as lab, admin_of(lab, folder) as changes:
            made = nonces(SHARD)
            tenants = [
                (await changes.create_tenant(next(made), BOTH, Transfer.WITHIN_ALLOWED)).tenant.policy.tenant
                for _ in range(WRITTEN + OTHERS)
            ]
            config = Config(
                pki=str(lab.etcd.pki),
                endpoints=(lab.etcd.endpoint,),
                region=ABROAD,
                home=HOME,
                index=SHARD.index,
                others=tuple(tenants[WRITTEN:]),
                calls=CALLS,
            )
            rows: list[list[Told]] = [[] for _ in rates]
            async with gateway_of(config) as gateway:
                for run in range(runs):
                    for at, per_s in enumerate(rates):
                        writer = Writer(changes, tenants[:WRITTEN])
                        await gateway.ask("begin")
                        if per_s == 0:
                            await asyncio.sleep(seconds)
                        else:
                            await writer.write(per_s, seconds)
                        told = await gateway.ask("end")
                        told |= {"made": writer.made, "failed": writer.failed}
                        rows[at].append(told)
                        said = f"run {run + 1}, {_rate(per_s)}/s: {writer.made / told['seconds']:.0f}/s made"
                        print(f"{said}, least left abroad {told['foreign_left_s_min']:.2f} s", file=sys.stderr)
                verify = await gateway.ask("verify")
    return [
        _row(per_s, found, rows[0] if rates[0] == 0 else [], verify) for per_s, found in zip(rates, rows, strict=True)
    ]


def _row(per_s: float | None, runs: list[Told], idle: list[Told], verify: Told) -> dict[str, object]:
    """One rate's runs as one row."""
    row: dict[str, object] = {"rate": _rate(per_s), "runs": len(runs), **verify}
    for name in runs[0]:
        values = [run[name] for run in runs if run[name] is not None]
        if not values:
            row[name] = None
        elif name in SUMS:
            row[name] = sum(values)
        elif name in LEAST or name in MOST:
            row[name] = round(min(values) if name in LEAST else max(values), 3)
        else:
            row[name] = round(statistics.median(values), 3)
    row["made_per_s"] = round(statistics.median(run["made"] / run["seconds"] for run in runs), 1)
    row["cpu"] = round(statistics.median(run["cpu_s"] / run["seconds"] for run in runs), 4)
    changed = sum(run["applied"] for run in runs)
    if changed and idle:
        still = statistics.median(run["cpu_s"] / run["seconds"] for run in idle)
        more_s = sum(run["cpu_s"] - still * run["seconds"] for run in runs)
        row["cpu_ms_per_change"] = round(1000 * more_s / changed, 3)
    return row


def _rate(per_s: float | None) -> str:
    return "max" if per_s is None else f"{per_s:g}"


COLUMNS = (
    ("asked/s", "rate"),
    ("made/s", "made_per_s"),
    ("left abroad, least s", "foreign_left_s_min"),
    ("at home", "home_left_s_min"),
    ("looks", "looks"),
    ("without", "without_authority"),
    ("cut", "calls_cut"),
    ("behind, median", "behind_median"),
    ("most", "behind_max"),
    ("caught up ms, median", "caught_up_ms_median"),
    ("most", "caught_up_ms_max"),
    ("gaps", "gaps"),
    ("overdue", "overdue"),
    ("CPU ms/change", "cpu_ms_per_change"),
    ("core", "cpu"),
    ("loop late ms, median", "loop_late_ms_median"),
    ("p99", "loop_late_ms_p99"),
    ("most", "loop_late_ms_max"),
)


def table(rows: list[dict[str, object]]) -> str:
    """The rows in Markdown."""
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |", "|" + "---:|" * len(COLUMNS)]
    for row in rows:
        cells = ("-" if row.get(name) is None else str(row[name]) for _, name in COLUMNS)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench changes", description="What others lose while a shard is written to.")
    parser.add_argument(
        "--rates", default="0,10,50,100,200,max", help="changes a second; 'max' is as many as there can be"
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="for each rate, in each run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="all that was counted, on standard output")
    given = parser.parse_args()
    rates = [None if one == "max" else float(one) for one in given.rates.split(",")]
    rows = asyncio.run(measure(rates, given.seconds, given.runs))
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        print(table(rows))
        print(f"\nOne record takes {rows[0]['verify_ms']:.3f} ms to decode and verify.")


if __name__ == "__main__":
    main()
