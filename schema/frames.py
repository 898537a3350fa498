"""The frames between a client process and a member: each request frame gets one reply frame.

They are the same over an actor call and over a lane. A frame carries writes of one session, reads, or a request of
another kind; a process sends everything of a kind that has gathered in one frame. What operators ask is in
:mod:`operator_frames`; the unions of all requests and of all replies are here.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from ..limits import TRACEPARENT_LETTERS
from .answers import Answer, Failed, Item, RangeAnswer, RangePart
from .client_identity import ClientIdentity
from .commands import ClientWrites
from .frame_deadline import RelativeDeadline
from .operations import KeyRange, LeaseId, Number, Range
from .operator_frames import (
    Administer,
    AskClients,
    AskEvents,
    AskFigures,
    AskLoad,
    AskStatus,
    AwaitCompaction,
    BackupBegun,
    BackupPart,
    BeginBackup,
    ChangeMembership,
    ClientsListed,
    ClientStatus,
    Defragment,
    EndBackup,
    EventsListed,
    Figures,
    HashKeys,
    KeysHashed,
    LoadShown,
    ReadBackup,
    Status,
)

Traceparent = Annotated[str, msgspec.Meta(max_length=TRACEPARENT_LETTERS)]
"""Of the first sampled request of a frame, as W3C Trace Context writes it; empty if none is."""


class BareWrites(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """``Writes`` as they travel without a traceparent: not a byte longer."""

    cluster: Number
    deadline: RelativeDeadline
    commands: ClientWrites


class Writes(BareWrites, frozen=True, array_like=True, tag=1):
    """Writes of one session; only the leader accepts them. Answered with ``Written``."""

    traceparent: Traceparent = ""


class Read(msgspec.Struct, frozen=True, array_like=True):
    """One read inside a ``Reads`` frame."""

    range: Range
    at_least: Number = 0
    """Wait until the member has applied this revision: for serializable reads that must not go back."""


class BareReads(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """``Reads`` as they travel without a traceparent."""

    cluster: Number
    deadline: RelativeDeadline
    serializable: bool
    reads: tuple[Read, ...]


class Reads(BareReads, frozen=True, array_like=True, tag=2):
    """Reads; any member accepts them. All are linearizable, or all serializable. Answered with ``ReadReply``."""

    traceparent: Traceparent = ""


class LoneRead(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """One linearizable read, whose sender may be able to confirm the leader itself (:mod:`confirmed_read`). A leader
    that would need no more than one other voter's word answers ``UnconfirmedRead`` at once; any other member does as
    for ``Reads``."""

    cluster: Number
    deadline: RelativeDeadline
    read: Read
    traceparent: Traceparent = ""


class AskTerm(msgspec.Struct, frozen=True, array_like=True, tag=31):
    """Ask a member for its Raft term now; it answers ``CurrentTerm``."""

    cluster: Number
    deadline: RelativeDeadline


class Open(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Open a session with the cluster's ``session_ttl``; the leader answers ``Opened``."""

    cluster: Number
    deadline: RelativeDeadline
    nonce: bytes
    client: ClientIdentity | None = None
    """Who opens it."""


class KeepAlive(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Keep a session alive. Answered with ``Written``: ``Done`` once a quorum has confirmed the leader after the
    arrival, or ``Failed(SESSION_EXPIRED)``."""

    cluster: Number
    deadline: RelativeDeadline
    session: Number


class Close(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """End a session at the client's request; answered with ``Written(answers=(Done,))``."""

    cluster: Number
    deadline: RelativeDeadline
    session: Number


class KeepLeases(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Keep all leases of a process alive; answered with ``LeasesKept`` once a quorum has confirmed the leader after the
    arrival."""

    cluster: Number
    deadline: RelativeDeadline
    leases: tuple[LeaseId, ...]
    with_ttls: bool = False
    """Answer their TTLs, too: for senders that do not know them."""
    session: Number = 0
    """The sender's session, 0 for none. A lease that another session owns belongs to nobody from now on."""


class AskLeases(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Ask for the remaining time of these leases (of all, if none is named). The leader answers ``LeaseStatuses`` once
    a quorum has confirmed it."""

    cluster: Number
    deadline: RelativeDeadline
    leases: tuple[LeaseId, ...]
    keys: bool = False
    """Also return the attached keys."""
    owners: bool = False
    """Also return who made each."""
    most: Number = 0
    """If no lease is named: only so many, those that end first; 0 for all."""


class CreateWatch(msgspec.Struct, frozen=True, array_like=True):
    """Start a watch in a stream, under an id that the client has chosen."""

    id: Number
    keys: KeyRange
    start_revision: Number = 0
    """The first revision to see; 0 for the next one."""
    prev: bool = False
    puts: bool = True
    deletes: bool = True


class WatchPoll(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Wait for events of a stream of watches; any member answers ``Watched``.

    A stream lives in one member, and only while it is polled. If a poll or its answer is lost, the client drops the
    stream and starts another, with each watch at its next revision. So no event is lost or seen twice.
    """

    cluster: Number
    deadline: RelativeDeadline
    """Seconds after which the member answers even without events."""
    stream: bytes
    first: bool
    """This poll starts the stream; otherwise the member must know it."""
    create: tuple[CreateWatch, ...] = ()
    cancel: tuple[Number, ...] = ()


class Login(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """Ask for a token: for a user's password, or for a token that has not ended. Any member answers ``LoggedIn``, as of
    a moment after the arrival."""

    cluster: Number
    deadline: RelativeDeadline
    user: str = ""
    password: str = ""
    token: bytes = b""
    """In place of a password, if it is not empty: of the user whose token it is, if no user is named; else of the
    cluster itself. So a proxy logs in users whose certificates it has seen."""


class MonitorProcess(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """The process at the other end of this lane has this session: if the process dies, the session's leases are to end
    at once. Any member answers ``ProcessMonitored``. It asks the kernel who is at the other end, so only a process of
    its own node can be monitored, and only over a Unix socket. Send it again from time to time: a member forgets it
    when it restarts, and soon after the lane has ended."""

    cluster: Number
    deadline: RelativeDeadline
    session: Number


BareRequest = (
    Writes
    | Reads
    | LoneRead
    | AskTerm
    | Open
    | KeepAlive
    | Close
    | AskStatus
    | KeepLeases
    | AskLeases
    | WatchPoll
    | Administer
    | ChangeMembership
    | HashKeys
    | AwaitCompaction
    | Defragment
    | Login
    | BeginBackup
    | ReadBackup
    | EndBackup
    | AskClients
    | MonitorProcess
    | AskEvents
    | AskFigures
    | AskLoad
)


class AsUser(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """A request of a user, or of a process that says who it is. While users are not needed, and by lane, it is the
    request alone."""

    token: bytes
    """Empty for no user."""
    request: BareRequest
    client: ClientIdentity | None = None
    """Which process sends it, as it says itself, if it is an actor call (:mod:`said_by`): for the audit log."""


Request = BareRequest | AsUser


def is_poll(frame: bytes) -> bool:
    """Whether an encoded request is a poll of watches, without decoding it; false for any other bytes."""
    return frame[1:2] == _POLL or (frame[1:2] == _AS_USER and _is_users_poll(frame))


_POLL, _AS_USER = (bytes([cls.__struct_config__.tag]) for cls in (WatchPoll, AsUser))  # type: ignore[list-item]
_LENGTH_BYTES = {b"\xc4": 1, b"\xc5": 2}
"""MessagePack's headers of bytes: of how many bytes their length is."""


def _is_users_poll(frame: bytes) -> bool:
    """The same of a user's: what follows is the token, and the request."""
    size = _LENGTH_BYTES.get(frame[2:3], 0)
    inner = 3 + size + int.from_bytes(frame[3 : 3 + size], "big")
    return size > 0 and frame[inner + 1 : inner + 2] == _POLL


class Written(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Answers to the first writes, in order: as many as one log entry could do, at least one. Send the rest again."""

    answers: tuple[Answer, ...]
    term: int = 0
    """The Raft term of the member when it answered (etcd: ResponseHeader.raft_term); so in the other replies."""


class ReadReply(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Answers to the first reads, in order: as many as fit into one reply, at least one. Send the rest again."""

    answers: tuple[RangeAnswer | RangePart | Failed, ...]
    term: int = 0


class UnconfirmedRead(msgspec.Struct, frozen=True, array_like=True, tag=30):
    """The answer to a ``LoneRead``, as of the leader's commit index after the arrival. It counts only once one of these
    voters has said that its term is this one, too, asked after the read began."""

    answer: RangeAnswer | RangePart | Failed
    term: int
    voters: tuple[int, ...]


class CurrentTerm(msgspec.Struct, frozen=True, array_like=True, tag=31):
    """The Raft term of a member, after ``AskTerm`` had arrived."""

    member: int
    term: int


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A session was opened; it expires after ``ttl`` seconds without a sign of life."""

    session: int
    ttl: float


class Refusal(enum.IntEnum):
    """Why a member refused a whole frame."""

    NOT_LEADER = 0
    """Had no effect; ``leader`` is the leader if the member knows it."""
    OVERLOADED = 1
    """A queue or window is full; had no effect."""
    LOST = 2
    """Leadership was lost while the writes were in the log: their outcome is unknown. Send them again to the new
    leader; session and sequence make that safe."""
    TIMED_OUT = 3
    """The deadline passed in the member; the outcome of writes is unknown."""
    WRONG_CLUSTER = 4
    """The frame names another cluster id; had no effect."""
    NOT_SERVING = 5
    """The member does not serve (no data, damaged, starting, stopping); had no effect."""
    INVALID = 6
    """The frame cannot be decoded or exceeds a limit; had no effect. Do not send it again."""
    NO_USER = 7
    """The call needs a user; had no effect."""
    BAD_TOKEN = 8
    """The token has ended, or never was one; had no effect. Send the same with another token."""
    DENIED = 9
    """The user may not do this; had no effect."""
    WRONG_PASSWORD = 10
    """There is no such user, or this is not its password."""
    NOT_ENABLED = 11
    """Users are not needed, so there are no tokens."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The whole frame was refused; ``message`` is for people."""

    refusal: Refusal
    leader: int = 0
    message: str = ""


class Kept(enum.IntEnum):
    """The outcome of a lease's keep-alive."""

    GONE = 0
    ALIVE = 1
    ASK_AGAIN = 2
    """An expiry or a renewal is in the log but not applied yet: the outcome is unknown."""


class LeasesKept(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The outcomes, in the order of the requested leases."""

    kept: tuple[Kept, ...]
    revision: int = 0
    """The revision of the store when the leader answered."""
    term: int = 0
    ttls: tuple[float, ...] = ()
    """In seconds, 0 for a lease that is gone; empty unless asked for."""


class LeaseOwner(msgspec.Struct, frozen=True, array_like=True):
    """Who made a lease."""

    client: ClientStatus
    at: float
    """When, in seconds since 1970 by the client's clock; 0 if it has not said."""
    task: str = ""
    """For which Ray task, if any."""


class LeaseStatus(msgspec.Struct, frozen=True, array_like=True):
    """A lease as the leader sees it; times in seconds."""

    id: int
    ttl: float
    remaining: float
    keys: tuple[bytes, ...] = ()
    owner: LeaseOwner | None = None
    """If asked for."""


class LeaseStatuses(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The requested leases that exist."""

    leases: tuple[LeaseStatus, ...]
    revision: int = 0
    """The revision of the store when the leader answered."""
    term: int = 0
    total: int = 0
    """How many leases there are, if it was asked for those that end first."""


class WatchEvent(msgspec.Struct, frozen=True, array_like=True):
    """A change that a watch sees (etcd: mvccpb.Event). The item of a deleted key has no value and version 0."""

    deleted: bool
    item: Item
    prev: Item | None = None


class WatchBatch(msgspec.Struct, frozen=True, array_like=True):
    """Events of one watch: with these it has seen everything up to and including revision ``upto``."""

    id: int
    upto: int
    events: tuple[WatchEvent, ...]


class Watched(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Events of a stream. The answers of a stream are numbered from 1 and take effect in that order.

    With this answer, all watches of the stream have seen everything up to ``revision``, except those in ``lagging``.
    """

    number: int
    revision: int
    """The newest revision that this member has applied and its watches have been told of."""
    created: tuple[tuple[int, int], ...] = ()
    """(id, first revision that it will see) of the watches that have started."""
    batches: tuple[WatchBatch, ...] = ()
    lagging: tuple[int, ...] = ()
    """Ids of the watches that have more to read up to ``revision``."""
    compacted: tuple[tuple[int, int], ...] = ()
    """(id, compact revision) of the watches that ended because their next revision is compacted."""
    stale: bool = False
    """The member is cut off from the leader, or does not know the stream: start another one at another member."""
    term: int = 0
    denied: tuple[int, ...] = ()
    """Ids of the watches that ended because the user may not read their keys, or not any more."""


class LoggedIn(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The answer to ``Login``."""

    token: bytes
    user: str
    since: int
    """Identifies the user's password (see ``commands.Caller``)."""
    ttl: float
    """Seconds for which the token is good, at least about that."""
    revision: int = 0
    term: int = 0


class ProcessMonitored(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Whether the member will learn of the death of the process that has asked."""

    monitored: bool


Reply = (
    Written
    | ReadReply
    | UnconfirmedRead
    | CurrentTerm
    | Opened
    | Refused
    | Status
    | LeasesKept
    | LeaseStatuses
    | Watched
    | KeysHashed
    | LoggedIn
    | BackupBegun
    | BackupPart
    | ClientsListed
    | ProcessMonitored
    | EventsListed
    | Figures
    | LoadShown
)
