"""The log as the core sees it: a durable part, read through :class:`Storage`, and a tail that is not on disk yet.

``Log`` knows indexes and terms, but not roles, members or messages. Entries are added at the end (leader) or after the
entry where both logs agree (follower). They are handed out in a ``Ready`` to be written, and move from the tail to the
durable part once the write is reported done. Committed entries are never truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .messages import Entry, EntryKind, SnapshotMeta

ENTRY_OVERHEAD = 16
"""Bytes that an entry counts on top of its data in every bound on bytes, so that empty entries are bounded too."""


class EntryCompacted(Exception):
    """The entry was trimmed: a snapshot stands in its place."""


class EntryUnavailable(Exception):
    """The entry lies after the end of the log."""


class ChunkNotReady(Exception):
    """The bytes of a chunk are not at hand. The owner calls ``Node.snapshot_chunk_ready`` when they are."""


class LogInconsistent(Exception):
    """A state that Raft rules out: the durable parts contradict each other, or a term had two leaders."""


class Storage(Protocol):
    """The durable state, as far as the core reads it.

    The *base* of a log is the entry just before its first one: the last that was trimmed. Only its index and term are
    known.
    """

    def first_index(self) -> int:
        """Index of the first entry held; the base plus one if there is none."""
        ...

    def last_index(self) -> int:
        """Index of the last entry held, or of the base if there is none."""
        ...

    def term(self, index: int, /) -> int:
        """Term of an entry held, or of the base, which is at ``first_index() - 1``.

        Raises:
            EntryCompacted: the index lies before the base.
            EntryUnavailable: the index lies after the end.
        """
        ...

    def entries(self, low: int, high: int, max_bytes: int, /) -> Sequence[Entry]:
        """Entries from ``low`` up to, but not including, ``high``: as many as fit, at least one.

        Raises:
            EntryCompacted, EntryUnavailable: as for ``term``; the base itself is compacted.
        """
        ...

    def snapshot(self, at_least: int = 0, /) -> SnapshotMeta | None:
        """The snapshot to send to a follower that needs entries which the log no longer holds. Its index is at least
        ``first_index() - 1`` and ``at_least``. ``None`` while it is being made: ask again later."""
        ...

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int, /) -> bytes | None:
        """At most ``max_bytes`` bytes of a snapshot's image from ``offset`` on; ``None`` if that snapshot is gone.

        Raises:
            ChunkNotReady: ask again after ``Node.snapshot_chunk_ready``.
        """
        ...


def entries_size(entries: Sequence[Entry]) -> int:
    """Bytes that these entries count in every bound on bytes."""
    return sum([len(entry.data) for entry in entries]) + len(entries) * ENTRY_OVERHEAD


def within_bytes(entries: Sequence[Entry], max_bytes: int) -> Sequence[Entry]:
    """The longest prefix that fits; at least one entry if there is any."""
    if len(entries) <= 1 or entries_size(entries) <= max_bytes:
        return entries
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.data) + ENTRY_OVERHEAD
        if size > max_bytes and count:
            return entries[:count]
    return entries


def can_follow(index: int, term: int, entries: Sequence[Entry], newest: int) -> bool:
    """Whether entries can follow an entry with this index and term in the log of a leader of term ``newest``: indexes
    without a gap, terms that never fall."""
    for entry in entries:
        index += 1
        if entry.index != index or not term <= entry.term <= newest:
            return False
        term = entry.term
    return True


class Log:
    """Durable entries, the tail that is to be written, and how far they are committed and applied.

    Args:
        storage: the durable part.
        commit_index: as last written to disk; if it lags ``applied_index``, the latter counts.
        applied_index: the last entry that the state machine has applied.

    Raises:
        LogInconsistent: the log ends before the commit index, or begins after the entry that is to be applied next.
    """

    __slots__ = ("applied_index", "commit_index", "last_index", "last_term", "stable_index", "storage", "unstable")

    def __init__(self, storage: Storage, commit_index: int, applied_index: int) -> None:
        self.storage = storage
        self.last_index = storage.last_index()
        self.last_term = storage.term(self.last_index)
        self.stable_index = self.last_index
        """Entries up to here are on disk; later ones are in ``unstable``."""
        self.unstable: list[Entry] = []
        # The state may be ahead of the hard state: after a snapshot, or when a commit index was written and not synced.
        self.commit_index = max(commit_index, applied_index)
        self.applied_index = applied_index
        if self.commit_index > self.last_index:
            raise LogInconsistent(f"the log ends at {self.last_index}, before the commit index {self.commit_index}")
        if applied_index < storage.first_index() - 1:
            raise LogInconsistent(f"the log begins at {storage.first_index()}, after the applied index {applied_index}")

    def term(self, index: int) -> int:
        """Term of the entry at ``index``.

        Raises:
            EntryCompacted, EntryUnavailable: there is no such entry.
        """
        if index == self.last_index:
            return self.last_term
        if index > self.last_index:
            raise EntryUnavailable(f"entry {index} of a log that ends at {self.last_index}")
        if index > self.stable_index:
            return self.unstable[index - self.stable_index - 1].term
        return self.storage.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Whether the log holds an entry of that index and term (or begins right after it)."""
        if index > self.last_index:
            return False
        try:
            return self.term(index) == term
        except EntryCompacted:
            return False

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log with this end is at least as up to date as this one (paper, section 5.4.1)."""
        return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last_index)

    def entries(self, low: int, high: int, max_bytes: int) -> Sequence[Entry]:
        """Entries from ``low`` up to, but not including, ``high``: as many as fit, at least one if ``low < high``.

        Raises:
            EntryCompacted: ``low`` was trimmed.
        """
        first_unstable = self.stable_index + 1
        if low >= first_unstable:
            return within_bytes(self.unstable[low - first_unstable : high - first_unstable], max_bytes)
        durable_end = min(high, first_unstable)
        if low >= durable_end:
            return []
        found = self.storage.entries(low, durable_end, max_bytes)
        if durable_end == high or len(found) < durable_end - low:
            return found
        return within_bytes([*found, *self.unstable[: high - first_unstable]], max_bytes)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries at the end.

        Raises:
            LogInconsistent: they do not continue the log.
        """
        if entries[0].index != self.stable_index + len(self.unstable) + 1:
            raise LogInconsistent(f"entry {entries[0].index} leaves a gap after entry {self.stable_index}")
        self.unstable += entries
        last = entries[-1]
        self.last_index = last.index
        self.last_term = last.term

    def append_from_leader(self, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> int | None:
        """Append a leader's entries (paper, figure 2: AppendEntries, receiver rules 2 to 4).

        Entries that the log already holds stay; only a conflict truncates. Truncating on less would drop entries that
        a later message has brought and that have been acknowledged.

        Returns:
            The last index up to which this log now equals the leader's, or ``None`` if it lacks the previous entry.

        Raises:
            LogInconsistent: a committed entry would be truncated.
        """
        if not self.matches(prev_index, prev_term):
            return None
        last_new = prev_index + len(entries)
        if prev_index != self.last_index:  # else all of them are new
            for position, entry in enumerate(entries):
                if entry.index > self.last_index or not self.matches(entry.index, entry.term):
                    entries = entries[position:]
                    break
            else:
                return last_new
            self._truncate(entries[0].index)
        if entries:
            self.append(entries)
        return last_new

    def _truncate(self, index: int) -> None:
        """Drop the entries from ``index`` on. Durable ones are removed from disk when the new ones are written."""
        if index <= self.commit_index:
            raise LogInconsistent(f"entry {index} conflicts, but all up to {self.commit_index} are committed")
        if index > self.last_index:
            return
        if index > self.stable_index:
            del self.unstable[index - self.stable_index - 1 :]
        else:
            self.stable_index = index - 1
            self.unstable = []
        # ``append`` follows and sets the new end of the log.

    def stable_to(self, index: int, term: int) -> None:
        """Entries up to (index, term) are on disk. No effect if they have been replaced in the meantime."""
        count = index - self.stable_index
        if 0 < count <= len(self.unstable) and self.unstable[count - 1].term == term:
            self.unstable = self.unstable[count:]
            self.stable_index = index

    def commit_to(self, index: int) -> bool:
        """Raise the commit index, at most to the end of the log. Returns whether it moved."""
        index = min(index, self.last_index)
        if index <= self.commit_index:
            return False
        self.commit_index = index
        return True

    def reset(self, index: int, term: int) -> None:
        """A snapshot with this index and term has replaced the log and the state."""
        self.unstable = []
        self.last_index = self.stable_index = self.applied_index = index
        self.last_term = term
        self.commit_index = max(self.commit_index, index)

    def find_conflict(self, index: int, term: int) -> int:
        """The last index up to ``index`` whose term is not above ``term``: the logs may agree there, but not later.

        Both sides of a rejection use this, so each round trip skips whole terms (paper, end of section 5.3).
        """
        index = min(index, self.last_index)
        try:
            while index > 0 and self.term(index) > term:
                index -= 1
        except EntryCompacted:
            pass
        return index

    def has_unapplied_configuration(self, page_bytes: int) -> bool:
        """Whether a committed CONFIGURATION entry is not yet applied. Reads the log in pages of ``page_bytes``."""
        low, high = self.applied_index + 1, self.commit_index + 1
        while low < high:
            page = self.entries(low, high, page_bytes)
            if any(entry.kind is EntryKind.CONFIGURATION for entry in page):
                return True
            low += len(page)
        return False
