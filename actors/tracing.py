"""Spans of sampled requests: where the time of a request goes, in its client, the leader and the followers.

A process traces if its environment says where spans go: ``RAYKEEPER_TRACE`` names a file, a folder, or ``otel``. A
client samples ``RAYKEEPER_TRACE_RATE`` of its requests, and each that belongs to a trace which is sampled already: of
OpenTelemetry in this process, or of a ``traceparent`` (W3C Trace Context) that a proxy was given. Only a frame with a
sampled request carries a traceparent; members make spans for it, if they trace as well.

A request that is not sampled pays for one comparison with ``None``. A span is made when it has ended, except those
whose ids others have to know; a thread of its own writes them.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import os
import queue
import random
import re
import socket
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ..limits import MAX_SPANS_WAITING, TRACE_CLOSE_S, TRACE_SAMPLED_FRACTION
from .one_thread import NoThreadLeft, start_thread

TRACEPARENT = "traceparent"
"""The header of HTTP, and the key in gRPC's metadata."""
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

Attributes = Mapping[str, str | int | float | bool]


class SpanContext(NamedTuple):
    """Which span of which trace, in lower-case hexadecimal digits."""

    trace: str
    span: str
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """As W3C Trace Context writes it."""
        return f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"


def parse_traceparent(text: str) -> SpanContext | None:
    """What a ``traceparent`` says; ``None`` if it is not valid by W3C Trace Context, level 1."""
    found = _TRACEPARENT.fullmatch(text.strip(" \t"))
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    if not int(found[2], 16) or not int(found[3], 16):
        return None
    return SpanContext(found[2], found[3], bool(int(found[4], 16) & 1))


class EndedSpan(NamedTuple):
    """A part of an open span, which is made only now that it has ended. Times are seconds since 1970."""

    name: str
    start: float
    end: float
    attributes: Attributes


class OpenSpan:
    """A span whose id others know already.

    Attributes:
        context: its own.
        handle: what the sink keeps with it.
    """

    __slots__ = (
        "_tracer",
        "attributes",
        "context",
        "end_at",
        "error",
        "handle",
        "kind",
        "name",
        "parent",
        "parts",
        "start",
    )

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        kind: str,
        parent: SpanContext | None,
        start: float,
        attributes: Attributes,
        opened: tuple[SpanContext, object],
    ) -> None:
        self._tracer = tracer
        self.name = name
        self.kind = kind
        self.parent = parent
        self.start = start
        self.end_at = start
        self.attributes = dict(attributes)
        self.context, self.handle = opened
        self.parts: list[EndedSpan] = []
        self.error = ""

    def part(self, name: str, start: float, end: float, **attributes: str | int | float | bool) -> None:
        """A part of it has ended, which becomes a span below it."""
        self.parts.append(EndedSpan(name, start, max(start, end), attributes))

    def end(self, at: float, error: str = "") -> None:
        """It has ended, once; with an error, if one is named."""
        self.end_at, self.error = max(self.start, at), error
        self._tracer.ended(self)


class SpanSink(Protocol):
    """Where spans go."""

    def open(
        self, name: str, kind: str, parent: SpanContext | None, start: float, attributes: Attributes
    ) -> tuple[SpanContext, object]:
        """The context of a span that begins, and what to keep with it. Any thread."""
        ...

    def write(self, spans: list[OpenSpan]) -> None:
        """These have ended. The thread that writes; may block."""
        ...

    def current(self) -> SpanContext | None:
        """The span of the code that calls, if it has one."""
        ...


def random_context(rng: random.Random, parent: SpanContext | None) -> SpanContext:
    """That of a new span."""
    trace = parent.trace if parent is not None else f"{rng.getrandbits(128) or 1:032x}"
    return SpanContext(trace, f"{rng.getrandbits(64) or 1:016x}")


_given: contextvars.ContextVar[SpanContext | None] = contextvars.ContextVar("raykeeper_traceparent", default=None)


class Tracer:
    """Samples the requests of a process, and makes its spans. Any thread.

    Args:
        sink: where they go.
        rate: the fraction of requests without a parent that are sampled.
    """

    def __init__(self, sink: SpanSink, rate: float = TRACE_SAMPLED_FRACTION, rng: random.Random | None = None) -> None:
        self._sink = sink
        self._rate = rate
        self._rng = rng or random.Random(os.urandom(16))
        self._ended: queue.SimpleQueue[OpenSpan | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.dropped = 0
        """Spans that were dropped, because too many waited to be written."""

    # -- clients ------------------------------------------------------------------------------------------------------

    def parent(self) -> SpanContext | None:
        """The span of the code that calls: what a proxy was given, or OpenTelemetry's."""
        return _given.get() or self._sink.current()

    def sample(self, name: str, parent: SpanContext | None, attributes: Attributes) -> OpenSpan | None:
        """The span of a request that begins now; ``None`` if it is not sampled."""
        if parent is not None:
            if not parent.sampled:
                return None
        elif self._rng.random() >= self._rate:
            return None
        span = self.open(name, "client", parent, time.time(), attributes)
        return span if span.context.sampled else None

    # -- all ----------------------------------------------------------------------------------------------------------

    def open(self, name: str, kind: str, parent: SpanContext | None, start: float, attributes: Attributes) -> OpenSpan:
        """A span that others will refer to."""
        opened = self._sink.open(name, kind, parent, start, attributes)
        return OpenSpan(self, name, kind, parent, start, attributes, opened)

    def ended(self, span: OpenSpan) -> None:
        """Have a span written."""
        if self._ended.qsize() >= MAX_SPANS_WAITING:
            self.dropped += 1
            return
        self._ended.put(span)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="raykeeper-spans", daemon=True)
                    with contextlib.suppress(NoThreadLeft):  # the next span tries again
                        start_thread(thread)
                        self._thread = thread
                        atexit.register(self.close)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            atexit.unregister(self.close)
            self._ended.put(None)
            thread.join(TRACE_CLOSE_S)

    def _run(self) -> None:
        while True:
            spans = [self._ended.get()]
            while not self._ended.empty():
                spans.append(self._ended.get())
            written = [span for span in spans if span is not None]
            try:
                self._sink.write(written)
            except Exception:  # a full disk, say: requests matter, spans do not
                self.dropped += len(written)
            if len(written) < len(spans):
                return


class GivenParent:
    """A block in which requests belong to the trace that a ``traceparent`` names; one that is not valid is ignored."""

    __slots__ = ("_context", "_token")

    def __init__(self, traceparent: str) -> None:
        self._context = parse_traceparent(traceparent) if traceparent else None
        self._token: contextvars.Token[SpanContext | None] | None = None

    def __enter__(self) -> None:
        self._token = _given.set(self._context)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _given.reset(self._token)


def who() -> str:
    """This process, as spans name it."""
    return f"{socket.gethostname()}:{os.getpid()}"
