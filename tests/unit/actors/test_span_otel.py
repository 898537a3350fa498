"""Spans to OpenTelemetry: its context is the parent, its provider chooses the ids, and the spans form one tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab.onemember import one_member
from lab.patience import until
from raykeeper.actors import process_tracer, span_otel
from raykeeper.actors.tracing import Tracer

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What the application's provider exports. The process's own provider is left alone: it can be set once only."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    monkeypatch.setenv("RAYKEEPER_TRACE", "otel")
    monkeypatch.setenv("RAYKEEPER_TRACE_RATE", "0")
    monkeypatch.setattr(process_tracer, "_made", None)
    yield exporter
    tracer = process_tracer.process_tracer()
    assert tracer is not None
    tracer.close()
    monkeypatch.setattr(process_tracer, "_made", None)


def by_name(exported: InMemorySpanExporter) -> dict[str, Any]:
    return {span.name: span for span in exported.get_finished_spans()}


def test_a_put_inside_a_span_of_the_application(exported: InMemorySpanExporter) -> None:
    application = trace.get_tracer("application")
    with one_member() as member, member.client() as kv:
        kv.put("a", "1")
        with application.start_as_current_span("work") as work:
            kv.put("b", "1")
        until(lambda: {"raykeeper.put", "raykeeper.member.write"} <= by_name(exported).keys())
    spans = by_name(exported)
    assert [span.name for span in exported.get_finished_spans()].count("raykeeper.put") == 1
    call, write = spans["raykeeper.put"], spans["raykeeper.member.write"]
    assert call.parent.span_id == work.get_span_context().span_id
    assert write.parent.span_id == call.context.span_id
    assert {spans[f"raykeeper.{name}"].parent.span_id for name in ("queue", "log", "quorum", "apply", "answer")} == {
        write.context.span_id
    }
    assert {span.context.trace_id for span in spans.values()} == {work.get_span_context().trace_id}
    assert call.start_time <= call.end_time
    assert write.attributes["raykeeper.member"] == "m1"


def test_an_error_is_its_status(exported: InMemorySpanExporter) -> None:
    application = trace.get_tracer("application")
    with one_member() as member, member.client() as kv:
        kv.put("a", "1")
        member.cut = True
        with application.start_as_current_span("work"), pytest.raises(Exception, match="in time"):
            kv.put("b", "1", timeout=0.2)  # the member never answers
        until(lambda: "raykeeper.put" in by_name(exported))
        member.cut = False
    status = by_name(exported)["raykeeper.put"].status
    assert status.status_code is trace.StatusCode.ERROR
    assert "in time" in status.description


def test_without_opentelemetry_there_is_no_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYKEEPER_TRACE", "otel")
    monkeypatch.setattr(process_tracer, "_made", None)
    monkeypatch.setattr(span_otel, "otel_installed", lambda: False)
    assert process_tracer.process_tracer() is None
    monkeypatch.setattr(process_tracer, "_made", None)


def test_what_the_provider_does_not_sample_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    provider = TracerProvider(sampler=ALWAYS_OFF)
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    assert Tracer(span_otel.OtelSpans(), 1.0).sample("x", None, {}) is None
