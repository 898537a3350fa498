"""Spans to OpenTelemetry: its context is the parent, its provider chooses the ids, and the spans form one tree."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from lab.onemember import one_member
from lab.otlp import CollectedSpan, collecting
from lab.patience import until
from lab.ray.programs import PATH, run_program
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


# --- to a collector --------------------------------------------------------------------------------------------------

PROGRAM = """
from lab.onemember import one_member
from raykeeper.actors.process_tracer import process_tracer

with one_member() as member, member.client() as kv:
    kv.put("a", "1")
    assert kv.get("a").text == "1"
process_tracer().close()
print("done")
"""
"""A process of its own, since its provider can be set once only. It sets up none, as a member."""


def told_to(endpoint: str, **more: str) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    told = {"RAYKEEPER_TRACE": "otel", "RAYKEEPER_TRACE_RATE": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **more}
    told |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    assert "done" in run_program("-c", PROGRAM, PYTHONPATH=PATH, **told)


def test_spans_reach_a_collector_by_otlp() -> None:
    with collecting() as collector:
        told_to(collector.endpoint)
        spans = collector.spans()
    assert {("/v1/traces", "application/x-protobuf")} == set(collector.requests)
    assert {(span.scope, span.resource["service.name"]) for span in spans} == {("raykeeper", "raykeeper")}
    assert {"host.name", "process.pid"} <= spans[0].resource.keys()
    by_id = {span.span: span for span in spans}

    def path(span: CollectedSpan) -> str:
        name = span.name.removeprefix("raykeeper.")
        return f"{path(by_id[span.parent])}/{name}" if span.parent else name

    (put,) = [span for span in spans if span.name == "raykeeper.put"]
    parts = ("queue", "log", "quorum", "apply", "answer")
    tree = {"put", "put/hub.wait", "put/lane", "put/member.write", *[f"put/member.write/{part}" for part in parts]}
    assert {path(span) for span in spans if span.trace == put.trace} == tree
    (range_,) = [span for span in spans if span.name == "raykeeper.range"]
    assert "range/member.read/read_index" in {path(span) for span in spans if span.trace == range_.trace}
    assert (put.kind, by_id[put.span].start <= put.end) == ("client", True)
    (write,) = [span for span in spans if span.name == "raykeeper.member.write"]
    assert (write.kind, write.attributes["raykeeper.member"]) == ("server", "m1")


def test_a_service_has_the_name_that_the_environment_gives_it() -> None:
    with collecting() as collector:
        told_to(collector.endpoint, OTEL_SERVICE_NAME="shop")
        assert {span.resource["service.name"] for span in collector.spans()} == {"shop"}


def test_no_request_waits_for_a_collector_that_is_not_there() -> None:
    with socket.socket() as nobody:  # it does not listen
        nobody.bind(("127.0.0.1", 0))
        told_to(f"http://127.0.0.1:{nobody.getsockname()[1]}", OTEL_EXPORTER_OTLP_TIMEOUT="1")
