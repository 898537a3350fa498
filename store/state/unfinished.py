"""Writing the past of a large batch ahead of the batch, and removing what a crash has left of that.

What a command has changed becomes visible in one write to the database, and a crash leaves all of it or nothing. While
RocksDB makes that write, nothing else runs in the member's process, so it must not be long. But most of what a large
delete writes is the past: the records that it replaces, with their values. All of that is stored under the new revision
(``AHEAD``), where no reader looks before that is the newest: the history of a watch and the content's hash end at the
revision that they are read at, a past record is reached from the latest one of its key, and a deletion counts only for
keys that were created after the revision that is read. So these families are written first, in slices, between which
the member does other things. The last write, which takes effect, holds only the keys and what is short.

A mark in ``meta`` is there from the first slice until the last write removes it. If it is found when the database is
opened, the process has ended in between: what was written ahead is removed, and the log replays the command from its
beginning. The history is written before what is found by it.
"""

from __future__ import annotations

from itertools import islice

from ...limits import BATCH_SLICE_WRITES
from ..engine.interface import Engine, Write
from .mvcc import (
    APART,
    CHANGE,
    CHANGE_BYTES,
    KIND,
    REVISION,
    changed_key,
    deletion_key,
    mod_revision,
    replaced_key,
    value_key,
)

AHEAD = ("history", "deletions", "values")
"""Families that are written ahead, in this order."""
MARK = b"unfinished"
"""The mark's key in ``meta``."""


def remove_unfinished(engine: Engine, revision: int) -> None:
    """Remove what was written ahead of a write that never was, if the mark is there.

    Args:
        revision: the newest that has taken effect.
    """
    if engine.get("meta", MARK) is None:
        return
    changes = engine.iterate("history", REVISION.pack(revision + 1))
    while found := [*islice(changes, BATCH_SLICE_WRITES)]:
        writes: list[Write] = []
        for where, change in found:
            main, key = changed_key(where)
            replaced = change[CHANGE_BYTES:]
            if CHANGE.unpack_from(change)[0]:
                writes.append(("deletions", deletion_key(key, main), None))
            else:
                writes.append(("values", value_key(key, main), None))
            if replaced and replaced[KIND] == APART:
                writes.append(("values", replaced_key(key, mod_revision(replaced)), None))
            writes.append(("history", where, None))
        engine.write(writes)
    engine.write([("meta", MARK, None)])
