"""The span of one sampled call in its client: it waits in the hub, then a frame with it is at a member, and it ends."""

from __future__ import annotations

import time

from ...errors import KeeperError
from ...schema.frames import Read
from ..tracing import OpenSpan, Tracer
from .core.in_flight import CallTrace, LeaseQuestion
from .view import Call


class CallSpan(CallTrace):
    """See the module. The owner of the hub's core calls it with the hub's lock held."""

    __slots__ = ("_member", "_sent_at", "_span", "traceparent")

    def __init__(self, span: OpenSpan) -> None:
        self._span = span
        self._sent_at = 0.0
        self._member = 0
        self.traceparent = span.context.traceparent

    def sent(self, member: int, frame_of: str) -> None:
        """See ``CallTrace``."""
        now = time.time()
        if self._sent_at:
            self._frame_ended(now, "lost")
        else:
            self._span.part("raykeeper.hub.wait", self._span.start, now)
        if frame_of != self.traceparent:
            self._span.attributes["raykeeper.frame_of"] = frame_of
        self._sent_at, self._member = now, member

    def ended(self, outcome: object) -> None:
        """See ``CallTrace``."""
        now, error = time.time(), ""
        if isinstance(outcome, KeeperError):
            error = f"{type(outcome).__name__}: {outcome}"
        if self._sent_at:
            self._frame_ended(now, "failed" if error else "answered")
        self._span.end(now, error)

    def _frame_ended(self, now: float, outcome: str) -> None:
        about = {"raykeeper.member": f"m{self._member}", "raykeeper.outcome": outcome}
        self._span.part("raykeeper.lane", self._sent_at, now, **about)


def begin_span(tracer: Tracer, call: Call, cluster: str) -> CallSpan | None:
    """The span of a call that begins now; ``None`` if it is not sampled."""
    request = call.request
    if isinstance(request, LeaseQuestion):
        return None
    kind = "range" if isinstance(request, Read) else type(request).__name__.lower()
    span = tracer.sample(f"raykeeper.{kind}", call.parent or tracer.parent(), {"raykeeper.cluster": cluster})
    return None if span is None else CallSpan(span)
