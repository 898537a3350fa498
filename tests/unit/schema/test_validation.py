"""What a request must be like before anything happens."""

import pytest

from raykeeper.errors import InvalidArgument, RequestTooLarge
from raykeeper.limits import MAX_NESTED_TXNS, TXN_TOTAL_FACTOR, Limits
from raykeeper.schema.operations import (
    KEEP_LEASE,
    Compact,
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
from raykeeper.schema.validation import check_operation, check_range

LIMITS = Limits(max_key_bytes=8, max_request_bytes=1024, max_txn_operations=4)
ONE = Put(b"k", b"v")
HOLDS = TxnCompare(KeyRange(b"k"), Target.VERSION, Relation.EQUAL, 0)
FULL = Txn(failure=(ONE, ONE), success=(ONE, ONE))
"""Two of them fit into an outer one, which leaves them two operations each; four are too many in all."""


def nested(depth):
    txn = Txn(success=(ONE,))
    for _ in range(depth):
        txn = Txn(success=(txn,))
    return txn


@pytest.mark.parametrize(
    ("operation", "size"),
    [
        (Put(b"key", b"value"), 8),
        (Put(b"key", None), 3),
        (Delete(KeyRange(b"a", b"bb")), 3),
        (Txn(compare=(TxnCompare(KeyRange(b"a"), Target.VALUE, Relation.EQUAL, b"xy"),), success=(ONE,)), 5),
        (Txn(success=(ONE,), failure=(ONE, ONE, ONE)), 8),
        (Txn(compare=(HOLDS,) * 4, success=(ONE,) * 4, failure=(ONE,) * 4), 20),
        (Txn(success=(Txn(success=(ONE, ONE)), Txn(failure=(ONE, ONE)))), 8),
        (nested(3), 2),
        (Put(b"k", b"v", lease=KEEP_LEASE), 2),
        (Put(b"k", b"v", lease=-(1 << 63)), 2),
        (LeaseGrant(-1, 9e9), 0),
        (LeaseRevoke(-(1 << 63)), 0),
        (Compact(1), 0),
        (LeaseGrant(0, 5.0), 0),
    ],
)
def test_good_operations_and_their_size(operation, size):
    assert check_operation(operation, LIMITS) == size


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (Put(b"k" * 9, b""), RequestTooLarge),
        (Put(b"k", b"v" * 1024), RequestTooLarge),
        (Put(b"k", b"v", lease=-(1 << 63) - 1), InvalidArgument),
        (Put(b"k", b"v", lease=1 << 63), InvalidArgument),
        (Delete(KeyRange(b"a", b"b" * 9)), RequestTooLarge),
        (Txn(success=(ONE,) * 5), RequestTooLarge),
        (Txn(compare=(HOLDS,) * 5), RequestTooLarge),
        (Txn(success=(ONE, ONE, Txn(success=(ONE, ONE, ONE)))), RequestTooLarge),
        (Txn(success=(FULL, FULL), failure=(FULL, FULL)), RequestTooLarge),
        (nested(4), RequestTooLarge),
        (Txn(success=(Put(b"a", b"v" * 512), Put(b"b", b"v" * 512))), RequestTooLarge),
        (Txn(compare=(TxnCompare(KeyRange(b"a"), Target.VALUE, Relation.EQUAL, 3),)), InvalidArgument),
        (Txn(compare=(TxnCompare(KeyRange(b"a"), Target.VERSION, Relation.EQUAL, b"3"),)), InvalidArgument),
        (Compact(0), InvalidArgument),
        (LeaseGrant(0, 0.0), InvalidArgument),
        (LeaseGrant(0, float("inf")), InvalidArgument),
        (LeaseGrant(0, float("nan")), InvalidArgument),
        (LeaseGrant(1 << 63, 1.0), InvalidArgument),
        (LeaseRevoke(0), InvalidArgument),
    ],
)
def test_bad_operations_and_their_error(operation, error):
    with pytest.raises(error):
        check_operation(operation, LIMITS)


def test_as_many_operations_as_etcd_allows():
    """etcd: checkTxnRequest, which counts the longest list of a transaction and grants nested ones the rest."""
    limits = Limits()
    most = limits.max_txn_operations
    check_operation(Txn((HOLDS,) * most, (ONE,) * most, (ONE,) * most), limits)
    check_operation(nested(most - 1), limits)
    for too_large in (
        nested(most),
        Txn((HOLDS,) * (most + 1)),
        Txn(success=(Txn(), *(ONE,) * (most - 1), Txn(success=(ONE,)))),
    ):
        with pytest.raises(RequestTooLarge):
            check_operation(too_large, limits)
    with pytest.raises(RequestTooLarge):
        check_operation(nested(MAX_NESTED_TXNS + 1), Limits(max_txn_operations=1000))
    wide = Txn(success=(Txn(success=(ONE,) * (most // 2)),) * (most // 2))
    assert TXN_TOTAL_FACTOR * most < most * most // 4
    with pytest.raises(RequestTooLarge):
        check_operation(wide, limits)


def test_reads():
    assert check_range(Range(KeyRange(b"a", b"b")), LIMITS) == 2
    with pytest.raises(InvalidArgument):
        check_range(Range(KeyRange(b"a"), limit=-1), LIMITS)
    with pytest.raises(InvalidArgument):
        check_range(Range(KeyRange(b"a"), revision=-1), LIMITS)
