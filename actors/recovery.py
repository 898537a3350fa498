"""What launch does about the data that it finds: DESIGN.md's Rule as one function without Ray and without a disk.

A cluster id is drawn once. If any identity of the name is found, nothing is bootstrapped: the newest configuration that
is known decides who takes part, and a quorum of it must be there. The one exception is a bootstrap that was interrupted
half-way: if every place that it listed is found, and none of them ever voted or appended anything, it never was a
cluster, and is done anew, under a new cluster id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import ClusterMismatch, DataCorrupted, SpecError, Unavailable
from ..store.folder import Identity
from ..store.membership_note import MembershipNote
from .placement import Node
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

    def __str__(self) -> str:
        return f"{self.name} (last at {self.pin or 'an unknown place'})"


@dataclass(frozen=True)
class Bootstrap:
    """There is nothing of that name anywhere."""


@dataclass(frozen=True)
class Start:
    """The members of a cluster that is there: those found and not running yet are to be started."""

    cluster: int
    places: tuple[Place, ...]
    missing: tuple[Missing, ...]


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
) -> Bootstrap | Start | Redo:
    """Decide what launch does.

    Args:
        sites: what each node that is alive holds.
        live: the seats of member actors that run, by member id.
        configuration: the newest one that members told of, if any.

    Raises:
        ClusterMismatch: there is data of several clusters, or of one with another name.
        DataCorrupted: there is data that cannot be read, and no other.
        SpecError: a node's folder cannot be read, and nothing was found elsewhere.
        Unavailable: less than a quorum was found, or nothing, and a node did not answer.
    """
    places, reserved = _places(name, sites)
    cluster = _one_cluster(name, places, live)
    if not cluster:
        damaged = [f"{found.folder}: {found.damage}" for _, site in sites for found in site.found if found.damage]
        if damaged:
            raise DataCorrupted("; ".join(damaged))
        silent = [site.problem for _, site in sites if site.silent]
        if silent:
            raise Unavailable(f"cannot tell whether there is data of cluster {name}: {'; '.join(silent)}")
        unreadable = [f"{node.address}: {site.problem}" for node, site in sites if site.problem]
        if unreadable:
            raise SpecError("spec", "data_dir", f"a folder that can be read on every node; {'; '.join(unreadable)}")
        return Bootstrap()
    first = {listed.id: listed for place in places for listed in _identity(place).members}
    note = _newest_note(places)
    pins = {listed.id: listed.pin for listed in first.values()}
    pins.update({known.id: known.pin for known in note.members if known.pin})
    by_member = _one_place_each(places, pins)
    if configuration is None:
        configuration = note.configuration if note.configuration.voters else Configuration(voters=tuple(sorted(first)))
    there = set(live) | set(by_member)
    missing = tuple(
        Missing(member, member_name(member), pins.get(member, "")) for member in sorted(configuration.members - there)
    )
    # Whose data is there and who does not take part was removed, or never got so far as to join.
    found = [place for member, place in sorted(by_member.items()) if member in configuration.members]
    start = Start(cluster, tuple(place for place in found if place.member not in live), missing)
    lacking = [
        half for half in (configuration.voters, configuration.outgoing) if 2 * len(there & set(half)) <= len(half) > 0
    ]
    error = ""
    if lacking:
        error = (
            f"cluster {name} (id {cluster:x}) has {len(configuration.voters)} voting members and needs more than half; "
            f"the data of these was not found on any Ray node that is alive: {', '.join(map(str, missing))}"
        ) + "".join(f"; {site.problem}" for _, site in sites if site.problem)
    if not live and missing and not configuration.index:
        waiting = {place.name: place for place in reserved if place.found.reserved == cluster}
        if first and all(listed.id in by_member or listed.name in waiting for listed in first.values()):
            everywhere = (*by_member.values(), *waiting.values())
            return Redo(cluster, everywhere, None if lacking else start, error)
    if lacking:
        raise Unavailable(error)
    return start


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


def _one_cluster(name: str, places: Sequence[Place], live: Mapping[int, Seat]) -> int:
    """The cluster id that everything found belongs to, 0 if nothing was found."""
    where: dict[int, list[str]] = {}
    for place in places:
        where.setdefault(_identity(place).cluster, []).append(f"{place.found.folder} on {place.node.address}")
    for seat in live.values():
        where.setdefault(seat.cluster, []).append(f"the running member {seat.name}")
    if len(where) > 1:
        said = "; ".join(f"id {cluster:x}: {', '.join(found)}" for cluster, found in sorted(where.items()))
        raise ClusterMismatch(f"there is data of {len(where)} clusters of the name {name}: {said}")
    return next(iter(where), 0)


def _newest_note(places: Sequence[Place]) -> MembershipNote:
    """What is known of the members from the data of the one that has seen the newest configuration."""
    notes = [place.found.note for place in places if place.found.note is not None]
    return max(notes, key=lambda note: note.configuration.index, default=MembershipNote(Configuration()))


def _one_place_each(places: Sequence[Place], pins: Mapping[int, str]) -> dict[int, Place]:
    """The place of each member. The same folder may have been seen from several nodes (of one machine, or on a shared
    file system): then the node that the member was pinned to counts. Copies in different places are refused."""
    by_member: dict[int, list[Place]] = {}
    for place in places:
        by_member.setdefault(place.member, []).append(place)
    chosen = {}
    for member, candidates in by_member.items():
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
