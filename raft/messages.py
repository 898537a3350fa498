"""The messages of Raft and what a node keeps on disk, under the names of the Raft paper.

Everything is an immutable msgspec struct, encoded as a compact array. A message carries its sender, its receiver and
the sender's term.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

RaftNumber = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
"""An index, a term, an id, or 0 for none. Values outside cannot be decoded, and adding one still fits into 64 bits."""
MemberId = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
ClusterId = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
"""Drawn at random once, when the cluster is created."""
PromiseSpan = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Seconds."""
Position = Annotated[int, msgspec.Meta(ge=-1, le=1 << 62)]


class EntryKind(enum.IntEnum):
    """The kind of data in a log entry."""

    NORMAL = 0
    """A command of the state machine, or nothing (the no-op that opens a term)."""
    CONFIGURATION = 1
    """An encoded :class:`ConfigurationChange`."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the Raft log."""

    index: RaftNumber
    term: RaftNumber
    kind: EntryKind
    data: bytes


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The state that a node must keep across a crash, besides its log: term, vote (0 for none), commit index, and the
    longest promise to a leader that may still run, in seconds (see ``leader_lease``)."""

    term: RaftNumber = 0
    vote: RaftNumber = 0
    commit: RaftNumber = 0
    promise: PromiseSpan = 0.0


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """The members and their roles. ``outgoing`` is empty unless the configuration is joint (thesis, section 4.3)."""

    voters: tuple[MemberId, ...] = ()
    outgoing: tuple[MemberId, ...] = ()
    learners: tuple[MemberId, ...] = ()
    learners_next: tuple[MemberId, ...] = ()
    """Outgoing voters that become learners when the joint configuration is left (etcd's ``learners_next``)."""
    auto_leave: bool = False
    """The leader leaves the joint configuration on its own once it is committed."""
    index: RaftNumber = 0
    """Index of the log entry that made this configuration; 0 for the first one."""

    @property
    def joint(self) -> bool:
        """Whether decisions need majorities of both ``voters`` and ``outgoing``."""
        return bool(self.outgoing)

    @property
    def members(self) -> frozenset[int]:
        """All ids that take part, voters or not."""
        return (
            frozenset(self.voters) | frozenset(self.outgoing) | frozenset(self.learners) | frozenset(self.learners_next)
        )


class ChangeKind(enum.IntEnum):
    """The effect of one step of a configuration change."""

    ADD_VOTER = 0
    """Adds a voter, or promotes a learner."""
    ADD_LEARNER = 1
    """Adds a learner, or demotes a voter."""
    REMOVE = 2


class MemberChange(msgspec.Struct, frozen=True, array_like=True):
    """One step of a configuration change."""

    kind: ChangeKind
    member: MemberId


class ConfigurationChange(msgspec.Struct, frozen=True, array_like=True):
    """The data of a CONFIGURATION entry. Empty ``changes`` leave the joint configuration."""

    base: RaftNumber
    """``Configuration.index`` of the configuration that this change is based on; void on any other."""
    changes: tuple[MemberChange, ...] = ()
    context: bytes = b""
    """For the proposer: passed on to the state machine; Raft does not look at it."""


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot: the state after the entry (index, term), under the configuration in effect there. It stands for the
    log up to and including that entry."""

    index: RaftNumber
    term: RaftNumber
    configuration: Configuration
    id: str = ""
    """Names one particular image: chunks of different images never mix."""
    size: RaftNumber = 0
    """Size of the image in bytes."""


class RequestVote(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """RequestVote RPC (paper, figure 2); ``pre_vote`` asks without raising the term (thesis, section 9.6)."""

    sender: MemberId
    to: MemberId
    term: RaftNumber
    last_log_index: RaftNumber
    last_log_term: RaftNumber
    pre_vote: bool = False
    leadership_transfer: bool = False
    """The leader has asked for this campaign: voters grant it although they hear from a leader (thesis, 3.10)."""


class RequestVoteResponse(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The answer to RequestVote; ``pre_vote`` repeats the request's.

    A refusal also tells an entry that the voter knows to be committed, which is true in any term. A candidate that
    holds that entry can commit it, and so may learn of a configuration in which it no longer needs this voter.
    """

    sender: MemberId
    to: MemberId
    term: RaftNumber
    vote_granted: bool
    pre_vote: bool = False
    commit_index: RaftNumber = 0
    commit_term: RaftNumber = 0


class AppendEntries(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """AppendEntries RPC (paper, figure 2)."""

    sender: MemberId
    to: MemberId
    term: RaftNumber
    prev_log_index: RaftNumber
    prev_log_term: RaftNumber
    leader_commit: RaftNumber
    entries: tuple[Entry, ...] = ()
    commit_only: bool = False
    """Only tells the commit index: success is not answered. If it is lost, the next heartbeat repeats it."""


class AppendEntriesResponse(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """``success``: the log matches the leader's up to ``index``, on disk. Otherwise ``index`` is the refused
    ``prev_log_index``, and the hint says where the logs may agree (paper, end of section 5.3)."""

    sender: MemberId
    to: MemberId
    term: RaftNumber
    success: bool
    index: Position
    """-1 in the answer to a leader of an older term."""
    hint_index: RaftNumber = 0
    hint_term: RaftNumber = 0
    wants_commits: bool = True
    """On success: the sender wants to be told each new commit index at once (``Node.want_commits``)."""


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """An empty AppendEntries without the log check. ``context`` is the number of the round, which confirms leadership
    for reads (thesis, 6.4). ``promise`` asks the follower to elect no other leader for this many seconds (thesis,
    6.4.1; see ``leader_lease``)."""

    sender: MemberId
    to: MemberId
    term: RaftNumber
    leader_commit: RaftNumber
    context: RaftNumber = 0
    promise: PromiseSpan = 0.0


class HeartbeatResponse(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The answer to Heartbeat. ``context`` repeats the request's, and gives the promise that it asked for.

    ``snapshot_from``: a member that has lost its state but not its log needs a snapshot of at least this index; 0 for
    none.
    """

    sender: MemberId
    to: MemberId
    term: RaftNumber
    context: RaftNumber = 0
    snapshot_from: RaftNumber = 0


class InstallSnapshot(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """InstallSnapshot RPC (paper, figure 13): one chunk of a snapshot's image."""

    sender: MemberId
    to: MemberId
    term: RaftNumber
    meta: SnapshotMeta
    offset: RaftNumber
    data: bytes
    done: bool


class InstallSnapshotResponse(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """``offset`` is the next byte that the receiver wants. ``installed``: the snapshot is in place, and the receiver's
    log equals the leader's up to ``index``."""

    sender: MemberId
    to: MemberId
    term: RaftNumber
    index: RaftNumber
    id: str
    offset: RaftNumber
    installed: bool = False
    rejected: bool = False
    """The image is damaged or unusable: start again with a new snapshot."""


class ReadIndex(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A follower asks the leader for an index at which reads are linearizable (thesis, section 6.4)."""

    sender: MemberId
    to: MemberId
    term: RaftNumber
    context: RaftNumber


class ReadIndexResponse(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The leader's answer: reads are linearizable once ``index`` is applied."""

    sender: MemberId
    to: MemberId
    term: RaftNumber
    context: RaftNumber
    index: RaftNumber


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The leader asks a caught-up follower to campaign at once (thesis, section 3.10)."""

    sender: MemberId
    to: MemberId
    term: RaftNumber


Message = (
    RequestVote
    | RequestVoteResponse
    | AppendEntries
    | AppendEntriesResponse
    | Heartbeat
    | HeartbeatResponse
    | InstallSnapshot
    | InstallSnapshotResponse
    | ReadIndex
    | ReadIndexResponse
    | TimeoutNow
)
