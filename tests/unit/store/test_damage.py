"""Damaged files of a member: what was never written at the end of the Raft log is dropped, all else is refused; nothing
is lost silently. ``log/test_segments.py`` tries every place in the simulator; here are real files.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.segment_files import last_segment, tear, written_ranges
from raykeeper.errors import DataCorrupted
from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.log.raft_log import RaftLog
from raykeeper.store.state.machine import State

ENTRIES = 12
CACHE = 1 << 20
SEGMENT = 16 * 1024


def append(log: RaftLog, index: int) -> None:
    data = random.Random(index).randbytes(20_000 if index == 5 else 3000)
    log.append([Entry(index, 1, EntryKind.NORMAL, data)], HardState(1, 1, index - 1), sync=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log of several segments."""
    path = tmp_path / "log"
    log = RaftLog.create(RocksDisk(), str(path), cache_bytes=CACHE, segment_bytes=SEGMENT)
    for index in range(1, ENTRIES + 1):
        append(log, index)
    log.close()
    return path


def opened(path: Path) -> RaftLog:
    return RaftLog.open(RocksDisk(), str(path), cache_bytes=CACHE, segment_bytes=SEGMENT)


def last_of(path: Path) -> int:
    """Open a log, check every entry, and say where it ends; it must go on from there."""
    log = opened(path)
    last = log.last_index()
    for entry in log.entries(1, last + 1, 1 << 30):
        assert entry.data == random.Random(entry.index).randbytes(len(entry.data))
    append(log, last + 1)
    log.close()
    log = opened(path)
    assert log.last_index() == last + 1
    log.close()
    return last


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_an_undamaged_log(path: Path) -> None:
    assert last_of(path) == ENTRIES


def test_a_torn_last_record_is_dropped(path: Path) -> None:
    tear(path)
    assert last_of(path) == ENTRIES


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_in_the_last_frame_is_damage(path: Path, seed: int) -> None:
    rng, segment = random.Random(seed), last_segment(path)
    flip(segment, rng.randrange(*written_ranges(segment.read_bytes())[-1]), rng.randrange(8))
    with pytest.raises(DataCorrupted):
        opened(path)


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_before_the_last_frame_is_damage(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    segment = rng.choice(sorted(path.glob("*.wal"))[:3])
    flip(segment, rng.randrange(*rng.choice(written_ranges(segment.read_bytes()))), rng.randrange(8))
    with pytest.raises(DataCorrupted):
        opened(path)


def without_a_segment(path: Path) -> None:
    sorted(path.glob("*.wal"))[1].unlink()


def shortened(path: Path) -> None:
    segment = last_segment(path)
    with segment.open("r+b") as file:
        file.truncate(written_ranges(segment.read_bytes())[-1][1] - 10)


def emptied(path: Path) -> None:
    for segment in path.glob("*.wal"):
        segment.write_bytes(bytes(SEGMENT))


@pytest.mark.parametrize("damage", [without_a_segment, shortened, emptied, shutil.rmtree])
def test_other_damage_is_refused(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    with pytest.raises(DataCorrupted):
        opened(path)


def test_what_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataCorrupted, match="no log"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataCorrupted, match="no database"):
        State.open(RocksDisk(), str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


CRASH = """
import os, signal, sys
from lab.store_model import Hand
from raykeeper.raft.messages import Configuration
from raykeeper.schema.operations import Delete, KeyRange, Put, Txn
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.machine import State
hand = Hand(State.create(RocksDisk(), sys.argv[1], Configuration(voters=(1,))))
print(hand.state.content_hash())
for n in range(60):
    hand.do(
        Txn((), (Put(b"a%d" % (n % 5), b"x" * 2000), Put(b"b%d" % n, b"y"), Delete(KeyRange(b"b%d" % (n - 3)))))
    )
    print(hand.state.content_hash())
    if n == 30:
        hand.state.flush()
        print("flushed at", hand.state.applied_index)
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_crash_takes_the_newest_entries_of_the_state_but_no_half_of_one(tmp_path: Path) -> None:
    """The state has no write-ahead log: the Raft log replays it. What is left is some entry's boundary."""
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = done.stdout.split("\n")
    (flushed,) = (int(line.split()[-1]) for line in lines if line.startswith("flushed"))
    hashes = [line for line in lines if not line.startswith("flushed")]
    state = State.open(RocksDisk(), str(tmp_path / "state"))
    assert flushed <= state.applied_index < 60
    assert state.content_hash() == hashes[state.applied_index - 1]
    state.close()


def test_an_unknown_format_of_the_state_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    state = State.create(RocksDisk(), path, Configuration())
    state._engine.write([("meta", b"format", b"\x63")])
    state.close()
    with pytest.raises(DataCorrupted, match="format 99"):
        State.open(RocksDisk(), path)
