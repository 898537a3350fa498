"""Answers longer than a member's reply: gathered in pages at one revision, they are those of a real etcd.

The members' bounds are small here, so that a few keys are too many for one reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import lab.onemember
from lab.etcd_differences import parts
from lab.etcd_requests import kv_requests, txns
from lab.etcd_twins import Apart, Twins, twins
from lab.proxy_services import LabProxy, lab_proxy
from raykeeper.actors.proxy.answer_room import AnswerRoom
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RequestOp,
    TxnRequest,
)
from raykeeper.actors.proxy.whole_writes import may_be_long, whole_write
from raykeeper.errors import CompactedError, RequestTimeout, RequestTooLarge
from raykeeper.limits import Limits
from raykeeper.schema.answers import PutAnswer, RangeAnswer, TxnAnswer
from raykeeper.schema.operations import Delete, KeyRange, Put, Range, Txn

PUT, RANGE, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn"
DELETE = "/etcdserverpb.KV/DeleteRange"
PAGE = 2048
SMALL = Limits(max_page_bytes=PAGE, max_page_items=3)


@pytest.fixture(scope="module")
def both() -> Iterator[Twins]:
    with pytest.MonkeyPatch.context() as patch:
        old = lab.onemember.SETTINGS
        patch.setattr(lab.onemember, "SETTINGS", type(old)(timings=old.timings, limits=SMALL))
        with twins() as both:
            yield both


def keeps_two_values(request: Any) -> bool:
    """What a transaction leaves as it is has the same bound as an answer."""
    return isinstance(request, TxnRequest) and (
        sum(each.HasField("request_put") and each.request_put.ignore_value for each, _ in parts(request)) > 1
    )


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(kv_requests, st.tuples(st.just(TXN), txns)), min_size=1, max_size=10))
def test_the_same_answers(both: Twins, sequence: list[tuple[str, Any]]) -> None:
    assume(not any(keeps_two_values(request) for _, request in sequence))
    both.begin()
    for key in (b"a", b"aa", b"b", b"c", b"d/1"):
        both.ask(PUT, PutRequest(key=key, value=key * 500))
    with suppress(Apart):
        for path, request in sequence:
            both.ask(path, request)
        both.ask(RANGE, RangeRequest(key=b"\0", range_end=b"\0"))


def op(**operation: Any) -> RequestOp:
    return RequestOp(**{f"request_{kind}": request for kind, request in operation.items()})


WHOLE = RangeRequest(key=b"k", range_end=b"l")


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"limit": 7}, {"keys_only": True}, {"count_only": True}, {"sort_target": 4}])
def test_a_range_between_writes_sees_those_before_it(both: Twins, options: dict[str, Any], order: int) -> None:
    """Puts and deletes before it, and after it; and what deletes and puts have replaced."""
    both.begin()
    for n in range(20):
        both.ask(PUT, PutRequest(key=b"k%02d" % n, value=b"%02d" % (99 - n) * 100))
    look = RangeRequest(key=b"k", range_end=b"l", sort_order=order, **options)
    first = op(range=RangeRequest(key=b"k", range_end=b"k1"))
    inner = TxnRequest(
        compare=[Compare(key=b"k00", target=Compare.VERSION, result=Compare.GREATER, version=0)],
        success=[op(range=look), op(put=PutRequest(key=b"k25", value=b"4", prev_kv=True))],
        failure=[op(put=PutRequest(key=b"k26"))],
    )
    txn = TxnRequest(
        success=[
            first,
            op(put=PutRequest(key=b"k03", value=b"1", prev_kv=True)),
            op(delete_range=DeleteRangeRequest(key=b"k05", range_end=b"k07", prev_kv=True)),
            op(range=look),
            op(put=PutRequest(key=b"k99", value=b"2")),
            op(delete_range=DeleteRangeRequest(key=b"k06", range_end=b"k20", prev_kv=True)),
            op(put=PutRequest(key=b"k04", ignore_value=True, prev_kv=True)),
            op(txn=inner),
            op(range=look),
        ]
    )
    both.ask(TXN, txn)
    both.ask(RANGE, WHOLE)
    both.ask(DELETE, DeleteRangeRequest(key=b"k", range_end=b"l", prev_kv=True))


def test_a_transaction_that_only_reads(both: Twins) -> None:
    both.begin()
    for n in range(20):
        both.ask(PUT, PutRequest(key=b"k%02d" % n, value=b"%02d" % (99 - n) * 100))
    past = RangeRequest(key=b"k", range_end=b"l", revision=1_000_010)
    both.ask(TXN, TxnRequest(success=[op(range=WHOLE), op(range=past), op(range=WHOLE)]))
    both.ask("/etcdserverpb.KV/Compact", CompactionRequest(revision=1_000_012))
    both.ask(TXN, TxnRequest(success=[op(range=WHOLE), op(range=past)]))
    both.ask(TXN, TxnRequest(success=[op(range=WHOLE), op(range=RangeRequest(key=b"k", revision=1_000_099))]))
    nothing = DeleteRangeRequest(key=b"x", range_end=b"y", prev_kv=True)
    both.ask(TXN, TxnRequest(success=[op(range=WHOLE), op(delete_range=nothing), op(range=WHOLE)]))


# --- what no etcd shows ----------------------------------------------------------------------------------------------

KEYS = KeyRange(b"k", b"l")


def test_after_a_write_that_was_applied_a_failure_is_an_unknown_outcome() -> None:
    steps = whole_write(Txn((), (Put(b"k1", b"v"), Range(KEYS))))
    next(steps)
    lean = steps.throw(RequestTooLarge("too long", applied=False))
    assert isinstance(lean.request, Txn)
    steps.send(TxnAnswer(9, True, (PutAnswer(9), RangeAnswer(9, (), 0))))
    with pytest.raises(RequestTimeout) as raised:
        steps.throw(CompactedError("gone", applied=False))
    assert raised.value.applied is None


def test_a_transaction_that_only_reads_runs_again_if_it_was_compacted() -> None:
    steps = whole_write(Txn((), (Range(KEYS),)))
    next(steps)
    lean = steps.throw(RequestTooLarge("too long", applied=False))
    for revision in range(9, 12):
        read = steps.send(TxnAnswer(revision, True, (RangeAnswer(revision, (), 0),)))
        assert read.request.range.revision == revision
        assert steps.throw(CompactedError("gone", applied=False)) == lean


def test_a_write_without_reads_is_refused_once() -> None:
    steps = whole_write(Delete(KEYS))
    next(steps)
    with pytest.raises(RequestTooLarge):
        steps.throw(RequestTooLarge("too many", applied=False))


def test_what_may_be_long() -> None:
    assert may_be_long(Range(KEYS))
    assert may_be_long(Txn((), (), (Txn((), (Delete(KEYS, True),)),)))
    assert not may_be_long(Txn((), (Range(KEYS, count_only=True), Range(KeyRange(b"k")), Delete(KEYS))))


@pytest.fixture
def proxy() -> Iterator[LabProxy]:
    with lab_proxy() as made:
        yield made


def test_there_is_room_for_so_much(proxy: LabProxy) -> None:
    for n in range(10):
        proxy.kv.put(f"k{n}", bytes(1000))
    request = WHOLE.SerializeToString()
    proxy.backend._room = room = AnswerRoom(20_000)
    answer = proxy.call(RANGE, request)
    assert isinstance(answer, bytes)
    assert len(RangeResponse.FromString(answer).kvs) == 10
    assert room.held == 0
    room.limit = 5_000
    code, text = proxy.call(RANGE, request)
    assert code == 8
    assert isinstance(text, str)
    assert text.startswith("grpc: trying to send message larger than max (")
    room.limit, room.held = 20_000, 15_000
    assert proxy.call(RANGE, request) == (8, "etcdserver: too many requests")
    assert room.held == 15_000
