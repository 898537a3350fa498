"""Which watches a changed key concerns: single keys by a dictionary, ranges by an interval tree.

The tree is ordered by where ranges begin, and each node knows how far any range below it reaches (CLRS, "Interval
trees"); so whoever asks for a key passes by what ends before it or begins behind it. It keeps its balance as a treap:
each range draws a priority, and nobody stands above one of a higher one. To look for a key, to add a range and to
remove one take O(log n) steps, and one for each range found, however many ranges nest; nothing is ever built anew. Many
keys at once take no more steps than there are ranges, and none of them is found twice.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Generic, TypeVar

from ..store.commands import KeyRange

W = TypeVar("W")


class _Node(Generic[W]):
    """One range, and all watches of it."""

    __slots__ = ("end", "furthest", "left", "place", "priority", "right", "start", "watches")

    def __init__(self, start: bytes, end: bytes | None, number: int, priority: float) -> None:
        self.start = start
        self.end = end
        self.place = (start, number)
        self.priority = priority
        self.watches: dict[W, None] = {}
        self.left: _Node[W] | None = None
        self.right: _Node[W] | None = None
        self.furthest = end
        """The highest end in this node and below; ``None`` if there is one without."""

    def reach(self) -> None:
        """What is below has changed."""
        furthest = self.end
        for child in (self.left, self.right):
            if child is not None and furthest is not None:
                furthest = None if child.furthest is None else max(furthest, child.furthest)
        self.furthest = furthest


class WatchIndex(Generic[W]):
    """Watches by what they look at."""

    def __init__(self) -> None:
        self._single: dict[bytes, dict[W, None]] = {}
        self._ranges: dict[tuple[bytes, bytes | None], _Node[W]] = {}
        self._root: _Node[W] | None = None
        self._numbers = 0
        self._rng = random.Random(0)

    def __len__(self) -> int:
        return sum(len(watches) for watches in self._single.values()) + sum(
            len(node.watches) for node in self._ranges.values()
        )

    def add(self, keys: KeyRange, watch: W) -> None:
        """Look at these keys."""
        if keys.end is None:
            self._single.setdefault(keys.key, {})[watch] = None
            return
        where = keys.key, keys.end or None
        node = self._ranges.get(where)
        if node is None:
            if where[1] is not None and where[0] >= where[1]:
                return
            self._numbers += 1
            node = self._ranges[where] = _Node(*where, self._numbers, self._rng.random())
            self._root = _insert(self._root, node)
        node.watches[watch] = None

    def remove(self, keys: KeyRange, watch: W) -> None:
        """Look no longer."""
        if keys.end is None:
            watches = self._single.get(keys.key)
            if watches is not None:
                watches.pop(watch, None)
                if not watches:
                    del self._single[keys.key]
            return
        where = keys.key, keys.end or None
        node = self._ranges.get(where)
        if node is not None:
            node.watches.pop(watch, None)
            if not node.watches:
                del self._ranges[where]
                self._root = _remove(self._root, node)

    def concerned(self, keys: bytes | Iterable[bytes]) -> Iterator[W]:
        """The watches that look at a key, or at any of several; each once for every key or range that it was added
        with."""
        order = [keys] if isinstance(keys, bytes) else sorted(set(keys))
        single = self._single
        found = [single[key] for key in order if key in single] if single else []
        if self._root is not None and order:
            _covering(self._root, order, found)
        return chain.from_iterable(found)


def _covering(root: _Node[W], keys: Sequence[bytes], found: list[dict[W, None]]) -> None:
    """Add the watches of all ranges that any of these keys, which are in order, lies in.

    All keys go down the tree at once, so that no range is looked at twice: behind a range only those go on that do not
    lie before its beginning, and nobody goes where all ranges end before the first of them.
    """
    todo, count = [(root, 0)], len(keys)
    while todo:
        node, first = todo.pop()
        if node.furthest is not None and node.furthest <= keys[first]:
            continue
        if node.left is not None:
            todo.append((node.left, first))
        if keys[first] < node.start:
            first = bisect_left(keys, node.start, first)
        if first < count:
            if node.end is None or keys[first] < node.end:
                found.append(node.watches)
            if node.right is not None:
                todo.append((node.right, first))


def _insert(root: _Node[W] | None, node: _Node[W]) -> _Node[W]:
    if root is None:
        return node
    if node.priority > root.priority:
        node.left, node.right = _split(root, node.place)
        node.reach()
        return node
    if node.place < root.place:
        root.left = _insert(root.left, node)
    else:
        root.right = _insert(root.right, node)
    root.reach()
    return root


def _split(root: _Node[W] | None, place: tuple[bytes, int]) -> tuple[_Node[W] | None, _Node[W] | None]:
    """What lies before a place, and what behind it."""
    if root is None:
        return None, None
    if root.place < place:
        root.right, behind = _split(root.right, place)
        root.reach()
        return root, behind
    before, root.left = _split(root.left, place)
    root.reach()
    return before, root


def _remove(root: _Node[W] | None, node: _Node[W]) -> _Node[W] | None:
    if root is node:
        return _join(node.left, node.right)
    assert root is not None
    if node.place < root.place:
        root.left = _remove(root.left, node)
    else:
        root.right = _remove(root.right, node)
    root.reach()
    return root


def _join(before: _Node[W] | None, behind: _Node[W] | None) -> _Node[W] | None:
    if before is None or behind is None:
        return before or behind
    if before.priority > behind.priority:
        before.right = _join(before.right, behind)
        before.reach()
        return before
    behind.left = _join(before, behind.left)
    behind.reach()
    return behind
