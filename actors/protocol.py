"""What a client process and a member say to each other: one frame asks, one frame answers.

The frames are the same whatever carries them (an actor call today, a lane later). A frame asks for writes of one
session, for reads, or for something about the session itself; a process sends what has gathered in one frame.
"""

from __future__ import annotations

import enum

import msgspec

from ..store.commands import Answer, ClientWrites, Failed, Range, RangeAnswer


class Writes(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Writes of one session; only the leader takes them."""

    cluster: int
    deadline: float
    """Seconds from arrival after which the sender no longer waits."""
    commands: ClientWrites


class Read(msgspec.Struct, frozen=True, array_like=True):
    """One read inside a ``Reads`` frame."""

    range: Range
    at_least: int = 0
    """Wait until the member has applied this revision (serializable reads that may not go back)."""


class Reads(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Reads; any member takes them. All are linearizable, or all serializable."""

    cluster: int
    deadline: float
    serializable: bool
    reads: tuple[Read, ...]


class Open(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Opens a session of the cluster's ``session_ttl``; the leader answers ``Opened``."""

    cluster: int
    deadline: float
    nonce: bytes


class KeepAlive(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Answered with ``Written``: ``Done`` once a quorum confirmed the leader after the arrival, or
    ``Failed(SESSION_EXPIRED)``."""

    cluster: int
    deadline: float
    session: int


class Close(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Ends a session at the client's wish; answered with ``Written(answers=(Done,))``."""

    cluster: int
    deadline: float
    session: int


class AskStatus(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Answered by any member at once, also by one that does not serve, with ``Status``."""


Request = Writes | Reads | Open | KeepAlive | Close | AskStatus


class Written(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Answers in the order of the writes."""

    answers: tuple[Answer, ...]


class ReadReply(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Answers in the order of the reads: of as many as fit into one reply, at least one. Ask again for the rest."""

    answers: tuple[RangeAnswer | Failed, ...]


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


class MemberStatus(msgspec.Struct, frozen=True):
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
    members: dict[int, str] = {}
    """Names of all members known to the state machine, by id."""
    settings: bytes = b""
    """Encoded settings of the cluster (``limits.encode_settings``); empty for the defaults."""


class Status(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The answer to ``AskStatus``."""

    status: MemberStatus


Reply = Written | ReadReply | Opened | Refused | Status
