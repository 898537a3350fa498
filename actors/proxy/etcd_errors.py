"""etcd's errors on the wire: each a status code and a text, which clients compare to the letter (etcd: rpctypes).

Services raise what ``error`` makes of a constant here: a new exception each time, because one that was raised keeps the
frames that it went through. ``from_keeper_error`` says which of etcd's errors one of ours is. An unknown outcome is
always "request timed out": no client of etcd repeats a write after that on its own.
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import (
    AuthFailed,
    CompactedError,
    FutureRevisionError,
    KeeperError,
    LeaseNotFound,
    NoSpace,
    NotCaughtUp,
    PermissionDenied,
    RequestTimeout,
    RequestTooLarge,
    SessionExpired,
    Unavailable,
)
from ...schema.answers import Reason
from ...schema.auth_operations import AuthProblem
from .rpc_status import RpcCode, RpcError


class EtcdFailure(NamedTuple):
    """One of etcd's errors."""

    code: RpcCode
    text: str

    def error(self) -> RpcError:
        """An exception to raise."""
        return RpcError(self.code, self.text)


def _etcd(code: RpcCode, text: str) -> EtcdFailure:
    return EtcdFailure(code, f"etcdserver: {text}")


EMPTY_KEY = _etcd(RpcCode.INVALID_ARGUMENT, "key is not provided")
KEY_NOT_FOUND = _etcd(RpcCode.INVALID_ARGUMENT, "key not found")
VALUE_PROVIDED = _etcd(RpcCode.INVALID_ARGUMENT, "value is provided")
LEASE_PROVIDED = _etcd(RpcCode.INVALID_ARGUMENT, "lease is provided")
TOO_MANY_OPERATIONS = _etcd(RpcCode.INVALID_ARGUMENT, "too many operations in txn request")
DUPLICATE_KEY = _etcd(RpcCode.INVALID_ARGUMENT, "duplicate key given in txn request")
INVALID_SORT = _etcd(RpcCode.INVALID_ARGUMENT, "invalid sort option")
INVALID_COMPARE = _etcd(RpcCode.INVALID_ARGUMENT, "invalid compare")
"""Our own: etcd lets comparisons that it does not know hold."""
INVALID_CLIENT_VERSION = _etcd(RpcCode.INVALID_ARGUMENT, "invalid client api version")
REQUEST_TOO_LARGE = _etcd(RpcCode.INVALID_ARGUMENT, "request is too large")
BAD_MEMBER_URLS = _etcd(RpcCode.INVALID_ARGUMENT, "given member URLs are invalid")

COMPACTED = _etcd(RpcCode.OUT_OF_RANGE, "mvcc: required revision has been compacted")
FUTURE_REVISION = _etcd(RpcCode.OUT_OF_RANGE, "mvcc: required revision is a future revision")
LEASE_TTL_TOO_LARGE = _etcd(RpcCode.OUT_OF_RANGE, "too large lease TTL")

NO_SPACE = _etcd(RpcCode.RESOURCE_EXHAUSTED, "mvcc: database space exceeded")
TOO_MANY_REQUESTS = _etcd(RpcCode.RESOURCE_EXHAUSTED, "too many requests")

LEASE_NOT_FOUND = _etcd(RpcCode.NOT_FOUND, "requested lease not found")
MEMBER_NOT_FOUND = _etcd(RpcCode.NOT_FOUND, "member not found")

LEASE_EXISTS = _etcd(RpcCode.FAILED_PRECONDITION, "lease already exists")
NOT_ENOUGH_STARTED = _etcd(RpcCode.FAILED_PRECONDITION, "re-configuration failed due to not enough started members")
LAST_VOTER = EtcdFailure(RpcCode.UNKNOWN, NOT_ENOUGH_STARTED.text)
"""As etcd 3.5.1 answers: an error of its server that it has no code for."""
NOT_A_LEARNER = _etcd(RpcCode.FAILED_PRECONDITION, "can only promote a learner member")
LEARNER_NOT_READY = _etcd(RpcCode.FAILED_PRECONDITION, "can only promote a learner member which is in sync with leader")
NOT_LEADER = _etcd(RpcCode.FAILED_PRECONDITION, "not leader")
BAD_TRANSFEREE = _etcd(RpcCode.FAILED_PRECONDITION, "bad leader transferee")
BAD_DOWNGRADE_VERSION = _etcd(RpcCode.INVALID_ARGUMENT, "wrong downgrade target version format")
BAD_DOWNGRADE_TARGET = _etcd(RpcCode.INVALID_ARGUMENT, "invalid downgrade target version")
NO_DOWNGRADE = _etcd(RpcCode.FAILED_PRECONDITION, "no inflight downgrade job")
USER_EMPTY = _etcd(RpcCode.INVALID_ARGUMENT, "user name is empty")
INVALID_TOKEN = _etcd(RpcCode.UNAUTHENTICATED, "invalid auth token")
PERMISSION_DENIED = _etcd(RpcCode.PERMISSION_DENIED, "permission denied")
AUTHENTICATION_FAILED = _etcd(RpcCode.INVALID_ARGUMENT, "authentication failed, invalid user ID or password")
PERMISSION_NOT_GIVEN = _etcd(RpcCode.INVALID_ARGUMENT, "permission not given")
INVALID_AUTH_MANAGEMENT = _etcd(RpcCode.INVALID_ARGUMENT, "invalid auth management")
AUTH_NOT_ENABLED = _etcd(RpcCode.FAILED_PRECONDITION, "authentication is not enabled")

NO_LEADER = _etcd(RpcCode.UNAVAILABLE, "no leader")
TIMED_OUT = _etcd(RpcCode.UNAVAILABLE, "request timed out")

_BY_REASON: dict[int | None, EtcdFailure] = {
    Reason.COMPACTED: COMPACTED,
    Reason.FUTURE_REVISION: FUTURE_REVISION,
    Reason.LEASE_NOT_FOUND: LEASE_NOT_FOUND,
    Reason.LEASE_EXISTS: LEASE_EXISTS,
    Reason.KEY_NOT_FOUND: KEY_NOT_FOUND,
    Reason.TOO_LARGE: REQUEST_TOO_LARGE,
    Reason.FULL: TOO_MANY_REQUESTS,
    Reason.INVALID: DUPLICATE_KEY,
    Reason.NO_SPACE: NO_SPACE,
    Reason.NOT_CAUGHT_UP: LEARNER_NOT_READY,
    Reason.NO_QUORUM: NOT_ENOUGH_STARTED,
    Reason.NO_USER: USER_EMPTY,
    Reason.BAD_TOKEN: INVALID_TOKEN,
    Reason.DENIED: PERMISSION_DENIED,
}
"""INVALID: of what a proxy sends, the state machine refuses only a transaction that changes a key twice."""

_BY_PROBLEM: dict[int, EtcdFailure] = {
    AuthProblem.ROOT_USER_MISSING: _etcd(RpcCode.FAILED_PRECONDITION, "root user does not exist"),
    AuthProblem.ROOT_ROLE_MISSING: _etcd(RpcCode.FAILED_PRECONDITION, "root user does not have root role"),
    AuthProblem.USER_EXISTS: _etcd(RpcCode.FAILED_PRECONDITION, "user name already exists"),
    AuthProblem.USER_EMPTY: USER_EMPTY,
    AuthProblem.USER_MISSING: _etcd(RpcCode.FAILED_PRECONDITION, "user name not found"),
    AuthProblem.ROLE_EXISTS: _etcd(RpcCode.FAILED_PRECONDITION, "role name already exists"),
    AuthProblem.ROLE_MISSING: _etcd(RpcCode.FAILED_PRECONDITION, "role name not found"),
    AuthProblem.ROLE_EMPTY: _etcd(RpcCode.INVALID_ARGUMENT, "role name is empty"),
    AuthProblem.ROLE_NOT_GRANTED: _etcd(RpcCode.FAILED_PRECONDITION, "role is not granted to the user"),
    AuthProblem.PERMISSION_NOT_GRANTED: _etcd(RpcCode.FAILED_PRECONDITION, "permission is not granted to the role"),
    AuthProblem.INVALID_MANAGEMENT: INVALID_AUTH_MANAGEMENT,
    AuthProblem.NOT_ENABLED: AUTH_NOT_ENABLED,
    AuthProblem.FULL: TOO_MANY_REQUESTS,
}

_BY_TYPE: tuple[tuple[type[KeeperError], EtcdFailure], ...] = (
    (CompactedError, COMPACTED),
    (FutureRevisionError, FUTURE_REVISION),
    (LeaseNotFound, LEASE_NOT_FOUND),
    (RequestTooLarge, REQUEST_TOO_LARGE),
    (NoSpace, NO_SPACE),
    (NotCaughtUp, LEARNER_NOT_READY),
    (SessionExpired, TIMED_OUT),
    (AuthFailed, INVALID_TOKEN),
    (PermissionDenied, PERMISSION_DENIED),
    (RequestTimeout, TIMED_OUT),
)


def from_keeper_error(error: KeeperError) -> RpcError:
    """The error that etcd would answer."""
    if error.applied is None:
        return TIMED_OUT.error()
    found = _BY_PROBLEM.get(error.detail) if error.reason == Reason.AUTH else _BY_REASON.get(error.reason)
    if found is not None:
        return found.error()
    for kind, answer in _BY_TYPE:
        if isinstance(error, kind):
            return answer.error()
    if isinstance(error, Unavailable):
        return NO_LEADER.error()
    return RpcError(RpcCode.UNKNOWN, str(error))
