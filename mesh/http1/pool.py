"""Connections that are kept and used again.

Nothing is ever tried twice here. Who may try again is told where it is likely that nothing was received.
"""

from __future__ import annotations

import asyncio
import ssl

from mesh.http1.client import Address, ClientConnection, ConnectionFailedError, Response, render_request
from mesh.http1.head import Headers
from mesh.http1.request import Check


class TooManyConnectionsError(ConnectionFailedError):
    """This address has `per_address` connections, all of them busy. Nothing was sent."""


class StaleConnectionError(ConnectionFailedError):
    """The connection had been used before, and broke at once, before a byte of this request's answer."""


class Pool:
    """Connections to servers, kept by address, the last one used first. Belongs to one event loop."""

    def __init__(
        self,
        tls: ssl.SSLContext | None,
        *,
        idle_s: float = 30.0,
        connect_timeout_s: float = 3.0,
        per_address: int = 512,
        send_buffer_bytes: int | None = None,
        stale_s: float = 2.0,
    ) -> None:
        """A pool without connections.

        Args:
            tls: Of a client; None speaks in clear.
            idle_s: An unused connection is closed after one to two times this. Less than the servers' `keep_alive_s`.
            connect_timeout_s: For name, TCP and TLS together.
            per_address: The most open connections per address, idle ones included.
            send_buffer_bytes: The most that the operating system holds of what a connection sends; None leaves it to
                grow.
            stale_s: A kept connection that breaks within this, without an answer, is taken for one that was dead
                before. Many round trips: whoever breaks later was at work.
        """
        self._tls = tls
        self._idle_s = idle_s
        self._connect_timeout_s = connect_timeout_s
        self._per_address = per_address
        self._send_buffer_bytes = send_buffer_bytes
        self._stale_s = stale_s
        self._idle: dict[Address, list[ClientConnection]] = {}
        self._count: dict[Address, int] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
        self,
        host: str,
        port: int,
        *,
        server_name: str | None,
        method: str,
        target: str,
        headers: Headers,
        body: bytes | bytearray | memoryview = b"",
        check: Check | None = None,
        unacknowledged_s: float | None = None,
    ) -> Response:
        """Sends a request and waits for the head of its answer; the deadline is the caller's.

        `headers` hold `host` and no framing. `body` must not change until this returns. Cancelling it, or closing the
        response early, resets the connection: what was written and has not been sent never will be.

        Args:
            host: Address to connect to.
            port: Of it.
            server_name: The name that the server's certificate must have.
            method: In capitals.
            target: Path and query.
            headers: Names in lower case.
            body: Sent with its length.
            check: Asked before each piece is sent; what it raises ends the request.
            unacknowledged_s: The connection breaks once what was sent has not been acknowledged for so long
                (TCP_USER_TIMEOUT), also where this process has stopped; at least a millisecond.

        Raises:
            StaleConnectionError: The server was as a rule gone already; the next request makes a new connection.
            ConnectionFailedError: It could not be handed over, or the connection broke before the answer's head.
        """
        address = Address(host, port, server_name)
        head = render_request(method, target, headers, len(body))
        kept = self._take(address)
        connection = kept or await self._connect(address)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            if unacknowledged_s is not None:
                connection.give_up_after(unacknowledged_s)
            return await connection.exchange(head, body, bodiless=method == "HEAD", check=check)
        except ConnectionFailedError:
            connection.reset()
            if kept is None or connection.answered or loop.time() - began_s >= self._stale_s:
                raise
            # What has waited longer than the one that was dead is as dead, and would fail the next try as well.
            for other in self._idle.pop(address, []):
                other.abort()
            raise StaleConnectionError from None
        except BaseException:
            connection.reset()
            raise

    def close(self) -> None:
        """Closes what is idle; what is in use is closed when its response is."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connections in self._idle.values():
            for connection in connections:
                connection.leave()
        self._idle.clear()

    # For connections (`client.Keeper`).

    def put_back(self, connection: ClientConnection) -> None:
        """A connection is free again."""
        if self._closed:
            connection.leave()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since = loop.time()
        self._idle.setdefault(connection.address, []).append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._idle_s, self._sweep)

    def forget(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        address = connection.address
        self.withdraw(connection)
        left = self._count[address] - 1
        if left:
            self._count[address] = left
        else:
            del self._count[address]

    def withdraw(self, connection: ClientConnection) -> None:
        """A connection must not be used again."""
        stack = self._idle.get(connection.address)
        if stack is not None and connection in stack:
            stack.remove(connection)
            if not stack:
                del self._idle[connection.address]

    # Within.

    def _take(self, address: Address) -> ClientConnection | None:
        while (stack := self._idle.get(address)) is not None:
            connection = stack.pop()
            if not stack:
                del self._idle[address]
            if connection.is_quiet():
                return connection
            connection.abort()
        return None

    async def _connect(self, address: Address) -> ClientConnection:
        count = self._count.get(address, 0)
        if count >= self._per_address:
            raise TooManyConnectionsError
        if self._closed:
            raise ConnectionFailedError
        if self._tls is not None and self._tls.check_hostname and address.server_name is None:
            raise ValueError("a server_name is needed to verify a certificate")
        loop = asyncio.get_running_loop()
        connection = ClientConnection(loop, self, address, self._tls)
        self._count[address] = count + 1
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await loop.create_connection(lambda: connection, address.host, address.port)
                await connection.opened
                connection.keep_asking()
                if self._send_buffer_bytes is not None:
                    connection.hold_at_most(self._send_buffer_bytes)
        except (OSError, TimeoutError):
            connection.discard()
            # An OSError may name the address, which is ours to log and not a client's to see.
            raise ConnectionFailedError from None
        except BaseException:
            connection.discard()
            raise
        return connection

    def _sweep(self) -> None:
        self._sweeper = None
        loop = asyncio.get_running_loop()
        oldest = loop.time() - self._idle_s
        for address in list(self._idle):
            # The bottom of a stack has waited longest.
            stack = self._idle[address]
            kept = next((at for at, connection in enumerate(stack) if connection.idle_since > oldest), len(stack))
            old, self._idle[address] = stack[:kept], stack[kept:]
            if not self._idle[address]:
                del self._idle[address]
            for connection in old:
                connection.leave()
        if self._idle:
            self._sweeper = loop.call_later(self._idle_s, self._sweep)
