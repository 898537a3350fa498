"""A supervisor's memory from one observation to the next, and the view of the cluster that it plans by.

Members that answer are believed first, the leader before others; then the last status of a member, kept from an earlier
observation; then the disks (``data_locations.py``). So a supervisor that has just started, in a cluster of which no
member answers, still knows who takes part and where their data is. It is free of Ray, so that it can be tested: the
supervisor asks the questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import msgspec

from ...limits import OPENING_MAX_S, SEARCH_AFTER_S, STEP_RETRY_S, STUCK_TURN_S, Settings, decode_settings
from ...raft.messages import Configuration
from ...schema.member_record import MemberRecord
from ...schema.operator_frames import MemberStatus
from ..naming import GAVE_UP, member_name
from ..ray_view import RayNode, may_hold
from .data_locations import Search, Sighting, choose_home, locate_data, membership
from .heal_plan import Clear, ClusterView, EndProcess, Move, Reserve, Retire, Step
from .newest_status import configuration_of
from .node_storage import NodeInventory
from .observe import Observation, homes


class FailureTracker:
    """The memory of one supervisor.

    Args:
        cluster: its id.
        placement: resources that members may be pinned by; empty for any node.
    """

    def __init__(self, cluster: int, placement: tuple[str, ...]) -> None:
        self._placement = placement
        self._search = Search(cluster)
        self._missed_since: dict[int, float] = {}
        self._known: frozenset[int] = frozenset()
        """All that ever took part, as far as was seen."""
        self._silent_since: dict[int, float] = {}
        """Since when leaders have not heard from a member."""
        self._hung_since: dict[int, float] = {}
        self._reserved_since: dict[int, float] = {}
        self._cleared: set[tuple[int, str]] = set()
        self._postponed: dict[tuple[int, str] | str | int, float] = {}
        self._tried_to_end: dict[int, float] = {}
        """Members whose process was to be ended because it hangs, and until when that is not tried again."""
        self._retired: set[int] = set()
        """Members that were retired: a quorum has confirmed that they do not take part."""
        self._seen_on: dict[int, str] = {}
        """The node that each member has said last that it lives on."""
        self._pins: dict[int, str] = {}
        """Where members live, by the table."""
        self._moved: dict[int, tuple[str, MemberRecord]] = {}
        """Members that were started elsewhere than the table says: what it said then, and where they are now."""
        self.first_pins: dict[int, str] = {}
        """Where the members of the first configuration live: one may be lost before it is in the table."""
        self._best: MemberStatus | None = None
        """The last status of a member: when none answers, it tells which to start where."""
        self._now = 0.0
        """The time of the last observation."""
        self._began: float | None = None
        """The time of the first observation."""
        self.replace_after = Settings().timings.replace_after

    def _silences(self, leader: MemberStatus, now: float) -> dict[int, float]:
        """For how many seconds each member has not been heard from, by this leader or earlier ones.

        A leader can speak only for its own time. A member that was silent during all of it keeps the earlier time since
        when it was silent; otherwise each new leader would start its silence from zero.
        """
        since = {member: now - seconds for member, seconds in leader.silent.items()}
        for member, seconds in leader.silent.items():
            if leader.leading_for and seconds >= leader.leading_for:
                since[member] = min(since[member], self._silent_since.get(member, now))
        self._silent_since = since
        return {member: now - start for member, start in since.items()}

    def view(self, observation: Observation, now: float) -> ClusterView:
        """What is known after one more observation: the input of ``heal_plan.plan``.

        A time since when something is so starts at the first observation that shows it, and is dropped by the first
        that does not: a supervisor that was restarted waits again, and never acts too early. Whom a search of the disks
        has named first is missed since the observation before it, so that what this search has seen of it counts.
        """
        last, self._now = self._now, now
        self._began = now if self._began is None else self._began
        self._best = best = observation.best or self._best
        self._seen_on.update((member, status.node) for member, status in observation.statuses.items())
        self._postponed = {what: until for what, until in self._postponed.items() if until > now}
        if best is not None and best.settings:
            with suppress(msgspec.MsgspecError):
                self.replace_after = decode_settings(best.settings).timings.replace_after
        sightings = self._search.sightings(observation.nodes)
        configuration, table, by_disks = self._current_members(observation, sightings)
        pins = {**self.first_pins, **{known.id: known.pin for known in table.values() if known.pin}}
        missed = {member for member in configuration.members if _is_missed(member, observation, pins.get(member, ""))}
        named = configuration.members - self._known if by_disks else frozenset()
        self._known |= configuration.members
        self._missed_since = {
            member: self._missed_since.get(member, last if member in named else now) for member in missed
        }
        quiet = {member for member in configuration.members - missed if _is_quiet(member, observation)}
        self._hung_since = {member: self._hung_since.get(member, now) for member in quiet}
        reserved = set(table) - configuration.members
        self._reserved_since = {member: self._reserved_since.get(member, now) for member in reserved}
        leader = observation.leader
        removed = {member: MemberRecord(member, member_name(member), removed=True) for member in self._retired}
        view = ClusterView(
            now=now,
            replace_after=self.replace_after,
            leads=leader is not None,
            configuration=configuration,
            table=table,
            removed={**removed, **{known.id: known for known in (best.removed if best is not None else ())}},
            silent=self._silences(leader, now) if leader is not None else {},
            caught_up=frozenset(leader.caught_up) if leader is not None else frozenset(),
            actors=frozenset(observation.actors),
            missed_since=dict(self._missed_since),
            hung_since=dict(self._hung_since),
            opening=frozenset(member for member in quiet if _is_opening(member, observation)),
            refusing={
                member: status.why_not_serving
                for member, status in observation.statuses.items()
                if status.role == GAVE_UP or status.is_starting  # what refused may do so again
            },
            tried_to_end=frozenset(member for member, until in self._tried_to_end.items() if until > now),
            reserved_since=dict(self._reserved_since),
            homes=homes(observation),
            seen_on=dict(self._seen_on),
            nodes=observation.nodes,
            placement=self._placement,
            searched=self._search.covers(observation.nodes, max(self._missed_since.values(), default=self._began)),
            leftovers=tuple((each.member, each.base, each.node.id) for each in sightings),
            unlisted=tuple(
                each for each in self._search.unlisted(observation.nodes) if may_hold(each, self._placement)
            ),
            cleared=frozenset(self._cleared | {what for what in self._postponed if isinstance(what, tuple)}),
            avoided=frozenset(what for what in self._postponed if isinstance(what, str)),
        )
        return self._with_places(view, observation, sightings)

    def _current_members(
        self, observation: Observation, sightings: list[Sighting]
    ) -> tuple[Configuration, dict[int, MemberRecord], bool]:
        """The configuration, and the table, corrected for members that were started elsewhere since; and whether the
        disks say so.

        The disks are believed only without a leader, and only if they know a newer configuration.
        """
        best = self._best
        configuration = Configuration() if best is None else configuration_of(best)
        table = {known.id: known for known in best.table} if best is not None else {}
        by_disks = False
        if observation.leader is None and sightings:
            note = membership(sightings)
            if note.configuration.voters and (best is None or note.configuration.index > configuration.index):
                by_disks = True
                configuration, table = note.configuration, {known.id: known for known in note.members}
        self._pins = {known.id: known.pin for known in table.values()}
        for member, (before, since) in list(self._moved.items()):
            if self._pins.get(member, "") not in ("", before):
                del self._moved[member]  # it has registered its new place, or has another one by now
            elif member in configuration.members:
                table[member] = since
        return configuration, table, by_disks

    def _with_places(self, view: ClusterView, observation: Observation, sightings: list[Sighting]) -> ClusterView:
        """The view with the places where the data of missed members was found.

        A member is started from one certain folder only; homes that were chosen here count for the next member, so that
        two do not go to one node without need. What was seen before a member was missed says nothing about it: its data
        may be what it has lost since.
        """
        if not self._missed_since:
            return view
        seen = [*sightings, *self._search.unread(observation.nodes)]
        missed = self._missed_since
        seen = [each for each in seen if each.member in missed and each.at >= missed[each.member]]
        certain, uncertain = locate_data(seen)
        taken = dict(view.homes)
        found, delayed = {}, set()
        for member in sorted(self._missed_since):
            if member in certain:
                known = view.table.get(member) or MemberRecord(member, member_name(member))
                if _is_at_home(known, certain[member], observation, self._search.unlisted(observation.nodes)):
                    continue
                if member in self._postponed:
                    delayed.add(member)
                else:
                    others = [home for other, home in taken.items() if other != member]
                    place, pin = choose_home(certain[member], view.nodes, self._placement, others)
                    taken[member] = place.node.id
                    found[member] = msgspec.structs.replace(known, pin=pin, base=place.base)
        unread = frozenset(each.member for each in seen if each.found.refused)
        by_member = {member: [each for each in seen if each.member == member] for member in unread}
        return replace(
            view,
            found=found,
            doubts=uncertain,
            unread=unread,
            unread_at_home=frozenset(
                member for member, each in by_member.items() if _is_only_one_at_home(view.table.get(member), each)
            ),
            delayed=frozenset(delayed),
        )

    # -- looking for data ---------------------------------------------------------------------------------------------

    def nodes_to_search(self, view: ClusterView) -> list[RayNode]:
        """The nodes whose disks should be searched now."""
        if not view.configuration.members:
            return self._search.nodes_due(view.nodes, view.now, self._began)
        if self._missed_since:
            newest = max(self._missed_since.values())
            if view.now - newest < SEARCH_AFTER_S:
                return []
            without_actor = view.configuration.members - set(view.actors)
            waits = without_actor & set(view.unread) or any(map(view.is_kept_down, without_actor))
            return self._search.nodes_due(view.nodes, view.now, newest, often=bool(waits))
        highest = max((*view.configuration.members, *view.table, *view.removed))
        if view.leads and highest > len(view.configuration.members):  # a member has left, and may have left data
            return self._search.nodes_due(view.nodes, view.now)
        return []

    def record_search(self, results: Mapping[str, NodeInventory | Exception], now: float) -> None:
        """Record what nodes hold, or that they do not say."""
        self._search.record(results, now)

    # -- steps --------------------------------------------------------------------------------------------------------

    def step_done(self, step: Step) -> None:
        """Record that a step was done."""
        if isinstance(step, Clear):
            self._cleared.add((step.member.id, step.node))
            self._search.forget(step.node)
        elif isinstance(step, Retire):
            self._retired.add(step.member)
        elif isinstance(step, EndProcess):
            self._tried_to_end[step.member.id] = self._now + STEP_RETRY_S
        elif isinstance(step, Move):
            self._moved[step.member.id] = self._pins.get(step.member.id, ""), step.member

    def step_failed(self, step: Step, now: float) -> None:
        """Record that a step could not be done: others go first for a while."""
        if isinstance(step, Clear):
            self._postponed[step.member.id, step.node] = now + STEP_RETRY_S
        elif isinstance(step, Reserve):
            self._postponed[step.placement.node.id] = now + STEP_RETRY_S
        elif isinstance(step, EndProcess):
            self._tried_to_end[step.member.id] = now + STEP_RETRY_S
        elif isinstance(step, Move):
            self._postponed[step.member.id] = now + STEP_RETRY_S


def lacks_pins(observation: Observation) -> bool:
    """Whether the table does not say of each member of the configuration where it lives."""
    table = observation.best.table if observation.best is not None else ()
    return not observation.configuration.members <= {known.id for known in table if known.pin}


def _is_missed(member: int, observation: Observation, pin: str) -> bool:
    """Whether Ray misses a member, or the member itself says that it is lost. One that is only slow is not missed.

    A call to an actor whose node is gone does not fail: it waits, like a call to a slow actor. They differ in whether a
    node offers the member's pin.

    Args:
        pin: of the member; empty if it is not known.
    """
    status = observation.statuses.get(member)
    if status is not None:
        return bool(status.lost)
    if member not in observation.actors or member in observation.failed:
        return True
    return bool(pin) and not any(pin in node.resources for node in observation.nodes)


def _is_quiet(member: int, observation: Observation) -> bool:
    """Whether a member that Ray does not miss answers nothing, or says itself that its loop is stuck."""
    status = observation.statuses.get(member)
    return status is None or status.stuck_for >= STUCK_TURN_S


def _is_opening(member: int, observation: Observation) -> bool:
    """Whether a member says that it is opening its data, which it has the lock on, and may take that long."""
    status = observation.statuses.get(member)
    return status is not None and status.opening and status.stuck_for < OPENING_MAX_S


def _is_only_one_at_home(known: MemberRecord | None, seen: list[Sighting]) -> bool:
    """Whether these sightings of a member are of one folder, at its place by the table."""
    return len({each.folder for each in seen}) == 1 and any(
        known is not None and known.pin in each.node.resources and known.base == each.base for each in seen
    )


def _is_at_home(
    known: MemberRecord, seen: list[Sighting], observation: Observation, unlisted: tuple[RayNode, ...]
) -> bool:
    """Whether a member that is missed has its data where its actor is, or would be; or may have newer data there than
    what was found elsewhere, as that node does not say what it holds."""
    status = observation.statuses.get(known.id)
    if status is not None:
        return not status.missing  # what it found there is its own data, damaged
    if known.id in observation.actors and any(known.pin in node.resources for node in observation.nodes):
        return True  # Ray is about to start it there; it will report what it finds
    if not any(known.pin in each.node.resources for each in seen):
        return any(known.pin in node.resources for node in unlisted)
    return any(known.pin in each.node.resources and known.base == each.base for each in seen)
