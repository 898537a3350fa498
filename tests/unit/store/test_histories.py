"""Random histories: the state machine over RocksDB says at every step, and of every revision, what a dict says."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_model import FIRST, Hand, Model, plain, wipe

from raykeeper.store.commands import (
    KEEP_LEASE,
    Compact,
    Comparison,
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseRevoke,
    Put,
    Range,
    Relation,
    Sort,
    Target,
    Txn,
)
from raykeeper.store.rocks import RocksDisk
from raykeeper.store.state import State

# Bytes that an encoding of keys could trip over.
KEYS = st.sampled_from(
    [b"", b"\0", b"\0\0", b"\0\1", b"\0\xff", b"a", b"a\0", b"a\0\1", b"a\xff", b"b", b"\xff", b"\xff\xff"]
)
VALUES = st.sampled_from([b"", b"1", b"2", b"long" * 300, b"longer" * 300])
LEASES = st.integers(1, 3)
RANGES = st.builds(KeyRange, KEYS, st.none() | st.just(b"") | KEYS)
REVISIONS = st.just(0) | st.integers(0, 12)

PUTS = st.builds(Put, KEYS, VALUES | st.none(), st.just(0) | LEASES | st.just(KEEP_LEASE), st.booleans())
DELETES = st.builds(Delete, RANGES, st.booleans())
READS = st.builds(
    Range,
    RANGES,
    REVISIONS,
    st.just(0) | st.integers(1, 4),
    st.sampled_from(Sort),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


def comparisons() -> st.SearchStrategy[Comparison]:
    numbers = st.builds(
        Comparison,
        RANGES,
        st.sampled_from([t for t in Target if t is not Target.VALUE]),
        st.sampled_from(Relation),
        st.integers(0, 5),
    )
    return numbers | st.builds(Comparison, RANGES, st.just(Target.VALUE), st.sampled_from(Relation), VALUES)


COMPARES = st.lists(comparisons(), max_size=2).map(tuple)
INNER = st.builds(
    Txn, COMPARES, st.lists(PUTS | DELETES | READS, max_size=2).map(tuple), st.lists(PUTS, max_size=2).map(tuple)
)
BRANCH = st.lists(PUTS | PUTS | DELETES | READS | INNER, max_size=3).map(tuple)
OPERATIONS = st.one_of(
    PUTS,
    PUTS,
    PUTS,
    DELETES,
    st.builds(Txn, COMPARES, BRANCH, BRANCH),
    st.builds(Compact, st.integers(1, 12)),
    st.builds(LeaseGrant, LEASES, st.just(10.0)),
    st.builds(LeaseRevoke, LEASES),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("do"), st.lists(OPERATIONS, min_size=1, max_size=4)),
        st.tuples(st.just("do"), st.lists(OPERATIONS, min_size=1, max_size=4)),
        st.tuples(st.just("do"), st.lists(OPERATIONS, min_size=1, max_size=4)),
        st.tuples(st.just("read"), READS),
        st.tuples(st.just("compact"), st.integers(1, 3)),
    ),
    min_size=1,
    max_size=12,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, Any]]:
    """One database for all examples, emptied for each; its folder is in memory if the machine offers that."""
    with tempfile.TemporaryDirectory() as folder:
        disk = RocksDisk()
        state = State.create(disk, f"{folder}/state", FIRST)
        box = {"disk": disk, "path": f"{folder}/state", "state": state}
        yield box
        box["state"].close()


def compare_everything(hand: Hand, model: Model) -> None:
    everything = Range(KeyRange(b"", b""))
    for revision in [*range(max(0, model.compacted - 1), model.revision + 2)]:
        r = Range(everything.keys, revision)
        assert plain(hand.state.range(r, page_items=100, page_bytes=1 << 20)) == model.read(r), revision
    assert hand.state.revision == model.revision
    attached = {id: {k for k, i in model.past[model.revision].items() if i.lease == id} for id in model.leases}
    assert {id: lease.ttl for id, lease in hand.state.leases.items()} == model.leases
    assert {id: lease.keys for id, lease in hand.state.leases.items()} == {id: len(k) for id, k in attached.items()}
    assert {id: set(hand.state._leases.keys(id)) for id in model.leases} == attached


def follow(shared: dict[str, Any], steps: list[tuple[str, Any]], reopen_at: int) -> None:
    hand, model = Hand(wipe(shared["state"]._engine)), Model()
    shared["state"] = hand.state
    for number, (step, argument) in enumerate(steps):
        if number == reopen_at:
            before = hand.state.content_hash()
            if number % 2:
                hand.state.close()
                hand.state = shared["state"] = State.open(shared["disk"], shared["path"])
            else:  # what a crash would leave
                with tempfile.TemporaryDirectory() as left:
                    state = State.open(shared["disk"], shutil.copytree(shared["path"], f"{left}/state"))
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
    history = [key for key, _ in hand.state._engine.iterate("revisions")]
    kept = [revision for revision, _, _ in model.history if revision >= model.compacted]
    assert [int.from_bytes(key[:8], "big") for key in history] == kept


@settings(max_examples=1500)
@given(steps=STEPS)
def test_histories(shared: dict[str, Any], steps: list[tuple[str, Any]]) -> None:
    follow(shared, steps, -1)


@settings(max_examples=300)
@given(steps=STEPS, reopen_at=st.integers(0, 11))
def test_histories_with_the_database_reopened(
    shared: dict[str, Any], steps: list[tuple[str, Any]], reopen_at: int
) -> None:
    follow(shared, steps, min(reopen_at, len(steps) - 1))


@settings(max_examples=150)
@given(batches=st.lists(st.lists(OPERATIONS, max_size=3), min_size=1, max_size=10), cuts=st.sets(st.integers(1, 9)))
def test_how_entries_are_grouped_makes_no_difference(
    shared: dict[str, Any], batches: list[list[Any]], cuts: set[int]
) -> None:
    """Entries applied one by one, and the same in groups: the same answers and the same content."""
    hand = Hand(wipe(shared["state"]._engine))
    shared["state"] = hand.state
    commands = [hand.writes(*batch) for batch in batches]
    entries = [hand.entry(command, offset) for offset, command in enumerate(commands)]
    answers = [hand.state.apply([entry])[0] for entry in entries]
    content = hand.state.content_hash()
    hand = Hand(wipe(hand.state._engine))
    shared["state"] = hand.state
    places = [0, *sorted(cut for cut in cuts if cut < len(entries)), len(entries)]
    grouped = []
    for start, end in pairwise(places):
        grouped += hand.state.apply(entries[start:end])
    assert grouped == answers
    assert hand.state.content_hash() == content
