"""A leader records what happens to the cluster: who leads, which members are lost and back, alarms, the configuration.

Nobody reports anything to this file. Once in a heartbeat interval it compares what is with what was recorded last, in
the replicated state. So a leader that has just been elected records what its predecessor saw and could not record any
more, and nothing is recorded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ...limits import EVENTS_PAUSE_S, EVENTS_PER_COMMAND
from ...raft import Node
from ...schema.commands import ClusterEvent, Command, RecordEvents
from ...store.state.event_log import Subject
from ..naming import member_name
from .config_changes import ConfigChanges
from .operator_log import describe_configuration
from .turn import Turn


def lost_members(latest: Mapping[Subject, ClusterEvent]) -> dict[int, float]:
    """The members that are lost, and since when (seconds since 1970), as the replicated events have it. Any thread."""
    return {each.member: each.at for each in list(latest.values()) if each.kind == "lost"}


class EventRecorder:
    """For the loop's thread of a leader.

    Args:
        propose: puts a command of the member's own into the log; returns its index, 0 if it was refused.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        node: Node,
        turn: Turn,
        changes: ConfigChanges,
        propose: Callable[[Command], int],
        wall: Callable[[], float],
    ) -> None:
        self._node = node
        self._turn = turn
        self._changes = changes
        self._propose = propose
        self._wall = wall
        self._under_way = 0
        """Log index of what was recorded last."""
        self._due = 0.0

    def work(self, now: float) -> None:
        """Record what is new. For a leader that has applied all that earlier ones committed."""
        if now < self._due or self._turn.state.applied_index < self._under_way:
            return
        events = tuple(self._new(now))[:EVENTS_PER_COMMAND]
        if events:
            self._under_way = self._propose(RecordEvents(events))
            self._due = now + EVENTS_PAUSE_S

    def _new(self, now: float) -> Iterator[ClusterEvent]:
        node, state, at = self._node, self._turn.state, self._wall()
        latest = state.latest_events
        before = latest.get(("election", 0, 0))
        if before is None or before.number != node.term:
            led = "" if before is None else f"; before, {member_name(before.member)} led in term {before.number}"
            text = f"{member_name(node.id)} leads in term {node.term}{led}"
            yield ClusterEvent("election", text, at, node.id, node.term)
        configuration = f"the configuration is {describe_configuration(state.configuration)}"
        known = latest.get(("configuration", 0, 0))
        if known is None or known.text != configuration:
            yield ClusterEvent("configuration", configuration, at)
        for member, seconds in self._changes.silent_for(now).items():
            last = latest.get(("member", member, 0))
            lost = last is not None and last.kind == "lost"
            if seconds >= self._changes.silence and not lost:
                text = f"{member_name(member)} is lost: nothing was heard from it for {seconds:.1f} s"
                yield ClusterEvent("lost", text, at - seconds, member)
            elif last is not None and lost and seconds < self._changes.silence / 2:
                yield ClusterEvent("back", f"{member_name(member)} is back after {at - last.at:.1f} s", at, member)
        for (member, kind), why in state.alarms.items():
            last = latest.get(("alarm", member, kind))
            if last is None or last.kind != "alarm":
                text = f"alarm {kind.name} of {member_name(member)}: {why}"
                yield ClusterEvent("alarm", text, at, member, kind)
        for subject, last in latest.items():
            if last.kind == "alarm" and not any((last.member, last.number) == each for each in state.alarms):
                text = f"{last.text.partition(':')[0]} is over"
                yield ClusterEvent("alarm over", text, at, subject[1], subject[2])
