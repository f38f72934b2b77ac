"""Spans with allow-listed attributes. Without an exporter there are none, and asking for one costs next to nothing.

A trace begins here: what a client sends as `traceparent` or `tracestate` could be content, and is not read. Between the
mesh's own programs the parent travels in our own `traceparent`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import LiteralString, Protocol, Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from mesh.telemetry.attributes import Rule, Value, is_said

_PARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01", re.ASCII)


class Span(Protocol):
    """A piece of work. Leaving its `with` ends it; an error that passes through leaves only its code."""

    @property
    def traceparent(self) -> str | None:
        """What a hop carries, so that the other program's spans join this trace; None when nothing is traced."""
        ...

    def set(self, name: LiteralString, value: Value | None) -> None:
        """Says something of it, if that may be said."""
        ...

    def failed(self, code: str) -> None:
        """Marks it with a code of the error table."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class _NoSpan:
    """What `start` returns when nothing is traced: one object for all."""

    __slots__ = ()
    traceparent: str | None = None

    def set(self, name: LiteralString, value: Value | None) -> None:
        del name, value

    def failed(self, code: str) -> None:
        del code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        del kind, error, tb


NO_SPAN: Span = _NoSpan()


class _LiveSpan:
    __slots__ = ("_rules", "_span")

    def __init__(self, span: trace.Span, rules: Mapping[str, Rule]) -> None:
        self._span = span
        self._rules = rules

    @property
    def traceparent(self) -> str | None:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def set(self, name: LiteralString, value: Value | None) -> None:
        if value is not None and is_said(self._rules, name, value):
            self._span.set_attribute(name, value)

    def failed(self, code: str) -> None:
        if is_said(self._rules, "error.type", code):
            self._span.set_attribute("error.type", code)
        self._span.set_status(Status(StatusCode.ERROR))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # An exception's text may quote what it worked on: only that there was one is said.
        if kind is not None:
            code = getattr(error, "code", None)
            self.failed(code if isinstance(code, str) else "internal_error")
        self._span.end()


class Tracer:
    """Makes spans, or `NO_SPAN` where no processor takes them."""

    def __init__(self, processor: SpanProcessor | None, resource: Mapping[str, str], rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self._provider: TracerProvider | None = None
        if processor is not None:
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - only who traces pays for it

            # Every argument is given: those left out would be read from the environment.
            self._provider = TracerProvider(
                sampler=ALWAYS_ON,
                resource=Resource(dict(resource)),
                shutdown_on_exit=False,
                id_generator=RandomIdGenerator(),
                span_limits=SpanLimits(64, 0, 0, 64, 0, 0, 128, 128),
            )
            self._provider.add_span_processor(processor)
            self._tracer = self._provider.get_tracer("mesh")

    def start(self, name: LiteralString, *, parent: str | None = None, server: bool = False) -> Span:
        """Starts a span.

        Args:
            name: Written in the code.
            parent: The `traceparent` of one of the mesh's own programs; never a client's.
            server: Whether the work was asked for by another program.
        """
        if self._provider is None:
            return NO_SPAN
        span = self._tracer.start_span(
            name,
            context=_context(parent),
            kind=SpanKind.SERVER if server else SpanKind.INTERNAL,
            record_exception=False,
            set_status_on_exception=False,
        )
        assert isinstance(span, SdkSpan)  # noqa: S101 - every span is sampled
        return _LiveSpan(span, self._rules)

    def close(self) -> None:
        """Sends what is left, within the exporter's deadline."""
        if self._provider is not None:
            self._provider.shutdown()


def _context(parent: str | None) -> Context:
    match = _PARENT.fullmatch(parent) if parent else None
    if match is None:
        return Context()
    context = SpanContext(int(match[1], 16), int(match[2], 16), is_remote=True, trace_flags=TraceFlags(1))
    return trace.set_span_in_context(NonRecordingSpan(context), Context())
