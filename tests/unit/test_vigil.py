"""A follower whose leader's lane has ended campaigns early: in turn, seldom, never against a leader that it hears."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest

from raftlab.cluster import SETTINGS, MemoryLog
from raykeeper.actors.raft import Configuration, Node, NodeConfig
from raykeeper.actors.raft.messages import Heartbeat, RequestVote
from raykeeper.actors.vigil import Vigil
from raykeeper.limits import CAMPAIGN_STEP, EARLY_CAMPAIGNS

LEADER = 1


def follower(member: int, **settings: Any) -> Node:
    log = MemoryLog()
    node = Node(
        NodeConfig(id=member, **{**SETTINGS, **settings}),
        log,
        hard_state=log.hard_state,
        configuration=Configuration(voters=(1, 2, 3)),
        applied=0,
        rng=random.Random(1),
    )
    hear(node)
    return node


def hear(node: Node) -> None:
    node.step(Heartbeat(LEADER, node.id, 1, 0, 0))


def vigil(node: Node) -> Vigil:
    return Vigil(node, random.Random(1))


def test_it_campaigns_soon_and_members_take_turns() -> None:
    due = []
    for member in (2, 3):
        node = follower(member)
        watch = vigil(node)
        watch.gone(LEADER, 100.0, 1.0)
        due.append(watch.due)
        watch.campaign(watch.due)
        assert node.role == "pre-candidate"
    assert 100.0 <= due[0] < due[1] - CAMPAIGN_STEP / 2 < 100.5


def test_a_word_of_the_leader_puts_it_at_ease() -> None:
    node = follower(2)
    watch = vigil(node)
    watch.gone(LEADER, 0.0, 1.0)
    hear(node)
    watch.campaign(watch.due)
    assert node.role == "follower"
    assert node.leader == LEADER
    assert watch.due == math.inf


def test_another_election_is_not_disturbed() -> None:
    node = follower(2)
    watch = vigil(node)
    watch.gone(LEADER, 0.0, 1.0)
    node.step(RequestVote(3, 2, 2, 0, 0))
    assert node.term == 2
    watch.campaign(watch.due)
    assert node.role == "follower"


def test_it_tries_again_a_few_times_if_nobody_wins() -> None:
    node = follower(2)
    watch = vigil(node)
    watch.gone(LEADER, 0.0, 60.0)
    tried = []
    while watch.due < math.inf:
        tried.append(watch.due)
        watch.campaign(watch.due)
        assert node.role == "pre-candidate"
    assert len(tried) == EARLY_CAMPAIGNS
    assert all(later - earlier >= 2 * CAMPAIGN_STEP for earlier, later in itertools.pairwise(tried))


def test_one_early_campaign_in_an_election_timeout() -> None:
    node = follower(2)
    watch = vigil(node)
    watch.gone(LEADER, 0.0, 1.0)
    hear(node)
    watch.campaign(watch.due)
    watch.gone(LEADER, 0.9, 1.0)
    assert watch.due == math.inf
    watch.gone(LEADER, 1.0, 1.0)
    assert watch.due < math.inf


def test_only_the_end_of_the_leaders_lane_matters() -> None:
    node = follower(2)
    watch = vigil(node)
    watch.gone(3, 0.0, 1.0)
    assert watch.due == math.inf
    node.campaign()
    assert node.role == "follower", "it still stands by its leader"


@pytest.mark.parametrize("heard", [True, False])
def test_a_member_that_still_hears_the_leader_refuses_its_pre_vote(heard: bool) -> None:
    node = follower(3)
    if not heard:
        node.leader_may_be_gone(LEADER)
    node.step(RequestVote(2, 3, 2, 0, 0, True))
    granted = [message for message in node.ready().messages if getattr(message, "vote_granted", False)]
    assert bool(granted) is not heard


def test_with_lease_reads_no_leader_is_forgotten_early() -> None:
    node = follower(2)
    node.step(Heartbeat(LEADER, 2, 1, 0, 0, promise=1.0))
    watch = vigil(node)
    watch.gone(LEADER, 0.0, 1.0)
    assert watch.due == math.inf
