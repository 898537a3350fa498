"""The rules that an operation must keep whatever the keys hold, and how comparisons compare: those of etcd's KV API."""

from __future__ import annotations

from collections.abc import Sequence

from ...limits import MAX_NESTED_TXNS
from ...schema.answers import Failed, Reason
from ...schema.operations import Delete, KeyRange, Operation, Put, Relation, Target, Txn
from .mvcc import bounds


class Rejected(Exception):
    """Ends an operation without effect; ``failed`` is its answer."""

    def __init__(self, reason: Reason, detail: int = 0, message: str = "") -> None:
        super().__init__(message)
        self.failed = Failed(reason, detail, message)


def compared_number(target: Target, mod: int, create: int, version: int, lease: int) -> int:
    """What a comparison of that kind looks at, of a key's record."""
    if target is Target.VERSION:
        return version
    if target is Target.CREATE_REVISION:
        return create
    return mod if target is Target.MOD_REVISION else lease


def relation_holds(actual: int | bytes, relation: Relation, operand: int | bytes) -> bool:
    """Whether a comparison holds for what a key has."""
    if relation is Relation.EQUAL:
        return actual == operand
    if relation is Relation.NOT_EQUAL:
        return actual != operand
    if relation is Relation.GREATER:
        return actual > operand  # type: ignore[operator]
    return actual < operand  # type: ignore[operator]


def nests_too_deep(operation: Operation, depth: int = 0) -> bool:
    """Whether transactions are nested deeper than is ever valid."""
    if type(operation) is Txn:
        if depth > MAX_NESTED_TXNS:
            return True
        for branch in (operation.success, operation.failure):
            for each in branch:
                if type(each) is Txn and nests_too_deep(each, depth + 1):
                    return True
    return False


def check_operands(txn: Txn) -> None:
    """Refuse comparisons with an operand of the wrong kind, nested ones included."""
    for comparison in txn.compare:
        if isinstance(comparison.operand, bytes) is not (comparison.target is Target.VALUE):
            raise Rejected(Reason.INVALID, message="a value is compared with bytes, everything else with a number")
    for branch in (txn.success, txn.failure):
        for operation in branch:
            if isinstance(operation, Txn):
                check_operands(operation)


def puts_and_deletes(operations: Sequence[Operation]) -> tuple[set[bytes], list[KeyRange]]:
    """The keys that the operations may put and the ranges that they may delete, over all branches of nested
    transactions.

    Raises:
        Rejected: operations that can both run put the same key, or put and delete it.
    """
    puts: set[bytes] = set()
    deletes: list[KeyRange] = []
    for operation in operations:
        if isinstance(operation, Put):
            more_puts, more_deletes = {operation.key}, []
        elif isinstance(operation, Delete):
            more_puts, more_deletes = set(), [operation.keys]
        elif isinstance(operation, Txn):  # only one branch runs, so both may touch the same keys
            more_puts, more_deletes = puts_and_deletes(operation.success)
            other_puts, other_deletes = puts_and_deletes(operation.failure)
            more_puts |= other_puts
            more_deletes += other_deletes
        else:
            continue
        if not puts.isdisjoint(more_puts):
            raise Rejected(Reason.INVALID, message="a transaction puts the same key twice")
        if (deletes and _any_inside(more_puts, deletes)) or (more_deletes and _any_inside(puts, more_deletes)):
            raise Rejected(Reason.INVALID, message="a transaction puts a key that it also deletes")
        puts |= more_puts
        deletes += more_deletes
    return puts, deletes


def _any_inside(keys: set[bytes], ranges: list[KeyRange]) -> bool:
    return any(start <= key and (end is None or key < end) for start, end in map(bounds, ranges) for key in keys)
