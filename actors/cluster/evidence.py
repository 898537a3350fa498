"""Evidence of a cluster of which no data is found, and what launch then says; pure functions, without Ray.

A launch asks only the nodes that are alive. That it finds no data proves nothing: the nodes with the data may be away.
So any other evidence of a cluster of that name forbids a bootstrap (etcd asks its operator for
``initial-cluster-state``; ZooKeeper tells its operator never to wipe a majority): actors of it that Ray lists in any
state, what its supervisor or a member without data reports, the markers on the nodes, reservations of a bootstrap whose
other places cannot be seen. Only giving the cluster up on purpose (``Cluster.destroy``, ``discard``) removes all of
that.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...errors import ClusterMismatch, MembersMissing
from ..naming import MemberSpec
from ..ray_view import RayNode
from .markers import MarkedMember, Marker
from .node_storage import NodeInventory


@dataclass(frozen=True)
class Evidence:
    """Evidence of a cluster besides what is on the nodes.

    Attributes:
        actors: short names of its actors that Ray lists, in any state.
        reported: what its supervisor, or a member that runs without its data, reports; by that actor's short name.
    """

    actors: Sequence[str] = ()
    reported: Mapping[str, Marker] = field(default_factory=dict)


def marker_of_member(member_spec: MemberSpec) -> Marker:
    """What a member actor knows of its cluster from what it was started with."""
    base = member_spec.folder.rpartition("/")[0]
    return Marker(
        member_spec.cluster_name,
        member_spec.cluster,
        (MarkedMember(member_spec.member, member_spec.name, member_spec.pin, base),),
    )


def destroy_command(name: str, cluster: int, data_dir: str) -> str:
    """The command that gives up one cluster id; 0 if that is not known."""
    id = f" --id {cluster:x}" if cluster else ""
    return f"raykeeper down --cluster {name} --destroy{id} --data-dir {shlex.quote(data_dir)}"


def destroyed(inventories: Sequence[tuple[RayNode, NodeInventory]]) -> frozenset[int]:
    """Ids of clusters that were destroyed on purpose: whatever is left of them counts for nothing."""
    return frozenset(marker.cluster for _, inventory in inventories for marker in inventory.markers if marker.destroyed)


def newest_marker(markers: Sequence[Marker]) -> Marker | None:
    """All that markers of one cluster know: the members of the newest, each with what any marker knows of it."""
    if not markers:
        return None
    ordered = sorted(markers, key=lambda marker: marker.version)
    known: dict[int, MarkedMember] = {}
    for marker in ordered:
        for member in marker.members:
            old = known.get(member.id, member)
            known[member.id] = MarkedMember(
                member.id, member.name, member.pin or old.pin, member.base or old.base, member.address or old.address
            )
    newest = ordered[-1]
    listed = {member.id for marker in ordered if marker.version == newest.version for member in marker.members}
    return Marker(
        newest.cluster_name, newest.cluster, tuple(known[id] for id in sorted(listed)), newest.version, newest.destroyed
    )


def refusal(
    name: str, data_dir: str, inventories: Sequence[tuple[RayNode, NodeInventory]], evidence: Evidence
) -> MembersMissing | ClusterMismatch | None:
    """Why a bootstrap is refused although no data was found on any node; ``None`` if there is no evidence.

    Args:
        inventories: what each node that is alive holds, without what is left of destroyed clusters.
    """
    sources: dict[int, dict[str, None]] = {}
    markers: dict[int, list[Marker]] = {}

    def add(marker: Marker, source: str) -> None:
        sources.setdefault(marker.cluster, {})[source] = None
        markers.setdefault(marker.cluster, []).append(marker)

    for node, inventory in inventories:
        for marker in inventory.markers:
            add(marker, f"a marker on {node.address}")
        for found in inventory.found:
            # If all places of a reservation are there and empty, its bootstrap never became a cluster.
            if found.reserved and not all(is_seen(member, inventories) for member in found.listed):
                add(Marker(name, found.reserved, found.listed), f"a reservation on {node.address}")
    for who, marker in evidence.reported.items():
        add(marker, f"{who}, which runs without data" if who.startswith("m") else f"the {who}, which still runs")
    if len(markers) > 1:
        known = "; ".join(
            f"id {cluster:x} (by {', '.join(sources[cluster])}): {_members(newest_marker(markers[cluster]))}"
            for cluster in sorted(markers)
        )
        ways = ", ".join(f"`{destroy_command(name, cluster, data_dir)}`" for cluster in sorted(markers))
        return ClusterMismatch(
            f"none of its data was found, and there are traces of {len(markers)} clusters named {name}: {known}. "
            f"Bring the nodes of the right one back, and give the others up: {ways}"
        )
    if not markers and not evidence.actors:
        return None
    cluster = next(iter(markers), 0)
    seen = list(sources.get(cluster, ()))
    if evidence.actors:
        seen.append(f"actors that Ray still lists ({', '.join(sorted(evidence.actors))})")
    known_of = newest_marker([*markers.get(cluster, ()), *_marker_of_actors(name, cluster, evidence)])
    id = f" (id {cluster:x})" if cluster else ""
    problems = "".join(f"; {inventory.problem}" for _, inventory in inventories if inventory.problem)
    return MembersMissing(
        f"cluster {name}{id} is there, but the data of no member was found on the Ray nodes that are alive "
        f"({_addresses(inventories)}). Missing: {_members(known_of)}. It is known by {', '.join(seen)}{problems}. "
        f"Bring the missing nodes back, and launch again. {if_gone(name, cluster, data_dir)}"
    )


def if_gone(name: str, cluster: int, data_dir: str) -> str:
    """Advice about members that never come back."""
    return (
        "Only if their data is gone for good: give the cluster up with "
        f"`{destroy_command(name, cluster, data_dir)}`, then launch makes a new, empty one"
    )


def missing_error(name: str, inventories: Sequence[tuple[RayNode, NodeInventory]]) -> MembersMissing:
    """The error for a cluster that must exist by its spec, and of which nothing was found."""
    return MembersMissing(
        f"nothing of cluster {name} was found on the Ray nodes that are alive ({_addresses(inventories)}), and its "
        "spec says bootstrap: never. Bring its nodes back, and launch again; to make a new, empty cluster, launch "
        "once with bootstrap: auto (`raykeeper up SPEC --bootstrap auto`)"
    )


def foreign_data(
    name: str, cluster: int, data_dir: str, inventories: Sequence[tuple[RayNode, NodeInventory]]
) -> list[str]:
    """What the nodes hold of other clusters of that name, one line for each cluster id."""
    where: dict[int, dict[str, None]] = {}
    for node, inventory in inventories:
        for found in inventory.found:
            id = found.identity.cluster if found.identity is not None else found.reserved
            if id and id != cluster:
                where.setdefault(id, {})[f"{found.folder} on {node.address}"] = None
        for marker in inventory.markers:
            if marker.cluster != cluster and not marker.destroyed and marker.cluster not in where:
                where.setdefault(marker.cluster, {})[f"only a marker on {node.address}"] = None
    gone = destroyed(inventories)
    return [
        f"there is data of another cluster named {name}, id {id:x}"
        + (" (it was destroyed while this node was away)" if id in gone else "")
        + f": {', '.join(places)}; it is not used, this cluster has id {cluster:x}. "
        + f"To delete it: `{destroy_command(name, id, data_dir)}`; if it is the right one, see operations.md, "
        '"Data of two clusters"'
        for id, places in sorted(where.items())
    ]


def is_seen(member: MarkedMember, inventories: Sequence[tuple[RayNode, NodeInventory]]) -> bool:
    """Whether the place of a member is on a node that has reported what it holds."""
    return any(
        (member.pin in node.resources or member.address == node.address)
        and not inventory.silent
        and not inventory.problem
        for node, inventory in inventories
    )


def _marker_of_actors(name: str, cluster: int, evidence: Evidence) -> list[Marker]:
    """The least that is known: the members that have actors."""
    members = tuple(MarkedMember(int(actor[1:]), actor) for actor in sorted(evidence.actors) if actor[1:].isdigit())
    return [Marker(name, cluster, members)] if members else []


def _members(marker: Marker | None) -> str:
    if marker is None or not marker.members:
        return "its members, whose names are unknown"
    return ", ".join(str(member) for member in marker.members)


def _addresses(inventories: Sequence[tuple[RayNode, NodeInventory]]) -> str:
    return ", ".join(dict.fromkeys(node.address for node, _ in inventories)) or "none"
