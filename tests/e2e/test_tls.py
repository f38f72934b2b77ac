"""What listens, where, and that it speaks TLS 1.3 and nothing older."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Iterator

import httpx2
import psutil
import pytest
from e2e.live import VN, Mesh

pytestmark = pytest.mark.mesh


def listeners(mesh: Mesh) -> dict[tuple[str, int], str]:
    """Every TCP address on which a process of the mesh listens, and which process it is."""
    found: dict[tuple[str, int], str] = {}
    for pid, line in mesh.processes().items():
        try:
            connections = psutil.Process(pid).net_connections("tcp")
        except psutil.NoSuchProcess:
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN:
                # gRPC's sockets are of IPv6, with IPv4 addresses in them.
                found[one.laddr.ip.removeprefix("::ffff:"), one.laddr.port] = " ".join(line)[:120]
    return found


def secured(mesh: Mesh) -> Iterator[tuple[str, int]]:
    """Those of this home's own network but the operator's, which is in clear text on loopback."""
    network = json.loads((mesh.home / "addresses.json").read_text())["network"]
    operators = {tuple(row["operator"].removeprefix("http://").split(":")) for row in mesh.status()["regions"]}
    for host, port in sorted(listeners(mesh)):
        if host.startswith(f"127.{network}.") and (host, str(port)) not in operators:
            yield host, port


def handshake(host: str, port: int, version: str) -> str:
    """What `openssl s_client` says of a handshake."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"{host}:{port}", version],
        input="",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout + done.stderr


def test_nothing_listens_beyond_loopback(mesh: Mesh) -> None:
    found = listeners(mesh)
    assert {address: line for address, line in found.items() if not ipaddress.ip_address(address[0]).is_loopback} == {}
    # Doors, internal, admin, peer, operator and replica of each region; etcd; Ray.
    assert len(found) > 7 * len(mesh.regions) + 2


def test_every_port_speaks_tls_1_3_and_refuses_1_2(mesh: Mesh) -> None:
    status = mesh.status()
    ports = list(secured(mesh))
    known = {row[name].removeprefix("https://") for row in status["regions"] for name in ("http", "grpc", "admin")}
    known |= {endpoint.removeprefix("https://") for endpoint in status["etcd"]["endpoints"]}
    assert known <= {f"{host}:{port}" for host, port in ports}
    # http, grpc, internal, admin, peer, a replica; etcd's two.
    assert len(ports) >= 6 * len(mesh.regions) + 2
    for host, port in ports:
        older = handshake(host, port, "-tls1_2")
        assert "Cipher is (NONE)" in older, (host, port, older)
        newer = handshake(host, port, "-tls1_3")
        assert "TLSv1.3, Cipher is TLS_" in newer, (host, port, newer)


def test_internal_ports_want_a_certificate(mesh: Mesh) -> None:
    doors = {row[name].removeprefix("https://") for row in mesh.status()["regions"] for name in ("http", "grpc")}
    for host, port in secured(mesh):
        said = handshake(host, port, "-tls1_3")
        asked = "Acceptable client certificate CA names" in said or "Requested Signature Algorithms" in said
        assert asked == (f"{host}:{port}" not in doors), (host, port)


def test_the_doors_have_certificates_for_their_addresses(mesh: Mesh) -> None:
    for row in mesh.status()["regions"]:
        with httpx2.Client(verify=mesh.trust(), timeout=60) as http:
            assert http.get(row["http"] + "/livez").status_code == 200


def test_the_operator_s_port(mesh: Mesh) -> None:
    operator = mesh.region(VN)["operator"]
    mesh.get(VN, "/v1/models", mesh.key("acme"))
    with httpx2.Client(timeout=60) as http:
        assert http.get(f"{operator}/livez").status_code == 200
        assert http.get(f"{operator}/readyz").json()["status"] == "ready"
        metrics = http.get(f"{operator}/metrics")
        assert metrics.status_code == 200
        assert metrics.headers["content-type"].startswith("text/plain")
        assert {line.split("{")[0].split(" ")[0] for line in metrics.text.splitlines() if line.startswith("mesh_")}
        assert http.get(f"{operator}/nothing").status_code == 404
