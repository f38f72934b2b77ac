"""Calls on the simulated net: what doors, hops and the way to peers are to the gateway's story.

Fulfils `mesh.gateway.ports`: a message a piece instead of HTTP, with the product's order of steps: the head first, a
check before each piece, an abortive close of what is not whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sim.hosts import Host
from sim.moments import Moments
from sim.net import Net
from sim.tcp import Channel

from mesh.errors import Code, MeshError
from mesh.gateway.ports import Check, HopHead
from mesh.ports import Clock
from mesh.settings import Address
from mesh.types import (
    AnswerHead,
    Facts,
    Jurisdiction,
    KeyId,
    Operation,
    RegionId,
    RequestId,
    Revision,
    TenantId,
    Usage,
)

DOOR, PEER, FLEET, HOPS, DESK = 443, 8445, 8446, 7000, 9000
"""Ports: a gateway's door, its peers' door, its `Fleet`; a replica's hops; an admin's door for operators."""
PIECE_BYTES = 16_384
CONNECT_S = 3.0
BROKEN = (OSError, EOFError, TimeoutError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A client's call, as the client means it.

    Attributes:
        pieces: Of its body, each of `PIECE_BYTES`.
        gap_s: Between two of them.
        steps: How many an engine will take.
        at_least: The oldest policy by which it may be decided.
    """

    request_id: RequestId
    tenant: TenantId
    key_id: KeyId
    credential: str
    model: str
    stream: bool
    pieces: int
    gap_s: float
    steps: int
    timeout_s: float
    at_least: Revision | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The head of a hop. `region` is the sender's, as its certificate says."""

    head: HopHead
    asked: Asked
    region: RegionId


@dataclass(frozen=True, slots=True)
class Parcel:
    """A body on its way."""

    asked: Asked

    @property
    def size_bytes(self) -> int:
        return self.asked.pieces * PIECE_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """A piece of an answer, its end, or an error."""

    kind: str
    code: Code | None = None


@dataclass(frozen=True, slots=True)
class Relayed:
    """See `gateway.ports.Relayed`."""

    began: bool
    fault: MeshError | None


class Witness(Protocol):
    """Who is told what became of content, and when."""

    def admitted(self, host: Host, place: Jurisdiction, asked: Asked, arrived: float) -> None:
        """A door let a call in: now its body is asked for."""
        ...

    def forwarded(self, host: Host, place: Jurisdiction, asked: Asked) -> None:
        """A piece was handed to the net towards a jurisdiction."""
        ...

    def received(self, host: Host, place: Jurisdiction, asked: Asked, *, accepted: bool) -> None:
        """What was sent towards a jurisdiction came there, and was taken or refused."""
        ...


class SimHop:
    """A parcel that was sent. Fulfils `gateway.ports.Hop`."""

    def __init__(self, channel: Channel, clock: Clock, check: Check) -> None:
        self.first_byte_s: float | None = None
        self._steps = 0
        self._channel = channel
        self._clock = clock
        self._check = check
        self._over = False

    @property
    def usage(self) -> Usage:
        return Usage(1, self._steps)

    async def read(self) -> Frame:
        """The next frame; asks first whether it may be handed on."""
        try:
            frame: Frame = await self._channel.receive()
        except (OSError, EOFError):
            raise MeshError(Code.REPLICA_FAILED) from None
        self._check()
        if frame.kind == "data":
            self._steps += 1
            self.first_byte_s = self.first_byte_s or self._clock.now_s()
        else:
            self._over = True
        return frame

    def close(self) -> None:
        if self._over:
            self._channel.close()
        else:
            self._channel.abort()


class SimHops:
    """The way to replicas and peers. Fulfils `gateway.ports.Hops`."""

    def __init__(
        self,
        net: Net,
        host: Host,
        region: RegionId,
        place_of: Callable[[RegionId], Jurisdiction],
        witness: Witness,
        moments: Moments,
    ) -> None:
        self._net = net
        self._host = host
        self._region = region
        self._place_of = place_of
        self._witness = witness
        self._moments = moments

    async def to_replica(self, to: Address, parcel: Parcel, head: HopHead, check: Check) -> SimHop:
        return await self._send(to, parcel, head, check, None)

    async def to_peer(self, region: RegionId, to: Address, parcel: Parcel, head: HopHead, check: Check) -> SimHop:
        return await self._send(to, parcel, head, check, self._place_of(region))

    async def _send(
        self, to: Address, parcel: Parcel, head: HopHead, check: Check, abroad: Jurisdiction | None
    ) -> SimHop:
        clock, asked = self._host.clock, parcel.asked
        try:
            async with clock.timeout(CONNECT_S):
                channel = await self._net.connect(self._host, to.host, to.port)
        except BROKEN:
            raise MeshError(Code.REPLICA_FAILED) from None
        try:
            if head.span_s is not None:
                channel.user_timeout_s = head.span_s
            check()
            self._moments.fire("chunk_sent", self._host.name)
            channel.send(Sent(head=head, asked=asked, region=self._region), 500)
            for _ in range(asked.pieces):
                check()
                if abroad is not None:
                    self._witness.forwarded(self._host, abroad, asked)
                channel.send(None, PIECE_BYTES)
                self._moments.fire("hop_sent" if abroad is None else "peer_sent", self._host.name)
                await channel.drain()
        except BROKEN:
            channel.abort()
            raise MeshError(Code.REPLICA_FAILED) from None
        except BaseException:
            channel.abort()
            raise
        return SimHop(channel, clock, check)


class _Exchange:
    """What clients' calls and other gateways' have in common."""

    operation = Operation.CHAT

    def __init__(self, channel: Channel, host: Host, place: Jurisdiction, asked: Asked, witness: Witness) -> None:
        self.request_id = asked.request_id
        self.timeout_s = asked.timeout_s
        self.asked = asked
        self.taken = False
        """Whether the body was asked for."""
        self.begins: Callable[[], None] = _nothing
        """Called when it is."""
        self._channel = channel
        self._host = host
        self._place = place
        self._witness = witness

    @property
    def parcel(self) -> Parcel:
        return Parcel(self.asked)

    async def admitted(self, head: AnswerHead) -> None:
        pass

    def take(self) -> None:
        """The body is asked for, or a piece of it has come and may be kept."""

    async def receive(self, limit_bytes: int, check: Check) -> Facts:
        check()
        self.taken = True
        self.take()
        self.begins()
        try:
            for _ in range(self.asked.pieces):
                await self._channel.receive()
                check()
                self.take_piece()
        except (OSError, EOFError):
            raise MeshError(Code.MALFORMED_BODY) from None
        return Facts(model=self.asked.model, stream=self.asked.stream)

    def take_piece(self) -> None:
        """A piece has come and may be kept."""

    async def relay(self, hop: SimHop, head: AnswerHead) -> Relayed:
        began = False
        try:
            while True:
                frame = await hop.read()
                if frame.kind == "error":
                    return Relayed(began, MeshError(frame.code or Code.REPLICA_FAILED))
                self._channel.send(frame, 400)
                await self._channel.drain()
                began = began or frame.kind == "data"
                if frame.kind == "end":
                    return Relayed(began, None)
        except MeshError as error:
            return Relayed(began, error)
        except OSError:
            raise asyncio.CancelledError from None  # the client is gone


class ClientExchange(_Exchange):
    """A client's call. Fulfils `gateway.ports.Exchange`."""

    door = "http"
    label = None

    def __init__(
        self, channel: Channel, host: Host, place: Jurisdiction, asked: Asked, witness: Witness, arrived: float
    ) -> None:
        super().__init__(channel, host, place, asked, witness)
        self.credential = asked.credential
        self._arrived = arrived

    def at_least(self) -> Revision | None:
        return self.asked.at_least

    def take(self) -> None:
        self._witness.admitted(self._host, self._place, self.asked, self._arrived)


class PeerExchange(_Exchange):
    """A call that another region's gateway sent on. Fulfils `gateway.ports.ForwardedExchange`."""

    door = "peer"
    trace = None

    def __init__(self, channel: Channel, host: Host, place: Jurisdiction, sent: Sent, witness: Witness) -> None:
        super().__init__(channel, host, place, sent.asked, witness)
        self.timeout_s = sent.head.timeout_s
        self.tenant = sent.head.tenant
        self.key_id = sent.head.key_id
        self.entry = sent.region

    def take(self) -> None:
        self._witness.received(self._host, self._place, self.asked, accepted=True)

    def take_piece(self) -> None:
        self.take()


def answer_error(channel: Channel, error: MeshError) -> None:
    """Tells the other side, if it still hears."""
    try:
        channel.send(Frame("error", error.code), 300)
        channel.close()
    except OSError:
        channel.abort()


def _nothing() -> None:
    pass
