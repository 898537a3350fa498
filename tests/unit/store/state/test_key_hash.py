"""The hash of all versions of the keys: the same on members with the same content, and no other."""

from __future__ import annotations

import random

import pytest

from lab.store_model import FIRST, Hand
from raykeeper.schema.answers import Failed, Reason
from raykeeper.schema.operations import Compact, Delete, KeyRange, LeaseGrant, Operation, Put
from raykeeper.store.state import key_hash
from raykeeper.store.state.key_hash import KeyHash, hash_keys
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_hash, "HASH_SLICE_RECORDS", 3)


def made(*operations: Operation) -> Hand:
    hand = Hand(State.create(SimDisk(), "s", FIRST))
    for operation in operations:
        hand.do(operation)
    return hand


def found(hand: Hand, revision: int = 0) -> KeyHash:
    answer = hash_keys(hand.state, revision)
    assert isinstance(answer, KeyHash)
    return answer


def drawn(rng: random.Random) -> Operation:
    key = b"%d" % rng.randrange(6)
    if rng.random() < 0.2:
        return Delete(KeyRange(key, rng.choice((None, b"5"))))
    return Put(key, bytes(rng.choice((0, 5, 1500))) + b"%d" % rng.randrange(1000), rng.choice((0, 0, 7)))


def test_it_depends_on_neither_what_came_after_nor_how_far_removal_has_come() -> None:
    rng = random.Random(3)
    one, other = made(LeaseGrant(7, 60.0)), made(LeaseGrant(7, 60.0))
    hashes: dict[int, KeyHash] = {}
    for _ in range(80):
        operation = drawn(rng)
        one.do(operation)
        other.do(operation)
        hashes[one.state.revision] = found(one)
        assert found(other) == found(one)
    assert len({each.hash for each in hashes.values()}) == len(hashes)
    assert {revision: found(one, revision) for revision in hashes} == hashes
    middle = sorted(hashes)[len(hashes) // 2]
    for hand in (one, other):
        hand.do(Compact(middle))
    while one.state.compact_slice(2):
        pass
    for revision in hashes:
        if revision < middle:
            assert hash_keys(one.state, revision) == Failed(Reason.COMPACTED, middle)
        else:
            assert found(one, revision) == found(other, revision)
            assert found(one, revision).compact_revision == middle
            assert found(one, revision).hash != hashes[revision].hash
    assert hash_keys(one.state, one.state.revision + 1) == Failed(Reason.FUTURE_REVISION, one.state.revision)


@pytest.mark.parametrize(
    "other",
    [
        (Put(b"a", b"1"), Put(b"a", b"2"), Put(b"b", b"4")),
        (Put(b"a", b"0"), Put(b"a", b"2"), Put(b"b", b"3")),
        (Put(b"a", bytes(2000)), Put(b"a", b"2"), Put(b"b", b"3")),
        (Put(b"b", b"3"), Put(b"a", b"1"), Put(b"a", b"2")),
        (Put(b"a", b"1"), Delete(KeyRange(b"a")), Put(b"b", b"3")),
    ],
    ids=["a value", "an older value", "a long older value", "another order", "a deletion"],
)
def test_every_version_counts(other: tuple[Operation, ...]) -> None:
    assert found(made(Put(b"a", b"1"), Put(b"a", b"2"), Put(b"b", b"3"))).hash != found(made(*other)).hash


def test_compaction_in_the_middle_makes_it_begin_again() -> None:
    hand = made(*(Put(b"k%d" % (n % 9), bytes(1500 if n % 2 else 2)) for n in range(60)))
    slices = 0

    def throttle() -> None:
        nonlocal slices
        slices += 1
        if slices == 4:
            hand.do(Compact(50))
            while hand.state.compact_slice(100):
                pass

    answer = hash_keys(hand.state, 0, throttle)
    assert answer == found(hand)
    assert isinstance(answer, KeyHash)
    assert answer.compact_revision == 50
    slices = 0
    hand.do(Put(b"x", b"y"))

    def once() -> None:
        nonlocal slices
        slices += 1
        if slices == 2:
            hand.do(Compact(60))
            while hand.state.compact_slice(100):
                pass

    assert hash_keys(hand.state, 55, once) == Failed(Reason.COMPACTED, 60)


def test_one_who_has_waited_enough_gives_up() -> None:
    hand = made(*(Put(b"k%d" % n, b"v") for n in range(20)))

    def give_up() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        hash_keys(hand.state, 0, give_up)
