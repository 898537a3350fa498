"""What launch does about the data that it finds: DESIGN.md's Rule as one function without Ray and without a disk.

A cluster id is drawn once. If any identity of the name is found, nothing is bootstrapped: the newest configuration that
is known decides who takes part, and a quorum of it must be there. Nor is anything if something else tells of a cluster
(``evidence.py``). The one exception is a bootstrap that was interrupted half-way: if every place that it listed is
found, and none of them ever voted or appended anything, it never was a cluster, and is done anew, under a new cluster
id. What is left of a cluster that was destroyed on purpose, while a node was away, counts for nothing.

A copy of a member's data (``copies.py``) counts as the data if the node where that was last is there without it, so if
somebody has moved it, or if there is no quorum without it. Otherwise the original may be what is away.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from ..errors import ClusterMismatch, DataCorrupted, MembersMissing, SpecError, Unavailable
from ..store.folder import Identity
from ..store.membership_note import MembershipNote
from .copies import newest_of
from .evidence import Evidence, destroyed, foreign, if_gone, is_seen, newest_marker, refusal, way_out
from .markers import MarkedMember
from .placement import Node, may_hold
from .raft.messages import Configuration
from .seat import Seat, member_name
from .sites import Found, Site


@dataclass(frozen=True)
class Place:
    """Where a member's data lies."""

    member: int
    name: str
    node: Node
    site: Site
    found: Found
    pin: str = ""
    """The resource that it was pinned with, as far as any member knew."""


@dataclass(frozen=True)
class Missing:
    """A member without data on any node that is alive, and the pin that it had last."""

    member: int
    name: str
    pin: str
    last: MarkedMember | None = None
    """What a marker says of it."""

    @property
    def marked(self) -> MarkedMember:
        """All that is known of it."""
        known = self.last or MarkedMember(self.member, self.name)
        return MarkedMember(self.member, self.name, self.pin or known.pin, known.base, known.address)

    def __str__(self) -> str:
        return str(self.marked)


@dataclass(frozen=True)
class Bootstrap:
    """There is nothing of that name anywhere."""


@dataclass(frozen=True)
class Start:
    """The members of a cluster that is there: those found and not running yet are to be started."""

    cluster: int
    places: tuple[Place, ...]
    missing: tuple[Missing, ...]
    foreign: tuple[str, ...] = ()
    """What there is of other clusters of that name, one line each; it is left alone."""


@dataclass(frozen=True)
class Redo:
    """A bootstrap that was interrupted half-way. If each of these places turns out to be unused, they may be cleared,
    and a new cluster bootstrapped; otherwise it is ``instead``, or ``error`` if that is ``None``."""

    cluster: int
    places: tuple[Place, ...]
    instead: Start | None
    error: str


def decide(
    name: str,
    sites: Sequence[tuple[Node, Site]],
    live: Mapping[int, Seat],
    configuration: Configuration | None = None,
    *,
    evidence: Evidence = Evidence(),
    data_dir: str = "",
    placement: Sequence[str] = (),
) -> Bootstrap | Start | Redo:
    """Decide what launch does.

    Args:
        sites: what each node that is alive holds.
        live: the seats of member actors that run, by member id.
        configuration: the newest one that members told of, if any.
        evidence: what else tells of a cluster of that name.
        data_dir: as the spec has it, for what is said.
        placement: resources that members may be pinned by; none for any node. Another node is heard if it says
            something, but nothing waits for it.

    Raises:
        ClusterMismatch: there is data of several clusters, or of one with another name.
        DataCorrupted: there is data that cannot be read, and no other.
        SpecError: a node's folder cannot be read, and nothing was found elsewhere.
        MembersMissing: less than a quorum was found, or nothing, and yet something tells of a cluster.
        Unavailable: nothing was found, and a node did not answer.
    """
    everything = sites
    sites = _without(destroyed(sites), sites)
    places, reserved = _places(name, sites)
    cluster = _one_cluster(name, places, live, configuration, data_dir)
    places = [place for place in places if _identity(place).cluster == cluster]
    if not cluster:
        damaged = [
            f"{found.folder} on {node.address}: {found.damage}"
            for node, site in sites
            for found in site.found
            if found.damage
        ]
        if damaged:
            raise DataCorrupted(f"{'; '.join(damaged)}. {if_gone(name, 0, data_dir)}")
        refused = refusal(name, data_dir, sites, evidence)
        if refused is not None:
            raise refused
        asked = [(node, site) for node, site in sites if may_hold(node, placement)]
        silent = [site.problem for _, site in asked if site.silent]
        if silent:
            raise Unavailable(f"cannot tell whether there is data of cluster {name}: {'; '.join(silent)}")
        unreadable = [f"{node.address}: {site.problem}" for node, site in asked if site.problem]
        if unreadable:
            raise SpecError("spec", "data_dir", f"a folder that can be read on every node; {'; '.join(unreadable)}")
        return Bootstrap()
    marker = newest_marker([each for _, site in sites for each in site.markers if each.cluster == cluster])
    last = {member.id: member for member in marker.members} if marker is not None else {}
    first = {listed.id: listed for place in places for listed in _identity(place).members}
    note = _newest_note(places)
    pins = {listed.id: listed.pin for listed in first.values()}
    pins.update({member.id: member.pin for member in last.values() if member.pin})
    pins.update({known.id: known.pin for known in note.members if known.pin})
    by_member = _one_place_each(places, pins)
    if configuration is None:
        configuration = note.configuration if note.configuration.voters else Configuration(voters=tuple(sorted(first)))
    there = set(live) | set(by_member)
    doubtful = {
        place.member
        for place in by_member.values()
        if place.found.served.copied and not is_seen(_last_place(place.member, pins, last), sites)
    } - set(live)
    if not _lacking(configuration, there - doubtful):
        # The original may come back, with what the member has promised since: nobody needs the copy.
        there -= doubtful
        by_member = {member: place for member, place in by_member.items() if member not in doubtful}
    missing = tuple(
        Missing(member, member_name(member), pins.get(member, ""), last.get(member))
        for member in sorted(configuration.members - there)
    )
    # Whose data is there and who does not take part was removed, or never got so far as to join.
    found = [place for member, place in sorted(by_member.items()) if member in configuration.members]
    others = tuple(foreign(name, cluster, data_dir, everything))
    start = Start(cluster, tuple(place for place in found if place.member not in live), missing, others)
    lacking = _lacking(configuration, there)
    error = ""
    if lacking:
        error = (
            f"cluster {name} (id {cluster:x}) has {len(configuration.voters)} voting members and needs more than half; "
            f"the data of these was not found on any Ray node that is alive: {', '.join(map(str, missing))}"
        ) + "".join(f"; {problem}" for problem in (*(site.problem for _, site in sites if site.problem), *others))
        error += ". Bring their nodes back, and launch again; if their data is gone for good, see operations.md"
        error += f', "A majority is lost for good". {if_gone(name, cluster, data_dir)}'
    if not live and missing and not configuration.index:
        waiting = {place.name: place for place in reserved if place.found.reserved == cluster}
        if first and all(listed.id in by_member or listed.name in waiting for listed in first.values()):
            everywhere = (*by_member.values(), *waiting.values())
            return Redo(cluster, everywhere, None if lacking else start, error)
    if lacking:
        raise MembersMissing(error)
    return start


def _lacking(configuration: Configuration, there: Collection[int]) -> bool:
    """Whether these are less than a quorum."""
    halves = (configuration.voters, configuration.outgoing)
    return any(half and 2 * len(set(half) & set(there)) <= len(half) for half in halves)


def _last_place(member: int, pins: Mapping[int, str], last: Mapping[int, MarkedMember]) -> MarkedMember:
    """Where a member was last, as far as anybody knows."""
    address = last[member].address if member in last else ""
    return MarkedMember(member, member_name(member), pins.get(member, ""), address=address)


def _without(gone: frozenset[int], sites: Sequence[tuple[Node, Site]]) -> list[tuple[Node, Site]]:
    """What the nodes hold, but for what is left of these clusters."""
    left = []
    for node, site in sites:
        found = tuple(
            place
            for place in site.found
            if (place.identity.cluster if place.identity is not None else place.reserved) not in gone
        )
        markers = tuple(marker for marker in site.markers if marker.cluster not in gone)
        left.append((node, msgspec.structs.replace(site, found=found, markers=markers)))
    return left


def _places(name: str, sites: Sequence[tuple[Node, Site]]) -> tuple[list[Place], list[Place]]:
    """Places with an identity, and places that are only reserved."""
    with_identity, reserved = [], []
    for node, site in sites:
        for found in site.found:
            identity = found.identity
            if identity is None:
                if found.reserved:
                    reserved.append(Place(0, found.name, node, site, found))
                continue
            if identity.cluster_name != name or identity.name != found.name:
                raise ClusterMismatch(
                    f"{found.folder} on {node.address} should hold {found.name} of cluster {name}, but holds "
                    f"{identity.name} of cluster {identity.cluster_name} (id {identity.cluster:x})"
                )
            with_identity.append(Place(identity.member, identity.name, node, site, found))
    return with_identity, reserved


def _one_cluster(
    name: str,
    places: Sequence[Place],
    live: Mapping[int, Seat],
    configuration: Configuration | None,
    data_dir: str,
) -> int:
    """The cluster id that everything found belongs to, 0 if nothing was found. A cluster that serves is the one that
    the name means, whatever else lies about."""
    where: dict[int, list[str]] = {}
    for place in places:
        where.setdefault(_identity(place).cluster, []).append(f"{place.found.folder} on {place.node.address}")
    for seat in live.values():
        where.setdefault(seat.cluster, []).append(f"the running member {seat.name}")
    running = {seat.cluster for seat in live.values()}
    voters = configuration.voters if configuration is not None else ()
    if len(running) == 1 and voters and 2 * len(set(live) & set(voters)) > len(voters):
        return running.pop()
    if len(where) > 1:
        said = "; ".join(f"id {cluster:x}: {', '.join(found)}" for cluster, found in sorted(where.items()))
        ways = " or ".join(f"`{way_out(name, cluster, data_dir)}`" for cluster in sorted(where))
        raise ClusterMismatch(
            f"there is data of {len(where)} clusters of the name {name}: {said}. Nothing was started. Decide which is "
            f'the right one (operations.md, "Data of two clusters"), and delete the other: {ways}'
        )
    return next(iter(where), 0)


def _newest_note(places: Sequence[Place]) -> MembershipNote:
    """What is known of the members from the data of the one that has seen the newest configuration."""
    notes = [place.found.note for place in places if place.found.note is not None]
    return max(notes, key=lambda note: note.configuration.index, default=MembershipNote(Configuration()))


def _one_place_each(places: Sequence[Place], pins: Mapping[int, str]) -> dict[int, Place]:
    """The place of each member. Of copies in different places the newest counts (``copies.py``). The same folder may
    have been seen from several nodes (of one machine, or on a shared file system): then the node that the member was
    pinned to counts. What cannot be told apart is refused."""
    by_member: dict[int, list[Place]] = {}
    for place in places:
        by_member.setdefault(place.member, []).append(place)
    chosen = {}
    for member, everywhere in by_member.items():
        candidates = newest_of(everywhere, [place.found.served for place in everywhere])
        identity = _identity(candidates[0])
        pin = pins.get(member, "")
        pinned = [place for place in candidates if pin in place.node.resources]
        left = pinned or candidates
        if len({(place.site.machine, place.found.device) for place in left}) > 1:
            where = ", ".join(f"{place.found.folder} on {place.node.address}" for place in left)
            raise ClusterMismatch(
                f"the data of {identity.name} of cluster {identity.cluster_name} (id {identity.cluster:x}) is in "
                f"several places, and only one can be the right one: {where}"
            )
        chosen[member] = replace(left[0], pin=pin)
    return chosen


def _identity(place: Place) -> Identity:
    assert place.found.identity is not None
    return place.found.identity
