"""What lies on a simulated disk, and what a loss of power leaves of it.

A loss of power keeps what was synced, and of the rest what a real machine may keep: of each file a prefix of its
unsynced bytes, of a file that is written in place any of its sectors, of each unsynced change of a folder either side,
of a database a random prefix of its unflushed writes. Synced content is not kept twice: a database remembers how to
undo what is not synced yet.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.disk_engine import SimEngine

MANIFEST = "MANIFEST"
SECTOR = 512
"""The least that a disk writes completely or not at all."""


class SimCrash(BaseException):
    """The simulated process ends here. Not an ``Exception``, so that no handler in the product swallows it."""


class ReadRefused(OSError):
    """A disk that answers EIO to a read. What it holds is there, and the next read may find it."""


class Table:
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


class Database:
    """What lies in a database's folder, open or not."""

    def __init__(self, families: tuple[str, ...]) -> None:
        self.tables = {family: Table() for family in families}
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
        keep = surviving_part(rng, len(self.batches))
        while len(self.batches) > keep:
            for family, key, old in reversed(self.batches.pop()):
                self.tables[family].set(key, old)
        self.batches.clear()
        self.synced.clear()


class FileContent:
    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = 0
        """Bytes that are on the disk for sure; files only grow."""

    def lose_power(self, rng: random.Random) -> None:
        keep = self.synced + surviving_part(rng, len(self.data) - self.synced)
        del self.data[keep:]
        self.synced = keep


class BlockContent:
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
        for sector in rng.sample(sectors, len(sectors) - surviving_part(rng, len(sectors))):
            old = self.old[sector]
            self.data[sector * SECTOR : sector * SECTOR + len(old)] = old
        self.old.clear()


class Folder:
    def __init__(self) -> None:
        self.entries: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}

    def sync(self) -> None:
        self.durable = dict(self.entries)

    def lose_power(self, rng: random.Random) -> None:
        survivors: dict[str, Node] = {}
        for name in sorted(set(self.entries) | set(self.durable)):
            new, old = self.entries.get(name), self.durable.get(name)
            node = new if new is old or rng.random() < 0.5 else old
            if node is not None:
                node.lose_power(rng)
                survivors[name] = node
        self.entries = survivors
        self.sync()


Node = FileContent | BlockContent | Folder | Database


def surviving_part(rng: random.Random, whole: int) -> int:
    """How much of something unsynced survives: often nothing, sometimes all, else anything between."""
    draw = rng.random()
    if draw < 0.5:
        return 0
    return whole if draw < 0.65 else rng.randint(0, whole)
