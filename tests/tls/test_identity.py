"""Who a certificate speaks for."""

import pytest

from mesh.tls import Identity, identity_of, identity_of_grpc, internal_name
from mesh.types import RegionId, Role

VN = RegionId("vn-1")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("mesh://vn-1/gateway/g1", Identity(VN, Role.GATEWAY, "g1")),
        ("mesh://-/operator/anna", Identity(RegionId("-"), Role.OPERATOR, "anna")),
        ("mesh://vn-1/operator/anna", None),
        ("mesh://-/gateway/g1", None),
        ("mesh://vn-1/root/x", None),
        ("mesh://vn-1/gateway/", None),
        ("mesh://vn-1/gateway/a/b", None),
        ("mesh://vn-1/gateway/g1\n", None),
        ("mesh://VN-1/gateway/g1", None),
        ("https://vn-1/gateway/g1", None),
        ("", None),
    ],
)
def test_parse(uri: str, expected: Identity | None) -> None:
    assert Identity.parse(uri) == expected
    if expected is not None:
        assert str(expected) == uri


def test_certificate_with_one_identity() -> None:
    names = (("DNS", "gateway.vn-1.mesh"), ("URI", "mesh://vn-1/gateway/g1"), ("IP Address", "127.1.1.1"))
    assert identity_of({"subjectAltName": names}) == Identity(VN, Role.GATEWAY, "g1")


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        {"subjectAltName": (("DNS", "mesh://vn-1/gateway/g1"),)},
        {"subjectAltName": (("URI", "mesh://vn-1/gateway/g1"), ("URI", "mesh://-/operator/x"))},
    ],
)
def test_certificate_without_exactly_one(certificate: dict[str, object] | None) -> None:
    assert identity_of(certificate) is None


def test_grpc_context() -> None:
    assert identity_of_grpc({"peer_uri": [b"mesh://vn-1/admin/a1"]}) == Identity(VN, Role.ADMIN, "a1")
    assert identity_of_grpc({"peer_uri": [b"mesh://vn-1/admin/a1", b"mesh://vn-1/admin/a2"]}) is None
    assert identity_of_grpc({"x509_common_name": [b"mesh://vn-1/admin/a1"]}) is None
    assert identity_of_grpc({"peer_uri": [b"\xff"]}) is None


def test_internal_name() -> None:
    assert internal_name(Role.REPLICA, VN) == "replica.vn-1.mesh"
