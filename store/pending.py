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


class _Layer:
    """The changes to one column family."""

    __slots__ = ("order", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | None] = {}
        self.order: list[bytes] | None = None
        """The changed keys in order, kept from the first time that somebody iterates."""


class Pending:
    """A batch of writes over a database."""

    def __init__(self, engine: Engine, families: tuple[str, ...]) -> None:
        self._engine = engine
        self._engine_get = engine.get
        self._layers = {family: _Layer() for family in families}
        self._journal: list[tuple[_Layer, bytes, bytes | _Absent | None] | Callable[[], None]] | None = None

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
        """As ``Engine.iterate``, with the batch's changes."""
        stored = self._engine.iterate(family, start, end, reverse=reverse)
        layer = self._layers[family]
        if not layer.values:
            return stored
        if layer.order is None:
            layer.order = sorted(layer.values)
        low = bisect_left(layer.order, start)
        high = len(layer.order) if end is None else bisect_left(layer.order, end)
        if low >= high:
            return stored
        changed = [(key, layer.values[key]) for key in layer.order[low:high]]
        if reverse:
            changed.reverse()
        return _merge(stored, changed, reverse)

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
        for layer in self._layers.values():
            layer.values.clear()
            layer.order = None


def _merge(
    stored: Iterator[tuple[bytes, bytes]], changed: list[tuple[bytes, bytes | None]], reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    for pair in stored:
        key = pair[0]
        while position < len(changed):
            changed_key, value = changed[position]
            if changed_key == key or (changed_key > key) is not reverse:
                break
            position += 1
            if value is not None:
                yield changed_key, value
        if position < len(changed) and changed[position][0] == key:
            value = changed[position][1]
            position += 1
            if value is not None:
                yield key, value
        else:
            yield pair
    for changed_key, value in changed[position:]:
        if value is not None:
            yield changed_key, value
