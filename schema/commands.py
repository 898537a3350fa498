"""The commands of the state machine: the data of log entries.

The structs are tagged and encode as compact arrays; an older member refuses a tag that it does not know. A command
holds everything that applying it needs: no clock, no randomness, no state of one member alone.
"""

from __future__ import annotations

import enum
import struct

import msgspec

from ..errors import KeeperError
from .client_identity import ClientIdentity
from .operations import Id, LeaseId, Number, Operation, Span, Txn


class RequestId(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The name that a caller gave a request, so that its answer outlives the session."""

    name: bytes
    """The caller's name, with the caller's namespace before it."""
    meaning: bytes
    """A digest of the operation: another operation under the same name is refused."""
    held: Number = 0
    """The answer is remembered only if the comparisons of this many transactions held, from the outermost inwards (each
    is the first operation of the one around it). Such transactions only test whether the operation may run now, as a
    guard does. If they do not hold nothing is done, and the same request may be tried again."""


class ClientWrite(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One write inside ``ClientWrites``, numbered within its session."""

    sequence: Number
    operation: Operation
    request_id: RequestId | None = None


class ClientWrites(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """Writes of one session. ``low`` is its low mark: every sequence below it is answered or given up. Their answers
    may be forgotten, and a write with such a sequence is refused without effect."""

    session: Number
    low: Number
    writes: tuple[ClientWrite, ...]


class OpenSession(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """Open a session; answers ``SessionOpened``. A repeated command with the same nonce gets the same session."""

    nonce: bytes
    ttl: Span
    client: ClientIdentity | None = None
    """Who opens it, as it says."""


class CloseSession(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """End a session at its client's request."""

    session: Number


class Expiry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A session or lease that has run out, as the proposer saw it."""

    id: LeaseId
    heard: Number
    """Log index of the last sign of life that the proposer saw. Void if another one has come since."""


class ExpireSessions(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """End sessions that have run out. Proposed by a leader only; void unless the entry's term is ``term``."""

    term: Number
    sessions: tuple[Expiry, ...]


class ExpireLeases(msgspec.Struct, frozen=True, array_like=True, tag=24):
    """End leases that have run out, as ``ExpireSessions``; the keys of each lease are deleted in one revision."""

    term: Number
    leases: tuple[Expiry, ...]


class LeaseDeadline(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The time on the cluster's clock at which a lease runs out."""

    id: LeaseId
    seconds: Span


class CheckpointLeases(msgspec.Struct, frozen=True, array_like=True, tag=25):
    """Record when leases run out that have had no keep-alive for a while, so that a new leader does not start their TTL
    again (etcd: LeaseCheckpoint). Void in any term but ``term``."""

    term: Number
    leases: tuple[LeaseDeadline, ...]


class RenewLeases(msgspec.Struct, frozen=True, array_like=True, tag=26):
    """A sign of life of leases: each has its whole TTL again. Void in any term but ``term``."""

    term: Number
    leases: tuple[LeaseId, ...]
    by: Number = 0
    """The session whose client keeps them alive, 0 if that is not known. A lease that another session owns has no owner
    from here on."""


class RenewSessions(msgspec.Struct, frozen=True, array_like=True, tag=39):
    """A sign of life of sessions, as ``RenewLeases``."""

    term: Number
    sessions: tuple[Number, ...]


class PassTime(msgspec.Struct, frozen=True, array_like=True, tag=38):
    """Advance the cluster's clock: ``seconds`` have passed since it showed ``since``. Void if it shows another time."""

    since: Span
    seconds: Span
    index: Number
    """The last entry that the proposer had applied, and its newest revision then."""
    revision: Number
    begins: bool = False
    """From here on, the first sign of life of each session and lease goes through the log."""


class ForgetRequests(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """Forget request ids that were applied at or below this log index, with their answers."""

    index: Number


class Configure(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """New settings, as encoded by ``limits.encode_settings``. They are part of the state, and members follow them."""

    settings: bytes
    based_on: bytes | None = None
    """The settings that these were derived from: refused (``CHANGED``) if others are in effect. ``None``: no check."""


class RegisterMember(msgspec.Struct, frozen=True, array_like=True, tag=29):
    """What a member says about itself when it starts: where it lives (see ``member_record.MemberRecord``), and the
    newest version of commands that it knows."""

    member: Id
    pin: str
    base: str
    version: Number


class ReserveMember(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """Assign an id to a new member, and record its place; answers ``MemberReserved``. A repeated command with the same
    nonce gets the same id."""

    nonce: bytes
    pin: str
    base: str
    replaces: Number = 0
    """The member that it is to replace, 0 for none. A member has one successor: a second request gets the same one."""
    voter: bool = True
    """Whether it becomes a voter once it has caught up."""


class RetireMember(msgspec.Struct, frozen=True, array_like=True, tag=31):
    """Record that an id outside the configuration is gone for good, or will never be used."""

    member: Id


class AlarmKind(enum.IntEnum):
    """Conditions of one member that concern all (etcd: AlarmType)."""

    NOSPACE = 0
    """It is over its quota, or its disk is nearly full. Meanwhile the whole cluster refuses puts."""
    CORRUPT = 1
    """Its content differs from that of the others."""


class SetAlarm(msgspec.Struct, frozen=True, array_like=True, tag=35):
    """Raise or end a member's alarm (etcd: AlarmRequest). A member's alarms end when it leaves the configuration."""

    member: Id
    kind: AlarmKind
    on: bool
    message: str = ""
    """For people."""


class CompactHistory(msgspec.Struct, frozen=True, array_like=True, tag=36):
    """As ``Compact``, but proposed by a leader on its own: no effect if the history is already compacted that far."""

    revision: Number


class HashContent(msgspec.Struct, frozen=True, array_like=True, tag=37):
    """Every member hashes its content as of this entry, in the background. Answers ``ContentAsked``."""

    routine: bool = False
    """Proposed by a leader on its own. The next routine check is due ``check_interval`` after this one, under any
    leader."""


class EndDeadSessions(msgspec.Struct, frozen=True, array_like=True, tag=41):
    """The processes of these sessions are dead, as the kernel of their node has said. Each session ends, with the
    leases that it owns. Answers ``Failed(CHANGED)`` if that is more than one command does: then propose it again."""

    sessions: tuple[Number, ...]


class ClusterEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that has happened to the cluster, for operators."""

    kind: str
    """``election``, ``lost``, ``back``, ``alarm``, ``alarm over``, ``configuration``; or ``supervisor``: a step."""
    text: str
    at: Span = 0.0
    """Seconds since 1970, by the clock of the process that saw it; 0 if it has none."""
    member: Number = 0
    """Which member it is about, 0 for none; of an election, the leader."""
    number: Number = 0
    """Of an election the term, of an alarm its kind."""
    id: bytes = b""
    """Of an event that may be sent twice: it is kept once."""


class RecordEvents(msgspec.Struct, frozen=True, array_like=True, tag=42):
    """Keep these events with the others; the oldest are forgotten."""

    events: tuple[ClusterEvent, ...]


COMMANDS_VERSION = 1
"""The newest version of commands that this code knows. A new command gets the next number, here and in ``SINCE``. No
leader proposes it before every member of the configuration has said that it knows that version."""

SINCE: dict[type, int] = {}
"""The version that introduced a command or an operation; 1 for those that are not listed."""


def version_of(command: object) -> int:
    """The version that is needed to apply a command, including its operations."""
    version = SINCE.get(type(command), 1)
    if not SINCE:
        return version
    if isinstance(command, ClientWrites):
        return max([version, *(version_of(write.operation) for write in command.writes)])
    if isinstance(command, Txn):
        parts = (*command.compare, *command.success, *command.failure)
        return max([version, *map(version_of, parts)])
    return version


Administration = (
    Configure | RegisterMember | ReserveMember | RetireMember | SetAlarm | HashContent | EndDeadSessions | RecordEvents
)
"""The commands that administrators, the supervisor and members propose, in a frame of their own (``Administer``).

Each must be idempotent: it is proposed again if its answer is lost."""


class Caller(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who sent a command, as a token said that the leader has checked."""

    user: str
    """Empty for the cluster itself: its members and its supervisor."""
    since: Number
    """Identifies the user's password; of the cluster itself, when users were enabled. Tokens end with it."""
    until: Span
    """The time of the cluster's clock at which the token ends."""


class ByUser(msgspec.Struct, frozen=True, array_like=True, tag=40):
    """A command of a client, while users are needed. Whether the caller may give it is decided where it is applied, by
    the users and roles as of that entry: so a right that is taken ends at one place in the log."""

    caller: Caller
    command: ClientWrites | OpenSession | CloseSession | Administration


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
    | EndDeadSessions
    | RecordEvents
    | ByUser
)


_NEWER = struct.Struct(">8sH")
_NEWER_BEGINS = b"\xc1RK-new-"
"""Prefix of commands that need a version above 1, with that version: a member that cannot decode one knows whether it
is too old. No encoding begins with this byte."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Command).decode


class CommandUnknown(KeeperError):
    """A log entry holds a command of a newer version of RayKeeper. A member that does not know it must stop, or its
    state would silently diverge. Nothing is damaged: it continues once it runs that version."""


def encode(command: Command) -> bytes:
    """The data of a log entry."""
    version = version_of(command)
    data = _encode(command)
    return data if version == 1 else _NEWER.pack(_NEWER_BEGINS, version) + data


def decode_newer(data: bytes) -> Command | None:
    """Decode a command that carries its version; ``None`` if the data is not one.

    Raises:
        CommandUnknown: it needs a newer version.
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
