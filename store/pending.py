"""The effects of one batch of log entries before they are written: reads see them, the database does not yet.

All effects of the entries that are applied together, and the applied index, go to the disk in one write (rules of the
disk), so a crash leaves the state at an entry boundary; until then they live here, over the database. A command that
fails half-way is undone by the journal, so it has no effect.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Protocol

from .engine import Engine, Write


class Ordered(Protocol):
    """What can be read in order."""

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with ``start <= key < end`` in key order, or in reverse, as they stood when this was called."""
        ...


class Source(Ordered, Protocol):
    """What can be read from: a database, or a batch over it."""

    def get(self, family: str, key: bytes) -> bytes | None:
        """The value of a key, or ``None``."""
        ...


class _Absent:
    """Marks what the batch says nothing about."""


_ABSENT = _Absent()
_FIRST_CHANGES = 16


class _Layer:
    """The changes to one column family."""

    __slots__ = ("order", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.order: list[bytes] | None = None
        """The changed keys in order, kept from the first time that somebody iterates."""

    def changes(self, low: int, high: int, reverse: bool) -> Iterator[tuple[bytes, bytes | None]]:
        """The changes at these places of ``order``, a few at a time: who wants the first does not pay for all."""
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


class Pending:
    """A batch of writes over a database."""

    def __init__(self, engine: Engine, families: tuple[str, ...]) -> None:
        self._engine = engine
        self._engine_get = engine.get
        self._layers = {family: _Layer() for family in families}
        self._journal: list[tuple[_Layer, bytes, bytes | _Absent | None] | Callable[[], None]] | None = None
        self.dead: set[bytes] = set()
        """Users' keys that the running command has deleted; some may have come back since."""
        self.skipped = 0
        """Deleted keys that iterators have passed by so far: in the database they are still there."""

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, family: str, key: bytes) -> bytes | None:
        """As ``Engine.get``, with the batch's changes."""
        value = self._layers[family].values.get(key, _ABSENT)
        if value is _ABSENT:
            return self._engine_get(family, key)
        return value  # type: ignore[return-value]

    def iterate(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """As ``Engine.iterate``, with the batch's changes; none may come while it is iterated."""
        stored = self._engine.iterate(family, start, end, reverse=reverse)
        changed = self._changed(family, start, end, reverse)
        return stored if changed is None else self._living(stored, changed, reverse)

    def iterate_with_dead(
        self, family: str, start: bytes = b"", end: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes | None]]:
        """The same, with the keys that the running command has deleted, as ``None``: passing by them takes as long as
        by others, and they are the same on every member, whatever else is in the batch."""
        stored = self._engine.iterate(family, start, end, reverse=reverse)
        changed = self._changed(family, start, end, reverse)
        if changed is None:
            yield from stored
            return
        dead = self.dead
        for key, value in _merge(stored, changed, reverse):
            if value is None:
                self.skipped += 1
                if key not in dead:
                    continue
            yield key, value

    def _living(
        self, stored: Iterator[tuple[bytes, bytes]], changed: Iterator[tuple[bytes, bytes | None]], reverse: bool
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, value in _merge(stored, changed, reverse):
            if value is None:
                self.skipped += 1
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
        if self._journal is not None:
            self._journal.append((layer, key, values.get(key, _ABSENT)))
        if layer.order is not None and key not in values:
            insort(layer.order, key)
        values[key] = value

    def begin(self) -> None:
        """From here on, changes can be rolled back."""
        self._journal = []

    def on_rollback(self, undo: Callable[[], None]) -> None:
        """Call ``undo`` if what follows ``begin`` is rolled back: for what is mirrored in memory."""
        if self._journal is not None:
            self._journal.append(undo)

    def keep(self) -> None:
        """What was changed since ``begin`` stays."""
        self._journal = None

    def rollback(self) -> None:
        """Undo what was changed since ``begin``."""
        journal, self._journal = self._journal, None
        for step in reversed(journal or ()):
            if not isinstance(step, tuple):
                step()
                continue
            layer, key, old = step
            if isinstance(old, _Absent):
                del layer.values[key]
                if layer.order is not None:
                    del layer.order[bisect_left(layer.order, key)]
            else:
                layer.values[key] = old

    def flush(self) -> None:
        """Write everything to the database in one batch, and be empty."""
        writes: list[Write] = []
        for family, layer in self._layers.items():
            writes += [(family, key, value) for key, value in layer.values.items()]
        if writes:
            self._engine.write(writes)
        self.discard()

    def discard(self) -> None:
        """Forget everything."""
        self._journal = None
        self.dead.clear()
        for layer in self._layers.values():
            layer.values.clear()
            layer.order = None


def _merge(
    stored: Iterator[tuple[bytes, bytes]], changed: Iterator[tuple[bytes, bytes | None]], reverse: bool
) -> Iterator[tuple[bytes, bytes | None]]:
    """Both in order, the change where there are both; ``None`` for what was deleted."""
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
