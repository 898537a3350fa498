"""Which voters may confirm, by their word on their term, a read that the leader has answered at once."""

from __future__ import annotations

import pytest

from lab.raft.cluster import MemoryLog
from lab.raft.nodes import make_leader, make_node, turn
from raykeeper.raft import Configuration, Node
from raykeeper.raft.messages import AppendEntriesResponse, RequestVoteResponse


def leader_of(configuration: Configuration, **settings: object) -> Node:
    """Member 1, elected by all others, with the entry that opened its term committed."""
    log = MemoryLog()
    node = make_node(log, configuration=configuration, **settings)
    node.campaign()
    others = sorted(configuration.members - {1})
    for pre_vote in (True, False):
        turn(node, log)
        for member in others:
            node.step(RequestVoteResponse(member, 1, 1, True, pre_vote))
    for _ in range(2):
        turn(node, log)
        for member in others:
            node.step(AppendEntriesResponse(member, 1, 1, True, node.last_index))
    turn(node, log)
    assert node.role == "leader"
    assert node.committed_in_term
    return node


@pytest.mark.parametrize(
    ("voters", "confirming"),
    [
        ((1,), ()),
        ((1, 2), (2,)),
        ((1, 2, 3), (2, 3)),
        ((1, 2, 3, 4), ()),
        ((1, 2, 3, 4, 5), ()),
    ],
)
def test_each_is_a_quorum_with_the_leader(voters: tuple[int, ...], confirming: tuple[int, ...]) -> None:
    assert leader_of(Configuration(voters=voters)).confirming_voters() == confirming


def test_learners_do_not_count() -> None:
    assert leader_of(Configuration(voters=(1, 2), learners=(3,))).confirming_voters() == (2,)
    assert leader_of(Configuration(voters=(1,), learners=(2,))).confirming_voters() == ()


def test_a_joint_configuration_needs_a_round() -> None:
    joint = Configuration(voters=(1, 2, 3), outgoing=(1, 2, 4))
    assert leader_of(joint).confirming_voters() == ()


def test_a_leader_that_has_committed_nothing_in_its_term_needs_a_round() -> None:
    """It does not know what leaders before it have committed."""
    node = make_leader(MemoryLog())
    assert node.confirming_voters() == ()


def test_whoever_does_not_lead_names_nobody() -> None:
    assert make_node().confirming_voters() == ()
    node = leader_of(Configuration(voters=(1, 2, 3)))
    node.step(RequestVoteResponse(2, 1, 5, False))  # of a later term
    assert node.role == "follower"
    assert node.confirming_voters() == ()


def test_a_leader_with_a_lease_answers_alone() -> None:
    node = leader_of(Configuration(voters=(1, 2, 3)), promise=0.5)
    assert node.confirming_voters() == ()
