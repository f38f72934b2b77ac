"""Leaks made on purpose: each is one part of the small mesh, replaced by one that a careless change could have made.

None of it patches a module. `IN_PROCESS` and `ALONE` are played here; `IN_SIMULATION` are among the simulation's own mutants, since
they show only when things happen in an unlucky order.
"""

from __future__ import annotations

import base64
import gzip
import logging
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from tempfile import NamedTemporaryFile
from typing import Any, TextIO

from border.canary import varint
from leaks.parts import BORDER_BUFFER_BYTES, Failed, Handler, Parts, Serve
from leaks.small_mesh import CHAT, REGIONS, Gateway
from leaks.traffic import DETECTORS
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from mesh.content.frames import Frame
from mesh.content.parcel import Sealed
from mesh.control.store import Compare, Op, Put, Store, TxnResult
from mesh.errors import Code, MeshError
from mesh.gateway.story import Story
from mesh.http1 import Pool, Request
from mesh.ledger import UsageRecord
from mesh.policy.bundle import PolicyBook, TenantPolicy
from mesh.policy.decide import Permit, decide
from mesh.ports import Clock
from mesh.routing.choose import Remote
from mesh.settings import Address
from mesh.telemetry import Log, Telemetry
from mesh.telemetry.attributes import Rule
from mesh.telemetry.tracing import Span, Tracer
from mesh.transport.border import Border
from mesh.transport.hops import FrameHop, HopHead, HttpHops
from mesh.types import Facts, Jurisdiction, KeyId, ModelId, Operation, RegionId, RequestId, TenantId, Transfer, Usage

LEGS, FILES, METRICS, ANSWERS, VOLUME = DETECTORS
_EVERYWHERE = frozenset(map(Jurisdiction, ("VN", "SG", "JP")))
Check = Callable[[], None]

# --- what programs say of themselves


class _Everything(dict[str, Rule]):
    """Takes every name with every value."""

    def get(self, key: str, default: Any = None) -> Any:
        return lambda _: True


class _SaysAll(Log):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._rules = _Everything()


class LogField(Parts):
    def log(self, region: RegionId, out: TextIO, models: frozenset[str]) -> Log:
        return _SaysAll("gateway", region, out, models=models)


class LibraryLog(Parts):
    def speak(self, gateway: Gateway) -> None:
        logging.getLogger().addHandler(_Closing(gateway.folder / "libraries.log"))


class _Closing(logging.FileHandler):
    """Holds no file open between records."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self.close()


def _told(gateway: Gateway, name: str, tell: Callable[[BaseException], str]) -> Failed:
    def failed(error: BaseException, request_id: RequestId | None = None) -> None:
        with (gateway.folder / name).open("a") as out:
            out.write(tell(error))

    return failed


class ErrorText(Parts):
    def failed(self, gateway: Gateway) -> Failed:
        return _told(gateway, "stderr", lambda error: f"unforeseen: {error}\n")


class CrashDump(Parts):
    """Only the variables: not the error's own text."""

    def failed(self, gateway: Gateway) -> Failed:
        def tell(error: BaseException) -> str:
            frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
            return "\n".join(f"{frame.name} {frame.locals}" for frame in frames)

        return _told(gateway, "core.1234", tell)


class _Unruly(Telemetry):
    """Spans take every attribute."""

    def __init__(self, spans: SpanProcessor, models: frozenset[str]) -> None:
        super().__init__("gateway", "vn-1", models=models)
        self._tracer = Tracer(spans, {}, _Everything())


class SpanAttribute(Parts):
    def telemetry(self, region: RegionId, models: frozenset[str], spans: SpanProcessor) -> Telemetry:
        return _Unruly(spans, models)


class _RecordsErrors(Telemetry):
    """Spans by OpenTelemetry's defaults: an error that passes through one becomes an event with its text."""

    def __init__(self, spans: SpanProcessor, models: frozenset[str]) -> None:
        super().__init__("gateway", "vn-1", models=models)
        self._provider = TracerProvider(shutdown_on_exit=False)
        self._provider.add_span_processor(spans)

    def start_span(self, name: str, *, parent: str | None = None, server: bool = False) -> Span:
        return _DefaultSpan(self._provider.get_tracer("plain").start_as_current_span(name))


class _DefaultSpan:
    traceparent: str | None = None

    def __init__(self, scope: Any) -> None:
        self._scope = scope

    def set(self, name: str, value: object) -> None:
        pass

    def failed(self, code: str) -> None:
        pass

    def __enter__(self) -> Any:
        self._scope.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._scope.__exit__(*exc)


class SpanEvent(Parts):
    def telemetry(self, region: RegionId, models: frozenset[str], spans: SpanProcessor) -> Telemetry:
        return _RecordsErrors(spans, models)


class _AnyModel(frozenset[str]):
    def __contains__(self, _: object) -> bool:
        return True


class MetricLabel(Parts):
    def telemetry(self, region: RegionId, models: frozenset[str], spans: SpanProcessor) -> Telemetry:
        telemetry = Telemetry("gateway", region, models=models, span_processor=spans)
        telemetry._metrics._models = _AnyModel()
        return telemetry


class UsageColumn(Parts):
    """The model is taken from the body before the catalogue is asked."""

    def usage(self, gateway: Gateway, record: UsageRecord) -> UsageRecord:
        return replace(record, model=_prompt(gateway.texts[-1])[:64]) if gateway.texts else record


# --- what clients are told


def _explains(door: str) -> type[Parts]:
    class Explains(Parts):
        """An error that nobody foresaw is explained to the client, by its text."""

        def serve(self, gateway: Gateway, serve: Serve) -> Serve:
            async def explained(exchange: Any) -> None:
                try:
                    await serve(exchange)
                except MeshError:
                    raise
                except Exception as error:
                    if exchange.door != door:
                        raise
                    raise MeshError(Code.INTERNAL_ERROR, hint=str(error)) from None

            return explained

    return Explains


class _NamesModel(Story[Any, Any]):
    def _model(self, permit: Permit, facts: Facts, operation: Operation, *, forwarded: bool) -> ModelId:
        try:
            return super()._model(permit, facts, operation, forwarded=forwarded)
        except MeshError as error:
            raise MeshError(error.code, param=facts.model) from None


class ErrorParameter(Parts):
    def story(self, **given: Any) -> Story[Any, Any]:
        return _NamesModel(**given)


class _Replayed:
    """An answer from memory."""

    usage = Usage()
    first_byte_s: float | None = None

    def __init__(self, frames: list[Frame]) -> None:
        self._left = frames[:]

    async def read(self) -> list[Frame]:
        frames, self._left = self._left, []
        return frames

    def close(self) -> None:
        pass


class _Remembers(HttpHops):
    """Keeps the newest answer of a model for whoever asks for it next with another key."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._kept: dict[tuple[Operation, ModelId, bool], tuple[TenantId, list[Frame]]] = {}

    async def to_replica(self, to: Address, parcel: Sealed, head: HopHead, check: Check) -> Any:
        about = head.operation, head.model, head.stream
        tenant, frames = self._kept.get(about, (head.tenant, []))
        if tenant != head.tenant:
            return _Replayed(frames)
        hop, frames = await super().to_replica(to, parcel, head, check), []
        while piece := await hop.read():
            frames += piece
        hop.close()
        self._kept[about] = head.tenant, frames
        return _Replayed(frames)


# --- what is kept


class SpooledBody(Parts):
    def serve(self, gateway: Gateway, serve: Serve) -> Serve:
        async def spooled(exchange: Any) -> None:
            try:
                await serve(exchange)
            finally:
                with (
                    suppress(RuntimeError),
                    NamedTemporaryFile(dir=gateway.folder, prefix="body-", delete=False) as out,
                ):
                    out.write(exchange.parcel.open())

        return spooled


def _access_log(line: Callable[[Request], str]) -> type[Parts]:
    class AccessLog(Parts):
        def handle(self, gateway: Gateway, handle: Handler) -> Handler:
            async def logged(request: Request) -> None:
                with (gateway.folder / "access.log").open("a") as out:
                    out.write(line(request) + "\n")
                await handle(request)

            return logged

    return AccessLog


# --- what crosses a border


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


class _TriesAnywhere(_Abroad):
    async def to_replica(self, to: Address, parcel: Sealed, head: HopHead, check: Check) -> FrameHop:
        try:
            return await super().to_replica(to, parcel, head, check)
        except MeshError:
            return await self.to_peer(REGIONS["jp"], self.japan, parcel, replace(_bare(head), span_s=6.0), check)


class _Mirrors(_Abroad):
    """Sends a packed copy of each call, to compare answers."""

    async def to_replica(self, to: Address, parcel: Sealed, head: HopHead, check: Check) -> FrameHop:
        if head.model == CHAT:
            copy = Sealed(gzip.compress(parcel.open()), parcel.content_type)
            with suppress(MeshError):
                (await self.to_peer(REGIONS["jp"], self.japan, copy, _bare(head), check)).close()
        return await super().to_replica(to, parcel, head, check)


class _Notes(_Abroad):
    """Carries what it saw last in the trace of the next call."""

    _note = ""

    async def to_replica(self, to: Address, parcel: Sealed, head: HopHead, check: Check) -> FrameHop:
        self._note = base64.b64encode(parcel.open()).decode()
        return await super().to_replica(to, parcel, head, check)

    async def to_peer(self, region: RegionId, to: Address, parcel: Sealed, head: HopHead, check: Check) -> FrameHop:
        return await super().to_peer(region, to, parcel, replace(_bare(head), trace=self._note), check)


def _bare(head: HopHead) -> HopHead:
    return replace(head, lease=None)


def _sends_by(kind: type[HttpHops]) -> type[Parts]:
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
            varint(number) for text in gateway.texts for number in self.encode(_prompt(text))
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


def _prompt(body: str) -> str:
    """The prompt in a JSON body; all of another one."""
    found = re.search(r'"content": "([^"]*)"', body)
    return found[1] if found else body


@dataclass(frozen=True)
class Leak:
    """A leak.

    Attributes:
        detector: What must find it.
        parts: How the mesh is put together with it.
        everywhere: Whether prompts of every script take it.
    """

    detector: str
    parts: Callable[[], Parts]
    everywhere: bool = True


IN_PROCESS: Mapping[str, Leak] = {
    "a log line takes any field": Leak(FILES, LogField),
    "a library's own log, as it comes": Leak(FILES, LibraryLog),
    "an exception's text, written down": Leak(FILES, ErrorText),
    "a crash dump with variables": Leak(FILES, CrashDump),
    "a trace attribute": Leak(FILES, SpanAttribute),
    "an exception recorded as a span's event": Leak(FILES, SpanEvent),
    "a metric's label": Leak(METRICS, MetricLabel),
    "a column of the usage ledger": Leak(FILES, UsageColumn),
    "an exception's text in an HTTP answer": Leak(ANSWERS, _explains("http")),
    "an exception's text in a gRPC status": Leak(ANSWERS, _explains("grpc")),
    "an unknown model named in an error": Leak(ANSWERS, ErrorParameter),
    "an answer kept, and given to another tenant": Leak(ANSWERS, _sends_by(_Remembers)),
    "a body spooled to a temporary file": Leak(FILES, SpooledBody),
    "an access log with path and query": Leak(FILES, _access_log(lambda r: f"{r.method} {r.path}?{r.query}")),
    "an access log with the credential": Leak(FILES, _access_log(lambda r: str(r.header(b"authorization")))),
    "the check comes after the body was read": Leak(VOLUME, ChecksLate, everywhere=False),
    "forwarded without asking the pin": Leak(LEGS, ForwardsFirst),
    "a stale copy of the policy": Leak(LEGS, StalePolicy),
    "a retry goes to whatever region answers": Leak(LEGS, _sends_by(_TriesAnywhere)),
    "a packed copy of each call for comparison": Leak(LEGS, _sends_by(_Mirrors)),
    "another tenant's prompt in a hop's header, base64": Leak(LEGS, _sends_by(_Notes)),
    "a border message with an unknown field": Leak(LEGS, BorderField),
    "token ids in a border message": Leak(LEGS, BorderNumbers, everywhere=False),
}

ALONE: Mapping[str, Leak] = {
    "a note in a gateway's record in the control store": Leak(FILES, NotesInStore),
    "a hop that is given up is closed, not reset": Leak(LEGS, ClosesPolitely, everywhere=False),
}
"""Of parts that the small mesh has no place for; each with a test of its own."""

IN_SIMULATION: Mapping[str, str] = {
    "a key's state is kept after it was revoked": "stalekey",
    "a policy that its home did not sign is taken": "unsigned",
    "an older signed policy is taken again": "replay",
    "the receiver believes what the sender decided": "senderdecides",
    "sent abroad for as long as it may serve at home": "sendhome",
    "a hop that comes late is taken": "fence",
}
"""Leak: the simulation's mutant that makes it."""
