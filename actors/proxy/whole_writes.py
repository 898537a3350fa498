"""Transactions and deletes whose answers are too long for one reply of a member.

A member answers a write in one reply of bounded size, and remembers it; it refuses a write whose answer would be
longer, and has done nothing then. So the write is sent once more without what it reads, and what that would have seen
is read afterwards, in pages, at fixed revisions.

That is exact, since a transaction makes at most one revision and changes a key at most once. An operation sees of each
key what is there after the transaction, if an operation before it has changed the key, and else what was there before
the transaction. Both revisions stay readable until they are compacted. If they are compacted on the way, the outcome of
a write is unknown to its client, and a transaction that only reads runs again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from ...errors import CompactedError, KeeperError, RequestTimeout, RequestTooLarge
from ...limits import CLIENT_RANGE_RESTARTS
from ...schema.answers import Answer, DeleteAnswer, Item, PutAnswer, RangeAnswer, TxnAnswer
from ...schema.operations import Delete, KeyRange, Operation, Put, Range, Sort, Txn
from ..client.view import Call, Steps, in_order, whole_range

_Ran: TypeAlias = tuple[Operation, Answer]
"""An operation that was done, and its answer without what it read."""


def whole_write(command: Delete | Txn) -> Steps[Answer]:
    """Steps that do a write and get its whole answer, however long it is.

    Raises:
        KeeperError: it was refused, or its outcome is unknown.
    """
    answer: Answer
    try:
        answer = yield Call(command)
        return answer
    except RequestTooLarge:
        lean = _without_reads(command)
        if lean == command:
            raise
    for _ in range(CLIENT_RANGE_RESTARTS):
        answer = yield Call(lean)
        ran = list(_leaves(command, answer))
        changed = any(_has_changed(each) for _, each in ran)
        try:
            return (yield from _completed(command, answer, ran, changed))
        except KeeperError as error:
            if changed:
                raise _unread() from error
            if not isinstance(error, CompactedError):
                raise
    raise RequestTimeout("what a transaction reads was compacted away, again and again", applied=False)


def may_be_long(command: Operation) -> bool:
    """Whether the answer may have more than a few items."""
    if isinstance(command, Txn):
        return any(may_be_long(each) for branch in (command.success, command.failure) for each in branch)
    if isinstance(command, Range):
        return command.keys.end is not None and not command.count_only
    return isinstance(command, Delete) and command.prev and command.keys.end is not None


def items_of(answer: Answer) -> Iterator[Item]:
    """All items of an answer."""
    if isinstance(answer, TxnAnswer):
        for each in answer.responses:
            yield from items_of(each)
    elif isinstance(answer, RangeAnswer):
        yield from answer.items
    elif isinstance(answer, DeleteAnswer):
        yield from answer.prev
    elif isinstance(answer, PutAnswer) and answer.prev is not None:
        yield answer.prev


def _unread() -> RequestTimeout:
    return RequestTimeout("the write was applied, but what it read could not be read afterwards", applied=None)


def _without_reads(operation: Operation) -> Operation:
    """The same changes. Of a range a look at its first key remains, which is refused for the same revisions."""
    if isinstance(operation, Put):
        return Put(operation.key, operation.value, operation.lease)
    if isinstance(operation, Delete):
        return Delete(operation.keys)
    if isinstance(operation, Range):
        return Range(KeyRange(operation.keys.key), operation.revision, count_only=True)
    if isinstance(operation, Txn):
        success, failure = (
            tuple([_without_reads(each) for each in branch]) for branch in (operation.success, operation.failure)
        )
        return Txn(operation.compare, success, failure)  # type: ignore[arg-type]
    return operation


def _branch(txn: Txn, answer: TxnAnswer) -> Iterator[tuple[Operation, Answer]]:
    return zip(txn.success if answer.succeeded else txn.failure, answer.responses, strict=True)


def _leaves(operation: Operation, answer: Answer) -> Iterator[_Ran]:
    """The operations that were done, in order, nested ones in their place."""
    if isinstance(operation, Txn) and isinstance(answer, TxnAnswer):
        for each, response in _branch(operation, answer):
            yield from _leaves(each, response)
    else:
        yield operation, answer


def _has_changed(answer: Answer) -> bool:
    return isinstance(answer, PutAnswer) or (isinstance(answer, DeleteAnswer) and answer.deleted > 0)


def _completed(command: Operation, answer: Answer, ran: Sequence[_Ran], changed: bool) -> Steps[Answer]:
    """Read what each operation would have seen, and put that into the answer."""
    after: int = getattr(answer, "revision", 0)
    before = after - 1 if changed else after
    completed: list[Answer] = []
    for number, (operation, lean) in enumerate(ran):
        earlier = _written(ran[:number])
        if isinstance(operation, Range) and isinstance(lean, RangeAnswer):
            later = _written(ran[number:])
            found = yield from _range(operation, before, after, earlier, later)
            completed.append(RangeAnswer(lean.revision, found.items, found.count, found.more))
        elif isinstance(operation, Delete) and operation.prev and isinstance(lean, DeleteAnswer):
            found = yield from whole_range(Range(operation.keys, before), False)
            prev = tuple([item for item in found.items if not _is_in(item.key, earlier)])
            completed.append(DeleteAnswer(lean.revision, lean.deleted, prev))
        elif isinstance(operation, Put) and operation.prev and isinstance(lean, PutAnswer):
            found = yield from whole_range(Range(KeyRange(operation.key), before), False)
            completed.append(PutAnswer(lean.revision, found.items[0] if found.items else None))
        else:
            completed.append(lean)
    return _rebuilt(command, answer, iter(completed))


def _rebuilt(operation: Operation, answer: Answer, leaves: Iterator[Answer]) -> Answer:
    if isinstance(operation, Txn) and isinstance(answer, TxnAnswer):
        responses = [_rebuilt(each, response, leaves) for each, response in _branch(operation, answer)]
        return TxnAnswer(answer.revision, answer.succeeded, tuple(responses))  # type: ignore[arg-type]
    return next(leaves)


def _written(ran: Sequence[_Ran]) -> list[KeyRange]:
    """What operations have changed, or would have if there had been anything."""
    keys = []
    for operation, _ in ran:
        if isinstance(operation, Put):
            keys.append(KeyRange(operation.key))
        elif isinstance(operation, Delete):
            keys.append(operation.keys)
    return keys


def _is_in(key: bytes, written: Sequence[KeyRange]) -> bool:
    return any(key == each.key if each.end is None else _is_between(key, each) for each in written)


def _is_between(key: bytes, keys: KeyRange) -> bool:
    return keys.key <= key and (not keys.end or key < keys.end)


def _overlaps(keys: KeyRange, written: Sequence[KeyRange]) -> bool:
    for each in written:
        if each.end is None:
            one, other = each.key, keys
        elif keys.end is None:
            one, other = keys.key, each
        else:
            if (not each.end or keys.key < each.end) and (not keys.end or each.key < keys.end):
                return True
            continue
        if one == other.key if other.end is None else _is_between(one, other):
            return True
    return False


def _range(
    command: Range, before: int, after: int, earlier: Sequence[KeyRange], later: Sequence[KeyRange]
) -> Steps[RangeAnswer]:
    """What a range sees between writes that come earlier and later in its transaction."""
    keys = command.keys
    if command.revision:
        return (yield from whole_range(command, False))
    if not _overlaps(keys, later):
        return (yield from whole_range(_at(command, after), False))
    if not _overlaps(keys, earlier):
        return (yield from whole_range(_at(command, before), False))
    keys_only = command.count_only or (command.keys_only and command.sort is not Sort.VALUE)
    old = yield from whole_range(Range(keys, before, keys_only=keys_only), False)
    new = yield from whole_range(Range(keys, after, keys_only=keys_only), False)
    items = [item for item in old.items if not _is_in(item.key, earlier)]
    items += [item for item in new.items if _is_in(item.key, earlier)]
    count = len(items)
    if command.count_only:
        return RangeAnswer(after, (), count)
    items = in_order(items, command)[: command.limit or count]
    if command.keys_only:
        items = [Item(i.key, b"", i.create_revision, i.mod_revision, i.version, i.lease) for i in items]
    return RangeAnswer(after, tuple(items), count, len(items) < count)


def _at(command: Range, revision: int) -> Range:
    return Range(
        command.keys,
        revision,
        command.limit,
        command.sort,
        command.descending,
        command.keys_only,
        command.count_only,
    )
