"""What `mesh status` says of parts and answers: a table."""

from dataclasses import replace
from pathlib import Path

import pytest

from mesh.control.etcd import MemberStatus
from mesh.embedded.addresses import Addresses
from mesh.embedded.configuration import catalogue, embedded_settings, places
from mesh.embedded.home import Home
from mesh.embedded.parts import Part
from mesh.embedded.status import Known, admin_part, deploy_part, gateway_part, is_ready, ray_part, status_of
from mesh.embedded.watching import View, all_gateways
from mesh.types import GatewayId, RegionId
from mesh.v1 import admin_pb2, fleet_pb2

VN, SG = RegionId("vn-1"), RegionId("ap-southeast-1")
ADDRESSES = Addresses("0" * 32, 7, 20_000, places(catalogue()))
SETTINGS = embedded_settings(
    catalogue(), (VN, SG), Home(Path("/h")), ADDRESSES, Path("/models"), "cpu", {VN: (), SG: ()}
)
G1 = GatewayId("g1")
ETCD = MemberStatus("3.4.23", True, 1)


def answered(region: RegionId, *, loaded: bool = True, without: str = "") -> fleet_pb2.GatewayStatus:
    models = [
        fleet_pb2.ModelReport(model=model, state=fleet_pb2.REPLICA_STATE_READY, slots=4, kv_used=0.25)
        for model in sorted(SETTINGS.regions[region].models)
        if model != without
    ]
    replica = fleet_pb2.ReplicaReport(replica="ab" * 8, pid=77, models=models)
    return fleet_pb2.GatewayStatus(gateway="g1", policy_loaded=loaded, replicas=[replica])


GOOD = View(ETCD, {(VN, G1): answered(VN), (SG, G1): answered(SG)}, {VN: True, SG: True})


def known(*, started: set[RegionId] | None = None, **more: bool) -> Known:
    names = ["etcd", "weights"]
    for region, gateway in all_gateways(SETTINGS):
        names += [gateway_part(region, gateway), admin_part(region.id), ray_part(region.id), deploy_part(region.id)]
    parts = {name: Part(name, Path("/h/log") / f"{name}.log") for name in names}
    return Known(settings=SETTINGS, addresses=ADDRESSES, parts=parts, started=frozenset(started or ()), **more)


def gateways(vn: fleet_pb2.GatewayStatus | None) -> View:
    return replace(GOOD, gateways={(VN, G1): vn, (SG, G1): answered(SG)})


@pytest.mark.parametrize(
    ("view", "region", "mesh", "reason"),
    [
        (GOOD, "ready", "ready", None),
        (gateways(None), "down", "degraded", "vn-1: no gateway answers; see /h/log/gateway-vn-1-g1.log"),
        (gateways(answered(VN, loaded=False)), "degraded", "degraded", "vn-1: no gateway has loaded policy yet"),
        (
            gateways(answered(VN, without="smollm2-135m")),
            "degraded",
            "degraded",
            "vn-1: smollm2-135m has no ready replica; see /tmp/mesh-00000000/1/session_latest/logs",
        ),
        (replace(GOOD, admins={VN: False, SG: True}), "degraded", "degraded", "vn-1: its admin does not answer"),
        (replace(GOOD, etcd=None), "ready", "degraded", "etcd does not answer; see /h/log/etcd.log"),
        (replace(GOOD, etcd=MemberStatus("3.4.23", False, 1)), "ready", "degraded", "etcd does not answer"),
    ],
)
def test_a_mesh_that_was_ready(view: View, region: str, mesh: str, reason: str | None) -> None:
    status = status_of(known(started={VN, SG}), view)
    assert status["state"] == mesh
    rows = status["regions"]
    assert isinstance(rows, list)
    assert [row["state"] for row in rows] == [region, "ready"]
    reasons = status["reasons"]
    assert isinstance(reasons, list)
    assert len(reasons) == (reason is not None)
    if reason is not None:
        assert reasons[0].startswith(reason)


def test_a_store_that_went_back_is_told_in_words_until_it_was_recovered() -> None:
    saw = answered(VN)
    saw.store_went_back = True
    control = {
        VN: admin_pb2.ControlStatusResponse(epoch=2, went_back=True, published=True),
        SG: admin_pb2.ControlStatusResponse(epoch=2, published=False),
    }
    status = status_of(known(started={VN, SG}), replace(gateways(saw), control=control))
    see = "run 'mesh control recover'; see docs/operator.md, 'Recovery'"
    assert status["state"] == "degraded"
    assert status["reasons"] == [
        f"vn-1: the control store went back in time: gateway g1 saw it and serves nobody; {see}",
        f"vn-1: the control store went back in time: its admin saw it and changes nothing; {see}",
        f"ap-southeast-1: its tenants are not published in control epoch 2; {see}",
    ]
    assert status["control"] == {"epoch": 1, "went_back": True, "published": False}
    good = admin_pb2.ControlStatusResponse(epoch=2, published=True)
    status = status_of(known(started={VN, SG}), replace(GOOD, control={VN: good, SG: good}))
    assert (status["state"], status["reasons"]) == ("ready", [])


def test_while_it_starts() -> None:
    view = View(None, {(VN, G1): None, (SG, G1): answered(SG)}, {VN: False, SG: True})
    status = status_of(known(), view)
    assert status["state"] == "starting"
    rows = status["regions"]
    assert isinstance(rows, list)
    assert [row["state"] for row in rows] == ["starting", "ready"]
    assert rows[0]["gateways"] == [{"id": "g1", "state": "starting", "pid": None}]


def test_a_part_that_was_given_up() -> None:
    given = known()
    given.parts[ray_part(VN)].ended("did not start (status 1)", None)
    view = replace(GOOD, gateways={(VN, G1): answered(VN, without="smollm2-135m"), (SG, G1): answered(SG)})
    status = status_of(given, view)
    assert status["state"] == "degraded"
    rows, reasons = status["regions"], status["reasons"]
    assert isinstance(rows, list)
    assert isinstance(reasons, list)
    assert rows[0]["state"] == "down"
    assert reasons[0] == ("ray-vn-1 did not start (status 1); it is not started again; see /h/log/ray-vn-1.log")


def test_stopping() -> None:
    assert status_of(known(started={VN, SG}, stopping=True), GOOD)["state"] == "stopping"


def test_the_object_is_the_contracts() -> None:
    given = known(started={VN, SG})
    given.parts["etcd"].pid = 5
    status = status_of(given, GOOD)
    assert status["ca"] == "/h/pki/doors-ca.pem"
    assert status["operator_cert"] == "/h/pki/operator.pem"
    assert status["operator_key"] == "/h/pki/operator.key"
    endpoints = ["https://127.7.0.9:2379"]
    assert status["etcd"] == {"endpoints": endpoints, "healthy": True, "version": "3.4.23", "pid": 5}
    rows = status["regions"]
    assert isinstance(rows, list)
    row = rows[0]
    assert set(row) == {
        *("id", "jurisdiction", "state", "http", "grpc", "operator", "admin", "ray", "gateways", "replicas")
    }
    assert row["http"] == "https://127.7.1.1:8443"
    assert row["grpc"] == "127.7.1.1:8444"
    assert row["operator"] == "http://127.7.1.1:9090"
    assert row["admin"] == "127.7.1.1:8446"
    assert [replica["model"] for replica in row["replicas"]] == ["minilm-l6-v2", "smollm2-135m"]
    assert row["replicas"][0] == {
        "id": "ab" * 8,
        "model": "minilm-l6-v2",
        "state": "ready",
        "pid": 77,
        "running": 0,
        "queued": 0,
        "slots": 4,
        "kv_used": 0.25,
    }


def test_readiness() -> None:
    region = SETTINGS.regions[VN]
    assert is_ready(region, GOOD)
    assert not is_ready(region, replace(GOOD, admins={}))
    assert not is_ready(region, gateways(None))
