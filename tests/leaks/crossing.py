"""Leaks in what crosses a border: hops, messages between gateways, the control store, and what a kernel still holds."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from border.canary import varint
from leaks.parts import BORDER_BUFFER_BYTES, Parts
from leaks.said import prompt_of
from leaks.small_mesh import CHAT, REGIONS, Gateway

from mesh.content.parcel import Sealed
from mesh.control.store import Compare, Op, Put, Store, TxnResult
from mesh.errors import MeshError
from mesh.gateway.story import Story
from mesh.http1 import Pool
from mesh.policy.bundle import PolicyBook, TenantPolicy
from mesh.policy.decide import Permit, decide
from mesh.ports import Clock
from mesh.routing.choose import Remote
from mesh.settings import Address
from mesh.transport.border import Border
from mesh.transport.hops import FrameHop, HopHead, HttpHops
from mesh.types import Facts, Jurisdiction, KeyId, RegionId, TenantId, Transfer

_EVERYWHERE = frozenset(map(Jurisdiction, ("VN", "SG", "JP")))
Check = Callable[[], None]


class _Wide(Story[Any, Any]):
    """Decides and sends as if every tenant might be everywhere."""

    def _permit(self, key_id: KeyId, tenant: TenantId) -> Permit:
        super()._permit(key_id, tenant)
        policy = self._book.tenant(tenant)
        assert policy is not None
        return _permitted(replace(policy, allowed=_EVERYWHERE, transfer=Transfer.WITHIN_ALLOWED), self)

    async def _send(self, route: Any, exchange: Any, head: HopHead, ongoing: Any) -> Any:
        if isinstance(route, Remote):
            to, sent = self._peers[route.region][0], replace(head, span_s=6.0)
            return await self._hops.to_peer(route.region, to, exchange.parcel, sent, ongoing.check)
        return await super()._send(route, exchange, head, ongoing)


def _permitted(policy: TenantPolicy, story: Story[Any, Any]) -> Permit:
    permit = decide(policy, story._here, lambda *_: 60.0)
    assert isinstance(permit, Permit)
    return permit


class ForwardsFirst(Parts):
    def story(self, **given: Any) -> Story[Any, Any]:
        return _Wide(**given)


class _ReadsFirst(Story[Any, Any]):
    async def serve(self, exchange: Any) -> None:
        facts = await exchange.receive(self._max_body_bytes, lambda: None)
        await super().serve(_Read(exchange, facts))


class _Read:
    """A call whose body is here already."""

    def __init__(self, exchange: Any, facts: Facts) -> None:
        self._exchange, self._facts = exchange, facts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    async def receive(self, limit_bytes: int, check: Check) -> Facts:
        return self._facts


class ChecksLate(Parts):
    def story(self, **given: Any) -> Story[Any, Any]:
        return _ReadsFirst(**given)


class _KeepsFirst(PolicyBook):
    def put_tenant(self, policy: TenantPolicy) -> None:
        if self.tenant(policy.tenant) is None:
            super().put_tenant(policy)


class StalePolicy(Parts):
    """The gateway that is called keeps what it knew first; the others hear of changes."""

    def __init__(self) -> None:
        self._made = 0

    def book(self) -> PolicyBook:
        self._made += 1
        return _KeepsFirst() if self._made == 1 else PolicyBook()


class _Abroad(HttpHops):
    """Knows the way to Japan."""

    gateway: Gateway

    @property
    def japan(self) -> Address:
        return self.gateway.peers[REGIONS["jp"]][0]


class TriesAnywhere(_Abroad):
    async def to_replica(self, to: Address, parcel: Sealed, head: HopHead, check: Check) -> FrameHop:
        try:
            return await super().to_replica(to, parcel, head, check)
        except MeshError:
            return await self.to_peer(REGIONS["jp"], self.japan, parcel, replace(_bare(head), span_s=6.0), check)


class Mirrors(_Abroad):
    """Sends a packed copy of each call, to compare answers."""

    pack: Callable[[bytes], bytes] = staticmethod(gzip.compress)

    async def to_replica(self, to: Address, parcel: Sealed, head: HopHead, check: Check) -> FrameHop:
        if head.model == CHAT:
            copy = Sealed(self.pack(parcel.open()), parcel.content_type)
            with suppress(MeshError):
                (await self.to_peer(REGIONS["jp"], self.japan, copy, _bare(head), check)).close()
        return await super().to_replica(to, parcel, head, check)


class MirrorsUnread(Mirrors):
    """Packs it in a way that no detector can unpack: a frame of zstd by its first bytes."""

    pack = staticmethod(lambda body: b"\x28\xb5\x2f\xfd" + bytes(one ^ 0x55 for one in body))


class Notes(_Abroad):
    """Carries what it saw last in the trace of the next call."""

    _note = ""

    async def to_replica(self, to: Address, parcel: Sealed, head: HopHead, check: Check) -> FrameHop:
        self._note = base64.b64encode(parcel.open()).decode()
        return await super().to_replica(to, parcel, head, check)

    async def to_peer(self, region: RegionId, to: Address, parcel: Sealed, head: HopHead, check: Check) -> FrameHop:
        return await super().to_peer(region, to, parcel, replace(_bare(head), trace=self._note), check)


def _bare(head: HopHead) -> HopHead:
    return replace(head, lease=None)


def sends_by(kind: type[HttpHops]) -> type[Parts]:
    class SendsBy(Parts):
        def hops(self, gateway: Gateway, pool: Pool, border: Pool, region: RegionId, clock: Clock) -> HttpHops:
            hops = kind(pool, border, region, clock)
            if isinstance(hops, _Abroad):
                hops.gateway = gateway
            return hops

    return SendsBy


class _Adds:
    """A gRPC context that adds a field to what is written: one that no schema knows."""

    def __init__(self, context: Any, more: Callable[[], bytes]) -> None:
        self._context, self._more = context, more

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        data = self._more()
        message.MergeFromString(b"\x7a" + varint(len(data)) + data)  # field 15, bytes
        await self._context.write(message)


class _Talkative(Border):
    more: Callable[[], bytes]

    async def _exchange(self, context: Any) -> None:
        await super()._exchange(_Adds(context, self.more))


class BorderField(Parts):
    def border(self, gateway: Gateway, **given: Any) -> Border:
        border = _Talkative(**given)
        border.more = lambda: "\n".join(gateway.texts).encode()
        return border


class BorderNumbers(Parts):
    """Packed numbers that are the prompts' token ids. `encode` is the model's."""

    encode: Callable[[str], Any] = staticmethod(lambda _: ())

    def border(self, gateway: Gateway, **given: Any) -> Border:
        border = _Talkative(**given)
        border.more = lambda: b"".join(
            varint(number) for text in gateway.texts for number in self.encode(prompt_of(text))
        )
        return border


# --- what stands alone: the control store, and what a kernel still holds


class _NotesInStore:
    """A store that keeps a note beside what is put, to look at later."""

    def __init__(self, store: Store, note: bytes) -> None:
        self._store, self._note = store, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def txn(
        self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = (), *, timeout_s: float
    ) -> TxnResult:
        noted = [replace(op, value=op.value + self._note) if isinstance(op, Put) else op for op in then]
        return await self._store.txn(compares, noted, otherwise, timeout_s=timeout_s)


class NotesInStore(Parts):
    def store(self, store: Store, texts: Sequence[str]) -> Store:
        return _NotesInStore(store, "\n".join(texts).encode())


class _Polite(Pool):
    """Ends a connection that is given up as any other: what was written to it still goes out."""

    async def _connect(self, address: Any) -> Any:
        connection = await super()._connect(address)
        connection.reset = connection.close
        return connection


class ClosesPolitely(Parts):
    def pool(self, tls: Any) -> Pool:
        return _Polite(tls, send_buffer_bytes=BORDER_BUFFER_BYTES)
