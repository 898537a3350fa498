"""The log as the core sees it: a durable part behind :class:`Storage`, and a tail that is not on disk yet.

``Log`` knows indexes and terms and nothing of roles, members or messages. Entries enter at the end (leader) or where
they agree with the log (follower), are handed out in a ``Ready`` to be written, and move from the tail to the durable
part once that is reported done. The log never truncates what is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .messages import Entry, EntryKind, SnapshotMeta

ENTRY_OVERHEAD = 16
"""Bytes that an entry counts besides its data in every bound on bytes, so that empty ones are bounded too."""


class Compacted(Exception):
    """The entry was cut away: a snapshot stands for it."""


class Unavailable(Exception):
    """The entry lies behind the end of the log."""


class Later(Exception):
    """The bytes cannot be had at once: the owner calls ``Node.snapshot_chunk_ready`` when they can."""


class LogInconsistent(Exception):
    """Something that Raft forbids: the durable data does not belong together, or two leaders shared a term."""


class Storage(Protocol):
    """What the core reads of what is durable."""

    def first_index(self) -> int:
        """Index of the first entry held; one more than the mark's if there is none."""
        ...

    def last_index(self) -> int:
        """Index of the last entry held, or of the mark."""
        ...

    def term(self, index: int, /) -> int:
        """Term of an entry held, or of the mark, which is at ``first_index() - 1``.

        Raises:
            Compacted: the index lies before the mark.
            Unavailable: it lies behind the end.
        """
        ...

    def entries(self, low: int, high: int, max_bytes: int, /) -> Sequence[Entry]:
        """Entries from ``low`` up to but without ``high``: as many as fit, at least one.

        Raises:
            Compacted, Unavailable: as for ``term``.
        """
        ...

    def snapshot(self, at_least: int = 0, /) -> SnapshotMeta | None:
        """The image to send to a follower that needs what the log no longer holds: of an index of at least
        ``first_index() - 1`` and ``at_least``. ``None`` while it is being made: ask again later."""
        ...

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, max_bytes: int, /) -> bytes | None:
        """Bytes of an image from an offset on; ``None`` if that image is gone.

        Raises:
            Later: ask again.
        """
        ...


def entries_size(entries: Sequence[Entry]) -> int:
    """Bytes that entries count in every bound."""
    return sum([len(entry.data) for entry in entries]) + len(entries) * ENTRY_OVERHEAD


def within_bytes(entries: Sequence[Entry], max_bytes: int) -> Sequence[Entry]:
    """The longest beginning that fits, at least one entry if there are any."""
    if entries_size(entries) <= max_bytes:
        return entries
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.data) + ENTRY_OVERHEAD
        if size > max_bytes and count:
            return entries[:count]
    return entries


class Log:
    """Durable entries, the tail that is to be written, and how far they are committed and applied.

    Args:
        storage: the durable part.
        commit_index: as last written to disk; may lag behind ``applied_index``, which is then what counts.
        applied_index: how far the state machine had applied.

    Raises:
        LogInconsistent: the log ends before what is committed, or begins behind what is applied.
    """

    __slots__ = ("applied_index", "commit_index", "last_index", "last_term", "stable_index", "storage", "unstable")

    def __init__(self, storage: Storage, commit_index: int, applied_index: int) -> None:
        self.storage = storage
        self.last_index = storage.last_index()
        self.last_term = storage.term(self.last_index)
        self.stable_index = self.last_index
        """Entries up to here are on disk; those behind are in ``unstable``."""
        self.unstable: list[Entry] = []
        # The state may be ahead of the hard state: after a snapshot, or when a commit index was written but not synced.
        self.commit_index = max(commit_index, applied_index)
        self.applied_index = applied_index
        if self.commit_index > self.last_index:
            raise LogInconsistent(f"the log ends at {self.last_index}, before the commit index {self.commit_index}")
        if applied_index < storage.first_index() - 1:
            raise LogInconsistent(
                f"the log begins at {storage.first_index()}, behind the applied index {applied_index}"
            )

    def term(self, index: int) -> int:
        """Term of the entry at ``index``.

        Raises:
            Compacted, Unavailable: there is no such entry.
        """
        if index == self.last_index:
            return self.last_term
        if index > self.last_index:
            raise Unavailable(f"entry {index} of a log that ends at {self.last_index}")
        if index > self.stable_index:
            return self.unstable[index - self.stable_index - 1].term
        return self.storage.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Whether the log holds an entry of that index and term (or begins right behind it)."""
        if index > self.last_index:
            return False
        try:
            return self.term(index) == term
        except Compacted:
            return False

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is at least as up to date as this one (paper, section 5.4.1)."""
        return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last_index)

    def entries(self, low: int, high: int, max_bytes: int) -> Sequence[Entry]:
        """Entries from ``low`` up to but without ``high``: as many as fit, at least one if ``low < high``.

        Raises:
            Compacted: ``low`` was cut away.
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
        """Add entries at the end; they must continue the log."""
        self.unstable += entries
        last = entries[-1]
        self.last_index = last.index
        self.last_term = last.term

    def accept(self, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> int | None:
        """Take in a leader's entries (paper, figure 2: AppendEntries, receiver 2 to 4).

        Returns:
            The last index up to which this log now equals the leader's, or ``None`` if it does not hold the previous
            entry. Entries that are here already stay; only a real conflict truncates.

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
        """Drop the entries from ``index`` on. Durable ones are cut from disk when the new ones are written."""
        if index <= self.commit_index:
            raise LogInconsistent(f"entry {index} conflicts, but all up to {self.commit_index} are committed")
        if index > self.last_index:
            return
        if index > self.stable_index:
            del self.unstable[index - self.stable_index - 1 :]
        else:
            self.stable_index = index - 1
            self.unstable = []
        # ``append`` follows and sets where the log ends.

    def stable_to(self, index: int, term: int) -> None:
        """Entries up to (index, term) are on disk. Void if they have been replaced in the meantime."""
        count = index - self.stable_index
        if 0 < count <= len(self.unstable) and self.unstable[count - 1].term == term:
            self.unstable = self.unstable[count:]
            self.stable_index = index

    def commit_to(self, index: int) -> bool:
        """Raise the commit index, at most to the end of the log; whether it has moved."""
        index = min(index, self.last_index)
        if index <= self.commit_index:
            return False
        self.commit_index = index
        return True

    def reset(self, index: int, term: int) -> None:
        """A snapshot of this index and term has replaced the log and the state."""
        self.unstable = []
        self.last_index = self.stable_index = self.applied_index = index
        self.last_term = term
        self.commit_index = max(self.commit_index, index)

    def find_conflict(self, index: int, term: int) -> int:
        """The last index up to ``index`` whose term is not above ``term``: the logs may meet there, surely not later.

        Both sides of a rejection ask this, so each round trip skips whole terms (paper, end of section 5.3).
        """
        index = min(index, self.last_index)
        try:
            while index > 0 and self.term(index) > term:
                index -= 1
        except Compacted:
            pass
        return index

    def has_unapplied_configuration(self, page_bytes: int) -> bool:
        """Whether a committed CONFIGURATION entry waits to be applied."""
        low, high = self.applied_index + 1, self.commit_index + 1
        while low < high:
            page = self.entries(low, high, page_bytes)
            if any(entry.kind is EntryKind.CONFIGURATION for entry in page):
                return True
            low += len(page)
        return False
