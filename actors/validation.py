"""What a request must be like before anything happens: one check, made by the client and again by the member."""

from __future__ import annotations

from ..errors import InvalidArgument, RequestTooLarge
from ..limits import LEASE_MAX_TTL, MAX_NESTED_TXNS, MAX_REQUEST_ID_BYTES, REQUEST_DIGEST_BYTES, Limits
from ..store.commands import (
    KEEP_LEASE,
    Compact,
    Comparison,
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    RequestId,
    Target,
    Txn,
)


def check_operation(operation: Operation, limits: Limits) -> int:
    """Check one write and return its size in bytes.

    Raises:
        RequestTooLarge: over a limit on bytes or on the operations of a transaction.
        InvalidArgument: a value that is never valid.
    """
    budget = _Budget(limits)
    budget.operation(operation, depth=0)
    return budget.bytes


def check_request_id(request_id: RequestId | None) -> None:
    """Check the name of a write.

    Raises:
        RequestTooLarge: it, or the digest with it, is too long.
    """
    if request_id is not None and (
        len(request_id.name) > MAX_REQUEST_ID_BYTES + REQUEST_DIGEST_BYTES
        or len(request_id.meaning) > REQUEST_DIGEST_BYTES
    ):
        raise RequestTooLarge(f"request_id is over the limit of {MAX_REQUEST_ID_BYTES} bytes")


def check_range(request: Range, limits: Limits) -> int:
    """Check one read and return its size in bytes. Raises as ``check_operation``."""
    budget = _Budget(limits)
    budget.range(request)
    return budget.bytes


_MOST = (1 << 63) - 1


def _within(what: str, number: int, least: int) -> None:
    if not least <= number <= _MOST:
        raise InvalidArgument(f"{what} is at least {least}, and at most 2^63 - 1: not {number}")


class _Budget:
    """Walks an operation and adds up what it takes."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0
        self.operations = 0

    def operation(self, operation: Operation, depth: int) -> None:
        if isinstance(operation, Put):
            self._key(operation.key)
            self._add(len(operation.value or b""))
            _within("a lease's id", operation.lease, KEEP_LEASE)
        elif isinstance(operation, Delete):
            self._keys(operation.keys)
        elif isinstance(operation, Range):
            self.range(operation)
        elif isinstance(operation, Txn):
            self._txn(operation, depth)
        elif isinstance(operation, Compact):
            _within("the revision to compact at", operation.revision, 1)
        elif isinstance(operation, LeaseGrant):
            if not 0 < operation.ttl <= LEASE_MAX_TTL:
                raise InvalidArgument(f"a lease's TTL is over 0 and at most {LEASE_MAX_TTL:g} s, not {operation.ttl}")
            _within("a lease's id", operation.id, 0)
        elif isinstance(operation, LeaseRevoke):
            _within("a lease's id", operation.id, 1)

    def range(self, request: Range) -> None:
        self._keys(request.keys)
        _within("the limit of a range", request.limit, 0)
        _within("the revision of a range", request.revision, 0)

    def _txn(self, txn: Txn, depth: int) -> None:
        if depth > MAX_NESTED_TXNS:
            raise RequestTooLarge(f"transactions nest at most {MAX_NESTED_TXNS} deep")
        for comparison in txn.compare:
            self._count()
            self._comparison(comparison)
        for branch in (txn.success, txn.failure):
            for operation in branch:
                self._count()
                self.operation(operation, depth + 1)

    def _comparison(self, comparison: Comparison) -> None:
        self._keys(comparison.keys)
        if (comparison.target is Target.VALUE) != isinstance(comparison.operand, bytes):
            raise InvalidArgument("a value is compared with bytes, everything else with a number")
        if isinstance(comparison.operand, bytes):
            self._add(len(comparison.operand))
        else:
            _within("what a comparison compares with", comparison.operand, -_MOST - 1)

    def _count(self) -> None:
        self.operations += 1
        if self.operations > self.limits.max_txn_operations:
            raise RequestTooLarge(
                f"a transaction holds at most {self.limits.max_txn_operations} operations and comparisons"
            )

    def _keys(self, keys: KeyRange) -> None:
        self._key(keys.key)
        if keys.end:
            self._key(keys.end)

    def _key(self, key: bytes) -> None:
        if len(key) > self.limits.max_key_bytes:
            raise RequestTooLarge(f"a key of {len(key)} bytes is over the limit of {self.limits.max_key_bytes}")
        self._add(len(key))

    def _add(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self.limits.max_request_bytes:
            raise RequestTooLarge(f"a request is over the limit of {self.limits.max_request_bytes} bytes")
