"""The frames by which operators look at a cluster and keep it up, and the replies to them: status, clients, events and
load, membership, compaction, backups, figures. What programs send is in :mod:`frames`, with the unions of all.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ..raft.messages import MemberChange
from ..telemetry import Family
from .client_identity import ClientIdentity
from .commands import Administration, ClusterEvent
from .frame_deadline import RelativeDeadline
from .member_record import MemberRecord
from .operations import Number
from .portable import Portable


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Ask for a member's status. Any member answers ``Status`` at once, even one that does not serve."""


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
    """leader, follower, candidate, pre-candidate, learner, "starting", or "not serving"."""
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

    @property
    def is_starting(self) -> bool:
        """Whether it opens its data, for the first time or again, or is about to: who ends it then only has it begin
        again."""
        return self.opening or self.role == "starting"


class Status(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The answer to ``AskStatus``."""

    status: MemberStatus


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
