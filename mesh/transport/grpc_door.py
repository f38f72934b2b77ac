"""The gRPC door. Knows methods and metadata; what a call may do is decided by what it is handed.

Every method is stream-shaped on the request's side: its handler starts at the metadata, so that a refused call's
message is never read. On the wire that is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health  # pyright: ignore[reportAttributeAccessIssue]

from mesh.errors import Code, MeshError
from mesh.policy.hostnames import DoorNames
from mesh.settings import Address
from mesh.transport.grpc_codec import explanation_message, model_message, resolution_message
from mesh.transport.grpc_errors import Trailers, abort
from mesh.transport.grpc_exchange import (
    AdmitExchange,
    GrpcExchange,
    at_least_asked,
    credential_of,
    head_metadata,
    read_message,
    refusal_metadata,
    timeout_s_of,
)
from mesh.transport.grpc_reflection import Reflection
from mesh.transport.grpc_server import Context, Failed, GrpcServer, Handler, listen_grpc, service, telling
from mesh.transport.queries import Queries
from mesh.types import AnswerHead, Here, Operation, RequestId
from mesh.v1 import inference_pb2, router_pb2

Serve = Callable[[GrpcExchange], Awaitable[None]]
Answered = tuple[AnswerHead, Message]
Answer = Callable[[str | None, str | None, RequestId, bytes], Awaitable[Answered]]
AskedName = Callable[[Context], str | None]
INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
ROUTER = router_pb2.DESCRIPTOR.services_by_name["Router"].full_name
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_QUESTION_BYTES = 65_536
_HEALTH_WATCHERS = 64
_CALLS = {
    "Chat": (Operation.CHAT, False),
    "ChatStream": (Operation.CHAT, True),
    "Complete": (Operation.COMPLETIONS, False),
    "CompleteStream": (Operation.COMPLETIONS, True),
    "Embed": (Operation.EMBEDDINGS, False),
}


class GrpcDoor:
    """The door of one gateway; `listen` opens it."""

    def __init__(
        self,
        *,
        serve: Serve,
        queries: Queries,
        here: Here,
        names: DoorNames,
        asked_name: AskedName,
        next_request_id: Callable[[], RequestId],
        max_body_bytes: int,
        failed: Failed,
    ) -> None:
        """Takes what the door hands calls to.

        Args:
            serve: The story of a call with content.
            queries: Answers without content.
            here: Where this gateway stands.
            names: By which it is called.
            asked_name: Tells the name of a call's TLS handshake (SNI), or None. gRPC shows neither it nor `:authority`.
            next_request_id: Draws an id.
            max_body_bytes: The largest message that a call may send.
            failed: Told of what nobody foresaw.
        """
        self._serve = serve
        self._queries = queries
        self._here = here
        self._names = names
        self._asked_name = asked_name
        self._next_request_id = next_request_id
        self._max_body_bytes = max_body_bytes
        self._failed = failed
        self._health = health.HealthServicer()
        self._watchers = 0

    @asynccontextmanager
    async def listen(self, address: Address, credentials: grpc.ServerCredentials) -> AsyncGenerator[GrpcServer]:
        """Opens the door until the `async with` is left.

        Raises:
            MeshError: START_FAILED when the address cannot be listened on.
        """
        await self._health.set(INFERENCE, health_pb2.HealthCheckResponse.SERVING)
        handlers = [self._inference(), self._router(), self._health_handlers()]
        reflection = Reflection((INFERENCE, ROUTER, _HEALTH), self._authenticate)
        handlers += reflection.handlers(self._failed)
        async with listen_grpc(handlers, address, credentials, message_bytes=self._max_body_bytes) as server:
            yield server

    async def close(self) -> None:
        """Tells those who watch the health that this door will close."""
        await self._health.enter_graceful_shutdown()

    # --- calls with content

    def _inference(self) -> grpc.GenericRpcHandler:
        methods = {name: self._call(operation, streams) for name, (operation, streams) in _CALLS.items()}
        methods["AdmitChat"] = self._carried(AdmitExchange)
        methods["ListModels"] = self._asked(self._list_models)
        return service(INFERENCE, methods)

    def _call(self, operation: Operation, streams: bool) -> Handler:
        return self._carried(
            lambda context, request_id, label: GrpcExchange(context, request_id, operation, label, stream=streams)
        )

    def _carried(self, exchange_of: Callable[[Context, RequestId, str | None], GrpcExchange]) -> Handler:
        async def handle(_: object, context: Context) -> None:
            request_id = self._next_request_id()
            exchange: GrpcExchange | None = None

            def trailers(error: MeshError) -> Trailers:
                # Where an answer began, its own metadata has said these.
                began = exchange is not None and exchange.began
                return () if began else refusal_metadata(error, request_id, self._here)

            async with telling(context, self._failed, trailers=trailers):
                exchange = exchange_of(context, request_id, self._label(context))
                try:
                    await self._serve(exchange)
                finally:
                    exchange.wipe()

        return _bytes_handler(handle)

    # --- questions: nothing in them is content

    def _router(self) -> grpc.GenericRpcHandler:
        return service(ROUTER, {"Resolve": self._asked(self._resolve), "Explain": self._asked(self._explain)})

    def _asked(self, answer: Answer) -> Handler:
        async def handle(_: object, context: Context) -> None:
            request_id = self._next_request_id()

            def trailers(error: MeshError) -> Trailers:
                return refusal_metadata(error, request_id, self._here)

            async with telling(context, self._failed, trailers=trailers):
                credential, label = credential_of(context), self._label(context)
                try:
                    async with asyncio.timeout(timeout_s_of(context)):
                        # Before the message is read, as everywhere.
                        await self._queries.authenticate(credential, label)
                        at_least = at_least_asked(context)
                        if at_least is not None:
                            await self._queries.fresh(credential, label, at_least)
                        question = await read_message(context)
                        if question is None:
                            raise MeshError(Code.MALFORMED_BODY)
                        if len(question) > _QUESTION_BYTES:
                            raise MeshError(Code.REQUEST_TOO_LARGE)
                        head, message = await answer(credential, label, request_id, question)
                except TimeoutError:
                    raise MeshError(Code.DEADLINE_EXCEEDED) from None
                await context.send_initial_metadata(head_metadata(head))
                await context.write(message.SerializeToString())

        return _bytes_handler(handle)

    async def _list_models(
        self, credential: str | None, label: str | None, request_id: RequestId, _: bytes
    ) -> Answered:
        head, models = await self._queries.models(credential, label, request_id)
        return head, inference_pb2.ListModelsResponse(models=[model_message(model) for model in models])

    async def _resolve(self, credential: str | None, label: str | None, request_id: RequestId, _: bytes) -> Answered:
        head, resolution = await self._queries.resolve(credential, label, request_id)
        return head, resolution_message(resolution)

    async def _explain(
        self, credential: str | None, label: str | None, request_id: RequestId, question: bytes
    ) -> Answered:
        request = router_pb2.ExplainRequest()
        try:
            request.ParseFromString(question)
        except DecodeError:
            request = None
        if request is None:
            raise MeshError(Code.MALFORMED_BODY)
        head, explanation = await self._queries.explain(credential, label, request_id, request.model)
        return head, explanation_message(explanation)

    # --- who asks

    def _label(self, context: Context) -> str | None:
        return self._names.label(self._asked_name(context), None)

    async def _authenticate(self, context: Context) -> None:
        await self._queries.authenticate(credential_of(context), self._label(context))

    # --- liveness

    def _health_handlers(self) -> grpc.GenericRpcHandler:
        request = health_pb2.HealthCheckRequest.FromString
        response = health_pb2.HealthCheckResponse.SerializeToString
        return service(
            _HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._health.Check, request, response),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch_health, request, response),
            },
        )

    async def _watch_health(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """`Watch`, for a few at a time: it needs no key, and each one holds a call of this server."""
        if self._watchers >= _HEALTH_WATCHERS:
            await abort(context, MeshError(Code.RATE_LIMITED, hint="Too many watch the health of this door."))
        self._watchers += 1
        try:
            await self._health.Watch(request, context)
        finally:
            self._watchers -= 1


def _bytes_handler(handle: Callable[[object, Context], Awaitable[None]]) -> Handler:
    """Stream-shaped, and without deserializers: the message is read when `handle` asks for it."""
    return grpc.stream_stream_rpc_method_handler(handle)
