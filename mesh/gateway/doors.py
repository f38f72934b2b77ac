"""The ports of a gateway at which calls and parcels come, and its internal one."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Protocol

import grpc

from mesh import tls
from mesh.errors import Code, MeshError
from mesh.gateway.answers import Answers
from mesh.gateway.atlas import door_names
from mesh.gateway.story import Story
from mesh.http1 import Server, listen
from mesh.ports import TaskFactory
from mesh.settings import Address, Gateway, Settings
from mesh.transport.grpc_door import GrpcDoor
from mesh.transport.grpc_server import GrpcServer, listen_grpc
from mesh.transport.hops import FrameHop, Sealed
from mesh.transport.http_door import HttpDoor
from mesh.transport.name_relay import NameRelay, relay
from mesh.transport.openapi import document
from mesh.transport.peer_door import PeerDoor
from mesh.types import Here, RequestId, Role

DRAIN_S = 10.0
"""How long running calls may take to end when the gateway is told to go."""
_LOOPBACK = "127.0.0.1"
_INTERNAL_MESSAGE_BYTES = 1024 * 1024


class Failed(Protocol):
    """Told of what nobody foresaw, and of which call where that is known; must not log its text."""

    def __call__(self, error: BaseException, request_id: RequestId | None = None) -> None:
        """Notes it by its class and its place."""
        ...


class Doors:
    """All of them, over one story. `open` them, in order, on a stack that closes them."""

    def __init__(
        self,
        *,
        settings: Settings,
        here: Here,
        gateway: Gateway,
        story: Story[Sealed, FrameHop],
        answers: Answers,
        next_request_id: Callable[[], RequestId],
        failed: Failed,
        tasks: TaskFactory,
    ) -> None:
        """Opens nothing yet.

        Raises:
            MeshError: INVALID_SETTINGS: the doors' certificate is good for another region's names.
        """
        self._settings = settings
        self._here = here
        self._gateway = gateway
        self._tasks = tasks
        self._names = names = door_names(settings, here.region, gateway)
        tls.check_door_names(settings.pki, here.region, names.zones - {names.zone})
        self._grpc = GrpcDoor(
            serve=story.serve,
            queries=answers,
            here=here,
            names=names,
            asked_name=lambda context: None if self._relay is None else self._relay.name_of(context.peer()),
            next_request_id=next_request_id,
            max_body_bytes=settings.max_body_bytes,
            failed=failed,
        )
        self._http = HttpDoor(
            serve=story.serve,
            queries=answers,
            here=here,
            names=names,
            next_request_id=next_request_id,
            openapi=document(),
            failed=failed,
        )
        self._peer = PeerDoor(serve=story.serve_forwarded, here=here.region, regions=settings.regions)
        self._relay: NameRelay | None = None
        self._servers: list[Server | GrpcServer] = []
        self._http_server: Server | None = None

    @property
    def connections(self) -> int:
        """Open at the HTTP door."""
        return 0 if self._http_server is None else self._http_server.connections

    async def open(self, stack: AsyncExitStack, internal: Iterable[grpc.GenericRpcHandler]) -> None:
        """Opens each door, and the internal port for these services.

        Raises:
            MeshError: START_FAILED: a port is taken, or would speak an older TLS than 1.3.
        """
        pki, region, gateway = self._settings.pki, self._here.region, self._gateway
        grpc_server = await self._listen_grpc(stack)
        # A server of its own, since a gRPC server serves all it has on each port.
        await stack.enter_async_context(
            listen_grpc(
                internal,
                gateway.internal,
                tls.grpc_server_credentials(pki, region, Role.GATEWAY),
                message_bytes=_INTERNAL_MESSAGE_BYTES,
            )
        )
        peer_tls, door_tls = tls.server_context(pki, region, Role.GATEWAY), tls.door_context(pki, region)
        peer_server = await _listen_http(stack, self._peer, gateway.peer, peer_tls)
        self._http_server = await _listen_http(stack, self._http, gateway.http, door_tls)
        self._servers = [self._http_server, peer_server, grpc_server]
        front = self._settings.regions[region].front
        if front is not None and gateway.proxied is not None:
            fronts = frozenset(front.sources)
            self._servers.append(await _listen_http(stack, self._http, gateway.proxied, door_tls, fronts=fronts))
        # Each TLS port must refuse TLS 1.2 now, or nothing is served.
        for address in (gateway.http, gateway.grpc, gateway.internal, gateway.peer):
            await tls.check_tls13(address.host, address.port)

    async def drain(self) -> None:
        """Closes the doors for new calls and lets those that run end."""
        if self._relay is not None:
            self._relay.stop_listening()
        await self._grpc.close()
        async with self._tasks() as tasks:
            for server in self._servers:
                tasks.spawn(server.drain(DRAIN_S), "drain")

    async def _listen_grpc(self, stack: AsyncExitStack) -> GrpcServer:
        """Opens the gRPC door; where tenants have names, behind a relay that notes which one was called."""
        address, names = self._gateway.grpc, self._names
        credentials = tls.grpc_door_credentials(self._settings.pki, self._here.region)
        if names.zone is None:
            return await stack.enter_async_context(self._grpc.listen(address, credentials))
        server = await stack.enter_async_context(self._grpc.listen(Address(_LOOPBACK, 0), credentials))
        try:
            self._relay = await stack.enter_async_context(relay(address, Address(_LOOPBACK, server.port), names))
        except OSError:
            raise MeshError(Code.START_FAILED, hint=f"Cannot listen on {address}.") from None
        return server


async def _listen_http(
    stack: AsyncExitStack,
    door: HttpDoor | PeerDoor,
    address: Address,
    context: ssl.SSLContext,
    *,
    fronts: frozenset[str] | None = None,
) -> Server:
    try:
        return await stack.enter_async_context(
            listen(door.handle, address.host, address.port, tls=context, fault=door.fault, fronts=fronts)
        )
    except OSError:
        raise MeshError(Code.START_FAILED, hint=f"Cannot listen on {address}.") from None
