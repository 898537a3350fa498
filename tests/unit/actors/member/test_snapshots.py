"""Snapshots on their way: fetched ahead, sent at a bounded rate, continued, refused, given up on a full disk."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable

import pytest

from lab.store_model import encode
from raykeeper.actors.member.snapshots import Snapshots
from raykeeper.errors import DataCorrupted, NoSpace
from raykeeper.limits import SNAPSHOT_IDLE_S, SNAPSHOT_RETRY_S, Limits
from raykeeper.raft.log import ChunkNotReady
from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState, InstallSnapshot, SnapshotMeta
from raykeeper.schema.commands import OpenSession
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.snapshot_file import SnapshotSource
from simulation.disk import SimDisk

CHUNK = 16 * 1024


class FullDisk(SimDisk):
    """A disk that is full whenever a test says so."""

    full = False

    def append(self, path: str, data: bytes) -> None:
        if self.full:
            raise NoSpace(path)
        super().append(path, data)


class Side:
    """One member's end of transfers, with a clock and a background that only move when they are told to."""

    def __init__(self, number: int, entries: int = 0, limits: Limits | None = None) -> None:
        self.disk = FullDisk()
        members = tuple(FirstMember(n, f"m{n}") for n in (1, 2))
        self.folder = DataDir.create(self.disk, "m", Identity("c", 7, number, f"m{number}", members))
        for index in range(1, entries + 1):
            nonce = random.Random(index).randbytes(4000)
            entry = Entry(index, 1, EntryKind.NORMAL, encode(OpenSession(nonce, 5.0)))
            self.folder.log.append([entry], HardState(1, 1, index), sync=True)
            self.folder.state.apply([entry])
        self.now = 100.0
        self.tasks: deque[tuple[Callable[[], None], Callable[[Exception | None], None]]] = deque()
        self.limits = limits or Limits(snapshot_chunk_bytes=CHUNK)
        self.snapshots = self.begin()
        # What the core would do, and hears.
        self.wanted = 0
        self.installed = self.rejected = False
        self.needed = True

    def begin(self) -> Snapshots:
        return Snapshots(self.folder, self.limits, lambda work, then: self.tasks.append((work, then)), lambda: self.now)

    def restart(self) -> None:
        self.folder.close()
        self.tasks.clear()
        self.folder = DataDir.open(self.disk, "m")
        self.snapshots = self.begin()

    def work(self) -> None:
        """The background does what waits for it."""
        while self.tasks:
            self.work_once()

    def work_once(self) -> None:
        work, then = self.tasks.popleft()
        error: Exception | None = None
        try:
            work()
        except Exception as caught:
            error = caught
        then(error)

    def offer(self, at_least: int = 0) -> SnapshotMeta:
        assert self.snapshots.offer_snapshot(at_least) is None
        self.work()
        meta = self.snapshots.offer_snapshot(at_least)
        assert meta is not None
        return meta

    def chunk(self, meta: SnapshotMeta, offset: int) -> bytes:
        """The chunk, once it may be had: as the replica asks."""
        for _ in range(1000):
            try:
                data = self.snapshots.read_chunk(meta, offset, CHUNK)
            except ChunkNotReady:
                self.work()
                due = self.snapshots.next_due
                assert due is not None
                self.now = max(self.now, due)
                assert self.snapshots.chunk_due(self.now)
                continue
            assert data is not None
            return data
        raise AssertionError("the chunk is never due")

    # What the receiving side asks of its core.

    def snapshot_progress(self, chunk: InstallSnapshot, offset: int) -> None:
        self.wanted = offset

    def snapshot_is_needed(self, meta: SnapshotMeta) -> bool:
        return self.needed

    def snapshot_keeps_log(self, meta: SnapshotMeta) -> bool:
        return False

    def snapshot_installed(self, meta: SnapshotMeta, *, log_kept: bool = False) -> None:
        self.installed = True

    def snapshot_rejected(self, chunk: InstallSnapshot) -> None:
        self.rejected = True

    def take(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        message = InstallSnapshot(1, 2, 1, meta, offset, data, offset + len(data) >= meta.size)
        self.snapshots.receive_chunk(message, self, lambda: None)  # type: ignore[arg-type]
        if self.tasks:
            self.work_once()  # the chunk is written


@pytest.fixture
def sender() -> Side:
    return Side(1, entries=60)


def transfer(sender: Side, receiver: Side, meta: SnapshotMeta, upto: int | None = None) -> None:
    """Bring chunks over until the receiver has this many bytes, or all."""
    while receiver.wanted < (meta.size if upto is None else upto):
        offset = receiver.wanted
        receiver.take(meta, offset, sender.chunk(meta, offset))
        assert receiver.wanted > offset


def test_an_image_arrives_whole(sender: Side) -> None:
    meta = sender.offer()
    assert meta.index == 60
    assert meta.size > 5 * CHUNK
    receiver = Side(2)
    transfer(sender, receiver, meta)
    receiver.work()
    assert receiver.installed
    assert receiver.folder.state.content_hash() == sender.folder.state.content_hash()


def test_no_more_bytes_a_second_than_allowed() -> None:
    rate = 50_000
    sender = Side(1, entries=60, limits=Limits(snapshot_chunk_bytes=CHUNK, snapshot_bytes_per_second=rate))
    meta = sender.offer()
    began = sender.now
    receiver = Side(2)
    transfer(sender, receiver, meta)
    assert sender.now - began >= (meta.size - CHUNK) / rate


def test_the_next_chunk_is_read_before_it_is_asked_for(sender: Side) -> None:
    meta = sender.offer()
    sender.chunk(meta, 0)
    sender.work()
    sender.now += 1
    assert len(sender.snapshots.read_chunk(meta, CHUNK, CHUNK) or b"") == CHUNK  # at once


def test_it_goes_on_after_a_restart_of_the_receiver(sender: Side) -> None:
    meta = sender.offer()
    receiver = Side(2)
    transfer(sender, receiver, meta, 3 * CHUNK)
    receiver.restart()
    receiver.take(meta, 0, sender.chunk(meta, 0))
    assert receiver.wanted == 3 * CHUNK
    transfer(sender, receiver, meta)
    receiver.work()
    assert receiver.installed


def test_what_nobody_goes_on_with_is_removed(sender: Side) -> None:
    meta = sender.offer()
    receiver = Side(2)
    transfer(sender, receiver, meta, 2 * CHUNK)
    for side in (sender, receiver):
        side.now += SNAPSHOT_IDLE_S
        side.snapshots.drop_idle()
    assert not receiver.disk.list("m/incoming/1")
    assert sender.snapshots.needed_from() is None
    assert sender.snapshots.read_chunk(meta, 0, CHUNK) is None


def test_a_damaged_image_is_refused_and_the_sender_looks_at_itself(sender: Side) -> None:
    meta = sender.offer()
    receiver = Side(2)
    while receiver.wanted < meta.size:
        data = bytearray(sender.chunk(meta, receiver.wanted))
        if receiver.wanted == 2 * CHUNK:
            data[100] ^= 1
        receiver.take(meta, receiver.wanted, bytes(data))
    receiver.work()
    assert receiver.rejected
    assert not receiver.installed
    sender.snapshots.snapshot_rejected([meta])
    sender.disk.rot("m/state-1", random.Random(1), 0.5)
    assert sender.snapshots.offer_snapshot() is None
    sender.work()
    assert isinstance(sender.folder.state.damage, DataCorrupted), "nobody else is told what it holds"
    assert sender.snapshots.offer_snapshot() is None


def test_both_ends_log_what_becomes_of_a_snapshot(sender: Side, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raykeeper.member")

    def lines() -> list[str]:
        said = [f"{record.levelname} {record.getMessage().partition('cluster c, ')[2]}" for record in caplog.records]
        caplog.clear()
        return said

    meta = sender.offer()
    size = meta.size
    assert lines() == [f"INFO m1: has made a snapshot of index 60, {size} bytes"]
    receiver = Side(2)
    transfer(sender, receiver, meta)
    receiver.work()
    assert lines() == [
        f"INFO m2: a snapshot of index 60 arrives, {size} bytes",
        f"INFO m2: has taken over a snapshot of index 60, {size} bytes",
    ]
    idle = Side(2)
    transfer(sender, idle, meta, 2 * CHUNK)
    idle.now += SNAPSHOT_IDLE_S
    idle.snapshots.drop_idle()
    had = f"of which {2 * CHUNK} of {size} bytes have arrived"
    assert lines()[1:] == [f"INFO m2: a snapshot is given up, {had}: nothing more of it has come for a while"]
    full = Side(2)
    full.disk.full = True
    full.take(meta, 0, sender.chunk(meta, 0))
    assert lines()[-1].startswith("WARNING m2: a snapshot can be neither made nor stored now: ")
    sender.snapshots.snapshot_rejected([meta])
    assert lines() == ["WARNING m1: the snapshot of index 60 has arrived damaged; another is made"]


def test_a_snapshot_that_cannot_be_read_is_dropped_with_a_warning(
    sender: Side, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = sender.offer()

    def broken(*_: object) -> bytes:
        raise OSError("bad sector")

    monkeypatch.setattr(SnapshotSource, "read_chunk", broken)
    assert sender.snapshots.read_chunk(meta, 0, 100) is None
    (warned,) = [record for record in caplog.records if record.levelname != "INFO"]
    assert warned.levelname == "WARNING"
    assert "bad sector" in warned.getMessage()


def test_a_full_disk_of_the_receiver_does_not_count_against_the_snapshot(sender: Side) -> None:
    meta = sender.offer()
    receiver = Side(2)
    transfer(sender, receiver, meta, 2 * CHUNK)
    receiver.disk.full = True
    receiver.take(meta, receiver.wanted, sender.chunk(meta, receiver.wanted))
    assert not receiver.rejected
    assert not receiver.disk.list("m/incoming/1"), "what has come makes room"
    receiver.disk.full = False
    receiver.take(meta, 0, sender.chunk(meta, 0))
    assert not receiver.disk.list("m/incoming"), "not yet"
    receiver.now += SNAPSHOT_RETRY_S
    receiver.wanted = 0
    transfer(sender, receiver, meta)
    receiver.disk.full = True
    receiver.work()
    assert not receiver.rejected
    assert not receiver.installed
    receiver.disk.full = False
    receiver.now += SNAPSHOT_RETRY_S
    receiver.wanted = 0
    transfer(sender, receiver, meta)
    receiver.work()
    assert receiver.installed


def test_an_image_of_an_index_that_is_asked_for(sender: Side) -> None:
    assert sender.snapshots.offer_snapshot(61) is None
    assert not sender.tasks, "there is no such image yet"
    old = sender.offer(60)
    assert sender.snapshots.offer_snapshot(60) == old


def test_the_log_after_a_snapshot_is_kept_up_to_a_bound(sender: Side) -> None:
    sender.offer()
    assert sender.snapshots.needed_from() == 60
    sender.limits = Limits(log_hold_bytes=sender.folder.log.size_bytes)
    sender.snapshots = sender.begin()
    sender.offer()
    assert sender.snapshots.needed_from() is None


def test_a_lost_state_makes_no_images() -> None:
    side = Side(1, entries=20)
    side.folder.log.trim(10, Configuration(voters=(1, 2)))
    side.folder.close()
    side.disk.damage("m/state-1", random.Random(1))
    side.folder = DataDir.open(side.disk, "m", rebuild=True)
    side.snapshots = side.begin()
    assert side.snapshots.offer_snapshot() is None
    assert not side.tasks
