"""The PKI folder: what is in it, what is kept, what is made again."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.embedded.authority import VALID, make_pki
from mesh.errors import MeshError
from mesh.types import RegionId

VN, SG = RegionId("vn-1"), RegionId("ap-southeast-1")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    make_pki(folder, {VN: ["127.1.1.1"], SG: ["127.1.2.1"]}, ["127.1.0.9"])
    expected = {"doors-ca", "mesh-ca", "operator", "etcd/server", "etcd/root"}
    expected |= {f"{region}/{name}" for region in (VN, SG) for name in ("door", "gateway", "replica", "admin")}
    policies = {f"{region}/policy.key" for region in (VN, SG)}
    assert set(contents(folder)) == {
        "mesh-secret",
        *policies,
        *(f"{name}{end}" for name in expected for end in (".pem", ".key")),
    }
    for path in folder.rglob("*"):
        mode = path.stat().st_mode & 0o777
        assert mode == (0o700 if path.is_dir() else 0o644 if path.suffix == ".pem" else 0o600), path
    assert folder.stat().st_mode & 0o777 == 0o700


def test_certificate_says_what_the_brief_says(tmp_path: Path) -> None:
    make_pki(tmp_path, {VN: ["127.1.1.1", "127.0.0.1"]}, ["127.1.0.9"])
    gateway = certificate(tmp_path / VN / "gateway.pem")
    names = gateway.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["mesh://vn-1/gateway/g1"]
    assert names.get_values_for_type(x509.DNSName) == ["gateway.vn-1.mesh"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.1.1.1", "127.0.0.1"]
    assert gateway.subject.rfc4514_string() == "CN=gateway-vn-1"
    assert isinstance(gateway.public_key(), ec.EllipticCurvePublicKey)
    assert abs(gateway.not_valid_after_utc - gateway.not_valid_before_utc - VALID).total_seconds() <= 3601
    gateway.verify_directly_issued_by(certificate(tmp_path / "mesh-ca.pem"))
    certificate(tmp_path / VN / "door.pem").verify_directly_issued_by(certificate(tmp_path / "doors-ca.pem"))
    assert certificate(tmp_path / "etcd" / "root.pem").subject.rfc4514_string() == "CN=root"


def test_made_twice_is_made_once(tmp_path: Path) -> None:
    make_pki(tmp_path, {VN: ["127.1.1.1"]}, ["127.1.0.9"])
    before = contents(tmp_path)
    make_pki(tmp_path, {VN: ["127.1.1.1"]}, ["127.1.0.9"])
    assert contents(tmp_path) == before


def test_another_region_and_another_address_touch_nothing_else(tmp_path: Path) -> None:
    make_pki(tmp_path, {VN: ["127.1.1.1"]}, ["127.1.0.9"])
    before = contents(tmp_path)
    make_pki(tmp_path, {VN: ["127.1.1.1"], SG: ["127.1.2.1"]}, ["127.2.0.9"])
    after = contents(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"etcd/server.pem", "etcd/server.key"}
    assert (tmp_path / SG / "door.pem").exists()


@pytest.mark.parametrize("damaged", ["vn-1/gateway.pem", "vn-1/gateway.key", "operator.pem"])
def test_a_half_written_pair_is_made_again(tmp_path: Path, damaged: str) -> None:
    make_pki(tmp_path, {VN: ["127.1.1.1"]}, ["127.1.0.9"])
    path = tmp_path / damaged
    path.write_bytes(path.read_bytes()[:40])
    make_pki(tmp_path, {VN: ["127.1.1.1"]}, ["127.1.0.9"])
    certificate(path.with_suffix(".pem")).verify_directly_issued_by(certificate(tmp_path / "mesh-ca.pem"))


def test_a_new_ca_means_new_certificates(tmp_path: Path) -> None:
    make_pki(tmp_path, {VN: ["127.1.1.1"]}, ["127.1.0.9"])
    (tmp_path / "mesh-ca.key").unlink()
    make_pki(tmp_path, {VN: ["127.1.1.1"]}, ["127.1.0.9"])
    certificate(tmp_path / VN / "admin.pem").verify_directly_issued_by(certificate(tmp_path / "mesh-ca.pem"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MeshError, match="start_failed") as caught:
        make_pki(tmp_path / "file" / "pki", {}, [])
    assert "file" in caught.value.message
