"""The checks of operations and reads: made by the client, and again by the member before anything happens."""

from __future__ import annotations

from typing import Final

from ..errors import InvalidArgument, RequestTooLarge
from ..limits import (
    AUTH_KEY_BYTES,
    LEASE_MAX_TTL_S,
    MAX_IDENTITY_LETTERS,
    MAX_NESTED_TXNS,
    MAX_PASSWORD_HASH_BYTES,
    MAX_REQUEST_ID_BYTES,
    MAX_USER_NAME_BYTES,
    REQUEST_DIGEST_BYTES,
    TXN_TOTAL_FACTOR,
    Limits,
)
from .auth_operations import (
    AuthEnable,
    AuthOperation,
    RoleGrantPermission,
    RoleRevokePermission,
    UserAdd,
    UserSetPassword,
)
from .commands import RequestId
from .operations import (
    Compact,
    Delete,
    KeyRange,
    LeaseGrant,
    LeaseRevoke,
    Operation,
    Put,
    Range,
    Target,
    Txn,
    TxnCompare,
)
from .txn_size import txn_total


def check_operation(operation: Operation, limits: Limits) -> int:
    """Check one write. Returns its size in bytes.

    Raises:
        RequestTooLarge: it exceeds a limit on bytes or on the operations of a transaction.
        InvalidArgument: a value is never valid.
    """
    if type(operation) is Put and operation.value is not None and operation.lease == 0:  # most are that
        size = len(operation.key)
        if size <= limits.max_key_bytes:
            size += len(operation.value)
            if size <= limits.max_request_bytes:
                return size
    budget = _Budget(limits)
    budget.operation(operation, depth=0)
    if type(operation) is Txn and txn_total(operation, limits.max_txn_operations) is None:
        raise RequestTooLarge(
            f"a transaction has at most {limits.max_txn_operations} comparisons, and as many operations in each branch;"
            f" with those of nested ones, which share them, {TXN_TOTAL_FACTOR * limits.max_txn_operations} in all"
        )
    return budget.bytes


def check_request_id(request_id: RequestId | None) -> None:
    """Check a request id.

    Raises:
        RequestTooLarge: its name or its digest is too long.
    """
    if request_id is not None and (
        len(request_id.name) > MAX_REQUEST_ID_BYTES + REQUEST_DIGEST_BYTES
        or len(request_id.meaning) > REQUEST_DIGEST_BYTES
    ):
        raise RequestTooLarge(f"request_id is over the limit of {MAX_REQUEST_ID_BYTES} bytes")


def check_range(request: Range, limits: Limits) -> int:
    """Check one read. Returns its size in bytes; raises as ``check_operation``."""
    keys = request.keys
    if keys.end is None and request.limit == 0 and request.revision == 0:  # most are that
        size = len(keys.key)
        if size <= limits.max_key_bytes and size <= limits.max_request_bytes:
            return size
    budget = _Budget(limits)
    budget.range(request)
    return budget.bytes


_MOST = (1 << 63) - 1
_VALUE: Final = Target.VALUE


def _within(what: str, number: int, least: int) -> None:
    if not least <= number <= _MOST:
        raise InvalidArgument(f"{what} is at least {least}, and at most 2^63 - 1: not {number}")


class _Budget:
    """Checks an operation with all its parts, and adds up its bytes."""

    def __init__(self, limits: Limits) -> None:
        self._max_key = limits.max_key_bytes
        self._max_bytes = limits.max_request_bytes
        self.bytes = 0

    def operation(self, operation: Operation, depth: int) -> None:
        """Check one operation. Each kind has a branch, and each branch counts all keys and values, because the limits
        hold for the sum. Transactions recurse; ``depth`` bounds that."""
        if isinstance(operation, Put):
            self._key(operation.key)
            if operation.value is not None:
                self._add(len(operation.value))
            if operation.lease:  # neither 0 nor KEEP_LEASE
                _within("a lease's id", operation.lease, -_MOST - 1)
        elif isinstance(operation, Delete):
            self._keys(operation.keys)
        elif isinstance(operation, Range):
            self.range(operation)
        elif isinstance(operation, Txn):
            self._txn(operation, depth)
        elif isinstance(operation, Compact):
            _within("the revision to compact at", operation.revision, 1)
        elif isinstance(operation, LeaseGrant):
            if not 0 < operation.ttl <= LEASE_MAX_TTL_S:
                raise InvalidArgument(f"a lease's TTL is over 0 and at most {LEASE_MAX_TTL_S:g} s, not {operation.ttl}")
            _within("a lease's id", operation.id, -_MOST - 1)
            if len(operation.task) > MAX_IDENTITY_LETTERS:
                raise RequestTooLarge(f"the name of a lease's task has over {MAX_IDENTITY_LETTERS} letters")
        elif isinstance(operation, LeaseRevoke):
            _within("a lease's id", operation.id, -_MOST - 1)
            if not operation.id:
                raise InvalidArgument("no lease has the id 0")
        else:
            self._auth(operation)

    def _auth(self, operation: AuthOperation) -> None:
        """Users and roles: the sizes of all that has one. Empty and unknown names are the state machine's to refuse."""
        for name in ("name", "role"):
            text = getattr(operation, name, "")
            if len(text.encode()) > MAX_USER_NAME_BYTES:
                raise RequestTooLarge(f"the name of a user or role is over the limit of {MAX_USER_NAME_BYTES} bytes")
        if isinstance(operation, (UserAdd, UserSetPassword)) and len(operation.hash) > MAX_PASSWORD_HASH_BYTES:
            raise RequestTooLarge("that is not the hash of a password")
        if isinstance(operation, AuthEnable) and len(operation.key) != AUTH_KEY_BYTES:
            raise InvalidArgument(f"the key that tokens are signed with has {AUTH_KEY_BYTES} bytes")
        if isinstance(operation, RoleGrantPermission):
            self._keys(operation.permission.names)
        elif isinstance(operation, RoleRevokePermission):
            self._keys(operation.names)

    def range(self, request: Range) -> None:
        self._keys(request.keys)
        _within("the limit of a range", request.limit, 0)
        _within("the revision of a range", request.revision, 0)

    def _txn(self, txn: Txn, depth: int) -> None:
        if depth > MAX_NESTED_TXNS:
            raise RequestTooLarge(f"transactions nest at most {MAX_NESTED_TXNS} deep")
        for comparison in txn.compare:
            self._comparison(comparison)
        depth += 1
        for operation in txn.success:
            self.operation(operation, depth)
        for operation in txn.failure:
            self.operation(operation, depth)

    def _comparison(self, comparison: TxnCompare) -> None:
        self._keys(comparison.keys)
        operand = comparison.operand
        if (comparison.target is _VALUE) is not isinstance(operand, bytes):
            raise InvalidArgument("a value is compared with bytes, everything else with a number")
        if isinstance(operand, bytes):
            self._add(len(operand))
        else:
            _within("what a comparison compares with", operand, -_MOST - 1)

    def _keys(self, keys: KeyRange) -> None:
        self._key(keys.key)
        if keys.end:
            self._key(keys.end)

    def _key(self, key: bytes) -> None:
        size = len(key)
        if size > self._max_key:
            raise RequestTooLarge(f"a key of {size} bytes is over the limit of {self._max_key}")
        self._add(size)

    def _add(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self._max_bytes:
            raise RequestTooLarge(f"a request is over the limit of {self._max_bytes} bytes")
