"""Reads concurrent with compaction: of the keys at a revision, and of their history, on any thread.

Compaction raises the compact revision before it removes anything. So a reader checks it again after it has read. If it
has not passed the reader's revision, the answer is complete, and a record that was missing means damage.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from ...errors import DataCorrupted
from ...schema.answers import Failed, RangeAnswer, RangePart, Reason
from ...schema.operations import Range
from ..engine.interface import Engine
from .history import Changes, HistoryQuery, read_history
from .mvcc import RecordMissing, mod_revision
from .ranges import Budget, RevisionView, item_of, read_range


class Revisions(Protocol):
    """What may change while a reader reads."""

    revision: int
    compact_revision: int

    def shows(self, revision: int) -> bool:
        """Whether an iterator opened just before this call shows this revision and nothing newer."""
        ...


def read_as_of(
    engine: Engine, revisions: Revisions, r: Range, *, page_items: int, page_bytes: int, max_scanned: int
) -> RangeAnswer | RangePart | Failed:
    """As ``State.range``. A read of the present that compaction overtakes starts again at a newer revision."""
    while True:
        current = revisions.revision
        if r.revision > current:
            return Failed(Reason.FUTURE_REVISION, current)
        revision = r.revision or current
        compacted = revisions.compact_revision
        if revision >= compacted:
            answer: RangeAnswer | RangePart | None = None
            with suppress(RecordMissing):
                view = RevisionView(engine, revision, revisions, far=True)
                budget = Budget(max_scanned or 1 << 62)
                answer = read_range(view, r, budget, newest=current, max_items=page_items, max_bytes=page_bytes)
            compacted = revisions.compact_revision
            if revision >= compacted:
                if answer is None:
                    raise DataCorrupted(f"a value at revision {revision} is missing")
                return answer
        if r.revision:
            return Failed(Reason.COMPACTED, compacted)


def read_now(engine: Engine, revisions: Revisions, r: Range) -> RangeAnswer | None:
    """What a key is now, which most reads ask for, by one look; ``None`` if it takes more to know that.

    A record that is no newer than the newest revision was the key's at that revision, whatever is written or compacted
    meanwhile: compaction can only have removed its value.
    """
    newest, key = revisions.revision, r.keys.key
    record = engine.get("keys", key)
    if record is None or mod_revision(record) > newest:
        return None
    if r.count_only:
        return RangeAnswer(newest, (), 1)
    try:
        return RangeAnswer(newest, (item_of(engine, key, record, with_value=not r.keys_only),), 1)
    except RecordMissing:
        return None


def read_changes(
    engine: Engine, revisions: Revisions, wanted: HistoryQuery, low: int, high: int, *, max_bytes: int, max_scanned: int
) -> Changes | int:
    """As ``State.history``. A read that compaction reaches, but does not overtake, starts again."""
    compacted = revisions.compact_revision
    while low >= compacted:
        found: Changes | None = None
        with suppress(RecordMissing):
            found = read_history(
                engine, wanted, low, high, compacted=compacted, max_bytes=max_bytes, max_scanned=max_scanned
            )
        before, compacted = compacted, revisions.compact_revision
        if compacted == before:
            if found is None:
                raise DataCorrupted(f"a change between revisions {low} and {high} is missing")
            return found
    return compacted
