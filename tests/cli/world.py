"""A mesh for the command line to talk to: real mTLS admins and HTTP doors, with a book of tenants in memory."""

# ruff: noqa: N802 - gRPC names its methods
from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from mesh.cli.context import Here, Sites, Status, sites_of
from mesh.embedded.authority import make_pki
from mesh.errors import Code, MeshError
from mesh.tls import GRPC_SUITES, door_context, grpc_server_credentials, identity_of_grpc
from mesh.transport.grpc_errors import error_trailers, status_code
from mesh.types import RegionId, Role
from mesh.v1 import admin_pb2 as pb
from mesh.v1 import router_pb2
from mesh.v1.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server

JURISDICTION = {"vn-1": "VN", "ap-southeast-1": "SG"}
NOW = "2026-11-21T09:00:00Z"


@dataclass
class Admin(AdminServicer):
    """One region's admin."""

    region: str
    tenants: dict[str, pb.Tenant] = field(default_factory=dict)
    keys: dict[str, pb.Key] = field(default_factory=dict)
    calls: list[tuple[str, object]] = field(default_factory=list)
    ready: dict[str, pb.Tenant] = field(default_factory=dict)  # that may come here
    refuse: MeshError | None = None
    epoch: int = 1
    went_back: bool = False
    narrowed: tuple[str, ...] = ()
    recovering_ms: int = 0  # how long changes wait since a recovery
    on_prepared: Callable[[], None] = lambda: None
    on_left: Callable[[], None] = lambda: None
    unready: int = 0  # how often a tenant was changed before it could leave
    breaks_off: bool = False  # whether the next change's stream ends before it is done
    is_mute: bool = False  # whether changes' streams end before they say anything

    def _enter(self, context: grpc.ServicerContext, method: str, request: object) -> None:
        identity = identity_of_grpc(context.auth_context())
        assert identity is not None
        assert identity.role is Role.OPERATOR
        self.calls.append((method, request))
        if self.refuse is not None:
            self._abort(context, self.refuse)

    def _abort(self, context: grpc.ServicerContext, error: MeshError) -> None:
        context.set_trailing_metadata(tuple(error_trailers(error)))
        context.abort(status_code(error), error.message)

    def _tenant(self, context: grpc.ServicerContext, tenant: str) -> pb.Tenant:
        if tenant not in self.tenants:
            self._abort(context, MeshError(Code.TENANT_NOT_FOUND))
        return self.tenants[tenant]

    def add(self, name: str, id_: str, allowed: Sequence[str], transfer: str = "never") -> pb.Tenant:
        self.tenants[id_] = pb.Tenant(
            tenant=id_, name=name, home=self.region, allowed=allowed, transfer=transfer, state="active", revision=1
        )
        return self.tenants[id_]

    def CreateTenant(self, request, context):
        self._enter(context, "CreateTenant", request)
        if any(tenant.name == request.name for tenant in self.tenants.values()):
            self._abort(context, MeshError(Code.TENANT_EXISTS))
        id_ = "t_" + f"{len(self.tenants):a>16}".replace("0", "b").replace("1", "c")
        return self.add(request.name, id_, request.allowed, request.transfer)

    def FindTenant(self, request, context):
        self._enter(context, "FindTenant", request)
        for tenant in self.tenants.values():
            if request.tenant in (tenant.name, tenant.tenant):
                return tenant
        return self._abort(context, MeshError(Code.TENANT_NOT_FOUND))

    def ListTenants(self, request, context):
        self._enter(context, "ListTenants", request)
        return pb.ListTenantsResponse(items=list(self.tenants.values()))

    def SuspendTenant(self, request, context):
        self._enter(context, "SuspendTenant", request)
        tenant = self._tenant(context, request.tenant)
        tenant.state, tenant.revision = "suspended", tenant.revision + 1
        yield from self._progress(request.patience, tenant=tenant)

    def ResumeTenant(self, request, context):
        self._enter(context, "ResumeTenant", request)
        tenant = self._tenant(context, request.tenant)
        tenant.state, tenant.revision = "active", tenant.revision + 1
        return tenant

    def Pin(self, request, context):
        self._enter(context, "Pin", request)
        tenant = self._tenant(context, request.tenant)
        if JURISDICTION[self.region] not in request.allowed:
            self._abort(context, MeshError(Code.HOME_OUTSIDE_PIN))
        tenant.allowed[:], tenant.revision = request.allowed, tenant.revision + 1
        yield from self._progress(request.patience, tenant=tenant)

    def SetAuthority(self, request, context):
        self._enter(context, "SetAuthority", request)
        yield from self._progress(request.patience, tenant=self._tenant(context, request.tenant))

    def SetTransfer(self, request, context):
        self._enter(context, "SetTransfer", request)
        tenant = self._tenant(context, request.tenant)
        tenant.transfer = request.transfer
        yield from self._progress(request.patience, tenant=tenant)

    def SetLabel(self, request, context):
        self._enter(context, "SetLabel", request)
        tenant = self._tenant(context, request.tenant)
        tenant.label = request.label
        return tenant

    def PrepareMove(self, request, context):
        self._enter(context, "PrepareMove", request)
        self.on_prepared()
        self.ready[request.tenant] = pb.Tenant(
            tenant=request.tenant, name=request.name, home=self.region, allowed=["SG", "VN"], state="active", revision=2
        )
        return self.ready[request.tenant]

    def LeaveHome(self, request, context):
        self._enter(context, "LeaveHome", request)
        if self.unready:
            self.unready -= 1
            self._abort(context, MeshError(Code.MOVE_UNFINISHED))
        self._tenant(context, request.tenant)
        del self.tenants[request.tenant]
        self.on_left()
        return pb.LeaveHomeResponse(op_id=request.op_id, revision=2)

    def FinishMove(self, request, context):
        self._enter(context, "FinishMove", request)
        self.tenants.update(self.ready)
        yield from self._progress(request.patience, tenant=self._tenant(context, request.tenant))

    def _progress(self, patience: pb.Patience, **what: object) -> Generator[pb.ShrinkProgress]:
        """Committed, then waiting for one of two gateways, then done."""
        first = pb.MemberProgress(member="m1", region=self.region, gateway="g1", state=pb.MEMBER_STATE_ACKNOWLEDGED)
        states = (pb.MEMBER_STATE_WAITING, pb.MEMBER_STATE_TIMED_OUT)
        second = [
            pb.MemberProgress(member="m2", region="ap-southeast-1", gateway="g1", state=state, left_ms=6000)
            for state in states
        ]
        if self.is_mute:
            return
        yield pb.ShrinkProgress(op_id=patience.op_id, **what)
        waiting = {"members": [first, second[0]], "waited_ms": 10, "recovery_left_ms": self.recovering_ms}
        for _ in range(2):
            yield pb.ShrinkProgress(op_id=patience.op_id, **waiting, **what)
        if self.breaks_off:
            self.breaks_off = False
            return
        receipt = '{"statement": {}}' if patience.receipt else ""
        yield pb.ShrinkProgress(
            op_id=patience.op_id, members=[first, second[1]], waited_ms=6100, done=True, receipt=receipt, **what
        )

    def PinStatus(self, request, context):
        self._enter(context, "PinStatus", request)
        members = [
            pb.Member(
                member=f"m-{region}",
                region=region,
                gateway="g1",
                grant_age_ms=1000 if region == self.region else 500,
                shards=[pb.ShardNumber(home="vn-1", shard=3, applied=6, head=7)],
            )
            for region in JURISDICTION
        ]
        return pb.PinStatusResponse(members=members)

    def ControlStatus(self, request, context):
        self._enter(context, "ControlStatus", request)
        return pb.ControlStatusResponse(epoch=self.epoch, compared=True, went_back=self.went_back, published=True)

    def Recover(self, request, context):
        self._enter(context, "Recover", request)
        if request.epoch != self.epoch or self.went_back:
            self._abort(context, MeshError(Code.INVALID_PARAMETER, param="epoch"))
        for looked_at in (1, 2):
            yield pb.RecoverProgress(
                tenants=2, looked_at=looked_at, published=looked_at, narrowed=self.narrowed, done=looked_at == 2
            )

    def AttestDead(self, request, context):
        self._enter(context, "AttestDead", request)
        return pb.AttestDeadResponse(member=request.member, gateway="g1")

    def CreateKey(self, request, context):
        self._enter(context, "CreateKey", request)
        self._tenant(context, request.tenant)
        key = pb.Key(tenant=request.tenant, key_id=f"K{len(self.keys):0>11}", created_at=NOW)
        self.keys[key.key_id] = key
        answer = pb.Key()
        answer.CopyFrom(key)
        answer.key = "mk_vn_secret"
        return answer

    def ListKeys(self, request, context):
        self._enter(context, "ListKeys", request)
        return pb.ListKeysResponse(items=[key for key in self.keys.values() if key.tenant == request.tenant])

    def RevokeKey(self, request, context):
        self._enter(context, "RevokeKey", request)
        if request.key_id not in self.keys:
            self._abort(context, MeshError(Code.KEY_NOT_FOUND))
        self.keys[request.key_id].revoked_at = NOW
        yield from self._progress(request.patience, key=self.keys[request.key_id])

    def FindKey(self, request, context):
        self._enter(context, "FindKey", request)
        if request.key_id not in self.keys:
            self._abort(context, MeshError(Code.KEY_NOT_FOUND))
        return self.keys[request.key_id]

    def Usage(self, request, context):
        self._enter(context, "Usage", request)
        item = pb.UsageItem(
            region=self.region, model="m", requests=3, refused=1, prompt_tokens=10, completion_tokens=20
        )
        return pb.UsageResponse(items=[item])

    def Disclosures(self, request, context):
        self._enter(context, "Disclosures", request)
        first = 1_768_000_000_123 + request.after.at_ms % 1000
        numbers = (1, 2) if not request.HasField("after") else (3,)
        items = [
            pb.Disclosure(
                at_ms=first + number, region=self.region, jurisdiction="XX", key_id="K", door="grpc",
                request_id=f"req_{self.region}_{number}",
            )
            for number in numbers
        ]  # fmt: skip
        return pb.DisclosuresResponse(items=items, more=not request.HasField("after"))

    def ExplainRoute(self, request, context):
        self._enter(context, "ExplainRoute", request)
        return router_pb2.ExplainResponse(
            tenant=request.tenant,
            model=request.model,
            at=self.region,
            outcome=router_pb2.OUTCOME_REFUSE,
            code="model_not_found",
            reasons=[
                router_pb2.RouteReason(
                    region=self.region, verdict=router_pb2.VERDICT_REJECTED, code="model_not_hosted", text="Not here."
                )
            ],
        )


@dataclass
class Fixed:
    """A supervisor of a mesh that simply is there."""

    found: Status | None
    asked: list[Mapping[str, object]] = field(default_factory=list)
    fault: MeshError | None = None
    admins: Mapping[str, Admin] = field(default_factory=dict)
    raised: int = 0

    def up(self, home: Path, *, regions, accelerator, domain, detach, progress: Callable[[str], None], ready) -> None:
        if self.fault:
            raise self.fault
        self.asked.append({"regions": regions, "accelerator": accelerator, "domain": domain, "detach": detach})
        progress("starting etcd")
        ready(self.status(home))

    def down(self, home: Path, *, progress: Callable[[str], None]) -> Sequence[Mapping[str, object]]:
        self.status(home)
        progress("stopping gateways")
        return [{"name": "gateway-vn-1-g1", "pid": 42}]

    def recovery_epoch(
        self, home: Path, *, epochs: Mapping[RegionId, int], went_back: bool, progress: Callable[[str], None]
    ) -> int:
        if not went_back:
            return max(epochs.values())
        progress("beginning a new control epoch")
        for admin in self.admins.values():
            admin.epoch, admin.went_back = admin.epoch + 1, False
        self.raised += 1
        return next(iter(self.admins.values())).epoch

    def status(self, home: Path) -> Status:
        if self.found is None:
            raise MeshError(Code.NOT_RUNNING)
        return self.found

    def sites(self, home: Path) -> Sites:
        return sites_of(self.status(home))


@dataclass
class World:
    here: Here
    admins: dict[str, Admin]
    supervisor: Fixed
    stop: Callable[[str], None]


@contextlib.contextmanager
def world(home: Path, doors: Mapping[str, type[BaseHTTPRequestHandler]] = {}) -> Generator[World]:
    """Two regions, `vn-1` and `ap-southeast-1`, each with an admin and, if given, an HTTP door."""
    pki = home / "pki"
    home.mkdir(parents=True, exist_ok=True)
    (home / "addresses.json").write_text("{}")  # as `mesh up` leaves it: this is no desk
    make_pki(pki, {RegionId(region): ["127.0.0.1"] for region in JURISDICTION}, ["127.0.0.1"])
    with contextlib.ExitStack() as stack:
        admins, rows, servers = {}, [], {}
        for region, jurisdiction in JURISDICTION.items():
            admins[region] = Admin(region)
            server = grpc.server(futures.ThreadPoolExecutor(4))
            add_AdminServicer_to_server(admins[region], server)
            health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
            port = server.add_secure_port("127.0.0.1:0", grpc_server_credentials(pki, RegionId(region), Role.ADMIN))
            server.start()
            servers[region] = server
            stack.callback(lambda server=server: server.stop(None).wait())
            http = "https://127.0.0.1:1"
            if region in doors:
                door = ThreadingHTTPServer(("127.0.0.1", 0), doors[region])
                door.socket = door_context(pki, RegionId(region)).wrap_socket(door.socket, server_side=True)
                thread = threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.01})
                thread.start()
                stack.callback(thread.join)
                stack.callback(door.server_close)
                stack.callback(door.shutdown)
                http = f"https://127.0.0.1:{door.server_address[1]}"
            rows.append(row(region, jurisdiction, http, f"127.0.0.1:{port}"))
        status = {
            "state": "ready",
            "reasons": [],
            "ca": str(pki / "doors-ca.pem"),
            "operator_cert": str(pki / "operator.pem"),
            "operator_key": str(pki / "operator.key"),
            "etcd": {"endpoints": ["https://127.1.0.9:2379"], "healthy": True, "version": "3.5.16", "pid": 1},
            "regions": rows,
        }
        supervisor = Fixed(status, admins=admins)
        yield World(
            Here({**os.environ, GRPC_SUITES[0]: GRPC_SUITES[1]}, home, supervisor),
            admins,
            supervisor,
            lambda region: servers[region].stop(None).wait(),
        )


def row(region: str, jurisdiction: str, http: str, admin: str) -> dict[str, object]:
    replica = {"id": "00" * 8, "model": "smollm2-135m", "state": "ready", "pid": 7, "running": 1, "queued": 0}
    return {
        "id": region,
        "jurisdiction": jurisdiction,
        "state": "ready",
        "http": http,
        "grpc": "127.0.0.1:8444",
        "operator": "http://127.0.0.1:9090",
        "admin": admin,
        "ray": {"state": "ready", "pid": 5},
        "gateways": [{"id": "g1", "state": "ready", "pid": 6}],
        "replicas": [{**replica, "slots": 4, "kv_used": 0.25}],
    }


class Door(BaseHTTPRequestHandler):
    """A door that serves everyone; subclasses differ."""

    protocol_version = "HTTP/1.1"
    region = "vn-1"
    served_here = True
    events: tuple[str, ...] = ()
    refusal: tuple[int, dict] | None = None

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        if self.path == "/v1/route":
            self.answer(200, {"object": "route", "here": self.region, "served_here": self.served_here})
        else:
            kinds = {"minilm-l6-v2": "embedding", "smollm2-135m": "chat"}
            self.answer(200, {"data": [{"id": id_, "kind": kind} for id_, kind in kinds.items()]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.refusal:
            return self.answer(*self.refusal)
        body = "".join(f"data: {event}\n\n" for event in self.events).encode()
        return self.send(200, "text/event-stream", body)

    def answer(self, status: int, body: object) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "content-type": kind,
            "content-length": str(len(body)),
            "mesh-region": self.region,
            "x-request-id": "00112233445566778899aabb",
            "connection": "close",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
