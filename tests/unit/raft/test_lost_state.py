"""A node that has lost its state machine but not its log: it keeps its promises, and gets a snapshot and entries."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lab.raft.cluster import MemoryLog
from raykeeper.raft import Configuration, Entry, EntryKind, HardState, Node, NodeConfig, ProposalRefused
from raykeeper.raft.core import STATELESS_TIMEOUT_FACTOR
from raykeeper.raft.messages import (
    AppendEntries,
    AppendEntriesResponse,
    ChangeKind,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    InstallSnapshotResponse,
    MemberChange,
    RequestVote,
    RequestVoteResponse,
    SnapshotMeta,
)
from raykeeper.raft.progress import ProgressState

VOTERS = Configuration(voters=(1, 2, 3))


def entries(low: int, high: int, term: int = 2) -> tuple[Entry, ...]:
    return tuple(Entry(index, term, EntryKind.NORMAL, b"x") for index in range(low, high + 1))


def make(log: MemoryLog, *, lost: bool = False, id: int = 1, voters: Configuration = VOTERS) -> Node:
    config = NodeConfig(
        id=id,
        max_append_bytes=1000,
        max_append_messages_in_flight=8,
        max_append_bytes_in_flight=10_000,
        max_uncommitted_bytes=10_000,
        max_apply_bytes=1000,
        snapshot_chunk_bytes=10,
    )
    return Node(
        config,
        log,
        hard_state=log.hard_state,
        configuration=voters,
        applied=log.first_index() - 1,
        rng=random.Random(1),
        needs_snapshot=lost,
    )


def trimmed_log(*, trimmed: int, last: int, commit: int) -> MemoryLog:
    log = MemoryLog()
    log.append(entries(1, last), HardState(2, 3, commit), sync=True)
    log.trim(trimmed)
    return log


def turn(node: Node, log: MemoryLog) -> Any:
    ready = node.ready()
    log.append(ready.entries, ready.hard_state, sync=ready.must_sync)
    node.advance(ready)
    return ready


def said(ready: Any, kind: type) -> list[Any]:
    return [message for message in (*ready.messages, *ready.messages_after) if type(message) is kind]


def meta(index: int, term: int = 2, size: int = 25) -> SnapshotMeta:
    return SnapshotMeta(index, term, VOTERS, f"image-{index}", size)


@pytest.fixture
def log() -> MemoryLog:
    return trimmed_log(trimmed=10, last=30, commit=20)


@pytest.fixture
def lost(log: MemoryLog) -> Node:
    node = make(log, lost=True)
    turn(node, log)  # configurations among what is committed
    return node


def test_it_votes_and_acknowledges_as_its_log_says(log: MemoryLog, lost: Node) -> None:
    lost.step(RequestVote(2, 1, 3, 29, 2))
    assert not said(turn(lost, log), RequestVoteResponse)[0].vote_granted, "its own log is longer"
    lost.step(RequestVote(3, 1, 4, 30, 2))
    assert said(turn(lost, log), RequestVoteResponse)[0].vote_granted
    lost.step(AppendEntries(3, 1, 4, 30, 2, 31, entries(31, 31, 4)))
    assert said(turn(lost, log), AppendEntriesResponse) == [AppendEntriesResponse(1, 3, 4, True, 31)]
    assert lost.commit_index == 31


def test_it_asks_for_a_snapshot_that_its_log_continues(log: MemoryLog, lost: Node) -> None:
    lost.step(Heartbeat(2, 1, 3, 20, 7))
    assert said(turn(lost, log), HeartbeatResponse) == [HeartbeatResponse(1, 2, 3, 7, 10)]
    lost.step(InstallSnapshot(2, 1, 3, meta(9), 0, b"x", False))
    assert said(turn(lost, log), InstallSnapshotResponse)[0].rejected
    lost.step(InstallSnapshot(2, 1, 3, meta(10), 0, b"x", False))
    assert turn(lost, log).chunk is not None


def test_a_snapshot_within_the_log_replaces_only_the_state(log: MemoryLog, lost: Node) -> None:
    lost.step(InstallSnapshot(2, 1, 3, meta(15), 0, b"x" * 25, True))
    turn(lost, log)
    assert lost.snapshot_is_needed(meta(15))
    assert lost.snapshot_keeps_log(meta(15))
    lost.snapshot_installed(meta(15), log_kept=True)
    ready = turn(lost, log)
    assert [entry.index for entry in ready.committed] == [16, 17, 18, 19, 20]
    assert said(ready, InstallSnapshotResponse)[0].installed
    assert (lost.last_index, lost.needs_snapshot) == (30, False)
    lost.step(Heartbeat(2, 1, 3, 20, 8))
    assert said(turn(lost, log), HeartbeatResponse)[0].snapshot_from == 0


def test_a_snapshot_beyond_the_log_replaces_it(log: MemoryLog, lost: Node) -> None:
    lost.step(InstallSnapshot(2, 1, 3, meta(40), 0, b"x" * 25, True))
    turn(lost, log)
    assert not lost.snapshot_keeps_log(meta(40))
    log.reset(40, 2)
    lost.snapshot_installed(meta(40))
    assert (lost.last_index, lost.applied_index, lost.needs_snapshot) == (40, 40, False)


def test_a_snapshot_within_the_log_but_of_another_term_replaces_it(log: MemoryLog, lost: Node) -> None:
    """Its uncommitted entries are a deposed leader's. Once the log begins after the snapshot, it says of the
    snapshot's last entry what it says of one that it holds."""
    lost.step(InstallSnapshot(2, 1, 3, meta(25, 3), 0, b"x" * 25, True))
    turn(lost, log)
    assert lost.snapshot_is_needed(meta(25, 3))
    assert not lost.snapshot_keeps_log(meta(25, 3))
    log.reset(25, 3)
    lost.snapshot_installed(meta(25, 3))
    turn(lost, log)
    assert (lost.last_index, lost.applied_index, lost.needs_snapshot) == (25, 25, False)
    lost.step(AppendEntries(2, 1, 3, 25, 3, 26, entries(26, 27, 3)))
    assert [entry.index for entry in turn(lost, log).committed] == [26]
    assert lost.last_index == 27


def test_it_campaigns_late() -> None:
    log = trimmed_log(trimmed=10, last=30, commit=20)
    node = make(log, lost=True)
    turn(node, log)
    for _ in range(STATELESS_TIMEOUT_FACTOR * 10 - 1):
        node.tick()
    turn(node, log)
    assert node.role == "follower"
    for _ in range(STATELESS_TIMEOUT_FACTOR * 10 + 1):
        node.tick()
    turn(node, log)
    assert node.role == "pre-candidate"


def leader_of(log: MemoryLog, *, lost: bool = False) -> Node:
    node = make(log, lost=lost)
    turn(node, log)
    node.campaign()
    turn(node, log)
    node.step(RequestVoteResponse(2, 1, 3, True, True))
    turn(node, log)
    node.step(RequestVoteResponse(2, 1, 3, True))
    turn(node, log)
    assert node.role == "leader"
    for follower in (2, 3):
        node.step(AppendEntriesResponse(follower, 1, 3, True, 31))
    turn(node, log)
    return node


def beat(node: Node, log: MemoryLog, wants: dict[int, int]) -> Any:
    """A heartbeat round, and what follows from the answers."""
    node.tick()
    rounds = said(turn(node, log), Heartbeat)
    for message in rounds:
        node.step(HeartbeatResponse(message.to, 1, 3, message.context, wants.get(message.to, 0)))
    return turn(node, log)


def test_the_leader_sends_a_snapshot_besides_entries() -> None:
    log = trimmed_log(trimmed=10, last=30, commit=30)
    node = leader_of(log)
    beat(node, log, {2: 15})
    assert log.snapshot_wanted, "there is none yet"
    log.offered, log.images = meta(25), {"image-25": b"y" * 25}
    chunks = said(beat(node, log, {2: 15}), InstallSnapshot)
    assert [(chunk.to, chunk.offset, len(chunk.data)) for chunk in chunks] == [(2, 0, 10)]
    node.propose([b"news"])
    assert {message.to for message in said(turn(node, log), AppendEntries)} == {2, 3}
    node.step(AppendEntriesResponse(2, 1, 3, True, 32))
    node.step(InstallSnapshotResponse(2, 1, 3, 25, "image-25", 10))
    assert [chunk.offset for chunk in said(turn(node, log), InstallSnapshot)] == [10]
    assert node.commit_index == 32, "its acknowledgements count"
    node.step(InstallSnapshotResponse(2, 1, 3, 32, "image-25", 25, True))
    turn(node, log)
    assert (node.progress[2].min_snapshot_index, node.progress[2].state) == (0, ProgressState.REPLICATE)
    assert all(progress.snapshot is None for progress in node.progress.values())


def test_a_snapshot_that_is_too_old_is_not_sent() -> None:
    log = trimmed_log(trimmed=10, last=30, commit=30)
    node = leader_of(log)
    log.offered, log.images = meta(14), {"image-14": b"y" * 25}
    assert not said(beat(node, log, {2: 15}), InstallSnapshot)


def test_no_leader_hands_over_to_it() -> None:
    log = trimmed_log(trimmed=10, last=30, commit=30)
    node = leader_of(log)
    beat(node, log, {2: 15})
    with pytest.raises(ProposalRefused, match="lost its state"):
        node.transfer_leadership(2)
    assert node.most_up_to_date_peer() == 3


def test_the_last_voter_with_a_state_does_not_leave() -> None:
    log = trimmed_log(trimmed=10, last=30, commit=30)
    node = leader_of(log)
    beat(node, log, {2: 15})
    alone = [MemberChange(ChangeKind.REMOVE, 1), MemberChange(ChangeKind.REMOVE, 3)]
    with pytest.raises(ProposalRefused, match="lost its state"):
        node.propose_change(alone)
    beat(node, log, {})
    node.propose_change(alone)


def test_a_leader_without_a_state_hands_over_to_one_that_has_answered() -> None:
    log = trimmed_log(trimmed=10, last=30, commit=30)
    node = leader_of(log, lost=True)
    assert not node.hand_over(), "nobody has been heard of yet"
    beat(node, log, {2: 12})
    assert node.hand_over()
    assert node.transfer_target == 3
