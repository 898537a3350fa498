"""KV and leases: the same requests to a real etcd and to the proxy's services, answers and errors compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.etcd_requests import kv_requests, lease_requests, short_leases
from lab.etcd_twins import Apart, Twins, twins
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)


@pytest.fixture(scope="module")
def both() -> Iterator[Twins]:
    with twins() as both:
        yield both


requests = st.one_of(kv_requests, kv_requests, kv_requests, short_leases, lease_requests)


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


def test_as_deep_as_a_message_may_be(both: Twins) -> None:
    """By bytes: the runtime makes no deeper message than it reads."""
    both.begin()

    def longer(tag: int, data: bytes) -> bytes:
        return bytes([tag, 0x80 | len(data) & 0x7F, len(data) >> 7]) + data

    txn, inner, answers = nested(1, put_op(b"deep")).SerializeToString(), 1, {}
    while inner < 50:  # success = 2, request_txn = 4
        txn, inner = longer(0x12, longer(0x22, txn)), inner + 1
        answers[inner] = both.proxy.call(TXN, txn)
    refused = [depth for depth, answer in answers.items() if isinstance(answer, tuple)]
    assert refused == [50]
    assert answers[50][0] == 13


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
