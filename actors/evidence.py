"""What tells of a cluster where none of its data is found, and what is then said; pure functions, without Ray.

A launch asks only the nodes that are alive, so that it finds no data proves nothing: the nodes with the data may be
away. Whatever else tells of a cluster of that name forbids a bootstrap (DESIGN.md's Rule; etcd asks its operator to say
``initial-cluster-state``, ZooKeeper to never wipe a majority): actors of it that Ray lists in any state, what its
supervisor or a member without its data says, the markers on the nodes, reservations of a bootstrap whose other places
are not to be seen. Only who gives the cluster up on purpose (``Cluster.destroy``, ``discard``) takes all that away.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import ClusterMismatch, MembersMissing
from .markers import MarkedMember, Marker
from .placement import Node
from .seat import Seat
from .sites import Site


@dataclass(frozen=True)
class Evidence:
    """What tells of a cluster beside what lies on the nodes.

    Attributes:
        actors: short names of its actors that Ray lists, in whatever state.
        told: what its supervisor, or a member that runs without its data, says: by the name of who does.
    """

    actors: Sequence[str] = ()
    told: Mapping[str, Marker] = field(default_factory=dict)


def marker_of_seat(seat: Seat) -> Marker:
    """What a member actor tells of its cluster by what it was started with."""
    base = seat.folder.rpartition("/")[0]
    return Marker(seat.cluster_name, seat.cluster, (MarkedMember(seat.member, seat.name, seat.pin, base),))


def way_out(name: str, cluster: int, data_dir: str) -> str:
    """The command that gives up what there is of one cluster id; 0 if that is not known."""
    id = f" --id {cluster:x}" if cluster else ""
    return f"raykeeper down --cluster {name} --destroy{id} --data-dir {shlex.quote(data_dir)}"


def destroyed(sites: Sequence[tuple[Node, Site]]) -> frozenset[int]:
    """Ids of clusters that were given up on purpose: whatever is left of them counts for nothing."""
    return frozenset(marker.cluster for _, site in sites for marker in site.markers if marker.destroyed)


def newest_marker(markers: Sequence[Marker]) -> Marker | None:
    """What is known of one cluster from its markers: the members of the newest, each with all that any knows of it."""
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
    name: str, data_dir: str, sites: Sequence[tuple[Node, Site]], evidence: Evidence
) -> MembersMissing | ClusterMismatch | None:
    """Why there may be no bootstrap though no data was found on any node; ``None`` if nothing tells of a cluster.

    Args:
        sites: what each node that is alive holds, without what is left of clusters that are destroyed.
    """
    sources: dict[int, dict[str, None]] = {}
    markers: dict[int, list[Marker]] = {}

    def add(marker: Marker, source: str) -> None:
        sources.setdefault(marker.cluster, {})[source] = None
        markers.setdefault(marker.cluster, []).append(marker)

    for node, site in sites:
        for marker in site.markers:
            add(marker, f"a marker on {node.address}")
        for found in site.found:
            # A reservation whose places are all there and empty is of a bootstrap that never was a cluster.
            if found.reserved and not all(is_seen(member, sites) for member in found.listed):
                add(Marker(name, found.reserved, found.listed), f"a reservation on {node.address}")
    for who, marker in evidence.told.items():
        add(marker, f"{who}, which runs without data" if who.startswith("m") else f"the {who}, which still runs")
    if len(markers) > 1:
        known = "; ".join(
            f"id {cluster:x} (by {', '.join(sources[cluster])}): {_members(newest_marker(markers[cluster]))}"
            for cluster in sorted(markers)
        )
        ways = ", ".join(f"`{way_out(name, cluster, data_dir)}`" for cluster in sorted(markers))
        return ClusterMismatch(
            f"none of its data was found, and there are traces of {len(markers)} clusters of the name {name}: {known}. "
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
    problems = "".join(f"; {site.problem}" for _, site in sites if site.problem)
    return MembersMissing(
        f"cluster {name}{id} is there, but the data of no member was found on the Ray nodes that are alive "
        f"({_addresses(sites)}). Missing: {_members(known_of)}. It is known by {', '.join(seen)}{problems}. "
        f"Bring the missing nodes back, and launch again. {if_gone(name, cluster, data_dir)}"
    )


def if_gone(name: str, cluster: int, data_dir: str) -> str:
    """What to do about members that never come back."""
    return (
        "Only if their data is gone for good: give the cluster up with "
        f"`{way_out(name, cluster, data_dir)}`, then launch makes a new, empty one"
    )


def never(name: str, sites: Sequence[tuple[Node, Site]]) -> MembersMissing:
    """That there is nothing of a cluster which the spec says is there."""
    return MembersMissing(
        f"nothing of cluster {name} was found on the Ray nodes that are alive ({_addresses(sites)}), and its spec says "
        "bootstrap: never. Bring its nodes back, and launch again; to make a new, empty cluster, launch once with "
        "bootstrap: auto (`raykeeper up SPEC --bootstrap auto`)"
    )


def foreign(name: str, cluster: int, data_dir: str, sites: Sequence[tuple[Node, Site]]) -> list[str]:
    """What there is on the nodes of other clusters of that name, one line for each cluster id."""
    where: dict[int, dict[str, None]] = {}
    for node, site in sites:
        for found in site.found:
            id = found.identity.cluster if found.identity is not None else found.reserved
            if id and id != cluster:
                where.setdefault(id, {})[f"{found.folder} on {node.address}"] = None
        for marker in site.markers:
            if marker.cluster != cluster and not marker.destroyed and marker.cluster not in where:
                where.setdefault(marker.cluster, {})[f"only a marker on {node.address}"] = None
    gone = destroyed(sites)
    return [
        f"there is data of another cluster of the name {name}, id {id:x}"
        + (" (it was destroyed while this node was away)" if id in gone else "")
        + f": {', '.join(places)}; it is not used, this cluster has id {cluster:x}. "
        + f"To delete it: `{way_out(name, id, data_dir)}`; if it is the right one, see operations.md, "
        '"Data of two clusters"'
        for id, places in sorted(where.items())
    ]


def is_seen(member: MarkedMember, sites: Sequence[tuple[Node, Site]]) -> bool:
    """Whether the place of a member is on a node that has said what it holds."""
    return any(
        (member.pin in node.resources or member.address == node.address) and not site.silent and not site.problem
        for node, site in sites
    )


def _marker_of_actors(name: str, cluster: int, evidence: Evidence) -> list[Marker]:
    """The least that is known: which members have actors."""
    members = tuple(MarkedMember(int(actor[1:]), actor) for actor in sorted(evidence.actors) if actor[1:].isdigit())
    return [Marker(name, cluster, members)] if members else []


def _members(marker: Marker | None) -> str:
    if marker is None or not marker.members:
        return "its members, which nobody names"
    return ", ".join(str(member) for member in marker.members)


def _addresses(sites: Sequence[tuple[Node, Site]]) -> str:
    return ", ".join(dict.fromkeys(node.address for node, _ in sites)) or "none"
