"""The members that can be asked, and the one that leads, as far as this process knows.

One router serves all cores of a hub: what one core learns of the leader, the others know too. An answer that only a
leader gives settles the question; a hint in a refusal replaces what is known only until then. Which members are
quarantined is not the router's matter but each outbox's own.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from enum import Enum

from ....schema.frames import Refused


class Prefer(Enum):
    """The member to ask first."""

    LEADER = 1
    """The leader, which alone can answer."""
    NEAR = 2
    """Any member, near ones first: requests that every member can answer spread over all of them."""
    LEADER_IF_NEAR = 3
    """As ``NEAR``, but the leader if it is among those: it learns of a change first."""


class Router:
    """The members of one cluster, as one process knows them.

    Args:
        members: ids of the members that can be asked.
        leader: id of the leader, 0 if it is not known.
        near: ids of members known to run on this process's node; the set may grow.
        cluster: its name, for errors.
    """

    def __init__(
        self, members: Collection[int], *, leader: int = 0, near: Set[int] = frozenset(), cluster: str = ""
    ) -> None:
        self.cluster = f"cluster {cluster!r}" if cluster else "the cluster"
        """For people."""
        self.members = tuple(sorted(members))
        self.near = near
        self.leader = leader
        """Id of the leader, 0 if it is not known."""
        self.term = 0
        """The newest Raft term that a reply has named, 0 before the first."""
        self.wants_members = not members
        """The list of members may be out of date: the owner should call :meth:`set_members`."""
        self._foreign: set[int] = set()
        """Members that said that they belong to another cluster."""

    def set_members(self, members: Collection[int]) -> None:
        """Replace the list of members."""
        self.wants_members = not members
        self.members = tuple(sorted(members))
        self._foreign.intersection_update(self.members)

    def note_leader(self, member: int) -> None:
        """The member has answered what only a leader answers."""
        self.leader = member
        self._foreign.discard(member)

    def take_hint(self, refused: Refused, member: int) -> int:
        """Learn the leader from a member's refusal.

        Returns:
            Its id; 0 if the refusal names none, names its own sender, or names a member that is not in the list.
        """
        leader = refused.leader
        if leader and leader not in self.members:
            self.wants_members = True
            leader = 0
        if leader == member:
            leader = 0
        if leader or self.leader == member:
            self.leader = leader
        return leader

    def note_no_answer(self, member: int) -> None:
        """The member failed or was silent, so it may no longer lead."""
        if self.leader == member:
            self.leader = 0

    def note_failures(self, times: int) -> None:
        """This many requests in a row failed. More than there are members: all of them may have left the cluster."""
        if times > len(self.members):
            self.wants_members = True

    def note_foreign(self, member: int) -> bool:
        """A member said that it belongs to another cluster; whether all known members did."""
        self._foreign.add(member)
        return self._foreign.issuperset(self.members)

    def note_ours(self, member: int) -> None:
        """The member has answered as one of this cluster."""
        self._foreign.discard(member)
