"""Reads by leader lease: what a follower promises, what a leader counts on, and that the one outlasts the other."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.raft.cluster import SETTINGS, Cluster, MemoryLog
from raykeeper.actors.member.clock import SteadyClock
from raykeeper.raft import ChangeKind, Configuration, HardState, MemberChange, Node, NodeConfig
from raykeeper.raft.leader_lease import Promise, PromiseRounds
from raykeeper.raft.messages import Heartbeat, HeartbeatResponse, RequestVote, RequestVoteResponse, TimeoutNow

LEADER, OTHER = 2, 3
THREE = Configuration(voters=(1, 2, 3))


def follower(log: MemoryLog | None = None, now: float = 0.0, **given: Any) -> Node:
    log = log or MemoryLog()
    return Node(
        NodeConfig(id=1, **{**SETTINGS, "promise": 10.0, **given}),
        log,
        hard_state=log.hard_state,
        configuration=THREE,
        applied=0,
        rng=random.Random(1),
        now=now,
    )


def at(node: Node, time: float) -> Node:
    node.set_time(time, time)
    return node


def heartbeat(node: Node, promise: float, term: int = 1, number: int = 1) -> None:
    node.step(Heartbeat(LEADER, 1, term, 0, number, promise))


def candidate_wins(node: Node, term: int = 2, *, transfer: bool = False) -> bool:
    """Whether another member gets this one's vote."""
    node.step(RequestVote(OTHER, 1, term, 9, 9, False, transfer))
    return node.vote == OTHER


def forgetful(node: Node) -> Node:
    """What ordinary stickiness and the term tell is out of the way: only the promise is left."""
    node._leader_elapsed = 99
    return node


def write(node: Node, log: MemoryLog) -> Any:
    ready = node.ready()
    log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
    node.advance(ready)
    return ready


# -- the follower -----------------------------------------------------------------------------------------------------


def test_it_stands_by_its_leader_for_as_long_as_it_was_asked_from_its_last_look_at_the_clock() -> None:
    for passed, wins in ((0.0, False), (9.999, False), (10.0, True)):
        node = at(follower(), 5.0)
        heartbeat(node, 10.0)
        assert candidate_wins(at(forgetful(node), 5.0 + passed)) is wins


def test_it_does_not_campaign_either_whatever_its_timer_says() -> None:
    node = at(follower(), 5.0)
    heartbeat(node, 10.0)
    for _ in range(30):
        node.tick()
    at(node, 14.9).campaign()
    node.ready()
    assert node.role == "follower"
    at(node, 15.0)
    assert node.has_ready()
    node.ready()
    assert node.role == "pre-candidate"


def test_what_it_is_asked_for_counts_and_not_its_own_settings() -> None:
    node = at(follower(promise=1.0), 0.0)
    heartbeat(node, 10.0)
    assert not candidate_wins(at(forgetful(node), 9.9))


def test_a_shorter_promise_does_not_shorten_a_longer_one() -> None:
    node = at(follower(), 0.0)
    heartbeat(node, 10.0)
    heartbeat(at(node, 2.0), 1.0)
    heartbeat(at(node, 3.0), 0.0)
    assert not candidate_wins(at(forgetful(node), 9.9))
    assert candidate_wins(at(node, 10.0))


def test_it_outlives_a_change_of_term_that_did_not_come_from_a_leader() -> None:
    node = at(follower(), 0.0)
    heartbeat(node, 10.0)
    node.step(RequestVoteResponse(OTHER, 1, 7, False))
    assert (node.term, node.leader) == (7, 0)
    assert not candidate_wins(at(forgetful(node), 9.0), 8)


@pytest.mark.parametrize("promise", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_promise_that_makes_no_sense_is_not_given(promise: float) -> None:
    node = at(follower(max_promise=3600.0), 0.0)
    heartbeat(node, promise)
    assert node._promise.length == 0
    assert not [message for message in node.ready().messages_after if isinstance(message, HeartbeatResponse)]


def test_its_leader_may_release_it() -> None:
    node = at(follower(), 0.0)
    heartbeat(node, 10.0)
    assert candidate_wins(at(node, 1.0), transfer=True)
    node = at(follower(), 0.0)
    heartbeat(node, 10.0)
    node.step(TimeoutNow(LEADER, 1, 1))
    assert node.role == "candidate"


def test_a_promise_is_on_disk_before_it_is_spoken() -> None:
    log = MemoryLog()
    node = follower(log)
    heartbeat(node, 10.0)
    ready = node.ready()
    assert (ready.must_sync, ready.hard_state) == (True, HardState(1, 0, 0, 10.0))
    assert HeartbeatResponse in map(type, ready.messages_after)
    assert HeartbeatResponse not in map(type, ready.messages)
    log.append(ready.entries, ready.hard_state, sync=True)
    node.advance(ready)
    heartbeat(node, 10.0)
    assert not write(node, log).must_sync, "it is there already"
    heartbeat(node, 20.0)
    ready = write(node, log)
    assert (ready.must_sync, log.hard_state.promise) == (True, 20.0)


def test_after_a_start_it_grants_no_vote_for_as_long_as_it_may_have_promised() -> None:
    log = MemoryLog()
    node = follower(log)
    heartbeat(node, 10.0)
    write(node, log)
    node = follower(log, now=100.0, promise=1.0)
    for transfer in (False, True):
        assert not candidate_wins(at(node, 109.9), transfer=transfer)
    heartbeat(node, 0.0)
    node.step(TimeoutNow(LEADER, 1, 1))
    node.campaign()
    assert (node.role, node.term) == ("follower", 1)
    assert candidate_wins(at(forgetful(node), 110.0))


def test_who_never_promised_anything_need_not_wait() -> None:
    assert candidate_wins(at(follower(), 0.0))


def test_what_is_on_disk_shrinks_only_once_it_covers_what_runs() -> None:
    promise = Promise(0.0, 0.0)
    promise.extend(10.0, 0.0)
    promise.extend(1.0, 8.0)
    assert promise.length == 10.0
    promise.extend(1.0, 9.0)
    assert promise.length == 1.0
    promise.extend(3.0, 9.5)
    assert promise.length == 3.0


# -- the leader -------------------------------------------------------------------------------------------------------


def leader(count: int = 3, **given: Any) -> Cluster:
    cluster = Cluster(range(1, count + 1), **{"promise": 10.0, "clock_drift": 0.1, **given})
    cluster.elect(1)
    cluster.run()
    return cluster


def answer(cluster: Cluster, member: int, number: int) -> None:
    node = cluster.node(1)
    node.step(HeartbeatResponse(member, 1, node.term, number))


def holds(cluster: Cluster, time: float) -> bool:
    return at(cluster.node(1), time)._holds_lease()


def begin_round(cluster: Cluster, time: float) -> int:
    node = at(cluster.node(1), time)
    node._start_round(periodic=True)
    cluster.members[1].work_off()
    cluster.network.clear()
    return node._round


def test_it_counts_from_the_beginning_of_the_round_less_the_drift() -> None:
    cluster = leader()
    number = begin_round(cluster, 100.0)
    at(cluster.node(1), 103.0)
    assert not holds(cluster, 103.0)
    answer(cluster, 2, number)
    assert holds(cluster, 108.9)
    assert not holds(cluster, 109.0)


def test_it_counts_by_what_was_asked_in_the_round_that_was_answered() -> None:
    """An answer to one round confirms the leader in all before it, and promises only what it asked itself."""
    cluster = leader(5)
    node = cluster.node(1)
    long = begin_round(cluster, 100.0)
    node.config = NodeConfig(id=1, **{**SETTINGS, "promise": 1.0})
    short = begin_round(cluster, 101.0)
    answer(cluster, 2, short)
    answer(cluster, 3, short)
    assert holds(cluster, 101.8)
    assert not holds(cluster, 101.9)
    answer(cluster, 2, long)
    assert not holds(cluster, 101.9), "of five, one more must have heard it"
    answer(cluster, 4, long)
    assert holds(cluster, 108.9)


@pytest.mark.parametrize(
    ("answering", "expected"), [((2, 3), False), ((4, 5), False), ((2, 4), True), ((2, 3, 5), True)]
)
def test_a_joint_configuration_needs_a_quorum_of_both_halves(answering: tuple[int, ...], expected: bool) -> None:
    cluster = leader()
    node = cluster.node(1)
    node._lead_under_configuration(Configuration(voters=(1, 4, 5), outgoing=(1, 2, 3)))
    node.configuration = Configuration(voters=(1, 4, 5), outgoing=(1, 2, 3))
    number = begin_round(cluster, 100.0)
    for member in answering:
        answer(cluster, member, number)
    assert holds(cluster, 101.0) is expected


def test_a_lease_is_judged_anew_when_the_configuration_changes_and_learners_do_not_count() -> None:
    cluster = leader()
    cluster.add(4)
    node = cluster.node(1)
    node.propose_change([MemberChange(ChangeKind.ADD_LEARNER, 4)])
    cluster.run()
    number = begin_round(cluster, 100.0)
    answer(cluster, 4, number)
    assert not holds(cluster, 101.0)
    answer(cluster, 2, number)
    assert holds(cluster, 101.0)
    for member in (3, 4):
        cluster.node(member).set_time(100.0, 100.0)
    node.configuration = Configuration(voters=(1, 3, 4))
    node._lead_under_configuration(node.configuration)
    assert holds(cluster, 101.0), "the learner has promised too, and counts now"
    node.configuration = Configuration(voters=(1, 3, 5))
    node._lead_under_configuration(node.configuration)
    assert not holds(cluster, 101.0)


def test_a_transfer_ends_it_for_the_rest_of_the_term_and_asks_for_nothing_more() -> None:
    cluster = leader()
    answer(cluster, 2, begin_round(cluster, 100.0))
    assert holds(cluster, 101.0)
    node = cluster.node(1)
    node.transfer_leadership(2)
    assert not holds(cluster, 101.0)
    node.transfer_target = 0
    node._start_round(periodic=True)
    (asked,) = {m.promise for m in node.ready().messages if isinstance(m, Heartbeat)}
    assert asked == 0


def test_a_lone_voter_holds_it_and_without_lease_reads_no_leader_does() -> None:
    assert holds(leader(1), 1000.0)
    assert not holds(leader(1, promise=0.0), 0.0)
    cluster = leader(promise=0.0)
    answer(cluster, 2, begin_round(cluster, 1.0))
    assert not holds(cluster, 1.0)


def test_rounds_that_are_over_are_forgotten() -> None:
    rounds = PromiseRounds()
    for number in range(1000):
        rounds.add_round(number, 1.0, 0.1, number * 0.1)
    assert len(rounds._until) < 12
    assert rounds.promised_until(5) == -math.inf
    assert rounds.promised_until(999) == pytest.approx(99.9 + 0.9)


# -- the one against the other ----------------------------------------------------------------------------------------


class Machine:
    """A clock with its own rate, which may sleep, and be taken for one that has jumped."""

    def __init__(self, rate: float, max_step: float) -> None:
        self.rate = rate
        self.shown = 1000.0
        self.clock = SteadyClock(lambda: self.shown, max_step)

    def passes(self, seconds: float) -> None:
        self.shown += seconds * self.rate


DRIFT = 0.1
MAX_STEP = 5.0
SECONDS = st.one_of(st.floats(0.0, 0.5), st.floats(0.0, 3.0), st.floats(0.0, 20.0))
KINDS = ["time", "end", "end", "round", "round", "round", "send", "hear", "answer", "start", "jump", "back"]
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), SECONDS), min_size=5, max_size=40)


@settings(max_examples=300)
@given(STEPS, st.floats(0.0, DRIFT), st.floats(0.0, DRIFT), st.randoms(use_true_random=False))
def test_no_follower_is_counted_on_longer_than_its_promise(
    steps: list[tuple[str, float]], fast: float, faster: float, rng: random.Random
) -> None:
    """One leader and one follower: delays, stalls and sleep, drift up to the bound, promises that grow and shrink,
    starts over what was written last, clocks that go back (a leader's) or ahead too far (a follower's)."""
    ours, theirs = Machine(1 + fast, MAX_STEP), Machine(1 + faster, MAX_STEP)
    rounds, promised_until = PromiseRounds(), -math.inf
    promise = Promise(0.0, theirs.clock())
    disk = 0.0
    way: list[tuple[int, float]] = []
    back: list[int] = []
    sent = 0
    for what, seconds in steps:
        if what == "time":
            ours.passes(seconds)
            theirs.passes(seconds)
        elif what == "end":  # to the moment at which the follower's promise is over
            left = max(0.0, promise._until - theirs.clock())
            if left < 1e9:
                for _ in range(5):
                    ours.passes(left / theirs.rate / 5)
                    theirs.passes(left / 5 / theirs.rate)
                    ours.clock()
                    theirs.clock()
        elif what == "round":
            sent += 1
            rounds.add_round(sent, seconds, DRIFT, ours.clock.readings()[1])
            promise.extend(seconds, theirs.clock())
            disk = promise.length if promise.length > disk or rng.random() < 0.5 else disk
            promised_until = max(promised_until, rounds.promised_until(sent))
        elif what == "send":
            sent += 1
            rounds.add_round(sent, seconds, DRIFT, ours.clock.readings()[1])
            way.append((sent, seconds))
        elif what == "hear" and way:
            number, length = way.pop(rng.randrange(len(way)))
            promise.extend(length, theirs.clock())
            # What is shorter on disk than before may be lost, as it was not synced.
            disk = promise.length if promise.length > disk or rng.random() < 0.5 else disk
            back.append(number)
        elif what == "answer" and back:
            promised_until = max(promised_until, rounds.promised_until(back.pop(rng.randrange(len(back)))))
        elif what == "start":
            theirs.clock = SteadyClock(lambda: theirs.shown, MAX_STEP)
            promise = Promise(disk, theirs.clock())
        elif what == "jump":
            theirs.shown += MAX_STEP + 0.01 + seconds
            theirs.clock()
        elif what == "back":
            ours.clock()
            ours.shown -= seconds
        counts_on_it = ours.clock.readings()[1] < promised_until
        stands_by_it = promise.holds(theirs.clock())
        assert stands_by_it or not counts_on_it
