"""The supervisor's next step: a pure function from what it knows to one step, or none.

The rules: a member is replaced only when Ray and the leader have both missed it for ``replace_after``, a spare place
exists, and a live quorum remains. A member that hangs on a node that is alive, so that Ray does not miss it, has its
process ended after a multiple of that, and is replaced if that does not help. Its successor is a learner first, and
takes its place in one joint change once it has caught up. If the missing member comes back before that, the successor
is removed again. Data comes first: a member whose data is found on a node that is alive is started there, whatever the
address (``data_locations.py``), with a leader or without, and is never replaced under another id.

All effects of a step are in the cluster's own log: a reserved id, a learner, which member a successor replaces, a
removal. So nothing is lost when a supervisor dies between two steps, and two supervisors, each with its own clock, only
do the same steps twice, which has the effect of once. A plan made from an old observation does no harm either: the
leader refuses a change that would cost the quorum, and the state machine refuses a second successor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ...limits import ADOPT_AFTER_S, HUNG_FACTOR, HUNG_MIN_S, OPENING_MAX_S, SEARCH_AFTER_S
from ...raft.messages import Configuration
from ...raft.quorum import is_majority
from ...schema.member_record import MemberRecord
from ..ray_view import RayNode
from .placement import Placement, choose_placement


@dataclass(frozen=True)
class ClusterView:
    """What a supervisor knows after one observation.

    Attributes:
        now: on its clock, in seconds.
        replace_after: as the cluster is configured.
        leads: whether there is a leader; what follows, up to ``caught_up``, is what it said.
        table: members that are not removed, by id, reserved ones among them.
        removed: members that were removed last.
        silent: for how many seconds the leader has not heard from each.
        caught_up: members that are close enough to the leader's log to be voters.
        actors: members that Ray has an actor for.
        missed_since: since when Ray has missed a member, or the member itself said that it can never serve again.
        hung_since: since when a member that Ray does not miss has answered nothing, or has said that it is stuck.
        opening: of these, those that say that they are opening their data, which takes time.
        refusing: members that say that they do not serve: why.
        tried_to_end: members whose process was to be ended for that just now.
        reserved_since: since when a member has been seen reserved.
        homes: the node that each member lives on, if it is alive.
        seen_on: the node that each member has said last that it lives on.
        nodes: Ray nodes that are alive.
        placement: resources that members may be pinned by; none for any node.
        found: missed members whose data was found elsewhere than their actors are: where it is.
        doubts: missed members whose data was found, but which may not be started from it: why.
        unread: of these, members that may have data in a folder that the disk refuses to read.
        unread_at_home: of these, members of which that is the only folder, and at their place by the table.
        unlisted: nodes that may hold members, and did not say what they hold.
        delayed: missed members whose data was found, but which could not be started there just now.
        searched: whether all these nodes were searched for the data of the missed members.
        leftovers: folders of members that do not take part: (member, its folder's parent, node).
        cleared: (removed member, node) whose leftovers are gone, or could not be removed just now.
        avoided: nodes that could not take a member just now.
    """

    now: float
    replace_after: float
    leads: bool
    configuration: Configuration
    table: Mapping[int, MemberRecord]
    removed: Mapping[int, MemberRecord] = field(default_factory=dict)
    silent: Mapping[int, float] = field(default_factory=dict)
    caught_up: Collection[int] = frozenset()
    actors: Collection[int] = frozenset()
    missed_since: Mapping[int, float] = field(default_factory=dict)
    hung_since: Mapping[int, float] = field(default_factory=dict)
    opening: Collection[int] = frozenset()
    refusing: Mapping[int, str] = field(default_factory=dict)
    tried_to_end: Collection[int] = frozenset()
    reserved_since: Mapping[int, float] = field(default_factory=dict)
    homes: Mapping[int, str] = field(default_factory=dict)
    seen_on: Mapping[int, str] = field(default_factory=dict)
    nodes: tuple[RayNode, ...] = ()
    placement: tuple[str, ...] = ()
    found: Mapping[int, MemberRecord] = field(default_factory=dict)
    doubts: Mapping[int, str] = field(default_factory=dict)
    unread: Collection[int] = frozenset()
    unread_at_home: Collection[int] = frozenset()
    unlisted: tuple[RayNode, ...] = ()
    delayed: Collection[int] = frozenset()
    searched: bool = True
    leftovers: tuple[tuple[int, str, str], ...] = ()
    cleared: Collection[tuple[int, str]] = frozenset()
    avoided: Collection[str] = frozenset()

    def node_of(self, pin: str) -> RayNode | None:
        """A node that is alive and offers a pin."""
        return next((node for node in self.nodes if pin and pin in node.resources), None)

    def home_of(self, member: int) -> RayNode | None:
        """The node that a member has lived on, if it is alive and certain: several may offer one pin."""
        known = self.table.get(member)
        offering = [node for node in self.nodes if known is not None and known.pin and known.pin in node.resources]
        if len(offering) == 1:
            return offering[0]
        return next((node for node in offering if node.id == self.seen_on.get(member)), None)

    def is_gone(self, member: int) -> bool:
        """Whether Ray and the leader have both missed a member for ``replace_after``, and neither its data was found
        nor a folder that may hold it and cannot be read; or it hangs, and still does so long after its process was to
        be ended. One that is opening its data is not."""
        since = self.missed_since.get(member)
        if member in self.found or member in self.delayed or member in self.unread:
            return False
        if member not in self.opening and self.hangs(member, max(self.replace_after, HUNG_MIN_S)):
            return True
        if since is None or self.now - since < self.replace_after:
            return False
        return self.silent.get(member, 0.0) >= self.replace_after

    def hangs(self, member: int, longer: float = 0.0) -> bool:
        """Whether a member has not answered, or has been stuck, for so long that it hangs, and the leader, if there is
        one, has not heard it for as long; or for ``longer`` seconds more."""
        since = self.hung_since.get(member)
        needed = max(HUNG_FACTOR * self.replace_after, HUNG_MIN_S) + longer
        if since is None or self.now - since < needed:
            return False
        # A leader has no silence of its own: of one that is stuck, its own word is enough.
        return not self.leads or self.silent.get(member, needed) >= needed

    def is_kept_down(self, member: int) -> bool:
        """Whether a node that says nothing may hold a newer folder of a member than the one at its place, and the
        cluster goes on without the member: there is a leader. Without one it may be needed, and starts."""
        known = self.table.get(member)
        return self.leads and known is not None and any(known.pin not in node.resources for node in self.unlisted)

    def is_well(self, member: int) -> bool:
        """Whether Ray and the leader both see a member."""
        return member not in self.missed_since and self.silent.get(member, 0.0) < self.replace_after / 2

    def has_live_quorum(self, voters: Collection[int]) -> bool:
        """Whether a majority of these is well."""
        return is_majority(sum(map(self.is_well, voters)), len(voters))


@dataclass(frozen=True)
class StartMember:
    """Start the actor of a member that has none, on its data."""

    member: MemberRecord


@dataclass(frozen=True)
class Move:
    """End the actor that a member may have elsewhere, and start it where its data was found."""

    member: MemberRecord


@dataclass(frozen=True)
class EndProcess:
    """End the process of a member that hangs, where it is certain which one that is; Ray starts another."""

    member: MemberRecord


@dataclass(frozen=True)
class Reserve:
    """Start to replace a member: reserve an id for its successor."""

    replaces: int
    voter: bool
    placement: Placement
    nonce: bytes


@dataclass(frozen=True)
class Join:
    """Create a reserved member's data, start its actor, add it as a learner."""

    member: MemberRecord


@dataclass(frozen=True)
class Promote:
    """Make a learner a voter; the member that it replaces, if any, leaves in the same change."""

    member: int
    replaces: int = 0


@dataclass(frozen=True)
class Leave:
    """Remove a member from the configuration: a successor that is not needed or was lost, or a replaced learner."""

    member: int


@dataclass(frozen=True)
class Retire:
    """Note that a member outside the configuration is gone for good."""

    member: int


@dataclass(frozen=True)
class Clear:
    """End the actor of a removed member, and delete its data on the node where it was."""

    member: MemberRecord
    node: str


Step = StartMember | Move | EndProcess | Reserve | Join | Promote | Leave | Retire | Clear


def describe(step: Step) -> str:
    """A step and its reason, for the log."""
    if isinstance(step, StartMember):
        return f"starting {step.member.name} at {step.member.pin}: it has no actor, and its data is there"
    if isinstance(step, Move):
        return f"moving {step.member.name} to {step.member.pin}: its data was found there, in {step.member.base}"
    if isinstance(step, EndProcess):
        return f"ending the process of {step.member.name}, which hangs: it answers nobody, and its node is alive"
    if isinstance(step, Reserve):
        return f"replacing m{step.replaces}, which is lost: reserving an id for its successor at {step.placement.pin}"
    if isinstance(step, Join):
        place = f", to replace m{step.member.replaces}" if step.member.replaces else ""
        return f"adding {step.member.name} as a learner at {step.member.pin}{place}"
    if isinstance(step, Promote):
        return f"promoting m{step.member} to a voter" + (f" in place of m{step.replaces}" if step.replaces else "")
    if isinstance(step, Leave):
        return f"removing m{step.member} from the configuration"
    if isinstance(step, Retire):
        return f"retiring m{step.member}: it is not in the configuration, and its id is not used again"
    return f"cleaning up after the removed {step.member.name}: its actor" + (", and its data" if step.node else "")


def plan(view: ClusterView) -> Step | None:
    """The next step, or ``None`` if there is nothing to do, or nothing that may be done now."""
    step = _move(view) or _start(view) or _end_hung(view)
    if step is not None or not view.leads or view.configuration.joint:
        return step
    return _continue(view) or _replace_lost(view) or _clean_up(view)


def obstacles(view: ClusterView) -> list[str]:
    """Which members are not well, and what is waited for before more is done about them, in words.

    A line stays the same as long as the situation does, so that it can be logged once.
    """
    members = view.configuration.members
    if not members:
        searched = ", and no data of one was found on any Ray node that is alive" if view.searched else ""
        return [f"no member has said who takes part{searched}"]
    found = [] if view.leads else ["no leader answers"]
    if view.configuration.joint:
        found.append("a change of the configuration is in progress")
    successors = {known.replaces: known for known in view.table.values() if known.replaces in members}
    for member in sorted(members):
        if not view.is_well(member) or view.hangs(member):
            found.append(f"m{member}: {_situation(view, member, successors)}")
    return found


def _situation(view: ClusterView, member: int, successors: Mapping[int, MemberRecord]) -> str:
    """Why a member is not well, and what is waited for. Data comes first, as in ``plan``."""
    if member in view.missed_since:
        if member in view.found:
            found = view.found[member]
            return f"its data is at {found.pin} now ({found.base}), where it is started"
        if member in view.delayed:
            return "its data was found, but it could not be started there; that is tried again"
        if member in view.doubts:
            return view.doubts[member]
        if member not in view.actors and view.is_kept_down(member):
            where = ", ".join(sorted(node.address for node in view.unlisted))
            return f"it has no actor, and does not get one before it is known what these nodes hold: {where}"
        if not view.leads:
            known = view.table.get(member)
            last = f"; it was last at {known.pin}" if known is not None and known.pin else ""
            if view.node_of(known.pin if known is not None else "") is None and view.searched:
                return f"its data was not found on any Ray node that is alive{last}"
    if member in view.opening:
        return f"it is opening its data; it is not replaced before that has lasted for {OPENING_MAX_S:g} s"
    if member in view.hung_since and not view.is_gone(member):
        if view.hangs(member):
            return "it hangs, and its process is ended; if that does not help, it is replaced"
        return f"it answers nobody, and its node is alive; its process is ended after {HUNG_FACTOR} times replace_after"
    if member not in view.missed_since and member not in view.hung_since:
        if member in view.refusing:
            return f"it does not serve, and is not replaced for that: {view.refusing[member]}"
        return "the leader does not hear it, but Ray does not miss it; waiting until they agree"
    if view.leads and view.silent.get(member, 0.0) < view.replace_after / 2:
        return "Ray misses it, or it says that it is lost, and the leader hears it; waiting for the leader to miss it"
    if not view.is_gone(member):
        return (
            "Ray misses it, and so does the leader, if there is one; waiting until both have done so for replace_after"
        )
    if member in successors:
        return f"it is gone, and m{successors[member].id} is to take its place"
    if successors:
        return "it is gone; waiting for the successor of another member"
    if not view.has_live_quorum(view.configuration.voters):
        return "it is gone; waiting for a majority of the voters to be well"
    return "it is gone, and is replaced as soon as there is a spare place"


def _move(view: ClusterView) -> Step | None:
    """A member whose data was found elsewhere is started there; that needs no leader."""
    for member in sorted(view.configuration.members & set(view.missed_since)):
        # As long as the leader hears it, it runs somewhere, whatever Ray says.
        if member in view.found and (not view.leads or view.silent.get(member, 0.0) >= SEARCH_AFTER_S):
            return Move(view.found[member])
    return None


def _start(view: ClusterView) -> Step | None:
    """A member whose actor died for good, or was never created, gets one again where its data is. All nodes are
    searched first: the table may be older than the last move of the data, and its place hold an older folder. One whose
    only folder is there and cannot be read is started, and tries again until it can."""
    elsewhere = {*view.found, *view.delayed, *({*view.doubts, *view.unread} - set(view.unread_at_home))}
    for member in sorted(view.configuration.members - set(view.actors) - elsewhere):
        known = view.table.get(member)
        if not view.searched or view.is_kept_down(member):
            continue
        if known is not None and known.base and view.node_of(known.pin) is not None:
            return StartMember(known)
    return None


def _end_hung(view: ClusterView) -> Step | None:
    """A member that hangs has its process ended on its node, which needs no leader: a quorum may hang."""
    for member in sorted(set(view.hung_since) - set(view.tried_to_end)):
        known = view.table.get(member)
        if view.hangs(member) and known is not None and known.base and view.node_of(known.pin) is not None:
            return EndProcess(known)
    return None


def _continue(view: ClusterView) -> Step | None:
    """Complete what was started: reserved members, successors, learners that are to be voters.

    It comes before new replacements, so that one member at a time is replaced, and what is not needed is removed first.
    """
    members, learners = view.configuration.members, view.configuration.learners
    for known in sorted(view.table.values(), key=lambda known: known.id):
        predecessor = known.replaces if known.replaces in members else 0
        if known.replaces and not predecessor and known.id not in members and not known.joined:
            return Retire(known.id)  # the member that it was to replace has left by other means
        if known.id in view.configuration.voters:
            if predecessor and view.is_gone(predecessor) and view.has_live_quorum(view.configuration.voters):
                return Leave(predecessor)
            continue
        if predecessor and view.is_well(predecessor):
            return Leave(known.id) if known.id in members else Retire(known.id)
        if known.id in learners:
            step = _advance_learner(view, known, predecessor)
        elif known.id not in members and not known.joined:
            step = _join(view, known, predecessor)
        else:
            step = None
        if step is not None:
            return step
    return None


def _join(view: ClusterView, known: MemberRecord, predecessor: int) -> Step | None:
    """A reserved member joins, or its id is given up if its node is gone or does not take it for too long."""
    waited = view.now - view.reserved_since.get(known.id, view.now)
    if view.node_of(known.pin) is None:
        return Retire(known.id) if waited >= view.replace_after else None
    if waited >= 2 * view.replace_after + ADOPT_AFTER_S:
        return Retire(known.id)  # it cannot be created where it should live
    # A member that another process has started to add is left to it for a while.
    return Join(known) if predecessor or waited >= ADOPT_AFTER_S else None


def _advance_learner(view: ClusterView, known: MemberRecord, predecessor: int) -> Step | None:
    """A learner is promoted once it has caught up, if a live quorum remains before and after; a successor, only while
    the member that it replaces is still gone."""
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


def _clean_up(view: ClusterView) -> Step | None:
    """Members that left: retire their ids, then end their actors and delete their data.

    Only what a quorum knows to be removed is deleted: an unknown id is retired first, which the cluster refuses for a
    member of its configuration.
    """
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
            return Clear(MemberRecord(member, f"m{member}", base=base), where)
        if member <= max((*members, *view.table, *view.removed), default=0):
            return Retire(member)  # forgotten since; a quorum must confirm that it does not take part
    for known in view.removed.values():
        node = view.node_of(known.pin)
        where = node.id if node is not None and known.base else ""
        if known.id in view.actors or (where and (known.id, where) not in view.cleared):
            return Clear(known, where)
    return None


def _replace_lost(view: ClusterView) -> Step | None:
    """Give a member that is gone for good a successor, if there is a place for it; one at a time.

    The nonce names the step: two supervisors, or one that repeats it, get the same id for it.
    """
    configuration = view.configuration
    members = configuration.members
    if any(known.replaces in members for known in view.table.values()):
        return None
    if not view.has_live_quorum(configuration.voters):
        return None
    for member in sorted(members):
        # The data of one that hangs need not be looked for: its process has it.
        if not view.is_gone(member) or not (view.searched or member in view.hung_since):
            continue
        home = view.home_of(member)
        others = {other: home for other, home in view.homes.items() if other != member}
        avoided = set(view.avoided)
        if member in view.hung_since and home is not None and home.id not in others.values():
            avoided.add(home.id)  # not where a process hangs, unless others live there
        nodes = [node for node in view.nodes if node.id not in avoided]
        placement = choose_placement(nodes, view.placement, others, vacated=home.id if home is not None else "")
        if placement is not None:
            newest = max((*members, *view.table, *view.removed))
            nonce = b"m%d after m%d" % (member, newest)
            return Reserve(member, member in configuration.voters, placement, nonce)
    return None
