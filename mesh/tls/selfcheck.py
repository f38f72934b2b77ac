"""What a program does about TLS when it starts: sets its process up, and proves that its ports refuse TLS 1.2."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import MutableMapping
from pathlib import Path

from mesh.errors import Code, MeshError

GRPC_SUITES = ("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-CHACHA20-POLY1305")
"""The list governs TLS 1.2 only, and a PSK suite is never negotiated without a PSK: what is left is TLS 1.3.

For the initial environment of every program of the mesh, and of what starts Ray.
"""
_HANDSHAKE_S = 10.0


def prepare_process(environ: MutableMapping[str, str]) -> None:
    """Leaves grpc only TLS 1.3, in servers and clients, and no words of its own on standard error.

    Call it with `os.environ`, best before grpc is imported.

    grpc reads the setting once, at its import. Where that is too late, one of the mesh's own programs starts itself
    again with the setting (it has done nothing yet); any other process is refused.

    Raises:
        MeshError: `invalid_settings` where SSLKEYLOGFILE asks for session keys to be written to a file, or where this
            process imported grpc without the setting.
    """
    if environ.get("SSLKEYLOGFILE"):
        raise MeshError(
            Code.INVALID_SETTINGS, hint="SSLKEYLOGFILE is set: it would write session keys to a file. Unset it."
        )
    # Its log quotes what peers send, such as the text of a GOAWAY.
    environ["GRPC_VERBOSITY"] = "NONE"
    name, suites = GRPC_SUITES
    if environ.get(name) == suites:
        return
    environ[name] = suites
    if "grpc" not in sys.modules:
        return
    if not _is_program(sys.orig_argv):
        raise MeshError(
            Code.INVALID_SETTINGS, hint=f"Set {name}={suites} in the environment: without it grpc takes TLS 1.2."
        )
    os.execve(sys.executable, sys.orig_argv, dict(environ))  # noqa: S606 - itself, with the same arguments


def _is_program(argv: list[str]) -> bool:
    """Whether this is `python [options] -m mesh.something` or the `mesh` command."""
    return any(
        (argument == "-m" and following.startswith("mesh.")) or Path(argument).name == "mesh"
        for argument, following in zip(argv, [*argv[1:], ""], strict=True)
    )


async def check_tls13(host: str, port: int) -> None:
    """Proves that a port speaks TLS 1.3 and refuses TLS 1.2.

    Raises:
        MeshError: `start_failed` where it does not.
    """
    where = f"{host}:{port}"
    if not await _handshakes(host, port, ssl.TLSVersion.TLSv1_3):
        raise MeshError(Code.START_FAILED, hint=f"{where} does not answer in TLS 1.3.")
    if await _handshakes(host, port, ssl.TLSVersion.TLSv1_2):
        raise MeshError(Code.START_FAILED, hint=f"{where} accepts TLS 1.2.")


async def _handshakes(host: str, port: int, version: ssl.TLSVersion) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A probe sends nothing and believes nothing, so it takes any certificate; it offers all that this OpenSSL has,
    # so that a refusal is the server's.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.minimum_version = context.maximum_version = version
    try:
        async with asyncio.timeout(_HANDSHAKE_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, EOFError):  # TimeoutError and SSLError are OSErrors
        return False
    writer.transport.abort()
    return True
