"""Where certificates, keys and secrets lie in a PKI folder, and how a missing one is reported.

doors-ca.pem              what clients trust          mesh-ca.pem            what the mesh's programs trust
mesh-secret               hex: MAC secret of keys     operator.pem, .key     the operator's certificate
etcd/server.pem, .key     the control store           etcd/root.pem, .key    its root user
<region>/door|gateway|replica|admin.pem, .key
<region>/policy.key        what signs policy: only that region's admin reads it, and only its host needs it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mesh.errors import Code, MeshError
from mesh.types import RegionId, Role

_SECRET_BYTES = 16


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate chain and its private key, as files."""

    certificate: Path
    key: Path


def doors_ca(pki: Path) -> Path:
    """The CA that clients trust."""
    return pki / "doors-ca.pem"


def mesh_ca(pki: Path) -> Path:
    """The CA of everything inside: gateways, replicas, admins, the operator, etcd."""
    return pki / "mesh-ca.pem"


def door_pair(pki: Path, region: RegionId) -> Pair:
    """What a region's doors show."""
    return Pair(pki / region / "door.pem", pki / region / "door.key")


def role_pair(pki: Path, region: RegionId | None, role: Role) -> Pair:
    """What a program shows inside the mesh; an operator has no region."""
    folder = pki if role is Role.OPERATOR or region is None else pki / region
    return Pair(folder / f"{role}.pem", folder / f"{role}.key")


def etcd_pair(pki: Path, name: str) -> Pair:
    """`server` or `root` of the control store."""
    return Pair(pki / "etcd" / f"{name}.pem", pki / "etcd" / f"{name}.key")


def read(path: Path) -> bytes:
    """Reads one file of the folder.

    Raises:
        MeshError: `invalid_settings`, with the file's name.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise MeshError(Code.INVALID_SETTINGS, hint=f"{path}: {error.strerror}.") from None


def read_mesh_secret(pki: Path) -> bytes:
    """The mesh-wide secret that authenticates the tags of API keys.

    Raises:
        MeshError: `invalid_settings` where it is missing, not hex or shorter than 16 bytes.
    """
    path = pki / "mesh-secret"
    try:
        secret = bytes.fromhex(read(path).decode("ascii", "replace"))
    except ValueError:
        secret = b""
    if len(secret) < _SECRET_BYTES:
        raise MeshError(Code.INVALID_SETTINGS, hint=f"{path}: not {_SECRET_BYTES} or more bytes in hex.")
    return secret


def read_policy_key(pki: Path, region: RegionId) -> bytes:
    """The private key that signs the policy of a home's tenants, in PEM.

    Raises:
        MeshError: `invalid_settings` where it is missing, or others than its owner may read it.
    """
    path = pki / region / "policy.key"
    raw = read(path)
    if path.stat().st_mode & 0o077:
        raise MeshError(Code.INVALID_SETTINGS, hint=f"{path}: others may read it; set its mode to 600.")
    return raw
