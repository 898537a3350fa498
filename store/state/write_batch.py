"""The effects of applied log entries before they are written: reads through the batch see them, the database does not.

The effects of all entries that are applied together, and the applied index, go to disk in one write, so a crash leaves
the state at an entry boundary. Until then they live here, on top of the database. The effects of a command that fails
half-way are rolled back to its savepoint, so that it has none.

A batch may hold hundreds of thousands of changes (the deletes of one request). So what takes time in proportion to them
goes in slices: a generator yields after each.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Generator, Iterator
from itertools import islice, repeat
from typing import Any, Protocol, TypeVar

from ...limits import BATCH_SLICE_BYTES, BATCH_SLICE_WRITES, SMALL_RANGE_KEYS
from ..engine.interface import Engine, Write
from .small_ranges import SmallRanges


class OrderedReader(Protocol):
    """A source that can be read in key order."""

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < end`` in key order, or in reverse, as of the call."""
        ...


class Source(OrderedReader, Protocol):
    """A database, or a batch on top of one."""

    def get(self, family: str, key: bytes) -> bytes | None:
        """The value of a key, or ``None``."""
        ...


class _Unchanged:
    """Marks a key that the batch does not change."""


_UNCHANGED = _Unchanged()
_A = TypeVar("_A")
_B = TypeVar("_B")
_FIRST_CHANGES = 16
_INSERTED_CHANGES = 4096
"""Into a longer order, new keys are merged before the next iteration: to insert each would move all after it."""


class _Layer:
    """The changes to one column family."""

    __slots__ = ("order", "unordered", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.order: list[bytes] | None = None
        """The changed keys in order; kept from the first iteration on..."""
        self.unordered: list[bytes] = []
        """... but for these."""

    def ordered(self) -> list[bytes]:
        """The changed keys in order."""
        order = self.order
        if order is None:
            order = self.order = sorted(self.values)
        elif self.unordered:
            order += self.unordered
            self.unordered.clear()
            order.sort()  # a merge of runs that are mostly in order
        return order

    def note_new(self, key: bytes) -> None:
        """A key has been added to ``values``."""
        order = self.order
        if order is not None:
            if len(order) < _INSERTED_CHANGES:
                insort(order, key)
            else:
                self.unordered.append(key)

    def note_gone(self, key: bytes, many: bool) -> None:
        """A key has been removed from ``values``; one of many, or of a few."""
        if many:
            self.forget_order()
        elif self.order is not None:
            order = self.ordered()
            del order[bisect_left(order, key)]

    def forget_order(self) -> None:
        """Sort the keys again when they are iterated next."""
        self.order = None
        self.unordered.clear()

    def changes(self, low: int, high: int, reverse: bool) -> Iterator[tuple[bytes, bytes | None]]:
        """The changes at positions ``low`` to ``high`` of ``order``. They are copied in slices that grow, so that a
        reader of the first few does not pay for all."""
        order, values, size = self.order or [], self.values, _FIRST_CHANGES
        while low < high:
            if reverse:
                some = order[max(low, high - size) : high]
                some.reverse()
                high -= size
            else:
                some = order[low : min(high, low + size)]
                low += size
            for key in some:
                yield key, values[key]
            size *= 2


class WriteBatch:
    """A batch of writes on top of a database."""

    def __init__(self, engine: Engine, families: tuple[str, ...]) -> None:
        self._engine = engine
        self._engine_get = engine.get
        self._layers = {family: _Layer() for family in families}
        self._undo: list[Any] | None = None
        """Three elements for each step back: a layer, the key and its value before; or a function and two arguments.
        In a flat list, since a hundred thousand tuples would keep the garbage collector busy."""
        self.deleted_keys: set[bytes] = set()
        """Users' keys that the running command has deleted; it may have put some again."""
        self.small_ranges = SmallRanges()
        """Of users' keys; the writer (``Mvcc``) says which it creates and deletes."""
        self.skipped_deletes = 0
        """How many deleted keys iterators have skipped so far: the database still holds them, so skipping costs
        work."""

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, family: str, key: bytes) -> bytes | None:
        """As ``Engine.get``, with the batch's changes."""
        value = self._layers[family].values.get(key, _UNCHANGED)
        if value is _UNCHANGED:
            return self._engine_get(family, key)
        return value  # type: ignore[return-value]

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """As ``Engine.iterate``, with the batch's changes. The batch must not change during the iteration."""
        stored = self._engine.iterate(family, start, end, reverse=reverse)
        changed = self._changed(family, start, end, reverse)
        return stored if changed is None else self._living(stored, changed, reverse)

    def iterate_keys(
        self, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """Users' keys as by ``iterate``, and with ``None`` for those that the running command has deleted. Skipping
        these is work that a command must pay for, and they are the same on every member, whatever else the batch
        holds."""
        if end is None or self.deleted_keys:
            yield from self._with_deleted(start, end, reverse)
            return
        known = self.small_ranges.keys(start, end)
        if known is not None:
            for key in known[::-1] if reverse else known[:]:
                yield key, self.get("keys", key)
            return
        pairs, changes = self._with_deleted(start, end, reverse), self.small_ranges.changes
        first: list[bytes] = []
        for pair in islice(pairs, SMALL_RANGE_KEYS + 1):
            first.append(pair[0])
            yield pair
        if len(first) <= SMALL_RANGE_KEYS and self.small_ranges.changes == changes:
            self.small_ranges.remember(start, end, first[::-1] if reverse else first)
        yield from pairs

    def _with_deleted(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes | None]]:
        stored = self._engine.iterate("keys", start, end, reverse=reverse)
        changed = self._changed("keys", start, end, reverse)
        if changed is None:
            yield from stored
            return
        deleted = self.deleted_keys
        for key, value in _merge(stored, changed, reverse):
            if value is None:
                self.skipped_deletes += 1
                if key not in deleted:
                    continue
            yield key, value

    def _living(
        self, stored: Iterator[tuple[bytes, bytes]], changed: Iterator[tuple[bytes, bytes | None]], reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, value in _merge(stored, changed, reverse):
            if value is None:
                self.skipped_deletes += 1
            else:
                yield key, value

    def _changed(
        self, family: str, start: bytes, end: bytes | None, reverse: bool
    ) -> Iterator[tuple[bytes, bytes | None]] | None:
        """The changes to a range, in order; ``None`` if there are none."""
        layer = self._layers[family]
        if not layer.values:
            return None
        order = layer.ordered()
        low = bisect_left(order, start)
        high = len(order) if end is None else bisect_left(order, end)
        return layer.changes(low, high, reverse) if low < high else None

    # -- writing ------------------------------------------------------------------------------------------------------

    def set(self, family: str, key: bytes, value: bytes | None) -> None:
        """Set a key, or delete it (``None``)."""
        layer = self._layers[family]
        values = layer.values
        if self._undo is not None:
            self._undo += (layer, key, values.get(key, _UNCHANGED))
        if layer.order is not None and key not in values:
            layer.note_new(key)
        values[key] = value

    def set_savepoint(self) -> None:
        """Changes from here on can be rolled back."""
        self._undo = []

    def on_rollback(self, undo: Callable[[_A, _B], None], first: _A, second: _B) -> None:
        """Call ``undo`` with both if the batch is rolled back to the savepoint: for tables that are mirrored in
        memory."""
        if self._undo is not None:
            self._undo += (undo, first, second)

    def release_savepoint(self) -> None:
        """Keep what was changed since the savepoint."""
        self._undo = None

    def rollback_to_savepoint(self) -> Generator[None, None, None]:
        """Undo what was changed since the savepoint, newest first, in slices."""
        undo, self._undo = self._undo or [], None
        if undo:
            self.small_ranges.forget_all()
        many = len(undo) > 3 * _INSERTED_CHANGES
        count = 0
        while undo:
            old, key, layer = undo.pop(), undo.pop(), undo.pop()
            if type(layer) is not _Layer:
                layer(key, old)
            elif old is _UNCHANGED:
                del layer.values[key]
                layer.note_gone(key, many)
            else:
                layer.values[key] = old
            count += 1
            if not count % BATCH_SLICE_WRITES:
                yield

    def prepare(self, ahead: tuple[str, ...] = (), mark: bytes = b"") -> Generator[None, None, Callable[[], None]]:
        """Prepare to write everything to the database in one write, in slices.

        Args:
            ahead: families that are written before, in slices, if the batch is large (see ``unfinished``).
            mark: a key in ``meta`` that is there meanwhile.

        Returns:
            What makes the write, and empties the batch. Nothing may change in between, nor may the batch be read.

        Raises:
            ValueError: a savepoint is open, so a command is half done.
        """
        if self._undo is not None:
            raise ValueError("an open savepoint")
        if mark and sum([len(layer.values) for layer in self._layers.values()]) > BATCH_SLICE_WRITES:
            self._engine.write([("meta", mark, b"")])
            for family in ahead:
                yield from self._write_ahead(family)
            self.set("meta", mark, None)
        prepared = self._engine.prepare_write()
        room = BATCH_SLICE_WRITES
        for family, layer in self._layers.items():
            if not layer.values:
                continue
            writes = zip(repeat(family), layer.values.keys(), layer.values.values())
            left = len(layer.values)
            while left:
                prepared.add(islice(writes, room))
                took = min(room, left)
                left -= took
                room -= took
                if not room:
                    room = BATCH_SLICE_WRITES
                    yield

        def write() -> None:
            prepared.write()
            self._empty()

        return write

    def _write_ahead(self, family: str) -> Generator[None, None, None]:
        """Write one family, and empty it here."""
        layer = self._layers[family]
        some: list[Write] = []
        size = 0
        for key, value in layer.values.items():
            some.append((family, key, value))
            size += len(key) + len(value or b"")
            if size >= BATCH_SLICE_BYTES or len(some) == BATCH_SLICE_WRITES:
                self._engine.write(some)
                some, size = [], 0
                yield
        if some:
            self._engine.write(some)
        layer.values.clear()
        layer.forget_order()

    def flush(self) -> None:
        """Write everything to the database in one write, then empty the batch. Raises as :meth:`prepare`."""
        preparing = self.prepare()
        while True:
            try:
                next(preparing)
            except StopIteration as done:
                done.value()
                return

    def discard(self) -> None:
        """Drop all changes."""
        self.small_ranges.forget_all()
        self._empty()

    def _empty(self) -> None:
        self._undo = None
        self.deleted_keys.clear()
        for layer in self._layers.values():
            if layer.values:
                layer.values.clear()
            layer.forget_order()


def _merge(
    stored: Iterator[tuple[bytes, bytes]], changed: Iterator[tuple[bytes, bytes | None]], reverse: bool
) -> Iterator[tuple[bytes, bytes | None]]:
    """Stored pairs and changes in key order. A change hides the stored pair; ``None`` stands for a deleted key."""
    change = next(changed, None)
    for pair in stored:
        key = pair[0]
        while change is not None and change[0] != key and (change[0] > key) is reverse:
            yield change
            change = next(changed, None)
        if change is not None and change[0] == key:
            yield change
            change = next(changed, None)
        else:
            yield pair
    if change is not None:
        yield change
        yield from changed
