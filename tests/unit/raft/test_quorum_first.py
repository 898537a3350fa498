"""A leader sends to a quorum at once, to those that answer fastest, and to the others when the owner says so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lab.raft.cluster import MemoryLog
from lab.raft.nodes import make_node, turn
from raykeeper.raft import Configuration, Node
from raykeeper.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    ReadIndex,
    RequestVoteResponse,
)
from raykeeper.raft.quorum_first import MAX_WAITING_ENTRIES


class Leader:
    """Member 1 leads; the test plays the others, and the clock."""

    def __init__(self, voters: Sequence[int] = (1, 2, 3), learners: Sequence[int] = ()) -> None:
        self.now = 0.0
        self.log = MemoryLog()
        configuration = Configuration(voters=tuple(voters), learners=tuple(learners))
        self.node: Node = make_node(self.log, configuration=configuration, quorum_first=True)
        self.others = [member for member in (*voters, *learners) if member != 1]
        self.node.campaign()
        for pre_vote in (True, False):
            self.turn()
            for member in self.others[: len(voters) // 2]:
                self.node.step(RequestVoteResponse(member, 1, 1, True, pre_vote))
        self.turn()
        self.pass_time(0.001)
        for member in self.others:
            self.answer(member)
        self.turn()

    def turn(self) -> list[tuple[int, int]]:
        """Of the AppendEntries of one turn: to whom, and with how many entries."""
        messages = turn(self.node, self.log).messages
        self.heartbeats = [m.to for m in messages if isinstance(m, Heartbeat)]
        return [(m.to, len(m.entries)) for m in messages if isinstance(m, AppendEntries)]

    def answer(self, member: int, *, wants_commits: bool = False) -> None:
        index = self.node.last_index
        self.node.step(AppendEntriesResponse(member, 1, 1, True, index, wants_commits=wants_commits))

    def propose(self, seconds: float = 0.0, answering: Sequence[int] = ()) -> list[tuple[int, int]]:
        """Propose a command, which these followers answer so many seconds later, if it is sent to them."""
        self.node.propose([b"x"])
        sent = self.turn()
        self.pass_time(seconds)
        for member, _ in sent:
            if member in answering:
                self.answer(member)
        self.turn()
        return sent

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.node.set_time(self.now, self.now)


def test_a_quorum_commits_and_the_others_get_all_that_has_gathered_in_one_message() -> None:
    leader = Leader()
    for _ in range(3):
        assert leader.propose(answering=[2]) == [(2, 1)]
        assert leader.node.commit_index == leader.node.last_index
    assert leader.node.sends_deferred
    leader.node.send_deferred()
    assert leader.turn() == [(3, 3)]
    assert not leader.node.sends_deferred
    assert not leader.node.has_ready()


def test_a_silent_follower_is_made_up_for_and_loses_its_place() -> None:
    leader = Leader()
    assert leader.propose(0.001, [2]) == [(2, 1)]
    assert leader.propose(0.005) == [(2, 1)]
    leader.node.send_deferred()
    assert leader.turn() == [(3, 2)]
    leader.answer(3)
    assert leader.node.commit_index == leader.node.last_index
    assert leader.propose(0.001, [3]) == [(3, 1)], "2 owes an answer for longer than 3 ever took"


def test_a_faster_follower_takes_the_place_of_a_slower_one_but_not_of_one_that_is_as_fast() -> None:
    for slow, first in ((0.010, 3), (0.0011, 2)):
        leader = Leader()
        for _ in range(40):
            leader.propose(slow, [2])
            leader.node.send_deferred()
            leader.turn()
            leader.pass_time(0.001)
            leader.answer(3)
        assert [to for to, _ in leader.propose(0.001, [2, 3])] == [first]


@pytest.mark.parametrize("wanting", [2, 3])
def test_one_that_wants_commits_is_asked_first(wanting: int) -> None:
    leader = Leader()
    leader.answer(wanting, wants_commits=True)
    leader.turn()
    assert leader.propose() == [(wanting, 1)]


def test_none_waits_if_all_want_commits_or_are_needed() -> None:
    leader = Leader()
    for member in (2, 3):
        leader.answer(member, wants_commits=True)
    leader.turn()
    assert leader.propose() == [(2, 1), (3, 1)]
    assert Leader([1, 2]).propose() == [(2, 1)]
    leader = Leader()
    leader.node.report_unreachable(2)
    leader.turn()
    assert 3 in [to for to, _ in leader.propose()], "2 is probed: 3 makes up the quorum"


def test_two_of_four_followers_are_asked_first_and_learners_do_not_count() -> None:
    leader = Leader([1, 2, 3, 4, 5], learners=[6])
    assert leader.propose(answering=[2, 3, 6]) == [(2, 1), (3, 1), (6, 1)]
    assert leader.node.commit_index == leader.node.last_index


def test_a_follower_that_would_lag_too_far_waits_no_longer() -> None:
    leader = Leader()
    for _ in range(MAX_WAITING_ENTRIES - 1):
        assert leader.propose(answering=[2]) == [(2, 1)]
    assert {to for to, _ in leader.propose(answering=[2])} == {2, 3}


def test_while_leadership_is_transferred_the_target_gets_everything_at_once() -> None:
    leader = Leader()
    leader.propose(answering=[2])
    leader.node.propose([b"x"])
    leader.node.transfer_leadership(3)
    assert leader.turn() == [(2, 1), (3, 2)]


def test_a_round_asks_a_quorum_and_then_the_others() -> None:
    leader = Leader()
    leader.node.read_index(7)
    leader.turn()
    assert leader.heartbeats == [2]
    assert leader.node.sends_deferred
    leader.pass_time(0.005)
    leader.node.send_deferred()
    leader.turn()
    assert leader.heartbeats == [3]
    leader.node.step(HeartbeatResponse(3, 1, 1, 1, 0))
    assert [context for context, _ in turn(leader.node, leader.log).read_states] == [7]
    leader.node.read_index(8)
    leader.turn()
    assert leader.heartbeats == [3], "2 owes an answer"


def test_nobody_else_is_asked_when_the_round_is_confirmed() -> None:
    leader = Leader()
    leader.node.read_index(7)
    leader.turn()
    leader.node.step(HeartbeatResponse(2, 1, 1, 1, 0))
    leader.turn()
    leader.node.send_deferred()
    leader.turn()
    assert leader.heartbeats == []


def test_all_get_a_periodic_heartbeat() -> None:
    leader = Leader()
    leader.node.tick()
    leader.turn()
    assert leader.heartbeats == [2, 3]


def test_a_follower_that_reads_is_sent_what_it_lacks() -> None:
    leader = Leader()
    leader.propose(answering=[2])
    leader.node.step(ReadIndex(3, 1, 1, 99))
    leader.turn()
    leader.node.step(HeartbeatResponse(2, 1, 1, 1, 0))
    assert leader.turn() == [(3, 1)], "entries, and with them the commit index"
