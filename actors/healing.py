"""What the supervisor does next: one pure function from what it sees to at most one step, or none.

The rules (DESIGN.md, "Living on Ray"): a member is replaced only when Ray and the leader have both missed it for
``replace_after``, a spare place exists, and a live quorum stays; its successor is a learner first, and takes its place
in one joint change once it has caught up. If the missing one comes back before that, the successor goes again.
Before all that stands where its data is: whose data is found on a node that is alive is started there, under whatever
address (``whereabouts.py``), with a leader or without, and is never replaced under another id.

Everything that a step leaves behind stands in the cluster's own log: an id that is reserved, a learner, a successor's
mark, a removal. So nothing is lost with a supervisor that dies between any two steps, and two of them, each with its
own idea of time, only do the same steps twice, which is as good as once. A plan that rests on an old look does no harm
either: the leader refuses a change that would cost the quorum, and the state machine a second successor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..limits import ADOPT_AFTER, SEARCH_AFTER
from ..store.members import Description
from .placement import Node
from .places import Spot, choose_spot
from .raft.messages import Configuration


@dataclass(frozen=True)
class View:
    """What a supervisor knows at one moment.

    Attributes:
        now: on its clock, in seconds.
        replace_after: as the cluster is configured.
        leads: whether there is a leader; everything below up to ``caught_up`` is that one's word.
        table: members that are not removed, by id, reserved ones among them.
        removed: the last that were.
        silent: for how many seconds the leader has not heard of each.
        caught_up: members that could be voters.
        actors: members that Ray has an actor for.
        missed_since: since when Ray has missed a member, or the member itself said that it can never serve again.
        reserved_since: since when a member has been seen reserved.
        homes: the node that each member lives on, of those that are alive.
        nodes: Ray nodes that are alive.
        placement: resources that members may be pinned by; none for any node.
        found: members that are missed and whose data was found elsewhere than their actors are: where it is.
        doubts: members that are missed and whose data was found, but not so that they may be started: why.
        delayed: members that are missed and whose data was found, but that could not be started there just now.
        searched: whether all these nodes were looked at for the data of those that are missed.
        leftovers: folders of members that do not take part: (member, its folder's parent, node).
        cleared: (removed member, node) whose leftovers are known to be gone, or could not be removed just now.
        avoided: nodes that could not take a member just now.
    """

    now: float
    replace_after: float
    leads: bool
    configuration: Configuration
    table: Mapping[int, Description]
    removed: Mapping[int, Description] = field(default_factory=dict)
    silent: Mapping[int, float] = field(default_factory=dict)
    caught_up: Collection[int] = frozenset()
    actors: Collection[int] = frozenset()
    missed_since: Mapping[int, float] = field(default_factory=dict)
    reserved_since: Mapping[int, float] = field(default_factory=dict)
    homes: Mapping[int, str] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    placement: tuple[str, ...] = ()
    found: Mapping[int, Description] = field(default_factory=dict)
    doubts: Mapping[int, str] = field(default_factory=dict)
    delayed: Collection[int] = frozenset()
    searched: bool = True
    leftovers: tuple[tuple[int, str, str], ...] = ()
    cleared: Collection[tuple[int, str]] = frozenset()
    avoided: Collection[str] = frozenset()

    def node_of(self, pin: str) -> Node | None:
        """A node that is alive and offers a pin."""
        return next((node for node in self.nodes if pin and pin in node.resources), None)

    def is_gone(self, member: int) -> bool:
        """Whether Ray and the leader have both missed a member for ``replace_after``, and its data as well."""
        since = self.missed_since.get(member)
        if member in self.found or member in self.delayed:
            return False
        if since is None or self.now - since < self.replace_after:
            return False
        return self.silent.get(member, 0.0) >= self.replace_after

    def is_well(self, member: int) -> bool:
        """Whether Ray and the leader both see a member."""
        return member not in self.missed_since and self.silent.get(member, 0.0) < self.replace_after / 2

    def has_live_quorum(self, voters: Collection[int]) -> bool:
        """Whether most of these are well."""
        return 2 * sum(map(self.is_well, voters)) > len(voters)


@dataclass(frozen=True)
class Start:
    """Start the actor of a member that has none, over its data."""

    member: Description


@dataclass(frozen=True)
class Move:
    """End the actor that a member has where its data is not, if any, and start it where the data was found."""

    member: Description


@dataclass(frozen=True)
class Reserve:
    """Begin to replace a member: get an id for its successor."""

    replaces: int
    voter: bool
    spot: Spot
    nonce: bytes


@dataclass(frozen=True)
class Join:
    """Make a reserved member's data, start its actor, have it learn."""

    member: Description


@dataclass(frozen=True)
class Promote:
    """Make a learner a voter; in the same change, the member leaves that it replaces, if any."""

    member: int
    replaces: int = 0


@dataclass(frozen=True)
class Leave:
    """Take a member out of the configuration: a successor that is not needed or was lost, or a learner replaced."""

    member: int


@dataclass(frozen=True)
class Retire:
    """Note that a member outside the configuration is gone for good."""

    member: int


@dataclass(frozen=True)
class Clear:
    """End the actor of a removed member, and delete its data on the node where it was."""

    member: Description
    node: str


Step = Start | Move | Reserve | Join | Promote | Leave | Retire | Clear


def plan(view: View) -> Step | None:
    """The next step, or ``None`` if there is nothing to do, or nothing that may be done now."""
    step = _move(view) or _start(view)
    if step is not None or not view.leads or view.configuration.joint:
        return step
    return _go_on(view) or _begin(view) or _clean_up(view)


def obstacles(view: View) -> list[str]:
    """Which members are not well, and what is waited for before more is done about it; for people.

    The words stay the same as long as the situation does.
    """
    members = view.configuration.members
    if not members:
        searched = ", and no data of one was found on any Ray node that is alive" if view.searched else ""
        return [f"no member has said who takes part{searched}"]
    found = [] if view.leads else ["no leader answers"]
    if view.configuration.joint:
        found.append("a change of the configuration is under way")
    successors = {known.replaces: known for known in view.table.values() if known.replaces in members}
    for member in sorted(members):
        if not view.is_well(member):
            found.append(f"m{member}: {_situation(view, member, successors)}")
    return found


def _situation(view: View, member: int, successors: Mapping[int, Description]) -> str:
    """What is the matter with a member that is not well."""
    if member in view.missed_since:
        if member in view.found:
            found = view.found[member]
            return f"its data is at {found.pin} now ({found.base}), where it is started"
        if member in view.delayed:
            return "its data was found, but it could not be started there just now; that is tried again"
        if member in view.doubts:
            return view.doubts[member]
        if not view.leads:
            known = view.table.get(member)
            last = f"; it was last at {known.pin}" if known is not None and known.pin else ""
            if view.node_of(known.pin if known is not None else "") is None and view.searched:
                return f"its data was not found on any Ray node that is alive{last}"
    if member not in view.missed_since:
        return "the leader does not hear it, Ray does not miss it; waiting for one of them to change its mind"
    if view.leads and view.silent.get(member, 0.0) < view.replace_after / 2:
        return "Ray misses it, or it says that it is lost, and the leader hears it; waiting for the leader to miss it"
    if not view.is_gone(member):
        return "Ray misses it, and so does the leader, if there is one; waiting until both have for replace_after"
    if member in successors:
        return f"it is gone, and m{successors[member].id} is to take its place"
    if successors:
        return "it is gone; waiting for the successor of another one"
    if not view.has_live_quorum(view.configuration.voters):
        return "it is gone; waiting for a majority of the voters to be well"
    return "it is gone, and is replaced as soon as there is a spare place"


def _move(view: View) -> Step | None:
    """Whose data was found elsewhere runs there; nobody needs to lead for that."""
    for member in sorted(view.configuration.members & set(view.missed_since)):
        # As long as the leader hears it, it runs somewhere, whatever Ray says.
        if member in view.found and (not view.leads or view.silent.get(member, 0.0) >= SEARCH_AFTER):
            return Move(view.found[member])
    return None


def _start(view: View) -> Step | None:
    """Whose actor died for good, or was never made, gets one again where its data lies."""
    for member in sorted(view.configuration.members - set(view.actors)):
        known = view.table.get(member)
        if known is not None and known.base and view.node_of(known.pin) is not None:
            return Start(known)
    return None


def _go_on(view: View) -> Step | None:
    """Bring to an end what was begun: members that are reserved, successors, learners that are to be voters."""
    members, learners = view.configuration.members, view.configuration.learners
    for known in sorted(view.table.values(), key=lambda known: known.id):
        predecessor = known.replaces if known.replaces in members else 0
        if known.replaces and not predecessor and known.id not in members and not known.joined:
            return Retire(known.id)  # whom it was to replace went another way
        if known.id in view.configuration.voters:
            if predecessor and view.is_gone(predecessor) and view.has_live_quorum(view.configuration.voters):
                return Leave(predecessor)
            continue
        if predecessor and view.is_well(predecessor):
            return Leave(known.id) if known.id in members else Retire(known.id)
        if known.id in learners:
            step = _ripen(view, known, predecessor)
        elif known.id not in members and not known.joined:
            step = _join(view, known, predecessor)
        else:
            step = None
        if step is not None:
            return step
    return None


def _join(view: View, known: Description, predecessor: int) -> Step | None:
    waited = view.now - view.reserved_since.get(known.id, view.now)
    if view.node_of(known.pin) is None:
        return Retire(known.id) if waited >= view.replace_after else None
    if waited >= 2 * view.replace_after + ADOPT_AFTER:
        return Retire(known.id)  # it cannot be made where it should live
    # A member that somebody else has begun to add is theirs for a while.
    return Join(known) if predecessor or waited >= ADOPT_AFTER else None


def _ripen(view: View, known: Description, predecessor: int) -> Step | None:
    """What becomes of a learner."""
    voters = view.configuration.voters
    if predecessor and view.is_gone(known.id):
        return Leave(known.id)
    if known.id not in view.caught_up or not view.is_well(known.id):
        return None
    if predecessor:
        if not view.is_gone(predecessor):
            return None
        if predecessor not in voters:
            return Leave(predecessor)
        after = (*(voter for voter in voters if voter != predecessor), known.id)
        if view.has_live_quorum(voters) and view.has_live_quorum(after):
            return Promote(known.id, predecessor)
        return None
    if known.voter and view.has_live_quorum(voters) and view.has_live_quorum((*voters, known.id)):
        return Promote(known.id)
    return None


def _clean_up(view: View) -> Step | None:
    """Members that left: note that they are gone, and take away what they left behind."""
    members = view.configuration.members
    for known in view.table.values():
        if known.joined and known.id not in members:
            return Retire(known.id)
    for member in sorted(set(view.actors) - members - set(view.table) - set(view.removed)):
        if member <= max((*members, *view.table, *view.removed), default=0):
            return Retire(member)
    gone = members | set(view.table)
    for member, base, where in view.leftovers:
        if member in gone or (member, where) in view.cleared:
            continue
        if member in view.removed:
            return Clear(Description(member, f"m{member}", base=base), where)
        if member <= max((*members, *view.table, *view.removed), default=0):
            return Retire(member)  # forgotten by now; a quorum must say that it does not take part
    for known in view.removed.values():
        node = view.node_of(known.pin)
        where = node.id if node is not None and known.base else ""
        if known.id in view.actors or (where and (known.id, where) not in view.cleared):
            return Clear(known, where)
    return None


def _begin(view: View) -> Step | None:
    """Give a member that is gone for good a successor, if there is a place for it; one at a time."""
    configuration = view.configuration
    members = configuration.members
    if any(known.replaces in members for known in view.table.values()):
        return None
    if not view.has_live_quorum(configuration.voters):
        return None
    for member in sorted(members):
        if not view.is_gone(member) or not view.searched:
            continue
        known = view.table.get(member)
        home = view.node_of(known.pin) if known is not None else None
        others = {other: home for other, home in view.homes.items() if other != member}
        nodes = [node for node in view.nodes if node.id not in view.avoided]
        spot = choose_spot(nodes, view.placement, others, vacated=home.id if home is not None else "")
        if spot is not None:
            newest = max((*members, *view.table, *view.removed))
            nonce = b"m%d after m%d" % (member, newest)
            return Reserve(member, member in configuration.voters, spot, nonce)
    return None
