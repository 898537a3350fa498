"""The boundary between RayKeeper and the disk: an ordered store with column families, files written in place, and the
file system.

``Engine``, ``BlockFile`` and ``Disk`` are all that the rest of ``store`` may ask for. ``RocksEngine``, ``OsFile`` and
``RocksDisk`` implement them with RocksDB and real files; the simulator implements them in memory, and forgets what was
not synced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from ...errors import DataCorrupted
from ...limits import RECLAIM_MIN_FRACTION

Write = tuple[str, bytes, bytes | None]
"""(column family, key, value); ``None`` deletes the key."""


class PreparedWrite(Protocol):
    """Writes that are gathered, in slices, and then applied all at once. One thread owns it."""

    def add(self, writes: Iterable[Write]) -> None:
        """Gather writes. Of two to one key the later one counts."""
        ...

    def write(self) -> None:
        """As ``Engine.write`` with all of them. The object cannot be used afterwards."""
        ...


class Engine(Protocol):
    """One open database. Readers may be on any thread; there is one writer.

    Every call may raise ``DataCorrupted``, where a checksum does not match.
    """

    damage: DataCorrupted | None
    """The last damage that any call on any thread has found; ``None`` if there is none."""

    def get(self, family: str, key: bytes) -> bytes | None:
        """The value of a key, or ``None``."""
        ...

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < end`` in key order, or in reverse, as of the call."""
        ...

    def write(self, writes: Iterable[Write]) -> None:
        """Apply all writes or none. A crash, of the process too, takes the newest of them until ``flush``: what is left
        is always all that was written up to some call."""
        ...

    def prepare_write(self) -> PreparedWrite:
        """An empty write, to be filled in slices: for one so large that even gathering it takes long."""
        ...

    def flush(self) -> None:
        """Return once everything written before is on disk. Slow; for any thread."""
        ...

    def checkpoint(self, path: str) -> None:
        """Write a consistent copy of the database to a folder that does not exist yet; its parent must exist."""
        ...

    def size(self) -> int:
        """Bytes on disk, and of data that is not on disk yet."""
        ...

    def size_in_use(self) -> int:
        """As :meth:`size`, without what was overwritten or deleted since; roughly."""
        ...

    def reclaim(self, free: int, least: float = RECLAIM_MIN_FRACTION) -> bool:
        """Return the space of deleted data to the disk, if the work needs less than ``free`` bytes and that space is at
        least this part of all. Slow; for any thread. The database may be closed in the meantime.

        Returns:
            Whether there was room for the work.
        """
        ...

    def close(self) -> None:
        """Release the database. Open iterators end with an error."""
        ...


class BlockFile(Protocol):
    """One open file of a fixed size, which is written in place. One thread owns it.

    Any call may raise ``OSError``.
    """

    size: int
    """In bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """The bytes there; fewer at the end."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Write in place, with one call to the system. Not durable before ``sync``, and until then a loss of power may
        take any sectors of it. The file does not grow."""
        ...

    def write_zeros(self, start: int, end: int) -> None:
        """Write zeros from ``start`` to ``end``."""
        ...

    def sync(self, end: int) -> None:
        """Return once everything written is on disk. A failure ends the process; it is never retried.

        Args:
            end: there are only zeros from here on (for ``sync_journal``).
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class Disk(Protocol):
    """The file system as the store uses it. Paths are strings with ``/``."""

    def open(self, path: str, families: tuple[str, ...], *, create: bool = False) -> Engine:
        """Open a database. With ``create`` there must be none yet, without it there must be one.

        Raises:
            DataCorrupted: it is damaged or missing, or has other column families.
            Unavailable: another process has it open.
        """
        ...

    def open_file(self, path: str, size: int | None = None) -> BlockFile:
        """Open a file to write to it in place.

        Args:
            size: make the file, if there is none, and reserve this many bytes for it. Its name is not durable.

        Raises:
            NoSpace: there is no room for it.
            FileNotFoundError: there is no such file, and ``size`` is ``None``.
        """
        ...

    def free_bytes(self, path: str) -> int:
        """Bytes that this process may still write to the file system of a path."""
        ...

    def in_background(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run something slow on a thread of its own.

        Returns:
            A function that waits for its end, and raises what it has raised.
        """
        ...

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder. It raises ``OSError`` if the disk refuses to tell."""
        ...

    def list(self, path: str) -> list[str]:
        """The names in a folder, sorted; empty if there is no such folder."""
        ...

    def make_folder(self, path: str) -> None:
        """Make a folder and its parents, durably; no error if it exists."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file or a whole folder; no error if it does not exist."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Rename a folder or a file, durably."""
        ...

    def size(self, path: str) -> int:
        """The size of a file in bytes."""
        ...

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """Read ``size`` bytes from ``offset`` on (all, if negative); fewer at the end. Raises ``FileNotFoundError``."""
        ...

    def append(self, path: str, data: bytes) -> None:
        """Append to a file, creating it if need be. Not durable before ``sync_file``."""
        ...

    def sync_file(self, path: str) -> None:
        """Make a file's content, and its entry in its folder, durable."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Replace a small file, durably and atomically (write, sync, rename, sync the folder)."""
        ...
