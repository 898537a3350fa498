"""Torn or rotten: every state that a loss of power can leave of the Raft log's file, against every kind of rot.

A disk writes sectors whole, in any order; what is not synced may be there, or not, or as it was at an earlier moment,
and the file may be shorter. None of this is damage, and nothing that was synced is lost by it. One flipped bit in what
was synced is damage, wherever it is.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from raykeeper.errors import DataCorrupted
from raykeeper.raft.messages import Entry, EntryKind, HardState
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.engine.rocks_wal import _read_records, _Reader, check_chain, drop_torn_tail, write_ahead_logs
from raykeeper.store.log.raft_log import RaftLog

SECTOR = 512
CACHE = 1 << 20


class Written:
    """A log's file: where each record ends in it, and up to where it was synced."""

    def __init__(self, folder: Path, rng: random.Random, *, unsynced: bool) -> None:
        path = folder / "original"
        log = RaftLog.create(RocksDisk(), str(path), cache_bytes=CACHE)
        (wal,) = map(Path, write_ahead_logs(str(path)))
        self.ends = [wal.stat().st_size]
        synced_records = rng.randrange(1, 6)
        for index in range(1, synced_records + (rng.randrange(1, 5) if unsynced else 0) + 1):
            sync = index <= synced_records
            log.append([Entry(index, 256, EntryKind.NORMAL, _data(rng))], HardState(256, 1, index - 1), sync=sync)
            self.ends.append(wal.stat().st_size)
        self.synced = self.ends[synced_records]
        left = folder / "left"
        shutil.copytree(path, left)
        log.close()
        self.path = left
        self.name = wal.name
        self.data = (left / wal.name).read_bytes()

    def after_power_loss(self, rng: random.Random) -> bytes:
        """What a disk may hold: of what was not synced any sectors, each as of any moment, in a file of any length."""
        data = bytearray(self.data)
        moments = [end for end in self.ends if end >= self.synced]
        lost = rng.choice((0.1, 0.5, 0.9))
        for start in range(self.synced - self.synced % SECTOR, len(data), SECTOR):
            until = rng.choice(moments) if rng.random() < 0.3 else self.synced if rng.random() < lost else len(data)
            stop = min(start + SECTOR, len(data))
            if until < stop:
                first = max(start, until)
                data[first:stop] = bytes(stop - first)
        if rng.random() < 0.5:
            length = rng.choice((rng.randrange(self.synced, len(data) + 1), rng.choice(moments)))
            if rng.random() < 0.5:
                del data[length:]
                return bytes(data)
            # What a file is longer than what was written is blank from a sector on, or from where a write began.
            if length not in moments:
                length = max(self.synced, length - length % SECTOR)
            data[length:] = bytes(len(data) - length)
        if rng.random() < 0.2:
            data += bytes(rng.randrange(3 * SECTOR))
        return bytes(data)

    def settled(self, data: bytes) -> bytes:
        """What is left of the file once it was looked at. Raises as ``drop_torn_tail``."""
        wal = self.path / self.name
        wal.write_bytes(data)
        if not check_chain(str(self.path)) or not _read_records(_Reader(data, verify=True), 0).whole:
            drop_torn_tail(str(self.path))
        return wal.read_bytes()


def _data(rng: random.Random) -> bytes:
    size = rng.choice((0, 5, 60, 480, 700, 3000)) if rng.random() < 0.93 else rng.choice((33_000, 70_000))
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(size)
    if kind == 1:  # numbers, of which many bytes are zeros
        return b"".join(rng.randrange(200).to_bytes(8, "big") for _ in range(size // 8))
    if kind == 2:
        return rng.randbytes(size // 2) + bytes(size // 2)
    return rng.randbytes(size)


@pytest.mark.parametrize("seed", range(12))
def test_no_loss_of_power_is_damage_and_none_takes_what_was_synced(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    written = Written(tmp_path, rng, unsynced=True)
    for _ in range(40):
        data = written.after_power_loss(rng)
        left = written.settled(data)
        assert left[: written.synced] == written.data[: written.synced]
        rest = left.rstrip(b"\0")
        kept = max(end for end in written.ends if end <= len(rest))
        assert rest == written.data[:kept], "what is kept is a beginning of what was written, whole records"


@pytest.mark.parametrize("seed", range(12))
def test_a_file_that_ends_on_any_byte_is_torn(tmp_path: Path, seed: int) -> None:
    rng = random.Random(1000 + seed)
    written = Written(tmp_path, rng, unsynced=True)
    length = len(written.data) - written.synced
    ends = range(length) if length < 200 else [*range(40), *rng.sample(range(length), 30), *range(length - 40, length)]
    for more in ends:
        left = written.settled(written.data[: written.synced + more])
        assert left in [written.data[:end] for end in written.ends]
        assert len(left) >= written.synced


@pytest.mark.parametrize("seed", range(12))
def test_any_flipped_bit_in_what_was_synced_is_damage(tmp_path: Path, seed: int) -> None:
    """In the last record above all; blank sectors may follow, which the file system had added."""
    rng = random.Random(2000 + seed)
    written = Written(tmp_path, rng, unsynced=False)
    start, end = written.ends[-2], written.ends[-1]
    positions = [*range(start, min(end, start + 40)), *range(max(start, end - 40), end)]
    positions += [rng.randrange(start, end) for _ in range(20)] + [rng.randrange(end) for _ in range(10)]
    for position in positions:
        data = bytearray(written.data)
        data[position] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            data += bytes(rng.randrange(3 * SECTOR))
        with pytest.raises(DataCorrupted):
            written.settled(bytes(data))


@pytest.mark.parametrize("seed", range(4))
def test_any_byte_that_is_another_is_damage(tmp_path: Path, seed: int) -> None:
    """All bits of it at once, or gone to zero with a few before it: no part of a sector is ever blank but all of it."""
    rng = random.Random(5000 + seed)
    written = Written(tmp_path, rng, unsynced=False)
    start, end = written.ends[-2], written.ends[-1]
    for position in [*range(start, min(end, start + 8)), *range(max(start, end - 20), end)]:
        for few in (0, 1, 4):
            data = bytearray(written.data)
            if few:
                first = max(start, position + 1 - few)
                data[first : position + 1] = bytes(position + 1 - first)
                sector = max(start, position - position % SECTOR)
                if bytes(data) == written.data or not any(data[sector : min(end, sector + SECTOR)]):
                    continue  # nothing has changed, or all that was written to a sector is blank
            else:
                data[position] ^= 0xFF
                if end % SECTOR == 1 and position == end - 1:
                    continue
            with pytest.raises(DataCorrupted):
                written.settled(bytes(data))


@pytest.mark.parametrize("seed", range(8))
def test_garbage_in_what_was_synced_is_damage(tmp_path: Path, seed: int) -> None:
    """Many bits at once, up to whole sectors, header and seal among them."""
    rng = random.Random(3000 + seed)
    written = Written(tmp_path, rng, unsynced=False)
    start, end = written.ends[-2], written.ends[-1]
    for _ in range(30):
        data = bytearray(written.data)
        first = rng.randrange(start, end)
        last = min(end, first + rng.choice((8, 60, SECTOR)))
        data[first:last] = bytes(rng.randrange(1, 256) for _ in range(first, last))
        if bytes(data) == written.data:
            continue
        with pytest.raises(DataCorrupted):
            written.settled(bytes(data))


@pytest.mark.parametrize("seed", range(8))
def test_what_went_blank_after_it_was_synced_is_damage_if_the_log_went_on(tmp_path: Path, seed: int) -> None:
    rng = random.Random(4000 + seed)
    written = Written(tmp_path, rng, unsynced=False)
    if len(written.ends) < 4:
        return
    first = rng.randrange(written.ends[0], written.ends[-3])
    data = bytearray(written.data)
    last = min(first - first % SECTOR + SECTOR, written.ends[-2])
    data[first:last] = bytes(last - first)
    if bytes(data) != written.data:
        with pytest.raises(DataCorrupted):
            written.settled(bytes(data))


@pytest.mark.parametrize("data", [b"", bytes(5000), b"\1" * 5000 + bytes(5000), bytes(range(256)) * 20 + bytes(99)])
def test_what_is_stored_is_what_was_given(tmp_path: Path, data: bytes) -> None:
    disk = RocksDisk()
    log = RaftLog.create(disk, str(tmp_path / "log"), cache_bytes=CACHE)
    log.append([Entry(1, 1, EntryKind.NORMAL, data)], HardState(1, 1, 0), sync=True)
    log.close()
    log = RaftLog.open(disk, str(tmp_path / "log"), cache_bytes=1024)
    assert log.entries(1, 2, 1 << 20) == [Entry(1, 1, EntryKind.NORMAL, data)]
    log.close()
