"""The frames between a client process and a member: each request frame gets one reply frame.

They are the same over an actor call and over a lane. A frame carries writes of one session, reads, or a request of
another kind; a process sends everything of a kind that has gathered in one frame.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from ..limits import TRACEPARENT_LETTERS
from ..raft.messages import MemberChange
from ..telemetry import Family
from .answers import Answer, Failed, Item, RangeAnswer, RangePart
from .client_identity import ClientIdentity
from .commands import Administration, ClientWrites, ClusterEvent
from .member_record import MemberRecord
from .operations import KeyRange, LeaseId, Number, Range
from .portable import Portable

RelativeDeadline = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
"""Seconds after the arrival of a frame until which its sender waits for the answer; 0 or less: not any more."""


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


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Ask for a member's status. Any member answers ``Status`` at once, even one that does not serve."""


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


class Administer(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """One administrative command. Only the leader accepts it; it answers ``Written`` with one answer once the command
    is applied. Commands are idempotent: after an unknown outcome the sender repeats them."""

    cluster: Number
    deadline: RelativeDeadline
    command: Administration


class AskClients(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """Ask who the clients are: those that have a session, and those that made leases which are still there. Any member
    answers ``ClientsListed``, as of a moment after the arrival."""

    cluster: Number
    deadline: RelativeDeadline
    after: Number = 0
    """Only those whose session's id is above this one."""


class AskEvents(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """Ask for what has happened to the cluster. Any member answers ``EventsListed``, as of a moment after the
    arrival."""

    cluster: Number
    deadline: RelativeDeadline
    after: Number = 0
    """Only events whose number is above this one."""


class ChangeMembership(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Change the configuration, in one step or through a joint one; only the leader accepts it.

    Answered with ``Written`` once the change is applied: ``Done``, even if it was applied before, or ``Failed`` with
    the reason.
    """

    cluster: Number
    deadline: RelativeDeadline
    changes: tuple[MemberChange, ...]
    context: bytes = b""


class HashKeys(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Hash the versions of all keys up to a revision (0: the newest) of the member that is asked. It answers
    ``KeysHashed``, or ``Written`` with ``Failed``: COMPACTED or FUTURE_REVISION."""

    cluster: Number
    deadline: RelativeDeadline
    revision: Number


class AwaitCompaction(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Wait until the member has removed what compaction at this revision has made unreachable. It answers ``Written``
    with ``Done``."""

    cluster: Number
    deadline: RelativeDeadline
    revision: Number


class Defragment(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Have the member return the space of what was deleted to its disk. It answers ``Written``: ``Done`` afterwards, or
    ``Failed`` with NO_SPACE if the disk lacks the room for the work."""

    cluster: Number
    deadline: RelativeDeadline


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


class BeginBackup(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Have the member make a backup of its state, which then holds all that was acknowledged before. It answers
    ``BackupBegun``."""

    cluster: Number
    deadline: RelativeDeadline
    created: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    """Seconds since 1970, for the backup's header."""


class ReadBackup(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Bytes of the image of a backup; the member answers ``BackupPart``. It drops a backup that is not read for
    ``BACKUP_IDLE_S``."""

    cluster: Number
    deadline: RelativeDeadline
    snapshot: str
    offset: Number
    size: Number


class EndBackup(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """The backup is not needed any more. The member answers ``Written`` with ``Done``."""

    cluster: Number
    deadline: RelativeDeadline
    snapshot: str


class MonitorProcess(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """The process at the other end of this lane has this session: if the process dies, the session's leases are to end
    at once. Any member answers ``ProcessMonitored``. It asks the kernel who is at the other end, so only a process of
    its own node can be monitored, and only over a Unix socket. Send it again from time to time: a member forgets it
    when it restarts, and soon after the lane has ended."""

    cluster: Number
    deadline: RelativeDeadline
    session: Number


class AskFigures(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """Ask for a member's metrics. Any member that serves answers ``Figures`` at once; one of an older version refuses
    the frame as invalid."""


class AskLoad(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """Ask who loads a member, and with what. Any member that serves answers ``LoadShown`` at once; one of an older
    version refuses the frame as invalid."""

    cluster: Number
    deadline: RelativeDeadline
    most: Number = 64
    """Clients, and prefixes, that are wanted at most."""


BareRequest = (
    Writes
    | Reads
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


class ContentHash(msgspec.Struct, frozen=True):
    """The hash of a member's content as of a log index, with the newest and the compact revision then."""

    index: int
    revision: int
    compact_revision: int
    digest: str


class AlarmStatus(msgspec.Struct, frozen=True):
    """An active alarm."""

    member: int
    kind: str
    """NOSPACE or CORRUPT."""
    message: str


class MemberStatus(Portable, frozen=True):
    """What a member says about itself."""

    cluster_name: str
    cluster: int
    member: int
    name: str
    role: str
    """leader, follower, candidate, pre-candidate, learner, or "not serving"."""
    term: int
    leader: int
    commit_index: int
    applied_index: int
    last_log_index: int
    first_log_index: int
    revision: int
    compact_revision: int
    voters: tuple[int, ...]
    learners: tuple[int, ...]
    db_size: int
    pid: int
    node: str
    """Ray node id."""
    why_not_serving: str = ""
    session_count: int = 0
    settings: bytes = b""
    """Encoded settings of the cluster (``limits.encode_settings``); empty for the defaults."""
    outgoing: tuple[int, ...] = ()
    """The outgoing voters of a joint configuration."""
    configuration_index: int = 0
    """Index of the log entry that made the configuration."""
    table: tuple[MemberRecord, ...] = ()
    """The records of the members that are not removed."""
    removed: tuple[MemberRecord, ...] = ()
    """The last members that were removed."""
    silent: dict[int, float] = msgspec.field(default_factory=dict)
    """Of a leader: for how many seconds each other member has been silent, since it leads at most."""
    leading_for: float = 0.0
    """Of a leader: for how many seconds it has led."""
    caught_up: tuple[int, ...] = ()
    """Of a leader: the members whose logs are up to date enough to be voters."""
    lost: bool = False
    """The member's log is damaged or its data gone: with this data it can never serve again under its id."""
    missing: bool = False
    """... because there is no data where it was started; it may be elsewhere."""
    version: int = 1
    """The newest version of commands that it knows."""
    active_version: int = 1
    """The newest version of commands that all members know, according to this one."""
    alarms: tuple[AlarmStatus, ...] = ()
    """The active alarms in this member's state."""
    contents: tuple[ContentHash, ...] = ()
    """The newest hashes of its content, oldest first."""
    contents_begin: int = 0
    """There is no hash at or below this log index, and there will be none."""
    db_size_in_use: int = 0
    """Of ``db_size``, without what was overwritten or deleted; roughly."""
    free_bytes: int = 0
    """Free bytes on its disk, when it last checked."""
    without_lane: dict[int, str] = msgspec.field(default_factory=dict)
    """Members to whose address it can open no lane, and why: messages to them go by actor calls."""
    clocks: dict[int, float] = msgspec.field(default_factory=dict)
    """By how many seconds the clocks of other members' hosts are ahead of this one's, as far as they were heard."""
    role_for: float = 0.0
    """For how many seconds it has had its role; of a follower, under this leader."""
    lost_since: dict[int, float] = msgspec.field(default_factory=dict)
    """The members that are lost, and when they were heard last (seconds since 1970, by the clock of the leader that
    missed them), as the replicated events have it: so every member knows, and a new leader too."""
    stuck_for: float = 0.0
    """For how many seconds its loop has been in one turn, or it has been opening its data; 0 if neither is so."""
    lacking_for: dict[int, float] = msgspec.field(default_factory=dict)
    """Of a leader: for how many seconds each other member's log has lacked what is committed."""
    puts: float = 0.0
    """Writes a second that it has taken, on average over the last seconds..."""
    gets: float = 0.0
    """... and reads."""
    opening: bool = False
    """It is opening its data, which it has the lock on."""


class Status(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The answer to ``AskStatus``."""

    status: MemberStatus


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


class ClientStatus(msgspec.Struct, frozen=True, array_like=True):
    """A client process."""

    session: int
    """The id of its session."""
    identity: ClientIdentity | None = None
    """Who it is, if it has said so."""
    open: bool = True
    """Whether it still has that session. One that has not, and has leases, is shown as long as these last."""
    leases: int = 0
    """How many leases made in that session are there."""
    user: str = ""
    """The user whose session it is; empty while users are not needed."""


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


class KeysHashed(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The hash of a member's keys (``store/state/key_hash.py``)."""

    hash: int
    hash_revision: int
    """Versions up to this revision are in it..."""
    compact_revision: int
    """... from this one on."""
    revision: int
    """The newest revision that the member has applied."""
    term: int = 0


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


class BackupBegun(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """A backup is there to be read: a file of ``head``, and of this many bytes of its image."""

    snapshot: str
    image_bytes: int
    head: bytes
    revision: int
    """The newest that it holds."""


class BackupPart(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Bytes of a backup's image; fewer than asked for at its end, or because a frame holds no more."""

    data: bytes


class ClientsListed(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """The clients, by the ids of their sessions; ``CLIENTS_PER_ANSWER`` at most."""

    clients: tuple[ClientStatus, ...]
    more: bool = False
    """Whether there are more after these."""
    term: int = 0


class ProcessMonitored(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """Whether the member will learn of the death of the process that has asked."""

    monitored: bool


class EventsListed(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Number and event, oldest first."""

    events: tuple[tuple[int, ClusterEvent], ...]
    term: int = 0


class Figures(msgspec.Struct, frozen=True, array_like=True, tag=27):
    """The metrics of a member's process."""

    families: tuple[Family, ...]


class Load(msgspec.Struct, frozen=True, array_like=True):
    """How much a second, over the last seconds."""

    writes: float = 0.0
    reads: float = 0.0
    events: float = 0.0
    """Of watches."""
    bytes: float = 0.0
    """Of writes, of answers to reads, and of events."""


class ClientLoad(msgspec.Struct, frozen=True, array_like=True):
    """The load by one client."""

    session: int
    """0 if it has none, or if the member does not know it, or does not believe it: then ``source`` says who it is."""
    source: str
    pid: int
    """Its process, if it is one of the member's machine and has no session; else 0."""
    client: ClientStatus | None
    """What is known of the session's client."""
    load: Load


class PrefixLoad(msgspec.Struct, frozen=True, array_like=True):
    """The load on the keys with one prefix, as they are stored."""

    prefix: bytes
    load: Load


class SlowRequest(msgspec.Struct, frozen=True, array_like=True):
    """A request that was slow."""

    at: float
    """When it was answered, in seconds since 1970 by the member's clock."""
    took: float
    """Seconds."""
    what: str
    """For people: kind and first key, and where the time went."""


class LoadShown(msgspec.Struct, frozen=True, array_like=True, tag=28):
    """The load of a member, heaviest first."""

    host: str
    clients: tuple[ClientLoad, ...]
    prefixes: tuple[PrefixLoad, ...]
    slow: tuple[SlowRequest, ...]
    """The last ones, oldest first."""


Reply = (
    Written
    | ReadReply
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
