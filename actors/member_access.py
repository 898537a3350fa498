"""How this process reaches the members of a cluster that it administers: by calls of their actors, or by other means.

Administration asks members with the frames that clients' hubs use, so it does not matter how these travel. A process
that is attached to Ray calls the actors (``actor_access.py``, loaded when it is first needed). A shell with a proxy on
its node hands the frames to that (``transport/relay_access.py``), and need not load Ray at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ..limits import STATUS_TIMEOUT_S
from ..schema.operator_frames import MemberStatus
from .deadline import at_most


class MemberAccess(Protocol):
    """For one call of administration, on one thread."""

    def members(self) -> Mapping[int, Any]:
        """The members that have an actor, looked up now: their actors by id, or ``None`` for each without Ray.

        Raises:
            ClusterNotFound: this process is not attached to Ray, and there is no other way.
            Unavailable: the lookup did not end before the deadline of the current call.
        """
        ...

    def ask(self, frames: Mapping[int, bytes], patience: float) -> Iterator[tuple[int, bytes]]:
        """Send a request to each of some members, of those that ``members`` has found, at once. Yields each reply as it
        comes, for ``patience`` seconds at most; a member that fails has none."""
        ...

    def statuses(self, members: Mapping[int, Any], patience: float) -> dict[int, MemberStatus]:
        """The statuses of those members that answer within ``patience`` seconds."""
        ...

    def move_leader(self, leader: int, target: int) -> bool:
        """Have the leader, one of those that ``members`` has found, hand leadership to another member; whether it has
        begun to. It may not lead any more, or not answer."""
        ...


_ways: dict[str, Callable[[], MemberAccess]] = {}
"""Other ways than by actor calls, by the cluster's name."""


def reach_by(cluster_name: str, way: Callable[[], MemberAccess] | None) -> None:
    """From now on this process reaches the members of a cluster in this way; by actor calls, for ``None``."""
    if way is None:
        _ways.pop(cluster_name, None)
    else:
        _ways[cluster_name] = way


def access_to(cluster_name: str) -> MemberAccess:
    """The way to the members of a cluster."""
    way = _ways.get(cluster_name)
    if way is not None:
        return way()
    from .actor_access import ActorAccess  # and with it Ray

    return ActorAccess(cluster_name)


def member_statuses(cluster_name: str, timeout: float = STATUS_TIMEOUT_S) -> dict[int, MemberStatus | None]:
    """The status of each member that has an actor; ``None`` for one that does not answer in time.

    Raises:
        ClusterNotFound, Unavailable: see ``MemberAccess.members``.
    """
    access = access_to(cluster_name)
    members = access.members()
    found = access.statuses(members, at_most(timeout))
    return {member: found.get(member) for member in members}


def answering(statuses: Mapping[int, MemberStatus | None]) -> dict[int, MemberStatus]:
    """Of those that have answered."""
    return {member: status for member, status in statuses.items() if status is not None}
