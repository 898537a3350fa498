"""Whether this process makes spans of requests, and where they go: as its environment says."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from typing import NamedTuple

from ..limits import TRACE_SAMPLED_FRACTION
from .tracing import SpanSink, Tracer

WHERE = "RAYKEEPER_TRACE"
"""The variable that says where spans go..."""
RATE = "RAYKEEPER_TRACE_RATE"
"""... and the one that says how many requests are sampled, as a fraction."""


def rate_of(environ: Mapping[str, str]) -> float:
    """The fraction of requests to sample; 0 for a text that is not a fraction."""
    try:
        rate = float(environ.get(RATE) or TRACE_SAMPLED_FRACTION)
    except ValueError:
        return 0.0
    return rate if math.isfinite(rate) and 0 <= rate <= 1 else 0.0


class _Made(NamedTuple):
    """This process's tracer, and the settings that it was made by."""

    settings: tuple[str, str]
    tracer: Tracer | None


_made: _Made | None = None
_making = threading.Lock()


def process_tracer() -> Tracer | None:
    """This process's tracer, as its environment says; ``None`` if it does not trace. Any thread."""
    global _made
    settings = os.environ.get(WHERE, ""), os.environ.get(RATE, "")
    made = _made
    if made is None or made.settings != settings:
        with _making:
            made = _made
            if made is None or made.settings != settings:
                _made = made = _Made(settings, _make(os.environ))
    return made.tracer


def _make(environ: Mapping[str, str]) -> Tracer | None:
    where = environ.get(WHERE, "")
    if not where and not environ.get(RATE):
        return None
    from .span_files import SpanFile
    from .span_otel import OtelSpans, otel_installed

    sink: SpanSink
    if where in ("", "otel"):
        if not otel_installed():
            return None
        sink = OtelSpans()
    else:
        sink = SpanFile(where)
    return Tracer(sink, rate_of(environ))
