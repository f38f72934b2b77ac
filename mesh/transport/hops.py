"""Hops: how a parcel goes to a replica or to another region's gateway, and its frames come back.

One HTTP/1.1 request over mTLS, on pooled connections. The other side is known by its certificate's name, which holds
its role and its region; what a hop may carry where is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mesh.content.frames import Frame, FrameError, FrameKind, FrameParser
from mesh.content.parcel import Sealed
from mesh.errors import Code, MeshError, StaleHopError
from mesh.http1 import ConnectionFailedError, Pool, Response, StaleConnectionError, TooManyConnectionsError
from mesh.ports import Clock
from mesh.routing.lease import Lease
from mesh.settings import Address
from mesh.tls import internal_name
from mesh.types import KeyId, ModelId, Operation, RegionId, RequestId, Role, TenantId, Usage

_DEAD_S = 10.0
"""A connection breaks once nothing that was sent has been acknowledged for so long."""


class HopHead(Protocol):
    """What travels beside a parcel."""

    @property
    def request_id(self) -> RequestId:
        """Of the call."""
        ...

    @property
    def tenant(self) -> TenantId:
        """Whose call it is."""
        ...

    @property
    def key_id(self) -> KeyId:
        """With which the call was made."""
        ...

    @property
    def operation(self) -> Operation:
        """What is asked for."""
        ...

    @property
    def model(self) -> ModelId:
        """By which it was routed."""
        ...

    @property
    def stream(self) -> bool:
        """Whether the answer comes in pieces."""
        ...

    @property
    def timeout_s(self) -> float:
        """What is left of the deadline."""
        ...

    @property
    def trace(self) -> str | None:
        """A `traceparent` of our own."""
        ...

    @property
    def lease(self) -> Lease | None:
        """For a replica: how long it may work on it."""
        ...

    @property
    def span_s(self) -> float | None:
        """For another region: how long what was sent may at most be under way."""
        ...


class FrameHop:
    """A parcel that was sent, and its frames as they come. Fulfils `gateway.ports.Hop`."""

    def __init__(self, response: Response, clock: Clock, check: Callable[[], None]) -> None:
        self._response = response
        self._clock = clock
        self._check = check
        self._parser = FrameParser()
        self._usage = Usage()
        self._first_byte_s: float | None = None

    @property
    def usage(self) -> Usage:
        """Tokens seen so far."""
        return self._usage

    @property
    def first_byte_s(self) -> float | None:
        """When the first byte for the client came."""
        return self._first_byte_s

    async def read(self) -> list[Frame]:
        """All frames that have arrived, at least one; none at the end. Asks first whether they may be handed on.

        Raises:
            MeshError: REPLICA_FAILED when the connection broke or the bytes were no frames.
        """
        while True:
            try:
                data = await self._response.read()
                frames = list(self._parser.feed(data)) if data else []
            except (ConnectionFailedError, FrameError):
                raise MeshError(Code.REPLICA_FAILED) from None
            if not data and self._parser.mid_frame:
                raise MeshError(Code.REPLICA_FAILED)
            self._check()
            if frames:
                if frames[-1].usage != Usage():
                    self._usage = frames[-1].usage
                if self._first_byte_s is None and any(frame.kind is FrameKind.DATA for frame in frames):
                    self._first_byte_s = self._clock.now_s()
            if frames or not data:
                return frames

    def close(self) -> None:
        """Abandons what has not come yet: the other side stops its work. After the end, the connection is kept."""
        self._response.close()


class HttpHops:
    """The way to replicas and peers. Fulfils `gateway.ports.Hops`."""

    def __init__(self, pool: Pool, border: Pool, here: RegionId, clock: Clock) -> None:
        """Takes connections to replicas in `pool`, and to other regions in `border`, with a small send buffer."""
        self._pool = pool
        self._border = border
        self._here = here
        self._clock = clock

    async def to_replica(self, to: Address, parcel: Sealed, head: HopHead, check: Callable[[], None]) -> FrameHop:
        """Sends a parcel to a replica of this region.

        Raises:
            MeshError: REPLICA_FAILED when it could not be handed over; NO_CAPACITY when too many are under way there.
            StaleHopError: So it was, and another try makes a new connection.
        """
        return await self._send(self._pool, to, internal_name(Role.REPLICA, self._here), parcel, head, check)

    async def to_peer(
        self, region: RegionId, to: Address, parcel: Sealed, head: HopHead, check: Callable[[], None]
    ) -> FrameHop:
        """Sends a parcel to a gateway of another region, which must prove to be of that region.

        What it does not acknowledge within `head.span_s` is not sent again by the operating system.

        Raises:
            MeshError: REPLICA_FAILED when it could not be handed over; NO_CAPACITY when too many are under way there.
            StaleHopError: So it was, and another try makes a new connection.
        """
        return await self._send(self._border, to, internal_name(Role.GATEWAY, region), parcel, head, check)

    async def _send(
        self, pool: Pool, to: Address, name: str, parcel: Sealed, head: HopHead, check: Callable[[], None]
    ) -> FrameHop:
        headers = [
            (b"host", name.encode()),
            (b"content-type", parcel.content_type.encode()),
            (b"mesh-request-id", head.request_id.encode()),
            (b"mesh-tenant", head.tenant.encode()),
            (b"mesh-key", head.key_id.encode()),
            (b"mesh-model", head.model.encode()),
            (b"mesh-stream", b"1" if head.stream else b"0"),
            (b"mesh-timeout-ms", b"%d" % max(1, int(head.timeout_s * 1000))),
        ]
        if head.trace is not None:
            headers.append((b"traceparent", head.trace.encode()))
        if head.lease is not None:
            headers.append((b"mesh-lease", head.lease.encode()))
        try:
            response = await pool.request(
                to.host,
                to.port,
                server_name=name,
                method="POST",
                target=f"/v1/hop/{head.operation}",
                headers=headers,
                body=parcel.open(),
                check=check,
                # Also to a replica: one that was cut off is not waited for until the call's deadline.
                unacknowledged_s=_DEAD_S if head.span_s is None else min(head.span_s, _DEAD_S),
            )
        except TooManyConnectionsError:
            raise MeshError(Code.NO_CAPACITY) from None
        except StaleConnectionError:
            raise StaleHopError from None
        except ConnectionFailedError:
            raise MeshError(Code.REPLICA_FAILED) from None
        if response.status != 200:
            response.close()
            raise MeshError(Code.REPLICA_FAILED)
        return FrameHop(response, self._clock, check)
