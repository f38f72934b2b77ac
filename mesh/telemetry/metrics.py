"""The metrics of a program, by OpenTelemetry, shown to Prometheus from a registry of its own.

On a request's path are two histograms (7 us each, measured) and a few additions; labels are made once for each
combination of a closed set of values and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest

from mesh.telemetry.attributes import CODES, DOORS, GEN_AI_OPERATIONS, Rule, Value, is_said
from mesh.types import Operation, Usage

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_OTHER = "_other"
"""The label of a model that is not in the catalogue, OpenTelemetry's word for it."""

Gauge = Callable[[], float | Iterable[tuple[float, Mapping[str, Value]]]]
"""Reads one number, or several with the attributes that tell them apart."""


@dataclass(slots=True)
class _Series:
    """One combination of operation, model and door."""

    attributes: dict[str, Value]
    input: dict[str, Value]
    output: dict[str, Value]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    by_code: dict[str, dict[str, Value]] = field(default_factory=dict)


class Metrics:
    """Counters, histograms and gauges of one program; several may live in one process."""

    def __init__(
        self,
        resource: Mapping[str, str],
        models: Collection[str],
        rules: Mapping[str, Rule],
        readers: Collection[MetricReader] = (),
    ) -> None:
        """Metrics.

        Args:
            resource: What program this is.
            models: The catalogue's ids; calls for others are counted as one.
            rules: What a gauge's attributes may say.
            readers: Who else takes the metrics, an OTLP exporter for one.
        """
        self._models = frozenset(models)
        self._rules = rules
        self._registry = CollectorRegistry(auto_describe=False)
        prometheus = PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        # The resource and the filter are given: what is left out would be read from the environment.
        self._provider = MeterProvider(
            [prometheus, *readers],
            resource=Resource(dict(resource)),
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )
        self._meter: Meter = self._provider.get_meter("mesh")
        self._duration = self._seconds("mesh.request.duration", "From a call's headers to its last byte.")
        self._first_byte = self._seconds("mesh.request.time_to_first_byte", "From a call's headers to its first byte.")
        self._series: dict[tuple[Operation, str, str], _Series] = {}
        self._meter.create_observable_counter(
            "mesh.tokens", [self._tokens], unit="{token}", description="Tokens of prompts and answers."
        )
        self.dropped = 0
        """Observations of gauges that were left out because of their attributes."""

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
        """Counts a call that ended.

        Args:
            operation: What was asked for.
            model: The model's id; one that is not in the catalogue is not named.
            door: `http`, `grpc` or `peer`.
            code: `ok`, `cancelled`, or a code of the error table.
            duration_s: From its headers to its end.
            first_byte_s: From its headers to the first byte of the answer, None if there was none.
            usage: Tokens seen.
        """
        model = model if model in self._models else _OTHER
        series = self._series.get((operation, model, door))
        if series is None:
            series = self._new_series(operation, model, door)
        series.prompt_tokens += usage.prompt_tokens
        series.completion_tokens += usage.completion_tokens
        attributes = series.by_code.get(code)
        if attributes is None:
            known = code if code in CODES else "internal_error"
            attributes = series.by_code[known] = {**series.attributes, "mesh.code": known}
        self._duration.record(duration_s, attributes)
        if first_byte_s is not None:
            self._first_byte.record(first_byte_s, series.attributes)

    def gauge(self, name: str, unit: str, description: str, read: Gauge) -> None:
        """A gauge that is read when someone looks: `read` gives a number, or numbers with their attributes, quickly."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            found = read()
            for value, attributes in [(found, {})] if isinstance(found, int | float) else found:
                if all(is_said(self._rules, key, item) for key, item in attributes.items()):
                    yield Observation(value, dict(attributes))
                else:
                    self.dropped += 1

        self._meter.create_observable_gauge(name, [observe], unit=unit, description=description)

    def prometheus(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def close(self) -> None:
        """Sends what is left, within the exporters' deadline."""
        self._provider.shutdown()

    def _new_series(self, operation: Operation, model: str, door: str) -> _Series:
        if door not in DOORS:
            raise ValueError("a door is http, grpc or peer")
        attributes: dict[str, Value] = {
            "gen_ai.operation.name": GEN_AI_OPERATIONS[operation],
            "gen_ai.request.model": model,
            "mesh.door": door,
        }
        series = _Series(
            attributes, {**attributes, "gen_ai.token.type": "input"}, {**attributes, "gen_ai.token.type": "output"}
        )
        self._series[operation, model, door] = series
        return series

    def _tokens(self, _: CallbackOptions) -> Iterable[Observation]:
        for series in tuple(self._series.values()):
            yield Observation(series.prompt_tokens, series.input)
            yield Observation(series.completion_tokens, series.output)

    def _seconds(self, name: str, description: str) -> Histogram:
        return self._meter.create_histogram(
            name, unit="s", description=description, explicit_bucket_boundaries_advisory=_SECONDS
        )
