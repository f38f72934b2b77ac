"""The reading side of `bench changes`, a process of its own: what a gateway keeps of a shard that others write to.

It has the gateway's own feed, grant, authority, acknowledgements and running calls, on the real store. On `begin` it
starts to count, on `end` it tells what it counted, on `verify` how long one record takes to verify; one line of JSON
each. Everything it tells is of one process, so its CPU time is that of these parts, and of the looking on, which a run
without changes shows.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trust_lab import HOMES, trust_in

from mesh.control import layout
from mesh.control.etcd import EtcdStore, open_store
from mesh.control.feed import PolicyFeed
from mesh.control.grants import Membership
from mesh.control.overdue import Overdue
from mesh.control.records import decode_tenant
from mesh.control.store import Range
from mesh.errors import MeshError
from mesh.gateway.ongoing import CutError
from mesh.gateway.running import Running
from mesh.policy.authority import Authority
from mesh.policy.bundle import PolicyBook
from mesh.policy.shards import Shard
from mesh.policy.shrink import rights_of
from mesh.ports import Instant
from mesh.runtime import SystemClock, SystemEntropy, TaskGroupTasks
from mesh.transport.handouts import HandOuts
from mesh.types import GatewayId, Here, Jurisdiction, KeyId, RegionId, Role, TenantId

LOOK_S = 0.02
"""Between two looks at what authority is left."""
HEAD_S = 0.1
"""Between two questions to the store where the shard is."""
PROBE_S = 0.005


@dataclass(frozen=True)
class Config:
    """What the reader is told: `others` are the tenants whose authority is watched, with `calls` calls of each."""

    pki: str
    endpoints: Sequence[str]
    region: str
    home: str
    index: int
    others: Sequence[str]
    calls: int


@dataclass
class Tally:
    """What was counted between `begin` and `end`."""

    looks: int = 0
    without: int = 0
    home_left_s: list[float] = field(default_factory=list)
    foreign_left_s: list[float] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    caught_up_ms: list[float] = field(default_factory=list)
    loop_late_ms: list[float] = field(default_factory=list)
    cut: int = 0


class Reader:
    """One gateway's parts, as `mesh.gateway.program` puts them together, and what is counted of them."""

    def __init__(self, config: Config, store: EtcdStore, aside: EtcdStore) -> None:
        region, clock = RegionId(config.region), SystemClock()
        self.shard = Shard(RegionId(config.home), config.index)
        self.clock = clock
        self.tally = Tally()
        self.book = PolicyBook()
        self.authority = Authority()
        self._others = [TenantId(tenant) for tenant in config.others]
        self._calls = config.calls
        self._places = (HOMES[RegionId(config.home)], HOMES[region])
        self._aside = aside
        self._ahead: list[tuple[int, float]] = []
        here = Here(region=region, jurisdiction=HOMES[region])
        self.running = Running(
            here=here, book=self.book, authority=self.authority, replicas=HandOuts(clock), clock=clock
        )
        self.book.watcher = self.running
        self.membership = Membership(
            store=store,
            region=region,
            gateway=GatewayId("gw1"),
            authority=self.authority,
            draining=self.running.draining,
            clock=clock,
            tasks=TaskGroupTasks,
            entropy=SystemEntropy(),
        )
        self.running.changed = self.membership.changed
        self.feed = PolicyFeed(store, self.book, clock, trust_in(), listener=self)
        self.overdue = Overdue(self.feed, clock)
        self.membership.answered = self.overdue.answered

    def applied(self, shard: Shard, number: int) -> None:
        """The feed's listener: the membership, and who looks on."""
        self.membership.applied(shard, number)
        if shard == self.shard:
            now_s = time.perf_counter()
            self.tally.caught_up_ms += [(now_s - at_s) * 1000 for head, at_s in self._ahead if head <= number]
            self._ahead = [(head, at_s) for head, at_s in self._ahead if head > number]

    def went_back(self) -> None:
        """The feed's listener."""
        self.membership.went_back()

    async def run(self) -> None:
        """Serves the two commands until the input ends."""
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        async with asyncio.TaskGroup() as tasks:
            parts = [
                self.feed.run(),
                self.overdue.run(),
                self.membership.run(),
                self.running.run(),
                self._ask(),
                self._look(),
                self._probe(),
            ]
            going = [tasks.create_task(part) for part in parts]
            while not all(self._least_s(place) > 0 for place in self._places):
                await asyncio.sleep(LOOK_S)
            calls = [tasks.create_task(self._call(tenant)) for tenant in self._others for _ in range(self._calls)]
            _say({"ready": True})
            began = self._counts()
            while line := await commands.readline():
                if line == b"begin\n":
                    self.tally, began = Tally(), self._counts()
                    _say({})
                elif line == b"end\n":
                    _say(self._told(began))
                else:
                    _say({"verify_ms": await self._verify_ms()})
            for task in going + calls:
                task.cancel()

    def _least_s(self, place: Jurisdiction, now: Instant | None = None) -> float:
        """What is left to the tenant of the others that has least."""
        now = now or self.clock.instant()
        policies = [self.book.tenant(tenant) for tenant in self._others]
        return min(0.0 if policy is None else self.authority.left_s(policy, place, now) for policy in policies)

    async def _look(self) -> None:
        home, foreign = self._places
        while True:
            now = self.clock.instant()
            home_s, foreign_s = self._least_s(home, now), self._least_s(foreign, now)
            self.tally.looks += 1
            self.tally.without += home_s <= 0 or foreign_s <= 0
            self.tally.home_left_s.append(home_s)
            self.tally.foreign_left_s.append(foreign_s)
            await asyncio.sleep(LOOK_S)

    async def _ask(self) -> None:
        """Where the shard is, linearizably, against what has been applied."""
        while True:
            answer = await self._aside.range(Range(layout.head_key(self.shard)), timeout_s=30)
            head, applied = answer.items[0].version if answer.items else 0, self.authority.number(self.shard)
            self.tally.behind.append(max(0, head - applied))
            if head > applied:
                self._ahead.append((head, time.perf_counter()))
            await asyncio.sleep(HEAD_S)

    async def _probe(self) -> None:
        """How late the loop is for whoever waits on it, as every call does."""
        while True:
            due_s = time.perf_counter() + PROBE_S
            await asyncio.sleep(PROBE_S)
            self.tally.loop_late_ms.append((time.perf_counter() - due_s) * 1000)

    async def _call(self, tenant: TenantId) -> None:
        """A call that runs for as long as it may, as one that streams: it asks before each piece."""
        while True:
            policy = self.book.tenant(tenant)
            assert policy is not None
            try:
                with self.running.enter(tenant=tenant, key_id=KeyId("k" * 8), uses=rights_of(policy)) as call:
                    while True:
                        call.check()
                        await asyncio.sleep(0.05)
            except (CutError, MeshError):
                self.tally.cut += 1
                await asyncio.sleep(0.05)

    def _counts(self) -> dict[str, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "at_s": time.perf_counter(),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "applied": self.authority.number(self.shard),
            "gaps": self.feed.gaps,
            "overdue": self.overdue.reads,
            "invalid": self.feed.invalid.total(),
            "grants": self.membership.renewals,
            "acknowledged": self.membership._acks.written,
            "grants_failed": self.membership.failures,
        }

    def _told(self, began: dict[str, float]) -> dict[str, float | None]:
        passed = {name: value - began[name] for name, value in self._counts().items()}
        tally = self.tally
        return {
            "seconds": passed.pop("at_s"),
            **passed,
            "looks": tally.looks,
            "without_authority": tally.without,
            "calls_cut": tally.cut,
            "home_left_s_min": min(tally.home_left_s),
            "foreign_left_s_min": min(tally.foreign_left_s),
            "foreign_left_s_median": statistics.median(tally.foreign_left_s),
            "behind_median": statistics.median(tally.behind),
            "behind_max": max(tally.behind),
            "caught_up_ms_median": statistics.median(tally.caught_up_ms) if tally.caught_up_ms else None,
            "caught_up_ms_max": max(tally.caught_up_ms, default=None),
            "loop_late_ms_median": statistics.median(tally.loop_late_ms),
            "loop_late_ms_p99": _percentile(tally.loop_late_ms, 0.99),
            "loop_late_ms_max": max(tally.loop_late_ms),
        }

    async def _verify_ms(self) -> float:
        """How long it takes to decode and verify one record, in the middle of many."""
        trust, tenant = trust_in(), self._others[0]
        key = layout.policy_key(self.shard.home, tenant)
        value = (await self._aside.range(Range(key), timeout_s=30)).items[0].value
        at = layout.parse(key)
        assert isinstance(at, layout.PolicyKey)
        taken: list[float] = []
        for _ in range(500):
            began_s = time.perf_counter()
            decode_tenant(at, value, trust)
            taken.append((time.perf_counter() - began_s) * 1000)
        return statistics.median(taken)


def _percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


async def _main(config: Config) -> None:
    region, pki = RegionId(config.region), Path(config.pki)
    clock = SystemClock()
    async with (
        open_store(config.endpoints, pki, region, Role.GATEWAY, clock) as store,
        open_store(config.endpoints, pki, region, Role.GATEWAY, clock) as aside,
    ):
        await Reader(config, store, aside).run()


def command(config: Config) -> list[str]:
    """Starts a reader."""
    return [sys.executable, "-m", "bench.reader", json.dumps(asdict(config))]


if __name__ == "__main__":
    asyncio.run(_main(Config(**json.loads(sys.argv[1]))))
