"""What a leader records of the cluster, and that it records nothing twice, regardless of who led before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lab.store_model import FIRST, Hand
from raykeeper.actors.member.event_recorder import EventRecorder, lost_members
from raykeeper.limits import EVENTS_PAUSE_S
from raykeeper.schema.commands import AlarmKind, Command, SetAlarm
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk


class Leaders:
    """Leaders one after the other over one state; what they propose is applied, unless it is lost."""

    def __init__(self) -> None:
        self.hand = Hand(State.create(SimDisk(), "state", FIRST))
        self.silent: dict[int, float] = {2: 0.0, 3: 0.0}
        self.now = 100.0
        self.lost: list[Command] = []
        self.losing = False
        self.elect(1, 5)

    def elect(self, member: int, term: int) -> None:
        node: Any = SimpleNamespace(id=member, term=term)
        changes: Any = SimpleNamespace(silent_for=lambda now: self.silent, silence=2.0)
        turn: Any = SimpleNamespace(state=self.hand.state)
        self.recorder = EventRecorder(node, turn, changes, self._propose, lambda: 1e9 + self.now)

    def _propose(self, command: Command) -> int:
        if self.losing:
            self.lost.append(command)
            return 0
        self.hand.apply(command)
        return self.hand.state.applied_index

    def work(self) -> list[tuple[str, int]]:
        """What is recorded now: kind and member of each."""
        known = len(self.hand.state.events)
        self.now += EVENTS_PAUSE_S
        self.recorder.work(self.now)
        return [(event.kind, event.member) for _, event in self.hand.state.events[known:]]


def test_an_election_and_the_configuration_are_recorded_once() -> None:
    leaders = Leaders()
    assert leaders.work() == [("election", 1), ("configuration", 0)]
    assert leaders.work() == []
    leaders.elect(2, 6)
    assert leaders.work() == [("election", 2)]
    assert leaders.hand.state.events[-1][1].text == "m2 leads in term 6; before, m1 led in term 5"


def test_a_member_is_lost_and_back() -> None:
    leaders = Leaders()
    leaders.work()
    leaders.silent[3] = 1.9
    assert leaders.work() == []
    leaders.silent[3] = 2.5
    assert leaders.work() == [("lost", 3)]
    event = leaders.hand.state.events[-1][1]
    assert event.at == 1e9 + leaders.now - 2.5
    assert leaders.work() == []
    leaders.elect(2, 6)
    assert leaders.work() == [("election", 2)]
    assert lost_members(leaders.hand.state.latest_events) == {3: event.at}, "under another leader, too"
    leaders.silent[3] = 0.0
    assert leaders.work() == [("back", 3)]
    assert leaders.work() == []
    assert lost_members(leaders.hand.state.latest_events) == {}


def test_an_alarm_is_on_and_over_also_under_another_leader() -> None:
    leaders = Leaders()
    leaders.work()
    leaders.hand.apply(SetAlarm(2, AlarmKind.NOSPACE, True, "its disk is full"))
    assert leaders.work() == [("alarm", 2)]
    assert leaders.hand.state.events[-1][1].text == "alarm NOSPACE of m2: its disk is full"
    leaders.hand.apply(SetAlarm(2, AlarmKind.NOSPACE, False))
    leaders.elect(2, 6)
    assert leaders.work() == [("election", 2), ("alarm over", 2)]
    assert leaders.hand.state.events[-1][1].text == "alarm NOSPACE of m2 is over"
    assert leaders.work() == []


def test_what_was_refused_is_recorded_later() -> None:
    leaders = Leaders()
    leaders.losing = True
    assert leaders.work() == []
    assert leaders.lost
    leaders.losing = False
    assert leaders.work() == [("election", 1), ("configuration", 0)]


def test_no_more_than_one_command_a_second() -> None:
    leaders = Leaders()
    leaders.work()
    leaders.silent[3] = 2.5
    leaders.recorder.work(leaders.now)
    assert leaders.hand.state.events[-1][1].kind == "configuration"
    leaders.recorder.work(leaders.now + EVENTS_PAUSE_S)
    assert leaders.hand.state.events[-1][1].kind == "lost"
