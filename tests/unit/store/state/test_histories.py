"""Random histories: the state machine over RocksDB says at every step, and of every revision, what a dict says."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.store_model import FIRST, Hand, Model, inside, plain, wipe
from raykeeper.schema.answers import Item
from raykeeper.schema.operations import (
    KEEP_LEASE,
    Compact,
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Relation,
    Sort,
    Target,
    Txn,
    TxnCompare,
)
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state import ranges
from raykeeper.store.state.history import Changes, HistoryQuery, KeyChange
from raykeeper.store.state.machine import State

# Bytes that an encoding of keys could trip over.
KEYS = [b"", b"\0", b"\0\0", b"\0\1", b"\0\xff", b"a", b"a\0", b"a\0\1", b"a\xff", b"b", b"\xff", b"\xff\xff"]
VALUES = [b"", b"1", b"2", b"long" * 300, b"longer" * 300]
NUMBERS = [target for target in Target if target is not Target.VALUE]


class Pool:
    """Operations of every kind, many of each. Hypothesis picks from them: drawing each part of each would take longer
    than running it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def keys(self) -> KeyRange:
        end = self.rng.choice([None, b"", self.rng.choice(KEYS)])
        return KeyRange(self.rng.choice(KEYS), end)

    def put(self) -> Put:
        rng = self.rng
        lease = rng.choice([0, 0, KEEP_LEASE, 1, 2, 3])
        return Put(rng.choice(KEYS), rng.choice([*VALUES, None]), lease, rng.random() < 0.5)

    def delete(self) -> Delete:
        return Delete(self.keys(), self.rng.random() < 0.5)

    def read(self) -> Range:
        rng = self.rng
        revision = rng.choice([0, rng.randint(1, 12)])
        flags = [rng.random() < 0.3 for _ in range(3)]
        return Range(self.keys(), revision, rng.choice([0, 1, 2, 3]), rng.choice(list(Sort)), *flags)

    def comparison(self) -> TxnCompare:
        rng = self.rng
        relation = rng.choice(list(Relation))
        if rng.random() < 0.3:
            return TxnCompare(self.keys(), Target.VALUE, relation, rng.choice(VALUES))
        return TxnCompare(self.keys(), rng.choice(NUMBERS), relation, rng.randint(0, 5))

    def txn(self, depth: int = 0) -> Txn:
        kinds: list[Callable[[], Any]] = [self.put, self.put, self.delete, self.read, self.lease]
        if depth < 2:
            kinds.append(lambda: self.txn(depth + 1))
        compare, success, failure = (self.rng.randint(0, 2) for _ in range(3))
        return Txn(
            tuple(self.comparison() for _ in range(compare)),
            tuple(self.rng.choice(kinds)() for _ in range(success + 1)),
            tuple(self.rng.choice(kinds)() for _ in range(failure)),
        )

    def lease(self) -> LeaseGrant | LeaseRevoke:
        rng = self.rng
        return LeaseGrant(rng.randint(1, 3), 10.0) if rng.random() < 0.4 else LeaseRevoke(rng.randint(1, 3))

    def operation(self) -> Operation:
        rng = self.rng
        kind = rng.randrange(12)
        if kind < 5:
            return self.put()
        if kind < 7:
            return self.delete()
        if kind < 10:
            return self.txn()
        return rng.choice([Compact(rng.randint(1, 12)), self.lease(), self.lease()])


POOL = Pool(1)
OPERATIONS = st.sampled_from([POOL.operation() for _ in range(3000)])
READS = st.sampled_from([POOL.read() for _ in range(1000)])
DO = st.tuples(st.just("do"), st.lists(OPERATIONS, min_size=1, max_size=4))
STEPS = st.lists(
    st.one_of(DO, DO, DO, st.tuples(st.just("read"), READS), st.tuples(st.just("compact"), st.integers(1, 3))),
    min_size=1,
    max_size=12,
)


class Shared:
    """One database for many examples, emptied for each, and made again before its tombstones are felt."""

    def __init__(self, folder: str) -> None:
        self.disk = RocksDisk()
        self.folder = folder
        self.uses = 0
        self.state = State.create(self.disk, self.path, FIRST)

    @property
    def path(self) -> str:
        return f"{self.folder}/state{self.uses // 100}"

    def fresh(self) -> State:
        before = self.path
        self.uses += 1
        if self.path == before:
            self.state = wipe(self.state._engine)
        else:
            self.state.close()
            self.disk.remove(before)
            self.state = State.create(self.disk, self.path, FIRST)
        return self.state

    def reopen(self) -> State:
        self.state.close()
        self.state = State.open(self.disk, self.path)
        return self.state


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(folder)
        yield shared
        shared.state.close()


EVERYTHING = KeyRange(b"", b"")


def compare_everything(hand: Hand, model: Model) -> None:
    for revision in [*range(max(0, model.compacted - 1), model.revision + 2)]:
        r = Range(EVERYTHING, revision)
        expected = model.read(r)
        assert plain(hand.state.range(r, page_items=100, page_bytes=1 << 20)) == expected, revision
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranges, "PAST_CHANGES", 0)
            assert plain(hand.state.range(r, page_items=100, page_bytes=1 << 20)) == expected, revision
    compare_changes(hand, model)
    assert hand.state.revision == model.revision
    attached = {id: {k for k, i in model.past[model.revision].items() if i.lease == id} for id in model.leases}
    assert {id: lease.ttl for id, lease in hand.state.leases.items()} == model.leases
    assert {id: lease.keys for id, lease in hand.state.leases.items()} == {id: len(k) for id, k in attached.items()}
    assert {id: set(hand.state._leases.keys(id)) for id in model.leases} == attached


def compare_changes(hand: Hand, model: Model) -> None:
    for low in {max(1, model.compacted), (model.compacted + model.revision) // 2, model.revision}:
        for keys in (EVERYTHING, *(KeyRange(key) for key in KEYS)):
            expected = []
            for revision, key, deleted in model.history:
                if revision >= low and inside(key, keys):
                    item = Item(key, b"", 0, revision, 0, 0) if deleted else model.past[revision][key]
                    prev = model.past[revision - 1].get(key) if revision > model.compacted else None
                    expected.append(KeyChange(deleted, item, prev))
            wanted = HistoryQuery(keys, prev=True)
            found = hand.state.history(wanted, low, model.revision, max_bytes=1 << 20, max_scanned=1 << 20)
            assert isinstance(found, Changes)
            assert found.changes == expected, (low, keys)


def follow(shared: Shared, steps: list[tuple[str, Any]], reopen_at: int) -> None:
    hand, model = Hand(shared.fresh()), Model()
    for number, (step, argument) in enumerate(steps):
        if number == reopen_at:
            before = hand.state.content_hash()
            if number % 2:
                hand.state = shared.reopen()
            else:  # what a crash just after a flush would leave
                with tempfile.TemporaryDirectory() as left:
                    hand.state.checkpoint(f"{left}/state")
                    state = State.open(shared.disk, f"{left}/state")
                    assert state.content_hash() == before
                    state.close()
            assert hand.state.content_hash() == before
        if step == "do":
            expected = [plain(model.do(operation)) for operation in argument]
            assert [plain(answer) for answer in hand.run(*argument)] == expected
        elif step == "read":
            assert plain(hand.state.range(argument, page_items=100, page_bytes=1 << 20)) == model.read(argument)
        else:
            before = hand.state.content_hash()
            hand.state.compact_slice(argument)
            assert hand.state.content_hash() == before
    compare_everything(hand, model)
    before = hand.state.content_hash()
    while hand.state.compact_slice(2):
        pass
    assert hand.state.content_hash() == before
    compare_everything(hand, model)
    history = [key for key, _ in hand.state._engine.iterate("history")]
    kept = [revision for revision, _, _ in model.history if revision >= model.compacted]
    assert [int.from_bytes(key[:8], "big") for key in history] == kept


@settings(max_examples=1000)
@given(steps=STEPS)
def test_histories(shared: Shared, steps: list[tuple[str, Any]]) -> None:
    follow(shared, steps, -1)


@settings(max_examples=120)
@given(steps=STEPS, reopen_at=st.integers(0, 11))
def test_histories_with_the_database_reopened(shared: Shared, steps: list[tuple[str, Any]], reopen_at: int) -> None:
    follow(shared, steps, min(reopen_at, len(steps) - 1))


@settings(max_examples=150)
@given(batches=st.lists(st.lists(OPERATIONS, max_size=3), min_size=1, max_size=10), cuts=st.sets(st.integers(1, 9)))
def test_how_entries_are_grouped_makes_no_difference(shared: Shared, batches: list[list[Any]], cuts: set[int]) -> None:
    """Entries applied one by one, and the same in groups: the same answers and the same content."""
    hand = Hand(shared.fresh())
    commands = [hand.writes(*batch) for batch in batches]
    entries = [hand.entry(command, offset) for offset, command in enumerate(commands)]
    answers = [hand.state.apply([entry])[0] for entry in entries]
    content = hand.state.content_hash()
    hand = Hand(shared.fresh())
    places = [0, *sorted(cut for cut in cuts if cut < len(entries)), len(entries)]
    grouped = []
    for start, end in pairwise(places):
        grouped += hand.state.apply(entries[start:end])
    assert grouped == answers
    assert hand.state.content_hash() == content
