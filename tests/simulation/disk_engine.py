"""A database of a simulated disk, while a process has it open: ``store.engine.Engine`` in memory."""

from __future__ import annotations

import threading
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakSet

import msgspec

from raykeeper.errors import DataCorrupted, NoSpace
from raykeeper.store.engine.interface import Write
from simulation.disk_content import MANIFEST, Database, FileContent, Folder, SimCrash, Table

if TYPE_CHECKING:
    from simulation.disk import SimDisk


class Pairs(Iterator[tuple[bytes, bytes]]):
    """Pairs of a range as they stood at the start: lazy until somebody writes, then the rest is copied."""

    __slots__ = ("__weakref__", "_copied", "_engine", "_family", "_keys", "_position", "_step", "_stop", "_values")

    def __init__(self, engine: SimEngine, family: str, start: bytes, end: bytes | None, reverse: bool) -> None:
        table = engine._table(family)
        self._engine = engine
        self._family = family
        with engine.lock:
            self._begin(table, start, end, reverse)

    def _begin(self, table: Table, start: bytes, end: bytes | None, reverse: bool) -> None:
        engine = self._engine
        self._keys = table.keys
        self._values = table.values
        low = bisect_left(table.keys, start) if start else 0
        high = len(table.keys) if end is None else max(low, bisect_left(table.keys, end))
        self._copied = False
        if reverse:
            self._position, self._stop, self._step = high - 1, low - 1, -1
        else:
            self._position, self._stop, self._step = low, high, 1
        if low < high:
            engine.readers.add(self)

    def __next__(self) -> tuple[bytes, bytes]:
        with self._engine.lock:
            if self._engine.closed:
                raise RuntimeError("the database is closed")
            position = self._position
            if position == self._stop:
                raise StopIteration
            self._engine.disk.before_read(self._family)
            self._position = position + self._step
            key = self._keys[position]
            if self._engine.rotten:
                self._engine.check(self._family, key)
            return key, self._values[key]

    def detach(self) -> None:
        """Copy what is left, because the table is about to change."""
        if not self._copied:
            self._copied = True
            positions = range(self._position, self._stop, self._step)
            old_values = self._values
            self._keys = [self._keys[i] for i in positions]
            self._values = {key: old_values[key] for key in self._keys}
            self._position, self._stop, self._step = 0, len(self._keys), 1


class SimWrite:
    """A write that is being gathered (``store.engine.PreparedWrite``)."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine
        self._writes: list[Write] = []

    def add(self, writes: Iterable[Write]) -> None:
        """As ``PreparedWrite.add``."""
        self._writes += writes

    def write(self) -> None:
        """As ``PreparedWrite.write``."""
        self._engine.write(self._writes)


class SimEngine:
    """One open database of a :class:`SimDisk` (``store.engine.Engine``)."""

    def __init__(self, disk: SimDisk, database: Database) -> None:
        self.disk = disk
        self._database = database
        self._tables = database.tables
        self._bytes = sum(len(k) + len(v) for table in database.tables.values() for k, v in table.values.items())
        self.readers: WeakSet[Pairs] = WeakSet()
        self.closed = False
        self.damage: DataCorrupted | None = None
        self.rotten = database.rotten
        self._failed: NoSpace | None = None
        """What the last flush ended with."""
        self.lock = threading.RLock()
        """Unit tests have members whose readers are threads: they see the whole of a write or nothing of it, too."""

    def _table(self, family: str) -> Table:
        if self.closed:
            if self.disk.dead:
                raise SimCrash
            raise RuntimeError("the database is closed")
        return self._tables[family]

    def get(self, family: str, key: bytes) -> bytes | None:
        """As ``Engine.get``."""
        self.disk.before_read(family)
        with self.lock:
            value = self._table(family).values.get(key)
        if self._database.rotten:
            self.check(family, key)
        return value

    def check(self, family: str, key: bytes) -> None:
        """Look at a record's checksum."""
        if (family, key) in self._database.rotten:
            self.damage = DataCorrupted(f"{family} {key!r}: checksum mismatch")
            raise self.damage

    def get_synced(self, family: str, key: bytes) -> bytes | None:
        """The value that a loss of power cannot take away."""
        return self._database.get_synced(family, key)

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """As ``Engine.iterate``."""
        return Pairs(self, family, start, end, reverse)

    def prepare_write(self) -> SimWrite:
        """As ``Engine.prepare_write``."""
        return SimWrite(self)

    def write(self, writes: Iterable[Write]) -> None:
        """As ``Engine.write``."""
        with self.lock:
            self._write(list(writes))

    def _write(self, batch: list[Write]) -> None:
        tables = self._tables
        for family, _, _ in batch:  # an error leaves nothing applied
            self._table(family)
        if self._failed is not None:
            raise self._failed
        self.disk.touch()
        if self.readers:
            for reader in list(self.readers):
                reader.detach()
            self.readers.clear()
        undo: list[tuple[str, bytes, bytes | None]] = []
        synced = self._database.synced
        grown = 0
        self._database.rotten.difference_update((family, key) for family, key, _ in batch)
        for family, key, value in batch:
            old = tables[family].set(key, value)
            undo.append((family, key, old))
            where = (family, key)
            if where not in synced:
                synced[where] = old
            if old is not None:
                grown -= len(key) + len(old)
            if value is not None:
                grown += len(key) + len(value)
        self._bytes += grown
        self._database.batches.append(undo)

    def flush(self) -> None:
        """As ``Engine.flush``."""
        if self.closed and not self.disk.dead:
            raise RuntimeError("the database is closed")
        if self._failed is not None:
            raise self._failed
        try:
            self.disk.take_room("database")
        except NoSpace as error:
            self._failed = error
            raise
        self.disk._sync()
        self._database.batches.clear()
        self._database.synced.clear()

    def unsynced_writes(self) -> int:
        """Batches that a loss of power may still take away."""
        return len(self._database.batches)

    def checkpoint(self, path: str) -> None:
        """As ``Engine.checkpoint``: the folder holds plain files, of which none is synced."""
        self.disk.before_read("database")
        for family, key in sorted(self._database.rotten):
            self.check(family, key)
        self.flush()
        self.disk.take_room(path)
        if self.disk.exists(path):
            raise OSError(f"{path}: exists")
        folder = Folder()
        manifest: dict[str, tuple[str, int]] = {}
        for number, (family, table) in enumerate(self._tables.items(), 1):
            name = f"{number:06}.sst"
            file = FileContent()
            file.data += msgspec.msgpack.encode([(key, table.values[key]) for key in table.keys])
            folder.entries[name] = file
            manifest[family] = (name, zlib.crc32(file.data))
        file = FileContent()
        file.data += msgspec.json.encode(manifest)
        folder.entries[MANIFEST] = file
        names = path.rsplit("/", 1)
        parent = self.disk._find(names[0] if len(names) > 1 else "")
        if not isinstance(parent, Folder):
            raise FileNotFoundError(path)
        parent.entries[names[-1]] = folder

    def size(self) -> int:
        """As ``Engine.size``."""
        return self._bytes

    def size_in_use(self) -> int:
        """As ``Engine.size_in_use``: what is deleted is gone."""
        return self._bytes

    def reclaim(self, free: int, least: float = 0.0) -> bool:
        """As ``Engine.reclaim``: what is deleted is gone."""
        return True

    def close(self) -> None:
        """As ``Engine.close``."""
        if not self.closed and not self.disk.dead:
            with suppress(NoSpace):
                self.flush()
            if self._database.batches:
                self._database.lose_unflushed(self.disk._rng)
        self.end()

    def end(self) -> None:
        """The process is gone."""
        self.closed = True
        if self._database.engine is self:
            self._database.engine = None
