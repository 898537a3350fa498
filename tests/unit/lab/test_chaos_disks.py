"""A campaign that damages a log must not make it look like a loss of power: that would take acknowledged entries."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from chaos.disks import _inside, flip
from chaos.field import NotNow
from lab.segment_files import last_segment
from raykeeper.errors import DataCorrupted
from raykeeper.raft.messages import Entry, EntryKind, HardState
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.log.raft_log import RaftLog


def written(path: Path, entries: int) -> Path:
    """The segment that a log of this many entries is written to."""
    log = RaftLog.create(RocksDisk(), str(path), cache_bytes=1000)
    for index in range(1, entries + 1):
        data = random.Random(index).randbytes(60_000 if index % 7 == 0 else 200)
        log.append([Entry(index, 1, EntryKind.NORMAL, data)], HardState(1, 1, index - 1), sync=True)
    log.close()
    return last_segment(path)


def test_a_flipped_bit_is_always_damage(tmp_path: Path) -> None:
    log = written(tmp_path / "log", 30)
    whole = log.read_bytes()
    for seed in range(8):
        rng = random.Random(seed)
        flip(log, _inside(str(log), rng), rng.randrange(8))
        assert log.read_bytes() != whole
        shutil.copytree(tmp_path / "log", tmp_path / f"{seed}")
        with pytest.raises(DataCorrupted):
            RaftLog.open(RocksDisk(), str(tmp_path / f"{seed}"), cache_bytes=1000)
        log.write_bytes(whole)
    again = RaftLog.open(RocksDisk(), str(tmp_path / "log"), cache_bytes=1000)
    assert again.last_index() == 30
    again.close()


def test_an_empty_log_is_spared(tmp_path: Path) -> None:
    log = tmp_path / "0000000001.wal"
    log.write_bytes(bytes(4096))
    with pytest.raises(NotNow):
        _inside(str(log), random.Random(1))
