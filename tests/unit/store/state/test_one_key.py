"""One key as it is now: most reads are that, and have a short way. It answers as the long one does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lab.patience import PATIENCE, until
from lab.store_model import FIRST, Hand
from raykeeper.errors import DataCorrupted
from raykeeper.schema.answers import RangeAnswer
from raykeeper.schema.operations import Compact, Delete, KeyRange, Put, Range, Sort
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.machine import State
from raykeeper.store.state.mvcc import value_key
from raykeeper.store.state.reads import read_as_of, read_now

LONG = b"x" * 1100
KEY = KeyRange(b"k")


@pytest.mark.parametrize("keys_only", [False, True])
@pytest.mark.parametrize("count_only", [False, True])
def test_both_ways_answer_alike(hand: Hand, keys_only: bool, count_only: bool) -> None:
    hand.run(Put(b"short", b"v"), Put(b"long", LONG), Put(b"empty", b""), Put(b"gone", b"v"))
    hand.run(Put(b"short", b"w"), Delete(KeyRange(b"gone")))
    hand.do(Compact(hand.state.revision))
    for key in (b"short", b"long", b"empty", b"gone", b"never"):
        asked = Range(KeyRange(key), 0, 3, Sort.VALUE, True, keys_only, count_only)
        long_way = read_as_of(
            hand.state._engine, hand.state, asked, page_items=9, page_bytes=1 << 20, max_scanned=1 << 20
        )
        assert hand.state.range(asked, page_items=9, page_bytes=1 << 20) == long_way
        short_way = read_now(hand.state._engine, hand.state, asked)
        assert short_way == (None if key in (b"gone", b"never") else long_way)


def test_what_is_newer_than_the_newest_revision_takes_the_long_way(hand: Hand) -> None:
    """As while a write is on disk, and the revision in memory has not followed."""
    hand.run(Put(b"k", b"old"), Put(b"k", b"new"))
    hand.state.revision -= 1
    assert read_now(hand.state._engine, hand.state, Range(KEY)) is None
    answer = hand.range(KEY)
    assert isinstance(answer, RangeAnswer)
    assert [item.value for item in answer.items] == [b"old"]
    assert answer.revision == hand.state.revision


def test_a_value_that_is_missing_is_damage(hand: Hand) -> None:
    hand.run(Put(b"k", LONG))
    hand.state._engine.write([("values", value_key(b"k", hand.state.revision), None)])
    assert read_now(hand.state._engine, hand.state, Range(KEY)) is None
    with pytest.raises(DataCorrupted):
        hand.range(KEY)
    assert hand.state.damage is not None


def test_one_key_beside_apply_and_compaction(tmp_path: Path) -> None:
    """What a reader sees was the key's at the revision that the answer names, and that never goes back."""
    hand = Hand(State.create(RocksDisk(), str(tmp_path / "s"), FIRST))
    hand.run(Put(b"k", b"%d " % (hand.state.revision + 1)))
    stop = threading.Event()
    problems: list[object] = []
    reads = [0, 0]

    def read(reader: int) -> None:
        try:
            look(reader)
        except BaseException as error:  # also of an assertion: the thread would die unseen
            problems.append(error)

    def look(reader: int) -> None:
        state, last = hand.state, 0
        while not stop.is_set():
            newest = state.revision
            answer = state.range(Range(KEY), page_items=1, page_bytes=1 << 20)
            if not isinstance(answer, RangeAnswer) or not max(newest, last) <= answer.revision:
                problems.append((newest, last, answer))
                return
            last = answer.revision
            for item in answer.items:
                if item.mod_revision > answer.revision or int(item.value.split()[0]) != item.mod_revision:
                    problems.append((answer.revision, item.mod_revision, item.value[:9]))
            if answer.count != len(answer.items):
                problems.append(answer)
            reads[reader] += 1

    readers = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(len(reads))]
    for reader in readers:
        reader.start()
    try:
        until(lambda: all(reads) or problems, what="each reader has read")
        for n in range(300):
            if n % 7 == 6:
                hand.run(Delete(KEY))
            hand.run(Put(b"k", b"%d " % (hand.state.revision + 1) + (LONG if n % 2 else b"")))
            if n % 3 == 0:
                hand.do(Compact(hand.state.revision))
            while hand.state.compact_slice(15):
                pass
    finally:
        stop.set()
        for reader in readers:
            reader.join(PATIENCE)
    assert not problems
    assert all(reads)
    assert not any(reader.is_alive() for reader in readers)
