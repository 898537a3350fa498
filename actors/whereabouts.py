"""Where the data of a cluster's members lies now, whatever address its host has: looked up on the disks themselves.

A member belongs to its data, not to an address. Hosts come back under other addresses, and disks on other hosts; then
the place that the cluster's table names is gone, or holds somebody else's data, and nobody may be left who leads. So
whoever is missed is looked for on all nodes that are alive, from what Ray and the disks say alone: each member's folder
says whose it is, and who took part.

    one folder              that is where the member is started
    several, one is newer   there: it has served more often, or the others are copies of it (``copies.py``)
    several otherwise       nowhere: nobody can tell which is the right one
    only a copy             nowhere: it may lack what the member has promised since; a launch may start it

The same folder may be seen from several nodes, of one machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..limits import SEARCH_AGAIN, SEARCH_MAX_PAUSE
from ..store.members import Description
from ..store.membership_note import MembershipNote
from .copies import newest_of
from .placement import Node
from .raft.messages import Configuration
from .seat import member_name
from .sites import Found, Site


@dataclass(frozen=True)
class Sighting:
    """A member's folder, as seen from one node."""

    member: int
    node: Node
    base: str
    machine: str
    found: Found

    @property
    def folder(self) -> tuple[str, tuple[int, int]]:
        """The same for the same folder seen from another node."""
        return self.machine, self.found.device

    def __str__(self) -> str:
        return f"{self.found.folder} on {self.node.address}"


class Search:
    """What the disks of the nodes were found to hold for one cluster, and whose are to be looked at again.

    Args:
        cluster: its id.
    """

    def __init__(self, cluster: int) -> None:
        self._cluster = cluster
        self._asked: dict[str, tuple[float, Site | None]] = {}

    def due(self, nodes: Sequence[Node], now: float, since: float | None = None) -> list[Node]:
        """The nodes to look at now: those that never were, and, while somebody is missed, all of them, more and more
        rarely.

        Args:
            since: the moment from which on somebody is missed, if anybody is: what was seen before tells nothing.
        """
        return [node for node in nodes if self._is_due(node, now, since)]

    def _is_due(self, node: Node, now: float, since: float | None) -> bool:
        asked = self._asked.get(node.id)
        if asked is None:
            return True
        if since is None:
            return False
        return asked[0] < since or now - asked[0] >= min(SEARCH_MAX_PAUSE, max(SEARCH_AGAIN, asked[0] - since))

    def covers(self, nodes: Sequence[Node], since: float) -> bool:
        """Whether all of these were looked at since that moment, with or without an answer."""
        return all(self._asked.get(node.id, (since - 1, None))[0] >= since for node in nodes)

    def learn(self, results: Mapping[str, Site | Exception], now: float) -> None:
        """What nodes have answered, by id. An error is an answer: no member can be started there."""
        for node, site in results.items():
            self._asked[node] = now, site if isinstance(site, Site) else None

    def forget(self, node: str) -> None:
        """What is known of a node is over."""
        self._asked.pop(node, None)

    def sightings(self, nodes: Sequence[Node]) -> list[Sighting]:
        """All folders of the cluster's members on these nodes, as they were seen the last time."""
        self._asked = {node.id: self._asked[node.id] for node in nodes if node.id in self._asked}
        return [
            Sighting(found.identity.member, node, site.base, site.machine, found)
            for node in nodes
            if (site := self._asked.get(node.id, (0.0, None))[1]) is not None
            for found in site.found
            if found.identity is not None and self._is_ours(found)
        ]

    def _is_ours(self, found: Found) -> bool:
        identity = found.identity
        return (
            identity is not None
            and identity.cluster == self._cluster
            and identity.name == found.name == member_name(identity.member)
        )


def membership(sightings: Iterable[Sighting]) -> MembershipNote:
    """Who takes part and where each lived, as far as the newest of these knows; without voters if none knows."""
    best, first = MembershipNote(Configuration()), dict[int, Description]()
    for sighting in sightings:
        identity, note = sighting.found.identity, sighting.found.note
        first |= {m.id: Description(m.id, m.name, m.pin) for m in (identity.members if identity is not None else ())}
        if note is not None and note.configuration.index >= best.configuration.index:
            best = note
    if best.configuration.voters or not first:
        return best
    return MembershipNote(Configuration(voters=tuple(sorted(first))), tuple(first[id] for id in sorted(first)))


def whereabouts(sightings: Sequence[Sighting]) -> tuple[dict[int, list[Sighting]], dict[int, str]]:
    """Where each member's data is: all sightings of the one folder; and of the others, why nobody can tell."""
    by_member: dict[int, list[Sighting]] = {}
    for sighting in sightings:
        by_member.setdefault(sighting.member, []).append(sighting)
    certain, doubts = {}, {}
    for member, seen in by_member.items():
        newest = newest_of(seen, [sighting.found.served for sighting in seen])
        where = ", ".join(sorted(map(str, newest)))
        if all(sighting.found.served.copied for sighting in newest):
            doubts[member] = (
                f"only a copy of its data was found ({where}), which may lack what it has promised since; "
                "`raykeeper up` starts it there if there is no quorum else, or its last node is there without it"
            )
        elif len({sighting.folder for sighting in newest}) > 1:
            doubts[member] = f"its data was found in several places, of which only one can be the right one: {where}"
        else:
            certain[member] = newest
    return certain, doubts


def choose_home(
    seen: Sequence[Sighting], nodes: Sequence[Node], placement: Sequence[str], homes: Collection[str]
) -> tuple[Sighting, str]:
    """Where to start a member whose one folder was seen from these nodes, and the resource to pin it with.

    A resource that other nodes offer, too, does not keep it where its data is: then it is pinned by the node's address.
    """
    load = Counter(homes)
    chosen = min(seen, key=lambda each: (load[each.node.id], each.node.address, each.node.id))
    wished = [pin for pin in placement if sum(pin in node.resources for node in nodes) == 1]
    return chosen, chosen.node.pin(wished)
