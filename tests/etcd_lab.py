"""A real etcd for tests: mTLS, TLS 1.3 only, roles by certificate; it can be killed, started again and cut off."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path

from ports import HOST, free_port

from mesh.control.etcd import EtcdStore, open_store, open_store_as_root
from mesh.control.roles import set_up
from mesh.control.store import Range
from mesh.embedded.authority import make_pki
from mesh.embedded.etcd_binary import find_etcd
from mesh.runtime import SystemClock
from mesh.types import RegionId, Role

CACHE = Path(__file__).parent.parent / ".mesh-test-cache"


@cache
def etcd_binary() -> str:
    """That of MESH_ETCD, else `etcd` on PATH, else Debian's package unpacked into the tests' cache."""
    return os.environ.get("MESH_ETCD") or str(find_etcd(CACHE, os.environ, lambda *_: None))


class Etcd:
    """One member on loopback."""

    def __init__(self, folder: Path, pki: Path) -> None:
        self.pki = pki
        self.port, self._peer = free_port(), free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"https://{HOST}:{self.port}"

    def start(self) -> None:
        peer = f"https://{HOST}:{self._peer}"
        tls = {
            "cert-file": self.pki / "etcd" / "server.pem",
            "key-file": self.pki / "etcd" / "server.key",
            "trusted-ca-file": self.pki / "mesh-ca.pem",
        }
        options = [f"--{kind}{name}={path}" for name, path in tls.items() for kind in ("", "peer-")]
        command = [
            etcd_binary(),
            "--name=n1",
            f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=n1={peer}",
            "--client-cert-auth",
            "--peer-client-cert-auth",
            "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "--enable-grpc-gateway=false",
            "--log-level=error",
            "--logger=zap",
            *options,
        ]
        with Path(self._folder, "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Proxy:
    """Forwards TCP to a port; can reset its connections after so many bytes towards the client."""

    def __init__(self, port: int) -> None:
        self.cuts = 0
        self._to = port
        self._left: int | None = None
        self._closed = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"https://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    def cut_after(self, size_bytes: int) -> None:
        self._left = size_bytes

    def cut_now(self) -> None:
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()

    def close(self) -> None:
        """Cuts, and lets nobody through, until `open`."""
        self._closed = True
        self.cut_now()

    def open(self) -> None:
        self._closed = False

    def hold(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        self._flowing.clear()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Proxy]:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        try:
            yield self
        finally:
            self._server.close()
            self.cut_now()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(HOST, self._to)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, up_writer}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, up_writer, counted=False))
                tasks.create_task(self._pump(up_reader, writer, counted=True))
        except* (ConnectionError, OSError):
            pass
        finally:
            self._writers -= pair
            for one in pair:
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        while data := await reader.read(16_384):
            await self._flowing.wait()
            if counted and self._left is not None:
                self._left -= len(data)
                if self._left < 0:
                    self._left = None
                    self.cut_now()
                    raise ConnectionResetError
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # one side is gone: so is the other


class Lab:
    """An etcd and stores on it. All is ended with the `async with` that made it."""

    def __init__(self, etcd: Etcd, stack: AsyncExitStack) -> None:
        self.etcd = etcd
        self.clock = SystemClock()
        self._stack = stack

    async def store(self, region: str, role: Role, *endpoints: str) -> EtcdStore:
        opened = open_store(endpoints or (self.etcd.endpoint,), self.etcd.pki, RegionId(region), role, self.clock)
        return await self._stack.enter_async_context(opened)

    async def root(self, *endpoints: str) -> EtcdStore:
        opened = open_store_as_root(endpoints or (self.etcd.endpoint,), self.etcd.pki, self.clock)
        return await self._stack.enter_async_context(opened)


@asynccontextmanager
async def running_etcd(folder: Path, regions: Sequence[str] = ("vn-1",)) -> AsyncGenerator[Lab]:
    """Starts a member with users, roles and access control for some regions."""
    pki = folder / "pki"
    make_pki(pki, {RegionId(region): (HOST,) for region in regions}, (HOST,))
    etcd = Etcd(folder, pki)
    etcd.start()
    try:
        async with AsyncExitStack() as stack:
            lab = Lab(etcd, stack)
            root = await lab.root()
            # Repeated until the member answers.
            await root.range(Range("/ready"), timeout_s=30)
            await set_up(root, [RegionId(region) for region in regions])
            yield lab
    finally:
        etcd.kill()
