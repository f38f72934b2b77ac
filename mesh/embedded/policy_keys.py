"""The keys that sign policy in an embedded mesh: one a region, made once and kept as long as the home.

A home's regions are all one user's, so here one user owns every key. In production only the host of a region's admin
has that region's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from mesh.embedded.home import Home, starting, write_private
from mesh.errors import Code, MeshError
from mesh.settings import PolicyKey
from mesh.tls import read_policy_key
from mesh.types import RegionId


def check_policy_keys(home: Home, regions: Iterable[RegionId]) -> None:
    """Refuses a home with policy that nobody can sign for any more: a new key would silently end all its tenants.

    Raises:
        MeshError: `start_failed`.
    """
    with starting():
        stored = bool(os.listdir(home.etcd))
    for region in regions:
        if stored and (home.pki / region).is_dir() and not _file(home.pki, region).exists():
            hint = (
                f"{_file(home.pki, region)} is missing, so no tenant of this mesh counts: it is from before policy was "
                f"signed, or the file was deleted. Put it back, or move {home.path} away and start a new mesh."
            )
            raise MeshError(Code.START_FAILED, hint=hint)


def make_policy_key(pki: Path, region: RegionId) -> None:
    """Makes a region's private policy key where there is none, with mode 600."""
    path = _file(pki, region)
    if path.exists():
        return
    raw = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(path, raw.decode("ascii"))


def policy_keys(pki: Path, regions: Iterable[RegionId]) -> Mapping[RegionId, tuple[PolicyKey, ...]]:
    """What the region files say of these regions' keys.

    Raises:
        MeshError: `start_failed`, `invalid_settings`: a file is damaged.
    """
    return {region: (_public_key(pki, region),) for region in regions}


def _public_key(pki: Path, region: RegionId) -> PolicyKey:
    try:
        key = load_pem_private_key(read_policy_key(pki, region), password=None)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise MeshError(Code.START_FAILED, hint=f"{_file(pki, region)}: not an Ed25519 private key in PEM.")
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return PolicyKey(id=f"k{hashlib.sha256(public).hexdigest()[:8]}", public=public)


def _file(pki: Path, region: RegionId) -> Path:
    return pki / region / "policy.key"
