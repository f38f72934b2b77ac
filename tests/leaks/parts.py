"""What the small mesh is put together from. A planted leak is the same with one part replaced: see `plants.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from opentelemetry.sdk.trace import SpanProcessor

from mesh.control.store import Store
from mesh.gateway.story import Story
from mesh.http1 import Pool, Request
from mesh.ledger import UsageRecord
from mesh.policy.bundle import PolicyBook
from mesh.ports import Clock
from mesh.telemetry import Log, Telemetry, speak_through
from mesh.telemetry.process import where
from mesh.transport.border import Border
from mesh.transport.hops import HttpHops
from mesh.types import RegionId, RequestId

if TYPE_CHECKING:
    from leaks.small_mesh import Gateway

Handler = Callable[[Request], Awaitable[None]]
Serve = Callable[[Any], Awaitable[None]]
Failed = Callable[..., None]
BORDER_BUFFER_BYTES = 65_536
"""What the program's border pool is given."""
CONNECT_S = 30.0
"""Longer than the program's: a loaded machine is no leak."""


class Parts:
    """The product's own parts, wired as `mesh.gateway.program` does."""

    def log(self, region: RegionId, out: TextIO, models: frozenset[str]) -> Log:
        return Log("gateway", region, out, models=models)

    def telemetry(self, region: RegionId, models: frozenset[str], spans: SpanProcessor) -> Telemetry:
        return Telemetry("gateway", region, models=models, span_processor=spans)

    def speak(self, gateway: Gateway) -> None:
        """Takes over what libraries log; the caller puts back what was there."""
        speak_through(gateway.log)

    def failed(self, gateway: Gateway) -> Failed:
        """Told of what nobody foresaw."""

        def failed(error: BaseException, request_id: RequestId | None = None) -> None:
            name, place = type(error).__name__, where(error.__traceback__)
            gateway.log.error("gateway.unforeseen", error=name, where=place, request_id=request_id)

        return failed

    def book(self) -> PolicyBook:
        return PolicyBook()

    def story(self, **given: Any) -> Story[Any, Any]:
        return Story(**given)

    def pool(self, tls: Any) -> Pool:
        """Connections to other regions."""
        return Pool(tls, send_buffer_bytes=BORDER_BUFFER_BYTES, connect_timeout_s=CONNECT_S)

    def store(self, store: Store, texts: Sequence[str]) -> Store:
        """A gateway's way to the control store; `texts` are prompts that it has seen."""
        return store

    def hops(self, gateway: Gateway, pool: Pool, border: Pool, region: RegionId, clock: Clock) -> HttpHops:
        return HttpHops(pool, border, region, clock)

    def serve(self, gateway: Gateway, serve: Serve) -> Serve:
        """Between a door and the story."""
        return serve

    def handle(self, gateway: Gateway, handle: Handler) -> Handler:
        """Between the HTTP server and its door."""
        return handle

    def usage(self, gateway: Gateway, record: UsageRecord) -> UsageRecord:
        return record

    def border(self, gateway: Gateway, **given: Any) -> Border:
        return Border(**given)
