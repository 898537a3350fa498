"""What a request must be like before anything happens."""

import pytest

from raykeeper.errors import InvalidArgument, RequestTooLarge
from raykeeper.limits import Limits
from raykeeper.schema.operations import (
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
        (nested(3), 2),
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
        (Put(b"k", b"v", lease=-2), InvalidArgument),
        (Delete(KeyRange(b"a", b"b" * 9)), RequestTooLarge),
        (Txn(success=(ONE,) * 5), RequestTooLarge),
        (Txn(success=(ONE, ONE), failure=(ONE, ONE, ONE)), RequestTooLarge),
        (nested(4), RequestTooLarge),
        (Txn(success=(Put(b"a", b"v" * 512), Put(b"b", b"v" * 512))), RequestTooLarge),
        (Txn(compare=(TxnCompare(KeyRange(b"a"), Target.VALUE, Relation.EQUAL, 3),)), InvalidArgument),
        (Txn(compare=(TxnCompare(KeyRange(b"a"), Target.VERSION, Relation.EQUAL, b"3"),)), InvalidArgument),
        (Compact(0), InvalidArgument),
        (LeaseGrant(0, 0.0), InvalidArgument),
        (LeaseGrant(0, float("inf")), InvalidArgument),
        (LeaseGrant(0, float("nan")), InvalidArgument),
        (LeaseRevoke(0), InvalidArgument),
    ],
)
def test_bad_operations_and_their_error(operation, error):
    with pytest.raises(error):
        check_operation(operation, LIMITS)


def test_reads():
    assert check_range(Range(KeyRange(b"a", b"b")), LIMITS) == 2
    with pytest.raises(InvalidArgument):
        check_range(Range(KeyRange(b"a"), limit=-1), LIMITS)
    with pytest.raises(InvalidArgument):
        check_range(Range(KeyRange(b"a"), revision=-1), LIMITS)
