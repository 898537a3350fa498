"""A disk that is full, found by every operation that takes room in turn: nothing that was promised is lost, what was
begun is removed, and once there is room the member goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec
import pytest

from raykeeper.errors import NoSpace
from raykeeper.raft.messages import Configuration, Entry, EntryKind, HardState, SnapshotMeta
from raykeeper.schema.commands import ClientWrite, ClientWrites, Command, OpenSession, ReserveMember
from raykeeper.schema.operations import Put
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from raykeeper.store.log.raft_log import RaftLog
from simulation.disk import SimDisk

encode = msgspec.msgpack.encode
SEGMENT = 8 * 1024
VOTERS = Configuration(voters=(1, 2, 3))
LAST = 60


def identity(member: int = 1) -> Identity:
    return Identity("c", 7, member, f"m{member}", tuple(FirstMember(n, f"m{n}") for n in (1, 2, 3)))


def entry(index: int) -> Entry:
    command: Command = OpenSession(b"nonce", 5.0)
    if index > 1:
        put = Put(b"k%d" % (index % 7), random.Random(index).randbytes(300))
        command = ClientWrites(1, index, (ClientWrite(index, put),))
    return Entry(index, 2, EntryKind.NORMAL, encode(command))


def created(disk: SimDisk, member: int = 1) -> DataDir:
    return DataDir.create(disk, f"m{member}", identity(member), segment_bytes=SEGMENT)


def opened(disk: SimDisk, member: int = 1) -> DataDir:
    return DataDir.open(disk, f"m{member}", segment_bytes=SEGMENT, rebuild=True)


def append(folder: DataDir, index: int) -> None:
    """Promise an entry, and apply it."""
    folder.log.append([entry(index)], HardState(3, 2, index), sync=True)
    folder.state.apply([entry(index)])


def apply_again(folder: DataDir) -> None:
    """What a start does with what the state has not on disk."""
    log, state = folder.log, folder.state
    if state.applied_index < log.last_index():
        state.apply(log.entries(state.applied_index + 1, log.last_index() + 1, 1 << 30))


def live(folder: DataDir, promised: list[int]) -> None:
    """A member's life up to ``LAST``: append, flush, trim."""
    apply_again(folder)
    for index in range(folder.log.last_index() + 1, LAST + 1):
        append(folder, index)
        promised[0] = index
        if index % 20 == 0:
            folder.state.flush()
            folder.log.trim(index - 3, VOTERS)


def content_at(last: int) -> str:
    """The content of a state that has applied everything up to an entry."""
    folder = created(SimDisk())
    for index in range(1, last + 1):
        append(folder, index)
    return folder.state.content_hash()


CONTENTS = {last: content_at(last) for last in range(LAST + 1)}


def rooms(run: Callable[[SimDisk, int], bool]) -> Iterator[SimDisk]:
    """Disks that are full after one more operation each time, each after ``run`` has met that; until it meets it no
    more, and returns False."""
    for room in range(500):
        disk = SimDisk()
        if not run(disk, room):
            assert room > 3, "the test needs operations that take room"
            return
        yield disk
    raise AssertionError("it never ends")


def try_to_start(disk: SimDisk) -> None:
    """While it is full, processes start again and again; none leaves anything behind, and each ends in good order."""
    disk.room = 0
    names: set[str] = set()
    for attempt in range(4):
        with suppress(NoSpace):
            opened(disk).close()
        found = {*disk.list("m1"), *(f"log/{name}" for name in disk.list("m1/log"))}
        assert not attempt or found <= names, "what is left grows with each start"
        names = found


@pytest.mark.parametrize("end", ["closed", "crashed", "power lost"])
def test_a_life(end: str) -> None:
    promised = [0]

    def run(disk: SimDisk, room: int) -> bool:
        folder = created(disk)
        promised[0] = 0
        disk.room = room
        try:
            live(folder, promised)
        except NoSpace:
            if end == "closed":
                folder.close()
            elif end == "crashed":
                disk.crash()
            else:
                disk.lose_power(random.Random(disk.operations))
            disk.restart()
            return True
        return False

    for disk in rooms(run):
        try_to_start(disk)
        disk.room = None
        folder = opened(disk)
        assert folder.log.last_index() in (promised[0], promised[0] + 1)
        apply_again(folder)
        assert folder.state.content_hash() == CONTENTS[folder.log.last_index()]
        live(folder, promised)
        assert folder.state.content_hash() == CONTENTS[LAST]
        folder.close()


def test_a_log_without_room_for_its_next_segment_is_not_opened() -> None:
    """A member that starts with it would end with its first append, and so would the next process."""
    disk = SimDisk()
    log = RaftLog.create(disk, "log", cache_bytes=1000, segment_bytes=SEGMENT)
    disk.room = 0
    with suppress(NoSpace):
        for index in range(1, LAST):
            log.append([entry(index)], HardState(3, 2, index), sync=True)
    last = log.last_index()
    assert last < LAST - 1
    log.close()
    with pytest.raises(NoSpace):
        RaftLog.open(disk, "log", cache_bytes=1000, segment_bytes=SEGMENT)
    disk.room = None
    log = RaftLog.open(disk, "log", cache_bytes=1000, segment_bytes=SEGMENT)
    assert log.last_index() == last
    log.close()


def snapshot(disk: SimDisk) -> tuple[Callable[[int, int], bytes], SnapshotMeta]:
    """Another member's, at ``LAST``."""
    folder = created(disk, 2)
    for index in range(1, LAST + 1):
        append(folder, index)
    outgoing = folder.new_snapshot_source()
    folder.state.checkpoint(outgoing.source)
    outgoing.pack()
    return outgoing.read_chunk, SnapshotMeta(LAST, 2, folder.state.configuration, outgoing.id, outgoing.size)


def test_a_snapshot_that_arrives() -> None:
    """Either it is installed or the old state is there; and it arrives again."""

    def run(disk: SimDisk, room: int) -> bool:
        chunk, meta = snapshot(disk)
        folder = created(disk)
        for index in range(1, 6):
            append(folder, index)
        folder.state.flush()
        disk.room = room
        try:
            receive(folder, chunk, meta)
        except NoSpace:
            disk.crash()
            disk.restart()
            return True
        return False

    seen = set()
    for disk in rooms(run):
        try_to_start(disk)
        disk.room = None
        folder = opened(disk)
        seen.add(folder.state.applied_index)
        assert folder.state.content_hash() == CONTENTS[folder.state.applied_index]
        assert folder.log.hard_state.term == 3
        assert folder.log.hard_state.vote == 2
        if folder.state.applied_index < LAST:
            assert folder.log.last_index() == 5
            disk.remove("m1/incoming")
            again = SimDisk()
            receive(folder, *snapshot(again))
        assert folder.state.content_hash() == CONTENTS[LAST]
        folder.close()
    assert seen <= {5, LAST}
    assert 5 in seen


def receive(folder: DataDir, chunk: Callable[[int, int], bytes], meta: SnapshotMeta) -> None:
    incoming = folder.new_snapshot_sink(meta)
    while incoming.received < meta.size:
        incoming.write_chunk(incoming.received, chunk(incoming.received, 4000))
    incoming.unpack()
    folder.install_snapshot(incoming)


def test_a_state_that_is_rebuilt() -> None:
    """Each attempt would leave another state behind."""

    def run(disk: SimDisk, room: int) -> bool:
        folder = created(disk)
        for index in range(1, 31):
            append(folder, index)
        folder.close()
        disk.damage("m1/state-1", random.Random(1))
        disk.room = room
        for _ in range(3):
            try:
                opened(disk).close()
                return False
            except NoSpace:
                assert len([name for name in disk.list("m1") if name.startswith("state-")]) <= 1
        return True

    for disk in rooms(run):
        try_to_start(disk)
        disk.room = None
        folder = opened(disk)
        apply_again(folder)
        assert folder.state.content_hash() == CONTENTS[30]
        folder.close()


def test_a_note_that_is_only_a_hint_ends_nobody() -> None:
    disk = SimDisk()
    folder = created(disk)
    folder.write_membership_note()
    reserved = Entry(1, 2, EntryKind.NORMAL, encode(ReserveMember(b"nonce", "node:1", "/data")))
    folder.log.append([reserved], HardState(3, 2, 1), sync=True)
    folder.state.apply([reserved])
    before = disk.read("m1/membership.json")
    disk.room = 0
    folder.write_membership_note()
    assert disk.read("m1/membership.json") == before
    disk.room = None
    folder.write_membership_note()
    assert disk.read("m1/membership.json") != before
