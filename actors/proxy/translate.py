"""Between etcd's messages and our commands and answers, one part of a message at a time.

Requests are checked in etcd's order, so that of several mistakes the same one is named (etcd: v3rpc/key.go). What etcd
does with a range after it has read it (filters on revisions, and an order by anything but keys that no sort order asks
for) is done here, too: :class:`RangePlan` says what to read and what to do with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from ...schema.answers import Answer, DeleteAnswer, Item, PutAnswer, RangeAnswer, TxnAnswer
from ...schema.operations import KEEP_LEASE, Delete, KeyRange, Put, Range, Relation, Sort, Target, Txn, TxnCompare
from .etcd_errors import (
    EMPTY_KEY,
    INVALID_COMPARE,
    INVALID_SORT,
    KEY_NOT_FOUND,
    LEASE_PROVIDED,
    TOO_MANY_OPERATIONS,
    VALUE_PROVIDED,
)
from .etcdpb.kv_pb2 import KeyValue
from .etcdpb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RequestOp,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
)

_MOST = (1 << 63) - 1
_NONE, _DESCEND = RangeRequest.NONE, RangeRequest.DESCEND
_SORT_KEYS = {
    Sort.KEY: attrgetter("key"),
    Sort.VERSION: attrgetter("version"),
    Sort.CREATE_REVISION: attrgetter("create_revision"),
    Sort.MOD_REVISION: attrgetter("mod_revision"),
    Sort.VALUE: attrgetter("value"),
}


class Translator:
    """Translates for one key space.

    Args:
        space: what stands before every key in the store.
        space_end: the first key after all of them; ``b""`` if there is none.
    """

    def __init__(self, space: bytes, space_end: bytes) -> None:
        self.space = space
        self._space_end = space_end
        self._skip = len(space)

    def key_range(self, key: bytes, end: bytes) -> KeyRange:
        """The keys that a key and a ``range_end`` name; an end of one zero byte stands for all keys from there on."""
        if not end:
            return KeyRange(self.space + key)
        if end == b"\0":
            return KeyRange(self.space + key, self._space_end)
        return KeyRange(self.space + key, self.space + end)

    def pair(self, item: Item) -> KeyValue:
        """An item of the store."""
        pair = KeyValue()  # to name the fields here would take twice as long
        pair.key = item.key[self._skip :]
        pair.create_revision = item.create_revision
        pair.mod_revision = item.mod_revision
        pair.version = item.version
        pair.value = item.value
        if item.lease:
            pair.lease = item.lease
        return pair

    # -- ranges -------------------------------------------------------------------------------------------------------

    def range_plan(self, request: RangeRequest) -> RangePlan:
        """What a checked range reads."""
        return RangePlan(request, self.key_range(request.key, request.range_end))

    def range_response(self, plan: RangePlan, answer: RangeAnswer, header: ResponseHeader) -> RangeResponse:
        """The answer to a range."""
        items, more = plan.finish(answer)
        return RangeResponse(header=header, kvs=map(self.pair, items), more=more, count=answer.count)

    # -- puts and deletes ---------------------------------------------------------------------------------------------

    def put(self, request: PutRequest) -> Put:
        """A checked put."""
        return Put(
            self.space + request.key,
            None if request.ignore_value else request.value,
            KEEP_LEASE if request.ignore_lease else request.lease,
            request.prev_kv,
        )

    def put_response(self, answer: PutAnswer, header: ResponseHeader) -> PutResponse:
        """The answer to a put."""
        return PutResponse(header=header, prev_kv=None if answer.prev is None else self.pair(answer.prev))

    def delete(self, request: DeleteRangeRequest) -> Delete:
        """A checked delete."""
        return Delete(self.key_range(request.key, request.range_end), request.prev_kv)

    def delete_response(self, answer: DeleteAnswer, header: ResponseHeader) -> DeleteRangeResponse:
        """The answer to a delete."""
        return DeleteRangeResponse(header=header, deleted=answer.deleted, prev_kvs=map(self.pair, answer.prev))

    # -- transactions -------------------------------------------------------------------------------------------------

    def txn(self, request: TxnRequest) -> tuple[Txn, TxnPlan]:
        """A checked transaction, and what its answer is made with."""
        success = [self._operation(each) for each in request.success]
        failure = [self._operation(each) for each in request.failure]
        txn = Txn(
            tuple([self._compare(each) for each in request.compare]),
            tuple([operation for operation, _ in success]),
            tuple([operation for operation, _ in failure]),
        )
        return txn, TxnPlan([plan for _, plan in success], [plan for _, plan in failure])

    def _operation(self, request: RequestOp) -> tuple[Put | Delete | Range | Txn, RangePlan | TxnPlan | None]:
        kind = request.WhichOneof("request")
        if kind == "request_put":
            return self.put(request.request_put), None
        if kind == "request_range":
            plan = self.range_plan(request.request_range)
            return plan.command, plan
        if kind == "request_delete_range":
            return self.delete(request.request_delete_range), None
        return self.txn(request.request_txn)

    def _compare(self, request: Compare) -> TxnCompare:
        """A comparison. An operand that is not given is zero, whatever else is given (etcd: applyCompare)."""
        if request.target not in _TARGETS or request.result not in _RESULTS:
            raise INVALID_COMPARE.error()
        target = Target(request.target)
        given = request.WhichOneof("target_union")
        operand: int | bytes = b"" if target is Target.VALUE else 0
        if given == _OPERANDS[target]:
            operand = getattr(request, given)
        return TxnCompare(self.key_range(request.key, request.range_end), target, Relation(request.result), operand)

    def txn_response(self, plan: TxnPlan, answer: TxnAnswer, header: ResponseHeader) -> TxnResponse:
        """The answer to a transaction. The headers inside name the revision alone, and that of a transaction nothing
        (etcd: newTxnResp)."""
        response = TxnResponse(header=header, succeeded=answer.succeeded)
        plans = plan.success if answer.succeeded else plan.failure
        for each, inner in zip(answer.responses, plans, strict=True):
            self._add_response(response, each, inner)
        return response

    def _add_response(self, response: TxnResponse, answer: Answer, plan: RangePlan | TxnPlan | None) -> None:
        added = response.responses.add()
        if isinstance(answer, PutAnswer):
            added.response_put.CopyFrom(self.put_response(answer, _inner_header(answer.revision)))
        elif isinstance(answer, DeleteAnswer):
            added.response_delete_range.CopyFrom(self.delete_response(answer, _inner_header(answer.revision)))
        elif isinstance(answer, RangeAnswer) and isinstance(plan, RangePlan):
            added.response_range.CopyFrom(self.range_response(plan, answer, _inner_header(answer.revision)))
        elif isinstance(answer, TxnAnswer) and isinstance(plan, TxnPlan):
            added.response_txn.CopyFrom(self.txn_response(plan, answer, ResponseHeader()))
        else:
            raise TypeError(f"{type(answer).__name__} answers no operation of etcd's")


class RangePlan:
    """What a range reads from the store, and what becomes of it then.

    Attributes:
        command: the read.
    """

    __slots__ = ("_filtered", "_limit", "_request", "_sorted_here", "command")

    def __init__(self, request: RangeRequest, keys: KeyRange) -> None:
        self._request = request
        self._limit = max(0, request.limit)
        self._filtered = bool(
            request.min_mod_revision
            or request.max_mod_revision
            or request.min_create_revision
            or request.max_create_revision
        )
        sort = Sort(request.sort_target)
        # Without a sort order, etcd sorts only what it has read up to the limit, and one more item.
        self._sorted_here = self._filtered or (request.sort_order == _NONE and sort is not Sort.KEY)
        limit, keys_only = self._limit, request.keys_only
        if self._sorted_here:
            keys_only = keys_only and sort is not Sort.VALUE
            limit = 0 if self._filtered or not limit else min(limit + 1, _MOST)
        self.command = Range(
            keys,
            max(0, request.revision),
            limit,
            Sort.KEY if self._sorted_here else sort,
            request.sort_order == _DESCEND and not self._sorted_here,
            keys_only,
            request.count_only,
        )

    def finish(self, answer: RangeAnswer) -> tuple[Sequence[Item], bool]:
        """The items to answer, and whether the limit has cut off any."""
        request = self._request
        if request.count_only:
            return (), False
        if not self._sorted_here:
            return answer.items, answer.more
        found = list(filter(self._wanted, answer.items)) if self._filtered else list(answer.items)
        if request.sort_order != _NONE or request.sort_target:
            found.sort(key=_SORT_KEYS[Sort(request.sort_target)], reverse=request.sort_order == _DESCEND)
        cut = found[: self._limit] if self._limit else found
        if request.keys_only:
            cut = [Item(i.key, b"", i.create_revision, i.mod_revision, i.version, i.lease) for i in cut]
        return cut, len(cut) < len(found)

    def _wanted(self, item: Item) -> bool:
        request = self._request
        return (
            (not request.max_mod_revision or item.mod_revision <= request.max_mod_revision)
            and (not request.min_mod_revision or item.mod_revision >= request.min_mod_revision)
            and (not request.max_create_revision or item.create_revision <= request.max_create_revision)
            and (not request.min_create_revision or item.create_revision >= request.min_create_revision)
        )


class TxnPlan:
    """What the answers of each branch of a transaction are made with."""

    __slots__ = ("failure", "success")

    def __init__(self, success: list[RangePlan | TxnPlan | None], failure: list[RangePlan | TxnPlan | None]) -> None:
        self.success = success
        self.failure = failure


_OPERANDS = {
    Target.VERSION: "version",
    Target.CREATE_REVISION: "create_revision",
    Target.MOD_REVISION: "mod_revision",
    Target.VALUE: "value",
    Target.LEASE: "lease",
}


def _inner_header(revision: int) -> ResponseHeader:
    return ResponseHeader(revision=revision)


# --- checks ----------------------------------------------------------------------------------------------------------
#
# Each raises the ``RpcError`` that etcd answers.


def check_range(request: RangeRequest) -> None:
    """As etcd's checkRangeRequest."""
    if not request.key:
        raise EMPTY_KEY.error()
    if request.sort_order not in _SORT_ORDERS or request.sort_target not in _SORT_TARGETS:
        raise INVALID_SORT.error()


def check_put(request: PutRequest) -> None:
    """As etcd's checkPutRequest."""
    if not request.key:
        raise EMPTY_KEY.error()
    if request.ignore_value and request.value:
        raise VALUE_PROVIDED.error()
    if request.ignore_lease and request.lease:
        raise LEASE_PROVIDED.error()


def check_delete(request: DeleteRangeRequest) -> None:
    """As etcd's checkDeleteRequest."""
    if not request.key:
        raise EMPTY_KEY.error()


def check_txn(request: TxnRequest, most: int) -> None:
    """As etcd's checkTxnRequest: ``most`` is what the limit leaves this transaction."""
    count = max(len(request.compare), len(request.success), len(request.failure))
    if count > most:
        raise TOO_MANY_OPERATIONS.error()
    for comparison in request.compare:
        if not comparison.key:
            raise EMPTY_KEY.error()
    _check_operations(request.success, most - count)
    _check_operations(request.failure, most - count)


def _check_operations(operations: Iterable[RequestOp], most: int) -> None:
    for operation in operations:
        kind = operation.WhichOneof("request")
        check: Any = _CHECKS.get(kind)
        if check is not None:
            check(getattr(operation, kind))
        elif kind == "request_txn":
            check_txn(operation.request_txn, most)
        else:
            raise KEY_NOT_FOUND.error()


_CHECKS = {"request_range": check_range, "request_put": check_put, "request_delete_range": check_delete}
_TARGETS = frozenset(Compare.CompareTarget.values())
_RESULTS = frozenset(Compare.CompareResult.values())
_SORT_ORDERS = frozenset(RangeRequest.SortOrder.values())
_SORT_TARGETS = frozenset(RangeRequest.SortTarget.values())
