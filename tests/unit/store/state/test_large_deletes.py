"""One request deletes very many keys: at one revision, in many turns, and nobody ever sees half of it.

The slices are made small here, so that a few hundred keys take as many turns as a hundred thousand do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from lab.store_model import FIRST, Hand
from raykeeper.limits import Limits
from raykeeper.raft.messages import Entry
from raykeeper.schema.answers import DeleteAnswer, Done, Failed, LeaseGranted, RangeAnswer, Reason, TxnAnswer
from raykeeper.schema.commands import Command, ExpireLeases, Expiry
from raykeeper.schema.operations import Delete, KeyRange, LeaseGrant, LeaseRevoke, Operation, Put, Range, Txn
from raykeeper.store.state import executor, unfinished, write_batch
from raykeeper.store.state.history import HistoryQuery
from raykeeper.store.state.machine import State
from raykeeper.store.state.unfinished import MARK
from simulation.disk import SimDisk
from simulation.disk_content import SimCrash

KEYS = KeyRange(b"k", b"l")
COUNT = 120
LONG = 2000
"""Bytes of a value that is stored apart."""


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "DELETE_SLICE_KEYS", 10)
    for module in (write_batch, unfinished):
        monkeypatch.setattr(module, "BATCH_SLICE_WRITES", 20)


def begun(disk: SimDisk) -> Hand:
    """A store with ``COUNT`` keys, each attached to lease 7; some values are long."""
    hand = Hand(State.create(disk, "s", FIRST))
    assert isinstance(hand.do(LeaseGrant(7, 60.0)), LeaseGranted)
    for first in range(0, COUNT, 40):
        hand.run(*(Put(b"k%03d" % n, bytes(LONG if not n % 7 else 3), 7) for n in range(first, first + 40)))
    hand.run(Put(b"other", b"1"))
    hand.state.take_changed_keys()
    return hand


def seen(state: State) -> Any:
    """What readers and watches see, and what a comparison of members does."""
    low = state.revision - 1
    read = state.range(Range(KEYS), page_items=9999, page_bytes=1 << 30)
    past = state.range(Range(KEYS, low), page_items=9999, page_bytes=1 << 30)
    one = state.history(HistoryQuery(KeyRange(b"k007")), 2, state.revision, max_bytes=1 << 30, max_scanned=9999)
    every = state.history(HistoryQuery(KEYS, True), 2, state.revision, max_bytes=1 << 30, max_scanned=9999)
    leases = {lease: state.lease_keys(lease) for lease in (7,)}
    return state.applied_index, state.revision, read, past, one, every, leases, state.content_hash()


def entry_of(hand: Hand, operation: Operation | Command) -> Entry:
    if isinstance(operation, ExpireLeases):
        return hand.entry(operation)
    return hand.entry(hand.writes(operation))  # type: ignore[arg-type]


DELETES: dict[str, Callable[[Hand], Operation | Command]] = {
    "a range": lambda hand: Delete(KEYS),
    "a transaction": lambda hand: Txn((), (Put(b"x", b"y"), Delete(KEYS, True), Put(b"z", b"y"))),
    "a revoke": lambda hand: LeaseRevoke(7),
    "an expiry": lambda hand: ExpireLeases(1, (Expiry(7, hand.state.leases[7].heard),)),
}


@pytest.mark.parametrize("kind", DELETES)
def test_nobody_sees_half_of_it(kind: str) -> None:
    disk = SimDisk()
    hand = begun(disk)
    state, before = hand.state, seen(hand.state)
    entry = entry_of(hand, DELETES[kind](hand))
    turns, copies = 0, []
    while not (answers := state.apply_some([entry])):
        turns += 1
        assert seen(state) == before
        assert state.take_changed_keys() == []
        state.checkpoint(f"copy{turns}")
        copies.append(f"copy{turns}")
    assert turns > COUNT // 10
    after = seen(state)
    assert (after[0], after[1]) == (before[0] + 1, before[1] + 1)
    assert after[2] == RangeAnswer(after[1], (), 0)
    assert after[3].items == before[2].items
    assert len({key for key in state.take_changed_keys() if key[:1] == b"k"}) == COUNT
    for copy in copies:  # as a snapshot or a backup would have it
        opened = State.open(disk, copy)
        assert seen(opened) == before
        assert opened.apply([entry]) == answers
        assert seen(opened) == after
        opened.close()


@pytest.mark.parametrize("kind", DELETES)
def test_a_crash_on_the_way_leaves_all_or_nothing(kind: str) -> None:
    """The machine loses power before any of the writes, and what was written last is lost."""
    rng, found = random.Random(kind), set()
    for fuse in range(1, 200):
        disk = SimDisk()
        hand = begun(disk)
        hand.state.flush()
        before, entry = seen(hand.state), entry_of(hand, DELETES[kind](hand))
        disk.fuse = fuse
        try:
            hand.state.apply([entry])
        except SimCrash:
            pass
        else:
            disk.fuse = None
            disk.crash()
        disk.lose_power(rng)
        disk.restart()
        state = State.open(disk, "s")
        found.add((state.applied_index > before[0], disk.fuse))
        if state.applied_index == before[0]:
            assert seen(state) == before
            assert state._engine.get("meta", MARK) is None
            state.apply([entry])
        assert seen(state)[2] == RangeAnswer(before[1] + 1, (), 0)
        whole = state.content_hash()
        state.close()
        if fuse > 1 and state.applied_index == before[0]:
            break
    assert whole


def test_what_fails_after_a_large_delete_has_no_effect() -> None:
    hand = begun(SimDisk())
    before = seen(hand.state)
    entry = entry_of(hand, Txn((), (Delete(KEYS), LeaseRevoke(8))))
    turns = 0
    while not (answers := hand.state.apply_some([entry])):
        turns += 1
    assert answers[0][0] == Failed(Reason.LEASE_NOT_FOUND, 8)
    assert turns > COUNT // 10
    assert seen(hand.state)[1:7] == before[1:7]
    assert hand.state.leases[7].keys == COUNT
    answer = hand.do(Txn((), (Delete(KEYS), Range(KEYS))))
    assert isinstance(answer, TxnAnswer)
    assert answer.responses[0] == DeleteAnswer(before[1] + 1, COUNT, ())
    assert hand.state.leases[7].keys == 0


def test_entries_before_and_after_it_in_one_call() -> None:
    hand = begun(SimDisk())
    entries = [
        hand.entry(hand.writes(operation), offset)
        for offset, operation in enumerate((Put(b"k1", b"v"), Delete(KEYS), Put(b"k2", b"v"), LeaseRevoke(7)))
    ]
    answers = [answer for (answer,) in hand.state.apply(entries)]
    assert isinstance(answers[1], DeleteAnswer)
    assert answers[1].deleted == COUNT + 1
    assert isinstance(answers[3], Done)
    left = hand.state.range(Range(KEYS), page_items=9999, page_bytes=1 << 30)
    assert isinstance(left, RangeAnswer)
    assert [item.key for item in left.items] == [b"k2"]


def test_the_bounds_are_those_that_etcds_users_need() -> None:
    assert Limits().max_deleted_keys >= 100_000
    assert Limits().max_lease_keys >= 100_000
