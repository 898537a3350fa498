"""A disk in memory that forgets what was not synced, in the shape that ``store.engine`` asks for.

A crash of the process keeps everything that was written to files; a loss of power keeps what ``disk_content`` says.
Both take from each database the newest of what was not flushed: a random *prefix* is left, since it has no write-ahead
log, and flushes full memtables on its own. A ``fuse`` ends the process before its n-th next operation that changes the
disk, so crashes fall between any two of them and not only between two turns. ``room`` fills the disk after the n-th
next operation that takes room. Then, as with RocksDB, a database whose flush has failed takes no writes any more until
it is opened again. ``refuse_reads`` has reads fail now and then: those of the member's process, not those of who
observes it.
"""

from __future__ import annotations

import errno
import random
import zlib
from collections.abc import Callable

import msgspec

from raykeeper.errors import DataCorrupted, NoSpace, Unavailable
from simulation.disk_content import (
    MANIFEST,
    SECTOR,
    BlockContent,
    Database,
    FileContent,
    Folder,
    Node,
    ReadRefused,
    SimCrash,
)
from simulation.disk_engine import SimEngine


class SimDisk:
    """A machine's disk (``store.engine.Disk``). It outlives the processes that use it."""

    def __init__(self) -> None:
        self._root = Folder()
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
        self.read_by_member = False
        """Whether what is read now is read by the member's process: only then may it be refused."""
        self._refuses = 0.0
        """This share of all reads..."""
        self._dice = random.Random(1)
        """... is drawn here..."""
        self.refused = 0
        """... and so many were."""
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

    def refuse_reads(self, share: float, dice: random.Random | None = None) -> None:
        """From now on so many reads of the member fail, and the disk is as whole as before."""
        self._refuses = share
        self._dice = dice or self._dice

    def before_read(self, what: str) -> None:
        """Before every read, and every look at what is there."""
        if self._refuses and self.read_by_member and self._dice.random() < self._refuses:
            self.refused += 1
            raise ReadRefused(errno.EIO, "Input/output error", what)

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
        if isinstance(node, Database) and rng.random() < 0.6:
            node.damaged = True
            return "cannot be opened"
        if isinstance(node, FileContent) and rng.random() < 0.5:
            node.data[:] = b"\0" * len(node.data)
            return "is full of zeros"
        parent.entries.pop(name, None)
        parent.durable.pop(name, None)
        return "is gone"

    def rot(self, path: str, rng: random.Random, share: float) -> int:
        """Let this many of a database's records rot, open or not; how many did."""
        self.harmed = True
        database = self._find(path)
        if not isinstance(database, Database):
            return 0
        records = [(family, key) for family, table in database.tables.items() for key in table.keys]
        chosen = rng.sample(records, min(len(records), 1 + int(share * len(records)))) if records else []
        database.rotten.update(chosen)
        return len(chosen)

    def flip(self, path: str, offset: int, bit: int) -> None:
        """Flip one bit of what is on the disk for sure in a file that is written in place."""
        self.harmed = True
        node = self._find(path)
        assert isinstance(node, BlockContent)
        node.data[offset] ^= 1 << bit
        sector = offset // SECTOR
        if sector in node.old:
            old = bytearray(node.old[sector])
            old[offset % SECTOR] ^= 1 << bit
            node.old[sector] = bytes(old)

    def current(self, folder: str) -> str:
        """The state that a member's folder names, or a path where nothing is."""
        try:
            return f"{folder}/{self._file(f'{folder}/CURRENT').data.decode()}"
        except (FileNotFoundError, UnicodeDecodeError):
            return f"{folder}/nothing"

    def is_whole(self, path: str) -> bool:
        """Whether there is a database that nothing is wrong with."""
        database = self._find(path)
        return isinstance(database, Database) and not database.damaged and not database.rotten

    def _sync(self) -> None:
        self.touch()
        self.syncs += 1
        if self.sync_fails:
            self.crash()
            raise SimCrash

    def _close_all(self, folder: Folder) -> None:
        for node in folder.entries.values():
            if isinstance(node, Database):
                if node.engine is not None:
                    node.engine.end()
                    node.lose_unflushed(self._rng)
            elif isinstance(node, Folder):
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
        if not isinstance(database, Database):
            return lambda family, key: None
        return database.get_synced

    # --- paths -------------------------------------------------------------------------------------------------------

    def _find(self, path: str) -> Node | None:
        node: Node | None = self._root
        for name in _names(path):
            if not isinstance(node, Folder):
                return None
            node = node.entries.get(name)
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        names = _names(path)
        parent = self._find("/".join(names[:-1]))
        if not isinstance(parent, Folder):
            raise FileNotFoundError(path)
        return parent, names[-1]

    def _file(self, path: str) -> FileContent | BlockContent:
        node = self._find(path)
        if not isinstance(node, FileContent | BlockContent):
            raise FileNotFoundError(path)
        return node

    # --- store.engine.Disk -------------------------------------------------------------------------------------------

    def open(self, path: str, families: tuple[str, ...], *, create: bool = False) -> SimEngine:
        """As ``Disk.open``; a folder that a checkpoint or an unpacked image filled becomes a database here."""
        node = self._find(path)
        if create:
            self.touch()
            self.take_room(path)
            if isinstance(node, Database) or (isinstance(node, Folder) and node.entries):
                raise DataCorrupted(f"{path}: there is a database already")
            self._make_folders("/".join(_names(path)[:-1]))
            parent, name = self._parent(path)
            database = Database(families)
            parent.entries[name] = database
            parent.sync()
        elif isinstance(node, Folder):
            database = _from_files(path, node)
            parent, name = self._parent(path)
            parent.entries[name] = database
            if parent.durable.get(name) is node:
                parent.durable[name] = database
            else:
                database.fragile = True
        elif isinstance(node, Database):
            database = node
        else:
            raise DataCorrupted(f"{path}: no database")
        if database.damaged or set(database.tables) != set(families):
            raise DataCorrupted(f"{path}: damaged, or of other column families")
        self.before_read(path)
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
            grows = not isinstance(node, BlockContent) or len(node.data) < size
            if not isinstance(node, BlockContent):
                node = BlockContent()
                parent, name = self._parent(path)
                parent.entries[name] = node
            if grows:  # a part may be reserved before the disk is full
                self.take_room(path)
            if len(node.data) != size:
                node.data[size:] = bytes(max(0, size - len(node.data)))
                node.old = {sector: old for sector, old in node.old.items() if (sector + 1) * SECTOR <= size}
        if not isinstance(node, BlockContent):
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
        assert isinstance(node, BlockContent)
        node.data[:] = data
        node.old.clear()

    def synced_file(self, path: str) -> bytes:
        """What a loss of power leaves for certain of a file that is written in place."""
        node = self._find(path)
        return node.synced() if isinstance(node, BlockContent) else b""

    def exists(self, path: str) -> bool:
        """As ``Disk.exists``."""
        self.before_read(path)
        return self._find(path) is not None

    def list(self, path: str) -> list[str]:
        """As ``Disk.list``; a database shows one file that stands for all of them."""
        self.before_read(path)
        node = self._find(path)
        if isinstance(node, Database):
            return [MANIFEST]
        return sorted(node.entries) if isinstance(node, Folder) else []

    def _make_folders(self, path: str) -> None:
        folder = self._root
        for name in _names(path):
            node = folder.entries.get(name)
            if node is None:
                node = Folder()
                folder.entries[name] = node
                folder.sync()
            elif folder.durable.get(name) is not node:
                folder.sync()
            if isinstance(node, Database):
                return
            if not isinstance(node, Folder):
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
        if isinstance(node, Database) and node.engine is not None:
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
        if there is not None and not isinstance(there, FileContent | BlockContent) and getattr(there, "entries", True):
            source.entries[source_name] = node
            raise OSError(f"{new}: not empty")
        target.entries[target_name] = node
        target.sync()
        source.sync()

    def size(self, path: str) -> int:
        """As ``Disk.size``."""
        self.before_read(path)
        return len(self._file(path).data)

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """As ``Disk.read``."""
        self.before_read(path)
        data = self._file(path).data
        return bytes(data[offset:] if size < 0 else data[offset : offset + size])

    def append(self, path: str, data: bytes) -> None:
        """As ``Disk.append``."""
        self.touch()
        parent, name = self._parent(path)
        node = parent.entries.setdefault(name, FileContent())
        if not isinstance(node, FileContent):
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
        assert isinstance(file, FileContent)
        file.synced = len(file.data)
        self._parent(path)[0].sync()

    def replace(self, path: str, data: bytes) -> None:
        """As ``Disk.replace``."""
        self.take_room(path)
        self._sync()
        parent, name = self._parent(path)
        file = FileContent()
        file.data += data
        file.synced = len(data)
        parent.entries[name] = file
        parent.sync()


class SimBlockFile:
    """An open file of a :class:`SimDisk` (``store.engine.BlockFile``)."""

    def __init__(self, disk: SimDisk, node: BlockContent) -> None:
        self._disk = disk
        self._node = node
        self.size = len(node.data)

    def read(self, offset: int, size: int) -> bytes:
        """As ``BlockFile.read``."""
        self._disk.before_read("a segment")
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


def _from_files(path: str, folder: Folder) -> Database:
    """The database that a checkpoint wrote as files."""
    fragile = False
    contents: dict[str, bytes] = {}
    for name, node in folder.entries.items():
        if not isinstance(node, FileContent):
            continue
        contents[name] = bytes(node.data)
        fragile = fragile or node.synced < len(node.data) or folder.durable.get(name) is not node
    try:
        files: dict[str, tuple[str, int]] = msgspec.json.decode(contents[MANIFEST], type=dict[str, tuple[str, int]])
        database = Database(tuple(files))
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
