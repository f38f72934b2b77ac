"""The OpenAI-compatible door. Knows paths and headers; what a call may do is decided by what it is handed.

Order of refusals: request syntax, the name called, key, tenant, path and method, then what the story finds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

import msgspec

from mesh.errors import Code, MeshError, field_path
from mesh.http1 import Request
from mesh.policy.hostnames import DoorNames
from mesh.routing.explain import Explanation
from mesh.transport.answers import JSON, Headers, endpoint_fields, error_answer, error_event, head_headers
from mesh.transport.http_exchange import AT_LEAST, HttpExchange, at_least_asked, credential_of
from mesh.transport.queries import Queries
from mesh.types import AnswerHead, Here, ModelView, Operation, RequestId

OPERATIONS = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETIONS,
    "/v1/embeddings": Operation.EMBEDDINGS,
}
_MODEL_PATH = "/v1/models/"
_LAST = frozenset({Code.RESIDENCY_REFUSED, Code.MISDIRECTED_REQUEST})
"""After these a client has no business on this connection."""
Serve = Callable[[HttpExchange], Awaitable[None]]


class HttpDoor:
    """Handles requests of the HTTP door; `fault` renders what the server itself refuses."""

    def __init__(
        self,
        *,
        serve: Serve,
        queries: Queries,
        here: Here,
        names: DoorNames,
        next_request_id: Callable[[], RequestId],
        openapi: bytes,
        failed: Callable[[Exception, RequestId], None],
    ) -> None:
        """Takes what the door hands calls to; `failed` is told of what nobody foresaw, and of which call."""
        self._serve = serve
        self._queries = queries
        self._here = here
        self._names = names
        self._next_request_id = next_request_id
        self._openapi = openapi
        self._failed = failed

    async def handle(self, request: Request) -> None:
        """Answers one request."""
        request_id = self._next_request_id()
        try:
            label = self._names.label(request.peer.asked_name, _host_of(request))
            operation = OPERATIONS.get(request.path)
            if operation is not None and request.method == "POST":
                exchange = HttpExchange(request, request_id, operation, label)
                try:
                    await self._serve(exchange)
                finally:
                    exchange.wipe()
            else:
                await self._answer(request, request_id, label)
        except MeshError as error:
            fault = error
        except Exception as error:  # noqa: BLE001 - answered, not raised: its text may be content
            self._failed(error, request_id)
            request.last()
            fault = MeshError(Code.INTERNAL_ERROR)
        else:
            return
        await self._tell(request, request_id, fault)

    async def _tell(self, request: Request, request_id: RequestId, fault: MeshError) -> None:
        if request.in_pieces:
            await request.write(error_event(fault))
            await request.end()
        elif request.begun:
            # An answer of one piece: it stands if it is whole, and nothing may be put into it.
            raise fault
        else:
            if fault.code in _LAST:
                request.last()
            await request.respond(*error_answer(fault, request_id, self._here))

    def fault(self, error: MeshError, _: Request | None) -> tuple[int, Headers, bytes]:
        """How the server's own refusals look: malformed requests, time-outs, what nobody caught."""
        return error_answer(error, self._next_request_id(), self._here)

    async def _answer(self, request: Request, request_id: RequestId, label: str | None) -> None:
        """Everything but inference."""
        path = request.path
        if path == "/livez":
            _only(request, "GET", "HEAD")
            return await request.respond(200, [(b"x-request-id", request_id.encode()), JSON], b'{"status":"ok"}')
        credential = credential_of(request)
        if path in OPERATIONS:
            await self._queries.authenticate(credential, label)
            raise MeshError(Code.METHOD_NOT_ALLOWED, methods=("POST",))
        if path == "/openapi.json":
            await self._queries.authenticate(credential, label)
            _only(request, "GET", "HEAD")
            return await request.respond(200, [(b"x-request-id", request_id.encode()), JSON], self._openapi)
        if path not in ("/v1/models", "/v1/route") and not path.startswith(_MODEL_PATH):
            await self._queries.authenticate(credential, label)
            raise MeshError(Code.NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            await self._queries.authenticate(credential, label)
            _only(request, "GET", "HEAD")
        if request.header(AT_LEAST.encode()) is not None:
            await self._queries.authenticate(credential, label)
            at_least = at_least_asked(request)
            if at_least is not None:
                await self._queries.fresh(credential, label, at_least)
        if path == "/v1/route":
            return await self._route(request, request_id, credential, label)
        head, models = await self._queries.models(credential, label, request_id)
        _query(request, ())
        if path == "/v1/models":
            listed: dict[str, object] = {"object": "list", "data": [_model_fields(model) for model in models]}
            return await _respond(request, head, listed)
        wanted = path.removeprefix(_MODEL_PATH)
        for model in models:
            if model.id == wanted:
                return await _respond(request, head, _model_fields(model))
        raise MeshError(Code.MODEL_NOT_FOUND, param="model")

    async def _route(self, request: Request, request_id: RequestId, credential: str | None, label: str | None) -> None:
        """Where this key's calls go, and why. Holds no content, and is answered outside the pin too."""
        head, resolution = await self._queries.resolve(credential, label, request_id)
        model = _query(request, ("model",)).get("model")
        fields: dict[str, object] = {
            "object": "route",
            "here": resolution.here,
            "jurisdiction": self._here.jurisdiction,
            "served_here": resolution.served_here,
            "policy_revision": resolution.revision,
            "allowed": [endpoint_fields(endpoint) for endpoint in resolution.allowed],
        }
        if model is not None:
            _, explanation = await self._queries.explain(credential, label, request_id, model)
            fields["route"] = _explanation_fields(explanation)
        await _respond(request, head, fields)


def _host_of(request: Request) -> str | None:
    host = request.header(b"host")
    return None if host is None else host.decode("ascii", "replace")


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise MeshError(Code.METHOD_NOT_ALLOWED, methods=methods)


def _query(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The query, strictly: an unknown or repeated parameter is refused by name."""
    values: dict[str, str] = {}
    try:
        pairs = parse_qsl(request.query, keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError:
        pairs = None
    if pairs is None:
        raise MeshError(Code.MALFORMED_REQUEST)
    for name, value in pairs:
        if name not in known:
            raise MeshError(Code.UNSUPPORTED_PARAMETER, param=field_path(name))
        if name in values:
            raise MeshError(Code.INVALID_PARAMETER, param=name, hint="It was given twice.")
        values[name] = value
    return values


async def _respond(request: Request, head: AnswerHead, fields: Mapping[str, object]) -> None:
    await request.respond(200, [*head_headers(head), JSON], msgspec.json.encode(fields))


def _model_fields(model: ModelView) -> dict[str, object]:
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": "mesh",
        "kind": model.kind.value,
        "context": model.context,
        "regions": list(model.regions),
    }


def _explanation_fields(explanation: Explanation) -> dict[str, object]:
    return {
        "tenant": explanation.tenant,
        "model": explanation.model,
        "at": explanation.at,
        "outcome": explanation.outcome.value,
        "region": explanation.region,
        "code": None if explanation.code is None else explanation.code.value,
        "reasons": [
            {
                "region": reason.region,
                "verdict": reason.verdict.value,
                "code": reason.code.value,
                "text": reason.text,
            }
            for reason in explanation.reasons
        ],
    }
