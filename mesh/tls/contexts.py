"""Contexts of the `ssl` module for doors and hops: TLS 1.3 and nothing older.

They are built by hand: `ssl.create_default_context` obeys SSLKEYLOGFILE, which would write session keys to a file.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from mesh.errors import Code, MeshError
from mesh.tls.files import Pair, door_pair, mesh_ca, role_pair
from mesh.types import RegionId, Role

_ALPN = ["http/1.1"]


def door_context(pki: Path, region: RegionId) -> ssl.SSLContext:
    """A region's HTTP door: shows the door's certificate and asks clients for none."""
    return _context(ssl.PROTOCOL_TLS_SERVER, door_pair(pki, region), None)


def server_context(pki: Path, region: RegionId, role: Role) -> ssl.SSLContext:
    """An internal server: only certificates of the mesh's CA get in. Who may do what is the caller's to check."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, role_pair(pki, region, role), mesh_ca(pki))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(pki: Path, region: RegionId, role: Role) -> ssl.SSLContext:
    """An internal client. A connection's `server_hostname` is the `internal_name` of who is called: it is verified."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, role_pair(pki, region, role), mesh_ca(pki))


def _context(protocol: int, pair: Pair, trusted: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(_ALPN)
    for path in (pair.certificate, pair.key, *((trusted,) if trusted else ())):
        if not path.is_file():
            raise MeshError(Code.INVALID_SETTINGS, hint=f"{path}: there is no such file.")
    try:
        context.load_cert_chain(pair.certificate, pair.key)
        if trusted is not None:
            context.load_verify_locations(trusted)
    except (ssl.SSLError, OSError):
        raise MeshError(
            Code.INVALID_SETTINGS, hint=f"{pair.certificate}: not a certificate with its key and CA."
        ) from None
    return context
