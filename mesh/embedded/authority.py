"""The embedded mesh's own certificate authorities: makes the whole PKI folder (see `mesh.tls.files`).

Two CAs, so that what a client trusts says nothing about who may speak inside the mesh. ECDSA P-256 throughout: with an
ECDSA key etcd can be held to TLS 1.3. What is there and still good is kept.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.embedded.policy_keys import make_policy_key
from mesh.errors import Code, MeshError
from mesh.tls import ETCD_NAME, OPERATOR_REGION, Identity, door_name, internal_name
from mesh.types import RegionId, Role

VALID = timedelta(days=825)
_CA_VALID = timedelta(days=3650)
_RENEW_BEFORE = timedelta(days=30)
_BACKDATED = timedelta(hours=1)
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Subject:
    """What a certificate says."""

    name: str
    uri: str | None = None
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def alternative_names(self) -> x509.SubjectAlternativeName:
        return x509.SubjectAlternativeName(
            [
                *([x509.UniformResourceIdentifier(self.uri)] if self.uri else []),
                *(x509.DNSName(name) for name in self.dns),
                *(x509.IPAddress(ipaddress.ip_address(address)) for address in self.addresses),
            ]
        )


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def make_pki(
    folder: Path,
    regions: Mapping[RegionId, Sequence[str]],
    etcd_addresses: Sequence[str],
    *,
    zones: Mapping[RegionId, str] | None = None,
) -> None:
    """Makes what is missing, too old, or made for other addresses. Folders get mode 700, keys and secrets 600.

    Args:
        folder: The PKI folder.
        regions: Each region's addresses: what its doors and its programs listen on.
        etcd_addresses: What the control store listens on.
        zones: What stands behind the label in the names of a region's tenants: its doors' certificate has them all.

    Raises:
        MeshError: `start_failed` where the folder cannot be written.
    """
    try:
        _make(folder, regions, etcd_addresses, zones or {})
    except OSError as error:
        raise MeshError(Code.START_FAILED, hint=f"{error.filename or folder}: {error.strerror}.") from None


def _make(
    folder: Path,
    regions: Mapping[RegionId, Sequence[str]],
    etcd_addresses: Sequence[str],
    zones: Mapping[RegionId, str],
) -> None:
    _private(folder)
    doors = _authority(folder / "doors-ca", "Mesh doors CA")
    inside = _authority(folder / "mesh-ca", "Mesh internal CA")
    _secret(folder / "mesh-secret")
    _issue(folder / "operator", inside, _Subject("operator", str(Identity(OPERATOR_REGION, Role.OPERATOR, "operator"))))
    etcd = _private(folder / "etcd")
    _issue(etcd / "server", inside, _Subject("etcd", dns=(ETCD_NAME,), addresses=tuple(etcd_addresses)))
    _issue(etcd / "root", inside, _Subject("root"))
    for region, addresses in regions.items():
        home = _private(folder / region)
        make_policy_key(folder, region)
        names = (zones[region], f"*.{zones[region]}") if region in zones else ()
        door = _Subject(f"door-{region}", dns=(door_name(region), *names), addresses=tuple(addresses))
        _issue(home / "door", doors, door)
        for role in (Role.GATEWAY, Role.REPLICA, Role.ADMIN):
            subject = _Subject(
                f"{role}-{region}",
                str(Identity(region, role, f"{role[0]}1")),
                (internal_name(role, region),),
                tuple(addresses),
            )
            _issue(home / role, inside, subject)


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def _secret(path: Path) -> None:
    if not path.exists():
        _write(path, secrets.token_hex(_SECRET_BYTES).encode(), 0o600)
    path.chmod(0o600)


def _authority(base: Path, name: str) -> _Authority:
    found = _read(base)
    if found is not None and _lasts(found.certificate) and _name_of(found.certificate) == name:
        return found
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _distinguished(name)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _dated(key.public_key(), _CA_VALID)
        .subject_name(subject)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    _store(base, certificate, key)
    return _Authority(certificate, key)


def _issue(base: Path, issuer: _Authority, subject: _Subject) -> None:
    found = _read(base)
    if found is not None and _serves(found.certificate, issuer, subject):
        return
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _dated(key.public_key(), VALID)
        .subject_name(_distinguished(subject.name))
        .issuer_name(issuer.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    names = subject.alternative_names()
    if len(list(names)):
        builder = builder.add_extension(names, critical=False)
    _store(base, builder.sign(issuer.key, hashes.SHA256()), key)


def _dated(key: ec.EllipticCurvePublicKey, valid: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + valid)
    )


def _serves(certificate: x509.Certificate, issuer: _Authority, subject: _Subject) -> bool:
    """Whether a certificate that is there is what would be issued now."""
    try:
        certificate.verify_directly_issued_by(issuer.certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature):
        return False
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    wanted = subject.alternative_names()
    return _lasts(certificate) and _name_of(certificate) == subject.name and list(names) == list(wanted)


def _lasts(certificate: x509.Certificate) -> bool:
    now = datetime.now(UTC)
    return certificate.not_valid_before_utc <= now and now + _RENEW_BEFORE < certificate.not_valid_after_utc


def _name_of(certificate: x509.Certificate) -> str:
    return ",".join(str(part.value) for part in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))


def _distinguished(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _read(base: Path) -> _Authority | None:
    """A certificate with its own key, or None: a start that was cut short leaves halves, which are made again."""
    try:
        certificate = x509.load_pem_x509_certificate(base.with_suffix(".pem").read_bytes())
        key = serialization.load_pem_private_key(base.with_suffix(".key").read_bytes(), password=None)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    base.with_suffix(".key").chmod(0o600)
    return _Authority(certificate, key)


def _store(base: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(base.with_suffix(".key"), secret, 0o600)
    _write(base.with_suffix(".pem"), certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by others in between."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    half.replace(path)
