"""What a node promises to its owner: what a ``Ready`` holds and when, and how it starts."""

from __future__ import annotations

from typing import Any

import pytest

from lab.raft.cluster import SETTINGS, Cluster, MemoryLog
from lab.raft.nodes import THREE, log_with, make_leader, make_node, turn
from raykeeper.raft import (
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    EntryKind,
    HardState,
    LogInconsistent,
    MemberChange,
    Node,
    NodeConfig,
    NotLeader,
    ProposalRefused,
    SnapshotMeta,
    encode_change,
)
from raykeeper.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
)


def entry(index: int, term: int = 1, data: bytes = b"x", kind: EntryKind = EntryKind.NORMAL) -> Entry:
    return Entry(index, term, kind, data)


def adding_learner(index: int, base: int = 0, member: int = 9) -> Entry:
    change = ConfigurationChange(base, (MemberChange(ChangeKind.ADD_LEARNER, member),))
    return entry(index, data=encode_change(change), kind=EntryKind.CONFIGURATION)


def test_a_vote_is_handed_out_with_the_hard_state_that_must_be_synced_before() -> None:
    node = make_node()
    node.step(RequestVote(2, 1, 5, 0, 0))
    ready = node.ready()
    assert ready.hard_state == HardState(5, 2, 0)
    assert ready.must_sync
    assert ready.messages == []
    assert ready.messages_after == [RequestVoteResponse(1, 2, 5, True)]


def test_a_candidate_counts_its_own_vote_only_once_it_is_on_disk() -> None:
    log = MemoryLog()
    node = make_node(log, configuration=Configuration(voters=(1,)))
    node.campaign()
    assert node.role == "candidate"
    ready = node.ready()
    assert ready.hard_state == HardState(1, 1, 0)
    assert ready.must_sync
    assert node.role == "candidate"
    node.advance(ready)
    assert node.role == "leader"


def test_a_write_that_was_begun_before_the_vote_does_not_count_for_it() -> None:
    node = make_node(configuration=Configuration(voters=(1,)))
    ready = node.ready()
    node.campaign()
    node.advance(ready)
    assert node.role == "candidate"


def test_an_answer_to_a_read_of_an_earlier_life_is_not_taken_for_one_of_this() -> None:
    def asking(seed: int) -> tuple[Node, int]:
        node = make_node(seed=seed)
        node.step(Heartbeat(2, 1, 1, 0))
        node.read_index(1)
        (question,) = [message for message in node.ready().messages if type(message) is ReadIndex]
        return node, question.context

    _, before = asking(seed=1)
    node, now = asking(seed=2)
    node.step(ReadIndexResponse(2, 1, 1, before, 3))
    assert node.ready().read_states == []
    node.step(ReadIndexResponse(2, 1, 1, now, 5))
    assert node.ready().read_states == [(1, 5)]


def test_a_repeated_question_for_a_read_is_answered_once() -> None:
    log = MemoryLog()
    node = make_leader(log)
    for _ in range(2):
        node.step(ReadIndex(2, 1, 1, 77))
    turn(node, log)
    node.step(AppendEntriesResponse(2, 1, 1, True, 1))
    (heartbeat, _) = [message for message in turn(node, log).messages if type(message) is Heartbeat]
    node.step(ReadIndex(2, 1, 1, 77))
    node.step(HeartbeatResponse(2, 1, 1, heartbeat.context))
    answers = [message for message in turn(node, log).messages if type(message) is ReadIndexResponse]
    assert answers == [ReadIndexResponse(1, 2, 1, 77, 1)]


def test_a_pre_vote_needs_no_disk() -> None:
    node = make_node()
    node.campaign()
    ready = node.ready()
    assert ready.hard_state is None
    assert [type(message) for message in ready.messages] == [RequestVote, RequestVote]
    assert ready.messages_after == []


def test_the_leader_sends_before_its_own_write_and_counts_itself_only_after_it() -> None:
    log = MemoryLog()
    node = make_leader(log)
    turn(node, log)
    node.step(AppendEntriesResponse(2, 1, 1, True, 1))
    turn(node, log)
    assert node.propose([b"x", b"y"]) == 2
    ready = node.ready()
    appends = [message for message in ready.messages if type(message) is AppendEntries]
    assert [(m.to, len(m.entries)) for m in appends] == [(2, 2)]
    assert ready.must_sync
    assert [e.index for e in ready.entries] == [2, 3]
    # One follower has it, the leader's own disk does not: that is not a majority of three.
    node.step(AppendEntriesResponse(2, 1, 1, True, 3))
    assert node.commit_index == 1
    log.append(ready.entries, ready.hard_state, sync=True)
    node.advance(ready)
    assert node.commit_index == 3


def test_followers_alone_may_commit_what_the_leader_has_not_written() -> None:
    log = MemoryLog()
    node = make_leader(log)
    turn(node, log)
    for member in (2, 3):
        node.step(AppendEntriesResponse(member, 1, 1, True, 1))
    turn(node, log)
    node.propose([b"x"])
    ready = node.ready()
    for member in (2, 3):
        node.step(AppendEntriesResponse(member, 1, 1, True, 2))
    assert node.commit_index == 2
    log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
    node.advance(ready)
    ready = node.ready()
    assert [e.index for e in ready.committed] == [2]
    assert ready.hard_state == HardState(1, 1, 2), "what is applied lies below a written commit index"


def test_an_acknowledgement_waits_for_the_write_and_gathers() -> None:
    node = make_node()
    node.step(AppendEntries(2, 1, 1, 0, 0, 0, (entry(1),)))
    node.step(AppendEntries(2, 1, 1, 1, 1, 0, (entry(2),)))
    node.step(Heartbeat(2, 1, 1, 0, 4))
    node.step(AppendEntries(2, 1, 1, 2, 1, 1, (entry(3),)))
    ready = node.ready()
    assert ready.messages == []
    assert ready.messages_after == [
        AppendEntriesResponse(1, 2, 1, True, 2),
        HeartbeatResponse(1, 2, 1, 4),
        AppendEntriesResponse(1, 2, 1, True, 3),
    ]
    assert [e.index for e in ready.entries] == [1, 2, 3]
    assert [e.index for e in ready.committed] == [1]


def test_a_moved_commit_index_is_written_but_need_not_be_synced() -> None:
    log = log_with([entry(1), entry(2)])
    node = make_node(log)
    node.step(Heartbeat(2, 1, 1, 2))
    ready = node.ready()
    assert ready.hard_state == HardState(1, 0, 2)
    assert not ready.must_sync
    assert [e.index for e in ready.committed] == [1, 2]


def test_a_configuration_is_handed_out_only_with_its_commit_index_synced() -> None:
    log = log_with([entry(1), adding_learner(2), entry(3)])
    node = make_node(log)
    node.step(Heartbeat(2, 1, 1, 1))
    assert not turn(node, log).must_sync
    node.step(Heartbeat(2, 1, 1, 2))
    ready = turn(node, log)
    assert [e.index for e in ready.committed] == [2]
    assert ready.must_sync
    assert node.apply_configuration(ready.committed[0]).learners == (9,)
    node.step(Heartbeat(2, 1, 1, 3))
    assert not turn(node, log).must_sync


def test_committed_entries_come_in_pages() -> None:
    log = log_with([entry(index, data=b"x" * 84) for index in range(1, 8)])
    node = make_node(log, max_apply_bytes=250)
    node.step(Heartbeat(2, 1, 1, 7))
    pages = []
    while node.has_ready():
        pages.append([e.index for e in turn(node, log).committed])
    assert pages == [[1, 2], [3, 4], [5, 6], [7]]
    assert node.applied_index == 7


def test_no_member_campaigns_with_a_committed_configuration_unapplied() -> None:
    log = log_with([entry(1), adding_learner(2), entry(3)], commit=3)
    node = make_node(log)
    node.campaign()
    assert node.role == "follower"
    for _ in range(50):
        node.tick()
    assert node.role == "follower"
    ready = turn(node, log)
    node.apply_configuration(ready.committed[1])
    node.campaign()
    assert node.role == "pre-candidate"


def test_a_candidate_that_learns_of_a_configuration_does_not_win_with_the_old_one() -> None:
    log = log_with([entry(1), adding_learner(2)], commit=1)
    node = make_node(log, applied=1)
    node.campaign()
    # Member 3 refuses, and says that entry 2 is committed; then member 2 agrees.
    node.step(RequestVoteResponse(3, 1, 1, False, True, 2, 1))
    assert node.commit_index == 2
    node.step(RequestVoteResponse(2, 1, 2, True, True))
    assert node.role == "follower"


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration(),
        Configuration(voters=(2, 3)),
        Configuration(voters=(2, 3), learners=(1,)),
        Configuration(voters=(2, 3), outgoing=(2, 3, 4), learners_next=(1,)),
    ],
)
def test_who_is_no_voter_never_campaigns(configuration: Configuration) -> None:
    node = make_node(configuration=configuration)
    node.campaign()
    for _ in range(100):
        node.tick()
    assert (node.role, node.term) == ("follower", 0)
    assert node.is_learner is (1 in configuration.learners)


def test_an_outgoing_voter_still_campaigns() -> None:
    node = make_node(configuration=Configuration(voters=(2, 3), outgoing=(1, 2, 3)))
    node.campaign()
    assert node.role == "pre-candidate"


def test_a_void_change_leaves_the_configuration() -> None:
    node = make_node()
    assert node.apply_configuration(adding_learner(1, base=7)) is THREE
    assert node.apply_configuration(entry(2, data=b"rubbish", kind=EntryKind.CONFIGURATION)) is THREE
    assert node.apply_configuration(adding_learner(3)).index == 3
    assert node.apply_configuration(adding_learner(4, member=8)).learners == (9,)


@pytest.mark.parametrize(("commit", "applied"), [(0, 3), (2, 3), (3, 3)])
def test_a_restarted_node_never_knows_less_than_its_state(commit: int, applied: int) -> None:
    log = log_with([entry(index) for index in range(1, 5)], term=3, vote=2, commit=commit)
    node = make_node(log, applied=applied)
    assert (node.commit_index, node.applied_index) == (3, 3)
    assert (node.term, node.vote, node.leader, node.role) == (3, 2, 0, "follower")
    if commit < applied:
        assert node.ready().hard_state == HardState(3, 2, 3)
    else:
        assert not node.has_ready()


def test_a_log_that_was_cut_to_begin_at_the_state_is_enough() -> None:
    log = log_with([entry(1)], term=3, vote=2, commit=1)
    log.reset(50, 3)
    node = make_node(log, applied=50)
    assert (node.commit_index, node.last_index) == (50, 50)
    node.step(AppendEntries(2, 1, 3, 50, 3, 51, (entry(51, 3),)))
    assert [e.index for e in turn(node, log).committed] == [51]


def test_a_log_that_lost_what_was_committed_is_refused() -> None:
    with pytest.raises(LogInconsistent):
        make_node(log_with([entry(1)], commit=2))


def test_a_malformed_append_is_ignored() -> None:
    node = make_node()
    node.step(AppendEntries(2, 1, 1, 0, 0, 0, (entry(1), entry(3))))
    node.step(AppendEntries(2, 1, 1, 0, 0, 0, (entry(2),)))
    assert node.last_index == 0


def test_only_the_leader_takes_proposals() -> None:
    node = make_node()
    node.step(Heartbeat(2, 1, 1, 0))
    for refused in (
        lambda: node.propose([b"x"]),
        lambda: node.propose_change([MemberChange(ChangeKind.ADD_VOTER, 4)]),
        lambda: node.transfer_leadership(3),
    ):
        with pytest.raises(NotLeader) as caught:
            refused()
        assert caught.value.leader == 2


def test_nothing_is_no_proposal() -> None:
    with pytest.raises(ValueError, match="nothing"):
        make_leader(MemoryLog()).propose([])


def test_uncommitted_bytes_are_given_back_when_leadership_changes() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    cluster.partition((1,), (2, 3))
    leader.propose([b"x" * 9000])
    with pytest.raises(ProposalRefused):
        leader.propose([b"x" * 9000])
    cluster.tick((2, 3), 10)
    cluster.elect(2)
    cluster.heal()
    cluster.settle()
    cluster.node(2).transfer_leadership(1)
    cluster.run()
    assert cluster.leader is leader
    leader.propose([b"x" * 9000])


def test_report_unreachable_makes_the_leader_probe() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    leader.report_unreachable(2)
    leader.report_unreachable(1)
    leader.report_unreachable(99)
    assert leader.progress[2].state.value == "probe"
    leader.propose([b"x"])
    cluster.settle()
    assert leader.progress[2].state.value == "replicate"


def test_the_most_up_to_date_peer() -> None:
    cluster = Cluster()
    leader = cluster.elect(1)
    cluster.members[2].crash()
    leader.propose([b"x"])
    cluster.run()
    assert leader.most_up_to_date_peer() == 3
    alone = Cluster((1,))
    assert alone.elect(1).most_up_to_date_peer() == 1


def test_a_snapshot_is_needed_only_where_the_log_does_not_reach() -> None:
    log = log_with([entry(1), entry(2), entry(3)], commit=1)
    node = make_node(log, applied=1)
    held = SnapshotMeta(2, 1, THREE, "a", 10)
    assert not node.snapshot_is_needed(held)
    assert node.commit_index == 2, "what a snapshot holds is committed"
    assert node.snapshot_is_needed(SnapshotMeta(3, 2, THREE, "b", 10))
    assert node.snapshot_is_needed(SnapshotMeta(9, 1, THREE, "c", 10))
    with pytest.raises(ValueError, match="commit index"):
        node.snapshot_installed(held)


def test_a_leader_needs_no_snapshot() -> None:
    """It was checked in the background. Only a deposed leader can lack what is committed, and it hears of that."""
    node = make_leader(MemoryLog())
    assert not node.snapshot_is_needed(SnapshotMeta(9, 5, THREE, "image", 10))


def test_an_installed_snapshot_replaces_log_state_and_configuration() -> None:
    log = log_with([entry(1), entry(2)], commit=1)
    node = make_node(log, applied=1)
    configuration = Configuration(voters=(1, 2), learners=(3,), index=7)
    meta = SnapshotMeta(9, 2, configuration, "image", 4)
    node.step(AppendEntries(2, 1, 2, 2, 1, 1, (entry(3, 2),)))
    chunk = InstallSnapshot(2, 1, 2, meta, 0, b"data", True)
    node.step(chunk)
    ready = node.ready()
    assert ready.chunk == chunk
    node.snapshot_progress(chunk, 4)
    log.reset(9, 2)
    node.snapshot_installed(meta)
    node.advance(ready)
    assert (node.commit_index, node.applied_index, node.last_index) == (9, 9, 9)
    assert node.configuration == configuration
    answers = node.ready().messages_after
    assert [(m.offset, m.installed, m.index) for m in answers] == [(4, False, 9), (4, True, 9)]  # type: ignore[union-attr]


def test_acknowledgements_of_entries_that_a_snapshot_replaced_are_not_sent() -> None:
    """The snapshot was checked in the background; entries came in the same turn, and were never written."""
    log = MemoryLog()
    node = make_node(log)
    node.step(AppendEntries(2, 1, 1, 0, 0, 0, (entry(1),)))
    meta = SnapshotMeta(9, 1, THREE, "image", 4)
    assert node.snapshot_is_needed(meta)
    log.reset(9, 1)
    node.snapshot_installed(meta)
    assert not [m for m in node.ready().messages_after if type(m) is AppendEntriesResponse]


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 0},
        {"heartbeat_ticks": 0},
        {"election_ticks": 1},
        {"clock_drift": 1.0},
        {"max_append_bytes": 0},
        {"snapshot_chunk_bytes": 0},
    ],
)
def test_a_senseless_configuration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        NodeConfig(**{"id": 1, **SETTINGS, **wrong})


def test_the_same_inputs_give_the_same_outputs() -> None:
    def story() -> list[Any]:
        cluster = Cluster(seed=4)
        cluster.tick(count=40)
        cluster.run()
        return [(m.id, m.node.role, m.node.term, m.log.held) for m in cluster.up if m.node is not None]

    assert story() == story()


def test_a_commit_index_that_nothing_else_tells_is_told_without_asking_for_an_answer() -> None:
    log = MemoryLog()
    node = make_leader(log)
    turn(node, log)
    for member in (2, 3):
        node.step(AppendEntriesResponse(member, 1, 1, True, 1))
    told = [message for message in turn(node, log).messages if isinstance(message, AppendEntries)]
    assert [(message.to, message.leader_commit, message.commit_only) for message in told] == [
        (2, 1, True),
        (3, 1, True),
    ]
    follower_log = log_with([Entry(1, 1, EntryKind.NORMAL, b"")], term=1)
    follower = make_node(follower_log, id=2)
    follower.step(told[0])
    ready = turn(follower, follower_log)
    assert (follower.commit_index, ready.messages_after) == (1, [])


def test_who_lacks_entries_says_so_even_where_no_answer_is_asked_for() -> None:
    node = make_node(id=2)
    node.step(AppendEntries(1, 2, 1, 7, 1, 7, (), True))
    (answer,) = node.ready().messages_after
    assert isinstance(answer, AppendEntriesResponse)
    assert (answer.success, answer.index) == (False, 7)
