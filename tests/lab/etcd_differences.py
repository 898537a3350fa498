"""Where a proxy's answer may differ from etcd's: one list, each entry with its reason.

Everything else that the two are asked is answered alike, field by field and text by text (``lab/etcd_twins.py``). The
page docs/architecture/etcd-services.md tells users the same, in a table: each of its rows is here, either a difference
that answers may show anywhere, or with the test that is about it alone (tests/unit/lab/test_etcd_differences.py).
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
        row: how its row of the table begins.
        reason: why.
        holds: whether it explains these answers to a request, etcd's and ours.
        apart: from then on the two stores hold different things.
    """

    row: str
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


def _backward_range(request: Any, theirs: Answer, ours: Answer) -> bool:
    denied = (7, "etcdserver: permission denied")
    if (theirs == denied) is (ours == denied):
        return False
    ranges = [request]
    if isinstance(request, TxnRequest):
        ranges = [*compares(request)]
        ranges += [getattr(each, each.WhichOneof("request") or "request_put") for each, _ in parts(request)]
    return any(b"\0" < getattr(each, "range_end", b"") <= each.key for each in ranges if hasattr(each, "key"))


UNREADABLE = "grpc: error unmarshalling request: "

DIFFERENCES = (
    Difference(
        "several operations",
        "If several operations of a transaction fail, etcd names what is wrong with the puts before what is wrong with "
        "ranges, and a missing key before a missing lease. The state machine names what comes first: it goes through "
        "them once.",
        _several_failures,
        apart=False,
    ),
    Difference(
        "a transaction that puts",
        "etcd does not see that a transaction puts and deletes a key if the delete's range goes to the end of all "
        "keys, or if a nested transaction deletes what one before it puts: it changes the key twice in one revision. "
        "Our store has one change of a key in a revision, and refuses that.",
        _duplicate_overlooked,
    ),
    Difference(
        "a range at a negative",
        "A negative revision is the present; but inside a transaction etcd takes it for one that may be compacted.",
        _negative_revision,
    ),
    Difference(
        "a comparison",
        "A comparison with a target or a relation that there is not holds in etcd, or compares with 0. We refuse it.",
        _unknown_comparison,
    ),
    Difference("a key of more", "etcd bounds a request only, and we a key, too: max_key_bytes.", _long_key),
    Difference(
        "compaction at revision 0",
        "A compaction at revision 0 does nothing. etcd refuses the second one.",
        _compaction_at_zero,
        apart=False,
    ),
    Difference(
        "bytes that are not",
        "What is wrong with bytes that are not a message is said in the words of protobuf's runtime.",
        _unreadable,
    ),
    Difference(
        "bytes that are not",
        "A field of another wire type is skipped by protobuf's runtime, and refused by etcd's.",
        _wire_type,
    ),
    Difference("bytes that are not", "A string that is not UTF-8 is refused by protobuf's runtime.", _utf8),
    Difference(
        "a path that names no method",
        "A path that names no method: the code is that of later versions of Go's gRPC.",
        _no_method_name,
    ),
    Difference(
        "a range that ends before",
        "Whether a user may read or delete in a range that ends before it begins, in which there is no key, depends in "
        "etcd on the order in which its tree of rights was built. We ask for the right to where it begins.",
        _backward_range,
    ),
    Difference("an order of keys", "An order that there is not is refused, as by etcd 3.6.", _unknown_order),
)
OTHERS = {
    "nested transactions": "proxy/test_kv_against_etcd.py::test_as_deep_as_a_message_may_be",
    "a transaction with an answer": (
        "proxy/test_long_answers_against_etcd.py::test_after_a_write_that_was_applied_a_failure_is_an_unknown_outcome"
    ),
    "an answer of more than": "proxy/test_long_answers_against_etcd.py::test_there_is_room_for_so_much",
    "history": "member/test_compactor.py::test_what_is_younger_is_kept",
    "a `client-api-version`": "proxy/test_call_conditions.py::test_what_is_not_text_is_refused",
    "JSON that is not": "proxy/test_gateway_against_etcd.py::test_what_is_no_request",
    "a stream of the gateway": "proxy/test_etcd_http.py::test_streams_of_the_gateway",
    "Hash, HashKV": "proxy/test_cluster_against_etcd.py::test_a_hash_of_the_keys",
    "MemberAdd, MemberUpdate": "proxy/test_cluster_against_etcd.py::test_members_are_added_and_removed_by_the_cluster",
    "MemberAdd |": (
        "proxy/test_membership_tasks.py::test_a_learner_that_has_left_is_given_up_and_one_that_is_to_stay_is_left_alone"
    ),
    "learners": "proxy/test_cluster_against_etcd.py::test_as_many_learners_as_fit",
    "MemberRemove": "proxy/test_membership_tasks.py::test_a_removal_is_answered_before_the_data_is_deleted",
    "an alarm that an operator ends": (
        "member/test_maintenance.py::test_an_alarm_that_is_ended_comes_again_while_its_cause_lasts"
    ),
    "Defragment": (
        "proxy/test_cluster_against_etcd.py::test_physical_compaction_and_defragmentation_end_when_they_are_done"
    ),
    "Snapshot": "proxy/test_snapshot_service.py::test_it_is_a_file_that_a_cluster_is_restored_from",
    "a call without a user": "proxy/test_auth_against_etcd.py::test_compaction_needs_a_user",
    "a watch with a token": "proxy/test_auth_against_etcd.py::test_watches_need_the_right_to_read",
    "a right that is taken": "client/test_users.py::test_a_watch_ends_with_the_right",
    "a token": "proxy/test_auth_against_etcd.py::test_a_token_ends_with_the_password",
    "the password of a user": "proxy/test_auth_against_etcd.py::test_kinds_of_users",
    "keys by HTTP": "proxy/test_key_users.py::test_who_may_do_what_by_password",
}
"""How the other rows of the table begin, and the test of each, below tests/unit/actors/."""


def difference(request: Any, theirs: Answer, ours: Answer) -> Difference | None:
    """The one that explains two answers which are not the same."""
    return next((each for each in DIFFERENCES if each.holds(request, theirs, ours)), None)
