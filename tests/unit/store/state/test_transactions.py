"""Transactions as etcd has them: tables of comparisons, what may stand in one, all of it happens or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from lab.store_model import Hand, plain
from raykeeper.schema.answers import (
    DeleteAnswer,
    Done,
    Failed,
    Item,
    LeaseGranted,
    PutAnswer,
    RangeAnswer,
    Reason,
    TxnAnswer,
)
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

EQ, NE, GT, LT = Relation.EQUAL, Relation.NOT_EQUAL, Relation.GREATER, Relation.LESS
ONE, GONE, BOTH, ALL = KeyRange(b"a"), KeyRange(b"zz"), KeyRange(b"a", b"c"), KeyRange(b"", b"")
EMPTY = KeyRange(b"x", b"y")


@pytest.fixture
def filled(hand: Hand) -> Hand:
    """a: put at revisions 2 and 4 under lease 7; b: put at 3."""
    hand.run(LeaseGrant(7, 10.0), Put(b"a", b"old"), Put(b"b", b"m"), Put(b"a", b"m", lease=7))
    return hand


TABLE: list[tuple[KeyRange, Target, Relation, int | bytes, bool]] = [
    (ONE, Target.VERSION, EQ, 2, True),
    (ONE, Target.VERSION, EQ, 1, False),
    (ONE, Target.VERSION, NE, 1, True),
    (ONE, Target.VERSION, NE, 2, False),
    (ONE, Target.VERSION, GT, 1, True),
    (ONE, Target.VERSION, GT, 2, False),
    (ONE, Target.VERSION, LT, 3, True),
    (ONE, Target.VERSION, LT, 2, False),
    (ONE, Target.CREATE_REVISION, EQ, 2, True),
    (ONE, Target.CREATE_REVISION, GT, 2, False),
    (ONE, Target.MOD_REVISION, EQ, 4, True),
    (ONE, Target.MOD_REVISION, LT, 4, False),
    (ONE, Target.LEASE, EQ, 7, True),
    (ONE, Target.LEASE, NE, 7, False),
    (ONE, Target.VALUE, EQ, b"m", True),
    (ONE, Target.VALUE, NE, b"m", False),
    (ONE, Target.VALUE, GT, b"lz", True),
    (ONE, Target.VALUE, LT, b"m\0", True),
    (ONE, Target.VALUE, LT, b"m", False),
    # A range: it must hold for every key.
    (BOTH, Target.VALUE, EQ, b"m", True),
    (BOTH, Target.VERSION, EQ, 2, False),
    (BOTH, Target.VERSION, GT, 0, True),
    (BOTH, Target.LEASE, EQ, 7, False),
    (BOTH, Target.MOD_REVISION, GT, 2, True),
    (BOTH, Target.CREATE_REVISION, LT, 3, False),
    (ALL, Target.VALUE, NE, b"x", True),
    # A key that does not exist is all zeros; its value compares with nothing. So does a range without keys.
    *(
        (keys, *rest)
        for keys in (GONE, EMPTY)
        for rest in [
            (Target.VERSION, EQ, 0, True),
            (Target.VERSION, NE, 0, False),
            (Target.VERSION, LT, 1, True),
            (Target.CREATE_REVISION, EQ, 0, True),
            (Target.MOD_REVISION, GT, 0, False),
            (Target.LEASE, EQ, 0, True),
            (Target.VALUE, EQ, b"", False),
            (Target.VALUE, NE, b"x", False),
            (Target.VALUE, LT, b"x", False),
        ]
    ),
]


@pytest.mark.parametrize(("keys", "target", "relation", "operand", "expected"), TABLE)
def test_comparisons(
    filled: Hand, keys: KeyRange, target: Target, relation: Relation, operand: int | bytes, expected: bool
) -> None:
    answer = filled.do(Txn((TxnCompare(keys, target, relation, operand),)))
    assert answer == TxnAnswer(4, expected, ())


def test_all_comparisons_must_hold(filled: Hand) -> None:
    yes, no = TxnCompare(ONE, Target.VERSION, EQ, 2), TxnCompare(ONE, Target.VERSION, EQ, 3)
    for compare, expected in (((), True), ((yes, yes), True), ((yes, no), False), ((no, yes), False)):
        answer = filled.do(Txn(compare))
        assert isinstance(answer, TxnAnswer)
        assert answer.succeeded is expected


def test_comparisons_are_made_before_anything_happens(hand: Hand) -> None:
    inner = Txn((TxnCompare(ONE, Target.VERSION, EQ, 1),), (Put(b"inner", b"saw it"),), (Put(b"inner", b"did not"),))
    hand.do(Txn((TxnCompare(ONE, Target.VERSION, EQ, 0),), (Put(b"a", b"1"), inner)))
    answer = hand.range(KeyRange(b"inner"))
    assert isinstance(answer, RangeAnswer)
    assert answer.items[0].value == b"did not"


def test_all_effects_share_one_revision_and_reads_see_what_came_before(hand: Hand) -> None:
    hand.do(Put(b"gone", b"x"))
    answer = hand.do(
        Txn(
            (),
            (
                Put(b"a", b"1"),
                Range(ALL),
                Delete(KeyRange(b"gone"), prev=True),
                Put(b"b", b"2", prev=True),
                Range(KeyRange(b"", b""), keys_only=True, limit=1),
                Range(ALL, revision=2, count_only=True),
            ),
        )
    )
    a, gone = Item(b"a", b"1", 3, 3, 1, 0), Item(b"gone", b"x", 2, 2, 1, 0)
    assert answer == TxnAnswer(
        3,
        True,
        (
            PutAnswer(3),
            RangeAnswer(3, (a, gone), 2),
            DeleteAnswer(3, 1, (gone,)),
            PutAnswer(3),
            RangeAnswer(3, (Item(b"a", b"", 3, 3, 1, 0),), 2, True),
            RangeAnswer(3, (), 1),
        ),
    )
    assert hand.state.revision == 3


def test_a_transaction_that_changes_nothing_makes_no_revision(filled: Hand) -> None:
    assert filled.do(Txn((), (Delete(GONE), Range(ALL, count_only=True)))) == TxnAnswer(
        4, True, (DeleteAnswer(4, 0), RangeAnswer(4, (), 2))
    )
    assert filled.state.revision == 4


def txn(*operations: Any, otherwise: tuple[Any, ...] = ()) -> Txn:
    return Txn((), operations, otherwise)


P, D = Put(b"k", b"v"), Delete(KeyRange(b"k"))


@pytest.mark.parametrize(
    ("operation", "valid"),
    [
        (txn(P, Put(b"other", b"v")), True),
        (txn(P, P), False),
        (txn(P, D), False),
        (txn(D, P), False),
        (txn(D, D), True),
        (txn(P, Delete(KeyRange(b"k", b"l"))), False),
        (txn(P, Delete(KeyRange(b"j", b"k"))), True),
        (txn(P, Delete(KeyRange(b"j", b""))), False),
        (txn(P, otherwise=(P,)), True),
        (txn(otherwise=(P, P)), False),
        (txn(P, txn(P)), False),
        (txn(txn(P), P), False),
        (txn(txn(P), txn(P)), False),
        (txn(txn(P), txn(D)), False),
        (txn(txn(P), txn(otherwise=(P,))), False),
        (txn(txn(P, otherwise=(P,))), True),
        (txn(txn(P, otherwise=(D,))), True),
        (txn(txn(P, otherwise=(D,)), P), False),
        (txn(txn(txn(P), otherwise=(P,))), True),
        (txn(txn(txn(P)), P), False),
        (txn(txn(txn(txn(P)))), True),
        (txn(txn(txn(txn(txn(P))))), True),
        (txn(txn(txn(txn(txn(P, P))))), False),
        (Txn((TxnCompare(ONE, Target.VALUE, EQ, 1),)), False),
        (Txn((TxnCompare(ONE, Target.VERSION, EQ, b"1"),)), False),
    ],
)
def test_what_may_stand_in_a_transaction(hand: Hand, operation: Txn, valid: bool) -> None:
    answer = hand.do(operation)
    assert isinstance(answer, TxnAnswer) if valid else plain(answer) == Failed(Reason.INVALID), answer


@pytest.mark.parametrize(
    ("culprit", "reason", "detail"),
    [
        (Put(b"x", b"v", lease=99), Reason.LEASE_NOT_FOUND, 99),
        (Put(b"x", None), Reason.KEY_NOT_FOUND, 0),
        (Range(ALL, revision=9), Reason.FUTURE_REVISION, 4),
        (Range(ALL, revision=2), Reason.COMPACTED, 3),
        (txn(Put(b"x", b"v"), txn(Put(b"y", b"v", lease=99))), Reason.LEASE_NOT_FOUND, 99),
    ],
)
def test_one_failure_undoes_everything(filled: Hand, culprit: Any, reason: Reason, detail: int) -> None:
    filled.do(Compact(3))
    before = filled.range(ALL)
    keys = filled.state.leases[7].keys
    answer = filled.do(txn(Put(b"new", b"v", lease=7), Delete(KeyRange(b"a")), Put(b"b", b"changed", lease=7), culprit))
    assert plain(answer) == Failed(reason, detail)
    assert filled.range(ALL) == before
    assert filled.state.revision == 4
    assert filled.state.leases[7].keys == keys
    # Nothing of it is left in the batch either: what follows in the same entry starts from where it was.
    good, bad, last = filled.run(
        Put(b"new", b"1", prev=True), txn(Put(b"new", b"2"), culprit), Put(b"new", b"3", prev=True)
    )
    assert good == PutAnswer(5)
    assert isinstance(bad, Failed)
    assert isinstance(last, PutAnswer)
    assert last.prev is not None
    assert (last.revision, last.prev.value) == (6, b"1")


def test_a_transaction_over_a_bound_has_no_effect(hand: Hand) -> None:
    hand.configure(max_deleted_keys=10, max_scanned_keys=20, max_txn_operations=5, max_page_bytes=10_000)
    hand.run(*(Put(b"%03d" % n, b"v" * 400) for n in range(30)))
    before = hand.range(ALL)
    for operation in (
        Delete(KeyRange(b"000", b"011")),
        Delete(ALL),
        txn(Put(b"x", b"v"), Delete(KeyRange(b"000", b"011"))),
        txn(Put(b"x", b"v"), Range(KeyRange(b"000", b"021"), count_only=True)),
        txn(Put(b"x", b"v"), Range(KeyRange(b"000", b"020")), Range(KeyRange(b"000", b"020"))),
        txn(*(Put(b"%d" % n, b"v") for n in range(6))),
        Txn((TxnCompare(ALL, Target.VERSION, GT, 0),), (Put(b"x", b"v"),)),
    ):
        assert plain(hand.do(operation)) == Failed(Reason.TOO_LARGE), operation
    assert hand.range(ALL) == before
    assert isinstance(hand.do(Delete(KeyRange(b"000", b"010"), prev=True)), DeleteAnswer)


def test_an_empty_store_is_at_revision_one(hand: Hand) -> None:
    assert hand.state.revision == 1
    assert hand.range(ALL) == RangeAnswer(1, (), 0)
    assert hand.do(Put(b"a", b"")) == PutAnswer(2)
    assert hand.range(ALL) == RangeAnswer(2, (Item(b"a", b"", 2, 2, 1, 0),), 1)


@pytest.mark.parametrize("limit", [0, 1, 2, 4])
def test_items_that_sort_alike_are_in_key_order_either_way(hand: Hand, limit: int) -> None:
    """etcd: its sort is stable, and reads in key order."""
    hand.run(txn(*[Put(key, b"v") for key in (b"d", b"a", b"c")]), Put(b"b", b"v"))
    for descending, expected in ((False, b"acdb"), (True, b"bacd")):
        answer = hand.range(ALL, sort=Sort.MOD_REVISION, descending=descending, limit=limit)
        assert isinstance(answer, RangeAnswer)
        assert b"".join([item.key for item in answer.items]) == expected[: limit or None]


def test_a_deleted_key_starts_anew(hand: Hand) -> None:
    hand.run(Put(b"a", b"1"), Put(b"a", b"2"), Delete(KeyRange(b"a")), Put(b"a", b"3"))
    answer = hand.range(KeyRange(b"a"))
    assert isinstance(answer, RangeAnswer)
    assert answer.items == (Item(b"a", b"3", 5, 5, 1, 0),)


def test_keeping_value_and_lease(filled: Hand) -> None:
    filled.run(Put(b"a", None, lease=KEEP_LEASE), Put(b"b", None, lease=7), Put(b"c", b"x"))
    answer = filled.range(KeyRange(b"a", b"d"))
    assert isinstance(answer, RangeAnswer)
    assert [(item.value, item.version, item.lease) for item in answer.items] == [
        (b"m", 3, 7),
        (b"m", 2, 7),
        (b"x", 1, 0),
    ]
    filled.do(Put(b"a", b"y"))
    assert filled.state.leases[7].keys == 1


@pytest.mark.parametrize("value", [b"x", None])
def test_there_is_no_lease_to_keep_of_a_key_that_is_not_there(filled: Hand, value: bytes | None) -> None:
    """etcd: ErrKeyNotFound for ignore_lease as for ignore_value."""
    put = Put(b"none", value, lease=KEEP_LEASE)
    for operation in (put, Put(b"none", value, KEEP_LEASE, True), txn(Put(b"other", b"1"), put)):
        assert plain(filled.do(operation)) == Failed(Reason.KEY_NOT_FOUND)
    assert filled.range(KeyRange(b"none")).count == filled.range(KeyRange(b"other")).count == 0  # type: ignore[union-attr]
    filled.do(Delete(KeyRange(b"a")))
    assert plain(filled.do(Put(b"a", value, KEEP_LEASE))) == Failed(Reason.KEY_NOT_FOUND)


def test_a_transaction_grants_a_lease_and_uses_it(hand: Hand) -> None:
    taken = hand.do(Txn((), (LeaseGrant(7, 10.0), Put(b"lock", b"me", lease=7))))
    assert isinstance(taken, TxnAnswer)
    assert taken.responses[0] == LeaseGranted(7, 10.0, 1)
    assert hand.state.leases[7].keys == 1
    given_back = hand.do(Txn((), (Put(b"head", b"1"), LeaseRevoke(7))))
    assert given_back == TxnAnswer(3, True, (PutAnswer(3), Done(3)))
    assert not hand.state.leases
    assert hand.range(ALL, keys_only=True).count == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ((LeaseGrant(8, 1.0), Put(b"x", b"", lease=9)), Reason.LEASE_NOT_FOUND),
        ((LeaseRevoke(7), Put(b"x", b"")), Reason.INVALID),
        ((LeaseRevoke(7), Txn((), (Range(ALL),))), Reason.INVALID),
        ((Put(b"new", b"", lease=7), LeaseRevoke(7)), Reason.INVALID),
        ((Put(b"x", b""), LeaseRevoke(7), LeaseRevoke(8)), Reason.LEASE_NOT_FOUND),
        ((LeaseGrant(7, 1.0),), Reason.LEASE_EXISTS),
    ],
)
def test_what_fails_in_a_transaction_undoes_its_grants_and_revocations(
    hand: Hand, operations: tuple[Operation, ...], reason: Reason
) -> None:
    hand.run(LeaseGrant(7, 10.0), Put(b"mine", b"", lease=7))
    before = hand.range(ALL)
    failed = hand.do(Txn((), operations))  # type: ignore[arg-type]
    assert isinstance(failed, Failed)
    assert failed.reason is reason
    assert set(hand.state.leases) == {7}
    assert hand.state.leases[7].keys == 1
    assert hand.range(ALL) == before
    assert isinstance(hand.do(LeaseRevoke(7)), Done)
    assert hand.range(ALL).count == 0  # type: ignore[union-attr]
