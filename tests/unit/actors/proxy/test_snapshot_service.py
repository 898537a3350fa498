"""A backup by etcd's Maintenance.Snapshot: what arrives is a whole file, from which a cluster is restored."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator

import pytest

from lab.patience import until, until_still
from lab.proxy_services import LabClientStream, LabProxy, lab_proxy
from raykeeper import DataCorrupted
from raykeeper.actors.proxy import snapshot_service
from raykeeper.actors.proxy.etcdpb.cluster_pb2 import SnapshotRequest, SnapshotResponse
from raykeeper.limits import Settings
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


def begun(proxy: LabProxy) -> LabClientStream:
    stream = proxy.stream(SNAPSHOT)
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
    monkeypatch.setattr(snapshot_service, "BACKUP_IDLE_S", 1.0)  # which is how often it is asked for, a third of it
    monkeypatch.setattr("raykeeper.actors.member.backup_source.BACKUP_IDLE_S", 5.0)
    stream = begun(proxy)
    first = stream.receive()
    assert isinstance(first, bytes)
    proxy.loop.call_soon_threadsafe(stream.inner.gate.clear)
    taken = until_still(stream.inner._arrived.qsize)
    backups = proxy.member.loop.backups
    end = time.monotonic() + 7.0
    while time.monotonic() < end:
        backups.drop_idle()
        threading.Event().wait(0.02)
    assert stream.inner._arrived.qsize() == taken <= 2, "what was on its way when it stopped taking"
    assert begun(proxy).receive() == (8, "etcdserver: too many requests")
    proxy.loop.call_soon_threadsafe(stream.inner.gate.set)
    rest, _ = saved(stream)
    file = SnapshotResponse.FromString(first).blob + rest
    assert file[-32:] == hashlib.sha256(file[:-32]).digest()
    again, _ = saved(begun(proxy))
    assert len(again) % 512 == 32


def test_a_client_that_goes_leaves_nothing(proxy: LabProxy) -> None:
    stream = begun(proxy)
    assert isinstance(stream.receive(), bytes)
    proxy.loop.call_soon_threadsafe(stream.inner.gate.clear)
    stream.close()
    until(lambda: proxy.member.loop.backups._outgoing is None)


def test_a_client_that_takes_nothing_is_given_up(proxy: LabProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_service, "BACKUP_IDLE_S", 1.0)
    monkeypatch.setattr(snapshot_service, "PROXY_SNAPSHOT_STALL_S", 0.5)
    stream = begun(proxy)
    stream.inner.gate.clear()
    while isinstance(answer := stream.receive(), bytes):
        pass
    assert answer == (14, "etcdserver: request timed out")
