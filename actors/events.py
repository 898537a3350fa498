"""What the threads around a member ask of its loop.

Each event carries what it needs and a ``done`` that the loop calls exactly once, with the outcome or with the reason
for none. ``done`` must be short: it runs in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..store.commands import Answer
from .protocol import Kept, Refused
from .raft.messages import Change


@dataclass(slots=True)
class Proposal:
    """Put a command into the log; ``done`` gets its answers once it is applied here."""

    data: bytes
    deadline: float
    arrival: float
    done: Callable[[tuple[Answer, ...] | Refused], None]
    session: int = 0
    """The session that the command proves to be alive, if any."""


@dataclass(slots=True)
class ReadAsked:
    """Wait until a read here is linearizable (or, if ``serializable``, until ``at_least`` is applied)."""

    deadline: float
    done: Callable[[Refused | None], None]
    serializable: bool = False
    at_least: int = 0


@dataclass(slots=True)
class SessionRenewal:
    """Keep a session alive; ``done`` gets False if there is no such session."""

    session: int
    deadline: float
    arrival: float
    done: Callable[[bool | Refused], None]


@dataclass(slots=True)
class LeaseRenewal:
    """Keep leases alive; ``done`` gets what became of each."""

    leases: tuple[int, ...]
    deadline: float
    arrival: float
    done: Callable[[tuple[Kept, ...] | Refused], None]


@dataclass(slots=True)
class LeasesAsked:
    """How leases stand (all of them, if none is named): (id, ttl, remaining) of those that exist, linearizable."""

    leases: tuple[int, ...]
    deadline: float
    done: Callable[[list[tuple[int, float, float]] | Refused], None]


@dataclass(slots=True)
class LeadershipTransfer:
    """Hand leadership to a member (0: to whoever is most up to date)."""

    target: int
    done: Callable[[Refused | None], None]


@dataclass(slots=True)
class MembershipChange:
    """Change the configuration; ``done`` gets the answer once the change has been applied, or why it was not made."""

    changes: tuple[Change, ...]
    deadline: float
    done: Callable[[tuple[Answer, ...] | Refused], None]
    context: bytes = b""


@dataclass(slots=True)
class Unreachable:
    """A message to a member could not be delivered."""

    member: int


@dataclass(slots=True)
class BackgroundDone:
    """Work that ran outside the loop has ended; ``then`` goes on in the loop."""

    then: Callable[[], None]


Event = (
    Proposal
    | ReadAsked
    | SessionRenewal
    | LeaseRenewal
    | LeasesAsked
    | LeadershipTransfer
    | MembershipChange
    | Unreachable
    | BackgroundDone
)
