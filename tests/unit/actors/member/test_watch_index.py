"""Whom a changed key concerns, however many ranges are watched, and however they lie."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.store_model import inside
from raykeeper.actors.member.watch_index import WatchIndex
from raykeeper.schema.operations import KeyRange


@given(st.lists(st.tuples(st.binary(max_size=2), st.none() | st.binary(max_size=2)), max_size=12), st.data())
def test_the_index_finds_whom_a_key_concerns(ranges: list[tuple[bytes, bytes | None]], data: st.DataObject) -> None:
    index: WatchIndex[int] = WatchIndex()
    for number, (key, end) in enumerate(ranges):
        index.add(KeyRange(key, end), number)
    gone = data.draw(st.sets(st.sampled_from(range(len(ranges))))) if ranges else set()
    for number in gone:
        index.remove(KeyRange(*ranges[number]), number)
    keys = data.draw(st.lists(st.binary(max_size=3), max_size=5))
    of_any = {
        n for n, (k, end) in enumerate(ranges) if n not in gone and any(inside(x, KeyRange(k, end)) for x in keys)
    }
    assert sorted(index.concerned(iter(keys))) == sorted(of_any)
    for key in keys:
        assert sorted(index.concerned(key)) == sorted(index.concerned([key]))
        found = list(index.concerned([key]))
        expected = [n for n, (k, end) in enumerate(ranges) if n not in gone and inside(key, KeyRange(k, end))]
        assert sorted(found) == expected
    some = [number for number, (key, end) in enumerate(ranges) if end is None or not end or key < end]
    assert len(index) == len(set(some) - gone)


def depth(node: Any) -> int:
    return 0 if node is None else 1 + max(depth(node.left), depth(node.right))


def test_ranges_come_and_go_one_by_one_and_nothing_is_built_anew() -> None:
    """In whatever order they come, a look at a key, and a change of the index, touch few of thousands of ranges."""
    rng = random.Random(5)
    index: WatchIndex[int] = WatchIndex()
    ranges = {n: KeyRange(b"%05d/" % n, b"%05d0" % n) for n in range(4000)}
    for n, keys in ranges.items():
        index.add(keys, n)
    assert depth(index._root) < 60
    for _ in range(3000):
        n = rng.randrange(4000)
        if n in ranges and rng.random() < 0.6:
            index.remove(ranges.pop(n), n)
        elif n not in ranges:
            ranges[n] = KeyRange(b"%05d/" % n, rng.choice((b"%05d0" % n, b"", b"%05d0" % (n + 3))))
            index.add(ranges[n], n)
    assert len(index) == len(ranges)
    assert depth(index._root) < 60
    for _ in range(50):
        key = b"%05d/x" % rng.randrange(4000)
        expected = sorted(n for n, keys in ranges.items() if inside(key, keys))
        assert sorted(index.concerned([key])) == expected
    for n, keys in ranges.items():
        index.remove(keys, n)
    assert len(index) == 0
    assert index._root is None


def test_ranges_inside_each_other_take_the_room_of_each() -> None:
    index: WatchIndex[int] = WatchIndex()
    for n in range(2000):
        index.add(KeyRange(b"%05d" % n, b""), n)
    assert sorted(index.concerned([b"01000"])) == list(range(1001))
    assert list(index.concerned([b"0"])) == []


def test_many_changes_concern_a_watch_once() -> None:
    """A delete of thousands of keys under thousands of watches is not a product of the two."""
    index: WatchIndex[int] = WatchIndex()
    for n in range(300):
        index.add(KeyRange(b"a", b"b"), n)
        index.add(KeyRange(b"a5"), -n)
    assert len(list(index.concerned(b"a%d" % n for n in range(2000)))) == 600


class Key(bytes):
    """Counts how often it is compared."""

    compared = 0

    def __lt__(self, other: Any) -> bool:
        Key.compared += 1
        return bytes.__lt__(self, other)

    def __le__(self, other: Any) -> bool:
        Key.compared += 1
        return bytes.__le__(self, other)

    def __gt__(self, other: Any) -> bool:
        Key.compared += 1
        return bytes.__gt__(self, other)

    def __ge__(self, other: Any) -> bool:
        Key.compared += 1
        return bytes.__ge__(self, other)


@pytest.mark.parametrize("end", [b"", b"c"])
def test_many_changes_under_ranges_that_nest_look_at_each_range_once(end: bytes) -> None:
    """A delete of thousands of keys that lie in all of hundreds of ranges is not a product of the two either."""
    index: WatchIndex[int] = WatchIndex()
    for n in range(400):
        index.add(KeyRange(b"a%03d" % n, end and end + b"%03d" % n), n)
    Key.compared = 0
    assert len(list(index.concerned([Key(b"b%04d" % n) for n in range(2000)]))) == 400
    assert 2000 <= Key.compared < 50_000


def test_keys_far_apart_do_not_lead_through_all_that_lies_between() -> None:
    index: WatchIndex[int] = WatchIndex()
    for n in range(4000):
        index.add(KeyRange(b"%05d/" % n, b"%05d0" % n), n)
    Key.compared = 0
    assert sorted(index.concerned([Key(b"03999/x"), Key(b"00000/x"), Key(b"02000/x")])) == [0, 2000, 3999]
    assert Key.compared < 500
