"""Reads the border's legs in clear: ends TLS and renews it, with the lab's own CA. Only a lab that owns the CA can.

    python -m border.relay --pki DIR --clear DIR --at etcd/server=10.88.2.1:2380 [--at ...]        (in the relay's namespace)

The router hands connections over with their addresses unchanged. A listener stands at the *server's* address and the
leg to the server leaves from the *client's*, so neither side sees another address than without the relay. Each side is
shown a certificate with the other's names, signed by the mesh's CA over a key of the relay's own: the server's is made
at the start from the file that `--at` names, a client's when it comes, from the certificate it shows.

Of each connection two files are written, `<n>-<client>-<server>-<port>-<alpn>.up` and `.down`: every byte in clear, in
order, before it is passed on. SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import signal
import socket
import ssl
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CHUNK = 1 << 16
HANDSHAKE_S = 15.0
ALPN = ("h2", "http/1.1")


class Forge:
    """Certificates with the names of others, by the mesh's CA."""

    def __init__(self, pki: Path, folder: Path) -> None:
        self._folder = folder
        self._ca_file = pki / "mesh-ca.pem"
        self._ca = x509.load_pem_x509_certificate(self._ca_file.read_bytes())
        key = serialization.load_pem_private_key((pki / "mesh-ca.key").read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._ca_key = key
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: dict[tuple[int, str, str | None], ssl.SSLContext] = {}

    def context(self, side: int, certificate: bytes, alpn: str | None) -> ssl.SSLContext:
        """TLS 1.3 that shows the same names as this certificate (DER) and demands one of the mesh's in return."""
        key = side, hashlib.sha256(certificate).hexdigest(), alpn
        if key not in self._contexts:
            pair = self._folder / f"{key[1][:24]}.pem"
            if not pair.exists():
                pair.write_bytes(self._renewed(x509.load_der_x509_certificate(certificate)))
            context = ssl.SSLContext(side)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False  # the router decided who is called; the CA is still demanded
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self._ca_file)
            context.load_cert_chain(pair)
            if side == ssl.PROTOCOL_TLS_SERVER:
                context.set_alpn_protocols(list(ALPN))
            elif alpn is not None:
                context.set_alpn_protocols([alpn])
            self._contexts[key] = context
        return self._contexts[key]

    def _renewed(self, old: x509.Certificate) -> bytes:
        now = datetime.now(UTC)
        public = self._key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(old.subject)
            .issuer_name(self._ca.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=2))
        )
        for extension in old.extensions:
            value = extension.value
            if isinstance(value, x509.SubjectKeyIdentifier):
                value = x509.SubjectKeyIdentifier.from_public_key(public)
            builder = builder.add_extension(value, extension.critical)
        secret = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return builder.sign(self._ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + secret


class Relay:
    """All connections. They are independent; each ends with both of its legs."""

    def __init__(self, forge: Forge, clear: Path, leg: Callable[[], socket.socket]) -> None:
        """A relay that writes into `clear`; `leg` makes a socket on the border."""
        self._forge = forge
        self._clear = clear
        self._leg = leg
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, pair: Path, host: str, port: int, *, onward: str | None = None) -> asyncio.Server:
        """Stands in for a server whose certificate is in `pair`, and which is at `host` or, if given, at `onward`."""
        shown = x509.load_pem_x509_certificate(pair.read_bytes()).public_bytes(serialization.Encoding.DER)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)  # the loop holds them weakly
            task.add_done_callback(self._tasks.discard)
            try:
                await self._connection(shown, (host, port), onward or host, reader, writer)
            except (OSError, EOFError):
                writer.transport.abort()

        socket_ = self._leg()
        socket_.bind((host, port))
        return await asyncio.start_server(
            connected,
            sock=socket_,
            backlog=256,
            limit=CHUNK * 4,
            ssl=self._forge.context(ssl.PROTOCOL_TLS_SERVER, shown, None),
            ssl_handshake_timeout=HANDSHAKE_S,
        )

    async def end(self) -> None:
        """Ends all connections."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(
        self,
        shown: bytes,
        server: tuple[str, int],
        onward: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        client: str = writer.get_extra_info("peername")[0]
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        alpn = tls.selected_alpn_protocol()
        certificate = tls.getpeercert(binary_form=True)
        assert certificate is not None
        leg = self._leg()
        try:
            leg.bind((client, 0))
            await asyncio.get_running_loop().sock_connect(leg, (onward, server[1]))
            context = self._forge.context(ssl.PROTOCOL_TLS_CLIENT, certificate, alpn)
            back, out = await asyncio.open_connection(
                sock=leg, limit=CHUNK * 4, ssl=context, server_hostname=server[0], ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError:
            leg.close()
            raise
        self._count += 1
        base = self._clear / f"{self._count:05}-{client}-{server[0]}-{server[1]}-{(alpn or 'none').replace('/', '_')}"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, out, Path(f"{base}.up")))
            tasks.create_task(pump(back, writer, Path(f"{base}.down")))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: Path) -> None:
    """One direction, to its end. A leg that breaks breaks the other one too."""
    with copy.open("wb", buffering=0) as clear:
        try:
            while data := await reader.read(CHUNK):
                clear.write(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            writer.transport.abort()
        finally:
            writer.close()


def leg_socket() -> socket.socket:
    """Its packets leave by border0 although their destination counts as local here."""
    leg = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    leg.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    leg.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, struct.pack("8s", b"border0"))
    # asyncio sets it only where the protocol is named: without it a whole round trip is added to a commit.
    leg.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    leg.setblocking(False)
    return leg


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pki", type=Path, required=True)
    parser.add_argument("--clear", type=Path, required=True)
    parser.add_argument("--at", action="append", required=True)
    options = parser.parse_args()
    renewed: Path = options.clear.parent / "renewed"
    for folder in (options.clear, renewed):
        folder.mkdir(mode=0o700, exist_ok=True)
    relay = Relay(Forge(options.pki, renewed), options.clear, leg_socket)
    for at in options.at:
        name, _, address = at.partition("=")
        host, _, port = address.partition(":")
        await relay.listen(options.pki / f"{name}.pem", host, int(port))
    (options.clear / "ready").touch()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(main())
