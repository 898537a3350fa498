"""Where the data of a cluster's members is now, whatever address its host has: looked up on the disks themselves.

A member belongs to its data, not to an address. Hosts come back under other addresses, and disks on other hosts. Then
the place in the cluster's table is gone, or holds another member's data, and there may be no leader left to say more.
So a missed member is looked for on all nodes that are alive, from what Ray and the disks say alone: each member's
folder says whose it is, and who took part.

    one folder              the member is started there
    several, one is newer   there: it has served more often, or the others are copies of it (``data_copies.py``)
    several otherwise       nowhere: it is unknown which one is right
    only a copy             nowhere: it may lack what the member has promised since; a launch may start it
    one cannot be read      nowhere, and the member is not replaced either: what the disk refuses may be its newest data

The same folder may be seen from several nodes of one machine. A member that has no actor is looked for likewise before
it gets one at its place in the table: that place may hold an older folder. A node that is alive and does not say what
it holds may have a newer one. So a member whose place by the table is there is not moved elsewhere, and others get no
actor meanwhile, as long as there is a leader, so that they are not needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...limits import SEARCH_MAX_PAUSE_S, SEARCH_MIN_PAUSE_S
from ...raft.messages import Configuration
from ...schema.member_record import MemberRecord
from ...store.data_copies import newest_of
from ...store.membership_note import MembershipNote
from ..naming import member_name
from ..ray_view import RayNode
from .node_storage import FoundData, NodeInventory


@dataclass(frozen=True)
class Sighting:
    """A member's folder, as seen from one node at a time ``at``."""

    member: int
    node: RayNode
    base: str
    machine: str
    found: FoundData
    at: float = 0.0

    @property
    def folder(self) -> tuple[object, ...]:
        """Equal for the same folder seen from another node."""
        return self.found.seen_as(self.machine, self.node.address)

    def __str__(self) -> str:
        return f"{self.found.folder} on {self.node.address}"


class Search:
    """What the disks of the nodes were found to hold of one cluster, and which nodes to search again.

    Args:
        cluster: its id.
    """

    def __init__(self, cluster: int) -> None:
        self._cluster = cluster
        self._asked: dict[str, tuple[float, NodeInventory | Exception]] = {}

    def nodes_due(
        self, nodes: Sequence[RayNode], now: float, since: float | None = None, *, often: bool = False
    ) -> list[RayNode]:
        """The nodes to search now: those that never were, and, while a member is missed, all of them, less and less
        often.

        Args:
            since: since when a member is missed, if any is: what was seen before says nothing about it.
            often: a member waits for what these searches find: the pauses do not grow.
        """
        return [node for node in nodes if self._is_due(node, now, since, often)]

    def _is_due(self, node: RayNode, now: float, since: float | None, often: bool) -> bool:
        asked = self._asked.get(node.id)
        if asked is None:
            return True
        if since is None:
            return False
        longest = SEARCH_MIN_PAUSE_S if often else SEARCH_MAX_PAUSE_S
        return asked[0] < since or now - asked[0] >= min(longest, max(SEARCH_MIN_PAUSE_S, asked[0] - since))

    def covers(self, nodes: Sequence[RayNode], since: float) -> bool:
        """Whether all of these were searched since that time, with or without an answer."""
        return all(self._asked.get(node.id, (since - 1, None))[0] >= since for node in nodes)

    def record(self, results: Mapping[str, NodeInventory | Exception], now: float) -> None:
        """Record the answers of nodes, by id. An error is an answer: no member can be started there."""
        for node, inventory in results.items():
            self._asked[node] = now, inventory

    def forget(self, node: str) -> None:
        """Drop what is known of a node."""
        self._asked.pop(node, None)

    def sightings(self, nodes: Sequence[RayNode]) -> list[Sighting]:
        """All folders of the cluster's members on these nodes, as last seen."""
        self._asked = {node.id: self._asked[node.id] for node in nodes if node.id in self._asked}
        return [
            Sighting(found.identity.member, node, inventory.base, inventory.machine, found, at)
            for node in nodes
            for at, inventory in (self._asked.get(node.id, (0.0, None)),)
            if isinstance(inventory, NodeInventory)
            for found in inventory.found
            if found.identity is not None and self._is_ours(found)
        ]

    def unread(self, nodes: Sequence[RayNode]) -> list[Sighting]:
        """All folders with a member's name on these nodes, as last seen, of which the disk refuses to say whose they
        are, or how new."""
        return [
            Sighting(member, node, inventory.base, inventory.machine, found, at)
            for node in nodes
            for at, inventory in (self._asked.get(node.id, (0.0, None)),)
            if isinstance(inventory, NodeInventory)
            for found in inventory.found
            if found.refused and (found.identity is None or self._is_ours(found))
            for member in (_member_of(found.name),)
            if member
        ]

    def unlisted(self, nodes: Sequence[RayNode]) -> tuple[RayNode, ...]:
        """Those of these nodes that did not say what they hold when they were searched last, and may hold something."""
        return tuple(node for node in nodes if node.id in self._asked and _says_nothing(self._asked[node.id][1]))

    def _is_ours(self, found: FoundData) -> bool:
        identity = found.identity
        return (
            identity is not None
            and identity.cluster == self._cluster
            and identity.name == found.name == member_name(identity.member)
        )


def _says_nothing(answer: NodeInventory | Exception) -> bool:
    """Whether a node's answer leaves open what is there."""
    return not isinstance(answer, NodeInventory) or answer.says_nothing


def _member_of(name: str) -> int:
    """The id of the member that a folder is named for; 0 if it is no member's name."""
    digits = name[1:]
    member = int(digits) if digits.isascii() and digits.isdigit() else 0
    return member if member and name == member_name(member) else 0


def membership(sightings: Iterable[Sighting]) -> MembershipNote:
    """Who takes part and where each member lived, by the newest of these folders; without voters if none knows."""
    best, first = MembershipNote(Configuration()), dict[int, MemberRecord]()
    for sighting in sightings:
        identity, note = sighting.found.identity, sighting.found.note
        first |= {m.id: MemberRecord(m.id, m.name, m.pin) for m in (identity.members if identity is not None else ())}
        if note is not None and note.configuration.index >= best.configuration.index:
            best = note
    if best.configuration.voters or not first:
        return best
    return MembershipNote(Configuration(voters=tuple(sorted(first))), tuple(first[id] for id in sorted(first)))


def locate_data(sightings: Sequence[Sighting]) -> tuple[dict[int, list[Sighting]], dict[int, str]]:
    """Where each member's data is: all sightings of the one folder. Of the other members: why that is uncertain.

    Args:
        sightings: those that could not be read among them.
    """
    by_member: dict[int, list[Sighting]] = {}
    for sighting in sightings:
        by_member.setdefault(sighting.member, []).append(sighting)
    certain, doubts = {}, {}
    for member, seen in by_member.items():
        unread = [sighting for sighting in seen if sighting.found.refused]
        if unread:
            doubts[member] = "its data may be in a folder of which the disk refuses to tell: " + ", ".join(
                sorted({f"{sighting} ({sighting.found.damage})" for sighting in unread})
            )
            continue
        newest = newest_of(seen, [sighting.found.served for sighting in seen])
        where = ", ".join(sorted(map(str, newest)))
        if all(sighting.found.served.copied for sighting in newest):
            doubts[member] = (
                f"only a copy of its data was found ({where}), which may lack its later promises; "
                "`raykeeper up` starts it there if there is no quorum otherwise, or its last node is back without it"
            )
        elif len({sighting.folder for sighting in newest}) > 1:
            doubts[member] = f"its data was found in several places, of which only one can be the right one: {where}"
        else:
            certain[member] = newest
    return certain, doubts


def choose_home(
    seen: Sequence[Sighting], nodes: Sequence[RayNode], placement: Sequence[str], homes: Collection[str]
) -> tuple[Sighting, str]:
    """Where to start a member whose one folder was seen from these nodes, and the resource to pin it with.

    A resource that other nodes offer too would not keep it with its data: then it is pinned by the node's address.
    """
    load = Counter(homes)
    chosen = min(seen, key=lambda each: (load[each.node.id], each.node.address, each.node.id))
    wished = [pin for pin in placement if sum(pin in node.resources for node in nodes) == 1]
    return chosen, chosen.node.pin(wished)
