"""One observation of a cluster from outside: what its members say, what Ray says, and what of both is reliable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from ...limits import STATUS_TIMEOUT_S
from ...raft.messages import Configuration
from ...schema.operator_frames import MemberStatus
from ..deadline import at_most
from ..discovery import alive_nodes, member_actors
from ..ray_view import RayNode
from .newest_status import best_status, configuration_of, leader_of


@dataclass(frozen=True)
class Observation:
    """What one observation showed.

    Attributes:
        nodes: Ray nodes that are alive.
        actors: handles of the members' actors that Ray lists.
        statuses: of the members that answered.
        failed: members whose actor cannot be called, according to Ray; one that is only slow is not among them.
    """

    nodes: tuple[RayNode, ...]
    actors: Mapping[int, Any]
    statuses: Mapping[int, MemberStatus]
    failed: frozenset[int]

    @property
    def leader(self) -> MemberStatus | None:
        """Of the members that say they lead, the one of the highest term."""
        return leader_of(self.statuses.values())

    @property
    def best(self) -> MemberStatus | None:
        """The leader, or else the member that knows the newest configuration."""
        return best_status(self.statuses.values())

    @property
    def configuration(self) -> Configuration:
        """The newest configuration that is known; without voters if none is known."""
        best = self.best
        return Configuration() if best is None else configuration_of(best)


def homes(observation: Observation) -> dict[int, str]:
    """For each member, the id of the node that it lives on, or will live on once its actor runs; only nodes alive."""
    best, alive = observation.best, {node.id for node in observation.nodes}
    found = (
        {} if best is None else {known.id: _node_of(known.pin, observation.nodes) for known in best.table if known.pin}
    )
    found.update({member: status.node for member, status in observation.statuses.items()})
    taking_part = set(observation.configuration.members) | ({known.id for known in best.table} if best else set())
    return {member: node for member, node in found.items() if node in alive and member in taking_part}


def _node_of(pin: str, nodes: Sequence[RayNode]) -> str:
    return next((node.id for node in nodes if pin in node.resources), "")


def observe_cluster(cluster_name: str, timeout: float = STATUS_TIMEOUT_S) -> Observation:
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
        except TimeoutError:  # paused or pending: whether its node is there tells which
            continue
        except ray.exceptions.RayError:
            failed.add(member)
    return Observation(tuple(alive_nodes()), actors, statuses, frozenset(failed))
