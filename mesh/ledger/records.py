"""What is kept of a request: numbers, ids and codes. No name, no address, no content."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.errors import Code
from mesh.types import Jurisdiction, Operation, RegionId, RequestId, Revision, TenantId

OK = "ok"
"""The code of a request that was served whole."""
FAILED_AFTER_ROUTING = frozenset({Code.REPLICA_FAILED, Code.DEADLINE_EXCEEDED, Code.INTERNAL_ERROR, "cancelled"})
"""Codes of requests that count as requests and not as refusals, also where no token was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One request, as the region that served or refused it saw it.

    Attributes:
        at_s: When it ended: seconds since 1970, UTC.
        region: The region that writes this.
        key_id: Empty for a call that another region's gateway sent on.
        model: From the catalogue; empty while none was known.
        door: `http`, `grpc` or `peer`.
        code: `ok`, a `Code`, or `cancelled` where the client hung up.
        prompt_tokens: Read by the model, also when the answer was cut off; completion_tokens likewise.
        first_byte_ms: Until the answer began; None if it never did.
        entry_region: Where the client called.
    """

    request_id: RequestId
    at_s: float
    region: RegionId
    tenant: TenantId
    key_id: str
    operation: Operation
    model: str
    door: str
    code: str
    prompt_tokens: int
    completion_tokens: int
    duration_ms: int
    first_byte_ms: int | None
    entry_region: RegionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    """A client's call at a door outside its tenant's pin: what it sent was in this jurisdiction, though it was refused.

    Attributes:
        at_ms: When the call ended: milliseconds since 1970, UTC.
        region: The region that refused it, and that writes this.
        jurisdiction: Where that region was then.
        door: `http` or `grpc`.
    """

    request_id: RequestId
    at_ms: int
    region: RegionId
    jurisdiction: Jurisdiction
    tenant: TenantId
    key_id: str
    door: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRecord:
    """A record of policy that this home signed, and that is, may be, or was in the control store.

    Attributes:
        at: Its key in the control store.
        value: The record with its signature.
        epoch: The control epoch that it was signed for.
        revision: The policy revision of its tenant that the change made.
        made: Whether it is known to have come into the control store.
    """

    at: str
    value: bytes
    epoch: int
    revision: Revision
    made: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """What one model did for a tenant in one region. `model` is empty for what was refused before one was known."""

    region: RegionId
    model: str
    requests: int
    refused: int
    prompt_tokens: int
    completion_tokens: int
