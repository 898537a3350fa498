"""A disk in memory that forgets what was not synced, in the shape that ``store.engine`` asks for.

A crash of the process keeps everything that was written to files; a loss of power keeps what was synced, and of the
rest what a real machine may keep: of each file a prefix of its unsynced bytes, of a file that is written in place any
of its sectors, of each unsynced change of a folder either side. Both take from each database the newest of what was not
flushed: a random *prefix* is left, since it has no write-ahead log, and flushes full memtables on its own. A ``fuse``
ends the process before its n-th next operation that changes the disk, so crashes fall between any two of them and not
only between two turns. ``room`` fills the disk after the n-th next operation that takes room. Then, as with RocksDB, a
database whose flush has failed takes no writes any more until it is opened again.

Synced content is not kept twice: a database remembers how to undo what is not synced yet.
"""

from __future__ import annotations

import random
import threading
import zlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from weakref import WeakSet

import msgspec

from raykeeper.errors import DataCorrupted, NoSpace, Unavailable
from raykeeper.store.engine.interface import Write

_MANIFEST = "MANIFEST"
SECTOR = 512
"""The least that a disk writes completely or not at all."""


class SimCrash(BaseException):
    """The simulated process ends here. Not an ``Exception``, so that no handler in the product swallows it."""


class _Table:
    """One column family: a dict, and its keys in order."""

    __slots__ = ("keys", "values")

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.values: dict[bytes, bytes] = {}

    def set(self, key: bytes, value: bytes | None) -> bytes | None:
        """Set or (``None``) delete a key; returns what was there."""
        values = self.values
        old = values.get(key)
        if value is None:
            if old is not None:
                del values[key]
                del self.keys[bisect_left(self.keys, key)]
        else:
            if old is None:
                keys = self.keys
                if not keys or key > keys[-1]:
                    keys.append(key)
                else:
                    insort(keys, key)
            values[key] = value
        return old


class _Database:
    """What lies in a database's folder, open or not."""

    def __init__(self, families: tuple[str, ...]) -> None:
        self.tables = {family: _Table() for family in families}
        self.batches: list[list[tuple[str, bytes, bytes | None]]] = []
        """Unsynced writes, oldest first, each as what it replaced."""
        self.synced: dict[tuple[str, bytes], bytes | None] = {}
        """Synced value of every key that has unsynced writes."""
        self.engine: SimEngine | None = None
        self.fragile = False
        """Made from files that were never synced: a loss of power damages it."""
        self.damaged = False
        self.rotten: set[tuple[str, bytes]] = set()
        """What can be written, but no more read: its checksum is wrong."""

    def get_synced(self, family: str, key: bytes) -> bytes | None:
        where = (family, key)
        return self.synced[where] if where in self.synced else self.tables[family].values.get(key)

    def lose_power(self, rng: random.Random) -> None:
        if self.fragile:
            self.damaged = True
        self.lose_unflushed(rng)

    def lose_unflushed(self, rng: random.Random) -> None:
        keep = _part(rng, len(self.batches))
        while len(self.batches) > keep:
            for family, key, old in reversed(self.batches.pop()):
                self.tables[family].set(key, old)
        self.batches.clear()
        self.synced.clear()


class _File:
    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = 0
        """Bytes that are on the disk for sure; files only grow."""

    def lose_power(self, rng: random.Random) -> None:
        keep = self.synced + _part(rng, len(self.data) - self.synced)
        del self.data[keep:]
        self.synced = keep


class _BlockFile:
    """What a file that is written in place holds."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.old: dict[int, bytes] = {}
        """By number, each sector that has unsynced writes, as it was synced."""

    def write(self, offset: int, data: bytes) -> None:
        if self.data[offset : offset + len(data)] == data:
            return  # zeros over zeros, mostly
        for sector in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)):
            if sector not in self.old:
                self.old[sector] = bytes(self.data[sector * SECTOR : (sector + 1) * SECTOR])
        self.data[offset : offset + len(data)] = data

    def synced(self) -> bytes:
        """What a loss of power cannot take away."""
        data = self.data[:]
        for sector, old in self.old.items():
            data[sector * SECTOR : sector * SECTOR + len(old)] = old
        return bytes(data)

    def lose_power(self, rng: random.Random) -> None:
        """Of what is unsynced nothing is left, or all, or any sectors: a disk writes them in any order."""
        sectors = sorted(self.old)
        for sector in rng.sample(sectors, len(sectors) - _part(rng, len(sectors))):
            old = self.old[sector]
            self.data[sector * SECTOR : sector * SECTOR + len(old)] = old
        self.old.clear()


class _Folder:
    def __init__(self) -> None:
        self.entries: dict[str, _Node] = {}
        self.durable: dict[str, _Node] = {}

    def sync(self) -> None:
        self.durable = dict(self.entries)

    def lose_power(self, rng: random.Random) -> None:
        survivors: dict[str, _Node] = {}
        for name in sorted(set(self.entries) | set(self.durable)):
            new, old = self.entries.get(name), self.durable.get(name)
            node = new if new is old or rng.random() < 0.5 else old
            if node is not None:
                node.lose_power(rng)
                survivors[name] = node
        self.entries = survivors
        self.sync()


_Node = _File | _BlockFile | _Folder | _Database


def _part(rng: random.Random, whole: int) -> int:
    """How much of something unsynced survives: often nothing, sometimes all, else anything between."""
    draw = rng.random()
    if draw < 0.5:
        return 0
    return whole if draw < 0.65 else rng.randint(0, whole)


class SimDisk:
    """A machine's disk (``store.engine.Disk``). It outlives the processes that use it."""

    def __init__(self) -> None:
        self._root = _Folder()
        self.fuse: int | None = None
        """Changing operations left before the process ends with ``SimCrash``; ``None``: no end planned."""
        self._rng = random.Random(1)
        self.dead = False
        """The process has ended: until ``restart`` every use raises ``SimCrash``."""
        self.room: int | None = None
        """How many more operations that take room succeed; ``None``: the disk has room enough."""
        self.harmed = False
        """Whether anything on it was ever damaged."""
        self.sync_fails = False
        """The next sync fails, and so ends the process."""
        self.operations = 0
        self.syncs = 0
        self.losses = 0
        """How often the power was lost."""
        self.trace: Callable[[str], None] | None = None

    # --- what the world does to it -----------------------------------------------------------------------------------

    def crash(self) -> None:
        """End the process: files stay as they were written, and of databases a prefix."""
        self.dead = True
        self._close_all(self._root)

    def lose_power(self, rng: random.Random) -> None:
        """End the process and forget what was not synced, but for the part of it that ``rng`` spares."""
        self.crash()
        self.losses += 1
        self._root.lose_power(rng)

    def restart(self) -> None:
        """Let a new process use the disk."""
        self.dead = False
        self.fuse = None
        self.sync_fails = False

    def damage(self, path: str, rng: random.Random) -> str:
        """Damage a database or a file that nobody has open, in one of several ways; what was done."""
        self.harmed = True
        node = self._find(path)
        parent, name = self._parent(path)
        if isinstance(node, _Database) and rng.random() < 0.6:
            node.damaged = True
            return "cannot be opened"
        if isinstance(node, _File) and rng.random() < 0.5:
            node.data[:] = b"\0" * len(node.data)
            return "is full of zeros"
        parent.entries.pop(name, None)
        parent.durable.pop(name, None)
        return "is gone"

    def rot(self, path: str, rng: random.Random, share: float) -> int:
        """Let this many of a database's records rot, open or not; how many did."""
        self.harmed = True
        database = self._find(path)
        if not isinstance(database, _Database):
            return 0
        records = [(family, key) for family, table in database.tables.items() for key in table.keys]
        chosen = rng.sample(records, min(len(records), 1 + int(share * len(records)))) if records else []
        database.rotten.update(chosen)
        return len(chosen)

    def current(self, folder: str) -> str:
        """The state that a member's folder names, or a path where nothing is."""
        try:
            return f"{folder}/{self._file(f'{folder}/CURRENT').data.decode()}"
        except (FileNotFoundError, UnicodeDecodeError):
            return f"{folder}/nothing"

    def is_whole(self, path: str) -> bool:
        """Whether there is a database that nothing is wrong with."""
        database = self._find(path)
        return isinstance(database, _Database) and not database.damaged and not database.rotten

    def _sync(self) -> None:
        self.touch()
        self.syncs += 1
        if self.sync_fails:
            self.crash()
            raise SimCrash

    def _close_all(self, folder: _Folder) -> None:
        for node in folder.entries.values():
            if isinstance(node, _Database):
                if node.engine is not None:
                    node.engine.end()
                    node.lose_unflushed(self._rng)
            elif isinstance(node, _Folder):
                self._close_all(node)

    def touch(self) -> None:
        """Before every operation that changes the disk: ends the process if its fuse has burnt down."""
        if self.dead:
            raise SimCrash
        self.operations += 1
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.fuse = None
                self.crash()
                raise SimCrash

    def take_room(self, path: str) -> None:
        """Before every operation that takes room."""
        if self.room is not None:
            if self.room <= 0:
                raise NoSpace(path)
            self.room -= 1

    def synced_reader(self, path: str) -> Callable[[str, bytes], bytes | None]:
        """Reads of a database, open or not, what a loss of power could not take away."""
        database = self._find(path)
        if not isinstance(database, _Database):
            return lambda family, key: None
        return database.get_synced

    # --- paths -------------------------------------------------------------------------------------------------------

    def _find(self, path: str) -> _Node | None:
        node: _Node | None = self._root
        for name in _names(path):
            if not isinstance(node, _Folder):
                return None
            node = node.entries.get(name)
        return node

    def _parent(self, path: str) -> tuple[_Folder, str]:
        names = _names(path)
        parent = self._find("/".join(names[:-1]))
        if not isinstance(parent, _Folder):
            raise FileNotFoundError(path)
        return parent, names[-1]

    def _file(self, path: str) -> _File | _BlockFile:
        node = self._find(path)
        if not isinstance(node, _File | _BlockFile):
            raise FileNotFoundError(path)
        return node

    # --- store.engine.Disk -------------------------------------------------------------------------------------------

    def open(self, path: str, families: tuple[str, ...], *, create: bool = False) -> SimEngine:
        """As ``Disk.open``; a folder that a checkpoint or an unpacked image filled becomes a database here."""
        node = self._find(path)
        if create:
            self.touch()
            self.take_room(path)
            if isinstance(node, _Database) or (isinstance(node, _Folder) and node.entries):
                raise DataCorrupted(f"{path}: there is a database already")
            self._make_folders("/".join(_names(path)[:-1]))
            parent, name = self._parent(path)
            database = _Database(families)
            parent.entries[name] = database
            parent.sync()
        elif isinstance(node, _Folder):
            database = _from_files(path, node)
            parent, name = self._parent(path)
            parent.entries[name] = database
            if parent.durable.get(name) is node:
                parent.durable[name] = database
            else:
                database.fragile = True
        elif isinstance(node, _Database):
            database = node
        else:
            raise DataCorrupted(f"{path}: no database")
        if database.damaged or set(database.tables) != set(families):
            raise DataCorrupted(f"{path}: damaged, or of other column families")
        if database.engine is not None:
            raise Unavailable(f"{path}: already open")
        self.take_room(path)
        database.engine = SimEngine(self, database)
        return database.engine

    def open_file(self, path: str, size: int | None = None) -> SimBlockFile:
        """As ``Disk.open_file``."""
        node = self._find(path)
        if size is not None:
            self.touch()
            grows = not isinstance(node, _BlockFile) or len(node.data) < size
            if not isinstance(node, _BlockFile):
                node = _BlockFile()
                parent, name = self._parent(path)
                parent.entries[name] = node
            if grows:  # a part may be reserved before the disk is full
                self.take_room(path)
            if len(node.data) != size:
                node.data[size:] = bytes(max(0, size - len(node.data)))
                node.old = {sector: old for sector, old in node.old.items() if (sector + 1) * SECTOR <= size}
        if not isinstance(node, _BlockFile):
            raise FileNotFoundError(path)
        return SimBlockFile(self, node)

    def free_bytes(self, path: str) -> int:
        """As ``Disk.free_bytes``: there is room, unless ``take_room`` says otherwise."""
        return 1 << 40

    def in_background(self, work: Callable[[], None]) -> Callable[[], None]:
        """As ``Disk.in_background``, but at once."""
        try:
            work()
        except Exception as error:
            failure = error  # the name in an ``except`` clause ends with it

            def fail() -> None:
                raise failure

            return fail
        return lambda: None

    def set_file(self, path: str, data: bytes) -> None:
        """Let a file that is written in place hold this, durably."""
        node = self._find(path)
        assert isinstance(node, _BlockFile)
        node.data[:] = data
        node.old.clear()

    def synced_file(self, path: str) -> bytes:
        """What a loss of power leaves for certain of a file that is written in place."""
        node = self._find(path)
        return node.synced() if isinstance(node, _BlockFile) else b""

    def exists(self, path: str) -> bool:
        """As ``Disk.exists``."""
        return self._find(path) is not None

    def list(self, path: str) -> list[str]:
        """As ``Disk.list``; a database shows one file that stands for all of them."""
        node = self._find(path)
        if isinstance(node, _Database):
            return [_MANIFEST]
        return sorted(node.entries) if isinstance(node, _Folder) else []

    def _make_folders(self, path: str) -> None:
        folder = self._root
        for name in _names(path):
            node = folder.entries.get(name)
            if node is None:
                node = _Folder()
                folder.entries[name] = node
                folder.sync()
            elif folder.durable.get(name) is not node:
                folder.sync()
            if isinstance(node, _Database):
                return
            if not isinstance(node, _Folder):
                raise NotADirectoryError(path)
            folder = node

    def make_folder(self, path: str) -> None:
        """As ``Disk.make_folder``."""
        self.touch()
        if self._find(path) is None:
            self.take_room(path)
        self._make_folders(path)

    def remove(self, path: str) -> None:
        """As ``Disk.remove``; not durable until its parent folder is synced by something else."""
        self.touch()
        node = self._find(path)
        if node is None:
            return
        if isinstance(node, _Database) and node.engine is not None:
            raise OSError(f"{path}: database is open")
        parent, name = self._parent(path)
        del parent.entries[name]

    def rename(self, old: str, new: str) -> None:
        """As ``Disk.rename``: durable at once."""
        self.touch()
        source, source_name = self._parent(old)
        target, target_name = self._parent(new)
        if source_name not in source.entries:
            raise FileNotFoundError(old)
        node = source.entries.pop(source_name)
        there = target.entries.get(target_name)
        if there is not None and not isinstance(there, _File | _BlockFile) and getattr(there, "entries", True):
            source.entries[source_name] = node
            raise OSError(f"{new}: not empty")
        target.entries[target_name] = node
        target.sync()
        source.sync()

    def size(self, path: str) -> int:
        """As ``Disk.size``."""
        return len(self._file(path).data)

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """As ``Disk.read``."""
        data = self._file(path).data
        return bytes(data[offset:] if size < 0 else data[offset : offset + size])

    def append(self, path: str, data: bytes) -> None:
        """As ``Disk.append``."""
        self.touch()
        parent, name = self._parent(path)
        node = parent.entries.setdefault(name, _File())
        if not isinstance(node, _File):
            raise IsADirectoryError(path)
        try:
            self.take_room(path)
        except NoSpace:
            node.data += data[: len(data) // 2]
            raise
        node.data += data

    def sync_file(self, path: str) -> None:
        """As ``Disk.sync_file``."""
        self._sync()
        file = self._file(path)
        assert isinstance(file, _File)
        file.synced = len(file.data)
        self._parent(path)[0].sync()

    def replace(self, path: str, data: bytes) -> None:
        """As ``Disk.replace``."""
        self.take_room(path)
        self._sync()
        parent, name = self._parent(path)
        file = _File()
        file.data += data
        file.synced = len(data)
        parent.entries[name] = file
        parent.sync()


class SimBlockFile:
    """An open file of a :class:`SimDisk` (``store.engine.BlockFile``)."""

    def __init__(self, disk: SimDisk, node: _BlockFile) -> None:
        self._disk = disk
        self._node = node
        self.size = len(node.data)

    def read(self, offset: int, size: int) -> bytes:
        """As ``BlockFile.read``."""
        return bytes(self._node.data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        """As ``BlockFile.write``."""
        if offset + len(data) > self.size:
            raise ValueError("a write beyond the end of the file")
        self._disk.touch()
        self._node.write(offset, data)

    def write_zeros(self, start: int, end: int) -> None:
        """As ``BlockFile.write_zeros``."""
        self.write(start, bytes(end - start))

    def sync(self, end: int) -> None:
        """As ``BlockFile.sync``."""
        self._disk._sync()
        self._node.old.clear()

    def close(self) -> None:
        """As ``BlockFile.close``."""


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name and name != "."]


def _from_files(path: str, folder: _Folder) -> _Database:
    """The database that a checkpoint wrote as files."""
    fragile = False
    contents: dict[str, bytes] = {}
    for name, node in folder.entries.items():
        if not isinstance(node, _File):
            continue
        contents[name] = bytes(node.data)
        fragile = fragile or node.synced < len(node.data) or folder.durable.get(name) is not node
    try:
        files: dict[str, tuple[str, int]] = msgspec.json.decode(contents[_MANIFEST], type=dict[str, tuple[str, int]])
        database = _Database(tuple(files))
        for family, (name, checksum) in files.items():
            if zlib.crc32(contents[name]) != checksum:
                raise DataCorrupted(f"{path}/{name}: damaged")
            table = database.tables[family]
            for key, value in msgspec.msgpack.decode(contents[name], type=list[tuple[bytes, bytes]]):
                table.keys.append(key)
                table.values[key] = value
    except (KeyError, msgspec.DecodeError) as error:
        raise DataCorrupted(f"{path}: no database, or a damaged one") from error
    database.fragile = fragile
    return database


class _Pairs(Iterator[tuple[bytes, bytes]]):
    """Pairs of a range as they stood at the start: lazy until somebody writes, then the rest is copied."""

    __slots__ = ("__weakref__", "_copied", "_engine", "_family", "_keys", "_position", "_step", "_stop", "_values")

    def __init__(self, engine: SimEngine, family: str, start: bytes, end: bytes | None, reverse: bool) -> None:
        table = engine._table(family)
        self._engine = engine
        self._family = family
        with engine.lock:
            self._begin(table, start, end, reverse)

    def _begin(self, table: _Table, start: bytes, end: bytes | None, reverse: bool) -> None:
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


class _SimWrite:
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

    def __init__(self, disk: SimDisk, database: _Database) -> None:
        self._disk = disk
        self._database = database
        self._tables = database.tables
        self._bytes = sum(len(k) + len(v) for table in database.tables.values() for k, v in table.values.items())
        self.readers: WeakSet[_Pairs] = WeakSet()
        self.closed = False
        self.damage: DataCorrupted | None = None
        self.rotten = database.rotten
        self._failed: NoSpace | None = None
        """What the last flush ended with."""
        self.lock = threading.RLock()
        """Unit tests have members whose readers are threads: they see the whole of a write or nothing of it, too."""

    def _table(self, family: str) -> _Table:
        if self.closed:
            if self._disk.dead:
                raise SimCrash
            raise RuntimeError("the database is closed")
        return self._tables[family]

    def get(self, family: str, key: bytes) -> bytes | None:
        """As ``Engine.get``."""
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
        return _Pairs(self, family, start, end, reverse)

    def prepare_write(self) -> _SimWrite:
        """As ``Engine.prepare_write``."""
        return _SimWrite(self)

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
        self._disk.touch()
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
        if self.closed and not self._disk.dead:
            raise RuntimeError("the database is closed")
        if self._failed is not None:
            raise self._failed
        try:
            self._disk.take_room("database")
        except NoSpace as error:
            self._failed = error
            raise
        self._disk._sync()
        self._database.batches.clear()
        self._database.synced.clear()

    def unsynced_writes(self) -> int:
        """Batches that a loss of power may still take away."""
        return len(self._database.batches)

    def checkpoint(self, path: str) -> None:
        """As ``Engine.checkpoint``: the folder holds plain files, of which none is synced."""
        for family, key in sorted(self._database.rotten):
            self.check(family, key)
        self.flush()
        self._disk.take_room(path)
        if self._disk.exists(path):
            raise OSError(f"{path}: exists")
        folder = _Folder()
        manifest: dict[str, tuple[str, int]] = {}
        for number, (family, table) in enumerate(self._tables.items(), 1):
            name = f"{number:06}.sst"
            file = _File()
            file.data += msgspec.msgpack.encode([(key, table.values[key]) for key in table.keys])
            folder.entries[name] = file
            manifest[family] = (name, zlib.crc32(file.data))
        file = _File()
        file.data += msgspec.json.encode(manifest)
        folder.entries[_MANIFEST] = file
        names = path.rsplit("/", 1)
        parent = self._disk._find(names[0] if len(names) > 1 else "")
        if not isinstance(parent, _Folder):
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
        if not self.closed and not self._disk.dead:
            with suppress(NoSpace):
                self.flush()
            if self._database.batches:
                self._database.lose_unflushed(self._disk._rng)
        self.end()

    def end(self) -> None:
        """The process is gone."""
        self.closed = True
        if self._database.engine is self:
            self._database.engine = None
