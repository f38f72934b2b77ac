"""A grpc.aio server as the mesh runs them: bounded, uncompressed, ended by leaving its `async with`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio

from mesh.errors import Code, MeshError
from mesh.settings import Address
from mesh.transport.grpc_errors import Trailers, abort

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Failed = Callable[[BaseException], None]
"""Told of what nobody foresaw; must not log its text, which may hold content."""
METADATA_BYTES = 16_384
_MIB = 1024 * 1024
_CONCURRENT_CALLS = 4096
_STREAMS_PER_CONNECTION = 256


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


class GrpcServer:
    """A server that listens."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self._server = server
        self.port = port

    async def drain(self, timeout_s: float) -> None:
        """Takes no new calls, and lets those that run end; what is left after `timeout_s` is cancelled."""
        await self._server.stop(timeout_s)


@asynccontextmanager
async def listen_grpc(
    handlers: Iterable[grpc.GenericRpcHandler],
    address: Address,
    credentials: grpc.ServerCredentials,
    *,
    message_bytes: int,
) -> AsyncGenerator[GrpcServer]:
    """Serves until the `async with` is left; calls that still run then are cancelled.

    Args:
        handlers: What is served.
        address: Where; port 0 takes a free one.
        credentials: TLS; there is no other way to be called.
        message_bytes: The largest message that is taken apart; 1 MiB more is refused by gRPC itself.

    Raises:
        MeshError: START_FAILED when the address cannot be listened on.
    """
    options: list[tuple[str, int]] = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", message_bytes + _MIB),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.max_concurrent_streams", _STREAMS_PER_CONNECTION),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.ping_timeout_ms", 20_000),
        # Only uncompressed messages: a small one cannot become a large one here, and lengths tell less of secrets.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Nothing is read ahead of a handler that has not asked for it, but for a window's worth: with these two, a call
        # that is refused by its metadata leaves its message with the client.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65_536),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_CONCURRENT_CALLS)
    server.add_generic_rpc_handlers(tuple(handlers))
    try:
        port = server.add_secure_port(str(address), credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise MeshError(Code.START_FAILED, hint=f"Cannot listen on {address}.")
    await server.start()
    try:
        yield GrpcServer(server, port)
    finally:
        await server.stop(0)


@asynccontextmanager
async def telling(
    context: Context, failed: Failed, *, trailers: Callable[[MeshError], Trailers] = lambda _: ()
) -> AsyncGenerator[None]:
    """Ends the call with what its body raises; what is not a `MeshError` is `internal_error`, without its text."""
    try:
        yield
    except MeshError as error:
        fault = error
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # noqa: BLE001 - gRPC would send its text to the client
        failed(error)
        fault = MeshError(Code.INTERNAL_ERROR)
    else:
        return
    # After the `except`, so that the error's traceback does not hold the first one's.
    await abort(context, fault, trailers=trailers(fault))


def unary(
    work: Callable[[Any, Context], Awaitable[_Message]], request: Callable[[bytes], object], failed: Failed
) -> Handler:
    """A handler of one small message and one answer."""

    async def handle(message: object, context: Context) -> _Message:
        async with telling(context, failed):
            return await work(message, context)
        raise AssertionError("unreachable: telling() aborts")

    return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=request, response_serializer=_serialize)


def stream(
    work: Callable[[Context], Awaitable[None]], request: Callable[[bytes], object] | None, failed: Failed
) -> Handler:
    """A handler that reads and writes by itself. Without `request`, it does so in bytes."""

    async def handle(_: object, context: Context) -> None:
        async with telling(context, failed):
            await work(context)

    return grpc.stream_stream_rpc_method_handler(
        handle,
        request_deserializer=request,
        response_serializer=None if request is None else _serialize,
    )


def unary_stream(
    work: Callable[[Any, Context], AsyncGenerator[_Message]], request: Callable[[bytes], object], failed: Failed
) -> Handler:
    """A handler of one small message and as many answers as `work` yields. A client that leaves cancels it."""

    async def handle(message: object, context: Context) -> None:
        async with telling(context, failed), aclosing(work(message, context)) as answers:
            async for answer in answers:
                await context.write(answer)

    return grpc.unary_stream_rpc_method_handler(handle, request_deserializer=request, response_serializer=_serialize)


def service(name: str, methods: Mapping[str, Handler]) -> grpc.GenericRpcHandler:
    """The handlers of one service, by its full name."""
    return grpc.method_handlers_generic_handler(name, dict(methods))


def _serialize(message: _Message) -> bytes:
    return message.SerializeToString()
