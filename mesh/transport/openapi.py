"""The HTTP door's OpenAPI document: every path, parameter, status and body, so that fuzzers can hold the door to it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from mesh.errors import TABLE, Code
from mesh.transport.http_exchange import AT_LEAST

Schema = Mapping[str, object]

_DOOR_CODES: dict[str, tuple[Code, ...]] = {
    # On every path: what the server itself refuses, and what authentication finds.
    "any": (
        Code.MALFORMED_REQUEST,
        Code.INVALID_API_KEY,
        Code.TENANT_SUSPENDED,
        Code.REQUEST_TIMEOUT,
        Code.EXPECTATION_FAILED,
        Code.RATE_LIMITED,
        Code.MISDIRECTED_REQUEST,
        Code.HEADERS_TOO_LARGE,
        Code.INTERNAL_ERROR,
        Code.POLICY_STALE,
    ),
    "inference": (
        Code.MALFORMED_BODY,
        Code.UNSUPPORTED_PARAMETER,
        Code.INVALID_PARAMETER,
        Code.CONTEXT_LENGTH_EXCEEDED,
        Code.UNSUPPORTED_OPERATION,
        Code.MODEL_NOT_FOUND,
        Code.METHOD_NOT_ALLOWED,
        Code.REQUEST_TOO_LARGE,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.RESIDENCY_REFUSED,
        Code.REPLICA_FAILED,
        Code.NO_CAPACITY,
        Code.DEADLINE_EXCEEDED,
    ),
    "models": (
        Code.UNSUPPORTED_PARAMETER,
        Code.INVALID_PARAMETER,
        Code.METHOD_NOT_ALLOWED,
        Code.RESIDENCY_REFUSED,
    ),
    "model": (
        Code.UNSUPPORTED_PARAMETER,
        Code.INVALID_PARAMETER,
        Code.METHOD_NOT_ALLOWED,
        Code.RESIDENCY_REFUSED,
        Code.MODEL_NOT_FOUND,
    ),
    "route": (
        Code.UNSUPPORTED_PARAMETER,
        Code.INVALID_PARAMETER,
        Code.METHOD_NOT_ALLOWED,
        Code.MODEL_NOT_FOUND,
    ),
    "openapi": (Code.METHOD_NOT_ALLOWED,),
}
_AT_LEAST: Schema = {
    "name": AT_LEAST,
    "in": "header",
    "required": False,
    "description": "Decide by this revision of the tenant's policy or a later one, or answer `policy_stale`.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 10**18 - 1},
}


def document() -> bytes:
    """The document, as JSON."""
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "mesh",
                "version": "1",
                "description": "An OpenAI-compatible door that pins each tenant to the jurisdictions it allows.",
            },
            "security": [{"key": []}],
            "paths": _paths(),
            "components": {
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
                "headers": _headers(),
                "schemas": _schemas(),
            },
        }
    )


def _paths() -> Schema:
    return {
        "/v1/chat/completions": _inference("ChatRequest", "ChatCompletion", "ChatCompletionChunk"),
        "/v1/completions": _inference("CompletionRequest", "Completion", "Completion"),
        "/v1/embeddings": _inference("EmbeddingRequest", "EmbeddingList", None),
        "/v1/models": _read("models", "What this key may use from here.", "ModelList"),
        "/v1/models/{model}": _read(
            "model",
            "One of these models.",
            "Model",
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}},
        ),
        "/v1/route": _read(
            "route",
            "Where this key's calls go, and why. Also answered outside the pin.",
            "Route",
            {"name": "model", "in": "query", "required": False, "schema": {"type": "string"}},
        ),
        "/openapi.json": _read("openapi", "This document.", None),
        "/livez": {
            "get": {
                "summary": "Whether the door is alive.",
                "security": [],
                "responses": {
                    "200": _answer("Alive.", {"type": "object", "properties": {"status": {"const": "ok"}}}, bare=True),
                    **_refusals(
                        (
                            Code.MALFORMED_REQUEST,
                            Code.METHOD_NOT_ALLOWED,
                            Code.MISDIRECTED_REQUEST,
                            Code.HEADERS_TOO_LARGE,
                        )
                    ),
                },
            }
        },
    }


def _inference(request: str, whole: str, piece: str | None) -> Schema:
    content: dict[str, object] = {"application/json": {"schema": _ref(whole)}}
    if piece is not None:
        content["text/event-stream"] = {
            # Of each event, not of the whole: tools read it so.
            "schema": {
                "description": f"Events `data: {{{piece}}}`, the usage last if it was asked for, then `data: [DONE]`. "
                "After a fault, `data: {Error}` and no `[DONE]`.",
            }
        }
    return {
        "post": {
            "parameters": [
                {
                    "name": "mesh-timeout-ms",
                    "in": "header",
                    "required": False,
                    "description": "The whole call's deadline.",
                    "schema": {"type": "integer", "minimum": 1, "maximum": 300_000, "default": 300_000},
                },
                _AT_LEAST,
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
            "responses": {
                "200": {"description": "The answer.", "headers": _answer_headers(), "content": content},
                **_refusals(_DOOR_CODES["any"] + _DOOR_CODES["inference"]),
            },
        }
    }


def _read(kind: str, summary: str, schema: str | None, *parameters: Schema) -> Schema:
    body: Schema = {"type": "object"} if schema is None else _ref(schema)
    return {
        "get": {
            "summary": summary,
            "parameters": [*parameters, *(() if kind == "openapi" else (_AT_LEAST,))],
            "responses": {
                "200": _answer("The answer.", body, bare=kind == "openapi"),
                **_refusals(_DOOR_CODES["any"] + _DOOR_CODES[kind]),
            },
        }
    }


def _refusals(codes: tuple[Code, ...]) -> Schema:
    by_status: dict[int, list[Code]] = {}
    for code in codes:
        by_status.setdefault(TABLE[code].http, []).append(code)
    responses: dict[str, object] = {}
    for status, group in sorted(by_status.items()):
        headers: dict[str, object] = {"x-request-id": _header_ref("x-request-id")}
        if status in (429, 503):
            headers["retry-after"] = _header_ref("retry-after")
        if status == 405:
            headers["allow"] = _header_ref("allow")
        if status == 451:
            headers["mesh-allowed-endpoints"] = _header_ref("mesh-allowed-endpoints")
        responses[str(status)] = {
            "description": "; ".join(f"`{code.value}`: {TABLE[code].message}" for code in group),
            "headers": headers,
            "content": {"application/json": {"schema": _ref("Error")}},
        }
    return responses


def _answer(description: str, schema: Schema, *, bare: bool) -> Schema:
    headers = {"x-request-id": _header_ref("x-request-id")} if bare else _answer_headers()
    return {"description": description, "headers": headers, "content": {"application/json": {"schema": schema}}}


def _answer_headers() -> Schema:
    names = ("x-request-id", "mesh-region", "mesh-jurisdiction", "mesh-policy-revision")
    return {name: _header_ref(name) for name in names}


def _headers() -> Schema:
    def header(description: str, kind: str = "string") -> Schema:
        return {"description": description, "schema": {"type": kind}}

    return {
        "x-request-id": header("Names this call in the mesh's records."),
        "mesh-region": header("Where it was served."),
        "mesh-jurisdiction": header("The jurisdiction of that region."),
        "mesh-policy-revision": header("The tenant's policy that it was decided by.", "integer"),
        "retry-after": header("Seconds.", "integer"),
        "allow": header("What the path takes."),
        "mesh-allowed-endpoints": header("Base URLs of the regions in the pin, separated by commas."),
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _header_ref(name: str) -> Schema:
    return {"$ref": f"#/components/headers/{name}"}


def _object(required: tuple[str, ...], properties: Schema, *, closed: bool = False) -> Schema:
    schema: dict[str, object] = {"type": "object", "required": list(required), "properties": properties}
    if closed:
        schema["additionalProperties"] = False
    return schema


def _only_with(field: str, kind: str, other: str) -> Schema:
    """`field` of type `kind` needs `other` to be true."""
    return {
        "if": {"properties": {field: {"type": kind}}, "required": [field]},
        "then": {"properties": {other: {"const": True}}, "required": [other]},
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _noop(*values: object) -> Schema:
    return {"description": "Accepted where it means nothing.", "enum": [None, *values]}


def _sampling() -> dict[str, object]:
    number, integer, string = {"type": "number"}, {"type": "integer"}, {"type": "string"}
    return {
        "model": {**string, "minLength": 1},
        "max_tokens": _or_null({**integer, "minimum": 1}),
        "temperature": _or_null({**number, "minimum": 0, "maximum": 2, "default": 1}),
        "top_p": _or_null({**number, "exclusiveMinimum": 0, "maximum": 1, "default": 1}),
        "n": _or_null({**integer, "minimum": 1, "maximum": 8, "default": 1}),
        "stop": {
            "anyOf": [
                {**string, "minLength": 1},
                {"type": "array", "items": {**string, "minLength": 1}, "minItems": 1, "maxItems": 4},
                {"type": "null"},
            ]
        },
        "seed": _or_null({**integer, "minimum": -(2**63), "maximum": 2**64 - 1}),
        "stream": _or_null({"type": "boolean", "default": False}),
        "stream_options": {
            "description": "Only with `stream`.",
            "anyOf": [_object((), {"include_usage": _or_null({"type": "boolean"})}, closed=True), {"type": "null"}],
        },
        "user": {"description": "Never kept in clear.", "anyOf": [string, {"type": "null"}]},
        "frequency_penalty": _noop(0),
        "presence_penalty": _noop(0),
        "logit_bias": {"anyOf": [_object((), {}, closed=True), {"type": "null"}]},
        "store": _noop(False),
    }


def _request_schemas() -> Schema:
    integer, string = {"type": "integer"}, {"type": "string"}
    text_part = _object(("type", "text"), {"type": {"const": "text"}, "text": string}, closed=True)
    message = _object(
        ("role", "content"),
        {
            "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": {"anyOf": [string, {"type": "array", "items": text_part, "minItems": 1}]},
            "name": _or_null(string),
        },
        closed=True,
    )
    token_ids = {"type": "array", "items": {**integer, "minimum": 0}, "minItems": 1}
    inputs: Schema = {
        "anyOf": [
            {**string, "minLength": 1},
            token_ids,
            {
                "type": "array",
                "items": {"anyOf": [{**string, "minLength": 1}, token_ids]},
                "minItems": 1,
                "maxItems": 2048,
            },
        ]
    }
    chat = _sampling() | {
        "messages": {"type": "array", "items": message, "minItems": 1},
        "max_completion_tokens": {
            "description": "The newer name of `max_tokens`; not both.",
            **_or_null({**integer, "minimum": 1}),
        },
        "logprobs": _or_null({"type": "boolean"}),
        "top_logprobs": {
            "description": "Only with `logprobs`.",
            **_or_null({**integer, "minimum": 0, "maximum": 20}),
        },
        "response_format": {"anyOf": [_object(("type",), {"type": {"const": "text"}}, closed=True), {"type": "null"}]},
        "tools": {"anyOf": [{"type": "array", "maxItems": 0}, {"type": "null"}]},
    }
    completion = _sampling() | {
        "prompt": inputs,
        "logprobs": _or_null({**integer, "minimum": 0, "maximum": 20}),
        "best_of": _noop(1),
        "echo": _noop(False),
        "suffix": _noop(""),
    }
    embedding: Schema = {
        "model": {**string, "minLength": 1},
        "input": inputs,
        "encoding_format": {"enum": ["float", "base64", None]},
        "user": {"description": "Never kept in clear.", "anyOf": [string, {"type": "null"}]},
    }
    return {
        "ChatRequest": {
            **_object(("model", "messages"), chat, closed=True),
            "allOf": [
                _only_with("stream_options", "object", "stream"),
                _only_with("top_logprobs", "integer", "logprobs"),
                {
                    "not": {
                        "properties": {"max_tokens": integer, "max_completion_tokens": integer},
                        "required": ["max_tokens", "max_completion_tokens"],
                    }
                },
            ],
        },
        "CompletionRequest": {
            **_object(("model", "prompt"), completion, closed=True),
            "allOf": [_only_with("stream_options", "object", "stream")],
        },
        "EmbeddingRequest": _object(("model", "input"), embedding, closed=True),
    }


def _schemas() -> Schema:
    integer, string, number = {"type": "integer"}, {"type": "string"}, {"type": "number"}
    nothing = {"type": "null"}
    usage = _object(
        ("prompt_tokens", "total_tokens"),
        {"prompt_tokens": integer, "completion_tokens": integer, "total_tokens": integer},
    )
    finish = {"enum": ["stop", "length", None]}
    choice = {"index": integer, "finish_reason": finish, "logprobs": _or_null({"type": "object"})}
    endpoint = _object(
        ("region", "jurisdiction", "http", "grpc"),
        {"region": string, "jurisdiction": string, "http": string, "grpc": string},
    )
    message = _object(("role", "content"), {"role": string, "content": string})
    delta = _object((), {"role": string, "content": string})
    common = {"id": string, "object": string, "created": integer, "model": string}
    model = _object(
        ("id", "object", "created", "owned_by", "kind", "context", "regions"),
        {
            "id": string,
            "object": {"const": "model"},
            "created": integer,
            "owned_by": string,
            "kind": {"enum": ["chat", "embedding"]},
            "context": integer,
            "regions": {"type": "array", "items": string},
        },
    )
    error = _object(
        ("message", "type", "code", "param"),
        {
            "message": string,
            "type": string,
            "code": {"enum": sorted({code.value for group in _DOOR_CODES.values() for code in group})},
            "param": _or_null(string),
            "allowed": {"type": "array", "items": endpoint},
        },
    )
    reason = _object(
        ("region", "verdict", "code", "text"),
        {"region": string, "verdict": {"enum": ["taken", "rejected"]}, "code": string, "text": string},
    )
    explanation = _object(
        ("tenant", "model", "at", "outcome", "region", "code", "reasons"),
        {
            "tenant": string,
            "model": string,
            "at": string,
            "outcome": {"enum": ["serve", "forward", "refuse"]},
            "region": _or_null(string),
            "code": _or_null(string),
            "reasons": {"type": "array", "items": reason},
        },
    )
    return {
        **_request_schemas(),
        "Error": _object(("error",), {"error": error}),
        "ChatCompletion": _object(
            ("id", "object", "created", "model", "choices", "usage"),
            {
                **common,
                "choices": {
                    "type": "array",
                    "items": _object(("index", "message", "finish_reason"), choice | {"message": message}),
                },
                "usage": usage,
            },
        ),
        "ChatCompletionChunk": _object(
            ("id", "object", "created", "model", "choices"),
            {
                **common,
                "choices": {"type": "array", "items": _object(("index", "delta"), choice | {"delta": delta})},
                "usage": {"anyOf": [usage, nothing]},
            },
        ),
        "Completion": _object(
            ("id", "object", "created", "model", "choices"),
            {
                **common,
                "choices": {"type": "array", "items": _object(("index", "text"), choice | {"text": string})},
                "usage": {"anyOf": [usage, nothing]},
            },
        ),
        "EmbeddingList": _object(
            ("object", "data", "model", "usage"),
            {
                "object": {"const": "list"},
                "data": {
                    "type": "array",
                    "items": _object(
                        ("object", "index", "embedding"),
                        {
                            "object": {"const": "embedding"},
                            "index": integer,
                            "embedding": {"anyOf": [{"type": "array", "items": number}, string]},
                        },
                    ),
                },
                "model": string,
                "usage": usage,
            },
        ),
        "Model": model,
        "ModelList": _object(
            ("object", "data"), {"object": {"const": "list"}, "data": {"type": "array", "items": model}}
        ),
        "Route": _object(
            ("object", "here", "jurisdiction", "served_here", "policy_revision", "allowed"),
            {
                "object": {"const": "route"},
                "here": string,
                "jurisdiction": string,
                "served_here": {"type": "boolean"},
                "policy_revision": integer,
                "allowed": {"type": "array", "items": endpoint},
                "route": explanation,
            },
        ),
    }
