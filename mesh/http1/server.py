"""The listening side."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

from mesh.http1.connection import Connection, Fault, Handler
from mesh.http1.limits import Limits
from mesh.http1.names import remember_names
from mesh.http1.proxied import ProxyHeader, ProxyHeaderError, read_header
from mesh.http1.request import Peer

_BACKLOG = 1024


class Server:
    """A listening server; made by `listen`.

    Attributes:
        port: Where it listens.
        draining: Whether no more requests are taken.
    """

    def __init__(
        self,
        handler: Handler,
        fault: Fault,
        limits: Limits,
        tls: ssl.SSLContext | None,
        fronts: frozenset[str] | None,
    ) -> None:
        self.handler = handler
        self.fault = fault
        self.limits = limits
        self.port = 0
        self.draining = False
        if tls is not None:
            remember_names(tls)
        self._tls = tls
        self._fronts = fronts
        self._loop = asyncio.get_running_loop()
        self._tasks = asyncio.TaskGroup()
        self._open: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._empty: asyncio.Future[None] | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._open)

    async def drain(self, timeout_s: float) -> None:
        """Takes no more connections or requests, and waits for the answers under way.

        After `timeout_s` seconds what is left is cut off.
        """
        self._stop_listening()
        for connection in tuple(self._open):
            connection.leave()
        try:
            async with asyncio.timeout(timeout_s):
                await self._emptied()
        except TimeoutError:
            await self._cut()

    # For connections (`connection.Port`).

    def start(self, connection: Connection) -> None:
        """Runs a connection in a task of its own."""
        connection.task = self._tasks.create_task(connection.run(), name="http1-connection")

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if not self._open and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    # Within.

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncGenerator[Server]:
        """Listens until the body ends; then what is still open is cut off."""
        failure: Exception | None = None
        async with self._tasks:
            self._listener = await self._loop.create_server(self._accepted, host, port, backlog=_BACKLOG)
            self.port = int(self._listener.sockets[0].getsockname()[1])
            try:
                yield self
            except Exception as error:  # noqa: BLE001 - raised again below, out of the group, which would wrap it
                failure = error
            finally:
                self._stop_listening()
                await self._cut()
        if failure is not None:
            raise failure

    def admit(self, connection: Connection) -> bool:
        """Whether one more connection may stay."""
        if self.draining or len(self._open) >= self.limits.connections:
            return False
        self._open.add(connection)
        return True

    def _accepted(self) -> Connection:
        if self._fronts is None:
            return _Accepted(self._loop, self, self._tls)
        return _PassedOn(self._loop, self, self._tls, self._fronts)

    def _stop_listening(self) -> None:
        self.draining = True
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _cut(self) -> None:
        for connection in tuple(self._open):
            connection.kill()
        await self._emptied()

    async def _emptied(self) -> None:
        if self._open:
            if self._empty is None:
                self._empty = self._loop.create_future()
            await asyncio.shield(self._empty)


class _Accepted(Connection):
    """A connection as the listener makes it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Server, tls: ssl.SSLContext | None) -> None:
        super().__init__(loop, server)
        self._admitting = server
        self._context = tls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection, or closes it where there are too many: a handshake to say so would cost more."""
        if not self._admitting.admit(self):
            transport.close()
            return
        self.expect_handshake()
        self.start_with(transport)

    def start_with(self, transport: asyncio.BaseTransport) -> None:
        """Begins to serve."""
        cast("asyncio.Transport", transport).set_write_buffer_limits(high=self._limits.high_water_bytes)
        self.begin(transport, self._context, server_side=True, server_name=None)


class _PassedOn(_Accepted):
    """A connection that a front passes on; the front says first whose it is."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, server: Server, tls: ssl.SSLContext | None, fronts: frozenset[str]
    ) -> None:
        super().__init__(loop, server, tls)
        self._fronts = fronts
        self._preamble = bytearray()
        self._header: ProxyHeader | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes a front's connection; one that comes from anywhere else is closed before it has said a word."""
        peer = cast("tuple[str, int] | None", transport.get_extra_info("peername"))
        if peer is None or _unmapped(peer[0]) not in self._fronts or not self._admitting.admit(self):
            transport.close()
            return
        self._transport = cast("asyncio.Transport", transport)
        self.expect_handshake()

    def data_received(self, data: bytes) -> None:
        """Takes the front's word off what comes; the rest is the client's."""
        if self._header is not None or self._transport is None:
            super().data_received(data)
            return
        self._preamble += data
        try:
            self._header = header = read_header(self._preamble)
        except ProxyHeaderError:
            self.abort()
            return
        if header is not None:
            rest = bytes(self._preamble[header.size_bytes :])
            self._preamble.clear()
            self.start_with(self._transport)
            if rest:
                super().data_received(rest)

    def _peer(self) -> Peer:
        peer, header = super()._peer(), self._header
        if header is None or header.address is None:
            return peer
        return replace(peer, address=header.address, port=header.port)


def _unmapped(address: str) -> str:
    """An IPv4 address as such, also where an IPv6 socket took it."""
    return address.removeprefix("::ffff:") if "." in address else address


@asynccontextmanager
async def listen(
    handler: Handler,
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None,
    fault: Fault,
    limits: Limits | None = None,
    fronts: frozenset[str] | None = None,
) -> AsyncGenerator[Server]:
    """Serves HTTP/1.1 on `host` and `port` (0: any free one) until the body ends.

    What still runs then is cut off; call `Server.drain` before to let it finish. Exceptions that leave a handler are
    answered by `fault`; their texts go nowhere.

    With `fronts`, only connections from these IP addresses are taken, and each must begin with a header of the PROXY
    protocol, whose word is taken for the client's address.

    Raises:
        OSError: The address cannot be listened on.
    """
    async with Server(handler, fault, limits or Limits(), tls, fronts).listening(host, port) as server:
        yield server
