"""Reads beside compaction: of the keys at a revision, and of their history, on any thread.

Compaction raises its mark before it removes anything. So a reader looks at the mark once more after it has read: what
it has is whole if the mark has not passed the revision meanwhile; and what is missing though the mark has not come that
far is damage.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from ..errors import DataCorrupted
from .commands import Failed, Range, RangeAnswer, RangePart, Reason
from .engine import Engine
from .history import Changes, Wanted, read_history
from .ranges import Budget, Vanished, View, read_range


class Revisions(Protocol):
    """What readers see move while they read."""

    revision: int
    compact_revision: int

    def shows(self, revision: int) -> bool:
        """Whether what was opened just before now shows this revision, and nothing newer."""
        ...


def read_as_of(
    engine: Engine, revisions: Revisions, r: Range, *, page_items: int, page_bytes: int, max_scanned: int
) -> RangeAnswer | RangePart | Failed:
    """As ``State.range``."""
    while True:
        current = revisions.revision
        if r.revision > current:
            return Failed(Reason.FUTURE_REVISION, current)
        revision = r.revision or current
        mark = revisions.compact_revision
        if revision >= mark:
            answer: RangeAnswer | RangePart | None = None
            with suppress(Vanished):
                view = View(engine, revision, revisions, far=True)
                budget = Budget(max_scanned or 1 << 62)
                answer = read_range(view, r, budget, max_items=page_items, max_bytes=page_bytes)
            mark = revisions.compact_revision
            if revision >= mark:
                if answer is None:
                    raise DataCorrupted(f"a value at revision {revision} is missing")
                return answer
        if r.revision:
            return Failed(Reason.COMPACTED, mark)


def read_changes(
    engine: Engine, revisions: Revisions, wanted: Wanted, low: int, high: int, *, max_bytes: int, max_scanned: int
) -> Changes | int:
    """As ``State.history``."""
    mark = revisions.compact_revision
    if low < mark:
        return mark
    found: Changes | None = None
    with suppress(Vanished):
        found = read_history(engine, wanted, low, high, max_bytes=max_bytes, max_scanned=max_scanned)
    mark = revisions.compact_revision
    if low < mark:
        return mark
    if found is None:
        raise DataCorrupted(f"a change between revisions {low} and {high} is missing")
    if low == mark:
        found.forget_before(mark)
    return found
