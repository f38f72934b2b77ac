"""One program's telemetry: its metrics and its spans, and where they go."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import TYPE_CHECKING, LiteralString

from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from mesh.errors import Code, MeshError
from mesh.telemetry.attributes import span_rules
from mesh.telemetry.metrics import Gauge, Metrics
from mesh.telemetry.tracing import Span, Tracer
from mesh.types import Operation, Usage

if TYPE_CHECKING:
    import grpc

_EXPORT_TIMEOUT_S = 5
_EXPORT_EVERY_S = 15


class Telemetry:
    """Metrics and traces of one program. Nothing global: several may live in one process."""

    def __init__(
        self,
        program: str,
        region: str,
        *,
        models: Collection[str] = (),
        otlp: str | None = None,
        otlp_credentials: grpc.ChannelCredentials | None = None,
        span_processor: SpanProcessor | None = None,
    ) -> None:
        """Telemetry.

        Args:
            program: `gateway`, `admin` or `replica`.
            region: Where it runs.
            models: The catalogue's ids: other models are never named.
            otlp: `host:port` of a collector in this region; None exports nothing, and then there are no spans.
            otlp_credentials: For a collector that is not on loopback; without them clear text is refused there.
            span_processor: Takes the spans instead of a collector.

        Raises:
            MeshError: INVALID_SETTINGS when spans would leave the host in clear text.
        """
        resource = {"service.name": f"mesh-{program}", "service.namespace": "mesh", "mesh.region": region}
        rules = span_rules(models)
        readers: list[MetricReader] = []
        if otlp is not None:
            exporters = _exporters(otlp, otlp_credentials)
            readers.append(exporters[0])
            span_processor = span_processor or exporters[1]
        self._metrics = Metrics(resource, models, rules, readers)
        self._tracer = Tracer(span_processor, resource, rules)

    def request_finished(
        self,
        operation: Operation,
        model: str,
        door: str,
        code: str,
        duration_s: float,
        first_byte_s: float | None,
        usage: Usage,
    ) -> None:
        """Counts a call that ended; see `Metrics.request_finished`."""
        self._metrics.request_finished(operation, model, door, code, duration_s, first_byte_s, usage)

    def gauge(self, name: LiteralString, unit: LiteralString, description: LiteralString, read: Gauge) -> None:
        """A gauge `mesh.*` that is read when someone looks; see `Metrics.gauge`."""
        self._metrics.gauge(name, unit, description, read)

    def start_span(self, name: LiteralString, *, parent: str | None = None, server: bool = False) -> Span:
        """Starts a span to be used in a `with`; see `Tracer.start`."""
        return self._tracer.start(name, parent=parent, server=server)

    def prometheus(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return self._metrics.prometheus()

    def close(self) -> None:
        """Sends what is left. Blocks for some seconds at most when the collector is away."""
        self._tracer.close()
        self._metrics.close()


def _exporters(otlp: str, credentials: grpc.ChannelCredentials | None) -> tuple[MetricReader, SpanProcessor]:
    # They bring grpc along, which reads the environment when it is imported: after `mesh.tls.prepare_process`.
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    insecure = credentials is None
    if insecure and not _is_loopback(otlp):
        raise MeshError(Code.INVALID_SETTINGS, hint="mesh.yaml: otlp: a collector beyond loopback needs credentials.")
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(otlp, insecure=insecure, credentials=credentials, headers={}, timeout=_EXPORT_TIMEOUT_S),
        export_interval_millis=_EXPORT_EVERY_S * 1000,
        export_timeout_millis=_EXPORT_TIMEOUT_S * 1000,
    )
    processor = BatchSpanProcessor(
        OTLPSpanExporter(otlp, insecure=insecure, credentials=credentials, headers={}, timeout=_EXPORT_TIMEOUT_S),
        max_queue_size=4096,
        schedule_delay_millis=2000,
        max_export_batch_size=512,
        export_timeout_millis=_EXPORT_TIMEOUT_S * 1000,
    )
    return reader, processor


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
