"""What Raft nodes say to each other and keep on disk, under the names of the Raft paper.

Everything is an immutable msgspec struct that is encoded as a compact array. A message knows its sender, its receiver
and the sender's term; ``decode_messages`` accepts nothing else than a list of the kinds below.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
"""An index, a term, an id, or 0 for none. What lies outside cannot be decoded, and one more is still a number of 64
bits."""
Id = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
ClusterId = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
"""Drawn at random once, from all that there are."""
Span = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Seconds."""
Position = Annotated[int, msgspec.Meta(ge=-1, le=1 << 62)]


class EntryKind(enum.IntEnum):
    """What the data of a log entry means."""

    NORMAL = 0
    """A command of the state machine, or nothing (the no-op that opens a term)."""
    CONFIGURATION = 1
    """An encoded :class:`ConfigurationChange`."""


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One entry of the Raft log."""

    index: Number
    term: Number
    kind: EntryKind
    data: bytes


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a node must remember over a crash, besides its log: term, vote (0 for none), commit index, and for how long
    it may have promised to stand by a leader (see ``lease``)."""

    term: Number = 0
    vote: Number = 0
    commit: Number = 0
    promise: Span = 0.0


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """Who takes part. ``outgoing`` is empty unless the configuration is joint (thesis, section 4.3)."""

    voters: tuple[Id, ...] = ()
    outgoing: tuple[Id, ...] = ()
    learners: tuple[Id, ...] = ()
    learners_next: tuple[Id, ...] = ()
    """Outgoing voters that become learners when the joint configuration is left."""
    auto_leave: bool = False
    """The leader leaves the joint configuration by itself once it is committed."""
    index: Number = 0
    """Index of the log entry that made this configuration, 0 for the first one."""

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
    """What one step of a configuration change does to a member."""

    ADD_VOTER = 0
    """Adds a voter, or makes a learner one."""
    ADD_LEARNER = 1
    """Adds a learner, or makes a voter one."""
    REMOVE = 2


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One step of a configuration change."""

    kind: ChangeKind
    member: Id


class ConfigurationChange(msgspec.Struct, frozen=True, array_like=True):
    """The data of a CONFIGURATION entry. No changes means: leave the joint configuration."""

    base: Number
    """``Configuration.index`` of the configuration that this change is based on; on any other it is void."""
    changes: tuple[Change, ...] = ()
    context: bytes = b""
    """For the proposer: handed through to the state machine, not looked at by Raft."""


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    """What a snapshot replaces: the log up to and including (index, term), under this configuration."""

    index: Number
    term: Number
    configuration: Configuration
    id: str = ""
    """Names one particular file image: chunks of different images never mix."""
    size: Number = 0
    """Bytes of the whole image."""


class RequestVote(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """RequestVote RPC (paper, figure 2); ``pre_vote`` asks without raising the term (thesis, section 9.6)."""

    sender: Id
    to: Id
    term: Number
    last_log_index: Number
    last_log_term: Number
    pre_vote: bool = False
    leadership_transfer: bool = False
    """Sent on the leader's own wish: voters do not refuse it for having heard from a leader (thesis, 3.10)."""


class RequestVoteResponse(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The answer to RequestVote; ``pre_vote`` repeats the request's.

    A refusal also says what the voter knows to be committed, which is true in any term. A candidate that holds that
    entry learns from it, and with it perhaps of a configuration in which it no longer needs this voter.
    """

    sender: Id
    to: Id
    term: Number
    vote_granted: bool
    pre_vote: bool = False
    commit_index: Number = 0
    commit_term: Number = 0


class AppendEntries(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """AppendEntries RPC (paper, figure 2)."""

    sender: Id
    to: Id
    term: Number
    prev_log_index: Number
    prev_log_term: Number
    leader_commit: Number
    entries: tuple[Entry, ...] = ()
    quiet: bool = False
    """It only tells the commit index: success needs no answer. If it is lost, the next heartbeat tells."""


class AppendEntriesResponse(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """``success``: the log matches the leader's up to ``index``. Otherwise ``index`` is the refused
    ``prev_log_index`` and the hint says where the logs may meet (paper, end of section 5.3)."""

    sender: Id
    to: Id
    term: Number
    success: bool
    index: Position
    """-1 in the answer to a leader of an older term, whatever it sent."""
    hint_index: Number = 0
    hint_term: Number = 0


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """An empty AppendEntries that needs no log check; ``context`` confirms leadership for reads (thesis, 6.4), and
    ``promise`` asks to stand by the leader for so long (thesis, 6.4.1; see ``lease``)."""

    sender: Id
    to: Id
    term: Number
    leader_commit: Number
    context: Number = 0
    promise: Span = 0.0


class HeartbeatResponse(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The answer to Heartbeat; ``context`` repeats the request's, and promises what it asked for.

    A member that has lost its state but not its log says from which index on an image would do; 0: it needs none.
    """

    sender: Id
    to: Id
    term: Number
    context: Number = 0
    image_from: Number = 0


class InstallSnapshot(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """InstallSnapshot RPC (paper, figure 13): one chunk of an image."""

    sender: Id
    to: Id
    term: Number
    meta: SnapshotMeta
    offset: Number
    data: bytes
    done: bool


class InstallSnapshotResponse(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """``offset`` is where the receiver wants to go on; ``installed`` that its log now begins behind ``index``."""

    sender: Id
    to: Id
    term: Number
    index: Number
    id: str
    offset: Number
    installed: bool = False
    rejected: bool = False
    """The image is damaged or unusable: start again with a new one."""


class ReadIndex(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """A follower asks the leader for an index at which reads are linearizable (thesis, section 6.4)."""

    sender: Id
    to: Id
    term: Number
    context: Number


class ReadIndexResponse(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The leader's answer: reads are linearizable once ``index`` is applied."""

    sender: Id
    to: Id
    term: Number
    context: Number
    index: Number


class TimeoutNow(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The leader asks a caught-up follower to campaign at once (thesis, section 3.10)."""

    sender: Id
    to: Id
    term: Number


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
