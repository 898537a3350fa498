"""Power loss: cuts files back to what a sync journal says is on the disk for certain.

Only what *we* sync is in doubt. RocksDB itself syncs its table files and manifests before it relies on them, and has no
write-ahead log: what it had in memory went with the process. A segment of the Raft log keeps its length: what is not
synced goes back to zeros.
"""

from __future__ import annotations

import os

from raykeeper.store.engine.sync_journal import Renamed, Synced, decode


def cut_back(root: str, journals: list[str], *, zero_fill: bool = False) -> dict[str, tuple[int, int]]:
    """Cut the files under ``root`` back to what the journals vouch for. No process may have the databases open.

    Args:
        root: a folder that holds members' data, at any depth.
        journals: files written by ``SyncJournal``, in any order if each speaks of other files.
        zero_fill: fill up with zeros to the old length, as a file system may that knew the length but not the content.

    Returns:
        for each file that was cut: its old and its new length.
    """
    lengths: dict[str, int] = {}
    for journal in journals:
        with open(journal, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # the process was killed while writing it
                _replay(decode(line), lengths)
    cut: dict[str, tuple[int, int]] = {}
    for folder, _, names in os.walk(os.path.abspath(root)):
        paths = [os.path.join(folder, name) for name in names]
        in_doubt = [path for path in paths if path in lengths or path.endswith(".wal")]
        for path in in_doubt:
            segment = path.endswith(".wal")
            old, new = _used(path) if segment else os.path.getsize(path), lengths.get(path, 0)
            if new >= old:
                continue
            size = os.path.getsize(path) if segment else old
            os.truncate(path, new)
            if zero_fill or segment:
                os.truncate(path, size)
            cut[path] = (old, new)
    return cut


def _used(path: str) -> int:
    """Where the zeros at a file's end begin."""
    with open(path, "rb") as file:
        return len(file.read().rstrip(b"\0"))


def _replay(line: Synced | Renamed, lengths: dict[str, int]) -> None:
    if isinstance(line, Synced):
        lengths.update(line.files)
        return
    inside = line.old + os.sep
    for path in [path for path in lengths if path == line.old or path.startswith(inside)]:
        lengths[line.new + path[len(line.old) :]] = lengths.pop(path)
