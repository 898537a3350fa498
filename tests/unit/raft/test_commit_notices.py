"""A new commit index goes with the next message; a message of its own is only for followers that want it at once."""

from __future__ import annotations

import pytest

from lab.raft.cluster import MemoryLog
from lab.raft.nodes import log_with, make_leader, make_node, turn
from raykeeper.raft import Entry, EntryKind, Node
from raykeeper.raft.messages import AppendEntries, AppendEntriesResponse, Heartbeat, ReadIndex, ReadIndexResponse


def leader_of(*wanting: int) -> tuple[Node, MemoryLog]:
    """A leader of 1, 2 and 3 that has just committed its first entry; of the followers these want commits at once."""
    log = MemoryLog()
    node = make_leader(log)
    turn(node, log)
    for member in (2, 3):
        node.step(AppendEntriesResponse(member, 1, 1, True, 1, wants_commits=member in wanting))
    return node, log


def notices(node: Node, log: MemoryLog) -> list[tuple[int, int]]:
    """Whom a turn tells nothing but a commit index."""
    messages = turn(node, log).messages
    return [(m.to, m.leader_commit) for m in messages if isinstance(m, AppendEntries) and m.commit_only]


@pytest.mark.parametrize("wanting", [(), (2,), (3,), (2, 3)])
def test_those_that_want_it_are_told_at_once_and_the_others_when_the_owner_says_so(wanting: tuple[int, ...]) -> None:
    node, log = leader_of(*wanting)
    assert node.has_ready()
    assert notices(node, log) == [(member, 1) for member in wanting]
    assert node.commit_untold is (len(wanting) < 2)
    assert not node.has_ready()
    node.tell_commit()
    assert notices(node, log) == [(member, 1) for member in (2, 3) if member not in wanting]
    assert not node.commit_untold
    node.tell_commit()
    assert not node.has_ready()


def test_the_next_entries_carry_it() -> None:
    node, log = leader_of()
    turn(node, log)
    node.propose([b"x"])
    messages = [m for m in turn(node, log).messages if isinstance(m, AppendEntries)]
    assert [(m.to, m.leader_commit, len(m.entries)) for m in messages] == [(2, 1, 1), (3, 1, 1)]
    assert not node.commit_untold


def test_the_next_heartbeat_carries_it() -> None:
    node, log = leader_of()
    turn(node, log)
    node.tick()
    messages = [m for m in turn(node, log).messages if isinstance(m, Heartbeat)]
    assert [(m.to, m.leader_commit) for m in messages] == [(2, 1), (3, 1)]
    node.tell_commit()
    assert notices(node, log) == []


def test_a_follower_whose_read_is_confirmed_is_told_before_the_answer() -> None:
    node, log = leader_of()
    turn(node, log)
    node.step(ReadIndex(2, 1, 1, 77))
    heartbeats = [m for m in turn(node, log).messages if isinstance(m, Heartbeat)]
    for heartbeat in heartbeats:
        follower = make_node(log_with([Entry(1, 1, EntryKind.NORMAL, b"")]), id=heartbeat.to)
        follower.step(heartbeat)
        for answer in follower.ready().messages_after:
            node.step(answer)
    answers = turn(node, log).messages
    told = [m.leader_commit for m in [*heartbeats, *answers] if m.to == 2 and isinstance(m, AppendEntries | Heartbeat)]
    assert max(told) == 1
    assert [m.index for m in answers if isinstance(m, ReadIndexResponse)] == [1]


def test_a_follower_that_begins_to_want_commits_says_so_and_is_told() -> None:
    leader, leader_log = leader_of()
    turn(leader, leader_log)
    log = log_with([Entry(1, 1, EntryKind.NORMAL, b"")])
    follower = make_node(log, id=2)
    follower.want_commits(False)
    follower.step(AppendEntries(1, 2, 1, 1, 1, 0, ()))
    (answer,) = turn(follower, log).messages_after
    assert isinstance(answer, AppendEntriesResponse)
    assert not answer.wants_commits
    assert not follower.has_ready()
    assert follower.want_commits(True)
    (asked,) = turn(follower, log).messages_after
    leader.step(asked)
    assert notices(leader, leader_log) == [(2, 1)]
    assert not follower.want_commits(True)


def test_answers_that_gather_say_what_is_wanted_last() -> None:
    follower = make_node(log_with([Entry(1, 1, EntryKind.NORMAL, b"")]), id=2)
    follower.want_commits(False)
    follower.step(AppendEntries(1, 2, 1, 1, 1, 0, ()))
    follower.want_commits(True)
    (answer,) = follower.ready().messages_after
    assert isinstance(answer, AppendEntriesResponse)
    assert (answer.index, answer.wants_commits) == (1, True)
