"""A backup by etcd's Maintenance.Snapshot: what arrives is a whole file, from which a cluster is restored."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lab.patience import PATIENCE, until
from lab.proxy_services import LabClientStream, LabProxy, lab_proxy
from raykeeper import DataCorrupted
from raykeeper.actors.member import backup_source
from raykeeper.actors.proxy import snapshot_service
from raykeeper.actors.proxy.etcdpb.cluster_pb2 import SnapshotRequest, SnapshotResponse
from raykeeper.actors.proxy.maintenance_service import ETCD_VERSION
from raykeeper.actors.proxy.member_calls import MemberCalls
from raykeeper.limits import BACKUP_IDLE_S, Settings
from raykeeper.schema.operations import KeyRange, Range
from raykeeper.store.backup_file import create_member, verify
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from simulation.disk import SimDisk

SNAPSHOT = "/etcdserverpb.Maintenance/Snapshot"


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[LabProxy]:
    monkeypatch.setattr(snapshot_service, "PROXY_SNAPSHOT_BYTES", 5000)
    with lab_proxy() as made:
        for number in range(200):
            made.kv.put(f"k{number}", bytes(300) + b"%d" % number)
        yield made


def begun(proxy: LabProxy, takes: int | None = None) -> LabClientStream:
    """A client that has asked for a backup.

    Args:
        takes: how many of its messages it takes until it has room for more; ``None`` for all.
    """
    stream = proxy.stream(SNAPSHOT)
    if takes is not None:
        stream.inner.room = asyncio.Semaphore(takes)
    stream.send(SnapshotRequest().SerializeToString())
    stream.finish()
    return stream


def saved(stream: LabClientStream) -> tuple[bytes, list[SnapshotResponse]]:
    """The file as etcdctl writes it, and the messages that it came in."""
    messages = []
    while isinstance(message := stream.receive(), bytes):
        messages.append(SnapshotResponse.FromString(message))
    assert message is None, message
    return b"".join(message.blob for message in messages), messages


def test_it_is_a_file_that_a_cluster_is_restored_from(proxy: LabProxy) -> None:
    file, messages = saved(begun(proxy))
    assert len(file) % 512 == 32
    assert file[-32:] == hashlib.sha256(file[:-32]).digest()
    assert len(messages) > 5
    assert {message.version for message in messages} == {ETCD_VERSION}
    left = len(file) - 32
    for message in messages[:-1]:
        left -= len(message.blob)
        assert message.remaining_bytes == left
    assert (messages[-1].remaining_bytes, left) == (0, 0)

    disk = SimDisk()
    disk.make_folder("new")
    disk.append("saved", file)
    header = verify(disk, "saved")
    assert header.revision == proxy.member.loop.replica.state.revision
    members = (FirstMember(1, "m1"),)
    identity = Identity(cluster_name="n", cluster=9, member=1, name="m1", members=members, settings=Settings())
    create_member(disk, "new/m1", identity, "saved")
    folder = DataDir.open(disk, "new/m1")
    answer = folder.state.range(Range(KeyRange(b"uk", b"ul"), keys_only=True), page_items=999, page_bytes=1 << 20)
    assert answer.count == 200  # type: ignore[union-attr]
    folder.close()

    for where in (3, len(file) // 2, len(file) - 200, len(file) - 1):
        disk.remove("damaged")
        disk.append("damaged", file[:where] + bytes([file[where] ^ 1]) + file[where + 1 :])
        with pytest.raises(DataCorrupted):
            verify(disk, "damaged")
    for length in (len(file) - 1, len(file) - 33, len(file) - 600):
        disk.remove("short")
        disk.append("short", file[:length])
        with pytest.raises(DataCorrupted):
            verify(disk, "short")


def test_the_next_part_waits_until_the_client_has_taken_the_last(
    proxy: LabProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile the member keeps the backup, however long that takes; it makes no second one, until the first ends."""
    monkeypatch.setattr(snapshot_service, "BACKUP_IDLE_S", 0.03)  # which is how often it is asked for, a third of it
    backups, clock = proxy.member.loop.backups, SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(backup_source, "time", clock)
    read_chunk, parts, asked_for = backups.read_chunk, [], itertools.count(1)
    enough = threading.Event()

    def read_slowly(id: str, offset: int, size: int) -> bytes:
        data = read_chunk(id, offset, size)
        if size > 1:
            parts.append(offset)
        else:
            clock.now += 0.8 * BACKUP_IDLE_S
            backups.drop_idle()
            if next(asked_for) == 10:
                enough.set()
        return data

    monkeypatch.setattr(backups, "read_chunk", read_slowly)
    stream = begun(proxy, takes=1)
    first = stream.receive()
    assert isinstance(first, bytes)
    assert enough.wait(PATIENCE)
    assert parts == [0], "the part that waits is the only one that was read"
    assert stream.inner._arrived.empty()
    assert begun(proxy).receive() == (8, "etcdserver: too many requests")
    proxy.loop.call_soon_threadsafe(stream.inner.room.release)
    second = stream.receive()
    assert isinstance(second, bytes)
    until(lambda: len(parts) == 2)
    for _ in range(100):
        proxy.loop.call_soon_threadsafe(stream.inner.room.release)
    rest, _ = saved(stream)
    file = SnapshotResponse.FromString(first).blob + SnapshotResponse.FromString(second).blob + rest
    assert file[-32:] == hashlib.sha256(file[:-32]).digest()
    again, _ = saved(begun(proxy))
    assert len(again) % 512 == 32


class SlowBackups:
    """Holds the member up before it makes a backup, and before it drops one, until it is let go on."""

    def __init__(self, proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self._backups = proxy.member.loop.backups
        self._begin, self._end = self._backups.begin_backup, self._backups.end_backup
        self.begin_asked, self.begin, self.made = threading.Event(), threading.Event(), threading.Event()
        self.end_asked, self.end = threading.Event(), threading.Event()
        monkeypatch.setattr(self._backups, "begin_backup", self._begin_later)
        monkeypatch.setattr(self._backups, "end_backup", self._end_later)

    def _begin_later(self, *arguments: Any) -> Any:
        self.begin_asked.set()
        assert self.begin.wait(PATIENCE)
        try:
            return self._begin(*arguments)
        finally:
            self.made.set()

    def _end_later(self, id: str) -> None:
        self.end_asked.set()
        assert self.end.wait(PATIENCE)
        self._end(id)

    def holds_one(self) -> bool:
        return self._backups._outgoing is not None


def test_the_member_has_dropped_a_backup_before_the_client_has_all_of_it(
    proxy: LabProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the next one can be asked for at once."""
    slow = SlowBackups(proxy, monkeypatch)
    slow.begin.set()
    stream, left = begun(proxy), 1
    while left:
        message = stream.receive()
        assert isinstance(message, bytes), message
        left = SnapshotResponse.FromString(message).remaining_bytes
    assert slow.end_asked.wait(PATIENCE)
    assert stream.inner._arrived.empty(), "the digest has left before the backup was dropped"
    slow.end.set()
    last = stream.receive()
    assert not slow.holds_one()
    assert isinstance(last, bytes)
    assert len(SnapshotResponse.FromString(last).blob) == 32
    assert stream.receive() is None
    for _ in range(3):
        saved(begun(proxy))
        assert not slow.holds_one()


def test_a_client_that_goes_leaves_nothing(proxy: LabProxy) -> None:
    stream = begun(proxy, takes=1)
    assert isinstance(stream.receive(), bytes)
    assert proxy.member.loop.backups._outgoing is not None
    stream.close()
    until(lambda: proxy.member.loop.backups._outgoing is None)


def test_who_asks_after_a_client_that_has_gone_is_not_refused(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowBackups(proxy, monkeypatch)
    slow.begin.set()
    stream = begun(proxy, takes=1)
    assert isinstance(stream.receive(), bytes)
    stream.close()
    assert slow.end_asked.wait(PATIENCE)
    slow.begin_asked.clear()
    again = begun(proxy)
    proxy.run(asyncio.sleep(0.01))  # time for the second to be refused in
    assert not slow.begin_asked.is_set(), "the member was asked while it was still to drop the first"
    slow.end.set()
    file, _ = saved(again)
    assert len(file) % 512 == 32


def test_a_client_that_goes_before_its_backup_is_made_leaves_nothing(
    proxy: LabProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowBackups(proxy, monkeypatch)
    slow.end.set()
    stream = begun(proxy)
    assert slow.begin_asked.wait(PATIENCE)
    stream.close()
    slow.begin.set()
    assert slow.made.wait(PATIENCE)
    until(lambda: slow.end_asked.is_set() and not slow.holds_one())
    file, _ = saved(begun(proxy))
    assert len(file) % 512 == 32


def test_who_asks_while_a_backup_that_nobody_wants_is_made_is_not_refused(
    proxy: LabProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowBackups(proxy, monkeypatch)
    stream = begun(proxy)
    assert slow.begin_asked.wait(PATIENCE)
    stream.close()
    slow.begin_asked.clear()
    late = proxy.stream(SNAPSHOT)
    late.inner._left = 0.05
    late.send(SnapshotRequest().SerializeToString())
    again = begun(proxy)
    assert late.receive() == (14, "etcdserver: request timed out"), "its own time is over"
    assert not slow.begin_asked.is_set(), "the member was asked while it was still to make the first"
    slow.begin.set()
    assert slow.end_asked.wait(PATIENCE)
    proxy.run(asyncio.sleep(0.01))  # time for the second to be refused in
    assert slow.holds_one()
    slow.end.set()
    file, _ = saved(again)
    assert len(file) % 512 == 32


def test_a_client_that_takes_nothing_is_given_up(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_service, "BACKUP_IDLE_S", 0.3)
    monkeypatch.setattr(snapshot_service, "PROXY_SNAPSHOT_STALL_S", 0.5)
    assert begun(proxy, takes=0).receive() == (14, "etcdserver: request timed out")
    until(lambda: proxy.member.loop.backups._outgoing is None)


@pytest.mark.parametrize("closed", [False, True], ids=["the loop stopped", "the loop closed"])
def test_the_collector_ends_a_call_and_sends_nothing(
    proxy: LabProxy, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """The loop has ended meanwhile: what the collector ends runs on any thread, under any lock."""
    monkeypatch.setattr(snapshot_service, "BACKUP_IDLE_S", 100.0)
    ended: list[object] = []
    unraisable: list[object] = []
    monkeypatch.setattr(MemberCalls, "end_backup", lambda self, backup: ended.append(backup))
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    service = proxy.services.streaming[SNAPSHOT]
    requests, loop = iter([b""]), asyncio.new_event_loop()

    async def receive() -> bytes:
        return next(requests)

    async def send(message: bytes) -> None:
        loop.stop()
        await asyncio.Event().wait()

    stream: Any = SimpleNamespace(receive=receive, send=send, time_left=lambda: PATIENCE)
    stream.metadata, stream.client = {}, "the lab"
    call = service(stream)
    task = loop.create_task(call)
    loop.run_forever()
    if closed:
        loop.close()
    call.close()
    assert not ended
    assert not unraisable
    del task
    gc.collect()
    loop.close()
