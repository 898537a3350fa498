"""The rules that an operation must keep whatever the keys hold, and how comparisons compare: those of etcd's KV API."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

from ...limits import MAX_NESTED_TXNS
from ...schema.answers import Failed, Reason
from ...schema.operations import Delete, KeyRange, Operation, Put, Relation, Target, Txn, TxnCompare
from .mvcc import bounds

VALUE: Final = Target.VALUE
"""To look it up in its class takes four times as long, in Python 3.11."""


class Rejected(Exception):
    """Ends an operation without effect; ``failed`` is its answer."""

    def __init__(self, reason: Reason, detail: int = 0, message: str = "") -> None:
        super().__init__(message)
        self.failed = Failed(reason, detail, message)


def compared_number(target: Target, mod: int, create: int, version: int, lease: int) -> int:
    """What a comparison of that kind looks at, of a key's record."""
    return (version, create, mod, 0, lease)[target]


def relation_holds(actual: int | bytes, relation: Relation, operand: int | bytes) -> bool:
    """Whether a comparison holds for what a key has."""
    holds: bool = _HOLDS[relation](actual, operand)
    return holds


_HOLDS: tuple[Callable[[Any, Any], Any], ...] = (operator.eq, operator.gt, operator.lt, operator.ne)
"""By ``Relation``."""


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


def is_well_formed(comparison: TxnCompare) -> bool:
    """Whether the operand is of the kind of what it is compared with."""
    return isinstance(comparison.operand, bytes) is (comparison.target is VALUE)


def check_operands(txn: Txn) -> None:
    """Refuse comparisons with an operand of the wrong kind, nested ones included."""
    for comparison in txn.compare:
        if not is_well_formed(comparison):
            raise Rejected(Reason.INVALID, message="a value is compared with bytes, everything else with a number")
    for branch in (txn.success, txn.failure):
        for operation in branch:
            if type(operation) is Txn:
                check_operands(operation)


def puts_and_deletes(operations: Sequence[Operation]) -> tuple[set[bytes], list[KeyRange]]:
    """The keys that the operations may put and the ranges that they may delete, over all branches of nested
    transactions.

    Raises:
        Rejected: operations that can both run put the same key, or put and delete it.
    """
    puts = {operation.key for operation in operations if type(operation) is Put}
    deletes: list[KeyRange] = []
    if len(puts) == len(operations):  # most are that
        return puts, deletes
    puts.clear()
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
