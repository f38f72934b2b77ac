"""What a program tells its operator: lines, metrics and spans."""

from __future__ import annotations

import io
import json

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from mesh.errors import Code, MeshError
from mesh.telemetry import NO_SPAN, Log, Telemetry
from mesh.types import Operation, Usage

MODELS = ["smollm2-135m", "minilm-l6-v2"]


def samples(telemetry: Telemetry) -> dict[tuple[str, frozenset], float]:
    families = text_string_to_metric_families(telemetry.prometheus().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def labels(**more: str) -> frozenset:
    known = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "smollm2-135m", "mesh_door": "http"}
    return frozenset((known | more).items())


def test_requests_are_counted_by_what_they_were() -> None:
    telemetry = Telemetry("gateway", "vn-1", models=MODELS)
    for code in ("ok", "ok", Code.NO_CAPACITY):
        telemetry.request_finished(Operation.CHAT, "smollm2-135m", "http", code, 0.2, 0.05, Usage(3, 4))
    telemetry.request_finished(Operation.COMPLETIONS, "unknown", "grpc", "ok", 0.2, None, Usage(1, 1))
    found = samples(telemetry)
    assert found["mesh_request_duration_seconds_count", labels(mesh_code="ok")] == 2
    assert found["mesh_request_duration_seconds_count", labels(mesh_code="no_capacity")] == 1
    assert found["mesh_request_time_to_first_byte_seconds_count", labels()] == 3
    assert found["mesh_tokens_total", labels(gen_ai_token_type="input")] == 9
    assert found["mesh_tokens_total", labels(gen_ai_token_type="output")] == 12
    other = labels(gen_ai_operation_name="text_completion", gen_ai_request_model="_other", mesh_door="grpc")
    assert found["mesh_tokens_total", other | {("gen_ai_token_type", "input")}] == 1


def test_instances_share_nothing() -> None:
    first, second = Telemetry("gateway", "vn-1", models=MODELS), Telemetry("gateway", "vn-1", models=MODELS)
    first.gauge("mesh.policy.revision", "{revision}", "Applied.", lambda: 7)
    assert samples(first)["mesh_policy_revision", frozenset()] == 7
    assert b"mesh_policy" not in second.prometheus()
    assert not any(family.name.startswith("mesh") for family in REGISTRY.collect())


def test_a_gauge_is_read_when_someone_looks() -> None:
    telemetry = Telemetry("gateway", "vn-1")
    open_connections = [3]
    telemetry.gauge("mesh.door.connections", "{connection}", "Open.", lambda: open_connections[0])
    telemetry.gauge("mesh.replicas", "{replica}", "By state.", lambda: [(2, {"mesh.state": "ready"})])
    assert samples(telemetry)["mesh_door_connections", frozenset()] == 3
    open_connections[0] = 4
    assert samples(telemetry)["mesh_door_connections", frozenset()] == 4
    assert samples(telemetry)["mesh_replicas", frozenset({("mesh_state", "ready")})] == 2


def test_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "secret=word")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
    telemetry = Telemetry("gateway", "vn-1")
    telemetry.gauge("mesh.replicas", "{replica}", "All.", lambda: 1)
    assert b"word" not in telemetry.prometheus()
    assert b'service_name="mesh-gateway"' in telemetry.prometheus()


def test_without_an_exporter_there_are_no_spans() -> None:
    telemetry = Telemetry("gateway", "vn-1")
    with telemetry.start_span("call") as span:
        span.set("mesh.attempt", 1)
    assert span is NO_SPAN
    assert span.traceparent is None


def test_a_trace_is_ours_and_goes_on_over_a_hop() -> None:
    spans = InMemorySpanExporter()
    telemetry = Telemetry("gateway", "vn-1", models=MODELS, span_processor=SimpleSpanProcessor(spans))
    with telemetry.start_span("call", server=True) as outer:
        outer.set("gen_ai.request.model", "smollm2-135m")
        outer.set("mesh.stream", True)
        with telemetry.start_span("hop", parent=outer.traceparent):
            pass
    with pytest.raises(MeshError), telemetry.start_span("call"):
        raise MeshError(Code.RESIDENCY_REFUSED)
    hop, call, refused = spans.get_finished_spans()
    assert hop.parent is not None
    assert hop.parent.span_id == call.context.span_id
    assert hop.context.trace_id == call.context.trace_id != refused.context.trace_id
    assert call.attributes == {"gen_ai.request.model": "smollm2-135m", "mesh.stream": True}
    assert refused.attributes == {"error.type": "residency_refused"}
    telemetry.close()


@pytest.mark.parametrize("address", ["collector.vn-1.example:4317", "10.0.0.1:4317", "localhost:4317"])
def test_nothing_leaves_the_host_in_clear_text(address: str) -> None:
    with pytest.raises(MeshError) as caught:
        Telemetry("gateway", "vn-1", otlp=address)
    assert caught.value.code is Code.INVALID_SETTINGS


def test_a_line_is_json_with_its_program_and_time() -> None:
    out = io.StringIO()
    Log("gateway", "vn-1", out, models=MODELS, strict=True).warning(
        "hop.failed", region="ap-southeast-1", error=ConnectionResetError.__name__, model="smollm2-135m", wait_s=0.5,
        pid=None,
    )  # fmt: skip
    line = json.loads(out.getvalue())
    assert line.pop("at").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "hop.failed",
        "program": "gateway",
        "region": "vn-1",
        "of_region": "ap-southeast-1",
        "error": "ConnectionResetError",
        "model": "smollm2-135m",
        "wait_s": 0.5,
    }


def test_a_log_outlives_its_reader() -> None:
    out = io.StringIO()
    log = Log("gateway", "vn-1", out)
    out.close()
    log.error("etcd.cut")
    assert log.dropped == 1
