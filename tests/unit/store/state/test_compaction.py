"""Compaction frees space while others read: a reader gets all of a revision, or is told that it is gone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lab.store_model import FIRST, Hand, plain
from raykeeper.schema.answers import Done, Failed, RangeAnswer, Reason
from raykeeper.schema.operations import Compact, Delete, KeyRange, Put, Range, Sort, Txn
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.machine import State

ALL = KeyRange(b"", b"")
FAMILIES = ("history", "keys", "deletions", "values")


def stored(hand: Hand, family: str) -> int:
    return len(list(hand.state._engine.iterate(family)))


def compact_all(hand: Hand, slice_: int = 7) -> int:
    slices = 1
    while hand.state.compact_slice(slice_):
        slices += 1
    return slices


def test_compaction_removes_what_cannot_be_read(hand: Hand) -> None:
    for n in range(50):
        hand.run(*(Put(b"k%d" % k, b"%d" % n * (600 if k == 0 else 1)) for k in range(4)))
    hand.run(Delete(KeyRange(b"k3")), Put(b"last", b"x"))
    assert [stored(hand, family) for family in FAMILIES] == [202, 4, 1, 79]
    assert hand.do(Compact(hand.state.revision)) == Done(203)
    assert compact_all(hand) > 20
    assert [stored(hand, family) for family in FAMILIES] == [1, 4, 0, 1]
    answer = hand.range(ALL)
    assert isinstance(answer, RangeAnswer)
    assert [item.key for item in answer.items] == [b"k0", b"k1", b"k2", b"last"]
    assert answer.items[0].value == b"49" * 600
    hand.run(Delete(KeyRange(b"k0")), Put(b"last", b"y"))
    hand.do(Compact(hand.state.revision))
    compact_all(hand)
    assert [stored(hand, family) for family in FAMILIES] == [1, 3, 0, 0]


def test_the_content_hash_sees_what_stays_and_nothing_else(hand: Hand) -> None:
    """Members remove what was compacted at their own pace, and must not differ in anything else."""
    for n in range(6):
        hand.run(Put(b"a", b"%d" % n), Put(b"b", b"%d" % n * 1100), Put(b"c", b"%d" % n * 1100))
        hand.run(Delete(KeyRange(b"c")), Txn((), (Put(b"d", b"%d" % n * 1100), Delete(KeyRange(b"a")))))
    hand.do(Compact(15))
    content, engine = hand.state.content_hash(), hand.state._engine

    def records() -> set[tuple[str, bytes, bytes]]:
        every = {(family, *pair) for family in FAMILIES for pair in engine.iterate(family)}
        # What says that a value was replaced does not go without it.
        return {each for each in every if not (each[0] == "values" and each[1].endswith(b"\0"))}

    seen = set()
    for family, key, value in records():
        engine.write([(family, key, None)])
        if hand.state.content_hash() != content:
            seen.add((family, key, value))
        engine.write([(family, key, value)])
    compact_all(hand)
    assert hand.state.content_hash() == content
    assert seen == records()
    assert {family for family, _, _ in seen} == {*FAMILIES}


def test_what_compact_answers(hand: Hand) -> None:
    hand.run(Put(b"a", b"1"), Put(b"a", b"2"), Put(b"a", b"3"))
    assert plain(hand.do(Compact(5))) == Failed(Reason.FUTURE_REVISION, 4)
    assert hand.do(Compact(3)) == Done(4)
    assert plain(hand.do(Compact(3))) == Failed(Reason.COMPACTED, 3)
    assert plain(hand.range(ALL, revision=2)) == Failed(Reason.COMPACTED, 3)
    assert plain(hand.range(ALL, revision=5)) == Failed(Reason.FUTURE_REVISION, 4)
    compact_all(hand)
    for revision, value in ((3, b"2"), (4, b"3")):
        answer = hand.range(ALL, revision=revision)
        assert isinstance(answer, RangeAnswer)
        assert answer.items[0].value == value


def test_a_crash_between_slices_loses_no_work_and_no_data(disk: RocksDisk, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    hand = Hand(State.create(disk, path, FIRST))
    for n in range(60):
        hand.run(Put(b"a%d" % (n % 7), b"%d" % n), Delete(KeyRange(b"a%d" % (n % 3))))
    hand.do(Compact(80))
    before = hand.state.content_hash()
    slices = 1
    while hand.state.compact_slice(5):
        slices += 1
        hand.state.close()
        hand.state = State.open(disk, path)
        assert hand.state.content_hash() == before
    assert slices >= 80 / 5
    rest = [stored(hand, family) for family in FAMILIES]
    hand.state.close()
    hand.state = State.open(disk, path)
    compact_all(hand)
    assert [stored(hand, family) for family in FAMILIES] == rest
    hand.state.close()


def test_the_mark_may_rise_in_the_middle_of_a_pass(hand: Hand) -> None:
    for n in range(30):
        hand.run(Put(b"a", b"%d" % n), Put(b"b", b"%d" % n), Delete(KeyRange(b"a", b"c")))
    for mark in (20, 21, 35, 60, hand.state.revision):
        hand.do(Compact(mark))
        hand.state.compact_slice(5)
    compact_all(hand)
    # The deletions at the compacted revision itself stay: they can still be watched.
    assert [stored(hand, family) for family in FAMILIES] == [2, 0, 2, 0]
    hand.run(Put(b"c", b"1"))
    hand.do(Compact(hand.state.revision))
    compact_all(hand)
    assert [stored(hand, family) for family in FAMILIES] == [1, 1, 0, 0]


def test_a_slice_is_bounded_also_where_one_revision_has_many_changes(hand: Hand) -> None:
    hand.run(*(Put(b"%04d" % n, b"") for n in range(300)))
    hand.run(Delete(ALL))
    hand.do(Compact(hand.state.revision))
    assert compact_all(hand, 10) >= 60
    assert not hand.state.compact_slice(10)


def test_readers_beside_apply_and_compaction(tmp_path: Path) -> None:
    """Every revision holds one value in all keys; a reader never sees two, and never misses a key."""
    hand = Hand(State.create(RocksDisk(), str(tmp_path / "s"), FIRST))
    keys = [b"k%02d" % n for n in range(20)]
    long = b"x" * 1100

    def write(n: int) -> None:
        # One transaction a round, so that all keys change in one revision.
        hand.do(Txn((), tuple(Put(key, b"%d " % n + (long if n % 2 else b"")) for key in keys)))

    write(0)
    stop = threading.Event()
    problems: list[object] = []
    read = {"ok": 0, "compacted": 0, "old": 0}

    def reader(number: int) -> None:
        state = hand.state
        while not stop.is_set():
            newest = state.revision
            revision = 0 if number == 0 else max(2, newest - 1 - number)
            answer = state.range(Range(ALL, revision), page_items=100, page_bytes=1 << 20)
            if isinstance(answer, Failed):
                if not revision or answer.reason is not Reason.COMPACTED:
                    problems.append(answer)
                read["compacted"] += 1
                continue
            read["ok" if not revision else "old"] += 1
            values = {item.value for item in answer.items}
            if len(values) != 1 or len(answer.items) != len(keys) or (not revision and answer.revision < newest):
                problems.append((revision, newest, len(answer.items), [value[:9] for value in values]))

    readers = [threading.Thread(target=reader, args=(number,)) for number in range(3)]
    for thread in readers:
        thread.start()
    for n in range(1, 250):
        write(n)
        if n % 2:
            hand.do(Compact(hand.state.revision - n % 3))
        while hand.state.compact_slice(15):
            pass
    stop.set()
    for thread in readers:
        thread.join()
    assert problems == []
    assert read["ok"]
    assert read["compacted"] + read["old"]
    hand.state.close()


@pytest.mark.parametrize("uncounted", [False, True])
def test_pages_of_a_long_range(hand: Hand, uncounted: bool) -> None:
    hand.run(*(Put(b"%03d" % n, b"v" * 100) for n in range(100)))
    found: list[bytes] = []
    start = b""
    while True:
        page = hand.range(KeyRange(start, b""), items=15, revision=101, uncounted=uncounted)
        assert isinstance(page, RangeAnswer)
        found += [item.key for item in page.items]
        if not page.more:
            break
        assert len(page.items) == 15
        assert page.count == (15 if uncounted else 100 - len(found) + 15)
        start = found[-1] + b"\0"
    assert found == [b"%03d" % n for n in range(100)]
    by_bytes = hand.range(ALL, size=1000)
    assert isinstance(by_bytes, RangeAnswer)
    assert (len(by_bytes.items), by_bytes.more, by_bytes.count) == (6, True, 100)
    one = hand.range(ALL, size=1)
    assert isinstance(one, RangeAnswer)
    assert len(one.items) == 1


@pytest.mark.parametrize("descending", [False, True])
def test_a_sorted_range_keeps_to_its_page(hand: Hand, descending: bool) -> None:
    hand.run(*(Put(b"%03d" % n, b"%03d" % (n * 37 % 101) * 20) for n in range(100)))
    order = sorted((b"%03d" % (n * 37 % 101) for n in range(100)), reverse=descending)
    answer = hand.range(ALL, items=10, sort=Sort.VALUE, descending=descending)
    assert isinstance(answer, RangeAnswer)
    assert [item.value[:3] for item in answer.items] == order[:10]
    assert (answer.count, answer.more) == (100, True)
    answer = hand.range(ALL, size=700, sort=Sort.VALUE, descending=descending)
    assert isinstance(answer, RangeAnswer)
    assert [item.value[:3] for item in answer.items] == order[: len(answer.items)]
    assert 5 <= len(answer.items) <= 7
