"""Which place a new member gets: a node of its own wherever there are nodes enough.

A pure function over Ray's nodes and where the other members live. Two members on one node die together, so a member is
put beside another one only where that is how the cluster lives anyway (more members than nodes), or where it takes the
place of one that lived there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .placement import Node, may_hold


@dataclass(frozen=True)
class Spot:
    """A node, and the resource that would pin a member to it."""

    node: Node
    pin: str


def spots(nodes: Sequence[Node], placement: Sequence[str]) -> list[Spot]:
    """All places where members may live: on any node, or where one of the resources is that the spec names."""
    if not placement:
        return [Spot(node, node.own_pin) for node in nodes]
    return [Spot(node, pin) for pin in placement for node in nodes if pin in node.resources]


def choose_spot(
    nodes: Sequence[Node],
    placement: Sequence[str],
    homes: Mapping[int, str],
    *,
    vacated: str = "",
    crowded: bool = False,
) -> Spot | None:
    """The best place for a new member, or ``None`` if there is no spare one.

    Args:
        nodes: those that are alive.
        placement: names of resources; none for any node.
        homes: for each other member, the id of the node that it lives on, if that is alive.
        vacated: id of the node that the member lived on whose place this one takes.
        crowded: take a node with other members if there is no better one.
    """
    load = Counter(homes.values())
    addresses = {node.id: node.address for node in nodes}
    machines = Counter(addresses[home] for home in homes.values() if home in addresses)
    crowded = crowded or any(count > 1 for count in load.values())
    possible = [
        spot for spot in spots(nodes, placement) if crowded or not load[spot.node.id] or spot.node.id == vacated
    ]
    return min(
        possible,
        key=lambda spot: (load[spot.node.id], spot.node.id == vacated, machines[spot.node.address]),
        default=None,
    )


def shared_hosts(voters: Mapping[int, str], nodes: Sequence[Node], placement: Sequence[str]) -> list[str]:
    """Which voters share a host although there are hosts without any, one line for each such host.

    Args:
        voters: for each, the id of the node that it lives on.
        placement: as for ``choose_spot``.
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
