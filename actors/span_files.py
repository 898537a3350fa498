"""Spans as lines of JSON in a file: what tracing writes where OpenTelemetry is not wanted.

One object a line, with OpenTelemetry's names: ``traceId``, ``spanId``, ``parentSpanId``, ``name``, ``kind``,
``startTimeUnixNano``, ``endTimeUnixNano``, ``attributes``, ``status``, and ``process``. Several processes may write to
one file: each line is one write to the end of it. A file that has become too long is renamed to end in ``.1``, in place
of the one before it. In a folder each process has a file of its own, and the oldest of too many are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator
from typing import Any

from ..limits import TRACE_FILE_BYTES, TRACE_FOLDER_FILES
from .tracing import Attributes, OpenSpan, SpanContext, random_context, who


class SpanFile:
    """See the module.

    Args:
        path: of a file or an existing folder; a path that ends in ``/`` is that of a folder, which is made.
    """

    def __init__(self, path: str, most_bytes: int = TRACE_FILE_BYTES) -> None:
        self._rng = random.Random(os.urandom(16))
        self._process = who()
        self._most_bytes = most_bytes
        if path.endswith("/") or os.path.isdir(path):
            with contextlib.suppress(OSError):
                os.makedirs(path, exist_ok=True)
                _remove_oldest(path)
            path = os.path.join(path, f"spans-{self._process.replace(':', '-')}.jsonl")
        self._path = path

    def open(
        self, name: str, kind: str, parent: SpanContext | None, start: float, attributes: Attributes
    ) -> tuple[SpanContext, object]:
        """See ``SpanSink``."""
        return random_context(self._rng, parent), None

    def current(self) -> SpanContext | None:
        """See ``SpanSink``."""
        return None

    def write(self, spans: list[OpenSpan]) -> None:
        """See ``SpanSink``."""
        data = b"".join([json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in self._lines(spans)])
        if not data:
            return
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if (size := os.fstat(file).st_size) and size + len(data) > self._most_bytes:
                os.close(file)
                file = -1
                os.replace(self._path, self._path + ".1")
                file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.write(file, data)
        finally:
            if file >= 0:
                os.close(file)

    def _lines(self, spans: list[OpenSpan]) -> Iterator[dict[str, Any]]:
        for span in spans:
            parent = span.parent.span if span.parent is not None else ""
            line = self._line(span.context, parent, span.name, span.kind, span.start, span.end_at, span.attributes)
            yield {**line, "status": {"code": "error", "message": span.error}} if span.error else line
            for part in span.parts:
                below = random_context(self._rng, span.context)
                yield self._line(below, span.context.span, part.name, "internal", part.start, part.end, part.attributes)

    def _line(
        self,
        context: SpanContext,
        parent: str,
        name: str,
        kind: str,
        start: float,
        end: float,
        attributes: Attributes,
    ) -> dict[str, Any]:
        return {
            "traceId": context.trace,
            "spanId": context.span,
            "parentSpanId": parent,
            "name": name,
            "kind": kind,
            "startTimeUnixNano": int(start * 1e9),
            "endTimeUnixNano": int(end * 1e9),
            "attributes": dict(attributes),
            "process": self._process,
        }


def _remove_oldest(folder: str) -> None:
    """Keep the newest ``TRACE_FOLDER_FILES`` files of spans, with this process's own to come."""
    files = [entry for entry in os.scandir(folder) if entry.name.startswith("spans-") and ".jsonl" in entry.name]
    files.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in files[TRACE_FOLDER_FILES - 1 :]:
        with contextlib.suppress(OSError):
            os.unlink(entry.path)
