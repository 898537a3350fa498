"""A record of how much of each file is on the disk for certain, for tests of power loss.

A killed process proves nothing about fsync, because the page cache survives it. So ``RocksDisk(sync_journal=...)``
records at every sync how long the synced files were, or what of a file of fixed size was written. A test kills the
processes and takes the rest from the files, which leaves what a machine would find after a loss of power.
"""

from __future__ import annotations

import os
import threading

import msgspec

from .private_files import FILE_MODE

_encode = msgspec.json.Encoder().encode


class Synced(msgspec.Struct, frozen=True, tag="synced"):
    """The synced length of each file; of a file of fixed size, where its zeros begin."""

    files: dict[str, int]


class Renamed(msgspec.Struct, frozen=True, tag="renamed"):
    """A file or a folder was renamed durably."""

    old: str
    new: str


decode = msgspec.json.Decoder(Synced | Renamed).decode
"""One line of a journal."""


class SyncJournal:
    """Writes one JSON line to a file for each sync; thread-safe.

    The journal itself is not synced: it is for killed processes, not for a real loss of power. A line is written after
    its sync, so a kill between the two makes a test stricter, never laxer.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, FILE_MODE)
        self._lock = threading.Lock()

    def synced(self, files: dict[str, int]) -> None:
        """Record lengths by absolute path. They were measured before a sync that has returned since."""
        self._write(Synced(files))

    def renamed(self, old: str, new: str) -> None:
        """Record a durable rename of a file or a folder."""
        self._write(Renamed(old, new))

    def _write(self, line: Synced | Renamed) -> None:
        with self._lock:
            os.write(self._file, _encode(line) + b"\n")
