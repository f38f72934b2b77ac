"""Removals that race with load and faults, and the history of what clients and places saw of them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from border.calls import now_s, wait_until
from border.countries import ABROAD, CHAT, EMBEDDING, Countries, Tenant
from border.namespaces import COUNTRIES, LabError, lab_environ
from border.promise import BUSY, Verdict, judge

from mesh.control.ops import new_op_id
from mesh.runtime import SystemClock, SystemEntropy
from mesh.tls import internal_name
from mesh.types import RegionId, Role
from mesh.v1 import admin_pb2, fleet_pb2

Line = dict[str, Any]
PLACES = {one.jurisdiction: name for name, one in COUNTRIES.items()}
REGIONS = {one.region: one.jurisdiction for one in COUNTRIES.values()}
HOME_MS, FOREIGN_MS = 20_000, 6_000
PIN_LIMIT_S = 150.0
"""A limit against hanging: the longest fault, then W of the home, on a loaded machine."""
WATCH_S = 2.0
"""How long the load tries to get in after a return."""
TOKENS = 6
PAUSE_S, STAYER_PAUSE_S, PARCEL_PAUSE_S = 0.2, 0.7, 0.5
SERVED_PARCEL_PAUSE_S = 3.0
"""What is permitted is taken up, and costs a model's time that clients shall have."""
SENDER = "vn"
"""The country whose gateway's certificate sends parcels on without asking."""
_AGAIN_S, _LOOK_S = 0.5, 0.5
_TICKS = os.sysconf("SC_CLK_TCK")
_STATES = {
    admin_pb2.MEMBER_STATE_ACKNOWLEDGED: "acked",
    admin_pb2.MEMBER_STATE_LAPSED: "lapsed",
    admin_pb2.MEMBER_STATE_TIMED_OUT: "timed out",
}


@dataclass(frozen=True, slots=True)
class Racer:
    """A tenant that is taken out of a place again and again, while its clients call."""

    tenant: Tenant
    home: str
    removed: str
    stays: tuple[str, ...]


@dataclass(slots=True)
class Pin:
    """One removal, as whoever asked for it saw it: asked again with the same id until it is done."""

    racer: Racer
    op_id: str
    invoked: float
    returned: float | None = None
    outcome: str = "asked"
    waited_ms: int = 0
    revision: int = 0
    members: dict[str, str] = field(default_factory=dict)
    attempts: list[str] = field(default_factory=list)

    def line(self) -> Line:
        """For the history."""
        return {
            "do": "pin",
            "tenant": self.racer.tenant.id,
            "removed": [self.racer.removed],
            "op_id": self.op_id,
            "invoked": self.invoked,
            "returned": self.returned,
            "outcome": self.outcome,
            "revision": self.revision,
            "waited_ms": self.waited_ms,
            "members": self.members,
            "attempts": self.attempts,
        }

    def accounted(self) -> str:
        """How the members were accounted for, in words."""
        counts = Counter(self.members.values())
        return ", ".join(f"{counts[state]} {state}" for state in _STATES.values() if counts[state]) or "nobody"


class Races:
    """Load on all countries, and removals beside it."""

    def __init__(self, countries: Countries, folder: Path, racers: Sequence[Racer], stayer: Tenant) -> None:
        self.countries = countries
        self.racers = racers
        self.stayer = stayer
        self.lines: list[Line] = [{"do": "tenant", "tenant": one.tenant.id, "runs_in": [one.removed]} for one in racers]
        self._calls_file = folder / "calls.jsonl"
        self._calls: list[Line] = []
        self._read_to = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(16)
        self._over = threading.Event()
        self._loads: list[subprocess.Popen[str]] = []
        self._looker = threading.Thread(target=self._look, daemon=True)
        self._pids: dict[str, set[int]] = {}
        self._began_wall_ms = 0
        self._out: dict[str, Racer] = {}
        self._well = False

    # The load.

    def start(self) -> None:
        """Clients begin to call, and gateways that ask nobody begin to send on."""
        self._began_wall_ms = int(time.time() * 1000)
        self._calls_file.touch()
        pki = self.countries.home.pki
        self._start("pub", {"ca": str(self.countries.doors_ca), "lanes": self._lanes()})
        pair = pki / COUNTRIES[SENDER].region / "gateway"
        self._start(SENDER, {"ca": str(pki / "mesh-ca.pem"), "pair": str(pair), "lanes": self._parcels()})
        self._looker.start()

    def _start(self, who: str, asked: Line) -> None:
        network = self.countries.network
        with (network.folder / f"load-{who}.log").open("ab") as words:
            load = subprocess.Popen(
                network.command(who, [sys.executable, "-m", "border.load", str(self._calls_file)]),
                env=lab_environ(),
                stdin=subprocess.PIPE,
                stderr=words,
                text=True,
                start_new_session=True,
            )
        self._loads.append(load)
        assert load.stdin is not None
        load.stdin.write(json.dumps(asked) + "\n")
        load.stdin.flush()

    def close(self) -> None:
        """The clients end."""
        self._over.set()
        for load in self._loads:
            assert load.stdin is not None
            load.stdin.close()
            load.wait(60)
        if self._looker.ident is not None:
            self._looker.join(60)
        self._pool.shutdown()

    def _lanes(self) -> list[Line]:
        def call(tenant: Tenant, country: str, door: str, kind: str, model: str, tokens: int = 1) -> Line:
            one = COUNTRIES[country]
            who = {"tenant": tenant.id, "key": tenant.key, "place": one.jurisdiction, "address": one.public}
            return who | {"door": door, "kind": kind, "model": model, "tokens": tokens}

        lanes: list[Line] = []
        for racer in self.racers:
            # Streams and short calls, by both doors: straight to the place, and by another country that sends them on.
            ways = [(PLACES[racer.removed], CHAT)]
            if racer.removed == "SG":
                ways.append(("jp" if racer.home == "jp" else "vn", ABROAD))
            for country, model in ways:
                doors = [("http", "stream"), ("grpc", "chat"), ("grpc", "stream"), ("http", "chat")]
                calls = [
                    call(racer.tenant, country, door, kind, model, TOKENS if kind == "stream" else 1)
                    for door, kind in (doors if model == CHAT else reversed(doors))
                ]
                lanes.append({"pause_s": PAUSE_S, "calls": calls})
        for country in COUNTRIES:
            calls = [call(self.stayer, country, door, "embed", EMBEDDING) for door in ("http", "grpc")]
            lanes.append({"pause_s": STAYER_PAUSE_S, "calls": calls})
        return lanes

    def _parcels(self) -> list[Line]:
        """What a gateway sends on that was stopped, or cut off, after it had asked whether it may; here it never asks."""
        lanes: list[Line] = []
        for racer in {racer.removed: racer for racer in self.racers}.values():  # one is enough for a place
            there = COUNTRIES[PLACES[racer.removed]]
            asked = admin_pb2.ListKeysRequest(tenant=racer.tenant.id)
            (keys,) = self.countries.admin(racer.home, "ListKeys", asked).parse(admin_pb2.ListKeysResponse)
            call = {"tenant": racer.tenant.id, "key": keys.items[0].key_id, "place": racer.removed, "tokens": 1}
            call |= {"address": there.border, "name": internal_name(Role.GATEWAY, RegionId(there.region))}
            call |= {"door": "peer", "kind": "chat", "model": CHAT}
            lanes.append({"pause_s": PARCEL_PAUSE_S, "served_pause_s": SERVED_PARCEL_PAUSE_S, "calls": [call]})
        return lanes

    def calls(self) -> list[Line]:
        """All calls that have ended."""
        if not self._over.is_set() and any(load.poll() is not None for load in self._loads):
            raise LabError("the load has ended: its words are in load-*.log")
        with self._lock, self._calls_file.open("rb") as file:
            file.seek(self._read_to)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read_to += len(whole)
            self._calls += [json.loads(line) for line in whole.splitlines()]
            return list(self._calls)

    def wait_served(self, tenants: Iterable[str], place: str, since: float, *, deadline_s: float = 240) -> float:
        """Waits until each of these tenants was served from a place by a call that was sent later; tells when the last was.

        That a client had tokens is enough: on a slow machine an answer may take longer than its deadline.
        """
        wanted = set(tenants)

        def served() -> float | None:
            first: dict[str, float] = {}
            for row in self.calls():
                is_client = row["door"] != "peer" and row["tenant"] in wanted
                if is_client and row["tokens"] and row["served_in"] == place and row["sent"] >= since:
                    first[row["tenant"]] = min(row["end"], first.get(row["tenant"], row["end"]))
            return max(first.values()) if first.keys() >= wanted else None

        return wait_until(served, f"{sorted(wanted)} are served in {place}", deadline_s=deadline_s)

    def make_well(self) -> None:
        """Allows what was taken away, and waits until every tenant of the load was served since, wherever it calls."""
        if not self._out and self._well:
            return
        self._well, since = False, now_s()
        for racer in list(self._out.values()):
            self.widen(racer)
        for place in PLACES:
            here = [racer.tenant.id for racer in self.racers if racer.removed == place]
            self.wait_served([*here, self.stayer.id], place, since)
        self._well = True

    # Changes.

    def set_authority(self, tenant: Tenant, home: str) -> None:
        """A short authority at home, so that an outage is felt within a test."""
        request = admin_pb2.SetAuthorityRequest(tenant=tenant.id, home_ms=HOME_MS, foreign_ms=FOREIGN_MS)
        answer = self.countries.admin(home, "SetAuthority", request)
        if answer.code != "OK":
            raise LabError(f"authority was not set: {answer.text}")

    def pin(self, racer: Racer, *, after_s: float = 0.0, limit_s: float = PIN_LIMIT_S) -> Future[Pin]:
        """Takes a tenant out of its place: asks until it is done, with the same id, as an operator would."""
        self._out[racer.tenant.id] = racer
        one = Pin(racer, new_op_id(SystemClock(), SystemEntropy()), now_s() + after_s)
        return self._pool.submit(self._pin, one, after_s, limit_s)

    def _pin(self, one: Pin, after_s: float, limit_s: float) -> Pin:
        self._over.wait(after_s)
        one.invoked = now_s()
        racer, until = one.racer, one.invoked + limit_s
        while one.outcome != "done" and now_s() < until:
            request = admin_pb2.PinRequest(tenant=racer.tenant.id, allowed=racer.stays)
            request.patience.op_id = one.op_id
            answer = self.countries.admin(racer.home, "Pin", request, timeout_s=60)
            at, seen = now_s(), answer.parse(admin_pb2.ShrinkProgress)
            one.attempts.append(f"{answer.code} {answer.details}".strip())
            if seen:
                one.revision = seen[-1].revision
            if answer.code == "OK" and seen and seen[-1].done:
                one.returned, one.outcome, one.waited_ms = at, "done", seen[-1].waited_ms
                last = next((each for each in reversed(seen) if each.members), seen[-1])
                one.members = {
                    f"{each.region} {each.member[:8]}": _STATES.get(each.state, "open") for each in last.members
                }
            elif self._over.wait(_AGAIN_S):
                break
        self.lines.append(one.line())
        return one

    def widen(self, racer: Racer) -> None:
        """Allows its place again."""
        self._well = False
        self.lines.append({"do": "widen", "tenant": racer.tenant.id, "given": [racer.removed], "invoked": now_s()})
        request = admin_pb2.PinRequest(tenant=racer.tenant.id, allowed=[*racer.stays, racer.removed])
        request.patience.op_id = new_op_id(SystemClock(), SystemEntropy())
        wait_until(
            lambda: self.countries.admin(racer.home, "Pin", request, timeout_s=30).code == "OK",
            f"{racer.removed} is allowed again",
            deadline_s=PIN_LIMIT_S,
        )
        self._out.pop(racer.tenant.id, None)

    def watch(self, places: Iterable[str], seconds: float = WATCH_S) -> None:
        """The load goes on trying, and the places are asked what they run."""
        places, until = list(places), now_s() + seconds
        while now_s() < until and not self._over.wait(_AGAIN_S):
            for place in places:
                status = self.countries.status(PLACES[place], timeout_s=1)
                if status is not None:
                    self.lines.append({"do": "runs", "place": place, "at": now_s(), "sequences": sequences(status)})

    # Faults that the history must know of, and looks at how far something is.

    @contextmanager
    def standing_still(self, country: str) -> Generator[None]:
        """A country's gateway does nothing meanwhile."""
        gateway, since = self.countries.parts[f"gateway-{country}-g1"], now_s()
        gateway.stop()
        try:
            yield
        finally:
            gateway.go_on()
            place = COUNTRIES[country].jurisdiction
            self.lines.append({"do": "stopped", "place": place, "from": since, "to": now_s()})

    def upload(self, racer: Racer, country: str, model: str, size_bytes: int) -> None:
        """One large call, which no model can take."""
        body = {"model": model, "messages": [{"role": "user", "content": "word " * (size_bytes // 5)}]}
        with suppress(LabError, OSError):  # its connection may well break
            self.countries.post(country, "/v1/chat/completions", body, racer.tenant.key)

    def runs(self, place: str) -> bool:
        """Whether a place says that a racer's model runs there."""
        status = self.countries.status(PLACES[place])
        return status is not None and sequences(status) > 0

    def waits(self, home: str) -> int:
        """How many changes a home's admin waits for."""
        answer = self.countries.admin(home, "PinStatus", admin_pb2.PinStatusRequest(), timeout_s=5)
        return len(answer.parse(admin_pb2.PinStatusResponse)[0].open) if answer.code == "OK" else 0

    # What the places saw.

    def _look(self) -> None:
        """How busy the processes that run models are."""
        before: dict[tuple[str, int], tuple[float, float]] = {}
        while not self._over.wait(_LOOK_S):
            for place in {racer.removed for racer in self.racers}:
                pids = self._pids.get(place, set())
                if not pids or not all(Path(f"/proc/{pid}").exists() for pid in pids):
                    with suppress(LabError):
                        status = self.countries.status(PLACES[place])
                        self._pids[place] = pids = ready(status) if status is not None else set()
                for pid in pids:
                    at, used = now_s(), _cpu_s(pid)
                    if used is None:
                        continue
                    since = before.get((place, pid))
                    before[place, pid] = at, used
                    if since is not None:
                        share = (used - since[1]) / (at - since[0])
                        self.lines.append(
                            {"do": "busy", "place": place, "from": since[0], "to": at, "share": round(share, 3)}
                        )

    def _records(self) -> list[Line]:
        """What the gateways wrote into their ledgers."""
        offset, found = time.time() - now_s(), list[Line]()
        tenants = {racer.tenant.id for racer in self.racers}
        for region, place in REGIONS.items():
            file = self.countries.home.ledger / f"{region}.db"
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as ledger:
                rows = ledger.execute(
                    "SELECT tenant, at_ms, duration_ms, door, code, prompt_tokens + completion_tokens FROM usage "
                    "WHERE at_ms >= ?",
                    (self._began_wall_ms,),
                ).fetchall()
            for tenant, at_ms, duration_ms, door, code, tokens in rows:
                if tenant in tenants:
                    ended = at_ms / 1000 - offset
                    row = {"do": "record", "tenant": tenant, "place": place, "door": door, "code": code}
                    found.append(row | {"began": ended - duration_ms / 1000, "ended": ended, "tokens": tokens})
        return found

    def wait_code(self, tenant: str, place: str, code: str, since: float, *, deadline_s: float = 120) -> None:
        """Waits until a call that was sent later has ended so."""
        wait_until(
            lambda: any(
                row["tenant"] == tenant and row["place"] == place and row["code"] == code and row["sent"] >= since
                for row in self.calls()
            ),
            f"{code} in {place}",
            deadline_s=deadline_s,
        )

    def while_permitted(self) -> dict[str, int]:
        """The positive control: how often there was what must not be there while a promise holds."""
        calls = [row for row in self.calls() if row["served_in"] in {racer.removed for racer in self.racers}]
        racing = [row for row in calls if row["tenant"] != self.stayer.id]
        busy = [line for line in self.lines if line["do"] == "busy" and line["share"] > BUSY]
        return {
            "while permitted: calls served directly": sum(
                row["place"] == row["served_in"] and row["door"] != "peer" for row in racing
            ),
            "while permitted: calls sent on and served": sum(row["place"] != row["served_in"] for row in racing),
            "while permitted: parcels taken up": sum(row["door"] == "peer" for row in racing),
            "while permitted: looks at a processor that saw work": len(busy),
        }

    def write(self, file: Path) -> None:
        """Keeps the history, for `border.promise` as a command."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in self.history()), "utf-8")

    def history(self) -> list[Line]:
        """All of it."""
        return [*self.lines, *self.calls(), *self._records()]

    def verdict(self) -> Verdict:
        """What the checker says."""
        return judge(self.history())


def sequences(status: fleet_pb2.GatewayStatus) -> int:
    """What runs and waits in a country of the models that racers use."""
    return sum(
        model.running + model.queued
        for replica in status.replicas
        for model in replica.models
        if model.model != EMBEDDING
    )


def ready(status: fleet_pb2.GatewayStatus) -> set[int]:
    """The processes all of whose models are ready: one that starts is busy with itself."""
    return {
        replica.pid
        for replica in status.replicas
        if all(model.state == fleet_pb2.REPLICA_STATE_READY for model in replica.models)
    }


def _cpu_s(pid: int) -> float | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS
