"""Damaged files: what was never written at the end of the Raft log is dropped, all else is refused; nothing is lost
silently.

Closing a database tidies it up. So the files that a crash leaves are copied while the database is open.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.store_model import Hand
from raykeeper.errors import DataCorrupted, Unavailable
from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState
from raykeeper.schema.operations import Delete, KeyRange, Put, Txn
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.engine.rocks_wal import _SECTOR as SECTOR
from raykeeper.store.engine.rocks_wal import _masked_crc32c, check_chain, write_ahead_logs
from raykeeper.store.log.raft_log import RaftLog
from raykeeper.store.state.machine import State

RECORDS = 12
CACHE = 1 << 20


def append(log: RaftLog, index: int, size: int = 3000) -> None:
    data = random.Random(index).randbytes(size)
    log.append([Entry(index, 1, EntryKind.NORMAL, data)], HardState(1, 1, index - 1), sync=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A closed log, and where each of its records ends: some cross blocks, the last does too."""
    path = tmp_path_factory.mktemp("original") / "log"
    log = RaftLog.create(RocksDisk(), str(path), cache_bytes=CACHE)
    (wal,) = map(Path, write_ahead_logs(str(path)))
    ends = [wal.stat().st_size]
    for index in range(1, RECORDS + 1):
        append(log, index, 40_000 if index in (5, RECORDS) else 3000)
        ends.append(wal.stat().st_size)
    return crash(log, path), ends


def crash(log: RaftLog, path: Path) -> Path:
    """What a crash now would leave."""
    left = path.with_name(path.name + "-left")
    shutil.copytree(path, left)
    log.close()
    return left


@pytest.fixture
def copy(original: tuple[Path, list[int]], tmp_path: Path) -> Path:
    shutil.copytree(original[0], tmp_path / "log")
    return tmp_path / "log"


def wal_of(path: Path) -> Path:
    return Path(write_ahead_logs(str(path))[-1])


def open_log(path: Path) -> int:
    """Open a log, check every entry, and say where it ends; it must go on from there."""
    disk = RocksDisk()
    log = RaftLog.open(disk, str(path), cache_bytes=CACHE)
    last = log.last_index()
    for entry in log.entries(1, last + 1, 1 << 30) if last else []:
        assert entry.data == random.Random(entry.index).randbytes(len(entry.data))
    append(log, last + 1)
    log.close()
    log = RaftLog.open(disk, str(path), cache_bytes=CACHE)
    assert log.last_index() == last + 1
    log.close()
    return last


def test_the_checksum() -> None:
    # 32 zeros: RFC 3720, B.4.
    crc = (_masked_crc32c(b"\0" * 32) - 0xA282EAD8) & 0xFFFFFFFF
    assert ((crc >> 17) | (crc << 15)) & 0xFFFFFFFF == 0x8A9136AA


def test_an_undamaged_log(copy: Path) -> None:
    assert open_log(copy) == RECORDS


@pytest.mark.parametrize("fill", [b"", b"\0"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.2, 0.5, 0.95, 0.9999])
def test_a_last_record_that_is_cut_short_is_dropped(
    copy: Path, original: tuple[Path, list[int]], part: float, fill: bytes
) -> None:
    ends = original[1]
    length = ends[-2] + int((ends[-1] - ends[-2]) * part)
    if fill:  # what was not written is blank by whole sectors
        length = max(ends[-2], length // SECTOR * SECTOR)
    wal = wal_of(copy)
    data = wal.read_bytes()
    wal.write_bytes(data[:length] + fill * (len(data) - length))
    assert open_log(copy) == RECORDS - 1


def test_a_last_record_with_a_hole_is_dropped(copy: Path, original: tuple[Path, list[int]]) -> None:
    """Pages of one write reach the disk in any order: the first may be missing and the last be there."""
    ends = original[1]
    wal = wal_of(copy)
    data = bytearray(wal.read_bytes())
    middle = ends[-2] + 10_000
    data[middle : middle + 4096] = bytes(4096)
    wal.write_bytes(data)
    assert open_log(copy) == RECORDS - 1


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_in_the_last_record_is_damage(copy: Path, original: tuple[Path, list[int]], seed: int) -> None:
    rng, ends = random.Random(seed), original[1]
    start, end = ends[-2], ends[-1]
    position = start + seed if seed < 7 else rng.randrange(start, end)  # the header's seven bytes among them
    flip(wal_of(copy), position, rng.randrange(8))
    with pytest.raises(DataCorrupted):
        open_log(copy)


@pytest.mark.parametrize("seed", range(24))
def test_a_flipped_bit_before_the_last_record_is_damage(
    copy: Path, original: tuple[Path, list[int]], seed: int
) -> None:
    rng, ends = random.Random(seed), original[1]
    record = rng.randrange(RECORDS)
    start = 0 if record == 0 else ends[record - 1]
    position = start + rng.randrange(7) if seed % 2 else rng.randrange(start, ends[record])
    before = wal_of(copy).read_bytes()
    flip(wal_of(copy), position, rng.randrange(8))
    assert wal_of(copy).read_bytes() != before
    with pytest.raises(DataCorrupted):
        open_log(copy)


BLOCK = 32 * 1024


def log_with_a_record_at_the_end_of_a_block(path: Path, left: int) -> tuple[RaftLog, int]:
    """A log whose last record but one begins ``left`` bytes before the end of a block; and where that one ends."""
    log = RaftLog.create(RocksDisk(), str(path), cache_bytes=CACHE)
    append(log, 1, 100)
    one = wal_of(path).stat().st_size
    append(log, 2, 100)
    overhead = wal_of(path).stat().st_size - one - 100
    room = BLOCK - wal_of(path).stat().st_size
    size = room - left - overhead
    append(log, 3, size)
    for spare in range(3, -4, -1):  # lengths are stored in one to three bytes
        if wal_of(path).stat().st_size == BLOCK - left:
            break
        log.close()
        shutil.rmtree(path)
        log = RaftLog.create(RocksDisk(), str(path), cache_bytes=CACHE)
        append(log, 1, 100)
        append(log, 2, 100)
        append(log, 3, size - spare)
    assert wal_of(path).stat().st_size == BLOCK - left
    append(log, 4, 100)
    end = wal_of(path).stat().st_size
    append(log, 5, 100)
    return log, end


@pytest.mark.parametrize("left", range(7, 21))
def test_a_record_that_begins_at_the_very_end_of_a_block_is_no_damage(tmp_path: Path, left: int) -> None:
    """The block then holds no more than the beginning of the record's head, or nothing of it."""
    log, _ = log_with_a_record_at_the_end_of_a_block(tmp_path / "log", left)
    path = crash(log, tmp_path / "log")
    assert check_chain(str(path))
    assert open_log(path) == 5


@pytest.mark.parametrize("left", range(7, 21))
def test_it_counts_as_intact_after_damage(tmp_path: Path, left: int) -> None:
    log, end = log_with_a_record_at_the_end_of_a_block(tmp_path / "log", left)
    path = crash(log, tmp_path / "log")
    with wal_of(path).open("r+b") as file:
        file.truncate(end + 5)  # after the damage, only the one at the end of the block is intact
    flip(wal_of(path), BLOCK - left - 1, 0)
    with pytest.raises(DataCorrupted):
        open_log(path)


def test_a_flipped_bit_in_the_record_before_a_small_last_one_is_damage(tmp_path: Path) -> None:
    """Both in one block: a bad length must not hide the intact record after it."""
    path = tmp_path / "log"
    log = RaftLog.create(RocksDisk(), str(path), cache_bytes=CACHE)
    ends = []
    for index in range(1, 6):
        append(log, index, 100)
        ends.append(wal_of(path).stat().st_size)
    path = crash(log, path)
    for offset in range(7):
        copy = tmp_path / f"copy{offset}"
        shutil.copytree(path, copy)
        flip(wal_of(copy), ends[2] + offset, 3)
        with pytest.raises(DataCorrupted):
            RaftLog.open(RocksDisk(), str(copy), cache_bytes=CACHE)


def hole(path: Path) -> None:
    wal = wal_of(path)
    data = bytearray(wal.read_bytes())
    data[32768 : 2 * 32768] = bytes(32768)
    wal.write_bytes(data)


def without_wal(path: Path) -> None:
    wal_of(path).unlink()


def without(name: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        (found,) = path.glob(name)
        found.unlink()

    return remove


def with_bad_manifest(path: Path) -> None:
    (manifest,) = path.glob("MANIFEST-*")
    flip(manifest, 20, 2)


@pytest.mark.parametrize(
    "damage", [hole, without_wal, without("CURRENT"), without("MANIFEST-*"), with_bad_manifest, shutil.rmtree]
)
def test_other_damage_is_refused(copy: Path, damage: Callable[[Path], None]) -> None:
    damage(copy)
    with pytest.raises(DataCorrupted):
        open_log(copy)


def test_a_missing_database_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataCorrupted, match="no database"):
        RaftLog.open(RocksDisk(), str(tmp_path / "nowhere"), cache_bytes=CACHE)
    with pytest.raises(DataCorrupted, match="no database"):
        State.open(RocksDisk(), str(tmp_path / "nowhere"))
    assert list(tmp_path.iterdir()) == []


def with_tables(tmp_path: Path) -> Path:
    """A log whose first entries are in a table file, with more in the write-ahead log."""
    path = tmp_path / "tables"
    log = RaftLog.create(RocksDisk(), str(path), cache_bytes=CACHE)
    for index in range(1, 9):
        append(log, index)
    log._engine.flush()
    for index in range(9, RECORDS + 1):
        append(log, index)
    return crash(log, path)


def test_a_log_over_several_files(tmp_path: Path) -> None:
    path = with_tables(tmp_path)
    assert list(path.glob("*.sst"))
    assert open_log(path) == RECORDS


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_table_is_refused(tmp_path: Path, seed: int) -> None:
    path = with_tables(tmp_path)
    table = max(path.glob("*.sst"), key=lambda file: file.stat().st_size)
    flip(table, random.Random(seed).randrange(table.stat().st_size // 2), seed)
    with pytest.raises(DataCorrupted):
        open_log(path)


def test_a_missing_log_between_others_is_refused(tmp_path: Path) -> None:
    """Column families are flushed one by one, so several write-ahead logs can be needed."""
    path = tmp_path / "log"
    log = RaftLog.create(RocksDisk(), str(path), cache_bytes=CACHE)
    for index in range(1, 10):
        append(log, index)
        if index % 3 == 0:  # begins a new write-ahead log; the family "meta" keeps the older ones needed
            log._engine._families["entries"].flush(True)  # type: ignore[attr-defined]
    path = crash(log, path)
    logs = write_ahead_logs(str(path))
    assert len(logs) >= 3
    Path(logs[1]).unlink()
    with pytest.raises(DataCorrupted):
        open_log(path)


@pytest.mark.parametrize("seed", range(8))
def test_the_state_may_lose_its_newest_entries_but_no_half_of_one(tmp_path: Path, seed: int) -> None:
    """The state is not synced: the log replays it. Whatever is left is some entry's boundary."""
    path = tmp_path / "state"
    hand = Hand(State.create(RocksDisk(), str(path), Configuration(voters=(1,))))
    hashes = [hand.state.content_hash()]
    for n in range(30):
        hand.do(
            Txn((), (Put(b"a%d" % (n % 5), b"x" * 2000), Put(b"b%d" % n, b"y"), Delete(KeyRange(b"b%d" % (n - 3)))))
        )
        hashes.append(hand.state.content_hash())
    path = Path(shutil.copytree(path, tmp_path / "left"))
    hand.state.close()
    rng = random.Random(seed)
    wal = wal_of(path)
    if seed % 2:
        flip(wal, rng.randrange(2000, wal.stat().st_size), 1)
    else:
        data = wal.read_bytes()
        wal.write_bytes(data[: rng.randrange(2000, len(data))])
    state = State.open(RocksDisk(), str(path))
    assert state.content_hash() == hashes[state.applied_index - 1]
    state.close()


def test_a_database_that_is_open_elsewhere_is_no_damage(copy: Path) -> None:
    log = RaftLog.open(RocksDisk(), str(copy), cache_bytes=CACHE)
    with pytest.raises(Unavailable, match="in use"):
        RaftLog.open(RocksDisk(), str(copy), cache_bytes=CACHE)
    log.close()


def test_an_unknown_format_of_the_state_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    state = State.create(RocksDisk(), path, Configuration())
    state._engine.write([("meta", b"format", b"\x63")])
    state.close()
    with pytest.raises(DataCorrupted, match="format 99"):
        State.open(RocksDisk(), path)
