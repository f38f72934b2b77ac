"""The error tree, its codes, and the one table to HTTP, gRPC and the OpenAI shape.

    MeshError                       a code of the table; what clients, operators and scripts see
    └── SettingsError               faults of configuration, all of them together, with file and path

A message is written here or by our own code, never taken from what a client sent: no `str(exc)` of what
parsed a body goes into one. `param` is a field's path; `field_path` keeps foreign words out of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mesh.types import Endpoint


class Code(StrEnum):
    """Every way in which the mesh says no. The values are public: docs/errors.md lists them."""

    MALFORMED_REQUEST = "malformed_request"
    MALFORMED_BODY = "malformed_body"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    INVALID_PARAMETER = "invalid_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    UNSUPPORTED_OPERATION = "unsupported_operation"
    INVALID_API_KEY = "invalid_api_key"
    TENANT_SUSPENDED = "tenant_suspended"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TIMEOUT = "request_timeout"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    EXPECTATION_FAILED = "expectation_failed"
    MISDIRECTED_REQUEST = "misdirected_request"
    HEADERS_TOO_LARGE = "headers_too_large"
    RATE_LIMITED = "rate_limited"
    RESIDENCY_REFUSED = "residency_refused"
    INTERNAL_ERROR = "internal_error"
    REPLICA_FAILED = "replica_failed"
    NO_CAPACITY = "no_capacity"
    POLICY_STALE = "policy_stale"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    # Of `admin` and the command line only.
    TENANT_EXISTS = "tenant_exists"
    TENANT_NOT_FOUND = "tenant_not_found"
    KEY_NOT_FOUND = "key_not_found"
    AMBIGUOUS_TENANT = "ambiguous_tenant"
    HOME_OUTSIDE_PIN = "home_outside_pin"
    UNKNOWN_JURISDICTION = "unknown_jurisdiction"
    UNKNOWN_REGION = "unknown_region"
    POLICY_STORE_UNAVAILABLE = "policy_store_unavailable"
    SUPERSEDED = "superseded"
    MOVE_UNFINISHED = "move_unfinished"
    MEMBER_NOT_FOUND = "member_not_found"
    INVALID_RECEIPT = "invalid_receipt"
    INVALID_SETTINGS = "invalid_settings"
    NOT_RUNNING = "not_running"
    ALREADY_RUNNING = "already_running"
    START_FAILED = "start_failed"
    REGION_UNREACHABLE = "region_unreachable"


class Retry(StrEnum):
    """Whether the same call may do better: never, after a while, at once, or at another endpoint."""

    NO = "no"
    LATER = "later"
    YES = "yes"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Row:
    """How one code looks on each door. `grpc` is the status's name; `reason` is that of `google.rpc.ErrorInfo`."""

    http: int
    type: str
    grpc: str
    retry: Retry
    message: str
    reason: str


def _row(http: int, type_: str, grpc: str, retry: Retry, message: str) -> Row:
    return Row(http, type_, grpc, retry, message, "")


_REQUEST, _AUTH, _PERMISSION, _SERVER = (
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "server_error",
)
_NO, _LATER, _YES, _ELSEWHERE = Retry.NO, Retry.LATER, Retry.YES, Retry.ELSEWHERE

_ROWS: dict[Code, Row] = {
    Code.MALFORMED_REQUEST: _row(400, _REQUEST, "INVALID_ARGUMENT", _NO, "The HTTP request is malformed."),
    Code.MALFORMED_BODY: _row(
        400, _REQUEST, "INVALID_ARGUMENT", _NO, "The body is not one JSON object in UTF-8 of reasonable depth."
    ),
    Code.UNSUPPORTED_PARAMETER: _row(400, _REQUEST, "INVALID_ARGUMENT", _NO, "This parameter is not supported."),
    Code.INVALID_PARAMETER: _row(400, _REQUEST, "INVALID_ARGUMENT", _NO, "This parameter is not valid."),
    Code.CONTEXT_LENGTH_EXCEEDED: _row(
        400, _REQUEST, "INVALID_ARGUMENT", _NO, "The input and the tokens asked for do not fit the model's context."
    ),
    Code.UNSUPPORTED_OPERATION: _row(
        400, _REQUEST, "INVALID_ARGUMENT", _NO, "This model is of a kind that cannot do this."
    ),
    Code.INVALID_API_KEY: _row(
        401, _AUTH, "UNAUTHENTICATED", _NO, "A valid key is needed: send 'Authorization: Bearer KEY'."
    ),
    Code.TENANT_SUSPENDED: _row(403, _PERMISSION, "PERMISSION_DENIED", _NO, "This tenant is suspended."),
    Code.NOT_FOUND: _row(404, _REQUEST, "UNIMPLEMENTED", _NO, "There is nothing at this path; see /openapi.json."),
    Code.MODEL_NOT_FOUND: _row(
        404, _REQUEST, "NOT_FOUND", _NO, "No region that may serve this call from here has this model; see /v1/models."
    ),
    Code.METHOD_NOT_ALLOWED: _row(405, _REQUEST, "UNIMPLEMENTED", _NO, "This path takes another method."),
    Code.REQUEST_TIMEOUT: _row(408, _REQUEST, "DEADLINE_EXCEEDED", _YES, "The request did not arrive in time."),
    Code.REQUEST_TOO_LARGE: _row(413, _REQUEST, "INVALID_ARGUMENT", _NO, "The body is larger than this door takes."),
    Code.UNSUPPORTED_MEDIA_TYPE: _row(
        415, _REQUEST, "INVALID_ARGUMENT", _NO, "Send 'Content-Type: application/json', uncompressed."
    ),
    Code.EXPECTATION_FAILED: _row(
        417, _REQUEST, "INVALID_ARGUMENT", _NO, "The only expectation known is '100-continue'."
    ),
    Code.MISDIRECTED_REQUEST: _row(
        421, _REQUEST, "FAILED_PRECONDITION", _NO, "The name that was called is not one for this key here."
    ),
    Code.HEADERS_TOO_LARGE: _row(
        431, _REQUEST, "INVALID_ARGUMENT", _NO, "The headers are larger than this door takes."
    ),
    Code.RATE_LIMITED: _row(429, "rate_limit_error", "RESOURCE_EXHAUSTED", _LATER, "Too many requests."),
    Code.RESIDENCY_REFUSED: _row(
        451, _PERMISSION, "FAILED_PRECONDITION", _ELSEWHERE, "This tenant's pin does not allow this jurisdiction."
    ),
    Code.INTERNAL_ERROR: _row(500, _SERVER, "INTERNAL", _NO, "The mesh failed; the request id finds it in its logs."),
    Code.REPLICA_FAILED: _row(502, _SERVER, "UNAVAILABLE", _YES, "The model replica failed while it answered."),
    Code.NO_CAPACITY: _row(
        503, _SERVER, "UNAVAILABLE", _LATER, "Nothing is free, or ready yet, in the regions that may serve this call."
    ),
    Code.POLICY_STALE: _row(503, _SERVER, "UNAVAILABLE", _ELSEWHERE, "This gateway's policy is too old to be trusted."),
    Code.DEADLINE_EXCEEDED: _row(504, _SERVER, "DEADLINE_EXCEEDED", _NO, "The deadline of the call has passed."),
    Code.TENANT_EXISTS: _row(409, _REQUEST, "ALREADY_EXISTS", _NO, "A tenant of this name exists in this home."),
    Code.TENANT_NOT_FOUND: _row(404, _REQUEST, "NOT_FOUND", _NO, "No tenant of this name or id."),
    Code.KEY_NOT_FOUND: _row(404, _REQUEST, "NOT_FOUND", _NO, "No key of this id."),
    Code.AMBIGUOUS_TENANT: _row(
        409, _REQUEST, "FAILED_PRECONDITION", _NO, "Several homes have a tenant of this name; use its id."
    ),
    Code.HOME_OUTSIDE_PIN: _row(
        400, _REQUEST, "FAILED_PRECONDITION", _NO, "The pin must allow the jurisdiction of the tenant's home."
    ),
    Code.UNKNOWN_JURISDICTION: _row(400, _REQUEST, "INVALID_ARGUMENT", _NO, "This jurisdiction is not known."),
    Code.UNKNOWN_REGION: _row(404, _REQUEST, "NOT_FOUND", _NO, "This region is not known here."),
    Code.POLICY_STORE_UNAVAILABLE: _row(
        503, _SERVER, "UNAVAILABLE", _LATER, "The control store cannot be reached, or does not answer in time."
    ),
    Code.SUPERSEDED: _row(
        409,
        _REQUEST,
        "ABORTED",
        _NO,
        "A later change of this tenant replaced this one before it held everywhere.",
    ),
    Code.MOVE_UNFINISHED: _row(
        409, _REQUEST, "FAILED_PRECONDITION", _LATER, "A move of this tenant to another home is not finished."
    ),
    Code.MEMBER_NOT_FOUND: _row(404, _REQUEST, "NOT_FOUND", _NO, "No gateway process of this id has a grant."),
    Code.INVALID_RECEIPT: _row(400, _REQUEST, "INVALID_ARGUMENT", _NO, "This is no receipt that its home has signed."),
    Code.INVALID_SETTINGS: _row(400, _REQUEST, "INVALID_ARGUMENT", _NO, "The configuration is not valid."),
    Code.NOT_RUNNING: _row(503, _SERVER, "UNAVAILABLE", _NO, "No mesh runs here."),
    Code.ALREADY_RUNNING: _row(409, _REQUEST, "FAILED_PRECONDITION", _NO, "Another mesh runs here already."),
    Code.START_FAILED: _row(500, _SERVER, "INTERNAL", _NO, "The mesh could not be started."),
    Code.REGION_UNREACHABLE: _row(503, _SERVER, "UNAVAILABLE", _LATER, "The region's admin does not answer."),
}
_REASONS = {Code.RESIDENCY_REFUSED: "RESIDENCY"}
TABLE: dict[Code, Row] = {
    code: Row(row.http, row.type, row.grpc, row.retry, row.message, _REASONS.get(code, code.upper()))
    for code, row in _ROWS.items()
}
"""One row for every code."""


class MeshError(Exception):
    """A refusal or a fault, by its code.

    Attributes:
        code: Its row in `TABLE` says how it looks on each door.
        param: The path of the field at fault, such as `messages[0].role`.
        hint: What to do or what is allowed, in our own words; appended to the row's message.
        allowed: For `residency_refused`: the doors of the regions in the pin.
        retry_after_s: For codes that may do better later: whole seconds, at least 1.
        methods: For `method_not_allowed`: what the path takes.
        revision: The policy that it was decided by; set on the way out, where a tenant is known.
    """

    def __init__(
        self,
        code: Code,
        *,
        param: str | None = None,
        hint: str = "",
        allowed: Sequence[Endpoint] = (),
        retry_after_s: int | None = None,
        methods: Sequence[str] = (),
    ) -> None:
        super().__init__(code.value)
        self.code = code
        self.param = param
        self.hint = hint
        self.allowed = tuple(allowed)
        self.methods = tuple(methods)
        self.revision: int | None = None
        if retry_after_s is None and TABLE[code].retry is Retry.LATER:
            retry_after_s = 1
        self.retry_after_s = retry_after_s

    @property
    def row(self) -> Row:
        """How this error looks on each door."""
        return TABLE[self.code]

    @property
    def message(self) -> str:
        """A sentence for the caller, written by us."""
        return f"{self.row.message} {self.hint}".rstrip()

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class StaleHopError(MeshError):
    """`replica_failed` of a hop whose connection had been kept from earlier, and broke at once, before any answer.

    As a rule the other side was gone already and never saw what was sent. That is not known, so whoever tries again
    treats the first as one that may still arrive.
    """

    def __init__(self) -> None:
        super().__init__(Code.REPLICA_FAILED)


class SettingsError(MeshError):
    """Configuration that is not valid. `faults` lists every fault as `file: path: what is wrong and what to do`."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(Code.INVALID_SETTINGS, hint="\n".join(faults))
        self.faults = tuple(faults)


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


def field_path(*steps: str | int) -> str:
    """Renders a field's path: `("messages", 0, "foo")` is `messages[0].foo`.

    A step that does not look like a field's name was written by a client to hold something else, and becomes `?`.
    """
    path = ""
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += ("." if path else "") + (step if _NAME.fullmatch(step) else "?")
    return path
