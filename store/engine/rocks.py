"""The real disk: RocksDB through rocksdict, and the file system.

Several traps of both shape this file.

- RocksDB's defaults create what is missing. So every ordinary open demands an existing database.
- The Raft log replays what the state has not on disk, so there is no write-ahead log here. With atomic_flush
  RocksDB flushes all column families together, so what is on disk is always a whole prefix of what was written.
- rocksdict's ``flush`` flushes one family only, even then. ``compact_range`` of a family flushes all, and releases the
  GIL, but does not say whether it has failed.
- A delete leaves a tombstone that every later iteration must skip. So memory that is full of them is moved to a file in
  the background, and files full of them are merged. The family ``history`` is left out, where this would be most of the
  cost of compaction: it is trimmed from its beginning, and iterations start after that.
"""

from __future__ import annotations

import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from weakref import WeakSet

import rocksdict
from rocksdict import Checkpoint, ColumnFamily, Rdict, RdictIter, ReadOptions, WriteBatch, WriteOptions

from ...errors import DataCorrupted, KeeperError, NoSpace, Unavailable
from ...limits import (
    BLOCK_CACHE_BYTES,
    DELETES_IN_MEMORY,
    MAX_OPEN_FILES,
    RECLAIM_MIN_FRACTION,
    STATE_WRITE_BUFFER_BYTES,
)
from .files import OsFile, exists, free_bytes, in_background, is_folder, named_if_full, sync_folder, sync_path
from .interface import Write
from .private_files import FOLDER_MODE, open_private
from .sync_journal import SyncJournal

_FULL = ("No space left", "Disk quota exceeded", "File too large", "SpaceLimit")
_LOCKED = ("lock hold by current process", "/LOCK: Resource temporarily unavailable")
_TABLE_BYTES = "rocksdb.total-sst-files-size"
_LIVE_BYTES = "rocksdb.estimate-live-data-size"
_TRIMMED = "history"


def translate(error: Exception, path: str) -> Exception:
    """Our exception for one of rocksdict, which has a single class and many texts."""
    text = str(error)
    said = text.replace(path, "")  # a path may hold any of the words
    if isinstance(error, KeeperError):
        return error
    if text.startswith("Corruption") or "checksum mismatch" in said:
        return DataCorrupted(f"{path}: {text}")
    if any(full in said for full in _FULL):
        return NoSpace(f"{path}: {text}")
    if any(locked in said for locked in _LOCKED):
        return Unavailable(f"{path} is in use by another process: {text}")
    if "No such file" in said or text.startswith(("Invalid argument", "NotFound")):
        return DataCorrupted(f"{path}: {text}")
    return OSError(f"{path}: {text}")


class _PairIterator(Iterator[tuple[bytes, bytes]]):
    """Pairs of one range, as of its creation; closing the database ends it.

    rocksdict's ``items()`` is not safe: at a damaged block it ends as if there were nothing more.
    """

    __slots__ = ("__weakref__", "_engine", "_iterator", "_options", "_start", "_step")

    def __init__(self, family: Rdict, engine: RocksEngine, start: bytes, end: bytes | None, reverse: bool) -> None:
        self._engine = engine
        self._start = start if reverse and start else None
        options = ReadOptions()
        if end is not None and not reverse:
            options.set_iterate_upper_bound(end)
        # The bound is stored in the options, and rocksdict does not keep them: without this reference RocksDB would
        # read freed memory.
        self._options = options
        self._iterator: RdictIter | None = None
        self._step: Callable[[], None] = _nothing
        if end is not None and start >= end:
            return
        self._iterator = iterator = family.iter(options)
        if not reverse:
            self._step = iterator.next
            iterator.seek(start)
            return
        self._step = iterator.prev  # rocksdict ignores lower bounds
        if end is None:
            iterator.seek_to_last()
            return
        iterator.seek_for_prev(end)
        if iterator.valid() and iterator.key() == end:
            iterator.prev()

    def __next__(self) -> tuple[bytes, bytes]:
        """The next pair. An iterator that is not valid has either ended or met damage: only its status tells which."""
        iterator = self._iterator
        if iterator is None:
            if self._engine.closed:
                raise RuntimeError(f"{self._engine.path} is closed")
            raise StopIteration
        try:
            if not iterator.valid():
                iterator.status()
                raise StopIteration
            pair = iterator.key(), iterator.value()
            if self._start is not None and pair[0] < self._start:
                self.release()
                raise StopIteration
            self._step()
        except StopIteration:
            raise
        except Exception as error:
            raise self._engine.translated(error) from error
        return pair

    def release(self) -> None:
        """Release the database."""
        self._iterator = None
        self._step = _nothing


def _nothing() -> None:
    """The step of an iterator that has ended."""


class RocksEngine:
    """One open RocksDB database (``interface.Engine``)."""

    def __init__(self, database: Rdict, path: str, families: tuple[str, ...]) -> None:
        self._database: Rdict | None = database
        self.path = path
        self.damage: DataCorrupted | None = None
        self._families = {name: database.get_column_family(name) for name in families}
        self._getters = {name: family.get for name, family in self._families.items()}
        self._handles = {name: database.get_column_family_handle(name) for name in families}
        self._iterators: WeakSet[_PairIterator] = WeakSet()
        self._deletes = dict.fromkeys(families, 0)
        """Deletes in each family since memory was last moved to files because of them."""
        self._flushing: Callable[[], None] | None = None
        self._flush_lock = threading.Lock()
        self._written = 0
        """Bytes written in all..."""
        self._flushed = 0
        """... and before the last flush that was asked for. Each is changed where the other is only read."""
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True  # type: ignore[method-assign,assignment]

    def translated(self, error: Exception) -> Exception:
        """Our exception for an error of RocksDB; damage is remembered."""
        problem = translate(error, self.path)
        if isinstance(problem, DataCorrupted):
            self.damage = problem
        return problem

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._database is None

    def _open(self) -> Rdict:
        if self._database is None:
            raise RuntimeError(f"{self.path} is closed")
        return self._database

    def get(self, family: str, key: bytes) -> bytes | None:
        """As ``Engine.get``."""
        try:
            value: bytes | None = self._getters[family](key)
        except Exception as error:
            self._open()
            raise self.translated(error) from error
        return value

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """As ``Engine.iterate``."""
        self._open()
        pairs = _PairIterator(self._families[family], self, start, end, reverse)
        self._iterators.add(pairs)
        return pairs

    def write(self, writes: Iterable[Write]) -> None:
        """As ``Engine.write``."""
        prepared = _RocksWrite(self, self._handles)
        prepared.add(writes)
        prepared.write()

    def prepare_write(self) -> _RocksWrite:
        """As ``Engine.prepare_write``."""
        return _RocksWrite(self, self._handles)

    def write_batch(self, batch: WriteBatch, deleted: dict[str, int]) -> None:
        """Apply a batch of RocksDB, with so many deletes in each family. It holds the GIL, for about a third of a
        microsecond a record."""
        database = self._open()
        try:
            self._written += batch.size_in_bytes()
            database.write(batch, self._unlogged)
        except Exception as error:
            raise self.translated(error) from error
        if not deleted:
            return
        deletes = self._deletes
        for family, count in deleted.items():
            deletes[family] += count
        if max(deletes[family] for family in deletes if family != _TRIMMED) >= DELETES_IN_MEMORY:
            # One flush is of all families.
            self._deletes = dict.fromkeys(deletes, 0)
            self._wait_for_flush()
            self._flushing = in_background(self.flush, "raykeeper-flush")

    def _wait_for_flush(self) -> None:
        """Wait for the flush in the background, if there is one. What it has met, the next one meets too."""
        wait, self._flushing = self._flushing, None
        if wait is not None:
            with suppress(Exception):
                wait()

    def flush(self) -> None:
        """As ``Engine.flush``: all families together. rocksdict releases the GIL meanwhile.

        A mark is written first, a key that never was before. Since all families are flushed together, everything that
        was written before the mark is on disk if the mark is. It is the only key of RocksDB's own family ``default``,
        and the range that is compacted lies beyond it, so nothing is compacted.
        """
        with self._flush_lock:
            database = self._open()
            written = self._written
            mark = database.latest_sequence_number().to_bytes(8, "big") + os.urandom(8)
            try:
                self._write_mark(database, mark)
                database.compact_range(mark + b"\xff", None)
                on_disk = any(file["end_key"] == mark for file in database.live_files())
                if not on_disk:
                    self._write_mark(database, mark)  # says what has failed
            except Exception as error:
                self._open()
                raise self.translated(error) from error
            if not on_disk:
                raise OSError(f"{self.path}: a flush has failed")
            self._flushed = written

    def _write_mark(self, database: Rdict, mark: bytes) -> None:
        """Write the mark of a flush in place of the last one; it is greater."""
        batch = WriteBatch(raw_mode=True)
        for earlier in list(database.keys()):
            batch.delete(earlier)
        batch.put(mark, b"")
        database.write(batch, self._unlogged)

    def checkpoint(self, path: str) -> None:
        """As ``Engine.checkpoint``: hard links where possible."""
        database = self._open()
        try:
            Checkpoint(database).create_checkpoint(path)
        except Exception as error:
            raise self.translated(error) from error

    def size(self) -> int:
        """As ``Engine.size``."""
        # Not the memtables' own size: they grow in blocks of a megabyte for each family that was written to at all.
        self._open()
        return self._table_bytes() + self._written - self._flushed

    def size_in_use(self) -> int:
        """As ``Engine.size_in_use``: the tables of the last level, and of others what is not in them."""
        self._open()
        return self._table_bytes(_LIVE_BYTES) + self._written - self._flushed

    def _table_bytes(self, kind: str = _TABLE_BYTES) -> int:
        return sum(family.property_int_value(kind) or 0 for family in list(self._families.values()))

    def reclaim(self, free: int, least: float = RECLAIM_MIN_FRACTION) -> bool:
        """As ``Engine.reclaim``. rocksdict releases the GIL meanwhile."""
        families = list(self._families.values())
        self.flush()
        files = self._table_bytes()
        live = sum(family.property_int_value("rocksdb.estimate-live-data-size") or 0 for family in families)
        if live > free:
            return False
        if files - live < least * files:
            return True
        try:
            for family in families:
                family.compact_range(None, None)
        except Exception as error:
            self._open()
            raise self.translated(error) from error
        return True

    def close(self) -> None:
        """As ``Engine.close``. RocksDB releases its lock once nothing refers to the database any more."""
        if self._database is None:
            return
        self._wait_for_flush()
        with suppress(Exception):
            self.flush()
        database, self._database = self._database, None
        for pairs in list(self._iterators):
            pairs.release()
        self._getters.clear()
        self._families.clear()
        self._handles.clear()
        with suppress(Exception):  # it flushes, too, and the disk may be full
            database.close()


class _RocksWrite:
    """A write of RocksDB that is being gathered (``interface.PreparedWrite``)."""

    __slots__ = ("_batch", "_deleted", "_engine", "_handles")

    def __init__(self, engine: RocksEngine, handles: dict[str, ColumnFamily]) -> None:
        self._engine = engine
        self._handles = handles
        self._batch = WriteBatch(raw_mode=True)
        self._deleted: dict[str, int] = {}

    def add(self, writes: Iterable[Write]) -> None:
        """As ``PreparedWrite.add``."""
        put, delete, handles, deleted = self._batch.put, self._batch.delete, self._handles, self._deleted
        for family, key, value in writes:
            if value is None:
                deleted[family] = deleted.get(family, 0) + 1
                delete(key, handles[family])
            else:
                put(key, value, handles[family])

    def write(self) -> None:
        """As ``PreparedWrite.write``."""
        self._engine.write_batch(self._batch, self._deleted)


class RocksDisk:
    """The file system and RocksDB (``interface.Disk``).

    Args:
        sync_journal: a file in which each sync records what it made durable (see ``sync_journal``); for tests.
    """

    def __init__(self, *, sync_journal: str | None = None) -> None:
        self._journal = None if sync_journal is None else SyncJournal(sync_journal)
        self._cache = rocksdict.Cache(BLOCK_CACHE_BYTES)

    # -- databases ----------------------------------------------------------------------------------------------------

    def open(self, path: str, families: tuple[str, ...], *, create: bool = False) -> RocksEngine:
        """As ``Disk.open``."""
        path = os.path.abspath(path)
        # RocksDB would create the folder, with files in it, before it finds that there is no database.
        there = exists(os.path.join(path, "CURRENT"))
        if create:
            if there or (is_folder(path) and os.listdir(path)):
                raise DataCorrupted(f"{path}: there is already a database")
            self.make_folder(path)
        elif not there:
            raise DataCorrupted(f"{path}: there is no database")
        if "default" in families:
            raise ValueError("RocksDB's own family is for the marks of flushes")
        database = self._open_database(path, families, create)
        if create:
            sync_folder(path)
        return RocksEngine(database, path, families)

    def _open_database(self, path: str, families: tuple[str, ...], create: bool) -> Rdict:
        columns = {name: self._options(create) for name in families}
        try:
            return Rdict(path, self._options(create), columns)
        except Exception as error:
            raise translate(error, path) from error

    def _options(self, create: bool) -> rocksdict.Options:
        """RocksDB's options: create nothing unasked, report all damage, keep background work out of the way of
        syncs."""
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(create)
        options.create_missing_column_families(create)
        options.set_paranoid_checks(True)
        options.set_atomic_flush(True)
        options.set_write_buffer_size(STATE_WRITE_BUFFER_BYTES)
        # A writer that waits for a flush holds the GIL, so several write buffers may fill up before it has to wait.
        options.set_max_write_buffer_number(4)
        table = rocksdict.BlockBasedOptions()
        table.set_block_cache(self._cache)
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
        # A deleted key stays as a tombstone until files are merged, and every iteration past it must skip it.
        options.add_compact_on_deletion_collector_factory(1000, 500, 0.5)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(1 << 20)
        options.set_stats_dump_period_sec(0)
        options.set_stats_persist_period_sec(0)
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        options.set_max_open_files(MAX_OPEN_FILES if soft < 0 else min(MAX_OPEN_FILES, soft // 4))
        # Background writes go to disk bit by bit, or our own syncs would have to wait for all of them.
        options.set_bytes_per_sync(1 << 20)
        return options

    # -- files --------------------------------------------------------------------------------------------------------

    def open_file(self, path: str, size: int | None = None) -> OsFile:
        """As ``Disk.open_file``."""
        return OsFile(os.path.abspath(path), size, self._journal)

    def free_bytes(self, path: str) -> int:
        """As ``Disk.free_bytes``."""
        return free_bytes(path)

    def in_background(self, work: Callable[[], None]) -> Callable[[], None]:
        """As ``Disk.in_background``."""
        return in_background(work, "raykeeper-disk")

    def exists(self, path: str) -> bool:
        """As ``Disk.exists``."""
        return exists(path)

    def list(self, path: str) -> list[str]:
        """As ``Disk.list``."""
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def make_folder(self, path: str) -> None:
        """As ``Disk.make_folder``."""
        path = os.path.abspath(path)
        missing = []
        while not is_folder(path):
            missing.append(path)
            path = os.path.dirname(path)
        for folder in reversed(missing):
            with suppress(FileExistsError), named_if_full(folder):
                os.mkdir(folder, FOLDER_MODE)
            sync_folder(os.path.dirname(folder))

    def remove(self, path: str) -> None:
        """As ``Disk.remove``."""
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.remove(path)

    def rename(self, old: str, new: str) -> None:
        """As ``Disk.rename``."""
        old, new = os.path.abspath(old), os.path.abspath(new)
        with named_if_full(new):
            os.rename(old, new)
        sync_folder(os.path.dirname(new))
        if os.path.dirname(new) != os.path.dirname(old):
            sync_folder(os.path.dirname(old))
        if self._journal is not None:
            self._journal.renamed(old, new)

    def size(self, path: str) -> int:
        """As ``Disk.size``."""
        return os.stat(path).st_size

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """As ``Disk.read``."""
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read() if size < 0 else file.read(size)
            while size >= 0 and len(data) < size and (more := file.read(size - len(data))):
                data += more  # a single read may return less than there is
            return data

    def append(self, path: str, data: bytes) -> None:
        """As ``Disk.append``."""
        with named_if_full(path), open(path, "ab", buffering=0, opener=open_private) as file:
            if self._journal is not None and file.tell() == 0:
                self._journal.synced({os.path.abspath(path): 0})
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]

    def sync_file(self, path: str) -> None:
        """As ``Disk.sync_file``."""
        length = os.path.getsize(path)
        sync_path(path)
        sync_folder(os.path.dirname(os.path.abspath(path)))
        if self._journal is not None:
            self._journal.synced({os.path.abspath(path): length})

    def replace(self, path: str, data: bytes) -> None:
        """As ``Disk.replace``."""
        path = os.path.abspath(path)
        folder, temporary = os.path.dirname(path), path + ".new"
        with named_if_full(path), open(temporary, "wb", opener=open_private) as file:
            file.write(data)
        sync_path(temporary)
        with named_if_full(path):
            os.replace(temporary, path)
        sync_folder(folder)
        if self._journal is not None:
            self._journal.synced({path: len(data)})
