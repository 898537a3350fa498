"""A cluster about to be created, by a launch or from a backup: its id, and what its first members start from."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...spec import ClusterSpec
from ...store.data_dir import FirstMember, Identity
from ..naming import member_name
from ..ray_session import ray_is_own
from ..ray_view import RayNode
from .markers import MarkedMember, Marker
from .ray_nodes import choose_nodes

log = logging.getLogger("raykeeper.launch")


@dataclass(frozen=True)
class NewCluster:
    """The plan of a cluster; nothing of it exists yet. All mappings are by member id.

    Attributes:
        id: drawn at random, so that it is never another cluster's.
        nodes: the node that each member is to live on.
        pins: the Ray resource that ties it to that.
        bases: the folder on that node that is to hold the member's.
    """

    spec: ClusterSpec
    id: int
    nodes: Mapping[int, RayNode]
    pins: Mapping[int, str]
    bases: Mapping[int, str]

    def marker(self) -> Marker:
        """The marker that the nodes get."""
        members = (
            MarkedMember(member, member_name(member), self.pins[member], self.bases[member], node.address)
            for member, node in self.nodes.items()
        )
        return Marker(self.spec.name, self.id, tuple(members))

    def reservations(self) -> dict[int, tuple[str, str, Marker]]:
        """The arguments of ``node_storage.reserve_place``."""
        marker = self.marker()
        return {member: (self.bases[member], member_name(member), marker) for member in self.nodes}

    def identities(self, *, restored: int = 0) -> dict[int, tuple[str, Identity]]:
        """The folder and the identity of each member.

        Args:
            restored: the log index of the backup that the cluster is restored from.
        """
        first = tuple(FirstMember(member, member_name(member), pin) for member, pin in self.pins.items())
        return {
            member: (
                self.bases[member],
                Identity(
                    cluster_name=self.spec.name,
                    cluster=self.id,
                    member=member,
                    name=member_name(member),
                    members=first,
                    settings=self.spec.settings,
                    restored=restored,
                ),
            )
            for member in self.nodes
        }


def plan_cluster(spec: ClusterSpec, usable: Sequence[RayNode], bases: Mapping[str, str]) -> NewCluster:
    """Draw an id, and choose a node for each member.

    Args:
        usable: the nodes that may get a member.
        bases: the folder that holds members' folders, by node id.

    Raises:
        SpecError: no node that is alive offers one of the resources of ``placement``.
        Unavailable: there is no node.
    """
    chosen = dict(enumerate(choose_nodes(spec.members, spec.placement, usable), start=1))
    nodes = {member: node for member, (node, _) in chosen.items()}
    warn_if_crowded(spec.name, nodes.values())
    return NewCluster(
        spec=spec,
        id=secrets.randbelow((1 << 63) - 1) + 1,
        nodes=nodes,
        pins={member: pin for member, (_, pin) in chosen.items()},
        bases={member: bases[node.id] for member, node in nodes.items()},
    )


def warn_if_crowded(name: str, nodes: Iterable[RayNode]) -> None:
    """Warn if members of a new cluster share a host: the cluster then survives less than with a host for each.

    In a Ray that this process has started, where no other host is expected, it is not a warning.
    """
    addresses = [node.address for node in nodes]
    members, hosts = len(addresses), sorted(set(addresses))
    if len(hosts) < members:
        log.log(
            logging.INFO if len(hosts) == 1 and ray_is_own() else logging.WARNING,
            f"cluster {name}: its {members} members are on {len(hosts)} host{'s' * (len(hosts) > 1)} "
            f"({', '.join(hosts)}), and the loss of one host takes several of them; for one on each host, let "
            f"{members} Ray nodes join before the cluster is created",
        )
