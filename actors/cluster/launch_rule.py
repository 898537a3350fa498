"""What launch does about the data that it finds: one pure function, without Ray and without a disk.

A cluster id is drawn once. If any identity of the name is found, nothing is bootstrapped: the newest known
configuration decides who takes part, and a quorum of it must be there. Nor is anything bootstrapped if other evidence
of a cluster exists (``evidence.py``). The one exception is a bootstrap that was interrupted: if every place that it
listed is found, and none of them ever voted or appended anything, it never was a cluster, and is done again under a new
cluster id. What is left of a cluster that was destroyed on purpose, while a node was away, counts for nothing.

A copy of a member's data (``data_copies.py``) counts as the data if the node that last held the data is back without
it, so it was moved, or if there is no quorum without it. Otherwise the original may be on a node that is away. A member
is not started from one folder while another of its folders cannot be read: that one may be newer. Nor does it get an
actor without data then (``StartMembers.withheld``), which would find the older folder where the member was last.

A node that is alive and does not say what it holds may have a newer folder of any member. One whose last place it is
is not started from another folder. The others are not either if there is a quorum without them; otherwise a spare node
with a bad disk would stop a cluster of which all data is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from ...errors import ClusterMismatch, DataCorrupted, MembersMissing, SpecError, Unavailable
from ...raft.messages import Configuration
from ...raft.quorum import has_quorum, is_majority
from ...store.data_copies import newest_of
from ...store.data_dir import Identity
from ...store.membership_note import MembershipNote
from ..naming import MemberSpec, member_name
from ..ray_view import RayNode, may_hold
from .evidence import Evidence, destroy_command, destroyed, foreign_data, if_gone, is_seen, newest_marker, refusal
from .markers import MarkedMember
from .node_storage import FoundData, NodeInventory


@dataclass(frozen=True)
class MemberPlace:
    """Where a member's data is."""

    member: int
    name: str
    node: RayNode
    inventory: NodeInventory
    found: FoundData
    pin: str = ""
    """The resource that it was pinned with, if any member knew it."""


@dataclass(frozen=True)
class Missing:
    """A member whose data is on no node that is alive, and its last pin."""

    member: int
    name: str
    pin: str
    last: MarkedMember | None = None
    """What a marker says about it."""

    @property
    def marked(self) -> MarkedMember:
        """All that is known about it."""
        known = self.last or MarkedMember(self.member, self.name)
        return MarkedMember(self.member, self.name, self.pin or known.pin, known.base, known.address)

    def __str__(self) -> str:
        return str(self.marked)


@dataclass(frozen=True)
class Bootstrap:
    """There is nothing of that name anywhere: bootstrap a new cluster."""


@dataclass(frozen=True)
class StartMembers:
    """A cluster is there: its members that were found and do not run yet are to be started."""

    cluster: int
    places: tuple[MemberPlace, ...]
    missing: tuple[Missing, ...]
    foreign: tuple[str, ...] = ()
    """What was found of other clusters of that name, one line each; it is left alone."""
    withheld: Mapping[int, str] = field(default_factory=dict)
    """Of the missing members, those that must not be started without data either, and why."""
    copied: Mapping[int, str] = field(default_factory=dict)
    """Of the others, those of which only a copy was found, and where. An actor where such a member was last waits for
    the original. With a supervisor it is not needed: that looks on all nodes first, once the original may be back."""


@dataclass(frozen=True)
class Redo:
    """A bootstrap that was interrupted. If each of these places turns out to be unused, they are emptied and a new
    cluster is bootstrapped; otherwise the decision is ``instead``, or ``error`` if that is ``None``."""

    cluster: int
    places: tuple[MemberPlace, ...]
    instead: StartMembers | None
    error: str


def decide(
    name: str,
    inventories: Sequence[tuple[RayNode, NodeInventory]],
    live: Mapping[int, MemberSpec],
    configuration: Configuration | None = None,
    *,
    evidence: Evidence = Evidence(),
    data_dir: str = "",
    placement: Sequence[str] = (),
) -> Bootstrap | StartMembers | Redo:
    """Decide what launch does.

    Args:
        inventories: what each node that is alive holds.
        live: the specs of member actors that run, by member id.
        configuration: the newest one that members reported, if any.
        evidence: other evidence of a cluster of that name.
        data_dir: as in the spec, for messages.
        placement: resources that members may be pinned by; empty for any node. Another node is heard if it answers,
            but is not waited for.

    Raises:
        ClusterMismatch: there is data of several clusters, or of one with another name.
        DataCorrupted: all data that was found is unreadable.
        SpecError: a node's folder cannot be read, and nothing was found elsewhere.
        MembersMissing: less than a quorum was found, or no data, and yet there is evidence of a cluster.
        Unavailable: nothing was found, and a node did not answer.
    """
    everything = inventories
    inventories = _without(destroyed(inventories), inventories)
    places, reserved = _places(name, inventories)
    cluster = _one_cluster(name, places, live, configuration, data_dir)
    places = [place for place in places if _identity(place).cluster == cluster]
    if not cluster:
        return _without_data(name, inventories, evidence, data_dir, placement)
    marker = newest_marker(
        [each for _, inventory in inventories for each in inventory.markers if each.cluster == cluster]
    )
    last = {member.id: member for member in marker.members} if marker is not None else {}
    first = {listed.id: listed for place in places for listed in _identity(place).members}
    note = _newest_note(places)
    pins = {listed.id: listed.pin for listed in first.values()}
    pins.update({member.id: member.pin for member in last.values() if member.pin})
    pins.update({known.id: known.pin for known in note.members if known.pin})
    unread = _unread(places, inventories)
    unlisted = _unlisted(inventories)
    unseen = _last_on(unlisted, places, pins)
    by_member = _one_place_each([place for place in places if place.name not in {*unread, *unseen}], pins)
    if configuration is None:
        configuration = note.configuration if note.configuration.voters else Configuration(voters=tuple(sorted(first)))
    there = set(live) | set(by_member)
    copies = {
        member: place
        for member, place in by_member.items()
        if place.found.served.copied
        and member not in live
        and not is_seen(_last_place(member, pins, last), inventories)
    }
    may_hide = [node for node, _ in unlisted if may_hold(node, placement)]
    elsewhere = _not_on(may_hide, by_member.values()) - set(live)
    for uncertain in (elsewhere | set(copies), set(copies)):
        if not _lacks_quorum(configuration, there - uncertain):
            # What is newer may come back, with what the member has promised since: this folder is not needed.
            there -= uncertain
            break
    by_member = {member: place for member, place in by_member.items() if member in there}
    missing = tuple(
        Missing(member, member_name(member), pins.get(member, ""), last.get(member))
        for member in sorted(configuration.members - there)
    )
    withheld = _withheld(missing, unread, places, inventories)
    silence = "; ".join(inventory.problem for node, inventory in unlisted if node in may_hide)
    withheld |= {each.member: f"there may be a newer folder: {silence}" for each in missing if each.member in elsewhere}
    copied = {
        each.member: f"only a copy of its data was found ({copy.found.folder} on {copy.node.address})"
        for each in missing
        if (copy := copies.get(each.member)) is not None and each.member not in withheld
    }
    # An actor where the copy is would open it.
    withheld |= {m: why for m, why in copied.items() if pins.get(m, "") in copies[m].node.resources}
    copied = {m: why for m, why in copied.items() if m not in withheld}
    # A member with data that is not in the configuration was removed, or never joined.
    found = [place for member, place in sorted(by_member.items()) if member in configuration.members]
    others = tuple(foreign_data(name, cluster, data_dir, everything))
    to_start = tuple(place for place in found if place.member not in live)
    start = StartMembers(cluster, to_start, missing, others, withheld, copied)
    lacking = _lacks_quorum(configuration, there)
    error = ""
    if lacking:
        known = (*unread.values(), *unseen.values(), *others)
        error = _what_is_missing(name, cluster, configuration, missing, inventories, known, data_dir)
    if not live and missing and not configuration.index:
        waiting = {place.name: place for place in reserved if place.found.reserved == cluster}
        if first and all(listed.id in by_member or listed.name in waiting for listed in first.values()):
            everywhere = (*by_member.values(), *waiting.values())
            return Redo(cluster, everywhere, None if lacking else start, error)
    if lacking:
        raise MembersMissing(error)
    return start


def _without_data(
    name: str,
    inventories: Sequence[tuple[RayNode, NodeInventory]],
    evidence: Evidence,
    data_dir: str,
    placement: Sequence[str],
) -> Bootstrap:
    """Nothing that can be read was found of a cluster of that name: bootstrap, but only if nothing speaks for one
    and every node that counts has answered (see ``decide``)."""
    damaged = [
        f"{found.folder} on {node.address}: {found.damage}"
        for node, inventory in inventories
        for found in inventory.found
        if found.damage
    ]
    if damaged:
        raise DataCorrupted(f"{'; '.join(damaged)}. {if_gone(name, 0, data_dir)}")
    refused = refusal(name, data_dir, inventories, evidence)
    if refused is not None:
        raise refused
    asked = [(node, inventory) for node, inventory in inventories if may_hold(node, placement)]
    silent = [inventory.problem for _, inventory in asked if inventory.silent]
    if silent:
        raise Unavailable(f"cannot tell whether there is data of cluster {name}: {'; '.join(silent)}")
    unreadable = [f"{node.address}: {inventory.problem}" for node, inventory in asked if inventory.problem]
    if unreadable:
        raise SpecError("spec", "data_dir", f"a folder that can be read on every node; {'; '.join(unreadable)}")
    return Bootstrap()


def _what_is_missing(
    name: str,
    cluster: int,
    configuration: Configuration,
    missing: Sequence[Missing],
    inventories: Sequence[tuple[RayNode, NodeInventory]],
    others: Sequence[str],
    data_dir: str,
) -> str:
    """Why there is no quorum, and what to do about it."""
    problems = [*(inventory.problem for _, inventory in inventories if inventory.problem), *others]
    return (
        f"cluster {name} (id {cluster:x}) has {len(configuration.voters)} voting members and needs more than half; "
        f"the data of these was not found on any Ray node that is alive: {', '.join(map(str, missing))}"
        f"{''.join(f'; {problem}' for problem in problems)}. Bring their nodes back, and launch again; if their data "
        f'is gone for good, see operations.md, "A majority is lost for good". {if_gone(name, cluster, data_dir)}'
    )


def _lacks_quorum(configuration: Configuration, there: Collection[int]) -> bool:
    """Whether there are voters, and these members are not a quorum of them."""
    return bool(configuration.voters) and not has_quorum(configuration, there)


def _last_place(member: int, pins: Mapping[int, str], last: Mapping[int, MarkedMember]) -> MarkedMember:
    """Where a member was last, as far as that is known."""
    address = last[member].address if member in last else ""
    return MarkedMember(member, member_name(member), pins.get(member, ""), address=address)


def _without(
    gone: frozenset[int], inventories: Sequence[tuple[RayNode, NodeInventory]]
) -> list[tuple[RayNode, NodeInventory]]:
    """What the nodes hold, without what is left of these clusters."""
    left = []
    for node, inventory in inventories:
        found = tuple(
            place
            for place in inventory.found
            if (place.identity.cluster if place.identity is not None else place.reserved) not in gone
        )
        markers = tuple(marker for marker in inventory.markers if marker.cluster not in gone)
        left.append((node, msgspec.structs.replace(inventory, found=found, markers=markers)))
    return left


def _places(
    name: str, inventories: Sequence[tuple[RayNode, NodeInventory]]
) -> tuple[list[MemberPlace], list[MemberPlace]]:
    """Places with an identity, and places that are only reserved. An identity in the wrong folder is refused."""
    with_identity, reserved = [], []
    for node, inventory in inventories:
        for found in inventory.found:
            identity = found.identity
            if identity is None:
                if found.reserved:
                    reserved.append(MemberPlace(0, found.name, node, inventory, found))
                continue
            if identity.cluster_name != name or identity.name != found.name:
                raise ClusterMismatch(
                    f"{found.folder} on {node.address} should hold {found.name} of cluster {name}, but holds "
                    f"{identity.name} of cluster {identity.cluster_name} (id {identity.cluster:x})"
                )
            with_identity.append(MemberPlace(identity.member, identity.name, node, inventory, found))
    return with_identity, reserved


def _one_cluster(
    name: str,
    places: Sequence[MemberPlace],
    live: Mapping[int, MemberSpec],
    configuration: Configuration | None,
    data_dir: str,
) -> int:
    """The cluster id that everything found belongs to, 0 if nothing was found. If a quorum runs, its cluster is the one
    that the name means, whatever else was found."""
    where: dict[int, list[str]] = {}
    for place in places:
        where.setdefault(_identity(place).cluster, []).append(f"{place.found.folder} on {place.node.address}")
    for member_spec in live.values():
        where.setdefault(member_spec.cluster, []).append(f"the running member {member_spec.name}")
    running = {member_spec.cluster for member_spec in live.values()}
    voters = configuration.voters if configuration is not None else ()
    if len(running) == 1 and voters and is_majority(len(set(live) & set(voters)), len(voters)):
        return running.pop()
    if len(where) > 1:
        said = "; ".join(f"id {cluster:x}: {', '.join(found)}" for cluster, found in sorted(where.items()))
        ways = " or ".join(f"`{destroy_command(name, cluster, data_dir)}`" for cluster in sorted(where))
        raise ClusterMismatch(
            f"there is data of {len(where)} clusters named {name}: {said}. Nothing was started. Decide which is "
            f'the right one (operations.md, "Data of two clusters"), and delete the other: {ways}'
        )
    return next(iter(where), 0)


def _newest_note(places: Sequence[MemberPlace]) -> MembershipNote:
    """What the member that has seen the newest configuration knew of all members."""
    notes = [place.found.note for place in places if place.found.note is not None]
    return max(notes, key=lambda note: note.configuration.index, default=MembershipNote(Configuration()))


def _one_place_each(places: Sequence[MemberPlace], pins: Mapping[int, str]) -> dict[int, MemberPlace]:
    """The place of each member. Of copies in different places the newest counts (``data_copies.py``). The same folder
    may have been seen from several nodes (of one machine, or on a shared file system): then the node that the member
    was pinned to counts. If the right one is unknown, the launch is refused: two members of one id would vote twice."""
    by_member: dict[int, list[MemberPlace]] = {}
    for place in places:
        by_member.setdefault(place.member, []).append(place)
    chosen = {}
    for member, everywhere in by_member.items():
        candidates = newest_of(everywhere, [place.found.served for place in everywhere])
        identity = _identity(candidates[0])
        pin = pins.get(member, "")
        pinned = [place for place in candidates if pin in place.node.resources]
        left = pinned or candidates
        if len({(place.inventory.machine, place.found.device) for place in left}) > 1:
            where = ", ".join(f"{place.found.folder} on {place.node.address}" for place in left)
            raise ClusterMismatch(
                f"the data of {identity.name} of cluster {identity.cluster_name} (id {identity.cluster:x}) is in "
                f"several places, and only one can be the right one: {where}"
            )
        chosen[member] = replace(left[0], pin=pin)
    return chosen


def _unread(places: Sequence[MemberPlace], inventories: Sequence[tuple[RayNode, NodeInventory]]) -> dict[str, str]:
    """Members that may not be started, as a folder of theirs cannot be read that may be newer than what can, and why,
    by name. One whose only folder cannot be read as a whole may be: it tries again until it can."""
    folders: dict[str, set[tuple[str, tuple[int, int]]]] = {}
    for place in places:
        folders.setdefault(place.name, set()).add((place.inventory.machine, place.found.device))
    refused = [
        (node, found)
        for node, inventory in inventories
        for found in inventory.found
        if found.refused and found.identity is None
    ]
    refused += [(place.node, place.found) for place in places if place.found.refused and len(folders[place.name]) > 1]
    return {found.name: f"{found.folder} on {node.address}: {found.damage}" for node, found in refused}


def _unlisted(inventories: Sequence[tuple[RayNode, NodeInventory]]) -> list[tuple[RayNode, NodeInventory]]:
    """The nodes that do not say what they hold, and could hold something."""
    return [(node, each) for node, each in inventories if each.says_nothing]


def _last_on(
    unlisted: Sequence[tuple[RayNode, NodeInventory]], places: Sequence[MemberPlace], pins: Mapping[int, str]
) -> dict[str, str]:
    """Members that were last on one of these nodes, and of which another folder was found, which may be older: why it
    is not used, by name. Such a member gets an actor where it was last, which can open no other folder."""
    on: dict[int, list[MemberPlace]] = {}
    for place in places:
        on.setdefault(place.member, []).append(place)
    return {
        found[0].name: f"{found[0].found.folder} on {found[0].node.address} is not used: "
        f"{found[0].name} was last at {pins[member]}"
        for member, found in on.items()
        if any(pins.get(member, "") in node.resources for node, _ in unlisted)
        and not any(pins.get(member, "") in place.node.resources for place in found)
    }


def _not_on(unlisted: Sequence[RayNode], places: Collection[MemberPlace]) -> set[int]:
    """Members of these places of which one of these nodes may hold another folder."""
    return {place.member for place in places if any(node.id != place.node.id for node in unlisted)}


def _withheld(
    missing: Sequence[Missing],
    unread: Mapping[str, str],
    places: Sequence[MemberPlace],
    inventories: Sequence[tuple[RayNode, NodeInventory]],
) -> dict[int, str]:
    """Of the missing members with a folder that cannot be read, those that would be started elsewhere than there, and
    why not: an older folder may be where they would be. One whose only folder it is, where it was last, is started, and
    tries again until it can be read."""
    withheld = {}
    for each in missing:
        if each.name not in unread:
            continue
        seen = [(place.node, place.inventory, place.found) for place in places if place.name == each.name]
        seen += [
            (node, inventory, found)
            for node, inventory in inventories
            for found in inventory.found
            if found.name == each.name and found.refused and found.identity is None
        ]
        folders = {found.seen_as(inventory.machine, node.address) for node, inventory, found in seen}
        if len(folders) > 1 or not any(each.pin in node.resources for node, _, _ in seen):
            withheld[each.member] = unread[each.name]
    return withheld


def _identity(place: MemberPlace) -> Identity:
    assert place.found.identity is not None
    return place.found.identity
