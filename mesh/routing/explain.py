"""Why a call goes where it goes: the same values that the hot path decides by, kept for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mesh.errors import Code
from mesh.types import ModelId, RegionId, TenantId


class Outcome(StrEnum):
    """What would happen to a call."""

    SERVE = "serve"
    FORWARD = "forward"
    REFUSE = "refuse"


class Verdict(StrEnum):
    """Whether a region was taken."""

    TAKEN = "taken"
    REJECTED = "rejected"


class Why(StrEnum):
    """Why a region was taken or rejected. The values are public."""

    LOCAL = "local"
    LEAST_WAIT = "least_wait"
    NOT_NEEDED = "not_needed"
    JURISDICTION_NOT_ALLOWED = "jurisdiction_not_allowed"
    TRANSFER_NOT_ALLOWED = "transfer_not_allowed"
    MODEL_NOT_HOSTED = "model_not_hosted"
    NO_READY_REPLICA = "no_ready_replica"
    NO_FREE_CAPACITY = "no_free_capacity"
    SLOWER = "slower"
    TENANT_NOT_SERVED = "tenant_not_served"
    ENTRY_REFUSED = "entry_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One region, and why it was taken or not."""

    region: RegionId
    verdict: Verdict
    code: Why
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where a call of a tenant for a model would be served, asked at one region."""

    tenant: TenantId
    model: ModelId
    at: RegionId
    outcome: Outcome
    region: RegionId | None
    code: Code | None
    reasons: tuple[Reason, ...]
