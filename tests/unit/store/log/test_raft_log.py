"""The Raft log against a list: whatever is appended, trimmed, reset and reopened, both say the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raykeeper.errors import DataCorrupted
from raykeeper.limits import LOG_FREE_SEGMENTS
from raykeeper.raft.log import EntryCompacted, EntryUnavailable
from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState
from raykeeper.store.engine.interface import Disk
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.log.log_record import LogBase, LogNote
from raykeeper.store.log.raft_log import RaftLog
from simulation.disk import SimDisk

CACHE = 500
"""Bytes: a dozen entries, so that reads come from memory, from disk, and from both sides of the edge."""
SEGMENT = 4096


def entry(index: int, term: int, size: int = 5) -> Entry:
    return Entry(index, term, EntryKind.NORMAL, b"%d" % index * size)


class Twin:
    """A log, and a list that does the same."""

    def __init__(self, disk: Disk, path: str) -> None:
        self.disk, self.path = disk, path
        self.log = RaftLog.create(disk, path, cache_bytes=CACHE, segment_bytes=SEGMENT)
        self.entries: list[Entry] = []
        self.base = (0, 0)
        self.hard = HardState()

    @property
    def last(self) -> int:
        return self.base[0] + len(self.entries)

    def append(self, overwrite: int, sizes: list[int], new_term: bool, sync: bool) -> None:
        first = max(self.last - overwrite, self.hard.commit, self.base[0]) + 1
        term = self.hard.term + new_term
        entries = [entry(first + n, term, size) for n, size in enumerate(sizes)] if term else []
        hard = HardState(term, 1, self.hard.commit) if new_term else None
        self.log.append(entries, hard, sync=sync)
        if entries:
            self.entries = self.entries[: first - self.base[0] - 1] + entries
        self.hard = hard or self.hard

    def commit(self, share: float) -> None:
        self.hard = HardState(self.hard.term, self.hard.vote, max(self.hard.commit, int(self.last * share)))
        self.log.append([], self.hard, sync=False)

    def trim(self, share: float) -> None:
        index = int(self.hard.commit * share)
        if index > self.base[0]:
            term = self.entries[index - self.base[0] - 1].term
            self.entries = self.entries[index - self.base[0] :]
            self.base = (index, term)
        self.log.trim(index)

    def reset(self, ahead: int) -> None:
        self.base = (self.last + ahead - 3 if self.last + ahead > 3 else self.last, self.hard.term)
        self.entries = []
        self.hard = HardState(self.hard.term, self.hard.vote, max(self.hard.commit, self.base[0]))
        self.base = (max(self.base[0], self.hard.commit), self.base[1])
        self.log.reset(*self.base)

    def reopen(self) -> None:
        self.log.close()
        self.log = RaftLog.open(self.disk, self.path, cache_bytes=CACHE, segment_bytes=SEGMENT)

    def compare(self) -> None:
        log = self.log
        assert (log.first_index(), log.last_index(), log.hard_state) == (self.base[0] + 1, self.last, self.hard)
        assert [log.term(i) for i in range(self.base[0], self.last + 1)] == [
            self.base[1],
            *(e.term for e in self.entries),
        ]
        if self.entries:
            assert log.entries(self.base[0] + 1, self.last + 1, 1 << 30) == self.entries
        for low in range(self.base[0] + 1, self.last + 1, 3):
            found = log.entries(low, self.last + 1, 300)
            start = low - self.base[0] - 1
            assert found == self.entries[start : start + len(found)]
            assert len(found) == 1 or sum(len(e.data) for e in found) <= 300
        with pytest.raises(EntryUnavailable):
            log.term(self.last + 1)
        with pytest.raises(EntryUnavailable):
            log.entries(self.last + 1, self.last + 2, 1)
        with pytest.raises(EntryCompacted):
            log.entries(self.base[0], self.last + 1, 1)
        if self.base[0]:
            with pytest.raises(EntryCompacted):
                log.term(self.base[0] - 1)


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("append"), st.integers(0, 6), st.lists(st.integers(0, 60), max_size=8), st.booleans(), st.booleans()
        ),
        st.tuples(
            st.just("append"), st.just(0), st.lists(st.just(5), min_size=3, max_size=8), st.just(True), st.just(True)
        ),
        st.tuples(st.just("commit"), st.floats(0, 1)),
        st.tuples(st.just("trim"), st.floats(0, 1)),
        st.tuples(st.just("reset"), st.integers(0, 8)),
        st.tuples(st.just("reopen")),
    ),
    max_size=20,
)


def follow(twin: Twin, steps: list[Any]) -> None:
    for step, *arguments in steps:
        getattr(twin, step)(*arguments)
        twin.compare()
    twin.reopen()
    twin.compare()
    twin.log.close()


@settings(max_examples=500)
@given(steps=STEPS)
def test_against_a_list_in_memory(steps: list[Any]) -> None:
    follow(Twin(SimDisk(), "log"), steps)


@settings(max_examples=40)
@given(steps=STEPS)
def test_against_a_list_on_real_files(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    follow(Twin(RocksDisk(), str(tmp_path_factory.mktemp("log") / "log")), steps)


@settings(max_examples=200)
@given(steps=STEPS, seed=st.integers(0, 1 << 30), unsynced=st.integers(0, 3))
def test_what_was_synced_outlives_a_loss_of_power(steps: list[Any], seed: int, unsynced: int) -> None:
    disk = SimDisk()
    twin = Twin(disk, "log")
    for step, *arguments in steps:
        getattr(twin, step)(*arguments)
    twin.log.append([], None, sync=True)
    synced, hard = list(twin.entries), twin.hard
    if twin.hard.term:
        for _ in range(unsynced):
            twin.append(0, [5, 5], False, False)
    disk.lose_power(random.Random(seed))
    disk.restart()
    log = RaftLog.open(disk, "log", cache_bytes=CACHE, segment_bytes=SEGMENT)
    assert log.hard_state == hard
    assert log.last_index() >= twin.base[0] + len(synced)
    if twin.entries[: log.last_index() - twin.base[0]]:
        found = log.entries(log.first_index(), log.last_index() + 1, 1 << 30)
        assert found == twin.entries[: len(found)]


def test_a_new_log_is_empty_until_something_is_promised(disk: RocksDisk, tmp_path: Path) -> None:
    log = RaftLog.create(disk, str(tmp_path / "log"), cache_bytes=CACHE)
    assert log.empty
    log.append([], HardState(1, 0, 0), sync=True)
    assert not log.empty
    log.close()
    other = RaftLog.create(disk, str(tmp_path / "other"), cache_bytes=CACHE)
    other.reset(7, 2)
    assert not other.empty
    assert other.hard_state == HardState(2, 0, 7)
    other.close()


def test_a_commit_index_that_comes_alone_goes_with_the_next_write() -> None:
    disk = SimDisk()
    log = RaftLog.create(disk, "log", cache_bytes=CACHE)
    log.append([entry(1, 1, 5)], HardState(1, 1, 0), sync=True)
    written = disk.operations
    log.append([], HardState(1, 1, 1), sync=False)
    assert disk.operations == written, "a hint costs no write"
    assert log.hard_state == HardState(1, 1, 1)
    log.append([entry(2, 1, 5)], None, sync=True)
    disk.lose_power(random.Random(1))
    disk.restart()
    assert RaftLog.open(disk, "log", cache_bytes=CACHE).hard_state == HardState(1, 1, 1)


def test_a_commit_index_that_comes_alone_is_on_disk_before_what_asks_for_a_sync() -> None:
    disk = SimDisk()
    log = RaftLog.create(disk, "log", cache_bytes=CACHE)
    log.append([entry(1, 1, 5)], HardState(1, 1, 0), sync=True)
    log.append([], HardState(1, 1, 1), sync=False)
    log.append([], None, sync=True)
    disk.lose_power(random.Random(1))
    disk.restart()
    assert RaftLog.open(disk, "log", cache_bytes=CACHE).hard_state == HardState(1, 1, 1)


def test_a_trim_gives_space_back(disk: RocksDisk, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RaftLog.create(disk, str(path), cache_bytes=1 << 20, segment_bytes=SEGMENT)
    for n in range(1, 101):
        log.append([entry(n, 1, 200)], HardState(1, 1, n), sync=True)
    size = log.size_bytes
    log.trim(90, Configuration((1, 2)))
    assert (log.first_index(), log.last_index()) == (91, 100)
    assert log.size_bytes < size / 9
    log.close()
    assert len(list(path.iterdir())) < 10 + LOG_FREE_SEGMENTS
    log = RaftLog.open(disk, str(path), cache_bytes=1 << 20)
    assert log.first_index() == 91
    assert log.configuration == Configuration((1, 2))
    log.close()


def test_what_must_not_be_written(disk: RocksDisk, tmp_path: Path) -> None:
    log = RaftLog.create(disk, str(tmp_path / "log"), cache_bytes=CACHE)
    log.append([entry(1, 1), entry(2, 1)], HardState(1, 1, 1), sync=True)
    with pytest.raises(ValueError, match="do not continue"):
        log.append([entry(4, 1)], None, sync=True)
    with pytest.raises(ValueError, match="committed"):
        log.append([entry(1, 1)], None, sync=True)
    with pytest.raises(ValueError, match="cannot trim"):
        log.trim(3)
    log.close()


@pytest.mark.parametrize(
    ("entries", "note"),
    [
        ([entry(2, 1)], LogNote(HardState(1, 1, 7))),
        ([entry(2, 5)], None),
        ([], LogNote(base=LogBase(9, 1))),
        ([], LogNote(base=LogBase(1, 2))),
        ([entry(5, 1)], None),
    ],
)
def test_content_that_cannot_be_is_refused(entries: list[Entry], note: LogNote | None) -> None:
    disk = SimDisk()
    log = RaftLog.create(disk, "log", cache_bytes=CACHE)
    log.append([entry(1, 1)], HardState(1, 1, 1), sync=True)
    log._store.append(entries, note)
    log.close()
    with pytest.raises(DataCorrupted):
        RaftLog.open(disk, "log", cache_bytes=CACHE)


@pytest.mark.parametrize(
    ("entries", "hard"),
    [
        ([], HardState(1, 1, 1)),
        ([], HardState(2, 2, 1)),
        ([], HardState(2, 0, 1)),
        ([], HardState(2, 1, 0)),
        ([], HardState(2, 1, 3)),
        ([entry(3, 1)], None),
        ([entry(3, 3)], None),
        ([entry(3, 2), entry(5, 2)], None),
        ([entry(3, 3), entry(4, 2)], HardState(3, 0, 1)),
    ],
    ids=[
        "an older term",
        "another vote",
        "no vote any more",
        "a commit index that falls",
        "a commit index past the end",
        "a term that falls from one write to the next",
        "a term above the hard state's",
        "a gap",
        "a term that falls",
    ],
)
def test_what_was_promised_is_never_taken_back(entries: list[Entry], hard: HardState | None) -> None:
    disk = SimDisk()
    log = RaftLog.create(disk, "log", cache_bytes=CACHE)
    log.append([entry(1, 1), entry(2, 2)], HardState(2, 1, 1), sync=True)
    with pytest.raises(ValueError):
        log.append(entries, hard, sync=True)
    log.append([entry(3, 2)], HardState(2, 1, 3), sync=True)
    log.append([], HardState(3, 2, 3), sync=True)
    log.close()
    log = RaftLog.open(disk, "log", cache_bytes=CACHE)
    assert (log.hard_state, log.last_index()) == (HardState(3, 2, 3), 3)
