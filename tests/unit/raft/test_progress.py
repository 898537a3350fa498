"""A follower's progress: its three states, and every way between them."""

from __future__ import annotations

import pytest

from raykeeper.raft import Configuration, SnapshotMeta
from raykeeper.raft.progress import Inflights, Progress, ProgressState

PROBE, REPLICATE, SNAPSHOT = ProgressState.PROBE, ProgressState.REPLICATE, ProgressState.SNAPSHOT
IMAGE = SnapshotMeta(index=20, term=1, configuration=Configuration(), id="image", size=100)


def probing(match: int = 0, next_index: int = 10) -> Progress:
    progress = Progress(next_index, Inflights(3, 100))
    progress.match_index = match
    return progress


def replicating(match: int = 9) -> Progress:
    progress = probing(0, match + 1)
    assert progress.on_success(match, 1)
    return progress


def receiving() -> Progress:
    progress = probing()
    progress.begin_snapshot(IMAGE)
    return progress


@pytest.mark.parametrize(
    ("sizes", "full", "freed", "left"),
    [
        ([], False, 0, 0),
        ([10], False, 0, 1),
        ([10, 10, 10], True, 0, 3),
        ([10, 10, 10], False, 1, 2),
        ([10, 10, 10], False, 9, 0),
        ([100], True, 0, 1),
        ([99], False, 0, 1),
        ([60, 60], True, 0, 2),
        ([60, 60], False, 1, 1),
    ],
)
def test_inflights(sizes: list[int], full: bool, freed: int, left: int) -> None:
    window = Inflights(max_messages=3, max_bytes=100)
    for index, size in enumerate(sizes, 1):
        window.add(index, size)
    window.free_to(freed)
    assert (window.full, len(window._window)) == (full, left)


def test_inflights_clear() -> None:
    window = Inflights(1, 100)
    window.add(1, 100)
    window.clear()
    assert not window.full
    assert len(window._window) == 0


@pytest.mark.parametrize(
    ("progress", "index", "state", "news", "match", "next_index"),
    [
        (probing(), 9, REPLICATE, True, 9, 10),
        (probing(), 12, REPLICATE, True, 12, 13),
        (probing(match=5), 5, REPLICATE, True, 5, 6),
        (probing(match=5), 3, PROBE, False, 5, 10),
        (replicating(), 10, REPLICATE, True, 10, 11),
        (replicating(), 9, REPLICATE, False, 9, 10),
        (replicating(), 4, REPLICATE, False, 9, 10),
        (receiving(), 3, SNAPSHOT, True, 3, 10),
        (receiving(), 14, REPLICATE, True, 14, 15),
    ],
)
def test_success(progress: Progress, index: int, state: ProgressState, news: bool, match: int, next_index: int) -> None:
    assert progress.on_success(index, first_index=15) is news
    assert (progress.state, progress.match_index, progress.next_index) == (state, match, next_index)


@pytest.mark.parametrize(
    ("progress", "rejected", "hint", "state", "news", "next_index"),
    [
        (probing(), 9, 8, PROBE, True, 9),
        (probing(), 9, 3, PROBE, True, 4),
        (probing(), 9, 99, PROBE, True, 9),
        (probing(), 9, 0, PROBE, True, 1),
        (probing(match=5), 9, 2, PROBE, True, 6),
        (probing(), 7, 3, PROBE, False, 10),
        (probing(), -1, 0, PROBE, False, 10),
        (replicating(), 9, 3, REPLICATE, False, 10),
        (replicating(), 12, 3, PROBE, True, 10),
        (receiving(), 9, 3, SNAPSHOT, False, 10),
    ],
)
def test_reject(
    progress: Progress, rejected: int, hint: int, state: ProgressState, news: bool, next_index: int
) -> None:
    assert progress.on_reject(rejected, hint) is news
    assert (progress.state, progress.next_index) == (state, next_index)
    assert progress.match_index < progress.next_index


def test_a_probe_waits_for_its_answer() -> None:
    progress = probing()
    assert not progress.paused
    progress.on_sent(5, 50, commit=3)
    assert progress.paused
    assert progress.next_index == 10
    assert progress.sent_commit == 3
    progress.on_reject(9, 4)
    assert not progress.paused


def test_a_probe_is_repeated_at_the_first_sign_of_life_after_a_heartbeat() -> None:
    progress = probing()
    progress.on_sent(0, 0, 0)
    progress.on_heartbeat_response(1)
    assert progress.paused
    progress.on_heartbeat_sent(2, 0, last_index=20, periodic=False)
    progress.on_heartbeat_response(2)
    assert progress.paused
    progress.on_heartbeat_sent(3, 0, last_index=20, periodic=True)
    progress.on_heartbeat_response(3)
    assert not progress.paused


def test_replication_streams_until_the_window_is_full() -> None:
    progress = replicating()
    for expected in (12, 14, 16):
        assert not progress.paused
        progress.on_sent(2, 20, commit=0)
        assert progress.next_index == expected
    assert progress.paused
    progress.on_success(11, 1)
    assert not progress.paused
    assert len(progress._inflights._window) == 2
    progress.on_reject(13, 11)
    assert (progress.state, progress.next_index, len(progress._inflights._window)) == (PROBE, 12, 0)


def test_an_empty_append_takes_no_room_in_the_window() -> None:
    progress = replicating()
    progress.on_sent(0, 0, commit=8)
    assert (len(progress._inflights._window), progress.next_index, progress.sent_commit) == (0, 10, 8)


def test_unreachable_stops_the_stream() -> None:
    progress = replicating()
    progress.on_sent(5, 50, 0)
    progress.on_unreachable()
    assert (progress.state, progress.next_index) == (PROBE, 10)
    progress = receiving()
    progress.on_unreachable()
    assert progress.state is SNAPSHOT


def test_a_follower_that_lacks_entries_and_does_not_move_is_stalled() -> None:
    progress = replicating()
    progress.on_heartbeat_sent(1, 0, last_index=12, periodic=True)
    assert not progress.stalled, "it has moved since the last heartbeat"
    progress.on_heartbeat_sent(2, 0, last_index=12, periodic=True)
    assert progress.stalled
    progress.on_success(10, 1)
    assert not progress.stalled
    progress.on_heartbeat_sent(3, 0, last_index=12, periodic=True)
    progress.on_success(12, 1)
    progress.on_heartbeat_sent(4, 0, last_index=12, periodic=True)
    progress.on_heartbeat_sent(5, 0, last_index=12, periodic=True)
    assert not progress.stalled, "it lacks nothing"


def test_what_a_follower_knows_to_be_committed_shows_in_its_answer_to_the_last_heartbeat() -> None:
    progress = replicating()
    progress.on_heartbeat_sent(1, 5, 9, periodic=True)
    progress.on_heartbeat_sent(2, 7, 9, periodic=True)
    progress.on_heartbeat_response(1)
    assert (progress.acked_round, progress.known_commit) == (1, 0)
    progress.on_heartbeat_response(2)
    assert (progress.acked_round, progress.known_commit) == (2, 7)
    progress.on_heartbeat_response(1)
    assert progress.acked_round == 2


@pytest.mark.parametrize(
    ("offset", "expected_offset", "in_flight"),
    [(0, 0, True), (40, 40, False), (100, 100, True), (101, 0, True), (-1, 0, True)],
)
def test_the_receiver_says_where_to_go_on(offset: int, expected_offset: int, in_flight: bool) -> None:
    progress = receiving()
    progress.on_chunk_sent()
    progress.on_chunk_response(offset)
    assert (progress.snapshot_offset, progress.chunk_in_flight) == (expected_offset, in_flight)


def test_a_receiver_that_lost_chunks_starts_again() -> None:
    progress = receiving()
    progress.on_chunk_sent()
    progress.on_chunk_response(40)
    progress.on_chunk_sent()
    progress.on_chunk_response(0)
    assert (progress.snapshot_offset, progress.chunk_in_flight) == (0, False)


def test_a_snapshot_ends_installed_or_abandoned() -> None:
    progress = receiving()
    assert progress.paused
    progress.on_installed(20)
    assert (progress.state, progress.match_index, progress.next_index) == (REPLICATE, 20, 21)
    assert progress.snapshot is None
    progress = receiving()
    progress.abandon_snapshot()
    assert (progress.state, progress.next_index, progress.paused) == (PROBE, 1, True)
