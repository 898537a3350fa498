"""Every kind of message, in an older, the same and a newer term, at every role: what becomes of term, role, leader and
vote, and what is answered. The rules are the paper's (figure 2, thesis 3.10, 4.2.3, 6.4 and 9.6), in detail etcd's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from lab.raft.cluster import SETTINGS, MemoryLog
from raykeeper.raft import Configuration, Entry, EntryKind, HardState, Node, NodeConfig, SnapshotMeta
from raykeeper.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    TimeoutNow,
)

TERM = 5
OLDER, NEWER = 3, 8
ME, LEADER, SENDER = 1, 2, 3
"""A follower's leader, and who sends the message that is looked at."""
CONFIGURATION = Configuration(voters=(1, 2, 3))
META = SnapshotMeta(1, 1, CONFIGURATION, "image", 10)


def follower(*, leader: int = 0, configuration: Configuration = CONFIGURATION) -> Node:
    log = MemoryLog()
    log.append([Entry(1, 1, EntryKind.NORMAL, b"x")], HardState(TERM, 0, 1), sync=True)
    node = Node(
        NodeConfig(id=ME, **SETTINGS),
        log,
        hard_state=log.hard_state,
        configuration=configuration,
        applied=1,
        rng=random.Random(1),
    )
    if leader:
        node.step(Heartbeat(leader, ME, TERM, 0))
        work_off(node)
    return node


def work_off(node: Node) -> list[Message]:
    """All that it says until it has nothing more to say."""
    said: list[Message] = []
    while node.has_ready():
        ready = node.ready()
        said += ready.messages + ready.messages_after
        node._storage.append(ready.entries, ready.hard_state, sync=ready.must_sync)  # type: ignore[attr-defined]
        node.advance(ready)
    return said


def pre_candidate() -> Node:
    node = follower()
    node.campaign()
    work_off(node)
    return node


def candidate() -> Node:
    node = follower()
    node.term -= 1
    node.campaign()
    node.step(RequestVoteResponse(LEADER, ME, TERM, True, True))
    work_off(node)
    return node


def leading() -> Node:
    node = candidate()
    node.step(RequestVoteResponse(LEADER, ME, TERM, True))
    work_off(node)
    return node


ROLES = {
    "follower": lambda: follower(leader=LEADER),
    "alone": follower,
    "pre-candidate": pre_candidate,
    "candidate": candidate,
    "leader": leading,
}
"""``alone``: a follower that has not heard of a leader."""


def message(kind: str, term: int) -> Message:
    made: dict[str, Message] = {
        "vote": RequestVote(SENDER, ME, term, 9, 5),
        "vote, short log": RequestVote(SENDER, ME, term, 0, 0),
        "vote, transfer": RequestVote(SENDER, ME, term, 9, 5, False, True),
        "vote, transfer, non-voter": RequestVote(7, ME, term, 9, 5, False, True),
        "pre-vote": RequestVote(SENDER, ME, term, 9, 5, True),
        "pre-vote, short log": RequestVote(SENDER, ME, term, 0, 0, True),
        "granted": RequestVoteResponse(SENDER, ME, term, True),
        "refused": RequestVoteResponse(SENDER, ME, term, False),
        "granted pre-vote": RequestVoteResponse(SENDER, ME, term, True, True),
        "refused pre-vote": RequestVoteResponse(SENDER, ME, term, False, True),
        "append": AppendEntries(SENDER, ME, term, 1, 1, 0),
        "append answered": AppendEntriesResponse(SENDER, ME, term, True, 1),
        "heartbeat": Heartbeat(SENDER, ME, term, 0, 4),
        "heartbeat answered": HeartbeatResponse(SENDER, ME, term, 0),
        "snapshot": InstallSnapshot(SENDER, ME, term, META, 0, b"", False),
        "snapshot answered": InstallSnapshotResponse(SENDER, ME, term, 1, "image", 0),
        "read": ReadIndex(SENDER, ME, term, 77),
        "read answered": ReadIndexResponse(SENDER, ME, term, 77, 1),
        "timeout now": TimeoutNow(SENDER, ME, term),
    }
    return made[kind]


KINDS = (
    "vote",
    "vote, short log",
    "vote, transfer",
    "vote, transfer, non-voter",
    "pre-vote",
    "pre-vote, short log",
    "granted",
    "refused",
    "granted pre-vote",
    "refused pre-vote",
    "append",
    "append answered",
    "heartbeat",
    "heartbeat answered",
    "snapshot",
    "snapshot answered",
    "read",
    "read answered",
    "timeout now",
)
FROM_LEADERS = {
    "append": AppendEntriesResponse,
    "heartbeat": HeartbeatResponse,
    "snapshot": InstallSnapshotResponse,
}
BEFORE = {
    "follower": (TERM, "follower", LEADER, 0),
    "alone": (TERM, "follower", 0, 0),
    "pre-candidate": (TERM, "pre-candidate", 0, 0),
    "candidate": (TERM, "candidate", 0, ME),
    "leader": (TERM, "leader", ME, ME),
}


@dataclass(frozen=True)
class Outcome:
    term: int
    role: str
    leader: int
    vote: int
    said: tuple[Any, ...] = ()
    """(kind, term, whether granted or successful) of each answer to the sender."""


def expected(kind: str, term: int, role: str) -> Outcome:
    """The rules, most particular last."""
    same = Outcome(*BEFORE[role])
    stands_by = role in ("follower", "leader")  # thesis, 4.2.3
    pre_vote = kind.startswith("pre-vote")
    short = kind.endswith("short log")
    refusal = (RequestVoteResponse, TERM, False)
    if term == OLDER:
        if kind in FROM_LEADERS:  # a deposed leader must learn that it is
            return Outcome(*BEFORE[role], said=((AppendEntriesResponse, TERM, False),))
        # A candidate of an older term must learn the newer one; a real vote for it would be worth nothing.
        return Outcome(*BEFORE[role], said=(refusal,)) if pre_vote else same
    if kind in FROM_LEADERS:
        if role == "leader" and term == TERM:
            return same  # there can be no other leader in its term
        answer = (FROM_LEADERS[kind], term, True if kind == "append" else None)
        return Outcome(term, "follower", SENDER, 0 if term > TERM else same.vote, (answer,))
    if kind.startswith(("vote", "pre-vote")):
        excused = kind == "vote, transfer"
        if stands_by and not excused:
            return same
        if term > TERM:
            if pre_vote:  # no trace, whatever the answer
                return Outcome(*BEFORE[role], said=(refusal if short else (RequestVoteResponse, term, True),))
            vote = 0 if short else SENDER
            return Outcome(term, "follower", 0, vote, ((RequestVoteResponse, term, not short),))
        granted = same.vote == 0 and same.leader == 0 and not short
        vote = SENDER if granted and not pre_vote else same.vote
        return Outcome(TERM, role if role != "alone" else "follower", same.leader, vote, ((*refusal[:2], granted),))
    if term > TERM:
        if kind == "granted pre-vote":
            return same  # it bears the term that was asked about, and this is none that this node asked about
        return Outcome(term, "follower", 0, 0)
    if kind == "granted" and role == "candidate":
        return Outcome(TERM, "leader", ME, ME)
    if kind == "read" and role == "leader":
        return same  # it waits for its round
    return same


def from_non_voter(kind: str, role: str, term: int, outcome: Outcome) -> Outcome:
    """A sender that is not a voter is not excused by a leader, and otherwise treated like any other."""
    return expected("vote", term, role) if kind.endswith("non-voter") else outcome


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("term", [OLDER, TERM, NEWER], ids=["older", "same", "newer"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_becomes_of_a_message(kind: str, term: int, role: str) -> None:
    node = ROLES[role]()
    assert (node.term, node.role, node.leader, node.vote) == BEFORE[role]
    sent = message(kind, term)
    node.step(sent)
    # A leader's own rounds and appends go to everybody; what is looked at are answers.
    said = [
        (type(m), m.term, getattr(m, "vote_granted", getattr(m, "success", None)))
        for m in work_off(node)
        if m.to == sent.sender and isinstance(m, (RequestVoteResponse, *FROM_LEADERS.values()))
    ]
    want = from_non_voter(kind, role, term, expected(kind, term, role))
    if want.vote == SENDER and kind.endswith("non-voter"):
        want = Outcome(want.term, want.role, want.leader, 7, want.said)
    assert Outcome(node.term, node.role, node.leader, node.vote, tuple(said)) == want


def test_the_table_knows_every_kind() -> None:
    assert {type(message(kind, TERM)) for kind in KINDS} == set(get_args(Message))


# -- what a table does not say ----------------------------------------------------------------------------------------


def test_a_candidate_of_an_older_term_learns_the_newer_one_in_one_step() -> None:
    """It does not climb up to it, one term for each election timeout, with each pre-vote granted on the way."""
    voter, asking = follower(), pre_candidate()
    asking.term = OLDER
    voter.step(RequestVote(SENDER, ME, OLDER + 1, 9, 5, True))
    (answer,) = work_off(voter)
    assert isinstance(answer, RequestVoteResponse)
    asking.step(answer.__class__(LEADER, ME, answer.term, answer.vote_granted, answer.pre_vote))
    assert (asking.term, asking.role) == (TERM, "follower")


def test_a_member_that_is_quiet_or_stands_by_a_leader_still_tells_an_old_candidate_its_term() -> None:
    node = follower(leader=LEADER)
    node.step(RequestVote(SENDER, ME, OLDER, 9, 5, True))
    assert [m.term for m in work_off(node)] == [TERM]


@pytest.mark.parametrize("configuration", [Configuration(voters=(2, 3), learners=(1,)), Configuration(voters=(2, 3))])
def test_who_is_no_voter_votes_and_never_campaigns(configuration: Configuration) -> None:
    """The candidate may know better who is one; so etcd's learners vote, too."""
    node = follower(configuration=configuration)
    for _ in range(50):
        node.tick()
        work_off(node)
    assert node.role == "follower"
    node.step(RequestVote(SENDER, ME, NEWER, 9, 5))
    assert [(m.term, m.vote_granted) for m in work_off(node) if isinstance(m, RequestVoteResponse)] == [(NEWER, True)]
    node = follower(leader=SENDER, configuration=configuration)
    node.step(TimeoutNow(SENDER, ME, TERM))
    assert (node.role, node.term) == ("follower", TERM)


@pytest.mark.parametrize("role", ROLES)
def test_a_leader_that_hands_over_is_obeyed_by_a_follower_of_its_own_alone(role: str) -> None:
    node = ROLES[role]()
    node.step(TimeoutNow(LEADER, ME, TERM))
    assert (node.role, node.term) == (("candidate", TERM + 1) if role == "follower" else (BEFORE[role][1], TERM))
