"""The answers: what applying a command or evaluating a read gives back to its caller."""

from __future__ import annotations

import enum

import msgspec

from .auth_operations import Permission


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A key with its value and numbers, as of some revision (etcd: mvccpb.KeyValue)."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class PutAnswer(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The revision that the put made, and the previous item if asked for."""

    revision: int
    prev: Item | None = None


class DeleteAnswer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The revision, the number of deleted keys, and the previous items if asked for."""

    revision: int
    deleted: int
    prev: tuple[Item, ...] = ()


class RangeAnswer(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """``count`` is the number of keys in the range, whatever the limit; ``more`` says that items were left out."""

    revision: int
    """The newest revision when the range was read, whichever revision was read (etcd: ResponseHeader.revision)."""
    items: tuple[Item, ...]
    count: int
    more: bool = False


class RangePart(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The first part of a range that is too long to read at once: ask again from ``next`` on.

    ``count`` is the number of keys before ``next`` (above it, if the read is descending), and ``items`` are the first
    of them, as many as the limit and the page allow.
    """

    revision: int
    items: tuple[Item, ...]
    count: int
    next: bytes


class Done(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The answer of commands that have no other: the revision after them."""

    revision: int


class LeaseGranted(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The id of the lease, and its time to live in seconds."""

    id: int
    ttl: float
    revision: int
    """The revision of the store, which a grant leaves as it is."""


class TxnAnswer(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The branch that ran, and an answer for each of its operations."""

    revision: int
    succeeded: bool
    responses: tuple[PutAnswer | DeleteAnswer | RangeAnswer | TxnAnswer | LeaseGranted | Done, ...]


class SessionOpened(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The id of the session that was opened."""

    session: int


class MemberReserved(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """The id assigned to a new member."""

    member: int


class AuthState(msgspec.Struct, frozen=True, array_like=True, tag=36):
    """Whether every call needs a user."""

    revision: int
    enabled: bool
    auth_revision: int
    """Counts the changes of users and roles (etcd: authRevision)."""


class Names(msgspec.Struct, frozen=True, array_like=True, tag=37):
    """Names of users or roles, in order."""

    revision: int
    names: tuple[str, ...]


class Permissions(msgspec.Struct, frozen=True, array_like=True, tag=38):
    """The permissions of a role, in the order of their names."""

    revision: int
    permissions: tuple[Permission, ...]


class Reason(enum.IntEnum):
    """Why a command had no effect."""

    COMPACTED = 0
    FUTURE_REVISION = 1
    LEASE_NOT_FOUND = 2
    LEASE_EXISTS = 3
    KEY_NOT_FOUND = 4
    SESSION_EXPIRED = 5
    BELOW_MARK = 6
    """The sequence is below the session's low mark: answered or given up before."""
    TOO_LARGE = 7
    FULL = 8
    """A table of the state machine has reached its bound (sessions, leases, answers, request ids)."""
    INVALID = 9
    NO_SPACE = 10
    NOT_CAUGHT_UP = 11
    """The member cannot become a voter: its log has not caught up."""
    NO_QUORUM = 12
    """The change would lead to a configuration without a reachable quorum."""
    CHANGED = 13
    """The data that the command is based on has changed in the meantime."""
    NO_USER = 14
    """The call needs a user, and names none."""
    BAD_TOKEN = 15
    """The user's token has ended: its time is over, or its password was changed, or the user deleted."""
    DENIED = 16
    """The user has no permission."""
    AUTH = 17
    """An operation on users or roles; ``detail`` is an ``AuthProblem``."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The command had no effect."""

    reason: Reason
    detail: int = 0
    """COMPACTED: the compact revision. FUTURE_REVISION: the newest revision. AUTH: an ``AuthProblem``. INVALID: of a
    change of the members, the id that no member has."""
    message: str = ""


class ContentAsked(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """The log index at which every member hashes its content."""

    index: int
    routine: bool = False


Answer = (
    PutAnswer
    | DeleteAnswer
    | RangeAnswer
    | RangePart
    | TxnAnswer
    | Done
    | SessionOpened
    | LeaseGranted
    | Failed
    | ContentAsked
    | MemberReserved
    | AuthState
    | Names
    | Permissions
)
