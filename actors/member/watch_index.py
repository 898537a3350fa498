"""Finds the watches of a changed key: single keys in a dictionary, ranges in an interval tree.

The tree is ordered by the start of the ranges, and each node knows the highest end at or below it (CLRS, "Interval
trees"), so a search skips subtrees that end before the key or start after it. It is balanced as a treap: each range
draws a priority, and no node is above one with a higher priority. Finding a key, adding a range and removing one take
O(log n) steps, plus one for each range found, however deeply ranges nest; nothing is ever rebuilt. A search for many
keys visits each range at most once.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Generic, TypeVar

from ...schema.operations import KeyRange

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
        """The highest end in this node and below; ``None`` if one of them has no end."""

    def update_furthest(self) -> None:
        """Recompute ``furthest`` after a child has changed."""
        furthest = self.end
        for child in (self.left, self.right):
            if child is not None and furthest is not None:
                furthest = None if child.furthest is None else max(furthest, child.furthest)
        self.furthest = furthest


class WatchIndex(Generic[W]):
    """Watches by the keys that they watch."""

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
        """Add a watch of these keys."""
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
        """Remove a watch of these keys."""
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
        """The watches of a key, or of any of several; each once for every key or range that it was added with."""
        order = [keys] if isinstance(keys, bytes) else sorted(set(keys))
        single = self._single
        found = [single[key] for key in order if key in single] if single else []
        if self._root is not None and order:
            _covering(self._root, order, found)
        return chain.from_iterable(found)


def _covering(root: _Node[W], keys: Sequence[bytes], found: list[dict[W, None]]) -> None:
    """Collect the watches of all ranges that contain any of these keys, which are sorted.

    All keys go down the tree together, so that no node is visited twice: only the keys from a range's start on go to
    its right, and no key goes to a subtree whose ranges all end before the first of them.
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
        node.update_furthest()
        return node
    if node.place < root.place:
        root.left = _insert(root.left, node)
    else:
        root.right = _insert(root.right, node)
    root.update_furthest()
    return root


def _split(root: _Node[W] | None, place: tuple[bytes, int]) -> tuple[_Node[W] | None, _Node[W] | None]:
    """The nodes before a place, and those after it."""
    if root is None:
        return None, None
    if root.place < place:
        root.right, after = _split(root.right, place)
        root.update_furthest()
        return root, after
    before, root.left = _split(root.left, place)
    root.update_furthest()
    return before, root


def _remove(root: _Node[W] | None, node: _Node[W]) -> _Node[W] | None:
    if root is node:
        return _join(node.left, node.right)
    assert root is not None
    if node.place < root.place:
        root.left = _remove(root.left, node)
    else:
        root.right = _remove(root.right, node)
    root.update_furthest()
    return root


def _join(before: _Node[W] | None, after: _Node[W] | None) -> _Node[W] | None:
    if before is None or after is None:
        return before or after
    if before.priority > after.priority:
        before.right = _join(before.right, after)
        before.update_furthest()
        return before
    after.left = _join(before, after.left)
    after.update_furthest()
    return after
