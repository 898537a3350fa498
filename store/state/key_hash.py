"""A hash of all versions of the keys up to a revision, which members compare on demand (etcd: HashKV).

It covers what can be read or watched from the compact revision up to the revision that is asked for: every change in
between with the version that it replaced, and every key as it was then. So it is the same on all members that have the
same compact revision, whatever has changed since, and however far each has come with the removal of what is compacted.
The bits are not etcd's.

It is computed in slices, on any thread, while the state changes. Compaction that overtakes the reader makes it begin
again with the new compact revision, as a read does (``reads``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import google_crc32c

from ...errors import DataCorrupted
from ...limits import HASH_SLICE_RECORDS
from ...schema.answers import Failed, Reason
from ...schema.operations import KeyRange
from ..engine.interface import Engine
from .mvcc import APART, CHANGE_BYTES, KIND, REVISION, RecordMissing, mod_revision, value_key
from .ranges import Budget, RevisionView, records

if TYPE_CHECKING:
    from .stored_state import StoredState

_ALL = KeyRange(b"", b"")
_UNBOUNDED = 1 << 62


@dataclass(frozen=True, slots=True)
class KeyHash:
    """32 bits, and what they stand for."""

    hash: int
    revision: int
    """Versions up to this revision are in it..."""
    compact_revision: int
    """... from this one on."""


def hash_keys(state: StoredState, revision: int, throttle: Callable[[], None] = lambda: None) -> KeyHash | Failed:
    """The hash of one member's keys.

    Args:
        revision: up to which; 0 for the newest.
        throttle: called after each slice of work, while the database is not held; may wait, or raise to give up.

    Raises:
        Unavailable: the state was closed.
        DataCorrupted: the data on disk cannot be read, or is inconsistent.
    """
    while True:
        newest = state.revision
        if revision > newest:
            return Failed(Reason.FUTURE_REVISION, newest)
        wanted, compacted = revision or newest, state.compact_revision
        if wanted >= compacted:
            found: int | None = None
            with suppress(RecordMissing):
                found = _hash(state, wanted, compacted, throttle)
            if state.compact_revision == compacted:
                if found is None:
                    raise DataCorrupted(f"a version up to revision {wanted} is missing")
                return KeyHash(found, wanted, compacted)
        elif revision:
            return Failed(Reason.COMPACTED, compacted)


def _hash(state: StoredState, revision: int, compacted: int, throttle: Callable[[], None]) -> int:
    found, more = 0, True
    with state.reading() as engine:
        parts = _parts(state, engine, revision, compacted)
    while more:
        with state.reading():
            some = [*islice(parts, HASH_SLICE_RECORDS)]
            found = google_crc32c.extend(found, b"".join(some))
            more = len(some) == HASH_SLICE_RECORDS
        throttle()
    return found


def _parts(state: StoredState, engine: Engine, revision: int, compacted: int) -> Iterator[bytes]:
    """What is hashed, in a form that can be taken apart in one way only."""
    for where, change in engine.iterate("history", REVISION.pack(compacted + 1), REVISION.pack(revision + 1)):
        yield _part(engine, where, where[REVISION.size :], change, change[CHANGE_BYTES:])
    for key, record in records(RevisionView(engine, revision, state, far=True), _ALL, Budget(_UNBOUNDED)):
        yield _part(engine, key, key, record, record)


def _part(engine: Engine, where: bytes, key: bytes, stored: bytes, record: bytes) -> bytes:
    """One record of the history, or one key, with the value of the version that it holds."""
    value = b""
    if record and record[KIND] == APART:
        found = engine.get("values", value_key(key, mod_revision(record)))
        if found is None:
            raise RecordMissing
        value = found
    sizes = (len(where), len(stored), len(value))
    return b"".join((*(size.to_bytes(4, "big") for size in sizes), where, stored, value))
