"""Proves at the start that a region's door certificate is good for no other region's names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mesh.errors import Code, MeshError
from mesh.tls.files import door_pair, read
from mesh.types import RegionId


def check_door_names(pki: Path, region: RegionId, foreign_zones: Iterable[str]) -> None:
    """Returns if no name in the certificate is, or stands for, one in another region's zone.

    Raises:
        MeshError: INVALID_SETTINGS, with the file's name, where one is, or where it is no certificate.
    """
    from cryptography import x509  # noqa: PLC0415 - only those that open doors have it

    path = door_pair(pki, region).certificate
    try:
        certificate = x509.load_pem_x509_certificate(read(path))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        names = None
    if names is None:
        raise MeshError(Code.INVALID_SETTINGS, hint=f"{path}: not a certificate with names.")
    zones = tuple(foreign_zones)
    for name in names.get_values_for_type(x509.DNSName):
        bare = name.lower().removeprefix("*.")
        for zone in zones:
            # `*.mesh.example` would be good for `vn-1.mesh.example` itself.
            parent = zone.partition(".")[2]
            if bare == zone or bare.endswith(f".{zone}") or (name.startswith("*.") and bare == parent):
                raise MeshError(Code.INVALID_SETTINGS, hint=f"{path}: holds a name of another region.")
