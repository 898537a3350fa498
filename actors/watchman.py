"""What one supervisor remembers from look to look, and what it makes of a new look: the ``View`` that it plans by.

Whoever answers is believed first, the leader before others; then the last word of a member, kept from an earlier look;
then the disks (``whereabouts.py``). So a supervisor that has just started, in a cluster of which nobody answers, still
knows who takes part and where their data is. Without Ray, so that it can be tested: the supervisor does the asking.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import msgspec

from ..limits import SEARCH_AFTER, STEP_AGAIN, Settings, decode_settings
from ..store.members import Description
from .healing import Clear, Move, Reserve, Retire, Step, View
from .outlook import Outlook, configuration_of, homes
from .placement import Node
from .protocol import MemberStatus
from .raft.messages import Configuration
from .seat import member_name
from .sites import Site
from .whereabouts import Search, Sighting, choose_home, membership, whereabouts


class Watchman:
    """What one supervisor remembers.

    Args:
        cluster: its id.
        placement: resources that members may be pinned by; none for any node.
    """

    def __init__(self, cluster: int, placement: tuple[str, ...]) -> None:
        self._placement = placement
        self._search = Search(cluster)
        self._missed_since: dict[int, float] = {}
        self._silent_since: dict[int, float] = {}
        """Since when leaders have not heard of a member."""
        self._reserved_since: dict[int, float] = {}
        self._cleared: set[tuple[int, str]] = set()
        self._postponed: dict[tuple[int, str] | str | int, float] = {}
        self._retired: set[int] = set()
        """Members of which a quorum has said, at this one's question, that they do not take part."""
        self._pins: dict[int, str] = {}
        """What the table says of where members live."""
        self._moved: dict[int, tuple[str, Description]] = {}
        """Members that were started elsewhere than the table says: what it said then, and where they are."""
        self.first_pins: dict[int, str] = {}
        """Where the members of the first configuration live: one may be lost before it stands in the table."""
        self._best: MemberStatus | None = None
        """The last word of a member: should none answer, it tells whom to start where."""
        self._began: float | None = None
        """The moment of the first look."""
        self.replace_after = Settings().timings.replace_after

    def _silences(self, leader: MemberStatus, now: float) -> dict[int, float]:
        """For how many seconds each member has not been heard of, by this leader or those that led before it.

        A leader can only tell of its own time: who was silent all through that was so before, as far as was known then.
        """
        since = {member: now - seconds for member, seconds in leader.silent.items()}
        for member, seconds in leader.silent.items():
            if leader.leading_for and seconds >= leader.leading_for:
                since[member] = min(since[member], self._silent_since.get(member, now))
        self._silent_since = since
        return {member: now - begun for member, begun in since.items()}

    def view(self, outlook: Outlook, now: float) -> View:
        """What is known after one more look."""
        self._began = now if self._began is None else self._began
        self._best = best = outlook.best or self._best
        self._postponed = {what: until for what, until in self._postponed.items() if until > now}
        if best is not None and best.settings:
            with suppress(msgspec.MsgspecError):
                self.replace_after = decode_settings(best.settings).timings.replace_after
        sightings = self._search.sightings(outlook.nodes)
        configuration, table = self._who_takes_part(outlook, sightings)
        pins = {**self.first_pins, **{known.id: known.pin for known in table.values() if known.pin}}
        missed = {member for member in configuration.members if _is_missed(member, outlook, pins.get(member, ""))}
        self._missed_since = {member: self._missed_since.get(member, now) for member in missed}
        reserved = set(table) - configuration.members
        self._reserved_since = {member: self._reserved_since.get(member, now) for member in reserved}
        leader = outlook.leader
        removed = {member: Description(member, member_name(member), removed=True) for member in self._retired}
        view = View(
            now=now,
            replace_after=self.replace_after,
            leads=leader is not None,
            configuration=configuration,
            table=table,
            removed={**removed, **{known.id: known for known in (best.removed if best is not None else ())}},
            silent=self._silences(leader, now) if leader is not None else {},
            caught_up=frozenset(leader.caught_up) if leader is not None else frozenset(),
            actors=frozenset(outlook.actors),
            missed_since=dict(self._missed_since),
            reserved_since=dict(self._reserved_since),
            homes=homes(outlook),
            nodes=outlook.nodes,
            placement=self._placement,
            searched=self._search.covers(outlook.nodes, max(self._missed_since.values(), default=self._began)),
            leftovers=tuple((each.member, each.base, each.node.id) for each in sightings),
            cleared=frozenset(self._cleared | {what for what in self._postponed if isinstance(what, tuple)}),
            avoided=frozenset(what for what in self._postponed if isinstance(what, str)),
        )
        return self._with_places(view, outlook, sightings)

    def _who_takes_part(
        self, outlook: Outlook, sightings: list[Sighting]
    ) -> tuple[Configuration, dict[int, Description]]:
        """The configuration, and the table with those in their place that were started elsewhere since."""
        best = self._best
        configuration = Configuration() if best is None else configuration_of(best)
        table = {known.id: known for known in best.table} if best is not None else {}
        if outlook.leader is None and sightings:
            note = membership(sightings)
            if note.configuration.voters and (best is None or note.configuration.index > configuration.index):
                configuration, table = note.configuration, {known.id: known for known in note.members}
        self._pins = {known.id: known.pin for known in table.values()}
        for member, (before, since) in list(self._moved.items()):
            if self._pins.get(member, "") not in ("", before):
                del self._moved[member]  # it has told of its new place, or has another one by now
            elif member in configuration.members:
                table[member] = since
        return configuration, table

    def _with_places(self, view: View, outlook: Outlook, sightings: list[Sighting]) -> View:
        """The view, and where the data of those that are missed was found."""
        if not self._missed_since:
            return view
        certain, doubts = whereabouts(sightings)
        taken = dict(view.homes)
        found, delayed = {}, set()
        for member in sorted(self._missed_since):
            if member in certain:
                known = view.table.get(member) or Description(member, member_name(member))
                if _is_at_home(known, certain[member], outlook):
                    continue
                if member in self._postponed:
                    delayed.add(member)
                else:
                    others = [home for other, home in taken.items() if other != member]
                    place, pin = choose_home(certain[member], view.nodes, self._placement, others)
                    taken[member] = place.node.id
                    found[member] = msgspec.structs.replace(known, pin=pin, base=place.base)
        doubtful = {member: why for member, why in doubts.items() if member in self._missed_since}
        return replace(view, found=found, doubts=doubtful, delayed=frozenset(delayed))

    # -- looking for data ---------------------------------------------------------------------------------------------

    def due(self, view: View) -> list[Node]:
        """The nodes whose disks should be looked at now."""
        if not view.configuration.members:
            return self._search.due(view.nodes, view.now, self._began)
        if self._missed_since:
            newest = max(self._missed_since.values())
            return self._search.due(view.nodes, view.now, newest) if view.now - newest >= SEARCH_AFTER else []
        highest = max((*view.configuration.members, *view.table, *view.removed))
        if view.leads and highest > len(view.configuration.members):  # somebody has left, and may have left something
            return self._search.due(view.nodes, view.now)
        return []

    def learn(self, results: Mapping[str, Site | Exception], now: float) -> None:
        """What nodes hold, or that they do not say."""
        self._search.learn(results, now)

    # -- steps --------------------------------------------------------------------------------------------------------

    def done(self, step: Step) -> None:
        """A step was done."""
        if isinstance(step, Clear):
            self._cleared.add((step.member.id, step.node))
            self._search.forget(step.node)
        elif isinstance(step, Retire):
            self._retired.add(step.member)
        elif isinstance(step, Move):
            self._moved[step.member.id] = self._pins.get(step.member.id, ""), step.member

    def failed(self, step: Step, now: float) -> None:
        """A step could not be done: others go first for a while."""
        if isinstance(step, Clear):
            self._postponed[step.member.id, step.node] = now + STEP_AGAIN
        elif isinstance(step, Reserve):
            self._postponed[step.spot.node.id] = now + STEP_AGAIN
        elif isinstance(step, Move):
            self._postponed[step.member.id] = now + STEP_AGAIN


def lacks_pins(outlook: Outlook) -> bool:
    """Whether a member takes part of which the table does not tell where it lives."""
    table = outlook.best.table if outlook.best is not None else ()
    return not outlook.configuration.members <= {known.id for known in table if known.pin}


def _is_missed(member: int, outlook: Outlook, pin: str) -> bool:
    """Whether Ray misses a member, or the member says itself that it is lost. One that is only slow is not missed.

    A call to an actor whose node is gone does not fail, it waits, as one to a slow actor does. What tells them apart is
    whether the member's place is there; empty for one whose place nobody knows.
    """
    status = outlook.statuses.get(member)
    if status is not None:
        return bool(status.lost)
    if member not in outlook.actors or member in outlook.failed:
        return True
    return bool(pin) and not any(pin in node.resources for node in outlook.nodes)


def _is_at_home(known: Description, seen: list[Sighting], outlook: Outlook) -> bool:
    """Whether a member that is missed has its data where its actor is, or would be."""
    status = outlook.statuses.get(known.id)
    if status is not None:
        return not status.missing  # what it found there is its own, and damaged
    if known.id in outlook.actors and any(known.pin in node.resources for node in outlook.nodes):
        return True  # Ray is about to start it there; it will tell what it finds
    return any(known.pin in each.node.resources and known.base == each.base for each in seen)
