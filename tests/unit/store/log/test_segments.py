"""The log's segments: every state that a crash or a loss of power can leave, every bit that can flip, and a model.

A loss of power leaves of what was not synced any sectors, each blank or as it was written. None of this is damage, and
nothing that was synced is lost by it. A flipped bit in what was synced is damage, or changes nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raykeeper.errors import DataCorrupted, NoSpace
from raykeeper.limits import LOG_BLANK_SLICE_BYTES, LOG_FREE_SEGMENTS
from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.log import log_record, segments
from raykeeper.store.log.log_record import SECTOR, LogBase, LogNote
from raykeeper.store.log.segments import SegmentedLog, segment_name
from simulation.disk import SimDisk
from simulation.disk_content import SimCrash

SEGMENT = 8 * 1024
FOLDER = "log"
FIRST = f"{FOLDER}/{segment_name(1)}"


def data(rng: random.Random) -> bytes:
    """Nothing, noise, zeros, and what has whole blank sectors in it."""
    size = rng.choice((0, 5, 60, 300, 480, 700, 1600))
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(size)
    if kind == 1:
        return b"".join(rng.randrange(200).to_bytes(8, "big") for _ in range(size // 8))
    if kind == 2:
        return rng.randbytes(size // 3) + bytes(size // 2) + rng.randbytes(size // 6)
    return rng.randbytes(size)


def entries_from(rng: random.Random, first: int, count: int, term: int = 1) -> list[Entry]:
    return [Entry(first + n, term, EntryKind.NORMAL, data(rng)) for n in range(count)]


def created(disk: SimDisk, segment: int = SEGMENT) -> SegmentedLog:
    log = SegmentedLog.create(disk, FOLDER, log=7, segment_bytes=segment)
    log.append([], LogNote(HardState(), LogBase()))
    log.sync()
    return log


def held(log: SegmentedLog) -> list[Entry]:
    index = log.index
    return log.read(index.first, index.last + 1, 1 << 40)


def reopened(disk: SimDisk) -> SegmentedLog:
    """As ``RaftLog.open`` does it."""
    log = SegmentedLog.open(disk, FOLDER, segment_bytes=SEGMENT)
    log.sync()
    log.release()
    log.reserve()
    return log


class History:
    """A log of one segment: what each batch wrote, where it ends, and what was held then."""

    def __init__(self, rng: random.Random, synced: int, unsynced: int, segment: int = 64 * 1024) -> None:
        self.disk = SimDisk()
        log = created(self.disk, segment)
        self.ends = [log._offset]
        self.states: list[tuple[list[Entry], HardState | None]] = [([], HardState())]
        self.durable = log._offset
        entries: list[Entry] = []
        for number in range(1, synced + unsynced + 1):
            again = min(len(entries), rng.choice((0, 0, 0, 2)))
            batch = entries_from(rng, len(entries) - again + 1, rng.randrange(1, 5), number)
            entries = entries[: len(entries) - again] + batch
            hard = HardState(number, 1, 0)
            log.append(batch, LogNote(hard))
            self.ends.append(log._offset)
            self.states.append((entries, hard))
            if number == synced:
                log.sync()
                self.durable = log._offset
        self.data = self.disk.read(FIRST)
        self.log = log

    def held_after(self, data: bytes) -> int:
        """Open a log with this segment: after which batch it is; it must go on from there. Raises as ``open``."""
        self.disk.set_file(FIRST, data)
        log = reopened(self.disk)
        state = held(log), log.note.hard_state
        assert state in self.states, "what is kept is what was held after some batch"
        assert log._offset == self.ends[self.states.index(state)]
        left = self.disk.read(FIRST)
        assert not any(left[log._offset :]), "all that follows is blank"
        log.append([Entry(log.index.last + 1, 1000, EntryKind.NORMAL, b"more")], LogNote(HardState(1000)))
        log.close()
        again = reopened(self.disk)
        assert held(again)[:-1] == state[0]
        again.close()
        return self.states.index(state)

    def kept(self, left: bytes) -> int:
        """How many batches, from the first on, are as they were written, but for end mark and padding."""
        for number, start in enumerate(self.ends[:-1], 0):
            header = log_record.read_header(self.data, start)
            assert header is not None
            end = start + header.data_offset + header.data_size
            if left[start:end] != self.data[start:end]:
                return number
        return len(self.ends) - 1


# --- every cut and every subset --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_power_lost_at_every_sector(seed: int) -> None:
    """The sectors of what is not synced land in order, up to each of them."""
    rng = random.Random(seed)
    history = History(rng, rng.randrange(4), 3)
    for cut in range(history.durable, history.ends[-1] + 1, SECTOR):
        left = history.data[:cut] + bytes(len(history.data) - cut)
        assert history.held_after(left) == history.kept(left)


@pytest.mark.parametrize("seed", range(40))
def test_unsynced_sectors_land_in_any_order(seed: int) -> None:
    rng = random.Random(100 + seed)
    history = History(rng, rng.randrange(4), rng.randrange(1, 5))
    for share in (0.1, 0.5, 0.9):
        left = bytearray(history.data)
        for start in range(history.durable, history.ends[-1], SECTOR):
            if rng.random() < share:
                left[start : start + SECTOR] = bytes(SECTOR)
        assert history.held_after(bytes(left)) == history.kept(bytes(left))


@pytest.mark.parametrize("seed", range(6))
def test_every_flipped_bit_in_the_last_synced_batch_is_damage_or_changes_nothing(seed: int) -> None:
    """It never takes an entry or a vote along in silence."""
    rng = random.Random(200 + seed)
    history = History(rng, 3, 0)
    start, end = history.ends[-2], history.ends[-1]
    used = start + log_record.read_header(history.data, start).data_offset  # type: ignore[union-attr]
    used += log_record.read_header(history.data, start).data_size  # type: ignore[union-attr]
    for position in range(start, end):
        left = bytearray(history.data)
        left[position] ^= 1 << rng.randrange(8)
        if position < used:
            with pytest.raises(DataCorrupted):
                history.held_after(bytes(left))
        else:
            assert flipped_beyond(history, bytes(left)) == 3


def flipped_beyond(history: History, data: bytes) -> int:
    """As ``held_after``, for what is not read."""
    history.disk.set_file(FIRST, data)
    log = reopened(history.disk)
    return history.states.index((held(log), log.note.hard_state))


@pytest.mark.parametrize("seed", range(6))
def test_every_flipped_bit_in_an_earlier_batch_is_damage(seed: int) -> None:
    rng = random.Random(300 + seed)
    history = History(rng, 3, 2)
    for _ in range(200):
        number = rng.randrange(3)
        start = history.ends[number - 1] if number else 0
        header = log_record.read_header(history.data, start)
        assert header is not None
        left = bytearray(history.data)
        left[rng.randrange(start, start + header.data_offset + header.data_size)] ^= 1 << rng.randrange(8)
        with pytest.raises(DataCorrupted):
            history.held_after(bytes(left))


def test_blank_sectors_that_were_synced_are_damage_once_a_later_batch_says_so() -> None:
    rng = random.Random(5)
    history = History(rng, 3, 0)
    history.log.append(entries_from(rng, history.log.index.last + 1, 1, 9), None)
    left = bytearray(history.disk.read(FIRST))
    for start in range(history.ends[1], history.ends[2], SECTOR):
        blank = left[:start] + bytes(SECTOR) + left[start + SECTOR :]
        if history.kept(bytes(blank)) < 3:
            with pytest.raises(DataCorrupted, match="was on disk"):
                history.held_after(bytes(blank))


def test_garbage_in_the_place_of_the_next_frame_is_damage() -> None:
    """It may have been a record."""
    history = History(random.Random(6), 2, 0)
    left = bytearray(history.data)
    left[history.ends[-1] + 100] = 1
    with pytest.raises(DataCorrupted):
        history.held_after(bytes(left))


def test_a_loss_of_power_while_a_torn_frame_is_overwritten() -> None:
    rng = random.Random(7)
    for fuse in range(1, 12):
        history = History(random.Random(8), 2, 3)
        torn = bytearray(history.data)
        torn[history.ends[2] + SECTOR : history.ends[2] + 2 * SECTOR] = bytes(SECTOR)
        torn[history.ends[3] :] = history.data[history.ends[3] :]
        history.disk.set_file(FIRST, bytes(torn))
        history.disk.fuse = fuse
        try:
            reopened(history.disk).close()
        except SimCrash:
            history.disk.lose_power(rng)
        history.disk.restart()
        log = reopened(history.disk)
        assert history.states.index((held(log), log.note.hard_state)) >= 2


# --- several segments ------------------------------------------------------------------------------------------------


def filled(
    disk: SimDisk, segments: int, rng: random.Random, segment: int = SEGMENT
) -> tuple[SegmentedLog, list[Entry]]:
    """A log that has gone through so many segments, all of it synced."""
    log, entries = created(disk, segment), []
    while log._number < segments:
        batch = entries_from(rng, len(entries) + 1, 2)
        log.append(batch, LogNote(HardState(1, 1, len(entries))))
        entries += batch
    log.sync()
    return log, entries


def test_entries_in_many_segments_and_in_one_that_is_larger() -> None:
    disk, rng = SimDisk(), random.Random(1)
    log, entries = filled(disk, 6, rng)
    entries.append(Entry(len(entries) + 1, 1, EntryKind.CONFIGURATION, rng.randbytes(5 * SEGMENT)))
    log.append(entries[-1:], None)
    assert disk.size(f"{FOLDER}/{segment_name(log._number)}") > 5 * SEGMENT
    entries += entries_from(rng, len(entries) + 1, 3)
    log.append(entries[-3:], None)
    assert held(log) == entries
    log.close()
    log = reopened(disk)
    assert held(log) == entries
    assert log.read(3, 4, 0) == entries[2:3]
    assert log.read(3, 30, 2000) == entries[2 : 2 + len(log.read(3, 30, 2000))]


@pytest.mark.parametrize("missing", [1, 2, 3, 4])
def test_a_missing_segment_is_noticed(missing: int) -> None:
    disk = SimDisk()
    filled(disk, 4, random.Random(2))[0].close()
    disk.remove(f"{FOLDER}/{segment_name(missing)}")
    with pytest.raises(DataCorrupted):
        reopened(disk)


def test_a_segment_in_the_place_of_another() -> None:
    disk = SimDisk()
    filled(disk, 4, random.Random(3))[0].close()
    disk.set_file(f"{FOLDER}/{segment_name(3)}", disk.read(f"{FOLDER}/{segment_name(2)}"))
    with pytest.raises(DataCorrupted):
        reopened(disk)


def test_a_segment_of_another_log() -> None:
    """With the same content but for the log's number."""
    disk, other = SimDisk(), SimDisk()
    filled(disk, 3, random.Random(3))[0].close()
    rng = random.Random(3)
    log = SegmentedLog.create(other, FOLDER, log=8, segment_bytes=SEGMENT)
    log.append([], LogNote(HardState(), LogBase()))
    entries: list[Entry] = []
    while log._number < 3:
        batch = entries_from(rng, len(entries) + 1, 2)
        log.append(batch, LogNote(HardState(1, 1, len(entries))))
        entries += batch
    log.close()
    disk.set_file(f"{FOLDER}/{segment_name(2)}", other.read(f"{FOLDER}/{segment_name(2)}"))
    with pytest.raises(DataCorrupted, match="does not belong"):
        reopened(disk)


@pytest.mark.parametrize("change", ["flip", "blank"])
def test_any_damage_before_the_last_segment_is_found(change: str) -> None:
    disk, rng = SimDisk(), random.Random(4)
    filled(disk, 4, rng)[0].close()
    for number in (1, 2, 3):
        path = f"{FOLDER}/{segment_name(number)}"
        whole = disk.read(path)
        end = len(whole.rstrip(b"\0"))
        for _ in range(20):
            left = bytearray(whole)
            position = rng.randrange(end - SECTOR)
            if change == "flip":
                left[position] ^= 1
            else:
                position -= position % SECTOR
                left[position : position + SECTOR] = bytes(SECTOR)
            disk.set_file(path, bytes(left))
            try:
                log = reopened(disk)
            except DataCorrupted:
                continue
            assert change == "blank" or position % SECTOR > 200, "padding, or a sector that is blank by its content"
            assert held(log)
        disk.set_file(path, whole)


def test_trimmed_segments_are_recycled_and_the_others_go() -> None:
    disk, rng = SimDisk(), random.Random(5)
    log, entries = filled(disk, 12, rng)
    base = len(entries) - 3
    log.append([], LogNote(HardState(1, 1, base), LogBase(base, 1), Configuration((1, 2))))
    log.release()
    names = disk.list(FOLDER)
    assert len(names) <= LOG_FREE_SEGMENTS + 4
    oldest = names[0]
    while log._number < 20:
        entries += (batch := entries_from(rng, len(entries) + 1, 2))
        log.append(batch, None)
    assert oldest not in disk.list(FOLDER)
    log.close()
    log = reopened(disk)
    assert held(log) == entries[base:]
    assert log.note.base == LogBase(base, 1)
    assert log.note.configuration == Configuration((1, 2))


def _fill(log: SegmentedLog, entries: list[Entry], rng: random.Random) -> None:
    while True:
        batch = entries_from(rng, len(entries) + 1, 2)
        log.append(batch, None)
        entries += batch


def test_a_full_disk_changes_nothing() -> None:
    disk, rng = SimDisk(), random.Random(6)
    log, entries = filled(disk, 3, rng)
    disk.room = 0
    with pytest.raises(NoSpace):
        _fill(log, entries, rng)
    batch = entries_from(rng, len(entries) + 1, 20)
    assert log.index.last == len(entries)
    with pytest.raises(NoSpace):
        log.append(batch, None)
    disk.room = None
    log.append(batch, None)
    assert held(log) == entries + batch
    log.close()
    assert held(reopened(disk)) == entries + batch


def test_a_start_without_room_for_the_next_segment_is_refused() -> None:
    """It would end with its first append, and so would the next."""
    disk, rng = SimDisk(), random.Random(6)
    log, entries = filled(disk, 3, rng)
    disk.room = 0
    with pytest.raises(NoSpace):
        _fill(log, entries, rng)
    log.close()
    names = disk.list(FOLDER)
    assert all(name.endswith(".wal") for name in names), "what was reserved in vain is given back"
    for _ in range(3):
        with pytest.raises(NoSpace):
            reopened(disk)
        assert disk.list(FOLDER) == names
    disk.room = None
    assert held(reopened(disk)) == entries


def test_a_full_disk_with_a_segment_in_reserve_is_no_reason_not_to_start() -> None:
    disk, rng = SimDisk(), random.Random(6)
    log, entries = filled(disk, 3, rng)
    log.close()
    disk.room = 0
    assert held(reopened(disk)) == entries


def test_what_was_trimmed_makes_room_for_the_next_segment() -> None:
    """The thread that prepares it has found none; since then segments have become free."""
    disk, rng = SimDisk(), random.Random(6)
    log, entries = filled(disk, 5, rng)
    disk.room = 0
    while disk.exists(f"{FOLDER}/{segment_name(log._number + 1)}"):
        batch = entries_from(rng, len(entries) + 1, 1)
        log.append(batch, None)
        entries += batch
    base = len(entries) - 2
    log.append([], LogNote(HardState(1, 1, base), LogBase(base, 1)))
    log.release()
    number = log._number
    while log._number < number + 2:
        batch = entries_from(rng, len(entries) + 1, 1)
        log.append(batch, None)
        entries += batch
    log.close()
    assert held(reopened(disk)) == entries[base:]


def test_a_segment_is_made_in_slices_with_pauses_until_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Syncs of the log have to wait for each slice, and a writer that waits is not kept waiting."""
    monkeypatch.setattr(segments, "LOG_BLANK_PAUSE_S", 3600.0)
    disk, began = RocksDisk(), time.monotonic()
    log = SegmentedLog.create(disk, str(tmp_path / "log"), log=7, segment_bytes=4 * LOG_BLANK_SLICE_BYTES)
    log.append([], LogNote(HardState(), LogBase()))
    time.sleep(0.2)
    assert not disk.exists(str(tmp_path / "log" / segment_name(2)))
    for index in (1, 2):
        log.append([Entry(index, 1, EntryKind.NORMAL, bytes(3 * LOG_BLANK_SLICE_BYTES))], None)
    assert log._number == 2
    log.close()
    assert time.monotonic() < began + 60


def test_after_a_failed_write_nothing_is_written() -> None:
    disk, rng = SimDisk(), random.Random(7)
    log, entries = filled(disk, 2, rng)
    write = log._file.write

    def fail(offset: int, data: bytes) -> None:
        write(offset, data[:SECTOR])
        raise OSError("no more")

    log._file.write = fail  # type: ignore[method-assign]
    batch = [Entry(len(entries) + 1, 1, EntryKind.NORMAL, rng.randbytes(1000))]
    with pytest.raises(OSError, match="no more"):
        log.append(batch, None)
    log._file.write = write  # type: ignore[method-assign]
    with pytest.raises(OSError, match="failed before"):
        log.append(batch, None)
    log.close()
    assert held(reopened(disk)) == entries


def test_what_is_read_from_disk_is_checked() -> None:
    disk, rng = SimDisk(), random.Random(8)
    log, entries = filled(disk, 4, rng)
    path = f"{FOLDER}/{segment_name(2)}"
    left = bytearray(disk.read(path))
    number = next(e.index for e in entries if len(e.data) > 100 and log.index.at(e.index)[0] == 2)
    left[log.index.at(number)[1] + 50] ^= 4
    disk.set_file(path, bytes(left))
    with pytest.raises(DataCorrupted):
        held(log)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    disk = RocksDisk()
    disk.open(str(tmp_path / "log"), ("meta",), create=True).close()
    with pytest.raises(DataCorrupted, match="of this version"):
        SegmentedLog.open(disk, str(tmp_path / "log"), segment_bytes=SEGMENT)
    with pytest.raises(DataCorrupted, match="already"):
        SegmentedLog.create(disk, str(tmp_path / "log"), log=1, segment_bytes=SEGMENT)
    with pytest.raises(DataCorrupted, match="no log"):
        SegmentedLog.open(disk, str(tmp_path / "nothing"), segment_bytes=SEGMENT)


# --- a model ---------------------------------------------------------------------------------------------------------


class AgainstAList(RuleBasedStateMachine):
    """Whatever is written, trimmed, reset, crashed and reopened, a list says the same; what was synced is never lost.

    Unsynced batches may be lost from the end, each whole.
    """

    def make_disk(self) -> SimDisk:
        return SimDisk()

    @initialize()
    def create(self) -> None:
        self.disk = self.make_disk()
        self.log = created(self.disk)
        self.states = [self.state(0, 0, [], HardState())]
        """What was held after each batch since the last sync."""

    @staticmethod
    def state(
        base: int, base_term: int, entries: list[Entry], hard: HardState
    ) -> tuple[int, int, tuple[Entry, ...], HardState]:
        return base, base_term, tuple(entries), hard

    def write(self, state: tuple[int, int, tuple[Entry, ...], HardState], act: Callable[[], None]) -> None:
        """Do something, which may end in a crash at any operation."""
        self.states.append(state)
        try:
            act()
        except SimCrash:
            self.recover(lost_power=False)

    @rule(
        again=st.integers(0, 4),
        count=st.integers(1, 4),
        seed=st.integers(0, 1 << 30),
        fuse=st.none() | st.integers(1, 20),
        large=st.sampled_from([False] * 9 + [True]),
    )
    def append(self, again: int, count: int, seed: int, fuse: int | None, large: bool) -> None:
        base, base_term, entries, hard = self.states[-1]
        keep = max(0, len(entries) - again)
        rng = random.Random(seed)
        batch = entries_from(rng, base + keep + 1, count, hard.term + 1)
        if large:
            batch[0] = Entry(batch[0].index, batch[0].term, EntryKind.CONFIGURATION, rng.randbytes(2 * SEGMENT))
        hard = HardState(hard.term + 1, seed % 3)
        self.disk.fuse = fuse
        self.write(
            self.state(base, base_term, [*entries[:keep], *batch], hard),
            lambda: self.log.append(batch, LogNote(hard)),
        )
        self.disk.fuse = None

    @rule()
    def sync(self) -> None:
        self.log.sync()
        del self.states[:-1]

    @rule(share=st.floats(0, 1), fuse=st.none() | st.integers(1, 20))
    def trim(self, share: float, fuse: int | None) -> None:
        _, _, entries, hard = self.states[-1]
        count = int(share * len(entries))
        if not count:
            return
        last = entries[count - 1]

        def act() -> None:
            self.log.append([], LogNote(hard, LogBase(last.index, last.term)))
            self.log.release()

        self.disk.fuse = fuse
        self.write(self.state(last.index, last.term, list(entries[count:]), hard), act)
        self.disk.fuse = None

    @rule(ahead=st.integers(0, 5), fuse=st.none() | st.integers(1, 20))
    def reset(self, ahead: int, fuse: int | None) -> None:
        base, _, entries, hard = self.states[-1]
        index = base + len(entries) + ahead

        def act() -> None:
            self.log.append([], LogNote(hard, LogBase(index, hard.term), reset=True))
            self.log.sync()
            del self.states[:-1]
            self.log.release()

        self.disk.fuse = fuse
        self.write(self.state(index, hard.term, [], hard), act)
        self.disk.fuse = None

    @rule()
    def close_and_open(self) -> None:
        self.log.close()
        self.log = reopened(self.disk)
        del self.states[:-1]

    @rule(seed=st.integers(0, 1 << 30))
    def lose_power(self, seed: int) -> None:
        self.disk.lose_power(random.Random(seed))
        self.recover(lost_power=True)

    def recover(self, *, lost_power: bool) -> None:
        """Start again; the log may hold any of the states since the last sync."""
        self.disk.restart()
        self.log = reopened(self.disk)
        state = self.held_state()
        assert state in self.states
        if not lost_power:
            assert state in self.states[-2:], "a crash of the process loses nothing that was written"
        self.states = [state]

    def held_state(self) -> tuple[int, int, tuple[Entry, ...], HardState]:
        note = self.log.note
        assert note.base is not None
        assert note.hard_state is not None
        return self.state(note.base.index, note.base.term, held(self.log), note.hard_state)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "log"):
            assert self.held_state() == self.states[-1]
            index, (base, base_term, entries, _) = self.log.index, self.states[-1]
            assert (index.first, index.last) == (base + 1, base + len(entries))
            assert index.last_term == (entries[-1].term if entries else base_term)
            assert index.size == sum(len(entry.data) + 16 for entry in entries)


AgainstAList.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
TestAgainstAList = AgainstAList.TestCase
