"""Whatever comes to a member's door, by frame or from a peer: it is answered or dropped, and the member lives on."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.extremes import raw, unbounded
from raykeeper.actors.member.events import InboxEvent
from raykeeper.actors.member.operator_requests import OperatorRequests
from raykeeper.actors.member.replica import Replica
from raykeeper.actors.member.request_handler import RequestHandler
from raykeeper.actors.transport.peer_frames import PeerFrame, decode_frame, encode_frame
from raykeeper.limits import APPLY_WORK, MAX_FRAME_DEADLINE_S, MAX_READY_ROUNDS, Settings
from raykeeper.raft import LogInconsistent
from raykeeper.raft.messages import (
    AppendEntries,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    InstallSnapshot,
    Message,
    SnapshotMeta,
)
from raykeeper.schema import frame_validation
from raykeeper.schema.commands import Administration, ClientWrite, ClientWrites
from raykeeper.schema.frames import Open, Refused, Reply, Request, Writes
from raykeeper.schema.operations import KeyRange, Put, Range, Txn
from raykeeper.store.data_dir import DataDir, FirstMember, Identity
from simulation.disk import SimDisk

CLUSTER = 7
FIRST = tuple(FirstMember(member, f"m{member}") for member in (1, 2, 3))


class Solo:
    """A member whose time goes by hand; alone, or one of three whose others say nothing of themselves."""

    def __init__(self, members: int = 1) -> None:
        identity = Identity(
            cluster_name="x", cluster=CLUSTER, member=1, name="m1", members=FIRST[:members], settings=Settings()
        )
        self.disk = SimDisk()
        self.now = 100.0
        self.sent: list[Message] = []
        self.begin(DataDir.create(self.disk, "data", identity))

    def begin(self, folder: DataDir) -> None:
        self.replica = Replica(
            folder=folder,
            timings=Settings().timings,
            limits=Settings().limits,
            send=self.sent.extend,
            clock=lambda: self.now,
            rng=random.Random(1),
            background=lambda work, then: None,
        )
        self.events: list[InboxEvent] = []
        operators = OperatorRequests(
            SimpleNamespace(replica=self.replica), self.at_once, lambda: None, lambda: self.now
        )
        self.handler = RequestHandler(
            self.replica,
            self.enqueue,
            lambda: self.now,
            lambda: None,  # type: ignore[arg-type, return-value]
            operators,
        )

    def at_once(self, work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        failed: Exception | None = None
        try:
            work()
        except Exception as error:
            failed = error
        then(failed)

    def enqueue(self, event: InboxEvent, size: int) -> bool:
        self.events.append(event)
        return True

    def turn(self, messages: list[Message] | None = None, seconds: float = 0.05) -> None:
        self.now += seconds
        events, self.events = self.events, []
        self.replica.turn(messages or [], events)

    def lead(self) -> None:
        for _ in range(100):
            self.turn()
            if self.replica.node.committed_in_term:
                return
        raise AssertionError("not elected")

    def submit(self, frame: bytes) -> list[Callable[[], bytes]]:
        answers: list[Callable[[], bytes]] = []
        self.handler.handle_request(frame, answers.append)
        return answers

    def restart(self) -> None:
        self.replica.stop("restarted")
        self.begin(DataDir.open(self.disk, "data", rebuild=True))


def test_every_kind_of_frame_and_command_is_checked() -> None:
    assert set(frame_validation.FRAME_CHECKS) == set(get_args(Request))
    assert set(frame_validation.COMMAND_CHECKS) == set(get_args(Administration))


@pytest.mark.parametrize("of", [Request, PeerFrame])
def test_every_number_that_comes_has_bounds(of: Any) -> None:
    assert unbounded(of) == []


def test_the_highest_ids_that_are_drawn_travel() -> None:
    cluster = (1 << 63) - 1
    frame = PeerFrame(cluster, 1, 2, 1 << 62, 1, (Heartbeat(1, 2, 3, 4, 5),))
    assert decode_frame(encode_frame(frame)) == frame
    request = Open(cluster, 5.0, b"n")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=Request) == request


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32))
def test_every_frame_is_answered_and_does_no_harm(seed: int) -> None:
    rng = random.Random(seed)
    solo = Solo()
    solo.lead()
    for _ in range(25):
        frame = raw(Request, rng)
        if isinstance(frame, list) and len(frame) > 1 and rng.random() < 0.9:
            frame[1] = CLUSTER
            if len(frame) > 2 and rng.random() < 0.7:
                frame[2] = 5.0
        got = solo.submit(msgspec.msgpack.encode(frame))
        for _ in range(4):
            solo.turn()
        if not got:  # a poll, or who waits for what never comes
            for _ in range(3):
                solo.turn(seconds=MAX_FRAME_DEADLINE_S / 2)
        solo.lead()
        assert len(got) == 1, frame
        bare = frame[2] if isinstance(frame, list) and frame[0] == 16 and len(frame) > 2 else frame
        if not isinstance(bare, list) or bare[:1] != [6]:  # the status is not ours to make
            msgspec.msgpack.decode(got[0](), type=Reply)
    index = solo.replica.state.applied_index
    solo.restart()
    solo.lead()
    assert solo.replica.state.applied_index > index


@pytest.mark.parametrize("frame", [b"", b"\xc1", b"\x91" * 5000, b"\x94\x01\x07\x01" + b"\x91" * 100_000, b"\xff" * 50])
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    solo = Solo()
    (make,) = solo.submit(frame)
    assert isinstance(msgspec.msgpack.decode(make(), type=Reply), Refused)
    assert decode_frame(frame) is None
    assert decode_frame(encode_frame(PeerFrame(7, 1, 2, 1, 1, ()))[:4] + frame) is None


def peer_message(rng: random.Random, solo: Solo) -> Message | None:
    """A message from a peer, as the transport takes it in."""
    kind = rng.choice(get_args(Message))
    fields = raw(kind, rng)
    if not isinstance(fields, list) or len(fields) < 4:
        return None
    fields[1:3] = [rng.choice((2, 3, 9)), 1]
    if rng.random() < 0.7:
        fields[3] = solo.replica.node.term + rng.choice((-1, 0, 0, 0, 1, 2))
    data = msgspec.msgpack.encode([CLUSTER, fields[1], 1, 1, 1, [fields]])
    frame = decode_frame(zlib.crc32(data).to_bytes(4, "big") + data)
    return None if frame is None else frame.messages[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_no_message_of_a_peer_ends_a_member(seed: int) -> None:
    """A peer may say nonsense; only what contradicts what is committed may end a member (``LogInconsistent``)."""
    rng = random.Random(seed)
    solo = Solo(3)
    for _ in range(60):
        message = peer_message(rng, solo)
        try:
            solo.turn([message] if message is not None else [], seconds=rng.choice((0.0, 0.05, 0.3, 2.0)))
        except LogInconsistent:
            return
    assert solo.replica.node.term < 1 << 50
    assert solo.replica.state.damage is None


def test_a_term_that_no_elections_can_have_made_is_none() -> None:
    """A member that entered it would take all others along, and there would be no term left to elect a leader in."""
    solo = Solo(3)
    for term in (1 << 62, 1 << 61, 1 << 50):
        solo.turn([Heartbeat(2, 1, term, 0, 0)])
        assert solo.replica.node.term < 10
    solo.turn([Heartbeat(2, 1, 1000, 0, 0)])
    assert solo.replica.node.term == 1000


@pytest.mark.parametrize(
    "entries",
    [
        ((1, 5), (3, 5)),
        ((1, 5), (1, 5)),
        ((2, 5),),
        ((1, 5), (2, 4)),
        ((1, 6),),
        ((1, 5), (2, 6), (3, 5)),
    ],
)
def test_entries_that_no_leader_can_have_made_are_not_taken(entries: tuple[tuple[int, int], ...]) -> None:
    solo = Solo(3)
    made = tuple(Entry(index, term, EntryKind.NORMAL, b"") for index, term in entries)
    solo.turn([AppendEntries(2, 1, 5, 0, 0, 9, made)])
    assert solo.replica.node.last_index == 0


def test_a_snapshot_with_an_invalid_id_is_refused() -> None:
    solo = Solo(3)
    meta = SnapshotMeta(10, 1, Configuration(voters=(1, 2, 3)), "../../../etc", 1 << 40)
    solo.turn([InstallSnapshot(2, 1, 3, meta, 0, b"x" * 100, False)])
    solo.turn([InstallSnapshot(2, 1, 3, meta, 100, b"x" * 100, True)])
    assert not [path for path in solo.disk.list("data") if "etc" in path]


def test_a_heavy_frame_is_applied_in_more_than_one_turn() -> None:
    solo = Solo()
    solo.lead()
    opened = solo.submit(msgspec.msgpack.encode(Open(CLUSTER, 5.0, b"n")))
    solo.turn()
    session = msgspec.msgpack.decode(opened[0](), type=Reply).session
    keys = [ClientWrite(n, Put(b"k%03d" % n, b"")) for n in range(1, 301)]
    solo.submit(msgspec.msgpack.encode(Writes(CLUSTER, 5.0, ClientWrites(session, 1, tuple(keys)))))
    solo.turn()
    count = Txn((), (Range(KeyRange(b"k", b"l"), count_only=True),) * 10)
    slices = 5 * MAX_READY_ROUNDS
    heavy = tuple(ClientWrite(n, count) for n in range(301, 301 + slices * APPLY_WORK // 3000))
    got = solo.submit(msgspec.msgpack.encode(Writes(CLUSTER, 5.0, ClientWrites(session, 301, heavy))))
    after = solo.submit(msgspec.msgpack.encode(Writes(CLUSTER, 5.0, ClientWrites(session, 301, (keys[0],)))))
    turns = 0
    while not got:
        solo.turn()
        turns += 1
        assert solo.replica.next_wakeup() <= solo.now or got
    assert 2 <= turns <= 4
    assert len(msgspec.msgpack.decode(got[0](), type=Reply).answers) == len(heavy)
    solo.turn()
    assert after
