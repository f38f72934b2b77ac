"""Words of the mesh as types. Holds no behaviour, no I/O and no content.

Ids are `NewType`s so that a region cannot be passed where a tenant is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, NewType

RegionId = NewType("RegionId", str)
"""One site in exactly one jurisdiction, such as `vn-1`."""
Jurisdiction = NewType("Jurisdiction", str)
"""ISO 3166-1 alpha-2, such as `VN`."""
TenantId = NewType("TenantId", str)
"""`t_` and 16 base32 characters."""
KeyId = NewType("KeyId", str)
ModelId = NewType("ModelId", str)
RequestId = NewType("RequestId", str)
ReplicaId = NewType("ReplicaId", str)
"""16 hex characters, drawn by the replica process."""
GatewayId = NewType("GatewayId", str)
MemberId = NewType("MemberId", str)
"""A gateway process: a UUID that it draws when it starts, and the last part of its grant's key."""
Revision = NewType("Revision", int)
"""A tenant's own counter: it grows with every change of its policy."""


class PolicyNumber(NamedTuple):
    """Where in the order of a tenant's policy something was done: later is larger, also after a move.

    Attributes:
        moves: How often the tenant's home has changed.
        number: Its shard's number: the etcd version of the shard's head.
    """

    moves: int
    number: int


class Operation(StrEnum):
    """What a call does with a model."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


class ModelKind(StrEnum):
    """What a model can do: `chat` serves chat and completions, `embedding` serves embeddings."""

    CHAT = "chat"
    EMBEDDING = "embedding"


class Transfer(StrEnum):
    """Whether a tenant's content may be forwarded to another jurisdiction of its pin."""

    NEVER = "never"
    WITHIN_ALLOWED = "within_allowed"


class TenantState(StrEnum):
    """Whether a tenant is served."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class Role(StrEnum):
    """Who a certificate speaks for: the second part of `mesh://<region>/<role>/<id>`."""

    GATEWAY = "gateway"
    REPLICA = "replica"
    ADMIN = "admin"
    OPERATOR = "operator"


class ReplicaState(StrEnum):
    """What a replica says of one of its models."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a call used so far."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A region's doors, as a client reaches them.

    `http` is an origin without `/v1`; `grpc` is `host:port`.
    """

    region: RegionId
    jurisdiction: Jurisdiction
    http: str
    grpc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Where a program runs."""

    region: RegionId
    jurisdiction: Jurisdiction


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What every answer says of itself.

    `region` and `jurisdiction` are where it was *served*. `revision` is the policy it was decided by, or None where no
    tenant is known.
    """

    request_id: RequestId
    region: RegionId
    jurisdiction: Jurisdiction
    revision: Revision | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a gateway knows of a body. `model` is a client's word until the catalogue knows it: never log it."""

    model: str
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A model as one key sees it: `regions` are those in which it may have it served from here."""

    id: ModelId
    kind: ModelKind
    context: int
    regions: tuple[RegionId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """The endpoints of a key's pin, and whether this one is among them."""

    here: RegionId
    served_here: bool
    allowed: tuple[Endpoint, ...]
    revision: Revision


OPERATIONS_OF: dict[ModelKind, frozenset[Operation]] = {
    ModelKind.CHAT: frozenset({Operation.CHAT, Operation.COMPLETIONS}),
    ModelKind.EMBEDDING: frozenset({Operation.EMBEDDINGS}),
}
