"""How the embedded control store is run: one member, TLS 1.3 only, known by certificate only."""

from __future__ import annotations

from pathlib import Path

from mesh.embedded.addresses import Addresses

_NAME = "mesh"
_ONLY_TLS12_SUITE = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
"""The list governs TLS 1.2 only, and our key is ECDSA: no handshake below 1.3 finds a suite. 3.4 and 3.5 have no
option for the least version; the start-up check proves it."""


def etcd_command(binary: Path, data: Path, pki: Path, addresses: Addresses) -> list[str]:
    """The command that runs it, for 3.4.23 and newer."""
    client, peer = f"https://{addresses.etcd}", f"https://{addresses.etcd_peer}"
    certificate, key, trusted = pki / "etcd" / "server.pem", pki / "etcd" / "server.key", pki / "mesh-ca.pem"
    options = {
        "name": _NAME,
        "data-dir": data,
        "listen-client-urls": client,
        "advertise-client-urls": client,
        "listen-peer-urls": peer,
        "initial-advertise-peer-urls": peer,
        "initial-cluster": f"{_NAME}={peer}",
        "client-cert-auth": "true",
        "trusted-ca-file": trusted,
        "cert-file": certificate,
        "key-file": key,
        "peer-client-cert-auth": "true",
        "peer-trusted-ca-file": trusted,
        "peer-cert-file": certificate,
        "peer-key-file": key,
        "cipher-suites": _ONLY_TLS12_SUITE,
        "enable-grpc-gateway": "false",  # it would lend its own identity to whoever speaks HTTP
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "pre-vote": "true",
        "logger": "zap",
        "log-level": "warn",
    }
    return [str(binary), *(f"--{name}={value}" for name, value in options.items())]
