"""Asks the region's gateways where a call would go: they decide, by the same code as for the call itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import grpc
import grpc.aio

from mesh.errors import Code, MeshError
from mesh.settings import Region
from mesh.tls import grpc_channel_options
from mesh.transport.grpc_errors import from_rpc_error
from mesh.types import Role, TenantId
from mesh.v1 import fleet_pb2, fleet_pb2_grpc, router_pb2

_ATTEMPT_S = 1.5
_AWAY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
_RECONNECT = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000))
_Ask = Callable[..., Awaitable[router_pb2.ExplainResponse]]


class Routes:
    """Open channels to a region's gateways. Open it with `routes`."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._stubs = [fleet_pb2_grpc.InspectStub(channel) for channel in channels]

    async def explain(self, tenant: TenantId, model: str) -> router_pb2.ExplainResponse:
        """What the first gateway that answers says.

        Raises:
            MeshError: `region_unreachable` when none does, or what the gateway refused it with.
        """
        request = fleet_pb2.ExplainForRequest(tenant=tenant, model=model)
        for stub in self._stubs:
            try:
                return await cast("_Ask", stub.ExplainFor)(request, timeout=_ATTEMPT_S)
            except grpc.aio.AioRpcError as error:
                refused = None if error.code() in _AWAY else from_rpc_error(error)
            if refused is not None:
                raise refused
        raise MeshError(Code.REGION_UNREACHABLE, hint="None of its gateways answers.")


@asynccontextmanager
async def routes(region: Region, credentials: grpc.ChannelCredentials) -> AsyncGenerator[Routes]:
    """Opens channels to a region's gateways; nothing connects before it is asked."""
    options = [*grpc_channel_options(Role.GATEWAY, region.id), *_RECONNECT]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.secure_channel(str(gateway.internal), credentials, options=options)
            )
            for gateway in region.gateways
        ]
        yield Routes(channels)
