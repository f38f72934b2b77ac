"""Leaks in what programs say of themselves, in what clients are told, and in what is kept."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from tempfile import NamedTemporaryFile
from typing import Any, TextIO

from leaks.parts import Failed, Handler, Parts, Serve
from leaks.small_mesh import Gateway
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from mesh.content.frames import Frame
from mesh.content.parcel import Sealed
from mesh.errors import Code, MeshError
from mesh.gateway.story import Story
from mesh.http1 import Request
from mesh.ledger import UsageRecord
from mesh.policy.decide import Permit
from mesh.settings import Address
from mesh.telemetry import Log, Telemetry
from mesh.telemetry.attributes import Rule
from mesh.telemetry.tracing import Span, Tracer
from mesh.transport.hops import HopHead, HttpHops
from mesh.types import Facts, ModelId, Operation, RegionId, RequestId, TenantId, Usage

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
        return replace(record, model=prompt_of(gateway.texts[-1])[:64]) if gateway.texts else record


# --- what clients are told


def explains(door: str) -> type[Parts]:
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


class Remembers(HttpHops):
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


def access_log(line: Callable[[Request], str]) -> type[Parts]:
    class AccessLog(Parts):
        def handle(self, gateway: Gateway, handle: Handler) -> Handler:
            async def logged(request: Request) -> None:
                with (gateway.folder / "access.log").open("a") as out:
                    out.write(line(request) + "\n")
                await handle(request)

            return logged

    return AccessLog


def prompt_of(body: str) -> str:
    """The prompt in a JSON body; all of another one."""
    found = re.search(r'"content": "([^"]*)"', body)
    return found[1] if found else body
