"""The past of a key is found in few steps, however often the key was put and deleted since."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lab.store_model import FIRST, Hand
from raykeeper.errors import DataCorrupted
from raykeeper.schema.answers import Item, RangeAnswer
from raykeeper.schema.operations import Delete, KeyRange, Put, Range, Txn
from raykeeper.store.state.history import Changes, HistoryQuery
from raykeeper.store.state.machine import State
from raykeeper.store.state.mvcc import change_key
from simulation.disk import SimDisk

KEY = KeyRange(b"k")
OFTEN = 1000


@pytest.fixture
def hand() -> Hand:
    return Hand(State.create(SimDisk(), "s", FIRST))


@pytest.fixture
def looks(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often single records were read, by family."""
    engine, counted = hand.state._engine, Counter[str]()
    original = engine.get

    def get(family: str, key: bytes) -> bytes | None:
        counted[family] += 1
        return original(family, key)

    monkeypatch.setattr(engine, "get", get)
    return counted


def put_often(hand: Hand) -> int:
    """Put the key ``OFTEN`` times, each with its number from 1 on, among changes of other keys. Returns the revision
    before the first."""
    first = hand.state.revision
    for n in range(0, OFTEN, 100):
        hand.run(*(Txn((), (Put(b"j", b""), Put(b"k", b"%d" % (n + m + 1)), Put(b"l", b""))) for m in range(100)))
    return first


def at(hand: Hand, revision: int) -> Item | None:
    answer = hand.range(KEY, revision=revision)
    assert isinstance(answer, RangeAnswer)
    return answer.items[0] if answer.items else None


def test_a_revision_is_found_in_few_steps(hand: Hand, looks: Counter[str]) -> None:
    before = put_often(hand)
    for version in (*range(1, 70), *range(480, 540), *range(OFTEN - 70, OFTEN + 1)):
        looks.clear()
        item = at(hand, before + version)
        assert item == Item(b"k", b"%d" % version, before + 1, before + version, version, 0)
        assert looks["history"] <= OFTEN.bit_length()
    assert at(hand, before) is None


def test_the_changes_of_a_key_cost_the_same_however_many_follow(hand: Hand, looks: Counter[str]) -> None:
    before = put_often(hand)
    for low in (1, 2, 3, 7, 8, 500, 511, 512, 513, OFTEN - 1, OFTEN):
        looks.clear()
        found = hand.state.history(HistoryQuery(KEY), before + low, before + OFTEN, max_bytes=1 << 30, max_scanned=1)
        assert isinstance(found, Changes)
        assert [change.item.version for change in found.changes] == [*range(low, OFTEN + 1)]
        assert looks["history"] <= 2 * len(found.changes) + OFTEN.bit_length()
    looks.clear()
    found = hand.state.history(HistoryQuery(KEY), before + 5, before + OFTEN, max_bytes=400, max_scanned=1)
    assert isinstance(found, Changes)
    versions = [change.item.version for change in found.changes]
    assert (versions, found.upto) == ([*range(5, 5 + len(versions))], before + 4 + len(versions))
    assert 5 < len(versions) < 12
    assert looks["history"] < 50


def test_a_key_that_came_and_went_is_found_by_its_deletions(hand: Hand, looks: Counter[str]) -> None:
    rng = random.Random(1)
    expected: list[Item | None] = [None] * (hand.state.revision + 1)
    for n in range(300):
        now = expected[-1]
        if now is not None and rng.random() < 0.4:
            hand.run(Delete(KEY))
            expected.append(None)
            continue
        hand.run(Put(b"k", b"%d" % n * (1 if n % 3 else 700)))
        revision = len(expected)
        create, version = (now.create_revision, now.version + 1) if now else (revision, 1)
        expected.append(Item(b"k", b"%d" % n * (1 if n % 3 else 700), create, revision, version, 0))
    for revision, item in enumerate(expected):
        looks.clear()
        assert revision == 0 or at(hand, revision) == item
        assert looks["history"] <= 6
    for low in range(2, len(expected), 17):
        found = hand.state.history(HistoryQuery(KEY), low, hand.state.revision, max_bytes=1 << 30, max_scanned=1)
        assert isinstance(found, Changes)
        for change, item in zip(found.changes, expected[low:], strict=True):
            assert change.deleted is (item is None)
            assert item is None or change.item == item


def test_a_change_that_is_missing_from_the_history_is_damage(hand: Hand) -> None:
    before = put_often(hand)
    hand.state._engine.write([("history", change_key(before + 900, b"k"), None)])
    with pytest.raises(DataCorrupted):
        hand.state.range(Range(KEY, before + 899), page_items=1, page_bytes=1)
    with pytest.raises(DataCorrupted):
        hand.state.history(HistoryQuery(KEY), before + 890, before + 910, max_bytes=1 << 30, max_scanned=1)
