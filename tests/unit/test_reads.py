"""When a read may run: after a quorum's word and the state having caught up, and never otherwise."""

import random
from dataclasses import dataclass, field

import pytest

from raykeeper.actors.events import ReadAsked
from raykeeper.actors.protocol import Refusal, Refused
from raykeeper.actors.reads import ReadRounds
from raykeeper.actors.server import Server
from raykeeper.limits import MAX_READ_ROUNDS, Settings, Timings
from raykeeper.store.folder import FirstMember, Identity, MemberFolder
from simulation.disk import SimDisk


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
    rounds, node, state = ReadRounds(), FakeNode(), FakeState(applied_index=5)
    readers = [Reader() for _ in range(3)]
    for reader in readers:
        rounds.add(reader.event, state)
    rounds.ask(node)
    assert len(node.asked) == 1
    assert all(reader.outcomes == [] for reader in readers)
    rounds.answered(FakeReady(read_states=[(node.asked[0], 5)]), state)
    assert all(reader.outcomes == [None] for reader in readers)


def test_a_confirmed_read_waits_until_its_index_is_applied():
    rounds, node, state, reader = ReadRounds(), FakeNode(), FakeState(applied_index=5), Reader()
    rounds.add(reader.event, state)
    rounds.ask(node)
    rounds.answered(FakeReady(read_states=[(node.asked[0], 7)]), state)
    state.applied_index = 6
    rounds.applied(state)
    assert reader.outcomes == []
    state.applied_index = 7
    rounds.applied(state)
    assert reader.outcomes == [None]


def test_without_a_leader_nobody_is_asked_and_the_read_ends_at_its_deadline():
    rounds, node, state, reader = ReadRounds(), FakeNode(leader=0), FakeState(), Reader(deadline=3.0)
    rounds.add(reader.event, state)
    rounds.ask(node)
    assert node.asked == []
    rounds.give_up(2.9)
    assert reader.outcomes == []
    rounds.give_up(3.0)
    assert reader.outcomes == [Refused(Refusal.TIMED_OUT)]


def test_a_failed_round_is_asked_anew_under_another_context():
    rounds, node, state, reader = ReadRounds(), FakeNode(), FakeState(), Reader()
    rounds.add(reader.event, state)
    rounds.ask(node)
    rounds.answered(FakeReady(failed_reads=[node.asked[0]]), state)
    rounds.ask(node)
    rounds.ask(node)
    assert len(node.asked) == len(set(node.asked)) == 2
    rounds.answered(FakeReady(read_states=[(node.asked[0], 0)]), state)
    assert reader.outcomes == []
    rounds.answered(FakeReady(read_states=[(node.asked[1], 0)]), state)
    assert reader.outcomes == [None]


def test_rounds_without_an_answer_are_few():
    """A leader that cannot be reached: reads come and go, and share a round when it answers at last."""
    rounds, node, state = ReadRounds(), FakeNode(), FakeState()
    for turn in range(10 * MAX_READ_ROUNDS):
        rounds.add(Reader(deadline=turn + 5.0).event, state)
        rounds.ask(node)
        rounds.give_up(float(turn))
    assert len(node.asked) == MAX_READ_ROUNDS
    last = Reader(deadline=1e9)
    rounds.add(last.event, state)
    rounds.ask(node)
    rounds.answered(FakeReady(read_states=[(context, 0) for context in node.asked]), state)
    rounds.ask(node)
    assert last.outcomes == []
    rounds.answered(FakeReady(read_states=[(node.asked[-1], 0)]), state)
    assert last.outcomes == [None]


def test_a_serializable_read_waits_for_a_revision_only():
    rounds, state, early, late = ReadRounds(), FakeState(revision=5), Reader(serializable=True), None
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
    rounds, node, state = ReadRounds(), FakeNode(), FakeState()
    readers = [Reader(), Reader(), Reader(serializable=True, at_least=9), Reader()]
    rounds.add(readers[0].event, state)
    rounds.ask(node)
    rounds.answered(FakeReady(read_states=[(1, 99)]), state)
    rounds.add(readers[1].event, state)
    rounds.ask(node)
    rounds.add(readers[2].event, state)
    rounds.add(readers[3].event, state)
    refused = Refused(Refusal.NOT_SERVING)
    rounds.refuse_all(refused)
    assert [reader.outcomes for reader in readers] == [[refused]] * 4


class FarApart:
    """Three members, and so many seconds from one to another."""

    TIMINGS = Timings(heartbeat_interval=0.1, election_timeout=5.0)

    def __init__(self, delay):
        self.now, self.delay, self.way = 0.0, delay, []
        first = tuple(FirstMember(member, f"m{member}") for member in (1, 2, 3))
        self.servers = {}
        for member in (1, 2, 3):
            identity = Identity("x", 7, member, f"m{member}", first, Settings(timings=self.TIMINGS))
            self.servers[member] = Server(
                folder=MemberFolder.create(SimDisk(), "data", identity),
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
        for member, server in self.servers.items():
            server.turn([message for message in come if message.to == member], (events or {}).get(member, []))

    def settle(self):
        """Until all know who leads; who that is."""
        for _ in range(2000):
            self.turn()
            leaders = {server.leader for server in self.servers.values()}
            if len(leaders) == 1 and 0 not in leaders and all(s.state.applied_index for s in self.servers.values()):
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
