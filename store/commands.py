"""The commands of the state machine: what stands in the data of a log entry, and what applying it answers.

The structs are tagged and encode as compact arrays; an older member refuses a tag that it does not know. A command
holds everything that applying it needs: no clock, no randomness, no member's own state. Revisions, versions, leases
and transactions mean what they mean in the etcd v3 API.

The types of the fields bound their values (``Number`` and its like), so whatever can be decoded can be computed with.
"""

from __future__ import annotations

import enum
import struct
from typing import Annotated

import msgspec

from ..errors import KeeperError

Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""Counts, revisions, log indexes, terms, and ids where 0 means none. What lies outside cannot be decoded, so nobody has
to ask for it again: neither at the door nor when a command is applied."""
Id = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
LeaseChoice = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]
Operand = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Span = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Seconds; neither endless nor "not a number"."""

KEEP_LEASE = -1
"""``Put.lease``: leave the lease that the key has."""


class Sort(enum.IntEnum):
    """What a range is sorted by (etcd: RangeRequest.SortTarget)."""

    KEY = 0
    VERSION = 1
    CREATE_REVISION = 2
    MOD_REVISION = 3
    VALUE = 4


class KeyRange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One key (``end`` is ``None``), keys with ``key <= k < end``, or all from ``key`` on (``end`` is empty)."""

    key: bytes
    end: bytes | None = None


class Put(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Write one key (etcd: PutRequest)."""

    key: bytes
    value: bytes | None
    """``None`` leaves the value that the key has (and fails with KEY_NOT_FOUND if there is no such key)."""
    lease: LeaseChoice = 0
    """Lease id, 0 for none, ``KEEP_LEASE`` to leave what is there."""
    prev: bool = False


class Delete(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Delete a key or a range (etcd: DeleteRangeRequest)."""

    keys: KeyRange
    prev: bool = False


class Range(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """A read. ``revision`` 0 means now; ``limit`` 0 means no limit but the page's."""

    keys: KeyRange
    revision: Number = 0
    limit: Number = 0
    sort: Sort = Sort.KEY
    descending: bool = False
    keys_only: bool = False
    count_only: bool = False
    uncounted: bool = False
    """The count may be that of the items returned, if there are more: spares the pages after the first a whole pass."""


class Target(enum.IntEnum):
    """What a comparison looks at (etcd: Compare.CompareTarget)."""

    VERSION = 0
    CREATE_REVISION = 1
    MOD_REVISION = 2
    VALUE = 3
    LEASE = 4


class Relation(enum.IntEnum):
    """How a comparison relates what it finds to its operand (etcd: Compare.CompareResult)."""

    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


class Comparison(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """True if it holds for every key of the range that exists. If none does, it is made with all zeros, and any
    comparison of a value is false: etcd's rules (applyCompare), for a single key and for a range alike."""

    keys: KeyRange
    target: Target
    relation: Relation
    operand: Operand | bytes


class Compact(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Forget the versions that are overtaken at this revision (etcd: CompactionRequest)."""

    revision: Number


class LeaseGrant(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Make a lease of ``ttl`` seconds (etcd: LeaseGrantRequest)."""

    id: Number
    """0 lets the state machine choose one."""
    ttl: Span


class LeaseRevoke(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """End a lease and delete its keys (etcd: LeaseRevokeRequest)."""

    id: Number


class Txn(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """If all comparisons hold, do ``success``, else ``failure``, in one revision (etcd: TxnRequest).

    More than etcd's, a branch may grant leases, and revoke leases after all else. So a lock is taken, lease and all, in
    one write, and given back in one.
    """

    compare: tuple[Comparison, ...] = ()
    success: tuple[Put | Delete | Range | Txn | LeaseGrant | LeaseRevoke, ...] = ()
    failure: tuple[Put | Delete | Range | Txn | LeaseGrant | LeaseRevoke, ...] = ()


Operation = Put | Delete | Range | Txn | Compact | LeaseGrant | LeaseRevoke
"""What a client may ask for inside a session."""


class RequestId(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a caller named a request, so that its answer outlives the session."""

    name: bytes
    """The caller's name, after what tells his namespace from others."""
    meaning: bytes
    """A digest of what he asks for: a request of another meaning under the same name is refused."""
    held: Number = 0
    """So many transactions, from the outermost one inwards (each the first in the one around it), must have held their
    comparisons for the answer to be remembered. Those of a guard, or of somebody who will look again, say whether
    something may be done now, and not what: where they do not hold nothing is done, and it may be asked for again."""


class ClientWrite(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One write inside ``ClientWrites``, numbered within its session."""

    sequence: Number
    operation: Operation
    request_id: RequestId | None = None


class ClientWrites(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Writes of one session. Every sequence below ``low`` is answered or given up: its answer may be forgotten, and a
    write with such a sequence is refused without effect."""

    session: Number
    low: Number
    writes: tuple[ClientWrite, ...]


class OpenSession(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Answers ``SessionOpened``; repeated with the same nonce, the same session."""

    nonce: bytes
    ttl: Span


class CloseSession(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """End a session at its owner's wish."""

    session: Number


class Expiry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One session or lease that its proposer saw run out."""

    id: Number
    heard: Number
    """Log index of the last sign of life that the proposer saw in the log: void if another one came between."""


class ExpireSessions(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """Proposed by a leader only; void unless the entry's term is ``term``."""

    term: Number
    sessions: tuple[Expiry, ...]


class ExpireLeases(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """As ExpireSessions; each lease's keys go in one revision."""

    term: Number
    leases: tuple[Expiry, ...]


class Deadline(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The reading of the cluster's clock at which a lease runs out."""

    id: Number
    seconds: Span


class CheckpointLeases(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """When leases run out that nobody has kept alive for a while, so that a new leader does not start them anew. Void
    in any term but ``term``."""

    term: Number
    leases: tuple[Deadline, ...]


class RenewLeases(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """A sign of life of leases: they have their whole TTL again."""

    term: Number
    leases: tuple[Number, ...]


class RenewSessions(msgspec.Struct, frozen=True, array_like=True, tag=39):
    """The same of sessions."""

    term: Number
    sessions: tuple[Number, ...]


class PassTime(msgspec.Struct, frozen=True, array_like=True, tag=38):
    """So much time has passed since a reading of the cluster's clock; void if another such command came between."""

    since: Span
    seconds: Span
    index: Number
    """The last entry of the log that the proposer had applied, and the newest revision then."""
    revision: Number
    begins: bool = False
    """From here on, a sign of life of whatever has none in the log behind this entry goes through the log."""


class ForgetRequests(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """Drop the answers of request ids that were applied at or below this log index."""

    index: Number


class Configure(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """New limits and timings, as encoded by ``limits``; the state machine keeps them, the members follow."""

    settings: bytes
    based_on: bytes | None = None
    """The settings that these were made of: refused (``CHANGED``) if there are others by now. ``None``: never."""


class RegisterMember(msgspec.Struct, frozen=True, array_like=True, tag=29):
    """What a member says of itself when it starts: where it lives (see ``members.Description``), and what it knows."""

    member: Id
    pin: str
    base: str
    version: Number


class ReserveMember(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """Give out the id of a new member, and note its place; answers ``MemberReserved``. Repeated with the same nonce,
    the same id."""

    nonce: bytes
    pin: str
    base: str
    replaces: Number = 0
    """The member that it is to replace; a second successor of it is not given out, but the first one named again."""
    voter: bool = True
    """It is to become a voter once it has caught up."""


class RetireMember(msgspec.Struct, frozen=True, array_like=True, tag=31):
    """Note that a member that has no part in the configuration is gone for good, or will never come."""

    member: Id


class AlarmKind(enum.IntEnum):
    """What can be wrong with a member, so that all must know (etcd: AlarmType)."""

    NOSPACE = 0
    """It is over its quota, or its disk is nearly full: until that is over, the whole cluster takes no puts."""
    CORRUPT = 1
    """Its content is not that of the others."""


class SetAlarm(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """Raise a member's alarm, or end it. Alarms of members that leave the configuration end by themselves."""

    member: Id
    kind: AlarmKind
    on: bool
    message: str = ""
    """For people."""


class CompactHistory(msgspec.Struct, frozen=True, array_like=True, tag=36):
    """As ``Compact``, proposed by a leader by itself; nothing happens if the history is compacted that far already."""

    revision: Number


class HashContent(msgspec.Struct, frozen=True, array_like=True, tag=37):
    """Each member computes the hash of its content as of this entry, in the background. Answers ``ContentAsked``."""

    routine: bool = False
    """Asked by a leader on its own; the next one waits ``check_interval`` from here, whoever leads then."""


COMMANDS_VERSION = 1
"""The newest version of commands that this code knows. A command that older code does not know gets the next number
here and in ``SINCE``; no leader proposes it until every member of the configuration has told that it knows it."""

SINCE: dict[type, int] = {}
"""The version that brought a command or an operation; 1 for those that are not listed."""


def version_of(command: object) -> int:
    """The version that brought a command, with all that is in it."""
    version = SINCE.get(type(command), 1)
    if not SINCE:
        return version
    if isinstance(command, ClientWrites):
        return max([version, *(version_of(write.operation) for write in command.writes)])
    if isinstance(command, Txn):
        parts = (*command.compare, *command.success, *command.failure)
        return max([version, *map(version_of, parts)])
    return version


Administration = Configure | RegisterMember | ReserveMember | RetireMember | SetAlarm | HashContent
"""What administrators, the supervisor and background care may propose, in a frame of their own (``Administer``).

Each must be idempotent: whoever got no answer proposes it again."""

Command = (
    ClientWrites
    | OpenSession
    | CloseSession
    | ExpireSessions
    | ExpireLeases
    | CheckpointLeases
    | RenewLeases
    | RenewSessions
    | PassTime
    | ForgetRequests
    | Configure
    | RegisterMember
    | ReserveMember
    | RetireMember
    | SetAlarm
    | CompactHistory
    | HashContent
)


_NEWER = struct.Struct(">8sH")
_NEWER_BEGINS = b"\xc1RK-new-"
"""Before a command that version 1 did not have stands which one brought it: so a member that cannot read it knows
whether that is for its own sake. No encoding begins with that byte."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Command).decode


class CommandUnknown(KeeperError):
    """A log entry holds a command of a newer version of RayKeeper: a member that cannot do it must not go on, or it
    would part from the others in silence. Nothing is damaged; it goes on where it stopped once it runs that version."""


def encode(command: Command) -> bytes:
    """The data of a log entry."""
    version = version_of(command)
    data = _encode(command)
    return data if version == 1 else _NEWER.pack(_NEWER_BEGINS, version) + data


def decode_newer(data: bytes) -> Command | None:
    """The command in data that is no plain encoding of one; ``None`` if there is none.

    Raises:
        CommandUnknown: there is one, of a newer version.
    """
    if len(data) < _NEWER.size:
        return None
    begins, version = _NEWER.unpack_from(data)
    if begins != _NEWER_BEGINS:
        return None
    try:
        return _decode(memoryview(data)[_NEWER.size :])
    except (msgspec.MsgspecError, RecursionError):
        if version <= COMMANDS_VERSION:
            return None
        raise CommandUnknown(
            f"it needs version {version} of the cluster's commands, and this RayKeeper knows {COMMANDS_VERSION}: start "
            "the member with the version that it ran before, or a newer one"
        ) from None


# --- answers ---------------------------------------------------------------------------------------------------------


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A key with its value as of some revision (etcd: mvccpb.KeyValue)."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class PutAnswer(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """The revision that the put made, and the item before it if asked for."""

    revision: int
    prev: Item | None = None


class DeleteAnswer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The revision, how many keys were deleted, and the items before if asked for."""

    revision: int
    deleted: int
    prev: tuple[Item, ...] = ()


class RangeAnswer(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """``count`` is the number of keys in the range, whatever the limit; ``more`` says that items were left out."""

    revision: int
    items: tuple[Item, ...]
    count: int
    more: bool = False


class RangePart(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The beginning of a range that is too long to be looked at in one go: ask again from ``next`` on.

    ``count`` is the number of keys before it (behind it, if the read is descending), ``items`` the first of them: all,
    or as many as the limit and the page allow.
    """

    revision: int
    items: tuple[Item, ...]
    count: int
    next: bytes


class Done(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """For commands that answer nothing but the revision they left."""

    revision: int


class LeaseGranted(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The id of the lease, and the time to live that it got."""

    id: int
    ttl: float


class TxnAnswer(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Which branch ran, and an answer for each of its operations."""

    revision: int
    succeeded: bool
    responses: tuple[PutAnswer | DeleteAnswer | RangeAnswer | TxnAnswer | LeaseGranted | Done, ...]


class SessionOpened(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The id of the session that was opened."""

    session: int


class MemberReserved(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """The id of a new member."""

    member: int


class Reason(enum.IntEnum):
    """Why a command had no effect."""

    COMPACTED = 0
    FUTURE_REVISION = 1
    LEASE_NOT_FOUND = 2
    LEASE_EXISTS = 3
    KEY_NOT_FOUND = 4
    SESSION_EXPIRED = 5
    BELOW_MARK = 6
    """The sequence lies below the session's mark: answered or given up before."""
    TOO_LARGE = 7
    FULL = 8
    """A table of the state machine is at its bound (sessions, answers, request ids)."""
    INVALID = 9
    NO_SPACE = 10
    NOT_CAUGHT_UP = 11
    """A member cannot become a voter: it has not caught up with the log."""
    NO_QUORUM = 12
    """The change would leave a configuration of which too few members are heard of."""
    CHANGED = 13
    """What the command is based on has changed meanwhile."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """The command had no effect."""

    reason: Reason
    detail: int = 0
    """COMPACTED: the compact revision. FUTURE_REVISION: the current one."""
    message: str = ""


class ContentAsked(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """The log index at which every member takes the hash of its content."""

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
)
