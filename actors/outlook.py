"""One look at a cluster from outside: what its members say, what Ray says, and what of both can be relied on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from ..limits import STATUS_TIMEOUT
from .client.deadline import at_most
from .placement import Node, alive_nodes
from .protocol import MemberStatus
from .raft.messages import Configuration
from .roster import member_actors
from .seat import Seat


@dataclass(frozen=True)
class Outlook:
    """What one look showed.

    Attributes:
        nodes: Ray nodes that are alive.
        actors: handles of the members' actors that Ray lists.
        statuses: what those said that answered.
        failed: members whose actor Ray says cannot be called; one that only is slow is not among them.
    """

    nodes: tuple[Node, ...]
    actors: Mapping[int, Any]
    statuses: Mapping[int, MemberStatus]
    failed: frozenset[int]

    @property
    def leader(self) -> MemberStatus | None:
        """The leader of the highest term that says so."""
        leaders = [status for status in self.statuses.values() if status.role == "leader"]
        return max(leaders, key=lambda status: status.term, default=None)

    @property
    def best(self) -> MemberStatus | None:
        """The leader, or else whoever knows the newest configuration."""
        known = [status for status in self.statuses.values() if status.voters]
        newest = max(known, key=lambda status: (status.configuration_index, status.applied_index), default=None)
        return self.leader or newest

    @property
    def configuration(self) -> Configuration:
        """The newest configuration that is known; without voters if none is."""
        best = self.best
        return Configuration() if best is None else configuration_of(best)


def configuration_of(status: MemberStatus) -> Configuration:
    """The configuration that a member told of."""
    return Configuration(
        voters=status.voters, outgoing=status.outgoing, learners=status.learners, index=status.configuration_index
    )


def homes(outlook: Outlook) -> dict[int, str]:
    """For each member, the id of the node that it lives on, or will as soon as its actor runs; those that are alive."""
    best, alive = outlook.best, {node.id for node in outlook.nodes}
    found = {} if best is None else {known.id: _node_of(known.pin, outlook.nodes) for known in best.table if known.pin}
    found.update({member: status.node for member, status in outlook.statuses.items()})
    taking_part = set(outlook.configuration.members) | ({known.id for known in best.table} if best else set())
    return {member: node for member, node in found.items() if node in alive and member in taking_part}


def _node_of(pin: str, nodes: Sequence[Node]) -> str:
    return next((node.id for node in nodes if pin in node.resources), "")


def look(cluster_name: str, timeout: float = STATUS_TIMEOUT) -> Outlook:
    """Ask Ray for nodes and actors, and all members for their status.

    Raises:
        ClusterNotFound: this process is not attached to Ray.
    """
    actors = member_actors(cluster_name)
    references = {member: actor.status.remote() for member, actor in actors.items()}
    if references:
        ray.wait(list(references.values()), num_returns=len(references), timeout=at_most(timeout))
    statuses, failed = {}, set()
    for member, reference in references.items():
        try:
            statuses[member] = ray.get(reference, timeout=0)
        except TimeoutError:  # it may be paused, or pending: its node tells which
            continue
        except ray.exceptions.RayError:
            failed.add(member)
    return Outlook(tuple(alive_nodes()), actors, statuses, frozenset(failed))


def first_seat(actors: Sequence[Any], timeout: float = STATUS_TIMEOUT) -> Seat | None:
    """The seat of whichever actor answers first."""
    waiting = [actor.seat.remote() for actor in actors]
    while waiting:
        done, waiting = ray.wait(waiting, timeout=at_most(timeout))
        if not done:
            return None
        try:
            seat: Seat = ray.get(done[0], timeout=0)
            return seat
        except ray.exceptions.RayError:
            continue
    return None
