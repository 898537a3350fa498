"""Spans of sampled requests in a member: the leader's turn, and each follower's append.

The leader's span of a write begins when its frame has arrived, and has five parts: it waits in the *queue* until it is
proposed, is written to the *log* of this member, waits for a *quorum*, and is *applied* and *answered*. What has waited
for the log has waited for the quorum at the same time. A frame to a follower that carries a sampled entry says the
leader's span (``peer_frames.EntryTrace``), below which the follower makes one of its append.

Where nothing is sampled, all of this costs a look at two empty tables in each turn. Where the process does not trace,
nothing is ever put into them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from ...limits import MAX_TRACED_ENTRIES
from ...raft import Entry
from ..naming import member_name
from ..tracing import Attributes, OpenSpan, Tracer, parse_traceparent
from ..transport.peer_frames import EntryTrace


class WriteSpan:
    """The leader's span of one sampled write. Times are the member's clock.

    Args:
        span: its own.
        clock: the member's clock.
    """

    __slots__ = ("_clock", "_log_began", "_log_took", "span")

    def __init__(self, span: OpenSpan, clock: Callable[[], float]) -> None:
        self.span = span
        self._clock = clock
        self._log_began = self._log_took = 0.0

    def logged(self, began: float, took: float) -> None:
        """Its entry was written to the log; in seconds since 1970, and seconds."""
        self._log_began, self._log_took = began, took

    def answered(self, index: int, arrival: float, proposed_at: float, apply_began: float, apply_took: float) -> None:
        """It was answered just now."""
        now = time.time()
        off = now - self._clock()
        span = self.span
        span.attributes["raykeeper.index"] = index
        span.part("raykeeper.queue", arrival + off, proposed_at + off)
        waits_from = proposed_at + off
        if self._log_began:
            waits_from = self._log_began + self._log_took
            span.part("raykeeper.log", self._log_began, waits_from)
        span.part("raykeeper.quorum", min(waits_from, apply_began + off), apply_began + off)
        applied = apply_began + apply_took + off
        span.part("raykeeper.apply", apply_began + off, applied)
        span.part("raykeeper.answer", applied, now)
        span.end(now)

    def refused(self, why: str) -> None:
        """It came to nothing here."""
        self.span.end(time.time(), why)


class RequestSpans:
    """See the module. For the loop's thread, except where it says so.

    Args:
        tracer: the process's; ``None`` makes no spans.
        cluster: its name.
        member: this one's id.
        clock: the member's.
    """

    def __init__(self, tracer: Tracer | None, cluster: str, member: int, clock: Callable[[], float]) -> None:
        self._tracer = tracer
        self._clock = clock
        self._about = {"raykeeper.cluster": cluster, "raykeeper.member": member_name(member)}
        self._writes: dict[int, WriteSpan] = {}
        """By index: sampled entries that this leader has proposed and not written to its log."""
        self.proposed: dict[int, str] = {}
        """By index: the traceparent of the newest sampled entries of this leader, for frames to followers."""
        self._arrived: dict[int, tuple[str, float]] = {}
        """By index: sampled entries that a leader has sent, not written to the log: traceparent, and when they came."""

    # -- the leader ---------------------------------------------------------------------------------------------------

    def write(self, traceparent: str, arrival: float) -> WriteSpan | None:
        """The span of a sampled write that arrived then; ``None`` without one. Any thread."""
        span = self._open("raykeeper.member.write", traceparent, arrival)
        return None if span is None else WriteSpan(span, self._clock)

    def propose(self, index: int, write: WriteSpan) -> None:
        """A sampled write was proposed."""
        self._writes[index] = write
        self.proposed[index] = write.span.context.traceparent
        _forget_oldest(self._writes)
        _forget_oldest(self.proposed)

    def read(self, traceparent: str, arrival: float, waited: float, took: float) -> None:
        """A frame of reads was answered: after so many seconds in which they waited to be allowed, and were read. Any
        thread."""
        span = self._open("raykeeper.member.read", traceparent, arrival)
        if span is not None:
            span.part("raykeeper.read_index", span.start, span.start + waited)
            span.part("raykeeper.read", span.start + waited, span.start + waited + took)
            span.end(span.start + waited + took)

    def _open(self, name: str, traceparent: str, arrival: float) -> OpenSpan | None:
        parent = None if self._tracer is None else parse_traceparent(traceparent)
        if self._tracer is None or parent is None or not parent.sampled:
            return None
        began = time.time() - (self._clock() - arrival)
        return self._tracer.open(name, "server", parent, began, self._about)

    # -- the log ------------------------------------------------------------------------------------------------------

    def arrived(self, traces: Sequence[EntryTrace]) -> None:
        """A frame of a leader names sampled entries. Any thread."""
        if self._tracer is None:
            return
        for trace in traces:
            self._arrived.setdefault(trace.index, (trace.traceparent, time.time()))
        _forget_oldest(self._arrived)

    @property
    def waiting(self) -> bool:
        """Whether a sampled entry is not in the log yet."""
        return bool(self._writes or self._arrived)

    def appended(self, entries: Sequence[Entry], took: float) -> None:
        """These entries were written to the log just now, in so many seconds."""
        now = time.time()
        for entry in entries:
            write = self._writes.pop(entry.index, None)
            if write is not None:
                write.logged(now - took, took)
            traceparent, came = self._arrived.pop(entry.index, ("", 0.0))
            parent = parse_traceparent(traceparent)
            if parent is not None and self._tracer is not None and write is None:
                about: Attributes = {**self._about, "raykeeper.index": entry.index}
                span = self._tracer.open("raykeeper.member.append", "server", parent, min(came, now), about)
                span.part("raykeeper.log", now - took, now)
                span.end(now)
        if entries and self._arrived:  # what was sent twice
            for index in [index for index in list(self._arrived) if index <= entries[-1].index]:
                self._arrived.pop(index, None)


def _forget_oldest(table: dict[int, Any]) -> None:
    while len(table) > MAX_TRACED_ENTRIES:
        table.pop(next(iter(table)), None)
