"""Tells the gRPC door by which name each of its connections was opened.

grpc shows neither the name of the TLS handshake (SNI) nor `:authority`. So where tenants have names, the door's address
is this relay's: it reads the first message of TLS, which is in clear, notes the name, and passes every byte on to the
door, which listens on loopback and sees each connection as one of the relay's. It holds no key, and cannot read what
follows. What asks for a name of another region is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

from mesh.errors import Code, MeshError
from mesh.policy.hostnames import DoorNames
from mesh.settings import Address
from mesh.tls.hello import HelloError, read_hello

HELLO_S = 3.0
"""How long a client may take for its first message."""
_CONNECT_S = 5.0
_CONNECTIONS = 4096
_BUFFER_BYTES = 65_536


class NameRelay:
    """A relay that listens; made by `relay`."""

    def __init__(self, door: Address, names: DoorNames, tasks: asyncio.TaskGroup) -> None:
        self._door = door
        self._names = names
        self._tasks = tasks
        self._asked: dict[str, str | None] = {}
        self._open: set[_Client] = set()
        self._listener: asyncio.Server | None = None
        self.port = 0
        """Where it listens."""

    def name_of(self, peer: str) -> str | None:
        """The name that a connection asked for, or None where it asked for none.

        Args:
            peer: As grpc names it: `ipv4:127.0.0.1:40000`.

        Raises:
            MeshError: MISDIRECTED_REQUEST for a connection that did not come by the relay.
        """
        if peer not in self._asked:
            raise MeshError(Code.MISDIRECTED_REQUEST)
        return self._asked[peer]

    async def listen(self, address: Address) -> None:
        """Begins to take connections.

        Raises:
            OSError: The address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: _Client(self), address.host, address.port, backlog=1024)
        self.port = int(self._listener.sockets[0].getsockname()[1])

    def stop_listening(self) -> None:
        """Takes no more connections; those that are open go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def cut(self) -> None:
        """Ends every connection."""
        for client in tuple(self._open):
            client.abort()

    # For connections.

    def admit(self, client: _Client) -> bool:
        """Whether one more connection may stay."""
        if len(self._open) >= _CONNECTIONS:
            return False
        self._open.add(client)
        return True

    def is_ours(self, server_name: str | None) -> bool:
        """Whether a name is one of this region's, or none."""
        try:
            self._names.label(server_name, None)
        except MeshError:
            return False
        return True

    def join(self, client: _Client, server_name: str | None) -> None:
        """Connects a client to the door."""
        self._tasks.create_task(self._join(client, server_name), name="name-relay-join")

    def forget(self, client: _Client, peer: str | None) -> None:
        """A connection is gone."""
        self._open.discard(client)
        if peer is not None:
            self._asked.pop(peer, None)

    async def _join(self, client: _Client, server_name: str | None) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                transport, _ = await loop.create_connection(lambda: _Door(client), self._door.host, self._door.port)
        except OSError:  # TimeoutError is one
            client.abort()
            return
        host, port = cast("tuple[str, int]", transport.get_extra_info("sockname"))
        peer = f"ipv4:{host}:{port}"
        # Before the door sees a byte of it, so that no call can be asked about too early.
        self._asked[peer] = server_name
        client.joined(transport, peer)


class _End(asyncio.Protocol):
    """One end: what comes here is written there, no faster than it is taken."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.write(data)

    def eof_received(self) -> bool:
        # Neither side of grpc closes one direction alone: who ends one has ended both.
        if self.other is not None:
            self.other.close()
        return False

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.is_closing():
            self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is None:
            return
        if exc is None:
            self.other.close()
        else:
            self.other.abort()


class _Client(_End):
    """The client's end. Says nothing to the door before it knows the name."""

    def __init__(self, relay: NameRelay) -> None:
        super().__init__()
        self._relay = relay
        self._first: bytearray | None = bytearray()
        self._named = False
        self._peer: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._relay.admit(self):
            transport.close()
            return
        self._deadline = asyncio.get_running_loop().call_later(HELLO_S, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._first is None:
            super().data_received(data)
            return
        self._first += data
        if self._named:
            return
        try:
            hello = read_hello(self._first)
        except HelloError:
            self.abort()
            return
        if hello is None:
            return
        self._named = True
        self._clear_deadline()
        if not self._relay.is_ours(hello.server_name):
            self.abort()
            return
        if self.transport is not None:
            self.transport.pause_reading()
        self._relay.join(self, hello.server_name)

    def eof_received(self) -> bool:
        if self.other is None:
            self.abort()
        return super().eof_received()

    def joined(self, door: asyncio.Transport, peer: str) -> None:
        """The door is connected: it gets what has come so far."""
        self._peer = peer
        if self._lost or self.transport is None or self.transport.is_closing() or self._first is None:
            door.abort()
            self._relay.forget(self, peer)
            return
        first, self._first, self.other = bytes(self._first), None, door
        door.write(first)
        self.transport.resume_reading()

    def abort(self) -> None:
        """Ends both connections now."""
        for transport in (self.transport, self.other):
            if transport is not None:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._clear_deadline()
        self._relay.forget(self, self._peer)
        super().connection_lost(exc)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Door(_End):
    """The door's end."""

    def __init__(self, client: _Client) -> None:
        super().__init__()
        self.other = client.transport


@asynccontextmanager
async def relay(address: Address, door: Address, names: DoorNames) -> AsyncGenerator[NameRelay]:
    """Relays what comes to `address` to the door at `door`, until the `async with` is left; then what is open is cut.

    Raises:
        OSError: The address cannot be listened on.
    """
    failure: Exception | None = None
    async with asyncio.TaskGroup() as tasks:
        made = NameRelay(door, names, tasks)
        try:
            await made.listen(address)
            yield made
        except Exception as error:  # noqa: BLE001 - raised again below, out of the group, which would wrap it
            failure = error
        finally:
            made.stop_listening()
            made.cut()
    if failure is not None:
        raise failure
