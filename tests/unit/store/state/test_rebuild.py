"""A damaged state over an intact log: rebuilt under the same id, whatever crashes on the way, promises kept."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from raykeeper.errors import DataCorrupted
from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState, SnapshotMeta
from raykeeper.schema.commands import ClientWrite, ClientWrites, Command, OpenSession
from raykeeper.schema.operations import KeyRange, Put, Range
from raykeeper.store.data_dir import DataDir, FirstMember, Identity, StateDamaged
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.snapshot_file import SnapshotSink
from raykeeper.store.state.machine import State
from raykeeper.store.state.stored_state import FormatUnknown
from simulation.disk import SimDisk
from simulation.disk_content import SimCrash

encode = msgspec.msgpack.encode
FIRST = tuple(FirstMember(n, f"m{n}") for n in (1, 2, 3))
VOTERS = Configuration(voters=(1, 2, 3))


def identity(member: int = 1) -> Identity:
    return Identity("c", 7, member, f"m{member}", FIRST)


def entry(index: int) -> Entry:
    command: Command = OpenSession(b"nonce", 5.0)
    if index > 1:
        command = ClientWrites(1, index, (ClientWrite(index, Put(b"k%d" % (index % 7), b"v%d" % index)),))
    return Entry(index, 2, EntryKind.NORMAL, encode(command))


def fill(folder: DataDir, last: int, *, applied: int | None = None) -> None:
    """Append entries up to ``last``, and apply them (or fewer of them)."""
    entries = [entry(index) for index in range(folder.log.last_index() + 1, last + 1)]
    folder.log.append(entries, HardState(3, 2, applied or last), sync=True)
    log, state = folder.log, folder.state
    state.apply(log.entries(state.applied_index + 1, (applied or last) + 1, 1 << 30))


def member(disk: SimDisk, *, cut: int, last: int = 60, applied: int = 50, number: int = 1) -> str:
    """A member's folder, closed; its log begins after ``cut``. Returns the hash of its content."""
    folder = DataDir.create(disk, f"m{number}", identity(number))
    fill(folder, last, applied=applied)
    folder.state.flush()
    if cut:
        folder.log.trim(cut, VOTERS)
        folder.log.append([], None, sync=True)
    content = folder.state.content_hash()
    folder.close()
    return content


def snapshot(disk: SimDisk, at: int) -> tuple[Callable[[int, int], bytes], SnapshotMeta, str]:
    """A snapshot of another member's state: its bytes, what it is of, and its content."""
    folder = DataDir.create(disk, "other", identity(2))
    fill(folder, at)
    outgoing = folder.new_snapshot_source()
    folder.state.checkpoint(outgoing.source)
    outgoing.pack()
    meta = SnapshotMeta(at, folder.state.applied_term, folder.state.configuration, outgoing.id, outgoing.size)
    return outgoing.read_chunk, meta, folder.state.content_hash()


def receive(folder: DataDir, chunk: Callable[[int, int], bytes], meta: SnapshotMeta) -> SnapshotSink:
    incoming = folder.new_snapshot_sink(meta)
    while incoming.received < meta.size:
        incoming.write_chunk(incoming.received, chunk(incoming.received, 500))
    incoming.unpack()
    return incoming


def promises(folder: DataDir) -> tuple[HardState, int, int]:
    log = folder.log
    return log.hard_state, log.first_index(), log.last_index()


def replay(folder: DataDir) -> None:
    log, state = folder.log, folder.state
    state.apply(log.entries(state.applied_index + 1, log.hard_state.commit + 1, 1 << 30))


@pytest.mark.parametrize("loss", ["state", "CURRENT"])
def test_a_whole_log_is_applied_anew(loss: str) -> None:
    disk = SimDisk()
    content = member(disk, cut=0)
    disk.remove("m1/state-1" if loss == "state" else "m1/CURRENT")
    with pytest.raises(StateDamaged):
        DataDir.open(disk, "m1")
    folder = DataDir.open(disk, "m1", rebuild=True)
    assert not folder.state.lost
    assert (folder.state.applied_index, folder.serve_from) == (0, 50)
    replay(folder)
    assert folder.state.content_hash() == content
    folder.finish_rebuild()
    folder.close()
    assert DataDir.open(disk, "m1").serve_from == 0
    assert [name for name in disk.list("m1") if name.startswith("state-")] == [
        "state-2" if loss == "CURRENT" else "state-1"
    ]


def test_with_a_trimmed_log_the_new_state_can_only_wait() -> None:
    disk = SimDisk()
    member(disk, cut=30)
    disk.damage("m1/state-1", random.Random(1))
    folder = DataDir.open(disk, "m1", rebuild=True)
    assert "damaged" in folder.state.lost
    assert promises(folder) == (HardState(3, 2, 50), 31, 60)
    assert folder.state.configuration == folder.log.configuration == VOTERS
    with pytest.raises(ValueError, match="lost"):
        folder.state.apply([entry(1)])
    folder.close()
    again = DataDir.open(disk, "m1")  # by now there is a state, though an empty one
    assert again.state.lost
    assert again.serve_from == 50
    assert "state-1" in disk.list("m1"), "the damaged one stays: it may be the last"


@pytest.mark.parametrize("cut", [0, 30])
def test_a_crash_at_each_step_of_beginning_leaves_a_state_that_is_to_be_rebuilt(cut: int) -> None:
    steps = 0
    for fuse in range(1, 100):
        disk = SimDisk()
        content = member(disk, cut=cut)
        disk.damage("m1/state-1", random.Random(1))
        disk.fuse = fuse
        try:
            DataDir.open(disk, "m1", rebuild=True).close()
            break
        except SimCrash:
            steps += 1
        disk.lose_power(random.Random(fuse))
        disk.restart()
        folder = DataDir.open(disk, "m1", rebuild=True)
        assert promises(folder) == (HardState(3, 2, 50), cut + 1, 60)
        assert bool(folder.state.lost) == bool(cut)
        assert folder.serve_from == 50
        if not cut:
            replay(folder)
            assert folder.state.content_hash() == content
    assert steps > 5


@pytest.mark.parametrize(("at", "first", "last"), [(40, 31, 60), (60, 31, 60), (80, 81, 80)])
def test_a_snapshot_for_a_lost_state(at: int, first: int, last: int) -> None:
    """It replaces only the state if the log continues it, and both if not."""
    disk = SimDisk()
    member(disk, cut=30)
    chunk, meta, content = snapshot(disk, at)
    disk.damage("m1/state-1", random.Random(1))
    folder = DataDir.open(disk, "m1", rebuild=True)
    folder.install_snapshot(receive(folder, chunk, meta), keep_log=at <= 60)
    assert folder.state.content_hash() == content
    assert promises(folder) == (HardState(3, 2, max(at, 50)), first, last)
    folder.close()
    folder = DataDir.open(disk, "m1")
    assert (folder.state.lost, folder.state.applied_index) == ("", at)
    assert promises(folder) == (HardState(3, 2, max(at, 50)), first, last)
    folder.finish_rebuild()
    assert "state-1" not in disk.list("m1")
    assert "damaged.json" not in disk.list("m1")


@pytest.mark.parametrize("at", [40, 80])
def test_a_crash_at_each_step_of_receiving_and_installing_leaves_the_lost_state_or_the_new(at: int) -> None:
    seen: set[bool] = set()
    for fuse in range(1, 400):
        disk = SimDisk()
        member(disk, cut=30)
        chunk, meta, content = snapshot(disk, at)
        disk.damage("m1/state-1", random.Random(1))
        folder = DataDir.open(disk, "m1", rebuild=True)
        disk.fuse = fuse
        done = False
        try:
            folder.install_snapshot(receive(folder, chunk, meta), keep_log=at <= 60)
            done = True
        except SimCrash:
            disk.lose_power(random.Random(fuse))
            disk.restart()
            folder = DataDir.open(disk, "m1", rebuild=True)
        hard, first, last = promises(folder)
        assert (hard.term, hard.vote) == (3, 2)
        assert hard.commit >= 50
        if folder.state.lost:
            assert (first, last) == (31, 60), "nothing that was acknowledged is gone"
        else:
            assert folder.state.content_hash() == content
            assert (first, last) == ((31, 60) if at <= 60 else (81, 80))
        seen.add(bool(folder.state.lost))
        if done:
            break
    assert done
    assert seen == {True, False}


def test_a_condemned_state_is_not_opened_again() -> None:
    disk = SimDisk()
    member(disk, cut=30)
    folder = DataDir.open(disk, "m1")
    folder.mark_state_damaged("a checksum was wrong")
    folder.close()
    with pytest.raises(StateDamaged, match="a checksum was wrong"):
        DataDir.open(disk, "m1")
    assert DataDir.open(disk, "m1", rebuild=True).state.lost == "a checksum was wrong"


def test_a_state_that_does_not_reach_the_log_is_rebuilt() -> None:
    disk = SimDisk()
    member(disk, cut=0, last=60, applied=50)
    folder = DataDir.open(disk, "m1")
    folder.log.trim(55, VOTERS)
    folder.close()
    with pytest.raises(StateDamaged, match="entries between are gone"):
        DataDir.open(disk, "m1")
    assert DataDir.open(disk, "m1", rebuild=True).state.lost


def test_a_state_of_a_newer_version_is_left_alone() -> None:
    disk = SimDisk()
    member(disk, cut=30)
    engine = State.open(disk, "m1/state-1")._engine
    engine.write([("meta", b"format", b"\x63")])
    engine.close()
    with pytest.raises(FormatUnknown, match="format 99"):
        DataDir.open(disk, "m1", rebuild=True)
    assert disk.list("m1/state-1")
    assert "damaged.json" not in disk.list("m1")


def test_damage_that_any_reader_meets_is_remembered() -> None:
    disk = SimDisk()
    member(disk, cut=0)
    folder = DataDir.open(disk, "m1")
    assert folder.state.damage is None
    disk.rot("m1/state-1", random.Random(1), 1.0)
    with pytest.raises(DataCorrupted):
        folder.state.range(Range(KeyRange(b"k", b"l")), page_items=10, page_bytes=1000)
    assert folder.state.damage is not None
    with pytest.raises(DataCorrupted):
        folder.state.verify()


def test_receiving_a_snapshot_continues_after_a_restart() -> None:
    disk = SimDisk()
    member(disk, cut=30)
    chunk, meta, content = snapshot(disk, 80)
    folder = DataDir.open(disk, "m1")
    incoming = folder.new_snapshot_sink(meta)
    for _ in range(3):
        incoming.write_chunk(incoming.received, chunk(incoming.received, 300))
    folder.close()
    folder = DataDir.open(disk, "m1")
    left = folder.find_snapshot_sink()
    assert left is not None
    assert (left.meta, left.received) == (meta, 900)
    while left.received < meta.size:
        left.write_chunk(left.received, chunk(left.received, 300))
    left.unpack()
    folder.install_snapshot(left)
    assert folder.state.content_hash() == content
    assert folder.find_snapshot_sink() is None


def test_a_crash_at_each_step_of_making_a_snapshot_leaves_the_state_as_it_is() -> None:
    for fuse in range(1, 100):
        disk = SimDisk()
        content = member(disk, cut=0)
        folder = DataDir.open(disk, "m1")
        disk.fuse = fuse
        try:
            outgoing = folder.new_snapshot_source()
            folder.state.checkpoint(outgoing.source)
            outgoing.pack()
            outgoing.remove()
            break
        except SimCrash:
            disk.lose_power(random.Random(fuse))
            disk.restart()
        folder = DataDir.open(disk, "m1")
        assert folder.state.content_hash() == content
        assert not disk.list("m1/outgoing")
    assert fuse > 2


def test_flipped_bits_in_real_tables_are_met_by_readers_and_the_log_makes_them_good(tmp_path: Path) -> None:
    path = str(tmp_path / "m1")
    folder = DataDir.create(RocksDisk(), path, identity())
    for index in range(1, 400):
        command: Command = OpenSession(b"nonce", 5.0)
        if index > 1:
            put = Put(b"k%03d" % index, random.Random(index).randbytes(900))
            command = ClientWrites(1, index, (ClientWrite(index, put),))
        folder.log.append([Entry(index, 2, EntryKind.NORMAL, encode(command))], HardState(3, 2, index), sync=False)
    replay(folder)
    content = folder.state.content_hash()
    folder.state.flush()
    folder.close()
    tables = [table for table in (tmp_path / "m1" / "state-1").glob("*.sst") if table.stat().st_size > 100_000]
    assert tables
    for table in tables:
        data = bytearray(table.read_bytes())
        for position in range(2000, int(len(data) * 0.9), 4096):
            data[position] ^= 4
        table.write_bytes(data)
    folder = DataDir.open(RocksDisk(), path)  # RocksDB sees nothing wrong yet
    assert folder.state.damage is None
    with pytest.raises(DataCorrupted):
        folder.state.range(Range(KeyRange(b"k", b"l")), page_items=1000, page_bytes=1 << 20)
    damage = folder.state.damage
    assert damage is not None
    assert "mismatch" in str(damage)
    folder.mark_state_damaged(str(damage))
    folder.close()
    folder = DataDir.open(RocksDisk(), path, rebuild=True)
    replay(folder)
    assert folder.state.content_hash() == content
    folder.finish_rebuild()
    folder.close()
    DataDir.open(RocksDisk(), path).close()
