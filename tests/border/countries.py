"""Three countries of one mesh, each with its member of the control store, its Ray cluster, its gateways and its admin.

The programs are the product's own, started with settings that the product's own code wrote. What the lab adds is around
them: namespaces, a border that can be cut, and TLS legs that can be read.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from border.calls import Answer, Caller, Rpc, Wire, head, wait_until
from border.evidence import legs
from border.namespaces import (
    COUNTRIES,
    ETCD,
    ETCD_PEER,
    GRPC,
    INTERNAL,
    PAIRS,
    PEER,
    RTT_MS,
    LabError,
    Network,
    Router,
)
from border.parts import Part
from border.places import NEXT_GATEWAY, RAY_PORTS, Places, config_of, make_settings
from google.protobuf.message import Message

from mesh.embedded.configuration import write_settings
from mesh.embedded.environment import part_environment, ray_environment
from mesh.embedded.etcd_binary import find_etcd
from mesh.embedded.etcd_server import etcd_command
from mesh.embedded.home import Home, cache_folder, write_private
from mesh.embedded.processes import PART
from mesh.etcd.v1 import etcd_pb2
from mesh.tls import ETCD_NAME, internal_name
from mesh.types import RegionId, Role
from mesh.v1 import admin_pb2, fleet_pb2

HEARTBEAT_MS, ELECTION_MS = 100, 1000
"""Measured for round trips up to 120 ms: a new leader in 1.3 to 1.8 s, and no election without a reason."""
CHAT, EMBEDDING, ABROAD = "smollm2-135m", "minilm-l6-v2", "smollm2-135m-sg"
"""ABROAD is hosted in sg only."""
READY_S, WEIGHTS_S, RAY_S, DEPLOY_S = 600.0, 900.0, 240.0, 600.0
RAY_TRIES = 3
_OBJECT_STORE_BYTES = 75 * 1024 * 1024
Say = Callable[[str], None]
_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant and a key of it."""

    id: str
    name: str
    key: str
    allowed: tuple[str, ...]


class Countries:
    """The mesh. `start` brings it up; whoever holds the network ends it all by removing that."""

    def __init__(self, network: Network, router: Router, say: Say, gateways: Mapping[str, int] | None = None) -> None:
        self.network = network
        self.router = router
        self.home = Home(network.folder / "home")
        self.gateways = {name: (gateways or {}).get(name, 1) for name in COUNTRIES}
        self.parts: dict[str, Part] = {}
        self.clear = network.folder / "clear-0"
        """What the relay wrote down since it was last switched on."""
        self._say = say
        self._relay: Part | None = None
        self._relays = 0
        self._callers = {who: Caller(network, who, network.folder / f"caller-{who}.log") for who in (*COUNTRIES, "pub")}

    # Coming up.

    def start(self, rtt_ms: Mapping[tuple[str, str], float] = RTT_MS) -> None:
        """Starts everything and waits until every country serves.

        Raises:
            LabError: A part did not come up; the text names its log.
        """
        self.router.set_rtt(rtt_ms)
        self.home.make()
        cache = cache_folder(os.environ)
        self.settings = make_settings(self.home, cache / "models", self.gateways)
        weights = self._part("weights", "pub", ["-m", "mesh.serving.weights", "--models-dir", str(cache / "models")])
        self._say("weights")
        weights.start()
        weights.finish(WEIGHTS_S)
        etcd = find_etcd(cache, os.environ, self._say)
        with ThreadPoolExecutor() as pool:
            clusters = [pool.submit(self._start_ray, name) for name in COUNTRIES]
            self._start_store(etcd)
            for name, settings in self.settings.items():
                region = COUNTRIES[name].region
                own = ["--config", str(config_of(self.home, name)), "--region", region]
                self._part(f"admin-{name}", name, ["-m", "mesh.admin", *own]).start()
                for gateway in settings.regions[RegionId(region)].gateways:
                    argv = ["-m", "mesh.gateway", *own, "--gateway", gateway.id, "--alone"]
                    self._part(f"gateway-{name}-{gateway.id}", name, argv).start()
            for cluster in clusters:
                cluster.result()
        for name in COUNTRIES:
            self.wait_ready(name)
            self._say(f"{name}: ready")

    def _start_store(self, binary: Path) -> None:
        members = ",".join(f"{name}=https://{one.border}:{ETCD_PEER}" for name, one in COUNTRIES.items())
        for name, country in COUNTRIES.items():
            command = etcd_command(binary, self.home.etcd / name, self.home.pki, Places(country))  # pyright: ignore[reportArgumentType]
            # The last word of an option counts.
            command += [f"--name={name}", f"--initial-cluster={members}"]
            command += [f"--heartbeat-interval={HEARTBEAT_MS}", f"--election-timeout={ELECTION_MS}"]
            part = Part(
                self.network, f"etcd-{name}", name, command, self._environ(name), self.home.log_of(f"etcd-{name}")
            )
            self.parts[part.name] = part
            part.start()
        asked = {"set_up": str(config_of(self.home, "vn"))}
        wait_until(lambda: self._callers["vn"].ask(asked)["code"] == "OK", "the control store works", deadline_s=120)
        self._say("control store: ready")

    def _start_ray(self, name: str) -> None:
        token = self.home.run / f"ray-{name}.token"
        write_private(token, secrets.token_hex(32))
        temp = self.network.folder / f"r{COUNTRIES[name].number}"
        environ = self._environ(f"ray-{name}") | ray_environment(token)
        argv = ["-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1", *RAY_PORTS.options()]
        argv += [f"--temp-dir={temp}", f"--object-store-memory={_OBJECT_STORE_BYTES}", "--num-cpus=2", "--num-gpus=0"]
        argv += ["--include-dashboard=false", "--include-log-monitor=false", "--no-monitor", "--disable-usage-stats"]
        cluster = self._part(f"ray-{name}", name, argv, environ)
        for left in reversed(range(RAY_TRIES)):
            temp.mkdir(mode=0o700)
            cluster.start()
            try:
                cluster.finish(RAY_S)
                break
            except LabError as error:
                # Ray gives its own parts half a minute to answer, too little where the machine is busy.
                if not left:
                    raise
                self._say(f"ray-{name} is tried again: {str(error).splitlines()[-1][:120]}")
                self.network.end(name, f"{PART}={cluster.name}")
                shutil.rmtree(temp)
        argv = ["-m", "mesh.serving.deploy", "--config", str(config_of(self.home, name))]
        argv += ["--region", COUNTRIES[name].region, "--ray-address", str(RAY_PORTS.gcs)]
        deploy = self._part(f"deploy-{name}", name, argv, environ)
        deploy.start()
        deploy.finish(DEPLOY_S)

    def _part(self, name: str, who: str, words: Sequence[str], environ: Mapping[str, str] | None = None) -> Part:
        argv = [sys.executable, *words]
        part = Part(self.network, name, who, argv, environ or self._environ(name), self.home.log_of(name))
        self.parts[name] = part
        return part

    def _environ(self, part: str) -> dict[str, str]:
        return part_environment(os.environ, f"lab-{self.network.lab}", part, threads=1)

    # How it is.

    def status(self, country: str, gateway: int = 1, *, timeout_s: float = 5) -> fleet_pb2.GatewayStatus | None:
        """A gateway's own words; None where it does not answer."""
        one = COUNTRIES[country]
        target = f"{one.border}:{INTERNAL + (gateway - 1) * NEXT_GATEWAY}"
        request = fleet_pb2.StatusRequest()
        answer = self._inside(country, target, "/mesh.v1.Inspect/Status", request, Role.GATEWAY, timeout_s=timeout_s)
        return answer.parse(fleet_pb2.GatewayStatus)[0] if answer.code == "OK" else None

    def is_ready(self, country: str) -> bool:
        """Whether each of its gateways knows policy and a ready replica of each model, and its admin answers."""
        models = self.settings[country].regions[RegionId(COUNTRIES[country].region)].models
        for gateway in range(1, self.gateways[country] + 1):
            status = self.status(country, gateway)
            if status is None or not status.policy_live:
                return False
            reports = [model for replica in status.replicas for model in replica.models]
            if not models <= {report.model for report in reports if report.state == fleet_pb2.REPLICA_STATE_READY}:
                return False
        return self.admin(country, "ListTenants", admin_pb2.ListTenantsRequest(), timeout_s=5).code == "OK"

    def wait_ready(self, country: str, *, deadline_s: float = READY_S) -> None:
        """Waits until it serves."""
        wait_until(
            lambda: self.is_ready(country), f"{country} is ready; logs in {self.home.logs}", deadline_s=deadline_s
        )

    def replica_pid(self, country: str, model: str = CHAT) -> int:
        """The process that hosts a model."""
        status = self.status(country)
        for replica in status.replicas if status is not None else ():
            if any(one.model == model and one.state == fleet_pb2.REPLICA_STATE_READY for one in replica.models):
                return replica.pid
        raise LabError(f"{country} has no ready replica of {model}")

    def leader(self) -> str | None:
        """The country whose member of the control store leads, as the members say."""
        for country, one in COUNTRIES.items():
            answer = self.store_call(country, "Maintenance/Status", etcd_pb2.StatusRequest(), timeout_s=2)
            if answer.code == "OK":
                status = answer.parse(etcd_pb2.StatusResponse)[0]
                if status.leader and status.leader == status.header.member_id:
                    return one.name
        return None

    # Calls.

    @property
    def doors_ca(self) -> Path:
        """What clients trust."""
        return self.home.pki / "doors-ca.pem"

    def door(self, country: str, method: str, *requests: Message | bytes, key: str | None, **more: Any) -> Rpc:
        """A call of a client at a country's gRPC door; `method` such as `Inference/Chat`."""
        metadata = [*more.pop("metadata", ()), *([("authorization", f"Bearer {key}")] if key is not None else ())]
        target = f"{COUNTRIES[country].public}:{GRPC}"
        return self._callers["pub"].rpc(
            target, f"/mesh.v1.{method}", *requests, ca=self.doors_ca, metadata=metadata, **more
        )

    def wire(self, country: str) -> Wire:
        """A client's TLS connection to a country's HTTP door."""
        return Wire(self.network, country, self.doors_ca)

    def post(self, country: str, path: str, body: bytes | Mapping[str, object], key: str | None) -> Answer:
        """One HTTP call of a client, on a connection of its own."""
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        with self.wire(country) as wire:
            wire.send(head(path, key, len(data)) + data)
            return wire.answer()

    def admin(self, country: str, method: str, request: Message, **more: Any) -> Rpc:
        """What an operator asks of a country's admin, from within the country."""
        target = str(self.settings[country].regions[RegionId(COUNTRIES[country].region)].admin)
        return self._inside(country, target, f"/mesh.v1.Admin/{method}", request, Role.ADMIN, **more)

    def store_call(self, country: str, method: str, request: Message, **more: Any) -> Rpc:
        """A call of the control store's root at a country's member, such as `KV/Put`."""
        target, pki = f"{COUNTRIES[country].border}:{ETCD}", self.home.pki
        caller = self._callers[more.pop("who", country)]
        return caller.rpc(
            target,
            f"/etcdserverpb.{method}",
            request,
            ca=pki / "mesh-ca.pem",
            pair=pki / "etcd" / "root",
            name=ETCD_NAME,
            **more,
        )

    def gateway_call(self, source: str, target: str, method: str, request: bytes, **more: Any) -> Rpc:
        """A call across the border with the certificate of `source`'s gateways, which a leak in one would have."""
        pki, one = self.home.pki, COUNTRIES[target]
        return self._callers[source].rpc(
            f"{one.border}:{INTERNAL}",
            method,
            request,
            ca=pki / "mesh-ca.pem",
            pair=pki / COUNTRIES[source].region / "gateway",
            name=internal_name(Role.GATEWAY, RegionId(one.region)),
            **more,
        )

    def _inside(self, country: str, target: str, method: str, request: Message, role: Role, **more: Any) -> Rpc:
        pki, name = self.home.pki, internal_name(role, RegionId(COUNTRIES[country].region))
        caller = self._callers[country]
        return caller.rpc(target, method, request, ca=pki / "mesh-ca.pem", pair=pki / "operator", name=name, **more)

    def tenant(self, name: str, *allowed: str, home: str = "vn", transfer: str = "never") -> Tenant:
        """A new tenant with a key, known at every gateway."""
        request = admin_pb2.CreateTenantRequest(name=name, allowed=allowed, transfer=transfer)
        made = self._done(self.admin(home, "CreateTenant", request), admin_pb2.Tenant)
        asked = admin_pb2.CreateKeyRequest(tenant=made.tenant)
        key = self._done(self.admin(home, "CreateKey", asked), admin_pb2.Key).key
        for country in COUNTRIES:
            self.wait_known(country, key)
        return Tenant(made.tenant, name, key, tuple(made.allowed))

    def wait_known(self, country: str, key: str) -> None:
        """Waits until a country's gateways know a key."""

        def known() -> bool:
            with self.wire(country) as wire:
                wire.send(head("/v1/models", key, 0, method="GET"))
                return wire.answer().status not in (401, 503)

        wait_until(known, f"{country} knows a new key", deadline_s=60)

    def _done(self, answer: Rpc, kind: type[_M]) -> _M:
        if answer.code != "OK":
            raise LabError(f"the admin did not do it: {answer.code} {answer.details}")
        return cast(_M, answer.parse(kind)[0])

    # Reading in clear.

    def relay(self, *, on: bool) -> None:
        """Sends every leg across the border through the relay, or directly again; open connections are reset.

        With it on this returns once the legs that are always there have been seen in clear.
        """
        if on == (self._relay is not None):
            return
        if on:
            self._relays += 1
            self.clear = self.network.folder / f"clear-{self._relays}"
            command = [sys.executable, "-m", "border.relay", "--pki", str(self.home.pki), "--clear", str(self.clear)]
            for at in self._listeners():
                command += ["--at", at]
            log = self.network.folder / f"relay-{self._relays}.log"
            environ = None
            part = Part(self.network, "relay", "relay", command, environ or {}, log)
            part.process = self.network.start("relay", command, log)
            self._relay = part
            wait_until(lambda: (self.clear / "ready").exists(), f"the relay listens; see {log}", deadline_s=60)
            self.router.ask("relay", on=True)
            always = {(a, b, port) for a, b in PAIRS for port in (ETCD_PEER, INTERNAL)}
            wait_until(
                lambda: always <= {(leg.client, leg.server, leg.port) for leg in legs(self.clear)},
                "every leg is read in clear",
                deadline_s=120,
            )
        elif self._relay is not None:
            self.router.ask("relay", on=False)
            self._relay.kill()
            self._relay = None
        for country in COUNTRIES:
            self.wait_ready(country)

    def _listeners(self) -> list[str]:
        found: list[str] = []
        for name, country in COUNTRIES.items():
            found += [f"etcd/server={country.border}:{port}" for port in (ETCD, ETCD_PEER)]
            for n in range(self.gateways[name]):
                ports = (INTERNAL + n * NEXT_GATEWAY, PEER + n * NEXT_GATEWAY)
                found += [f"{country.region}/gateway={country.border}:{port}" for port in ports]
            admin = self.settings[name].regions[RegionId(country.region)].admin
            found.append(f"{country.region}/admin={admin}")
        return found

    # Faults that are more than a signal to a part or a command to the router.

    def back_up_store(self, folder: Path) -> None:
        """A copy of all members' data, all of one moment: they stand still meanwhile."""
        with ExitStack() as stack:
            for name in COUNTRIES:
                part = self.parts[f"etcd-{name}"]
                part.stop()
                stack.callback(part.go_on)
            shutil.copytree(self.home.etcd, folder)

    def restore_store(self, folder: Path) -> None:
        """The control store goes back to a backup: what was committed since is gone, and nobody is told."""
        members = [self.parts[f"etcd-{name}"] for name in COUNTRIES]
        for part in members:
            if part.runs:
                part.kill()
        for name in COUNTRIES:
            shutil.rmtree(self.home.etcd / name)
            shutil.copytree(folder / name, self.home.etcd / name)
        for part in members:
            part.start()

    def recover_store(self) -> None:
        """Declares the restore, as docs/operator.md says: the next control epoch everywhere, then each home publishes."""
        for name, settings in self.settings.items():
            raised = replace(settings, control_epoch=settings.control_epoch + 1)
            self.settings[name] = raised
            write_settings(raised, config_of(self.home, name))
        programs = [part for name, part in self.parts.items() if name.startswith(("gateway-", "admin-"))]
        for part in programs:
            part.kill(signal.SIGTERM)
        for part in programs:
            part.start()
        for name, settings in self.settings.items():
            request = admin_pb2.RecoverRequest(epoch=settings.control_epoch)
            wait_until(
                lambda name=name, request=request: self.admin(name, "Recover", request).code == "OK",
                f"{name} has published its policy",
                deadline_s=120,
            )

    def close(self) -> None:
        """Ends the callers; all else ends with the network."""
        for caller in self._callers.values():
            caller.close()
