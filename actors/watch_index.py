"""Which watches a changed key concerns: single keys by a dictionary, ranges by the stretches that their ends cut.

Between two neighbouring ends of any ranges, every key lies in the same ranges; so a changed key is one binary search
away from its watches. The stretches are cut anew when a range came or went since they were last asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Generic, TypeVar

from ..store.commands import KeyRange

W = TypeVar("W")


class WatchIndex(Generic[W]):
    """Watches by what they look at."""

    def __init__(self) -> None:
        self._single: dict[bytes, list[W]] = {}
        self._ranges: list[tuple[bytes, bytes | None, W]] = []
        self._starts: list[bytes] = []
        self._stretches: list[tuple[W, ...]] = []
        self._cut = True

    def __len__(self) -> int:
        return sum(map(len, self._single.values())) + len(self._ranges)

    def add(self, keys: KeyRange, watch: W) -> None:
        """Look at these keys."""
        if keys.end is None:
            self._single.setdefault(keys.key, []).append(watch)
        else:
            self._ranges.append((keys.key, keys.end or None, watch))
            self._cut = False

    def remove(self, keys: KeyRange, watch: W) -> None:
        """Look no longer."""
        if keys.end is None:
            watches = self._single.get(keys.key, [])
            if watch in watches:
                watches.remove(watch)
                if not watches:
                    del self._single[keys.key]
        else:
            self._ranges = [entry for entry in self._ranges if entry[2] is not watch]
            self._cut = False

    def concerned(self, key: bytes) -> Iterable[W]:
        """The watches that look at a key."""
        single = self._single.get(key, ())
        if not self._ranges:
            return single
        if not self._cut:
            self._cut_stretches()
        position = bisect_right(self._starts, key) - 1
        in_ranges = self._stretches[position] if position >= 0 else ()
        return (*single, *in_ranges) if single else in_ranges

    def _cut_stretches(self) -> None:
        """Sweep over all ends in order, keeping the set of ranges that are open."""
        begins: dict[bytes, list[int]] = {}
        ends: dict[bytes, list[int]] = {}
        for number, (start, end, _) in enumerate(self._ranges):
            if end is None or start < end:
                begins.setdefault(start, []).append(number)
                if end is not None:
                    ends.setdefault(end, []).append(number)
        self._starts = sorted({*begins, *ends})
        self._stretches = []
        open_ranges: dict[int, None] = {}
        for point in self._starts:
            for number in ends.get(point, ()):
                open_ranges.pop(number, None)
            for number in begins.get(point, ()):
                open_ranges[number] = None
            self._stretches.append(tuple(self._ranges[number][2] for number in open_ranges))
        self._cut = True
