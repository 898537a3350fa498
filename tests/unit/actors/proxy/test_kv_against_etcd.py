"""KV and leases: the same requests to a real etcd and to the proxy's services, answers and errors compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.etcd_twins import RELATIVE, Apart, Twins, twins
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)


@pytest.fixture(scope="module")
def both() -> Iterator[Twins]:
    with twins() as both:
        yield both


# --- requests --------------------------------------------------------------------------------------------------------

keys = st.sampled_from([b"a", b"aa", b"b", b"c", b"\0", b"\xff", b"d/1", b"d/2"])


def mostly(usual: st.SearchStrategy[Any], rare: Any, times: int = 24) -> st.SearchStrategy[Any]:
    """A value, or, one time in so many, a rare one. What is refused hides what comes after it."""
    return st.integers(0, times - 1).flatmap(lambda n: st.just(rare) if n == times - 1 else usual)


some_keys = mostly(keys, b"", 40)
ends = st.sampled_from([b"", b"", b"\0", b"b", b"c", b"e", b"\xff", b"a\0"])
values = st.sampled_from([b"", b"1", b"2", b"long" * 300])
leases = mostly(st.sampled_from([0, 0, 0, 0, 7, -5, -1]), 99)
offsets = st.integers(-3, 12)
relative = offsets.map(lambda n: RELATIVE + n)
revisions = st.one_of(
    st.just(0), st.just(0), st.just(0), st.just(-1), st.integers(0, 3).map(lambda n: RELATIVE + n), relative
)
flags = st.booleans()
rarely = mostly(st.just(False), True, 8)
bounds = st.one_of(*[st.just(0)] * 7, relative)

ranges = st.builds(
    RangeRequest,
    key=some_keys,
    range_end=ends,
    limit=st.sampled_from([0, 0, 1, 2, 5, -1]),
    revision=revisions,
    sort_order=st.integers(0, 2),
    sort_target=st.integers(0, 4),
    serializable=flags,
    keys_only=rarely,
    count_only=rarely,
    min_mod_revision=bounds,
    max_mod_revision=bounds,
    min_create_revision=bounds,
    max_create_revision=bounds,
)


def put_request(mistaken: bool, **fields: Any) -> PutRequest:
    if not mistaken:
        fields["value"] = b"" if fields["ignore_value"] else fields["value"]
        fields["lease"] = 0 if fields["ignore_lease"] else fields["lease"]
    return PutRequest(**fields)


puts = st.builds(
    put_request,
    rarely,
    key=some_keys,
    value=values,
    lease=leases,
    prev_kv=flags,
    ignore_value=rarely,
    ignore_lease=rarely,
)
deletes = st.builds(DeleteRangeRequest, key=some_keys, range_end=ends, prev_kv=flags)
numbers = st.one_of(st.integers(-1, 3), relative)
operands = st.one_of(
    numbers.map(lambda n: {"version": n}),
    numbers.map(lambda n: {"create_revision": n}),
    numbers.map(lambda n: {"mod_revision": n}),
    values.map(lambda v: {"value": v}),
    leases.map(lambda n: {"lease": n}),
    st.just({}),
)
compares = st.builds(
    lambda operand, **others: Compare(**others, **operand),
    operands,
    result=st.integers(0, 3),
    target=st.integers(0, 4),
    key=some_keys,
    range_end=ends,
)


def in_txn(request: RangeRequest) -> RequestOp:
    """A negative revision is the present; but inside a transaction etcd takes it for one that may be compacted."""
    return RequestOp(request_range=RangeRequest(**{**fields(request), "revision": max(0, request.revision)}))


def fields(request: Message) -> dict[str, Any]:
    return {field.name: value for field, value in request.ListFields()}


plain_operations = st.one_of(
    puts.map(lambda request: RequestOp(request_put=request)),
    puts.map(lambda request: RequestOp(request_put=request)),
    ranges.map(in_txn),
    deletes.map(lambda request: RequestOp(request_delete_range=request)),
)
operations = st.recursive(
    mostly(plain_operations, RequestOp(), 60),
    lambda inner: st.builds(
        lambda *parts: RequestOp(request_txn=TxnRequest(compare=parts[0], success=parts[1], failure=parts[2])),
        st.lists(compares, max_size=2),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2),
    ),
    max_leaves=6,
)
txns = st.builds(
    TxnRequest,
    compare=st.lists(compares, max_size=2),
    success=st.lists(operations, max_size=3),
    failure=st.lists(operations, max_size=2),
)
requests = st.one_of(
    st.tuples(st.just("/etcdserverpb.KV/Put"), puts),
    st.tuples(st.just("/etcdserverpb.KV/Put"), puts),
    st.tuples(st.just("/etcdserverpb.KV/Put"), puts),
    st.tuples(st.just("/etcdserverpb.KV/Range"), ranges),
    st.tuples(st.just("/etcdserverpb.KV/Range"), ranges),
    st.tuples(st.just("/etcdserverpb.KV/DeleteRange"), deletes),
    st.tuples(st.just("/etcdserverpb.KV/Txn"), txns),
    st.tuples(st.just("/etcdserverpb.KV/Txn"), txns),
    st.tuples(
        st.just("/etcdserverpb.KV/Compact"),
        st.builds(
            CompactionRequest, revision=st.one_of(st.integers(0, 4).map(lambda n: RELATIVE + n), relative, st.just(-1))
        ),
    ),
    st.tuples(
        st.just("/etcdserverpb.Lease/LeaseGrant"),
        st.builds(
            LeaseGrantRequest,
            TTL=st.sampled_from([-1, 0, 1, 3, 1000, 9_000_000_000, 9_000_000_001]),
            ID=st.sampled_from([7, -5, -1]),
        ),
    ),
    st.tuples(st.just("/etcdserverpb.Lease/LeaseRevoke"), st.builds(LeaseRevokeRequest, ID=leases)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(requests, min_size=1, max_size=14))
def test_the_same_answers(both: Twins, sequence: list[tuple[str, Any]]) -> None:
    both.begin()
    with suppress(Apart):
        for path, request in sequence:
            both.ask(path, request)
        both.ask("/etcdserverpb.KV/Range", RangeRequest(key=b"\0", range_end=b"\0"))


PUT, RANGE, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"


def put_op(key: bytes) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key))


def nested(depth: int, *inside: RequestOp) -> TxnRequest:
    txn = TxnRequest(success=inside)
    for _ in range(depth):
        txn = TxnRequest(success=[RequestOp(request_txn=txn)])
    return txn


@pytest.mark.parametrize(
    ("compares", "success", "failure"), [(128, 128, 128), (129, 0, 0), (0, 129, 0), (0, 0, 129), (1, 128, 0)]
)
def test_as_many_operations(both: Twins, compares: int, success: int, failure: int) -> None:
    both.begin()
    txn = TxnRequest(
        compare=[Compare(key=b"a") for _ in range(compares)],
        success=[put_op(b"s%d" % n) for n in range(success)],
        failure=[put_op(b"f%d" % n) for n in range(failure)],
    )
    answer = both.ask(TXN, txn)
    assert isinstance(answer, tuple) is (max(compares, success, failure) > 128)


@pytest.mark.parametrize(("depth", "operations"), [(3, 5), (40, 88), (40, 89), (10, 118), (10, 119)])
def test_as_deeply_nested(both: Twins, depth: int, operations: int) -> None:
    both.begin()
    answer = both.ask(TXN, nested(depth, *[put_op(b"%d" % n) for n in range(operations)]))
    assert isinstance(answer, tuple) is (depth + operations > 128)


def test_a_request_over_the_limit(both: Twins) -> None:
    both.begin()
    for size in (1000 * 1024, 1600 * 1024):
        both.ask(PUT, PutRequest(key=b"a", value=b"v" * size))


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("target", range(5))
def test_ties_in_any_order(both: Twins, order: int, target: int) -> None:
    """Equal items are in the order of their keys, whichever way the others go."""
    both.begin()
    both.ask(TXN, TxnRequest(success=[put_op(key) for key in (b"b", b"d", b"a")]))
    both.ask(TXN, TxnRequest(success=[put_op(key) for key in (b"c", b"e")]))
    both.ask(PUT, PutRequest(key=b"a", value=b"2"))
    for limit in (0, 1, 2, 3):
        request = RangeRequest(key=b"a", range_end=b"z", sort_order=order, sort_target=target, limit=limit)  # type: ignore[arg-type]
        both.ask(RANGE, request)


def test_many_keys_in_pages(both: Twins) -> None:
    """A range longer than what one answer of a member holds, whole and in any order."""
    both.begin()
    for start in range(0, 2100, 100):
        both.ask(TXN, TxnRequest(success=[put_op(b"k%05d" % n) for n in range(start, start + 100)]))
    for fields in ({}, {"limit": 1500}, {"sort_order": 2}, {"keys_only": True}, {"count_only": True}, {"limit": 1}):
        both.ask(RANGE, RangeRequest(key=b"k", range_end=b"l", **fields))  # type: ignore[arg-type]


def test_compaction_at_zero(both: Twins) -> None:
    """It succeeds in a store that was never compacted, and only there; ours has no such mark and takes it once more."""
    with twins() as fresh:
        fresh.ask("/etcdserverpb.KV/Compact", CompactionRequest(revision=0))
        for request in (PutRequest(key=b"a"), PutRequest(key=b"a")):
            fresh.ask(PUT, request)
        fresh.ask("/etcdserverpb.KV/Compact", CompactionRequest(revision=2))
        for revision in (0, -1, 1, 2, 99):
            fresh.ask("/etcdserverpb.KV/Compact", CompactionRequest(revision=revision))
