"""What ``RaftLog`` needs of its disk: entries and notes, in batches that are written whole and in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...raft.messages import Entry
from .entry_index import EntryIndex
from .log_record import LogNote


class LogStore(Protocol):
    """A log on disk. One thread owns it."""

    note: LogNote
    """Hard state, base and configuration, as last written."""
    index: EntryIndex
    """The entries after the base."""
    written_bytes: int
    """By this process; for metrics."""

    def append(self, entries: Sequence[Entry], note: LogNote | None) -> None:
        """Write entries and what has changed besides, all or nothing. They survive a crash of the process at once, a
        loss of power only after ``sync``.

        The entries are consecutive, and replace all from the first of them on. A new base drops all up to it, a reset
        all entries.

        Raises:
            NoSpace: the disk is full; nothing was written.
        """
        ...

    def sync(self) -> None:
        """Return once everything written before is on disk. A failure ends the process; it is never retried."""
        ...

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Held entries with ``low <= index < high``: as many as fit into ``max_bytes``, at least one.

        Raises:
            DataCorrupted: what is on disk is not what was written.
        """
        ...

    def release(self) -> None:
        """Give back the space of what lies before the base; syncs if it must."""
        ...

    def reserve(self) -> None:
        """Make room for what is written next. Call it before serving: a process that starts on a full disk would end
        with its first append, and so would the next one.

        Raises:
            NoSpace: there is none.
        """
        ...

    def close(self) -> None:
        """Close the files. What was not synced survives the process, but not a loss of power."""
        ...
