"""What a loss of power would leave: a record of how much of each file was on the disk for sure, and a way to act on it.

A killed process proves nothing about fsync, because the page cache survives it. So ``RocksDisk(sync_journal=...)``
writes down, at every sync, how long the synced files were; a test kills the processes, calls :func:`cut_back`, and
finds what a machine would find after its plug was pulled.

Only what *we* sync is in doubt. RocksDB itself syncs its table files and manifests before it relies on them, and an
older write-ahead log before a table made from it (it must, with several column families); so of each database only the
newest write-ahead log is cut.
"""

from __future__ import annotations

import os
import threading

import msgspec

_encode = msgspec.json.Encoder().encode


class Synced(msgspec.Struct, frozen=True, tag="synced"):
    """Of these files, this many bytes were on the disk for sure. Write-ahead logs of one database come together."""

    files: dict[str, int]


class Renamed(msgspec.Struct, frozen=True, tag="renamed"):
    """A file or a folder has a new name, durably."""

    old: str
    new: str


_decode = msgspec.json.Decoder(Synced | Renamed).decode


class SyncJournal:
    """Writes one JSON line a sync to a file; thread-safe.

    The journal is not synced itself: it is for killed processes, not for real losses of power. A line is written after
    the sync that it speaks of, so a kill between the two makes a test stricter, never laxer.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()

    def synced(self, files: dict[str, int]) -> None:
        """Note lengths, by absolute path, measured before a sync that has returned since."""
        self._write(Synced(files))

    def renamed(self, old: str, new: str) -> None:
        """Note a durable rename of a file or a folder."""
        self._write(Renamed(old, new))

    def _write(self, line: Synced | Renamed) -> None:
        with self._lock:
            os.write(self._file, _encode(line) + b"\n")


def write_ahead_logs(folder: str) -> list[str]:
    """Paths of a database's write-ahead logs, oldest first."""
    names = [name for name in os.listdir(folder) if name.endswith(".log") and name[:-4].isdigit()]
    return [os.path.join(folder, name) for name in sorted(names, key=lambda name: int(name[:-4]))]


def cut_back(root: str, journals: list[str], *, zero_fill: bool = False) -> dict[str, tuple[int, int]]:
    """Cut the files under ``root`` back to what the journals vouch for. Nobody may have the databases open.

    Args:
        root: a folder that holds members' data, at any depth.
        journals: files written by :class:`SyncJournal`, in any order if each speaks of other files.
        zero_fill: fill up with zeros to the old length, as a file system may that knew the length but not the content.

    Returns:
        for each file that was cut: its old and its new length.
    """
    lengths: dict[str, int] = {}
    for journal in journals:
        with open(journal, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # the process was killed while it wrote it
                _replay(_decode(line), lengths)
    cut: dict[str, tuple[int, int]] = {}
    for folder, _, names in os.walk(os.path.abspath(root)):
        if "CURRENT" in names and any(name.startswith("MANIFEST-") for name in names):
            logs = write_ahead_logs(folder)
            in_doubt = logs[-1:]
        else:
            in_doubt = [path for path in (os.path.join(folder, name) for name in names) if path in lengths]
        for path in in_doubt:
            old, new = os.path.getsize(path), lengths.get(path, 0)
            if new >= old:
                continue
            os.truncate(path, new)
            if zero_fill:
                os.truncate(path, old)
            cut[path] = (old, new)
    return cut


def _replay(line: Synced | Renamed, lengths: dict[str, int]) -> None:
    if isinstance(line, Synced):
        lengths.update(line.files)
        return
    inside = line.old + os.sep
    for path in [path for path in lengths if path == line.old or path.startswith(inside)]:
        lengths[line.new + path[len(line.old) :]] = lengths.pop(path)
