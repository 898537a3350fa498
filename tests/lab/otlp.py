"""A collector of spans, as OpenTelemetry's exporter over HTTP knows one: it takes OTLP in protobuf, and keeps it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class CollectedSpan(NamedTuple):
    """A span as it has arrived.

    Attributes:
        trace, span, parent: ids in hexadecimal; no parent is empty.
        kind: ``internal``, ``server`` or ``client``.
        process: of the resource, to tell processes apart: each export of one has its own connection, so it is the
            instance or process id that the SDK says, if it says one.
    """

    name: str
    trace: str
    span: str
    parent: str
    kind: str
    attributes: dict[str, Any]
    start: int
    end: int
    scope: str
    resource: dict[str, Any]


class Collector:
    """What was received so far. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[CollectedSpan] = []
        self.endpoint = ""
        self.requests: list[tuple[str, str]] = []
        """Path and content type of each."""

    def spans(self) -> list[CollectedSpan]:
        """In the order of arrival."""
        with self._lock:
            return list(self._spans)

    def take(self, path: str, kind: str, body: bytes) -> None:
        """One request."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        request = ExportTraceServiceRequest.FromString(body)
        found = [
            _span(span, scope.scope.name, _attributes(resource.resource.attributes))
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.requests.append((path, kind))
            self._spans += found


_KINDS = {1: "internal", 2: "server", 3: "client"}


def _span(span: Any, scope: str, resource: dict[str, Any]) -> CollectedSpan:
    return CollectedSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _KINDS[span.kind],
        _attributes(span.attributes),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        scope,
        resource,
    )


def _attributes(found: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in found}


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens on a port of its own."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(self.path, self.headers["content-type"], body)
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="collector", daemon=True)
    thread.start()
    collector.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
