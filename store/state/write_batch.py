"""The effects of applied log entries before they are written: reads through the batch see them, the database does not.

The effects of all entries that are applied together, and the applied index, go to disk in one write, so a crash leaves
the state at an entry boundary. Until then they live here, on top of the database. The effects of a command that fails
half-way are rolled back to its savepoint, so that it has none.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Protocol

from ..engine.interface import Engine, Write


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
_FIRST_CHANGES = 16


class _Layer:
    """The changes to one column family."""

    __slots__ = ("order", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.order: list[bytes] | None = None
        """The changed keys in order; kept from the first iteration on."""

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
        self._undo: list[tuple[_Layer, bytes, bytes | _Unchanged | None] | Callable[[], None]] | None = None
        self.deleted_keys: set[bytes] = set()
        """Users' keys that the running command has deleted; it may have put some again."""
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

    def iterate_with_deleted(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """As ``iterate``, and with ``None`` for keys that the running command has deleted. Skipping those is work that
        a command must pay for, and they are the same on every member, whatever else the batch holds."""
        stored = self._engine.iterate(family, start, end, reverse=reverse)
        changed = self._changed(family, start, end, reverse)
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
        if layer.order is None:
            layer.order = sorted(layer.values)
        low = bisect_left(layer.order, start)
        high = len(layer.order) if end is None else bisect_left(layer.order, end)
        return layer.changes(low, high, reverse) if low < high else None

    # -- writing ------------------------------------------------------------------------------------------------------

    def set(self, family: str, key: bytes, value: bytes | None) -> None:
        """Set a key, or delete it (``None``)."""
        layer = self._layers[family]
        values = layer.values
        if self._undo is not None:
            self._undo.append((layer, key, values.get(key, _UNCHANGED)))
        if layer.order is not None and key not in values:
            insort(layer.order, key)
        values[key] = value

    def set_savepoint(self) -> None:
        """Changes from here on can be rolled back."""
        self._undo = []

    def on_rollback(self, undo: Callable[[], None]) -> None:
        """Call ``undo`` if the batch is rolled back to the savepoint: for tables that are mirrored in memory."""
        if self._undo is not None:
            self._undo.append(undo)

    def release_savepoint(self) -> None:
        """Keep what was changed since the savepoint."""
        self._undo = None

    def rollback_to_savepoint(self) -> None:
        """Undo what was changed since the savepoint, newest first."""
        undo, self._undo = self._undo, None
        for step in reversed(undo or ()):
            if not isinstance(step, tuple):
                step()
                continue
            layer, key, old = step
            if isinstance(old, _Unchanged):
                del layer.values[key]
                if layer.order is not None:
                    del layer.order[bisect_left(layer.order, key)]
            else:
                layer.values[key] = old

    def flush(self) -> None:
        """Write everything to the database in one batch, then empty the batch.

        Raises:
            ValueError: a savepoint is open, so a command is half done.
        """
        if self._undo is not None:
            raise ValueError("an open savepoint")
        writes: list[Write] = []
        for family, layer in self._layers.items():
            if layer.values:
                writes += zip(repeat(family), layer.values.keys(), layer.values.values())
        if writes:
            self._engine.write(writes)
        self.discard()

    def discard(self) -> None:
        """Drop all changes."""
        self._undo = None
        self.deleted_keys.clear()
        for layer in self._layers.values():
            if layer.values:
                layer.values.clear()
            layer.order = None


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
