"""What the gateway's story needs of the world, as the story sees it. `transport` and `control` fulfil these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mesh.errors import MeshError
from mesh.ports import Instant
from mesh.routing.lease import Lease
from mesh.settings import Address
from mesh.types import (
    AnswerHead,
    Facts,
    KeyId,
    ModelId,
    Operation,
    PolicyNumber,
    RegionId,
    ReplicaId,
    RequestId,
    Revision,
    TenantId,
    Usage,
)

Check = Callable[[], None]
"""Asked before a piece of content is read, sent on or shown; raises where the call may not go on."""


class Parcel(Protocol):
    """A body on its way, as it came. The story moves it and cannot open it."""

    @property
    def size_bytes(self) -> int:
        """How large it is: all that may be known here."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HopHead:
    """What travels beside a parcel.

    Attributes:
        key_id: With which the call was made: it ends with its key.
        timeout_s: What is left of the call's deadline.
        trace: A W3C `traceparent` of our own, or None.
        lease: For a replica: how long it may work on it.
        span_s: For another region: how long what was sent may at most be under way.
    """

    request_id: RequestId
    tenant: TenantId
    key_id: KeyId
    operation: Operation
    model: ModelId
    stream: bool
    timeout_s: float
    trace: str | None = None
    lease: Lease | None = None
    span_s: float | None = None


class Relayed(Protocol):
    """How an answer ended."""

    @property
    def began(self) -> bool:
        """Whether a byte of it reached the client: then nothing can be tried again."""
        ...

    @property
    def fault(self) -> MeshError | None:
        """None when it is whole."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A call that has ended: counted where it came in, and recorded once, in the region that served or refused it.

    Attributes:
        at_s: Seconds since 1970, UTC, at its end.
        tenant: None where the key was nobody's.
        key_id: Empty where no key was known.
        model: From the catalogue; empty while none was known.
        door: `http`, `grpc` or `peer`.
        code: `ok`, `cancelled` (the client hung up), or a code of the error table.
        entry: The region in which the client called.
        served_elsewhere: Whether its record stands in the region that it was forwarded to.
        outside_pin: Whether a client called here though its tenant's pin does not allow it: it has shown what it sent.
    """

    request_id: RequestId
    at_s: float
    tenant: TenantId | None
    key_id: str
    operation: Operation
    model: str
    door: str
    code: str
    usage: Usage
    duration_s: float
    first_byte_s: float | None
    entry: RegionId
    served_elsewhere: bool
    outside_pin: bool


class Hop(Protocol):
    """A parcel that was sent, and its answer as it comes."""

    @property
    def usage(self) -> Usage:
        """Tokens seen so far."""
        ...

    @property
    def first_byte_s(self) -> float | None:
        """When the first byte for the client came, by this host's monotonic clock; None until then."""
        ...

    def close(self) -> None:
        """Abandons it: the connection closes, and the other side stops its work. Idempotent."""
        ...


H = TypeVar("H", bound=Hop)
H_co = TypeVar("H_co", bound=Hop, covariant=True)
H_contra = TypeVar("H_contra", bound=Hop, contravariant=True)
P = TypeVar("P", bound=Parcel)
P_co = TypeVar("P_co", bound=Parcel, covariant=True)
P_contra = TypeVar("P_contra", bound=Parcel, contravariant=True)


class Hops(Protocol[P_contra, H_co]):
    """The way to replicas and to other regions' gateways."""

    async def to_replica(self, to: Address, parcel: P_contra, head: HopHead, check: Check) -> H_co:
        """Sends a parcel to a replica of this region. The hop asks `check` before each piece that it hands on.

        Raises:
            MeshError: REPLICA_FAILED when it could not be handed over.
            StaleHopError: So it was, and another try makes a new connection.
        """
        ...

    async def to_peer(self, region: RegionId, to: Address, parcel: P_contra, head: HopHead, check: Check) -> H_co:
        """Sends a parcel to a gateway of another region, which must prove to be of that region. Otherwise as above.

        Raises:
            MeshError: REPLICA_FAILED when it could not be handed over.
        """
        ...


class Fenced(Protocol):
    """Something that every replica has been told to refuse, or to shorten."""

    @property
    def confirmed(self) -> bool:
        """Whether each has carried it out, or has surely passed the last deadline that it was given."""
        ...


class Replicas(Protocol):
    """What this gateway tells the replicas of its region of how long they may work."""

    def lease(
        self, replica: ReplicaId, tenant: TenantId, left_at: Callable[[Instant], float], number: PolicyNumber
    ) -> Lease | None:
        """The right to send one hop; None while the replica is not heard, or nothing was left when it was."""
        ...

    def fence(self, tenant: TenantId, below: PolicyNumber, key_id: KeyId | None = None) -> Fenced:
        """Has all refuse and end what was sent under an older state of policy; with `key_id`, of that key only."""
        ...

    def lowered(self, tenant: TenantId) -> Fenced:
        """Has all hear how long the tenant's work may go on now."""
        ...


class Exchange(Protocol[P_co, H_contra]):
    """One call at a door, from its headers to its last byte.

    A client that hangs up cancels the task that serves it; a `MeshError` that leaves the story is told to the client.
    """

    @property
    def request_id(self) -> RequestId:
        """Drawn by the door."""
        ...

    @property
    def operation(self) -> Operation:
        """What is asked for."""
        ...

    @property
    def door(self) -> str:
        """`http`, `grpc` or `peer`."""
        ...

    @property
    def credential(self) -> str | None:
        """What came after `Bearer `."""
        ...

    @property
    def label(self) -> str | None:
        """Of the tenant by whose name the door was called; None where it was called by its own."""
        ...

    @property
    def timeout_s(self) -> float:
        """The whole call's deadline, from its headers on."""
        ...

    def at_least(self) -> Revision | None:
        """The oldest policy by which the client wants it decided, from `mesh-policy-at-least`; None where any will do.

        Raises:
            MeshError: INVALID_PARAMETER.
        """
        ...

    async def receive(self, limit_bytes: int, check: Check) -> Facts:
        """Asks for the body, reads all of it and tells what may be known. Asks `check` before each piece.

        Raises:
            MeshError: REQUEST_TOO_LARGE, MALFORMED_BODY, REQUEST_TIMEOUT, INVALID_PARAMETER.
        """
        ...

    @property
    def parcel(self) -> P_co:
        """The body, once it was received."""
        ...

    async def admitted(self, head: AnswerHead) -> None:
        """Called once a route is chosen and before the parcel is needed; may be called again for a second attempt.

        A door whose client shows its content only now asks for it here; for the others it does nothing.

        Raises:
            MeshError: As `receive`.
        """
        ...

    async def relay(self, hop: H_contra, head: AnswerHead) -> Relayed:
        """Moves the answer from a hop to the client, until it ends."""
        ...


class ForwardedExchange(Protocol[P_co, H_contra]):
    """A call that another region's gateway sent on. Otherwise as `Exchange`."""

    @property
    def request_id(self) -> RequestId:
        """Drawn where the client called."""
        ...

    @property
    def operation(self) -> Operation:
        """What is asked for."""
        ...

    @property
    def door(self) -> str:
        """`peer`."""
        ...

    @property
    def tenant(self) -> TenantId:
        """As the sender says; what it may do here is decided here."""
        ...

    @property
    def key_id(self) -> KeyId:
        """With which the client called, as the sender says; whether it is good is decided here."""
        ...

    @property
    def entry(self) -> RegionId:
        """The sender's region, by its certificate."""
        ...

    @property
    def trace(self) -> str | None:
        """The sender's `traceparent`."""
        ...

    @property
    def timeout_s(self) -> float:
        """What was left of the call's deadline."""
        ...

    async def receive(self, limit_bytes: int, check: Check) -> Facts:
        """Reads the parcel. Asks `check` before each piece."""
        ...

    @property
    def parcel(self) -> P_co:
        """The body, once it was received."""
        ...

    async def admitted(self, head: AnswerHead) -> None:
        """Does nothing."""
        ...

    async def relay(self, hop: H_contra, head: AnswerHead) -> Relayed:
        """Moves the frames from a replica to the sender, until they end."""
        ...
