"""Events: what other threads ask of a member's loop.

Each carries what it needs. Those that are answered carry a ``done``, which the loop calls exactly once, with the
outcome or a refusal. ``done`` must be short: it runs in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...raft.messages import MemberChange
from ...schema.answers import Answer
from ...schema.commands import Command
from ...schema.frames import Kept, Refused
from .request_spans import WriteSpan


@dataclass(slots=True)
class Proposal:
    """Put a command into the log; ``done`` gets its answers after it was applied here."""

    data: bytes
    deadline: float
    arrival: float
    done: Callable[[tuple[Answer, ...] | Refused], None]
    session: int = 0
    """The session whose client sent the command, 0 for none: the command keeps it alive."""
    decoded: Command | None = None
    """What decoding ``data`` gives, if this member has done so: it was decoded from a frame with the same types."""
    span: WriteSpan | None = None
    """If it is sampled."""


@dataclass(slots=True)
class ReadAsked:
    """Wait until a read here is linearizable (or, if ``serializable``, until ``at_least`` is applied)."""

    deadline: float
    done: Callable[[Refused | None], None]
    serializable: bool = False
    at_least: int = 0


@dataclass(slots=True)
class LoneReadAsked:
    """Wait until a read may be answered that its client confirms. Where that cannot be, it is an ordinary one."""

    ordinary: ReadAsked
    answer: Callable[[int, tuple[int, ...]], None]
    """Told the term in which this member leads, and the voters that ``Node.confirming_voters`` names."""


@dataclass(slots=True)
class SessionRenewal:
    """Keep a session alive; ``done`` gets False if there is no such session."""

    session: int
    deadline: float
    arrival: float
    done: Callable[[bool | Refused], None]


@dataclass(slots=True)
class LeaseRenewal:
    """Keep leases alive; ``done`` gets an outcome for each."""

    leases: tuple[int, ...]
    deadline: float
    arrival: float
    done: Callable[[tuple[Kept, ...] | Refused], None]
    session: int = 0
    """The session whose client keeps them alive, 0 if there is none."""


@dataclass(slots=True)
class LeasesAsked:
    """The state of leases (of all, if none is named; of the ``most`` that end first, unless that is 0), linearizable.
    What ``done`` is given makes the list, on another thread than the loop's: (id, ttl, remaining) of those that
    exist."""

    leases: tuple[int, ...]
    deadline: float
    done: Callable[[Callable[[], list[tuple[int, float, float]]] | Refused], None]
    most: int = 0


@dataclass(slots=True)
class LeadershipTransfer:
    """Hand leadership to a member (0: to the most up-to-date one)."""

    target: int
    done: Callable[[Refused | None], None]


@dataclass(slots=True)
class MembershipChange:
    """Change the configuration; ``done`` gets the answer after the change was applied, or why it was not made."""

    changes: tuple[MemberChange, ...]
    deadline: float
    done: Callable[[tuple[Answer, ...] | Refused], None]
    context: bytes = b""


@dataclass(slots=True)
class CompactionAwaited:
    """Tell when everything that compaction at a revision has made unreachable is removed here."""

    revision: int
    deadline: float
    done: Callable[[Refused | None], None]


@dataclass(slots=True)
class Unreachable:
    """A message to a member could not be delivered."""

    member: int


@dataclass(slots=True)
class BackgroundDone:
    """Work that ran outside the loop has ended; ``then`` continues in the loop."""

    then: Callable[[], None]


InboxEvent = (
    Proposal
    | ReadAsked
    | LoneReadAsked
    | SessionRenewal
    | LeaseRenewal
    | LeasesAsked
    | LeadershipTransfer
    | MembershipChange
    | CompactionAwaited
    | Unreachable
    | BackgroundDone
)
