"""What a member knows of small ranges and of leases with few keys is what its database holds."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lab.store_model import FIRST, Hand
from raykeeper.limits import KNOWN_KEY_BYTES, KNOWN_LEASE_KEYS, SMALL_RANGE_KEYS, SMALL_RANGES
from raykeeper.schema.answers import DeleteAnswer, Failed, RangeAnswer, TxnAnswer
from raykeeper.schema.operations import (
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseRevoke,
    Put,
    Range,
    Relation,
    Target,
    Txn,
    TxnCompare,
)
from raykeeper.store.state.machine import State
from raykeeper.store.state.small_ranges import SmallRanges
from simulation.disk import SimDisk

LINE = KeyRange(b"line/", b"line0")
FIRST_TWO = Range(LINE, limit=2, keys_only=True, uncounted=True)


@pytest.fixture
def hand() -> Hand:
    return Hand(State.create(SimDisk(), "s", FIRST))


@pytest.fixture
def iterations(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the database was iterated, by family."""
    engine, counted = hand.state._engine, Counter[str]()
    original = engine.iterate

    def iterate(family: str, *bounds: bytes | None, reverse: bool = False) -> object:
        counted[family] += 1
        return original(family, *bounds, reverse=reverse)

    monkeypatch.setattr(engine, "iterate", iterate)
    return counted


def found(hand: Hand, keys: KeyRange = LINE) -> list[bytes]:
    """What a transaction finds in a range."""
    answer = hand.do(Txn((), (Range(keys),)))
    assert isinstance(answer, TxnAnswer)
    (listing,) = answer.responses
    assert isinstance(listing, RangeAnswer)
    return [item.key for item in listing.items]


def acquire(hand: Hand, lease: int) -> int:
    """As a lock does; returns the token."""
    key = b"line/%d" % lease
    free = TxnCompare(KeyRange(key), Target.CREATE_REVISION, Relation.EQUAL, 0)
    answer = hand.do(Txn((free,), (LeaseGrant(lease, 10.0), FIRST_TWO, Put(key, b"", lease), Put(b"tail", key, lease))))
    assert isinstance(answer, TxnAnswer)
    assert answer.succeeded
    return answer.revision


def release(hand: Hand, lease: int, token: int) -> bool:
    """As a lock does; whether nobody else was in the line."""
    alone = TxnCompare(LINE, Target.CREATE_REVISION, Relation.EQUAL, token)
    answer = hand.do(Txn((alone,), (LeaseRevoke(lease),), (Put(b"head", b"%d" % token), LeaseRevoke(lease))))
    assert isinstance(answer, TxnAnswer)
    return answer.succeeded


def test_any_changes() -> None:
    rng, known, keys = random.Random(1), SmallRanges(), set[bytes]()
    letters = [b"%02d" % n for n in range(12)]
    hits = 0
    for _ in range(20_000):
        start, end = rng.choice(letters), rng.choice(letters)
        there = sorted(key for key in keys if start <= key < end)
        told = known.keys(start, end)
        hits += told is not None
        assert told is None or told == there
        if rng.random() < 0.3:
            known.remember(start, end, there)
        key = rng.choice(letters)
        if key in keys:
            keys.remove(key)
            known.key_removed(key)
        elif len(keys) < 15:
            keys.add(key)
            known.key_added(key)
        if rng.random() < 0.001:
            known.forget_all()
    assert hits > 100


def test_as_many_as_there_may_be() -> None:
    known = SmallRanges()
    for n in range(SMALL_RANGES + 10):
        known.remember(b"%06d" % n, b"%06d" % (n + 1), [])
    assert known.keys(b"000009", b"000010") is None
    assert known.keys(b"000010", b"000011") == []
    assert known.keys(b"%06d" % (SMALL_RANGES + 9), b"%06d" % (SMALL_RANGES + 10)) == []
    for n in range(SMALL_RANGE_KEYS):
        known.key_added(b"000010%d" % n)
    assert known.keys(b"000010", b"000011") == [b"000010%d" % n for n in range(SMALL_RANGE_KEYS)]
    known.key_added(b"000010x")
    assert known.keys(b"000010", b"000011") is None
    known.remember(b"1", b"2", [b"1%d" % n for n in range(SMALL_RANGE_KEYS + 1)])
    assert known.keys(b"1", b"2") is None


def test_long_keys_are_not_known(hand: Hand) -> None:
    known, long = SmallRanges(), b"1" * (KNOWN_KEY_BYTES + 1)
    for start, end, keys in ((b"1", b"2", [long]), (long, b"2", []), (b"1", long, [])):
        known.remember(start, end, keys)
        assert known.keys(start, end) is None
    known.remember(b"1", b"2", [])
    known.key_added(long)
    assert known.keys(b"1", b"2") is None
    hand.run(LeaseGrant(1, 60.0), Put(b"short", b"", 1))
    assert hand.state._leases.by_id[1].known == (b"short",)
    hand.do(Put(long, b"", 1))
    assert hand.state._leases.by_id[1].known is None
    assert [*hand.state._leases.keys(1)] == [long, b"short"]


def test_a_lock_that_nobody_else_wants_iterates_over_nothing(hand: Hand, iterations: Counter[str]) -> None:
    assert release(hand, 1, acquire(hand, 1))
    iterations.clear()
    for lease in range(2, 50):
        assert release(hand, lease, acquire(hand, lease))
    assert not iterations


def test_contenders_come_and_go(hand: Hand) -> None:
    rng, line = random.Random(2), dict[int, int]()
    for lease in range(1, 400):
        if len(line) < 2 * SMALL_RANGE_KEYS and rng.random() < 0.6:
            line[lease] = acquire(hand, lease)
        elif line:
            gone = rng.choice([*line])
            assert release(hand, gone, line.pop(gone)) is not bool(line)
        assert found(hand) == sorted(b"line/%d" % each for each in line)


def test_what_has_no_effect_is_not_remembered(hand: Hand) -> None:
    hand.do(Put(b"line/a", b""))
    assert found(hand) == [b"line/a"]
    refused = Txn((), (Put(b"line/b", b""), Delete(KeyRange(b"line/a")), Range(LINE), LeaseRevoke(404)))
    assert isinstance(hand.do(refused), Failed)
    assert found(hand) == [b"line/a"]


def test_what_has_changed_while_it_was_looked_at_is_not_remembered(hand: Hand) -> None:
    hand.run(*(Put(b"line/%c" % letter, b"") for letter in b"abc"))
    batch = hand.state._batch
    for change in (Delete(KeyRange(b"line/a")), Put(b"line/d", b"")):
        seen = batch.iterate_keys(b"line/", b"line0")
        next(seen)
        hand.do(change)
        assert [*seen]
        assert batch.small_ranges.keys(b"line/", b"line0") is None
    assert found(hand) == [b"line/b", b"line/c", b"line/d"]


def test_a_transaction_finds_what_it_has_done(hand: Hand) -> None:
    hand.run(Put(b"line/a", b""), Put(b"line/b", b""))
    assert found(hand) == [b"line/a", b"line/b"]
    answer = hand.do(Txn((), (Delete(KeyRange(b"line/a")), Put(b"line/c", b""), Range(LINE), Delete(LINE))))
    assert isinstance(answer, Failed)  # it would put and delete a key
    answer = hand.do(Txn((), (Delete(KeyRange(b"line/a")), Put(b"line/c", b""), Range(LINE))))
    assert isinstance(answer, TxnAnswer)
    listing = answer.responses[2]
    assert isinstance(listing, RangeAnswer)
    assert [item.key for item in listing.items] == [b"line/b", b"line/c"]
    deleted = hand.do(Delete(LINE))
    assert isinstance(deleted, DeleteAnswer)
    assert deleted.deleted == 2
    assert found(hand) == []


def test_a_bound_does_not_depend_on_what_is_known() -> None:
    """Keys that the same command has deleted count, whether or not a member has to pass over them."""
    hands = [Hand(State.create(SimDisk(), "s", FIRST)) for _ in range(2)]
    names = [b"line/%d" % n for n in range(6)]
    for hand in hands:
        hand.configure(max_scanned_keys=4, max_deleted_keys=4)
        hand.run(*(Put(name, b"") for name in names[:3]))
        assert found(hand) == names[:3]
        hand.run(*(Put(name, b"") for name in names[3:]))
    hands[1].state._batch.small_ranges.forget_all()
    for hand in hands:
        *_, answer = hand.run(*(Delete(KeyRange(name)) for name in names), Txn((), (Range(LINE),)))
        assert isinstance(answer, Failed)
        assert found(hand) == []
    assert hands[0].state.content_hash() == hands[1].state.content_hash()


def test_leases_with_few_keys_and_with_many() -> None:
    """Keys are attached and detached, transactions fail, the state is opened again: what is known is what is stored."""
    disk, rng = SimDisk(), random.Random(3)
    hand = Hand(State.create(disk, "s", FIRST))
    names = [b"%c" % letter for letter in b"abcdefghijklmnopqrst"]
    hand.run(LeaseGrant(1, 60.0), LeaseGrant(2, 60.0))
    known = 0
    for step in range(600):
        key = rng.choice(names)
        change = rng.choice([*[Put(key, b"", lease) for lease in (0, 1, 2)], Delete(KeyRange(key))])
        if rng.random() < 0.3:
            assert isinstance(hand.do(Txn((), (change, LeaseRevoke(404)))), Failed)
        else:
            hand.do(change)
        if step % 100 == 50:
            hand.do(LeaseRevoke(1))
            hand.do(LeaseGrant(1, 60.0))
        if step % 100 == 99:
            hand.state.flush()
            hand.state.close()
            hand.state = State.open(disk, "s")
        for lease, record in hand.state._leases.by_id.items():
            stored = hand.state.lease_keys(lease)
            assert [*hand.state._leases.keys(lease)] == stored
            assert record.keys == len(stored)
            assert record.known is None or len(record.known) <= KNOWN_LEASE_KEYS
            known += record.known is not None
    assert 100 < known < 1100
