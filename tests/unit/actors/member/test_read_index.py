"""When a read may run: after a quorum's word and the state having caught up, and never otherwise."""

import random
from dataclasses import dataclass, field

import pytest

from raykeeper.actors.member.events import LoneReadAsked, ReadAsked
from raykeeper.actors.member.read_index import ReadRounds
from raykeeper.actors.member.replica import Replica
from raykeeper.limits import MAX_READ_ROUNDS, Settings, Timings
from raykeeper.schema.frames import Refusal, Refused
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from simulation.disk import SimDisk


@dataclass
class FakeState:
    applied_index: int = 0
    revision: int = 1


@dataclass
class FakeNode:
    leader: int = 1
    asked: list = field(default_factory=list)
    term: int = 3
    commit_index: int = 0
    voters: tuple = (2, 3)

    def confirming_voters(self):
        return self.voters

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
    rounds, node, state = ReadRounds(), FakeNode(), FakeState(applied_index=5)
    readers = [Reader() for _ in range(3)]
    for reader in readers:
        rounds.add_read(reader.event, state)
    rounds.start_round(node)
    assert len(node.asked) == 1
    assert all(reader.outcomes == [] for reader in readers)
    rounds.round_answered(FakeReady(read_states=[(node.asked[0], 5)]), state)
    assert all(reader.outcomes == [None] for reader in readers)


def lone_read(answers, reader):
    return LoneReadAsked(reader.event, lambda term, voters: answers.append((term, voters)))


def test_a_lone_read_waits_until_what_is_committed_is_applied_and_for_no_round():
    """It is confirmed by the term and for the voters of the moment at which the commit index was looked at. And all are
    answered only when the turn has sent what it has to send."""
    rounds, node, state, reader, answers = ReadRounds(), FakeNode(commit_index=7), FakeState(6), Reader(), []
    rounds.add_lone_read(lone_read(answers, reader), node, state)
    node.term, node.voters, node.commit_index = 4, (3,), 9
    rounds.applied(state)
    assert (answers, rounds.pending) == ([], 1)
    state.applied_index = 7
    rounds.applied(state)
    assert (answers, rounds.pending, reader.outcomes, node.asked) == ([(3, (2, 3))], 0, [], [])
    node.commit_index = 7
    rounds.add_lone_read(lone_read(answers, reader), node, state)
    assert answers[1:] == []
    rounds.applied(state)
    assert answers[1:] == [(4, (3,))]


def test_a_lone_read_that_no_voter_can_confirm_is_one_for_a_round():
    rounds, node, state, reader, answers = ReadRounds(), FakeNode(voters=()), FakeState(5), Reader(), []
    rounds.add_lone_read(lone_read(answers, reader), node, state)
    rounds.start_round(node)
    rounds.round_answered(FakeReady(read_states=[(node.asked[0], 5)]), state)
    assert (reader.outcomes, answers) == ([None], [])


def test_a_lone_read_is_refused_once_its_time_has_passed():
    rounds, reader, answers = ReadRounds(), Reader(deadline=3.0), []
    rounds.add_lone_read(lone_read(answers, reader), FakeNode(commit_index=7), FakeState(6))
    rounds.refuse_late(3.0)
    rounds.applied(FakeState(7))
    assert (reader.outcomes, answers) == ([Refused(Refusal.TIMED_OUT)], [])


def test_a_confirmed_read_waits_until_its_index_is_applied():
    rounds, node, state, reader = ReadRounds(), FakeNode(), FakeState(applied_index=5), Reader()
    rounds.add_read(reader.event, state)
    rounds.start_round(node)
    rounds.round_answered(FakeReady(read_states=[(node.asked[0], 7)]), state)
    state.applied_index = 6
    rounds.applied(state)
    assert reader.outcomes == []
    state.applied_index = 7
    rounds.applied(state)
    assert reader.outcomes == [None]


def test_without_a_leader_nobody_is_asked_and_the_read_ends_at_its_deadline():
    rounds, node, state, reader = ReadRounds(), FakeNode(leader=0), FakeState(), Reader(deadline=3.0)
    rounds.add_read(reader.event, state)
    rounds.start_round(node)
    assert node.asked == []
    rounds.refuse_late(2.9)
    assert reader.outcomes == []
    rounds.refuse_late(3.0)
    assert reader.outcomes == [Refused(Refusal.TIMED_OUT)]


def test_a_failed_round_is_asked_anew_under_another_context():
    rounds, node, state, reader = ReadRounds(), FakeNode(), FakeState(), Reader()
    rounds.add_read(reader.event, state)
    rounds.start_round(node)
    rounds.round_answered(FakeReady(failed_reads=[node.asked[0]]), state)
    rounds.start_round(node)
    rounds.start_round(node)
    assert len(node.asked) == len(set(node.asked)) == 2
    rounds.round_answered(FakeReady(read_states=[(node.asked[0], 0)]), state)
    assert reader.outcomes == []
    rounds.round_answered(FakeReady(read_states=[(node.asked[1], 0)]), state)
    assert reader.outcomes == [None]


def test_rounds_without_an_answer_are_few():
    """A leader that cannot be reached: reads come and go, and share a round when it answers at last."""
    rounds, node, state = ReadRounds(), FakeNode(), FakeState()
    for turn in range(10 * MAX_READ_ROUNDS):
        rounds.add_read(Reader(deadline=turn + 5.0).event, state)
        rounds.start_round(node)
        rounds.refuse_late(float(turn))
    assert len(node.asked) == MAX_READ_ROUNDS
    last = Reader(deadline=1e9)
    rounds.add_read(last.event, state)
    rounds.start_round(node)
    rounds.round_answered(FakeReady(read_states=[(context, 0) for context in node.asked]), state)
    rounds.start_round(node)
    assert last.outcomes == []
    rounds.round_answered(FakeReady(read_states=[(node.asked[-1], 0)]), state)
    assert last.outcomes == [None]


def test_a_serializable_read_waits_for_a_revision_only():
    rounds, state, early, late = ReadRounds(), FakeState(revision=5), Reader(serializable=True), None
    rounds.add_read(early.event, state)
    assert early.outcomes == [None]
    late = Reader(serializable=True, at_least=7)
    rounds.add_read(late.event, state)
    rounds.applied(state)
    assert late.outcomes == []
    state.revision = 7
    rounds.applied(state)
    assert late.outcomes == [None]


def test_a_member_that_stops_refuses_every_read_wherever_it_waits():
    rounds, node, state = ReadRounds(), FakeNode(), FakeState()
    readers = [Reader(), Reader(), Reader(serializable=True, at_least=9), Reader()]
    rounds.add_read(readers[0].event, state)
    rounds.start_round(node)
    rounds.round_answered(FakeReady(read_states=[(1, 99)]), state)
    rounds.add_read(readers[1].event, state)
    rounds.start_round(node)
    rounds.add_read(readers[2].event, state)
    rounds.add_read(readers[3].event, state)
    refused = Refused(Refusal.NOT_SERVING)
    rounds.refuse_all(refused)
    assert [reader.outcomes for reader in readers] == [[refused]] * 4


class FarApart:
    """Three members, and this many seconds from one to another."""

    TIMINGS = Timings(heartbeat_interval=0.1, election_timeout=5.0)

    def __init__(self, delay):
        self.now, self.delay, self.way = 0.0, delay, []
        first = tuple(FirstMember(member, f"m{member}") for member in (1, 2, 3))
        self.replicas = {}
        for member in (1, 2, 3):
            identity = Identity("x", 7, member, f"m{member}", first, Settings(timings=self.TIMINGS))
            self.replicas[member] = Replica(
                folder=DataDir.create(SimDisk(), "data", identity),
                timings=self.TIMINGS,
                limits=Settings().limits,
                send=lambda messages: self.way.extend((self.now + self.delay, message) for message in messages),
                clock=lambda: self.now,
                rng=random.Random(member),
                background=lambda work, then: None,
            )

    def turn(self, events=None):
        self.now += 0.05
        come = [message for due, message in self.way if due <= self.now]
        self.way = [(due, message) for due, message in self.way if due > self.now]
        for member, replica in self.replicas.items():
            replica.turn([message for message in come if message.to == member], (events or {}).get(member, []))

    def settle(self):
        """Until all know who leads; who that is."""
        for _ in range(2000):
            self.turn()
            leaders = {replica.leader for replica in self.replicas.values()}
            if len(leaders) == 1 and 0 not in leaders and all(s.state.applied_index for s in self.replicas.values()):
                return leaders.pop()
        raise AssertionError("nobody leads")


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.4, 1.0])
def test_a_round_that_is_confirmed_late_counts(delay):
    """However long the way to a majority is: reads take as long as that, and succeed."""
    world = FarApart(delay)
    leader = world.settle()
    follower = leader % 3 + 1
    for _ in range(3):
        readers = {leader: Reader(deadline=1e9), follower: Reader(deadline=1e9)}
        began = world.now
        took = {}
        world.turn({member: [reader.event] for member, reader in readers.items()})
        while len(took) < 2:
            assert world.now - began < 6 * delay + 2, "no answer"
            world.turn()
            for member, reader in readers.items():
                if reader.outcomes and member not in took:
                    took[member] = world.now - began
                    assert reader.outcomes == [None]
        assert took[leader] >= 2 * delay  # it waited for a majority
        assert took[follower] >= 4 * delay
