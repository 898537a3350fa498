"""The place of a new member: a node of its own wherever there are enough nodes.

A pure function of Ray's nodes and of where the other members live. Two members on one node are lost together. So a
member shares a node only if the cluster does so already (more members than nodes), or if it takes the place of a member
that lived there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ray_view import RayNode, may_hold


@dataclass(frozen=True)
class Placement:
    """A node, and the resource that would pin a member to it."""

    node: RayNode
    pin: str


def possible_placements(nodes: Sequence[RayNode], placement: Sequence[str]) -> list[Placement]:
    """All places where members may live: on any node, or on those that offer a resource that the spec names."""
    if not placement:
        return [Placement(node, node.own_pin) for node in nodes]
    return [Placement(node, pin) for pin in placement for node in nodes if pin in node.resources]


def choose_placement(
    nodes: Sequence[RayNode],
    placement: Sequence[str],
    homes: Mapping[int, str],
    *,
    vacated: str = "",
    crowded: bool = False,
) -> Placement | None:
    """The best place for a new member, or ``None`` if there is no spare one.

    Args:
        nodes: Ray nodes that are alive.
        placement: names of resources; empty for any node.
        homes: for each other member, the id of the node that it lives on, if that is alive.
        vacated: id of the node where the member lived that this one replaces.
        crowded: accept a node with other members if there is no better one.
    """
    load = Counter(homes.values())
    addresses = {node.id: node.address for node in nodes}
    machines = Counter(addresses[home] for home in homes.values() if home in addresses)
    crowded = crowded or any(count > 1 for count in load.values())
    possible = [
        each
        for each in possible_placements(nodes, placement)
        if crowded or not load[each.node.id] or each.node.id == vacated
    ]
    return min(
        possible,
        key=lambda each: (load[each.node.id], each.node.id == vacated, machines[each.node.address]),
        default=None,
    )


def shared_hosts(voters: Mapping[int, str], nodes: Sequence[RayNode], placement: Sequence[str]) -> list[str]:
    """Voters that share a host although there are hosts without any; one line for each such host.

    Args:
        voters: for each, the id of the node that it lives on.
        placement: as for ``choose_placement``.
    """
    addresses = {node.id: node.address for node in nodes}
    together: dict[str, list[int]] = {}
    for voter, home in sorted(voters.items()):
        if home in addresses:
            together.setdefault(addresses[home], []).append(voter)
    spare = sorted({node.address for node in nodes if may_hold(node, placement)} - set(together))
    if not spare:
        return []
    return [
        f"{', '.join(f'm{voter}' for voter in sharing)} share the host {host}, and would be lost with it, although "
        f"{', '.join(spare)} {'hold' if len(spare) > 1 else 'holds'} no voter: `raykeeper member add {spare[0]}`, then "
        f"`raykeeper member remove m{sharing[-1]}`"
        for host, sharing in sorted(together.items())
        if len(sharing) > 1
    ]
