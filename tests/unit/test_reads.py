"""When a read may run: after a quorum's word and the state having caught up, and never otherwise."""

from dataclasses import dataclass, field

from raykeeper.actors.events import ReadAsked
from raykeeper.actors.protocol import Refusal, Refused
from raykeeper.actors.reads import ReadRounds


@dataclass
class FakeState:
    applied_index: int = 0
    revision: int = 1


@dataclass
class FakeNode:
    leader: int = 1
    asked: list = field(default_factory=list)

    def read_index(self, context):
        self.asked.append(context)


@dataclass
class FakeReady:
    read_states: list = field(default_factory=list)
    failed_reads: list = field(default_factory=list)


class Reader:
    def __init__(self, **kwargs):
        self.outcomes = []
        self.event = ReadAsked(deadline=kwargs.pop("deadline", 10.0), done=self.outcomes.append, **kwargs)


def test_all_reads_of_one_turn_share_a_round():
    rounds, node, state = ReadRounds(1.0), FakeNode(), FakeState(applied_index=5)
    readers = [Reader() for _ in range(3)]
    for reader in readers:
        rounds.add(reader.event, state)
    rounds.ask(node, now=0.0)
    assert len(node.asked) == 1
    assert all(reader.outcomes == [] for reader in readers)
    rounds.answered(FakeReady(read_states=[(node.asked[0], 5)]), state)
    assert all(reader.outcomes == [None] for reader in readers)


def test_a_confirmed_read_waits_until_its_index_is_applied():
    rounds, node, state, reader = ReadRounds(1.0), FakeNode(), FakeState(applied_index=5), Reader()
    rounds.add(reader.event, state)
    rounds.ask(node, now=0.0)
    rounds.answered(FakeReady(read_states=[(node.asked[0], 7)]), state)
    state.applied_index = 6
    rounds.applied(state)
    assert reader.outcomes == []
    state.applied_index = 7
    rounds.applied(state)
    assert reader.outcomes == [None]


def test_without_a_leader_nobody_is_asked_and_the_read_ends_at_its_deadline():
    rounds, node, state, reader = ReadRounds(1.0), FakeNode(leader=0), FakeState(), Reader(deadline=3.0)
    rounds.add(reader.event, state)
    rounds.ask(node, now=0.0)
    assert node.asked == []
    rounds.give_up(2.9)
    assert reader.outcomes == []
    rounds.give_up(3.0)
    assert reader.outcomes == [Refused(Refusal.TIMED_OUT)]


def test_a_failed_round_and_a_lost_round_are_asked_anew_under_another_context():
    rounds, node, state, reader = ReadRounds(1.0), FakeNode(), FakeState(), Reader()
    rounds.add(reader.event, state)
    rounds.ask(node, now=0.0)
    rounds.answered(FakeReady(failed_reads=[node.asked[0]]), state)
    rounds.ask(node, now=0.1)
    rounds.ask(node, now=0.5)
    assert len(node.asked) == 2
    rounds.ask(node, now=1.2)
    assert len(node.asked) == len(set(node.asked)) == 3
    rounds.answered(FakeReady(read_states=[(node.asked[1], 0)]), state)  # too late: it was asked anew since
    assert reader.outcomes == []
    rounds.answered(FakeReady(read_states=[(node.asked[2], 0)]), state)
    assert reader.outcomes == [None]


def test_a_serializable_read_waits_for_a_revision_only():
    rounds, state, early, late = ReadRounds(1.0), FakeState(revision=5), Reader(serializable=True), None
    rounds.add(early.event, state)
    assert early.outcomes == [None]
    late = Reader(serializable=True, at_least=7)
    rounds.add(late.event, state)
    rounds.applied(state)
    assert late.outcomes == []
    state.revision = 7
    rounds.applied(state)
    assert late.outcomes == [None]


def test_a_member_that_stops_refuses_every_read_wherever_it_waits():
    rounds, node, state = ReadRounds(1.0), FakeNode(), FakeState()
    readers = [Reader(), Reader(), Reader(serializable=True, at_least=9), Reader()]
    rounds.add(readers[0].event, state)
    rounds.ask(node, now=0.0)
    rounds.answered(FakeReady(read_states=[(1, 99)]), state)
    rounds.add(readers[1].event, state)
    rounds.ask(node, now=0.0)
    rounds.add(readers[2].event, state)
    rounds.add(readers[3].event, state)
    refused = Refused(Refusal.NOT_SERVING)
    rounds.refuse_all(refused)
    assert [reader.outcomes for reader in readers] == [[refused]] * 4
