"""How an error, and what every answer says of itself, look in HTTP."""

from __future__ import annotations

import msgspec

from mesh.errors import Code, MeshError, Retry
from mesh.types import AnswerHead, Endpoint, Here, RequestId

Headers = list[tuple[bytes, bytes]]
JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


def head_headers(head: AnswerHead) -> Headers:
    """`x-request-id`, where it was served, and the policy it was decided by."""
    headers = [
        (b"x-request-id", head.request_id.encode()),
        (b"mesh-region", head.region.encode()),
        (b"mesh-jurisdiction", head.jurisdiction.encode()),
    ]
    if head.revision is not None:
        headers.append((b"mesh-policy-revision", b"%d" % head.revision))
    return headers


def error_body(error: MeshError) -> bytes:
    """The OpenAI shape: `{"error": {"message", "type", "code", "param"}}`, and `allowed` for a residency refusal."""
    fields: dict[str, object] = {
        "message": error.message,
        "type": error.row.type,
        "code": error.code.value,
        "param": error.param,
    }
    if error.code is Code.RESIDENCY_REFUSED:
        fields["allowed"] = [endpoint_fields(endpoint) for endpoint in error.allowed]
    return msgspec.json.encode({"error": fields})


def endpoint_fields(endpoint: Endpoint) -> dict[str, str]:
    """An endpoint as JSON."""
    return {
        "region": endpoint.region,
        "jurisdiction": endpoint.jurisdiction,
        "http": endpoint.http,
        "grpc": endpoint.grpc,
    }


def error_answer(error: MeshError, request_id: RequestId, here: Here) -> tuple[int, Headers, bytes]:
    """Status, headers and body of a refusal or a fault."""
    head = AnswerHead(request_id=request_id, region=here.region, jurisdiction=here.jurisdiction)
    headers = [*head_headers(head), JSON]
    if error.revision is not None:
        headers.append((b"mesh-policy-revision", b"%d" % error.revision))
    if error.row.retry in (Retry.NO, Retry.ELSEWHERE):
        # The official clients try 5xx, 408, 409 and 429 again unless told not to.
        headers.append((b"x-should-retry", b"false"))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if error.methods:
        headers.append((b"allow", ", ".join(error.methods).encode()))
    if error.code is Code.RESIDENCY_REFUSED:
        bases = ", ".join(f"{endpoint.http}/v1" for endpoint in error.allowed)
        headers.append((b"mesh-allowed-endpoints", bases.encode()))
    return error.row.http, headers, error_body(error)


def error_event(error: MeshError) -> bytes:
    """The event that ends a stream after a fault; no `[DONE]` follows it."""
    return b"data: " + error_body(error) + b"\n\n"
