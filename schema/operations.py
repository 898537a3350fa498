"""The operations a client may ask for: reads, writes and transactions, which mean what they mean in the etcd v3 API.

They stand in the writes of a log entry and in the frames that ask for reads. The structs are tagged and encode as
compact arrays. The types of the fields bound their values (``Number`` and its like), so whatever can be decoded can be
computed with.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec

from .auth_operations import AuthOperation
from .key_range import KeyRange as KeyRange

Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""Counts, revisions, log indexes, terms, and ids where 0 means none. Other values cannot be decoded, so no code needs
to check them again: neither on arrival nor when a command is applied."""
Id = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
LeaseId = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""Any number of 64 bits, as in etcd; 0 means none."""
Operand = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Span = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Seconds; neither infinite nor NaN."""

KEEP_LEASE: Final = None
"""``Put.lease``: keep the lease that the key has (etcd: ignore_lease)."""


class Sort(enum.IntEnum):
    """The order of a range (etcd: RangeRequest.SortTarget)."""

    KEY = 0
    VERSION = 1
    CREATE_REVISION = 2
    MOD_REVISION = 3
    VALUE = 4


class Put(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Write one key (etcd: PutRequest)."""

    key: bytes
    value: bytes | None
    """``None`` keeps the value that the key has, and fails with KEY_NOT_FOUND if there is no such key."""
    lease: LeaseId | None = 0
    """Lease id; 0 for none, ``KEEP_LEASE`` to keep that of a key that exists: without one it fails with
    KEY_NOT_FOUND."""
    prev: bool = False


class Delete(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Delete a key or a range (etcd: DeleteRangeRequest)."""

    keys: KeyRange
    prev: bool = False


class Range(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """A read (etcd: RangeRequest). ``revision`` 0 means now; ``limit`` 0 means no limit but that of a page."""

    keys: KeyRange
    revision: Number = 0
    limit: Number = 0
    sort: Sort = Sort.KEY
    descending: bool = False
    keys_only: bool = False
    count_only: bool = False
    uncounted: bool = False
    """If there are more items than the answer holds, its count may be that of its items. This saves the pages after the
    first from counting the whole range."""


class Target(enum.IntEnum):
    """The attribute that a comparison reads (etcd: Compare.CompareTarget)."""

    VERSION = 0
    CREATE_REVISION = 1
    MOD_REVISION = 2
    VALUE = 3
    LEASE = 4


class Relation(enum.IntEnum):
    """The relation that must hold between the attribute and the operand (etcd: Compare.CompareResult)."""

    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


class TxnCompare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A comparison in a transaction (etcd: Compare). It holds if it holds for every existing key of the range. If there
    is none, the attributes count as 0, and a comparison of a value is false (etcd: applyCompare)."""

    keys: KeyRange
    target: Target
    relation: Relation
    operand: Operand | bytes


class Compact(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Drop the history below this revision (etcd: CompactionRequest)."""

    revision: Number


class LeaseGrant(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Grant a lease of ``ttl`` seconds (etcd: LeaseGrantRequest)."""

    id: LeaseId
    """0 lets the state machine choose the id."""
    ttl: Span
    task: str = ""
    """The Ray task that it is for, to be shown to people; at most ``MAX_IDENTITY_LETTERS`` of it are kept."""
    at: Span = 0.0
    """When its client asked for it, in seconds since 1970 by that process's clock; for people, and 0 if it is not said.
    No time is counted from it."""
    owned: bool = False
    """The session that grants it owns it: it ends when the session's process is known to be dead, unless another client
    has used it by then."""


class LeaseRevoke(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """End a lease and delete its keys, in one revision (etcd: LeaseRevokeRequest)."""

    id: LeaseId


class Txn(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """If all comparisons hold, run ``success``, otherwise ``failure``, in one revision (etcd: TxnRequest).

    Unlike in etcd, a branch may also grant leases, and revoke leases after everything else. So one write acquires a
    lock with its lease, and one releases both.
    """

    compare: tuple[TxnCompare, ...] = ()
    success: tuple[Put | Delete | Range | Txn | LeaseGrant | LeaseRevoke, ...] = ()
    failure: tuple[Put | Delete | Range | Txn | LeaseGrant | LeaseRevoke, ...] = ()


Operation = Put | Delete | Range | Txn | Compact | LeaseGrant | LeaseRevoke | AuthOperation
"""Everything that a client may ask for inside a session."""
