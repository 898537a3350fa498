"""From calls to commands, and from answers to results: what the sync and the async handle share.

A :class:`View` is what a handle sees of the store: a key prefix and a codec. Each of its calls is a generator of
*steps*: it yields a request, is sent the answer (or thrown the error), and returns the result. The handles differ only
in how they wait in between. Only this file knows that users' keys are stored under the byte ``u``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from hashlib import blake2b
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from ...codec import Codec
from ...errors import CompactedError, InvalidArgument, RequestTooLarge, Unavailable
from ...limits import CLIENT_RANGE_RESTARTS, LEASE_MAX_TTL_S, LEASE_MIN_TTL_S, MAX_NESTED_TXNS, REQUEST_DIGEST_BYTES
from ...schema.answers import Answer, DeleteAnswer, Item, LeaseGranted, PutAnswer, RangeAnswer, RangePart, TxnAnswer
from ...schema.commands import RequestId
from ...schema.frames import Read
from ...schema.key_spaces import UNUSED_KEY
from ...schema.operations import (
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
from .. import arguments as check
from ..tracing import SpanContext
from .core.in_flight import LeaseQuestion
from .results import DeleteResult, End, Keep, KeyValue, PutResult, RangeResult, TxnResult
from .txn_parts import Condition, Op

_encode = msgspec.msgpack.Encoder().encode

SORTS = {
    "key": Sort.KEY,
    "version": Sort.VERSION,
    "create_revision": Sort.CREATE_REVISION,
    "mod_revision": Sort.MOD_REVISION,
    "value": Sort.VALUE,
}
_VALUE: Final = Target.VALUE
_LEASE: Final = Target.LEASE
ORDERS = {"ascend": False, "descend": True}
_SORT_KEYS: dict[Sort, Any] = {
    Sort.KEY: lambda item: item.key,
    Sort.VERSION: lambda item: item.version,
    Sort.CREATE_REVISION: lambda item: item.create_revision,
    Sort.MOD_REVISION: lambda item: item.mod_revision,
    Sort.VALUE: lambda item: item.value,
}


class Call(NamedTuple):
    """One request to the cluster."""

    request: Operation | Read | LeaseQuestion
    serializable: bool = False
    request_id: RequestId | None = None
    parent: SpanContext | None = None
    """The span that it belongs to, where that is not the one of the code that submits it."""


T = TypeVar("T")
Steps = Generator[Call, Any, T]
"""The steps of a call: a generator that is sent an ``Answer``, or ``LeaseStatuses`` for a question about leases."""


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys with the prefix; ``b""`` if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b""


def named(space: bytes, given: object, meaning: object, held: int = 0) -> RequestId:
    """A caller's ``request_id`` as the store knows it: with digests of its namespace and of the operation.

    So a name means nothing in another namespace, and is good for one operation only.

    Args:
        space: the prefix of the namespace.
        given: the name that the caller gave.
        meaning: the operation, which is encoded for the digest.
        held: see ``RequestId``.
    """
    name = check.request_name(given)
    return RequestId(_digest(space) + name, _digest(_encode(meaning)), held)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=REQUEST_DIGEST_BYTES).digest()


class View:
    """What a handle sees of the store.

    Args:
        space: the prefix in the store of all keys that it sees, including that of the user space.
        codec: of the values; ``None`` for bytes.
    """

    __slots__ = ("_end", "codec", "space")

    def __init__(self, space: bytes, codec: Codec | None) -> None:
        self.space = space
        self.codec = codec
        self._end = prefix_end(space)

    def narrow(self, space: bytes, codec: Codec | None) -> View:
        """A view of other keys or with another codec."""
        return View(space, codec)

    def __reduce__(self) -> tuple[Any, ...]:
        return View, (self.space, self.codec)

    # -- calls --------------------------------------------------------------------------------------------------------

    def put(self, key: object, value: object, lease: object, prev: object, request_id: object) -> Steps[PutResult]:
        """Steps of ``Client.put``."""
        command = self.put_command(key, value, lease, prev)
        answer = yield Call(command, False, self.request_id(request_id, command))
        return self.put_result(answer)

    def get(self, key: object, revision: object, serializable: object, at_least: object) -> Steps[KeyValue | None]:
        """Steps of ``Client.get``."""
        command = self.get_command(key, revision)
        if at_least is not None and not serializable:
            raise InvalidArgument("at_least goes with serializable=True: a linearizable read never goes back")
        seen = 0 if at_least is None else check.whole_number("at_least", at_least)
        answer = yield Call(Read(command, seen), check.flag("serializable", serializable))
        return self.get_result(answer)

    def range(self, serializable: object, **arguments: Any) -> Steps[RangeResult]:
        """Steps of ``Client.range``: as many pages as it takes, all at one revision."""
        command = self.range_command(**arguments)
        anywhere = check.flag("serializable", serializable)
        answer = yield from lasting_range(command, anywhere)
        return self.range_result(answer, command.keys_only, command.revision)

    def delete(self, key: object, end: object, prefix: object, prev: object, request_id: object) -> Steps[DeleteResult]:
        """Steps of ``Client.delete``."""
        command = self.delete_command(key, end, prefix, prev)
        answer = yield Call(command, False, self.request_id(request_id, command))
        return self.delete_result(answer)

    def txn(self, compare: object, success: object, failure: object, request_id: object) -> Steps[TxnResult]:
        """Steps of ``Client.txn``."""
        operation = self.txn_operation(compare, success, failure)
        command = self.txn_command(operation)
        answer = yield Call(command, False, self.request_id(request_id, command))
        return self.txn_result(operation, answer)

    def named_txn(self, operation: Op, name: RequestId | None) -> Steps[TxnResult]:
        """Steps of a transaction whose name stands for whatever it writes (``held`` must be at least 1): if another one
        was done under that name, this one counts as done. So if it succeeds there are no responses."""
        answer = _expect((yield from self.write(self.txn_command(operation), name)), TxnAnswer)
        if answer.succeeded:
            return TxnResult(True, (), answer.revision)
        return self.txn_result(operation, answer)

    def was_done(self, name: RequestId) -> Steps[bool]:
        """Ask whether a transaction was done under a name, by one that cannot hold (no version is below 0)."""
        never = TxnCompare(KeyRange(UNUSED_KEY), Target.VERSION, Relation.LESS, 0)
        return _expect((yield from self.write(Txn((never,), (), ()), name)), TxnAnswer).succeeded

    def write(self, command: Txn, name: RequestId | None) -> Steps[Answer]:
        """Steps of a transaction that is made already."""
        answer: Answer = yield Call(command, False, name)
        return answer

    def compact(self, revision: object) -> Steps[None]:
        """Steps of ``Client.compact``."""
        yield Call(Compact(check.whole_number("revision", revision, 1)))

    def revision(self) -> Steps[int]:
        """Steps of ``Client.revision``."""
        answer = yield Call(Read(Range(KeyRange(UNUSED_KEY), count_only=True)))
        return _expect(answer, RangeAnswer).revision

    def grant(self, command: LeaseGrant) -> Steps[LeaseGranted]:
        """Steps that grant a lease."""
        return _expect((yield Call(command)), LeaseGranted)

    def request_id(self, given: object, command: Put | Delete | Txn) -> RequestId | None:
        """A caller's ``request_id`` as the store knows it; one that a recipe has made already stays."""
        if given is None or isinstance(given, RequestId):
            return given
        return named(self.space, given, command)

    # -- commands -----------------------------------------------------------------------------------------------------

    def txn_operation(self, compare: object, success: object, failure: object) -> Op:
        """The arguments of a transaction as an ``Op``, checked to be lists."""
        return Op.txn(check.each("compare", compare), check.each("success", success), check.each("failure", failure))

    def put_command(self, key: object, value: object, lease: object, prev: object) -> Put:
        """The command of a put."""
        return Put(
            self.space + check.text_or_bytes("a key", key),
            None if isinstance(value, Keep) else check.encode_value(value, self.codec),
            KEEP_LEASE if isinstance(lease, Keep) else check.lease_id(lease),
            check.flag("prev", prev),
        )

    def get_command(self, key: object, revision: object) -> Range:
        """The command of a get."""
        return Range(KeyRange(self.space + check.text_or_bytes("a key", key)), _revision(revision))

    def range_command(
        self,
        key: object,
        end: object,
        prefix: object,
        limit: object,
        revision: object,
        sort: object,
        order: object,
        keys_only: object,
        count_only: object,
        uncounted: bool = False,
    ) -> Range:
        """The command of a range; if ``uncounted``, keys beyond the limit are not counted, only told to exist."""
        return Range(
            self.keys(key, end, prefix),
            _revision(revision),
            check.whole_number("limit", limit),
            Sort.KEY if sort is None else check.one_of("sort", sort, SORTS),
            check.one_of("order", order, ORDERS),
            check.flag("keys_only", keys_only),
            check.flag("count_only", count_only),
            uncounted,
        )

    def delete_command(self, key: object, end: object, prefix: object, prev: object) -> Delete:
        """The command of a delete."""
        return Delete(self.keys(key, end, prefix), check.flag("prev", prev))

    def txn_command(self, operation: Op, depth: int = 0) -> Txn:
        """The command of a transaction."""
        if depth > MAX_NESTED_TXNS:
            raise RequestTooLarge(f"transactions nest at most {MAX_NESTED_TXNS} deep")
        parts, depth = operation.arguments, depth + 1
        return Txn(
            tuple([self._comparison(condition) for condition in check.each("compare", parts["compare"])]),
            tuple([self._operation(each, depth) for each in check.each("success", parts["success"])]),
            tuple([self._operation(each, depth) for each in check.each("failure", parts["failure"])]),
        )

    def keys(self, key: object, end: object, prefix: object) -> KeyRange:
        """The range meant by ``key``, by ``key`` and ``end``, or by ``prefix``; it never leaves this view."""
        if (key is None) == (prefix is None):
            raise InvalidArgument("give exactly one of key and prefix")
        if prefix is not None:
            if end is not None:
                raise InvalidArgument("end goes with key, not with prefix")
            start = self.space + check.text_or_bytes("a prefix", prefix)
            return KeyRange(start, prefix_end(start))
        start = self.space + check.text_or_bytes("a key", key)
        if end is None:
            return KeyRange(start)
        if isinstance(end, End):
            return KeyRange(start, self._end)
        last = check.text_or_bytes("the end of a range", end)
        if not last:
            raise InvalidArgument("the end of a range is empty: raykeeper.END means to the last key")
        return KeyRange(start, self.space + last)

    def _operation(self, operation: object, depth: int) -> Put | Delete | Range | Txn | LeaseGrant | LeaseRevoke:
        """The command of one operation of a transaction, in this view."""
        if not isinstance(operation, Op):
            raise InvalidArgument(f"an operation of a transaction must be made by Op, not {check.shown(operation)}")
        if operation.kind == "put":
            return self.put_command(**operation.arguments)
        if operation.kind == "get":
            return self.get_command(**operation.arguments)
        if operation.kind == "range":
            return self.range_command(**operation.arguments)
        if operation.kind == "delete":
            return self.delete_command(**operation.arguments)
        if operation.kind == "grant":
            return grant_command(**operation.arguments)
        if operation.kind == "revoke":
            return revoke_command(**operation.arguments)
        return self.txn_command(operation, depth)

    def _comparison(self, condition: object) -> TxnCompare:
        """The comparison in this view; refused if the codec's bytes do not compare as its objects do."""
        if not isinstance(condition, Condition):
            raise InvalidArgument(f"a comparison must be made by Compare, not {check.shown(condition)}")
        target, operand = condition.target, condition.operand
        if target is _VALUE:
            if self.codec is not None and not (
                self.codec.comparable and condition.relation in (Relation.EQUAL, Relation.NOT_EQUAL)
            ):
                raise InvalidArgument(
                    f"values of {check.shown(self.codec)} cannot be compared by {condition.relation.name}"
                )
            operand = check.encode_value(operand, self.codec)
        elif target is _LEASE:
            operand = check.whole_number("a lease id", getattr(operand, "id", operand))
        else:
            operand = check.whole_number("what is compared", operand)
        keys = self.keys(condition.key, condition.end, condition.prefix)
        return TxnCompare(keys, target, condition.relation, operand)

    # -- results ------------------------------------------------------------------------------------------------------

    def put_result(self, answer: Answer) -> PutResult:
        """The result of a put."""
        answer = _expect(answer, PutAnswer)
        return PutResult(answer.revision, None if answer.prev is None else self._pair(answer.prev))

    def get_result(self, answer: Answer) -> KeyValue | None:
        """The result of a get."""
        items = _expect(answer, RangeAnswer).items
        return self._pair(items[0]) if items else None

    def range_result(self, answer: Answer, keys_only: bool = False, revision: int = 0) -> RangeResult:
        """The result of a range that was read as of a revision, 0 for the newest."""
        answer = _expect(answer, RangeAnswer)
        pairs = self._pairs(answer.items, None if keys_only else self.codec)
        return RangeResult(pairs, answer.count, answer.more, revision or answer.revision)

    def delete_result(self, answer: Answer) -> DeleteResult:
        """The result of a delete."""
        answer = _expect(answer, DeleteAnswer)
        return DeleteResult(answer.deleted, self._pairs(answer.prev, self.codec), answer.revision)

    def txn_result(self, operation: Op, answer: Answer) -> TxnResult:
        """The result of a transaction."""
        answer = _expect(answer, TxnAnswer)
        branch = operation.arguments["success" if answer.succeeded else "failure"]
        responses = [self._response(each, response) for each, response in zip(branch, answer.responses, strict=True)]
        return TxnResult(answer.succeeded, tuple(responses), answer.revision)

    def _response(self, operation: Op, answer: Answer) -> Any:
        """The result of one operation of a transaction, by its kind."""
        if operation.kind == "put":
            return self.put_result(answer)
        if operation.kind == "get":
            return self.get_result(answer)
        if operation.kind == "range":
            asked = operation.arguments
            return self.range_result(answer, asked["keys_only"], _revision(asked["revision"]))
        if operation.kind == "delete":
            return self.delete_result(answer)
        if operation.kind == "grant":
            return _expect(answer, LeaseGranted).ttl
        if operation.kind == "revoke":
            return None
        return self.txn_result(operation, answer)

    def _pair(self, item: Item) -> KeyValue:
        return self._pairs((item,), self.codec)[0]

    def _pairs(self, items: Iterable[Item], codec: Codec | None) -> tuple[KeyValue, ...]:
        skip = len(self.space)
        return tuple(
            [
                KeyValue(i.key[skip:], i.value, i.create_revision, i.mod_revision, i.version, i.lease, codec)
                for i in items
            ]
        )


# --- ranges that may be longer than a page ---------------------------------------------------------------------------
#
# All pages of a range are read at the revision of the first. The past is the same on every member, so every page but
# the first is read serializably, at a member that has reached that revision. What is returned names the newest revision
# when the first page was read.


def lasting_range(command: Range, serializable: bool) -> Steps[RangeAnswer]:
    """As :func:`whole_range`; one of the present starts again, at a newer revision, if it is compacted between two of
    its pages."""
    for _ in range(CLIENT_RANGE_RESTARTS):
        try:
            return (yield from whole_range(command, serializable))
        except CompactedError:
            if command.revision:
                raise
    raise Unavailable("the range was compacted away while it was read, again and again")


def whole_range(command: Range, serializable: bool) -> Steps[RangeAnswer]:
    """Steps that read a range completely, as its kind requires."""
    if command.count_only:
        return (yield from _counted(command, serializable))
    if command.sort is Sort.KEY:
        return (yield from _by_key(command, serializable))
    return (yield from _sorted(command, serializable))


def _counted(command: Range, serializable: bool) -> Steps[RangeAnswer]:
    """Count a range part after part."""
    answer = yield from page(command, serializable)
    newest, count = answer.revision, answer.count
    revision = command.revision or newest
    while isinstance(answer, RangePart):
        part = Range(KeyRange(answer.next, command.keys.end), revision, count_only=True)
        answer = yield from page(part, True, revision)
        count += answer.count
    return RangeAnswer(newest, (), count)


def _by_key(command: Range, serializable: bool) -> Steps[RangeAnswer]:
    """Read page after page in key order, up to the limit.

    The keys after the limit are only counted: by the first page, or, if its member stopped counting (``RangePart``),
    from where it stopped. Without a limit all keys come, and the first page need not count those that it leaves out.
    """
    beginning = command if command.limit else msgspec.structs.replace(command, uncounted=True)
    first = answer = yield from page(beginning, serializable)
    revision, items = command.revision or first.revision, list(first.items)
    rest = rest_of(command.keys, answer, command.descending)
    while rest is not None and (not command.limit or len(items) < command.limit):
        left = command.limit - len(items) if command.limit else 0
        following = Range(rest, revision, left, Sort.KEY, command.descending, command.keys_only, uncounted=True)
        answer = yield from page(following, True, revision)
        items += answer.items
        rest = rest_of(rest, answer, command.descending)
    if rest is None:
        return RangeAnswer(first.revision, tuple(items), len(items))
    count = first.count
    if isinstance(first, RangePart):
        uncounted = _beyond(command.keys, first.next, command.descending)
        count += (yield from _counted(Range(uncounted, revision, count_only=True), True)).count
    return RangeAnswer(first.revision, tuple(items), count, count > len(items))


def _sorted(command: Range, serializable: bool) -> Steps[RangeAnswer]:
    """Read in another order than that of the keys.

    A member sorts one part of the range and returns its first items, up to the limit; the parts are merged here. If a
    part's items do not fit into an answer, or the values that parts would be merged by are not returned
    (``keys_only``), the whole range is fetched in key order and sorted here.
    """
    limit = command.limit
    keys, revision, newest, count = command.keys, command.revision, 0, 0
    best: list[Item] = []
    with contextlib.suppress(RequestTooLarge):
        while True:
            part = Range(keys, revision, limit, command.sort, command.descending, command.keys_only)
            if keys is command.keys:
                answer = yield from page(part, serializable)
            else:
                answer = yield from page(part, True, revision)
            if answer.count > len(answer.items) and not (limit and len(answer.items) >= limit):
                break
            if keys is command.keys and isinstance(answer, RangeAnswer):
                return answer
            if command.keys_only and command.sort is Sort.VALUE:
                break
            newest = newest or answer.revision
            revision = revision or newest
            best += answer.items
            count += answer.count
            if isinstance(answer, RangeAnswer):
                best = in_order(best, command)
                del best[limit or count :]
                return RangeAnswer(newest, tuple(best), count, len(best) < count)
            keys = KeyRange(answer.next, command.keys.end)
    whole = yield from _by_key(Range(command.keys, revision), serializable)
    items = in_order(whole.items, command)
    if limit:
        items = items[:limit]
    if command.keys_only:
        items = [Item(i.key, b"", i.create_revision, i.mod_revision, i.version, i.lease) for i in items]
    return RangeAnswer(whole.revision, tuple(items), whole.count, len(items) < whole.count)


def in_order(items: Iterable[Item], command: Range) -> list[Item]:
    """Items in the order of a command. Ties are in key order, either way."""
    by_key = sorted(items, key=_SORT_KEYS[Sort.KEY])
    return sorted(by_key, key=_SORT_KEYS[command.sort], reverse=command.descending)


def page(command: Range, serializable: bool, at_least: int = 0) -> Steps[RangeAnswer | RangePart]:
    """Steps that read one page of a range, at a member that has applied revision ``at_least``."""
    answer = yield Call(Read(command, at_least), serializable)
    return answer if isinstance(answer, RangePart) else _expect(answer, RangeAnswer)


def rest_of(keys: KeyRange, answer: RangeAnswer | RangePart, descending: bool = False) -> KeyRange | None:
    """The part of a range, in key order, that a page did not return; ``None`` if it returned everything."""
    if isinstance(answer, RangePart) and answer.count == len(answer.items):
        return _beyond(keys, answer.next, descending)
    if isinstance(answer, RangePart) or answer.more:
        last = answer.items[-1].key
        return KeyRange(keys.key, last) if descending else KeyRange(last + b"\0", keys.end)
    return None


def _beyond(keys: KeyRange, next: bytes, descending: bool) -> KeyRange:
    return KeyRange(keys.key, next + b"\0") if descending else KeyRange(next, keys.end)


# --- leases ----------------------------------------------------------------------------------------------------------


def lease_seconds(ttl: object) -> float:
    """A TTL in seconds, checked against the bounds for leases."""
    seconds = check.seconds("ttl", ttl)
    if not LEASE_MIN_TTL_S <= seconds <= LEASE_MAX_TTL_S:
        raise InvalidArgument(f"the TTL of a lease must be between {LEASE_MIN_TTL_S:g} and {LEASE_MAX_TTL_S:g} seconds")
    return seconds


def grant_command(id: object, ttl: object, task: str = "", at: float = 0.0, owned: bool = False) -> LeaseGrant:
    """The command that grants a lease; with the id 0 the cluster chooses one. For the rest see ``LeaseGrant``."""
    return LeaseGrant(check.whole_number("a lease id", id), lease_seconds(ttl), task, at, owned)


def revoke_command(lease: object) -> LeaseRevoke:
    """The command that revokes a lease, given by its id or by a lease object."""
    return LeaseRevoke(check.whole_number("a lease id", getattr(lease, "id", lease), check.MIN_LEASE_ID))


# --- small things ----------------------------------------------------------------------------------------------------

A = TypeVar("A", bound=Answer)


def _expect(answer: Answer, kind: type[A]) -> A:
    if not isinstance(answer, kind):
        raise Unavailable(f"the cluster answered {type(answer).__name__} instead of {kind.__name__}", applied=None)
    return answer


def _revision(value: object) -> int:
    return 0 if value is None else check.whole_number("revision", value, 1)
