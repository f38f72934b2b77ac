"""There is no way to put free text into a log line, a metric or a span."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mesh.telemetry import Log, Telemetry, speak_through
from mesh.telemetry.attributes import log_rules, span_rules
from mesh.types import Operation, Usage

CANARY = "My patient Nguyễn Văn A, +84 90 123 4567, takes warfarin"
WORDS = [
    "hello",
    "CANARY",
    "canary-7f3a9c21",
    "sk-live_abcDEF123456",
    "mk_vn_abcdefghijkl_0123456789",
    "a@b.vn",
    "10.1.2.3",
    "Ngọc",
]
MODELS = ["smollm2-135m"]


@pytest.mark.parametrize("text", [CANARY, *WORDS])
@pytest.mark.parametrize("rules", [log_rules(MODELS), span_rules(MODELS)], ids=["log", "span"])
def test_no_name_takes_text(rules: dict, text: str) -> None:
    assert [name for name, rule in rules.items() if rule(text)] == []


@given(st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: " " in text or not text.isascii()))
def test_no_name_takes_what_people_write(text: str) -> None:
    for rules in (log_rules(MODELS), span_rules(MODELS)):
        assert [name for name, rule in rules.items() if rule(text)] == []


def test_the_conventions_content_attributes_are_unknown() -> None:
    forbidden = ("gen_ai.input", "gen_ai.output", "gen_ai.system", "gen_ai.prompt", "gen_ai.completion", "exception.")
    assert [name for name in span_rules(MODELS) if name.startswith((*forbidden, "client.", "url.", "user"))] == []


def test_a_log_drops_and_counts_what_may_not_be_said() -> None:
    out = io.StringIO()
    log = Log("gateway", "vn-1", out, models=MODELS)
    log.info(
        "call.ended", request_id=CANARY, tenant=CANARY, model=CANARY, code=CANARY, error=CANARY, prompt=CANARY, pid=True
    )
    log.info(CANARY)  # pyright: ignore - the type checker refuses this one
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert CANARY not in out.getvalue()
    assert lines[0]["dropped"] == 7
    assert lines[1]["event"] == "log.unnamed"
    assert log.dropped == 8


def test_a_strict_log_raises_without_the_value() -> None:
    log = Log("gateway", "vn-1", io.StringIO(), strict=True)
    with pytest.raises(ValueError, match="may not be logged") as caught:
        log.info("call.ended", prompt=CANARY)
    assert CANARY not in str(caught.value)


def test_metrics_and_spans_do_not_take_it() -> None:
    spans = InMemorySpanExporter()
    telemetry = Telemetry("gateway", "vn-1", models=MODELS, span_processor=SimpleSpanProcessor(spans))
    telemetry.request_finished(Operation.CHAT, CANARY, "http", CANARY, 0.1, None, Usage(1, 2))
    telemetry.gauge(
        "mesh.test", "1", "A test.", lambda: [(1.0, {"mesh.state": CANARY}), (2.0, {"mesh.state": "ready"})]
    )

    def fail() -> None:
        with telemetry.start_span("call", parent=f"00-{CANARY}") as span:
            span.set("gen_ai.request.model", CANARY)
            span.set("gen_ai.input.messages", CANARY)  # no such name
            span.set("mesh.request_id", CANARY)
            span.failed(CANARY)
            raise RuntimeError(CANARY)

    with pytest.raises(RuntimeError):
        fail()
    (span,) = spans.get_finished_spans()
    assert CANARY not in span.to_json()
    assert span.attributes == {"error.type": "internal_error"}
    assert not span.events
    shown = telemetry.prometheus().decode()
    assert CANARY not in shown
    assert 'mesh_test{mesh_state="ready"} 2.0' in shown
    telemetry.close()


def test_a_process_speaks_through_its_log_only(capfd: pytest.CaptureFixture[str]) -> None:
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    root = logging.getLogger()
    before = root.handlers[:], root.level
    out = io.StringIO()
    try:
        speak_through(Log("gateway", "vn-1", out, strict=True))
        try:
            json.loads(CANARY)
        except ValueError:
            logging.getLogger("some.library").exception("could not read %s", CANARY)
            sys.excepthook(*sys.exc_info())
        thread = threading.Thread(target=lambda: json.loads(CANARY))
        thread.start()
        thread.join()
    finally:
        sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
        root.handlers[:], level = before
        root.setLevel(level)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["library.logged", "process.uncaught", "process.thread_failed"]
    assert {line["error"] for line in lines} == {"JSONDecodeError"}
    assert all(line["where"].startswith("tests/telemetry/test_telemetry_canary.py:") for line in lines)
    assert CANARY not in out.getvalue() + "".join(capfd.readouterr())
