"""A client of the shell's over etcd's JSON gateway, with those calls of a handle that etcd has too.

Arguments and results are those of ``raykeeper.Client``, so a command does not care which of the two it holds. Long
ranges in the order of the keys are read in pages, all at the revision of the first. Times are in whole seconds, as in
etcd: a TTL that is not one is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from ..actors.client.results import (
    END,
    KEEP,
    Batch,
    DeleteResult,
    Event,
    KeyValue,
    PutResult,
    RangeResult,
    TxnResult,
)
from ..actors.client.txn_parts import Condition, Op
from ..errors import CompactedError, InvalidArgument, KeeperError, Unavailable
from ..limits import GATEWAY_PAGE_ITEMS
from .etcd_gateway import Endpoint, EtcdGateway, Fields, b64, number, unb64

_SORTS = {
    "key": "KEY",
    "version": "VERSION",
    "create_revision": "CREATE",
    "mod_revision": "MOD",
    "value": "VALUE",
}
_ORDERS = {"ascend": "ASCEND", "descend": "DESCEND"}
_TARGETS = (
    ("VERSION", "version"),
    ("CREATE", "create_revision"),
    ("MOD", "mod_revision"),
    ("VALUE", "value"),
    ("LEASE", "lease"),
)
"""By ``Target``: etcd's name, and the field of the operand."""


class GatewayClient:
    """See the module.

    Args:
        endpoint: of the proxy, or of an etcd.
        timeout: seconds for each call.
    """

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        self.gateway = EtcdGateway(endpoint, timeout)

    def __enter__(self) -> GatewayClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.gateway.close()

    # -- keys ---------------------------------------------------------------------------------------------------------

    def put(
        self, key: bytes, value: Any, *, lease: Any = None, prev: bool = False, request_id: bytes | None = None
    ) -> PutResult:
        """As ``Client.put``, without request ids."""
        _check_unnamed(request_id)
        answer = self._call("kv/put", _put(key, value, lease, prev), writes=True)
        return _put_result(answer, answer)

    def range(
        self,
        key: bytes | None = None,
        end: Any = None,
        *,
        prefix: bytes | None = None,
        limit: int = 0,
        revision: int | None = None,
        serializable: bool = False,
        **how: Any,
    ) -> RangeResult:
        """As ``Client.range``."""
        request = _range(key, end, prefix, limit=limit, revision=revision, **how)
        request["serializable"] = serializable
        in_pages = "range_end" in request and not how.get("count_only") and request.get("sort_target", "KEY") == "KEY"
        if not in_pages or request.get("sort_order") == "DESCEND" or 0 < limit <= GATEWAY_PAGE_ITEMS:
            answer = self._call("kv/range", request)
            return _range_result(answer, answer, revision)
        return self._pages(request, limit)

    def _pages(self, request: Fields, limit: int) -> RangeResult:
        """Read a range page by page, in the order of the keys and at one revision."""
        items: list[KeyValue] = []
        count = revision = 0
        more = True
        while more and (not limit or len(items) < limit):
            room = limit - len(items) if limit else GATEWAY_PAGE_ITEMS
            answer = self._call("kv/range", {**request, "limit": min(room, GATEWAY_PAGE_ITEMS)})
            page = _range_result(answer, answer, number(request.get("revision")))
            if not items:
                count, revision = page.count, page.revision
                request = {**request, "revision": request.get("revision") or revision}
            items += page.items
            more = page.more
            if page.items:
                request = {**request, "key": b64(page.items[-1].key + b"\0")}
        return RangeResult(tuple(items), count, more, revision)

    def delete(
        self,
        key: bytes | None = None,
        end: Any = None,
        *,
        prefix: bytes | None = None,
        prev: bool = False,
        request_id: bytes | None = None,
    ) -> DeleteResult:
        """As ``Client.delete``, without request ids."""
        _check_unnamed(request_id)
        answer = self._call("kv/deleterange", _delete(key, end, prefix, prev), writes=True)
        return _delete_result(answer, answer)

    def txn(
        self,
        compare: Sequence[Condition],
        success: Sequence[Op],
        failure: Sequence[Op],
        *,
        request_id: bytes | None = None,
    ) -> TxnResult:
        """As ``Client.txn``, without request ids, and of puts, ranges and deletes."""
        _check_unnamed(request_id)
        request = {
            "compare": [_condition(each) for each in compare],
            "success": [_operation(each) for each in success],
            "failure": [_operation(each) for each in failure],
        }
        answer = self._call("kv/txn", request, writes=True)
        succeeded = bool(answer.get("succeeded"))
        ran = success if succeeded else failure
        responses = answer.get("responses", [{}] * len(ran))
        return TxnResult(
            succeeded,
            tuple(_response(op, each, answer) for op, each in zip(ran, responses, strict=True)),
            _revision(answer),
        )

    def revision(self) -> int:
        """The current revision, linearizable."""
        return _revision(self._call("kv/range", {"key": b64(b"\0"), "count_only": True}))

    def compact(self, revision: int, *, physical: bool = False) -> None:
        """As ``Client.compact``; with ``physical``, return once the space is free on the disk."""
        self._call("kv/compaction", {"revision": str(revision), "physical": physical}, writes=True)

    def watch(
        self, key: bytes | None = None, end: Any = None, *, prefix: bytes | None = None, start_revision: int
    ) -> Iterator[Batch]:
        """The changes of keys from a revision on, whole revisions at a time; an empty batch is a progress notice.

        Raises:
            CompactedError: the history from that revision on is gone.
            KeeperError: the connection was lost.
        """
        request = {**_keys(key, end, prefix), "start_revision": str(start_revision), "progress_notify": True}
        waiting: list[Event] = []
        for answer in self.gateway.stream("watch", {"create_request": request}):
            if answer.get("canceled"):
                if number(answer.get("compact_revision")):
                    raise CompactedError(number(answer["compact_revision"]))
                raise Unavailable(f"the watch was ended by {self.gateway.url}: {answer.get('cancel_reason', '')}")
            if answer.get("created"):
                continue
            events = [_event(each) for each in answer.get("events", ())]
            if not events:
                if not waiting:
                    yield Batch(_revision(answer), ())
                continue
            waiting += events
            if answer.get("fragment"):
                continue
            yield from _batches(waiting)
            waiting = []

    # -- leases -------------------------------------------------------------------------------------------------------

    def grant(self, ttl: float) -> tuple[int, float]:
        """A new lease: its id, and the TTL in seconds that was granted.

        Raises:
            InvalidArgument: the TTL is not a whole number of seconds.
        """
        if ttl != int(ttl):
            raise InvalidArgument(f"a TTL of {ttl:g} s is not a whole number of seconds")
        answer = self._call("lease/grant", {"TTL": str(int(ttl))}, writes=True)
        return number(answer.get("ID")), float(number(answer.get("TTL")))

    def revoke(self, lease: int) -> None:
        """End a lease, and delete its keys."""
        self._call("lease/revoke", {"ID": str(lease)}, writes=True)

    # -- an exchange --------------------------------------------------------------------------------------------------

    def _call(self, path: str, request: Fields, *, writes: bool = False) -> Fields:
        try:
            return self.gateway.call(path, request, writes=writes)
        except CompactedError as error:
            raise self._compacted() from error

    def _compacted(self) -> CompactedError:
        """The error with the revision at which history begins, which only a watch is told."""
        try:
            for _ in self.watch(b"\0", start_revision=1):
                break
        except CompactedError as error:
            return error
        except KeeperError:
            pass
        finally:
            self.gateway.close()
        return CompactedError(0)


def _check_unnamed(request_id: bytes | None) -> None:
    if request_id is not None:
        raise InvalidArgument("etcd's API has no request ids")


# --- requests --------------------------------------------------------------------------------------------------------


def _keys(key: bytes | None, end: Any, prefix: bytes | None) -> Fields:
    """The range that is meant, as etcd has it: a zero byte is the first key, and as an end it means no end."""
    if prefix is not None:
        return {"key": b64(prefix or b"\0"), "range_end": b64(key_after(prefix))}
    assert key is not None
    if end is None:
        return {"key": b64(key)}
    last = b"\0" if end is END else end
    if not last:
        raise InvalidArgument("the end of a range is empty: --from-key means to the last key")
    return {"key": b64(key or b"\0"), "range_end": b64(last)}


def key_after(prefix: bytes) -> bytes:
    """The first key after all that begin with a prefix; a zero byte if there is none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def _put(key: bytes, value: Any, lease: Any, prev: bool) -> Fields:
    request: Fields = {"key": b64(key), "prev_kv": prev}
    if value is KEEP:
        request["ignore_value"] = True
    else:
        request["value"] = b64(value)
    if lease is KEEP:
        request["ignore_lease"] = True
    elif lease:
        request["lease"] = str(lease)
    return request


def _range(
    key: bytes | None,
    end: Any,
    prefix: bytes | None,
    *,
    limit: int = 0,
    revision: int | None = None,
    sort: str | None = None,
    order: str = "ascend",
    keys_only: bool = False,
    count_only: bool = False,
) -> Fields:
    request = _keys(key, end, prefix)
    if limit:
        request["limit"] = str(limit)
    if revision:
        request["revision"] = str(revision)
    if sort is not None or order != "ascend":
        request["sort_target"] = _SORTS[sort or "key"]
        request["sort_order"] = _ORDERS[order]
    if keys_only:
        request["keys_only"] = True
    if count_only:
        request["count_only"] = True
    return request


def _delete(key: bytes | None, end: Any, prefix: bytes | None, prev: bool) -> Fields:
    return {**_keys(key, end, prefix), "prev_kv": prev}


def _condition(condition: Condition) -> Fields:
    target, field = _TARGETS[condition.target]
    operand = b64(condition.operand) if field == "value" else str(condition.operand)
    where = _keys(condition.key, condition.end, condition.prefix)  # type: ignore[arg-type]
    return {**where, "target": target, "result": condition.relation.name, field: operand}


def _operation(operation: Op) -> Fields:
    given = dict(operation.arguments)
    if operation.kind == "put":
        return {"request_put": _put(**given)}
    if operation.kind == "range":
        given = {**given, "limit": given.get("limit") or 0}
        return {"request_range": _range(given.pop("key"), given.pop("end"), given.pop("prefix"), **given)}
    if operation.kind == "delete":
        return {"request_delete_range": _delete(**given)}
    raise InvalidArgument(f"etcd has no operation {operation.kind}")


# --- answers ---------------------------------------------------------------------------------------------------------


def _revision(answer: Fields) -> int:
    return number(answer.get("header", {}).get("revision"))


def _pair(said: Fields) -> KeyValue:
    return KeyValue(
        unb64(said.get("key")),
        unb64(said.get("value")),
        number(said.get("create_revision")),
        number(said.get("mod_revision")),
        number(said.get("version")),
        number(said.get("lease")),
    )


def _put_result(said: Fields, whole: Fields) -> PutResult:
    prev = said.get("prev_kv")
    return PutResult(_revision(whole), None if prev is None else _pair(prev))


def _range_result(said: Fields, whole: Fields, revision: int | None) -> RangeResult:
    """A range that was read as of a revision; etcd itself names only the newest one."""
    items = tuple(_pair(each) for each in said.get("kvs", ()))
    return RangeResult(items, number(said.get("count")), bool(said.get("more")), revision or _revision(whole))


def _delete_result(said: Fields, whole: Fields) -> DeleteResult:
    prev = tuple(_pair(each) for each in said.get("prev_kvs", ()))
    return DeleteResult(number(said.get("deleted")), prev, _revision(whole))


def _response(operation: Op, said: Fields, whole: Fields) -> PutResult | RangeResult | DeleteResult:
    if "response_put" in said:
        return _put_result(said["response_put"], whole)
    if "response_range" in said:
        return _range_result(said["response_range"], whole, operation.arguments["revision"])
    if "response_delete_range" in said:
        return _delete_result(said["response_delete_range"], whole)
    raise Unavailable("the answer of a transaction has a part that is none of a put, a range or a delete", applied=None)


def _event(said: Fields) -> Event:
    prev = said.get("prev_kv")
    return Event(
        "delete" if said.get("type") == "DELETE" else "put",
        _pair(said.get("kv", {})),
        None if prev is None else _pair(prev),
    )


def _batches(events: Sequence[Event]) -> Iterator[Batch]:
    """Events by revision."""
    begin = 0
    for place in range(1, len(events) + 1):
        revision = events[begin].kv.mod_revision
        if place == len(events) or events[place].kv.mod_revision != revision:
            yield Batch(revision, tuple(events[begin:place]))
            begin = place
