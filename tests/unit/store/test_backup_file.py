"""Backups vouch for themselves, and a new cluster made of one holds the same, under an identity of its own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lab.store_model import Hand
from raykeeper.errors import ClusterMismatch, DataCorrupted
from raykeeper.limits import Limits, Settings, encode_settings
from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState
from raykeeper.schema.answers import LeaseGranted, PutAnswer, RangeAnswer
from raykeeper.schema.commands import (
    AlarmKind,
    CheckpointLeases,
    ClientWrite,
    ClientWrites,
    LeaseDeadline,
    RegisterMember,
    RequestId,
    SetAlarm,
)
from raykeeper.schema.operations import Compact, Delete, KeyRange, LeaseGrant, Put
from raykeeper.store import backup_file
from raykeeper.store.backup_file import Header, back_up_folder, create_member, read_header, verify, write_backup
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.snapshot_file import SnapshotSource

OLD = Identity(
    cluster_name="old", cluster=77, member=2, name="m2", members=(FirstMember(1, "m1"), FirstMember(2, "m2"))
)
NEW = Identity(
    cluster_name="new",
    cluster=99,
    member=1,
    name="m1",
    members=(FirstMember(1, "m1"), FirstMember(2, "m2"), FirstMember(3, "m3")),
    settings=Settings(limits=Limits(max_leases=7)),
)


class Source:
    """A member's data with a little of everything in it, and backups of it."""

    def __init__(self, disk: RocksDisk, tmp_path: Path) -> None:
        self.disk = disk
        self.path = str(tmp_path / "old" / "m2")
        self.file = str(tmp_path / "backup")
        self.scratch = str(tmp_path / "scratch")
        self.folder = DataDir.create(disk, self.path, OLD)
        self.hand = hand = Hand(self.folder.state)
        for n in range(60):
            hand.do(Put(b"k%d" % (n % 7), b"%d" % n * 40))
        hand.do(Delete(KeyRange(b"k3")))
        hand.do(Compact(20))
        granted = hand.do(LeaseGrant(0, 40.0))
        assert isinstance(granted, LeaseGranted)
        self.lease = granted.id
        hand.do(Put(b"leased", b"v", lease=self.lease))
        hand.apply(CheckpointLeases(hand.term, (LeaseDeadline(self.lease, 3.0),)))
        hand.sequence += 1
        self.named = hand.apply(
            ClientWrites(
                hand.session, hand.sequence, (ClientWrite(hand.sequence, Put(b"once", b"1"), RequestId(b"name", b"")),)
            )
        )
        hand.apply(RegisterMember(2, "node:a", "/there", 1))
        hand.apply(SetAlarm(2, AlarmKind.CORRUPT, True, "odd"))

    def back_up(self) -> Header:
        state = self.folder.state
        state.flush()
        outgoing = SnapshotSource(self.disk, self.scratch)
        self.disk.make_folder(self.scratch)
        state.checkpoint(outgoing.source)
        outgoing.pack()
        applied = (state.applied_index, state.applied_term)
        head = Header("old", 77, 2, state.revision, state.compact_revision, *applied, outgoing.id, outgoing.size, "", 0)
        header = Header(**{**{f: getattr(head, f) for f in head.__struct_fields__}, "content": state.content_hash()})
        write_backup(self.disk, self.file, header, outgoing.read_chunk)
        outgoing.remove()
        return header


@pytest.fixture
def source(disk: RocksDisk, tmp_path: Path) -> Source:
    return Source(disk, tmp_path)


def items(hand: Hand, revision: int = 0) -> object:
    answer = hand.range(KeyRange(b"", b""), revision=revision)
    return answer.items if isinstance(answer, RangeAnswer) else answer


def test_a_new_cluster_holds_the_same_under_its_own_identity(source: Source, disk: RocksDisk, tmp_path: Path) -> None:
    header = source.back_up()
    assert verify(disk, source.file) == header
    old = source.folder.state
    path = str(tmp_path / "new" / "m1")
    disk.make_folder(path)
    create_member(disk, path, NEW, source.file)

    folder = DataDir.open(disk, path)
    new, hand = folder.state, Hand.__new__(Hand)
    hand.state = new
    assert folder.identity == NEW
    assert (new.revision, new.compact_revision, new.applied_index) == (old.revision, 20, old.applied_index)
    for revision in (0, 21, 40):
        assert items(hand, revision) == items(source.hand, revision)
    assert new.configuration == Configuration(voters=(1, 2, 3), index=old.applied_index)
    assert new.settings == encode_settings(NEW.settings)
    assert new.limits.max_leases == 7
    assert (new.sessions, new.alarms, new.members.by_id) == ({}, {}, {})
    lease = new.leases[source.lease]
    assert (lease.ttl, lease.until, lease.keys) == (40.0, None, 1)
    assert folder.log.first_index() == old.applied_index + 1
    assert folder.log.hard_state == HardState(1, 0, old.applied_index)

    hand = Hand(new)  # a session as the first entry of the new log
    again = hand.apply(ClientWrites(hand.session, 1, (ClientWrite(1, Put(b"once", b"2"), RequestId(b"name", b"")),)))
    assert again == source.named
    hand.sequence = 1
    put = hand.do(Put(b"k", b"v"))
    assert isinstance(put, PutAnswer)
    assert put.revision == old.revision + 1
    folder.close()


def test_a_restored_member_knows_whether_it_ever_served(source: Source, disk: RocksDisk, tmp_path: Path) -> None:
    header = source.back_up()
    assert not source.folder.never_served
    path = str(tmp_path / "m1")
    restored = Identity(cluster_name="new", cluster=99, member=1, name="m1", members=NEW.members, restored=header.index)
    disk.make_folder(path)
    create_member(disk, path, restored, source.file)
    folder = DataDir.open(disk, path)
    assert folder.never_served
    folder.log.append([], HardState(header.term + 1, 2, header.index), sync=True)
    assert not folder.never_served
    folder.close()
    with pytest.raises(ClusterMismatch):
        create_member(disk, path, restored, source.file)


def test_no_byte_of_a_backup_can_be_lost_or_changed_unseen(source: Source, disk: RocksDisk, tmp_path: Path) -> None:
    source.back_up()
    good = Path(source.file).read_bytes()
    _, start = read_header(disk, source.file)
    rng = random.Random(4)
    cases = [good[:cut] for cut in (0, 5, 8, 15, 16, start - 1, start, start + 4, len(good) // 2, len(good) - 1)]
    cases += [good + b"\0", b"garbage" * 100, b"RKBACKUP" + b"\xff" * 100]
    places = [*range(0, start, 7), *(rng.randrange(start, len(good)) for _ in range(60))]
    for place in places:
        cases.append(good[:place] + bytes([good[place] ^ 1 << rng.randrange(8)]) + good[place + 1 :])
    bad = tmp_path / "bad"
    path = str(tmp_path / "m1")
    for number, case in enumerate(cases):
        bad.write_bytes(case)
        with pytest.raises(DataCorrupted):
            verify(disk, str(bad))
        if number % 10 == 0:
            disk.make_folder(path)
            with pytest.raises(DataCorrupted):
                create_member(disk, path, NEW, str(bad))
            assert DataDir.read_identity(disk, path) is None


def test_a_backup_of_another_content_than_it_says_is_refused(source: Source, disk: RocksDisk, tmp_path: Path) -> None:
    header = source.back_up()
    good = Path(source.file).read_bytes()
    _, start = read_header(disk, source.file)
    fields = {field: getattr(header, field) for field in header.__struct_fields__}
    for change in ({"content": "0" * 64}, {"index": 3}, {"revision": 5}):
        Path(source.file).write_bytes(backup_file.encode_header(Header(**{**fields, **change})) + good[start:])
        path = str(tmp_path / "m1")
        disk.make_folder(path)
        with pytest.raises(DataCorrupted, match="header says"):
            create_member(disk, path, NEW, source.file)


def test_a_backup_of_an_unknown_format_is_refused(source: Source, disk: RocksDisk) -> None:
    header = source.back_up()
    fields = {field: getattr(header, field) for field in header.__struct_fields__}
    Path(source.file).write_bytes(backup_file.encode_header(Header(**{**fields, "format": 2})))
    with pytest.raises(DataCorrupted, match="has format 2; this version of RayKeeper knows 1"):
        verify(disk, source.file)


def test_a_backup_is_there_whole_or_not_at_all(source: Source, disk: RocksDisk, tmp_path: Path) -> None:
    header = source.back_up()
    before = Path(source.file).read_bytes()

    def ends_early(offset: int, size: int) -> bytes:
        return b"" if offset > 3000 else before[:size]

    def breaks(offset: int, size: int) -> bytes:
        raise InterruptedError

    for chunk, error in ((ends_early, DataCorrupted), (breaks, InterruptedError), (lambda *_: b"x", DataCorrupted)):
        with pytest.raises(error):
            write_backup(disk, source.file, header, chunk)
        assert Path(source.file).read_bytes() == before
        assert not Path(f"{source.file}.partial").exists()


def test_a_survivors_data_gives_all_that_its_log_holds(source: Source, disk: RocksDisk, tmp_path: Path) -> None:
    folder, hand = source.folder, source.hand
    last = folder.state.applied_index
    folder.log.reset(last, 1, folder.state.configuration)
    hand.sequence += 1
    known = hand.entry(ClientWrites(hand.session, hand.sequence, (ClientWrite(hand.sequence, Put(b"x", b"1")),)))
    other = ClientWrites(hand.session, hand.sequence + 1, (ClientWrite(hand.sequence + 1, Put(b"y", b"2")),))
    entries = [
        known,
        hand.entry(other, 1),
        Entry(last + 3, 1, EntryKind.CONFIGURATION, b"any"),
        Entry(last + 4, 1, EntryKind.NORMAL, b""),
    ]
    folder.log.append(entries, HardState(1, 0, last + 1), sync=True)
    configuration = folder.state.configuration
    folder.close()
    header, taken = back_up_folder(disk, source.path, source.file, 1.0, source.scratch)
    assert (header.index, taken, header.cluster, header.member) == (last + 4, 3, 77, 2)
    assert not Path(source.scratch).exists()
    path = str(tmp_path / "m1")
    disk.make_folder(path)
    create_member(disk, path, NEW, source.file)
    new = DataDir.open(disk, path)
    reader = Hand.__new__(Hand)
    reader.state = new.state
    found = items(reader)
    assert isinstance(found, tuple)
    assert {item.key for item in found} >= {b"x", b"y"}
    assert configuration.index != new.state.configuration.index
    new.close()


def test_a_survivor_without_its_data_is_no_source(disk: RocksDisk, tmp_path: Path) -> None:
    with pytest.raises(DataCorrupted):
        back_up_folder(disk, str(tmp_path / "nothing"), str(tmp_path / "backup"), 1.0, str(tmp_path / "scratch"))
    assert list(tmp_path.iterdir()) == []
