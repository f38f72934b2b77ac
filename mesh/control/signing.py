"""Signatures of policy: a home's admin signs with its private policy key, everyone verifies with what region files say.

A signature is Ed25519 over a domain and the fields, each with its length before it: no two different records have one
signature. The private key is needed by the home's admin alone; nobody else reads its file.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from mesh.errors import Code, MeshError
from mesh.settings import PolicyKey, Region
from mesh.tls import read_policy_key

_INTEGER_BYTES = 8


class Signer:
    """The private policy key of one home."""

    def __init__(self, key: Ed25519PrivateKey, key_id: str) -> None:
        self._key = key
        self.key_id = key_id

    @classmethod
    def load(cls, pki: Path, region: Region) -> Signer:
        """The key in `<pki>/<region>/policy.key`, which must be one of the region's policy keys.

        Raises:
            MeshError: `invalid_settings`.
        """
        name = f"pki/{region.id}/policy.key"
        if not region.policy_keys:
            hint = f"regions/{region.id}.yaml: has no 'policy_keys', so the region cannot be a tenant's home."
            raise MeshError(Code.INVALID_SETTINGS, hint=hint)
        try:
            key = load_pem_private_key(read_policy_key(pki, region.id), password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise MeshError(Code.INVALID_SETTINGS, hint=f"{name}: not an Ed25519 private key in PEM.")
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        for one in region.policy_keys:
            if one.public == public:
                return cls(key, one.id)
        hint = f"{name}: its public part is not among 'policy_keys' of regions/{region.id}.yaml."
        raise MeshError(Code.INVALID_SETTINGS, hint=hint)

    def sign(self, payload: bytes) -> bytes:
        """The signature of a payload, which must begin with a domain of its own."""
        return self._key.sign(payload)


def verify(keys: Iterable[PolicyKey], key_id: str, signature: bytes, payload: bytes, at_s: float) -> bool:
    """Whether one of some keys, by its id, signed a payload and is valid at a time (seconds since 1970)."""
    day = datetime.fromtimestamp(at_s, UTC).date()
    for key in keys:
        if key.id != key_id:
            continue
        if (key.valid_from and day < key.valid_from) or (key.valid_until and day > key.valid_until):
            return False
        try:
            _public(key.public).verify(signature, payload)
        except InvalidSignature:
            return False
        return True
    return False


def fields(domain: bytes, *values: bytes | str | int) -> bytes:
    """A domain and values, each with its length before it. Integers are 8 bytes."""
    return b"".join(_measured(value) for value in (domain, *values))


def listed(values: Iterable[bytes | str | int]) -> bytes:
    """A list of values as one value."""
    return b"".join(map(_measured, values))


def _measured(value: bytes | str | int) -> bytes:
    match value:
        case int():
            raw = value.to_bytes(_INTEGER_BYTES, "big", signed=value < 0)
        case str():
            raw = value.encode()
        case bytes():
            raw = value
    return len(raw).to_bytes(4, "big") + raw


@lru_cache(maxsize=256)
def _public(raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(raw)
