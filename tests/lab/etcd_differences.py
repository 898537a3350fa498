"""Where a proxy's answer may differ from etcd's: one list, each entry with its reason.

Everything else that the two are asked is answered alike, field by field and text by text (``lab/etcd_twins.py``). The
page docs/architecture/etcd-services.md tells users the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raykeeper.actors.proxy.etcdpb.rpc_pb2 import CompactionRequest, Compare, RequestOp, TxnRequest

Failure = tuple[int, str]
Answer = dict[str, Any] | Failure
"""As ``Side.relative`` gives it."""

COMPACTED = (11, "etcdserver: mvcc: required revision has been compacted")
DUPLICATE = (3, "etcdserver: duplicate key given in txn request")
INSIDE_A_TXN = {
    (3, "etcdserver: key not found"),
    (5, "etcdserver: requested lease not found"),
    COMPACTED,
    (11, "etcdserver: mvcc: required revision is a future revision"),
}
"""What operations of a transaction fail with when it is applied."""


@dataclass(frozen=True)
class Difference:
    """One of them.

    Attributes:
        reason: why.
        holds: whether it explains these answers to a request, etcd's and ours.
        apart: from then on the two stores hold different things.
    """

    reason: str
    holds: Callable[[Any, Answer, Answer], bool]
    apart: bool = True


def parts(txn: TxnRequest, nested: bool = False) -> Iterator[tuple[RequestOp, bool]]:
    """All operations of a transaction, each with whether it is in one inside another."""
    for each in (*txn.success, *txn.failure):
        yield each, nested
        if each.HasField("request_txn"):
            yield from parts(each.request_txn, True)


def compares(txn: TxnRequest) -> Iterator[Compare]:
    """All comparisons."""
    yield from txn.compare
    for each, _ in parts(txn):
        if each.HasField("request_txn"):
            yield from each.request_txn.compare


def _several_failures(request: Any, theirs: Answer, ours: Answer) -> bool:
    both = isinstance(theirs, tuple) and isinstance(ours, tuple) and {theirs, ours} <= INSIDE_A_TXN
    return both and isinstance(request, TxnRequest)


def _duplicate_overlooked(request: Any, theirs: Answer, ours: Answer) -> bool:
    return (
        isinstance(request, TxnRequest)
        and ours == DUPLICATE
        and any(
            each.HasField("request_delete_range") and (nested or each.request_delete_range.range_end == b"\0")
            for each, nested in parts(request)
        )
    )


def _negative_revision(request: Any, theirs: Answer, ours: Answer) -> bool:
    return (
        isinstance(request, TxnRequest)
        and theirs == COMPACTED
        and any(each.HasField("request_range") and each.request_range.revision < 0 for each, _ in parts(request))
    )


def _unknown_comparison(request: Any, theirs: Answer, ours: Answer) -> bool:
    return (
        isinstance(request, TxnRequest)
        and ours == (3, "etcdserver: invalid compare")
        and any(not 0 <= each.result <= 3 or not 0 <= each.target <= 4 for each in compares(request))
    )


def _long_key(request: Any, theirs: Answer, ours: Answer) -> bool:
    return ours == (3, "etcdserver: request is too large") and b"k" * 17_000 in request.SerializeToString()


def _compaction_at_zero(request: Any, theirs: Answer, ours: Answer) -> bool:
    return isinstance(request, CompactionRequest) and request.revision == 0 and theirs == COMPACTED


def _unreadable(request: Any, theirs: Answer, ours: Answer) -> bool:
    return all(isinstance(each, tuple) and each[0] == 13 and each[1].startswith(UNREADABLE) for each in (theirs, ours))


def _wire_type(request: Any, theirs: Answer, ours: Answer) -> bool:
    return isinstance(theirs, tuple) and theirs[1].startswith(f"{UNREADABLE}proto: wrong wireType")


def _utf8(request: Any, theirs: Answer, ours: Answer) -> bool:
    return isinstance(ours, tuple) and ours[1].startswith(UNREADABLE) and "UTF-8" in ours[1]


def _no_method_name(request: Any, theirs: Answer, ours: Answer) -> bool:
    both = isinstance(theirs, tuple) and isinstance(ours, tuple) and theirs[1] == ours[1]
    return both and theirs[1].startswith("malformed method name: ") and (theirs[0], ours[0]) == (8, 12)


def _unknown_order(request: Any, theirs: Answer, ours: Answer) -> bool:
    return isinstance(theirs, dict) and ours == (3, "etcdserver: invalid sort option")


UNREADABLE = "grpc: error unmarshalling request: "

DIFFERENCES = (
    Difference(
        "If several operations of a transaction fail, etcd names what is wrong with the puts before what is wrong with "
        "ranges, and a missing key before a missing lease. The state machine names what comes first: it goes through "
        "them once.",
        _several_failures,
        apart=False,
    ),
    Difference(
        "etcd does not see that a transaction puts and deletes a key if the delete's range goes to the end of all "
        "keys, or if a nested transaction deletes what one before it puts: it changes the key twice in one revision. "
        "Our store has one change of a key in a revision, and refuses that.",
        _duplicate_overlooked,
    ),
    Difference(
        "A negative revision is the present; but inside a transaction etcd takes it for one that may be compacted.",
        _negative_revision,
    ),
    Difference(
        "A comparison with a target or a relation that there is not holds in etcd, or compares with 0. We refuse it.",
        _unknown_comparison,
    ),
    Difference("etcd bounds a request only, and we a key, too: max_key_bytes.", _long_key),
    Difference(
        "A compaction at revision 0 does nothing. etcd refuses the second one.", _compaction_at_zero, apart=False
    ),
    Difference(
        "What is wrong with bytes that are not a message is said in the words of protobuf's runtime.", _unreadable
    ),
    Difference("A field of another wire type is skipped by protobuf's runtime, and refused by etcd's.", _wire_type),
    Difference("A string that is not UTF-8 is refused by protobuf's runtime.", _utf8),
    Difference("A path that names no method: the code is that of later versions of Go's gRPC.", _no_method_name),
    Difference("An order that there is not is refused, as by etcd 3.6.", _unknown_order),
)


def difference(request: Any, theirs: Answer, ours: Answer) -> Difference | None:
    """The one that explains two answers which are not the same."""
    return next((each for each in DIFFERENCES if each.holds(request, theirs, ours)), None)
