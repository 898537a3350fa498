"""A follower whose leader's lane has ended campaigns early: in turn, seldom, never against a leader that it hears."""

from __future__ import annotations

import itertools
import logging
import math
import random
from typing import Any

import pytest

from lab.raft.cluster import SETTINGS, MemoryLog
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.member.fast_failover import FastFailover
from raykeeper.limits import CAMPAIGN_STEP_S, EARLY_CAMPAIGNS
from raykeeper.raft import Configuration, Node, NodeConfig
from raykeeper.raft.messages import Heartbeat, RequestVote

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


def fast_failover(node: Node) -> FastFailover:
    return FastFailover(node, random.Random(1), MemberLog("member", "c", f"m{node.id}"))


def test_it_campaigns_soon_and_members_take_turns() -> None:
    due = []
    for member in (2, 3):
        node = follower(member)
        failover = fast_failover(node)
        failover.peer_gone(LEADER, 100.0, 1.0)
        due.append(failover.due)
        failover.campaign(failover.due)
        assert node.role == "pre-candidate"
    assert 100.0 <= due[0] < due[1] - CAMPAIGN_STEP_S / 2 < 100.5


def test_a_word_of_the_leader_puts_it_at_ease() -> None:
    node = follower(2)
    failover = fast_failover(node)
    failover.peer_gone(LEADER, 0.0, 1.0)
    hear(node)
    failover.campaign(failover.due)
    assert node.role == "follower"
    assert node.leader == LEADER
    assert failover.due == math.inf


def test_another_election_is_not_disturbed() -> None:
    node = follower(2)
    failover = fast_failover(node)
    failover.peer_gone(LEADER, 0.0, 1.0)
    node.step(RequestVote(3, 2, 2, 0, 0))
    assert node.term == 2
    failover.campaign(failover.due)
    assert node.role == "follower"


def test_it_logs_whom_it_suspects_and_what_came_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raykeeper.member")
    heard, overtaken, campaigning = (follower(2) for _ in range(3))
    for node in (heard, overtaken, campaigning):
        failover = fast_failover(node)
        failover.peer_gone(LEADER, 0.0, 1.0)
        failover.peer_gone(LEADER, 0.1, 1.0)
        if node is heard:
            hear(node)
        elif node is overtaken:
            node.step(RequestVote(3, 2, 2, 0, 0))
        failover.campaign(failover.due)
    suspicion = "cluster c, m2: suspects m1, the leader of term 1: its lane has ended"
    assert caplog.messages == [
        suspicion,
        "cluster c, m2: m1 is no longer suspected: it was heard from again",
        suspicion,
        "cluster c, m2: suspected m1, but another member has campaigned, in term 2",
        suspicion,
    ]


def test_it_tries_again_a_few_times_if_nobody_wins() -> None:
    node = follower(2)
    failover = fast_failover(node)
    failover.peer_gone(LEADER, 0.0, 60.0)
    tried = []
    while failover.due < math.inf:
        tried.append(failover.due)
        failover.campaign(failover.due)
        assert node.role == "pre-candidate"
    assert len(tried) == EARLY_CAMPAIGNS
    assert all(later - earlier >= 2 * CAMPAIGN_STEP_S for earlier, later in itertools.pairwise(tried))


def test_one_early_campaign_in_an_election_timeout() -> None:
    node = follower(2)
    failover = fast_failover(node)
    failover.peer_gone(LEADER, 0.0, 1.0)
    hear(node)
    failover.campaign(failover.due)
    failover.peer_gone(LEADER, 0.9, 1.0)
    assert failover.due == math.inf
    failover.peer_gone(LEADER, 1.0, 1.0)
    assert failover.due < math.inf


def test_only_the_end_of_the_leaders_lane_matters() -> None:
    node = follower(2)
    failover = fast_failover(node)
    failover.peer_gone(3, 0.0, 1.0)
    assert failover.due == math.inf
    node.campaign()
    assert node.role == "follower", "it still stands by its leader"


@pytest.mark.parametrize("heard", [True, False])
def test_a_member_that_still_hears_the_leader_refuses_its_pre_vote(heard: bool) -> None:
    node = follower(3)
    if not heard:
        node.suspect_leader(LEADER)
    node.step(RequestVote(2, 3, 2, 0, 0, True))
    granted = [message for message in node.ready().messages if getattr(message, "vote_granted", False)]
    assert bool(granted) is not heard


def test_with_lease_reads_no_leader_is_forgotten_early() -> None:
    node = follower(2)
    node.step(Heartbeat(LEADER, 2, 1, 0, 0, promise=1.0))
    failover = fast_failover(node)
    failover.peer_gone(LEADER, 0.0, 1.0)
    assert failover.due == math.inf
