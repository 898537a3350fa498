"""Spans to OpenTelemetry, by its API: the process's own provider does with them what it was set up to do.

In a process that has set up none (a member's, a proxy's), and in which the SDK is installed, spans go to the collector
that ``OTEL_EXPORTER_OTLP_ENDPOINT`` names, if OpenTelemetry's exporter over HTTP is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
from typing import Any

from .tracing import Attributes, OpenSpan, SpanContext

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def otel_installed() -> bool:
    """Whether OpenTelemetry's API is."""
    return importlib.util.find_spec("opentelemetry") is not None


class OtelSpans:
    """See the module."""

    def __init__(self) -> None:
        from opentelemetry import trace

        _set_up()
        self._trace: Any = trace
        self._tracer = trace.get_tracer("raykeeper")

    def open(
        self, name: str, kind: str, parent: SpanContext | None, start: float, attributes: Attributes
    ) -> tuple[SpanContext, object]:
        """See ``SpanSink``. The provider chooses the ids, and may choose not to sample."""
        trace = self._trace
        kinds = {"client": trace.SpanKind.CLIENT, "server": trace.SpanKind.SERVER}
        context = None
        if parent is not None:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else 0)
            known = trace.SpanContext(int(parent.trace, 16), int(parent.span, 16), is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(trace.NonRecordingSpan(known))
        span = self._tracer.start_span(
            name,
            context=context,
            kind=kinds.get(kind, trace.SpanKind.INTERNAL),
            attributes=dict(attributes),
            start_time=int(start * 1e9),
        )
        return _context_of(span), span

    def current(self) -> SpanContext | None:
        """See ``SpanSink``."""
        span = self._trace.get_current_span()
        return _context_of(span) if span.get_span_context().is_valid else None

    def write(self, spans: list[OpenSpan]) -> None:
        """See ``SpanSink``."""
        trace = self._trace
        for each in spans:
            span: Any = each.handle
            below = trace.set_span_in_context(span)
            for part in each.parts:
                made = self._tracer.start_span(
                    part.name, context=below, attributes=dict(part.attributes), start_time=int(part.start * 1e9)
                )
                made.end(int(part.end * 1e9))
            span.set_attributes(each.attributes)
            if each.error:
                span.set_status(trace.Status(trace.StatusCode.ERROR, each.error))
            span.end(int(each.end_at * 1e9))


def _context_of(span: Any) -> SpanContext:
    found = span.get_span_context()
    return SpanContext(f"{found.trace_id:032x}", f"{found.span_id:016x}", found.trace_flags.sampled)


def _set_up() -> None:
    """Give the process a provider, if it has none and the environment names a collector."""
    if not any(map(os.environ.get, _ENDPOINTS)):
        return
    if not importlib.util.find_spec("opentelemetry.sdk"):
        return
    try:
        exporters = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError:
        return
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        who: dict[str, str | int] = {"host.name": socket.gethostname(), "process.pid": os.getpid()}
        if not (
            os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        ):
            who["service.name"] = "raykeeper"
        provider = TracerProvider(resource=Resource.create(who))
        provider.add_span_processor(BatchSpanProcessor(exporters.OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
