"""What a client process and a member say to each other: one frame asks, one frame answers.

The frames are the same whatever carries them, an actor call or a lane. A frame asks for writes of one
session, for reads, or for something about the session itself; a process sends what has gathered in one frame.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from ..store.commands import (
    Administration,
    Answer,
    ClientWrites,
    Failed,
    Item,
    KeyRange,
    Number,
    Range,
    RangeAnswer,
    RangePart,
)
from ..store.members import Description
from ..store.portable import Portable
from .raft.messages import Change

Patience = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
"""Seconds from the arrival of a frame after which its sender no longer waits; not above 0: it waits no more."""


class Writes(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Writes of one session; only the leader takes them."""

    cluster: Number
    deadline: Patience
    commands: ClientWrites


class Read(msgspec.Struct, frozen=True, array_like=True):
    """One read inside a ``Reads`` frame."""

    range: Range
    at_least: Number = 0
    """Wait until the member has applied this revision (serializable reads that may not go back)."""


class Reads(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Reads; any member takes them. All are linearizable, or all serializable."""

    cluster: Number
    deadline: Patience
    serializable: bool
    reads: tuple[Read, ...]


class Open(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Opens a session of the cluster's ``session_ttl``; the leader answers ``Opened``."""

    cluster: Number
    deadline: Patience
    nonce: bytes


class KeepAlive(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Answered with ``Written``: ``Done`` once a quorum confirmed the leader after the arrival, or
    ``Failed(SESSION_EXPIRED)``."""

    cluster: Number
    deadline: Patience
    session: Number


class Close(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Ends a session at the client's wish; answered with ``Written(answers=(Done,))``."""

    cluster: Number
    deadline: Patience
    session: Number


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Answered by any member at once, also by one that does not serve, with ``Status``."""


class KeepLeases(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Keep-alives of all leases of a process; answered with ``LeasesKept`` once a quorum confirmed the leader after the
    arrival."""

    cluster: Number
    deadline: Patience
    leases: tuple[Number, ...]


class AskLeases(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """What is left of these leases (of all, if none is named); the leader answers ``Leases`` after a quorum's word."""

    cluster: Number
    deadline: Patience
    leases: tuple[Number, ...]
    keys: bool = False
    """Also the keys that are attached."""


class CreateWatch(msgspec.Struct, frozen=True, array_like=True):
    """Begins a watch in a stream, under an id that the client chose."""

    id: Number
    keys: KeyRange
    start_revision: Number = 0
    """The first revision to see; 0 for whatever comes next."""
    prev: bool = False
    puts: bool = True
    deletes: bool = True


class WatchPoll(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Waits for news of a stream of watches; any member answers ``Watched``.

    A stream lives in one member, and only while it is polled. If a poll or its answer is lost, the client gives the
    stream up and begins another, with each watch where it stood: so nothing is lost or seen twice.
    """

    cluster: Number
    deadline: Patience
    """Seconds after which the member answers even without news."""
    stream: bytes
    first: bool
    """The stream begins with this poll; otherwise the member must know it."""
    create: tuple[CreateWatch, ...] = ()
    cancel: tuple[Number, ...] = ()


class Administer(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """One command of administration; only the leader takes it, and answers ``Written`` with one answer once it is
    applied. Commands are idempotent: after an unknown outcome the sender asks again."""

    cluster: Number
    deadline: Patience
    command: Administration


class ChangeMembership(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """Changes the configuration, in one step or through a joint one; only the leader takes it.

    Answered with ``Written`` once the change has been applied, or had been before: ``Done``, or ``Failed`` with the
    reason why it was not made.
    """

    cluster: Number
    deadline: Patience
    changes: tuple[Change, ...]
    context: bytes = b""


Request = (
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
)


class Written(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Answers in the order of the writes: of as many as one log entry may do, at least one. Send the rest again."""

    answers: tuple[Answer, ...]


class ReadReply(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Answers in the order of the reads: of as many as fit into one reply, at least one. Ask again for the rest."""

    answers: tuple[RangeAnswer | RangePart | Failed, ...]


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A session was opened; it ends if nothing is heard from it for ``ttl`` seconds."""

    session: int
    ttl: float


class Refusal(enum.IntEnum):
    """Why a member did not answer a whole frame."""

    NOT_LEADER = 0
    """Had no effect here; ``leader`` may know better."""
    OVERLOADED = 1
    """A queue or window is full; had no effect."""
    LOST = 2
    """Leadership was lost with the writes in the log: the outcome is unknown here. Send them again to the new leader:
    session and sequence make that safe."""
    TIMED_OUT = 3
    """The deadline passed in the member; the outcome of writes is unknown."""
    WRONG_CLUSTER = 4
    """The frame names another cluster id; had no effect."""
    NOT_SERVING = 5
    """The member does not serve (no data, damaged, starting, stopping); had no effect."""
    INVALID = 6
    """The frame cannot be decoded or breaks a limit; had no effect; do not send it again."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The whole frame was refused; ``message`` is for people."""

    refusal: Refusal
    leader: int = 0
    message: str = ""


class ContentHash(msgspec.Struct, frozen=True):
    """The hash of a member's content as of a log index, with the newest revision and the compaction mark then."""

    index: int
    revision: int
    compact_revision: int
    digest: str


class AlarmStatus(msgspec.Struct, frozen=True):
    """An alarm that is on."""

    member: int
    kind: str
    """NOSPACE or CORRUPT."""
    message: str


class MemberStatus(Portable, frozen=True):
    """What a member says of itself."""

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
    """Voters that a joint configuration is about to leave."""
    configuration_index: int = 0
    """Index of the log entry that made the configuration."""
    table: tuple[Description, ...] = ()
    """What is known of the members that are not removed."""
    removed: tuple[Description, ...] = ()
    """The last members that were removed."""
    silent: dict[int, float] = msgspec.field(default_factory=dict)
    """Of a leader: for how many seconds each other member has not been heard of; no longer than it leads."""
    leading_for: float = 0.0
    """Of a leader: for how many seconds it has led."""
    caught_up: tuple[int, ...] = ()
    """Of a leader: the members that follow closely enough to be voters."""
    lost: bool = False
    """This member's log is damaged or its data gone: where it is, it can never serve again under its id."""
    missing: bool = False
    """... because its data is not where it was started; perhaps it is elsewhere."""
    version: int = 1
    """The newest version of commands that it knows."""
    active_version: int = 1
    """The newest version of commands that all members know, as far as this one knows."""
    alarms: tuple[AlarmStatus, ...] = ()
    """Alarms that are on, as far as this member's state knows."""
    contents: tuple[ContentHash, ...] = ()
    """Newest hashes of its content, oldest first."""
    contents_begin: int = 0
    """There are none of this log index, nor before it, and there will be none."""
    free_bytes: int = 0
    """Free on its disk, when it last looked."""


class Status(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The answer to ``AskStatus``."""

    status: MemberStatus


class Kept(enum.IntEnum):
    """What became of a lease's keep-alive."""

    GONE = 0
    ALIVE = 1
    ASK_AGAIN = 2
    """It is just being ended, or being renewed: only the log can tell."""


class LeasesKept(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """In the order of the leases asked for."""

    kept: tuple[Kept, ...]


class LeaseStatus(msgspec.Struct, frozen=True, array_like=True):
    """A lease as the leader sees it. Seconds."""

    id: int
    ttl: float
    remaining: float
    keys: tuple[bytes, ...] = ()


class Leases(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Those that exist of the leases asked for."""

    leases: tuple[LeaseStatus, ...]


class WatchEvent(msgspec.Struct, frozen=True, array_like=True):
    """A change that a watch sees; the item of a deleted key has no value and version 0."""

    deleted: bool
    item: Item
    prev: Item | None = None


class WatchBatch(msgspec.Struct, frozen=True, array_like=True):
    """News of one watch: with these events it has seen everything up to and including revision ``upto``."""

    id: int
    upto: int
    events: tuple[WatchEvent, ...]


class Watched(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """News of a stream. Answers of one stream are numbered, from 1; they count in that order.

    With this answer, all watches of the stream have seen everything up to ``revision``, except those in ``behind``.
    """

    number: int
    revision: int
    """The newest revision that this member has applied, as far as its watches know."""
    created: tuple[tuple[int, int], ...] = ()
    """(id, first revision that it will see) of the watches that have begun."""
    batches: tuple[WatchBatch, ...] = ()
    behind: tuple[int, ...] = ()
    """Watches that have more to read up to ``revision``."""
    compacted: tuple[tuple[int, int], ...] = ()
    """(id, compacted revision) of the watches that ended because their next revision is gone."""
    stale: bool = False
    """The member is cut off from the leader, or does not know the stream: go elsewhere, and begin another."""


Reply = Written | ReadReply | Opened | Refused | Status | LeasesKept | Leases | Watched
