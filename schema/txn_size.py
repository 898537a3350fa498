"""How large a transaction is: what the limit on its operations compares (etcd: checkTxnRequest).

etcd counts the longest of the three lists of a transaction, and grants nested ones what is left. Beside that the total
of everything is bounded, since members look at all of it.
"""

from __future__ import annotations

from ..limits import TXN_TOTAL_FACTOR
from .operations import Txn


def txn_total(txn: Txn, most: int) -> int | None:
    """The number of all operations and comparisons, nested ones included; ``None`` if they exceed
    ``limits.max_txn_operations``."""
    longest, total = _txn_size(txn)
    return None if longest > most or total > TXN_TOTAL_FACTOR * most else total


def _txn_size(txn: Txn) -> tuple[int, int]:
    """(the longest list, plus that of the nested transaction with the most; the total)."""
    compare, success, failure = len(txn.compare), len(txn.success), len(txn.failure)
    total, nested = compare + success + failure, 0
    for branch in (txn.success, txn.failure):
        for operation in branch:
            if type(operation) is Txn:
                inner, count = _txn_size(operation)
                nested = max(nested, inner)
                total += count
    return max(compare, success, failure) + nested, total
