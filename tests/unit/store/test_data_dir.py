"""A member's folder and its snapshots: made, opened, swapped and refused by the rules of the disk."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab.patience import PATIENCE
from lab.store_model import Hand, encode
from raykeeper.errors import ClusterMismatch, DataCorrupted, Unavailable
from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState, SnapshotMeta
from raykeeper.schema.answers import RangeAnswer
from raykeeper.schema.commands import ClientWrite, ClientWrites, Configure, OpenSession, RequestId, ReserveMember
from raykeeper.schema.operations import Compact, KeyRange, LeaseGrant, Put, Range
from raykeeper.store.data_dir import DataDir, DataMissing, FirstMember, Identity, LogDamaged, StateDamaged
from raykeeper.store.engine.interface import Disk
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.snapshot_file import SnapshotSink, SnapshotSource
from raykeeper.store.state.stored_state import FormatUnknown
from simulation.disk import SimDisk
from simulation.disk_content import SimCrash

MEMBERS = tuple(FirstMember(n, f"m{n}", "node:1.2.3.4") for n in (1, 2, 3))


def identity(member: int = 1) -> Identity:
    return Identity("jobs", 77, member, f"m{member}", MEMBERS)


def fill(folder: DataDir, upto: int, size: int = 300) -> None:
    """Append and apply entries, each a put in session 1."""
    state, log = folder.state, folder.log
    for index in range(state.applied_index + 1, upto + 1):
        command: Any = OpenSession(b"n", 5.0)
        if index == 2:
            command = ClientWrites(1, 1, (ClientWrite(1, LeaseGrant(9, 5.0), RequestId(b"name", b"")),))
        elif index > 2:
            put = Put(b"k%d" % (index % 40), random.Random(index).randbytes(size), lease=9)
            command = ClientWrites(1, index, (ClientWrite(index, put),))
        entry = Entry(index, 1, EntryKind.NORMAL, encode(command))
        log.append([entry], HardState(1, 1, index), sync=True)
        state.apply([entry])


@pytest.fixture(params=["rocksdb", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, str]:
    return (RocksDisk(), str(tmp_path)) if request.param == "rocksdb" else (SimDisk(), "root")


@pytest.fixture
def folder(place: tuple[Disk, str]) -> Iterator[DataDir]:
    disk, root = place
    folder = DataDir.create(disk, f"{root}/m1", identity())
    fill(folder, 60)
    yield folder
    folder.close()


def snapshot_of(folder: DataDir) -> tuple[SnapshotSource, SnapshotMeta]:
    outgoing = folder.new_snapshot_source()
    state = folder.state
    state.flush()
    state.checkpoint(outgoing.source)
    outgoing.pack()
    return outgoing, SnapshotMeta(
        state.applied_index, state.applied_term, state.configuration, outgoing.id, outgoing.size
    )


def send(outgoing: SnapshotSource, incoming: SnapshotSink, chunk: int = 7001) -> None:
    while incoming.received < incoming.meta.size:
        assert (
            incoming.write_chunk(incoming.received, outgoing.read_chunk(incoming.received, chunk)) == incoming.received
        )


def test_created_and_opened_again(place: tuple[Disk, str]) -> None:
    disk, root = place
    folder = DataDir.create(disk, f"{root}/m1", identity())
    assert folder.log.empty
    assert folder.state.configuration == Configuration(voters=(1, 2, 3))
    fill(folder, 20)
    content = folder.state.content_hash()
    folder.close()
    folder = DataDir.open(disk, f"{root}/m1")
    assert folder.identity == identity() == DataDir.read_identity(disk, f"{root}/m1")
    assert (folder.log.last_index(), folder.state.applied_index) == (20, 20)
    assert folder.state.content_hash() == content
    folder.close()
    with pytest.raises(ClusterMismatch):
        DataDir.create(disk, f"{root}/m1", identity())


def test_a_creation_that_was_interrupted_is_no_data_and_is_redone() -> None:
    whole = SimDisk()
    DataDir.create(whole, "m1", identity())
    for fuse in range(1, whole.operations + 1):
        disk = SimDisk()
        disk.fuse = fuse
        with pytest.raises(SimCrash):
            DataDir.create(disk, "m1", identity())
        disk.lose_power(random.Random(fuse))
        disk.restart()
        if DataDir.read_identity(disk, "m1") is None:
            with pytest.raises(DataMissing):
                DataDir.open(disk, "m1")
            DataDir.create(disk, "m1", identity()).close()
        DataDir.open(disk, "m1").close()


def test_a_snapshot_carries_everything(place: tuple[Disk, str], folder: DataDir) -> None:
    disk, root = place
    outgoing, meta = snapshot_of(folder)
    content, at = folder.state.content_hash(), folder.state.applied_index
    fill(folder, 70)  # the snapshot does not change
    other = DataDir.create(disk, f"{root}/m2", identity(2))
    fill(other, 5)
    incoming = other.new_snapshot_sink(meta)
    send(outgoing, incoming)
    incoming.unpack()
    old = other.state
    other.install_snapshot(incoming)
    assert other.state is not old
    assert other.state.content_hash() == content
    assert (other.log.first_index(), other.log.last_index(), other.log.hard_state.commit) == (at + 1, at, at)
    fill(other, 80)
    other.close()
    other = DataDir.open(disk, f"{root}/m2")
    assert other.state.applied_index == 80
    assert [name for name in disk.list(f"{root}/m2") if name.startswith("state-")] == ["state-2"]
    assert not disk.list(f"{root}/m2/incoming")
    # And once more, from a state that came by snapshot itself.
    fill(folder, 90)
    outgoing.remove()
    outgoing, meta = snapshot_of(folder)
    incoming = other.new_snapshot_sink(meta)
    send(outgoing, incoming, 1 << 20)
    incoming.unpack()
    other.install_snapshot(incoming)
    assert other.state.content_hash() == folder.state.content_hash()
    other.close()


def test_a_snapshot_takes_nothing_back(place: tuple[Disk, str], folder: DataDir) -> None:
    """Neither an older one, nor one that the log is said to continue and does not."""
    disk, root = place
    outgoing, meta = snapshot_of(folder)
    other = DataDir.create(disk, f"{root}/m2", identity(2))
    incoming = other.new_snapshot_sink(meta)
    send(outgoing, incoming)
    incoming.unpack()
    with pytest.raises(ValueError, match="does not hold entry"):
        other.install_snapshot(incoming, keep_log=True)
    fill(other, meta.index)
    with pytest.raises(ValueError, match="take back"):
        other.install_snapshot(incoming)
    incoming.remove()
    other.close()
    assert DataDir.open(disk, f"{root}/m2").state.applied_index == meta.index


def test_chunks_out_of_order_and_repeated(place: tuple[Disk, str], folder: DataDir) -> None:
    disk, root = place
    outgoing, meta = snapshot_of(folder)
    other = DataDir.create(disk, f"{root}/m2", identity(2))
    incoming = other.new_snapshot_sink(meta)
    assert incoming.write_chunk(500, outgoing.read_chunk(500, 100)) == 0
    assert incoming.write_chunk(0, outgoing.read_chunk(0, 100)) == 100
    assert incoming.write_chunk(0, outgoing.read_chunk(0, 100)) == 100
    assert incoming.write_chunk(100, b"") == 100
    send(outgoing, incoming)
    assert incoming.write_chunk(meta.size, b"more than there is") == meta.size
    whole = outgoing.read_chunk(0, meta.size)
    assert len(whole) == meta.size
    assert b"".join(outgoing.read_chunk(n, 999) for n in range(0, meta.size, 999)) == whole
    assert outgoing.read_chunk(meta.size, 10) == b""
    incoming.unpack()
    incoming.remove()
    assert [name for name in disk.list(f"{root}/m2") if name.startswith("state-")] == ["state-1"]
    other.close()


@pytest.mark.parametrize("damage", ["head", "middle", "end", "short", "meta", "another"])
def test_a_damaged_snapshot_is_refused(place: tuple[Disk, str], folder: DataDir, damage: str) -> None:
    disk, root = place
    outgoing, meta = snapshot_of(folder)
    data = bytearray(outgoing.read_chunk(0, meta.size))
    if damage in ("head", "middle", "end"):
        data[{"head": 30, "middle": len(data) // 2, "end": len(data) - 1}[damage]] ^= 4
    elif damage == "short":
        del data[-1]
    elif damage == "meta":
        meta = msgspec.structs.replace(meta, term=2)
    else:
        meta = msgspec.structs.replace(meta, id="0" * 64)
    other = DataDir.create(disk, f"{root}/m2", identity(2))
    fill(other, 5)
    content = other.state.content_hash()
    incoming = other.new_snapshot_sink(meta)
    incoming.write_chunk(0, bytes(data))
    with pytest.raises(DataCorrupted):
        incoming.unpack()
    incoming.remove()
    with pytest.raises(ValueError, match="not unpacked"):
        other.install_snapshot(incoming)
    assert other.state.content_hash() == content
    other.close()
    other = DataDir.open(disk, f"{root}/m2")
    assert other.state.content_hash() == content
    other.close()


def test_a_crash_anywhere_in_an_installation_leaves_the_old_or_the_new() -> None:
    """Every operation on the disk is tried as the last one, with and without a loss of power."""
    seen = set()
    for lose_power in (False, True):
        fuse = 0
        finished = False
        while not finished:
            fuse += 1
            disk = SimDisk()
            source = DataDir.create(disk, "m1", identity())
            fill(source, 30)
            outgoing, meta = snapshot_of(source)
            content = source.state.content_hash()
            folder = DataDir.create(disk, "m2", identity(2))
            fill(folder, 12)
            folder.state.flush()
            old = folder.state.content_hash()
            disk.fuse = fuse
            try:
                incoming = folder.new_snapshot_sink(meta)
                send(outgoing, incoming, 1 << 16)
                incoming.unpack()
                folder.install_snapshot(incoming)
                finished = True
            except SimCrash:
                pass
            if lose_power:
                disk.lose_power(random.Random(fuse))
            else:
                disk.crash()
            disk.restart()
            folder = DataDir.open(disk, "m2")
            found = folder.state.content_hash()
            assert found in (old, content)
            seen.add(found == content)
            if found == content:
                assert (folder.log.first_index(), folder.log.last_index()) == (31, 30)
            else:
                assert folder.log.last_index() == 12
            assert folder.log.hard_state.term == 1
            assert folder.log.hard_state.vote == 1
            assert folder.log.hard_state.commit == folder.state.applied_index
            names = [name for name in disk.list("m2") if name != "incoming"]  # which may be gone on with
            assert names[:3] == ["CURRENT", "identity.json", "log"]
            assert len(names) == 4
            fill(folder, 40)
            folder.close()
    assert seen == {False, True}


def test_a_state_that_does_not_reach_the_log_is_refused(place: tuple[Disk, str], folder: DataDir) -> None:
    disk, root = place
    folder.close()
    again = DataDir.open(disk, f"{root}/m1")
    again.log.append([Entry(61, 1, EntryKind.NORMAL, b"")], HardState(1, 1, 61), sync=True)
    again.log.trim(61)
    again.close()
    with pytest.raises(StateDamaged, match="begins at 62"):
        DataDir.open(disk, f"{root}/m1")


def test_a_commit_index_that_was_not_synced_is_made_good(place: tuple[Disk, str]) -> None:
    disk, root = place
    folder = DataDir.create(disk, f"{root}/m1", identity())
    entry = Entry(1, 1, EntryKind.NORMAL, encode(OpenSession(b"n", 5.0)))
    folder.log.append([entry], HardState(1, 2, 0), sync=True)
    folder.state.apply([entry])
    folder.close()
    folder = DataDir.open(disk, f"{root}/m1")
    assert folder.log.hard_state == HardState(1, 2, 1)
    folder.close()


def test_what_is_missing_is_said(place: tuple[Disk, str], folder: DataDir) -> None:
    disk, root = place
    folder.close()
    with pytest.raises(DataMissing):
        DataDir.open(disk, f"{root}/m7")
    assert DataDir.read_identity(disk, f"{root}/m7") is None
    current = disk.read(f"{root}/m1/CURRENT")
    disk.replace(f"{root}/m1/CURRENT", b"state-5")
    with pytest.raises(StateDamaged):
        DataDir.open(disk, f"{root}/m1")
    disk.replace(f"{root}/m1/CURRENT", b"nonsense")
    with pytest.raises(StateDamaged):
        DataDir.open(disk, f"{root}/m1")
    disk.remove(f"{root}/m1/CURRENT")
    with pytest.raises(StateDamaged):
        DataDir.open(disk, f"{root}/m1")
    disk.replace(f"{root}/m1/CURRENT", current)
    disk.rename(f"{root}/m1/log", f"{root}/elsewhere")
    with pytest.raises(LogDamaged):
        DataDir.open(disk, f"{root}/m1")
    disk.rename(f"{root}/elsewhere", f"{root}/m1/log")
    DataDir.open(disk, f"{root}/m1").close()


def test_an_unknown_format_is_refused(place: tuple[Disk, str], folder: DataDir) -> None:
    disk, root = place
    path = f"{root}/m1/identity.json"
    data = json.loads(disk.read(path))
    disk.replace(path, json.dumps({**data, "format": 3, "members": "something new"}).encode())
    with pytest.raises(FormatUnknown, match=r"format 3.*knows 2"):
        DataDir.read_identity(disk, f"{root}/m1")
    disk.replace(path, json.dumps({**data, "format": 1}).encode())  # its log is a RocksDB database
    with pytest.raises(FormatUnknown):
        DataDir.open(disk, f"{root}/m1")
    disk.replace(path, b"{")
    with pytest.raises(DataCorrupted, match="cannot be read"):
        DataDir.read_identity(disk, f"{root}/m1")


def test_readers_of_a_replaced_state_finish(tmp_path: Path) -> None:
    """A swap waits for those who read; later ones are sent to the new state."""
    disk = RocksDisk()
    folder = DataDir.create(disk, str(tmp_path / "m1"), identity())
    fill(folder, 10)
    state = folder.state
    inside, leave = threading.Event(), threading.Event()
    seen: list[Any] = []

    def read() -> None:
        with state.reading() as engine:
            inside.set()
            leave.wait(PATIENCE)
            seen.append(len(list(engine.iterate("keys"))))

    reader, closer = threading.Thread(target=read), threading.Thread(target=state.close)
    reader.start()
    inside.wait(PATIENCE)
    closer.start()
    while not state._read_gate.closed:
        leave.wait(0.001)
    with pytest.raises(Unavailable):
        state.range(Range(KeyRange(b"k1")), page_items=1, page_bytes=1)
    assert closer.is_alive()
    leave.set()
    reader.join()
    closer.join()
    assert seen == [8]
    folder.log.close()
    hand = DataDir.open(disk, str(tmp_path / "m1"))
    assert isinstance(hand.state.range(Range(KeyRange(b"k3")), page_items=1, page_bytes=1), RangeAnswer)
    hand.close()


def test_the_content_hash_sees_every_part(hand: Hand) -> None:
    """Nothing that members must agree on escapes the comparison."""
    commands = [
        hand.writes(Put(b"k", b"v")),
        hand.writes(Put(b"k", b"v")),
        hand.writes(LeaseGrant(5, 1.0)),
        hand.writes(Compact(2)),
        OpenSession(b"x", 1.0),
        Configure(b"{}"),
        ReserveMember(b"nonce", "node:1", "/data"),
    ]
    hashes = {hand.state.content_hash()}
    for command in commands:
        hand.apply_all([command])
        hashes.add(hand.state.content_hash())
    assert len(hashes) == len(commands) + 1
    for family, key, value in [
        ("leases", b"l" + (5).to_bytes(8, "big"), encode((1.0, 0.5, 0))),
        ("sessions", b"s" + hand.session.to_bytes(8, "big"), encode((60.0, b"hand", 99, 0))),
        ("sessions", b"r" + b"id", encode((1, 64, (5, 1)))),
    ]:
        before = hand.state._engine.get(family, key)
        hand.state._engine.write([(family, key, value)])
        assert hand.state.content_hash() not in hashes
        hand.state._engine.write([(family, key, before)])
        assert hand.state.content_hash() in hashes
