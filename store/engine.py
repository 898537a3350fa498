"""The line between RayKeeper and the disk: an ordered store with column families, and the folder it lives in.

``Engine`` and ``Disk`` say what the rest of ``store`` may ask for. ``RocksEngine`` and ``RocksDisk`` answer with the
real RocksDB and file system; the simulator answers with memory that forgets what was not synced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from ..errors import DataCorrupted

Write = tuple[str, bytes, bytes | None]
"""(column family, key, value); ``None`` deletes the key."""


class Engine(Protocol):
    """One open database. Readers may be on any thread; there is one writer.

    Every call may raise ``DataCorrupted``, where it meets what a checksum does not vouch for.
    """

    damage: DataCorrupted | None
    """What any call, on whatever thread, has found to be damaged so far."""

    def get(self, family: str, key: bytes) -> bytes | None:
        """The value of a key, or ``None``."""
        ...

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < end`` in key order, or in reverse, as they stood when this was called."""
        ...

    def write(self, writes: Iterable[Write]) -> None:
        """Apply all writes or none: safe from a crash of the process at once, from a loss of power after ``sync``."""
        ...

    def sync(self) -> None:
        """Return once everything written before is on the disk. A failure ends the process: it is never retried."""
        ...

    def flush(self) -> None:
        """Move what is in memory into files, so that a checkpoint soon after is short. Slow; for any thread."""
        ...

    def checkpoint(self, path: str) -> None:
        """Write a consistent copy of the database to a folder that does not exist yet; its parent must exist."""
        ...

    def size(self) -> int:
        """Bytes that the database takes on the disk: its tables, and its logs of what stands in no table yet."""
        ...

    def reclaim(self, free: int) -> None:
        """Give the space of deleted data back, if that is worth while, and needs less than the free bytes to do it.

        Slow; for any thread. The database may be closed meanwhile.
        """
        ...

    def close(self) -> None:
        """Release the database. Iterators that are still open end with an error."""
        ...


class Disk(Protocol):
    """The file system as the store uses it. Paths are strings with ``/``."""

    def open(self, path: str, families: tuple[str, ...], *, create: bool = False, is_log: bool = False) -> Engine:
        """Open a database; ``create`` demands that there is none yet, its absence that there is one.

        ``is_log`` opens with ``tolerate_corrupted_tail_records`` and the rules for damage in the Raft log.

        Raises:
            DataCorrupted: it is damaged, missing, or of other column families.
            Unavailable: somebody else has it open.
        """
        ...

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder."""
        ...

    def list(self, path: str) -> list[str]:
        """Names in a folder, sorted; empty if there is no such folder."""
        ...

    def make_folder(self, path: str) -> None:
        """Make a folder and its parents, durably; no error if it is there."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file or a whole folder; no error if it is not there."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Rename a folder or a file, durably."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file."""
        ...

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """Bytes of a file. Raises ``FileNotFoundError``."""
        ...

    def append(self, path: str, data: bytes) -> None:
        """Add to the end of a file, making it if need be. Not durable before ``sync_file``."""
        ...

    def sync_file(self, path: str) -> None:
        """Make a file's content, and its entry in its folder, durable."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Put a small file in place of another, durably and atomically (write, sync, rename, sync the folder)."""
        ...
