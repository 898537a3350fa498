"""Clients share a member by lane: none has more than its share under way while others ask, and slow replies take turns.

Real sockets, and a clock that stands still: once clients count as several, they do until a test moves it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from lab.lanes import LaneEnd, LaneHost, until
from lab.patience import PATIENCE
from raykeeper.actors.transport import lane_listener, lane_server
from raykeeper.actors.transport.lane import Connection, LaneFrame
from raykeeper.actors.transport.lane_readers import LaneReaders, Waiting
from raykeeper.actors.transport.lane_server import Lane
from raykeeper.limits import LANE_READ_BYTES, LANE_READERS, LANE_SHARE_BYTES, LANE_SHARE_S
from raykeeper.schema.frames import (
    AsUser,
    CreateWatch,
    KeepAlive,
    Reads,
    Refusal,
    Refused,
    Reply,
    WatchPoll,
    is_poll,
)
from raykeeper.schema.operations import KeyRange

SHARE = b"later" + bytes(LANE_SHARE_BYTES)
encode = msgspec.msgpack.encode


def poll_of(watches: int) -> WatchPoll:
    create = tuple(CreateWatch(number, KeyRange(b"key of some length")) for number in range(watches))
    return WatchPoll(cluster=1, deadline=1.0, stream=b"s" * 16, first=True, create=create)


class Two:
    """A noisy client, whose requests are answered when the test says so, and a quiet one."""

    def __init__(self, host: LaneHost) -> None:
        self.host = host
        self.noisy, self.quiet = host.client(), host.client()
        self._number = 0
        self.send(b"later, and first")
        self.answer()
        (self.lane,) = (lane for lane in host.lanes._lanes.values() if lane is self._latest_lane)

    @property
    def _latest_lane(self) -> Lane | None:
        return self.host.lanes._latest

    def send(self, frame: bytes = SHARE) -> None:
        self._number += 1
        self.noisy.send(self._number, frame)

    def arrived(self) -> int:
        return sum(frame.startswith(b"later") for frame in self.host.asked) - 1

    def answer(self) -> None:
        """Answer the noisy client's oldest request."""
        until(lambda: self.host.open)
        done = self.host.open.pop(0)[1]
        self.host.do(lambda: done(lambda: b""))
        self.noisy.receive()


@pytest.fixture
def two(lane_host: LaneHost) -> Iterator[Two]:
    clients = Two(lane_host)
    yield clients
    clients.noisy.close()
    clients.quiet.close()


def test_a_client_that_is_alone_has_all_it_likes_under_way(two: Two) -> None:
    for _ in range(5):
        two.send()
    until(lambda: two.arrived() == 5)
    assert two.lane.connection.is_reading()


def test_beside_another_client_the_rest_stays_in_the_socket(two: Two) -> None:
    two.send()
    until(lambda: two.arrived() == 1)
    assert two.quiet.ask(1, b"a") == b"re a"
    two.send()  # what was read before the share was counted
    until(lambda: not two.lane.connection.is_reading())
    assert two.arrived() == 2
    two.send()
    for number in range(20):
        assert two.quiet.ask(2 + number, b"a") == b"re a"
    assert two.arrived() == 2
    two.answer()
    assert not two.lane.connection.is_reading(), "one request still is a whole share"
    two.answer()
    until(lambda: two.arrived() == 3)
    two.answer()
    until(lambda: two.lane.connection.is_reading())


def test_a_client_that_is_alone_again_goes_on_as_before(two: Two) -> None:
    two.send()
    until(lambda: two.arrived() == 1)
    assert two.quiet.ask(1, b"a") == b"re a"
    two.send()
    until(lambda: not two.lane.connection.is_reading())
    two.host.now += 2 * LANE_SHARE_S
    two.send()
    two.answer()
    until(lambda: two.arrived() == 3)
    for _ in range(3):
        two.send()
    until(lambda: two.arrived() == 6)
    assert two.lane.connection.is_reading()


def test_small_requests_of_two_clients_wait_for_nothing(two: Two) -> None:
    for _ in range(20):
        two.send(b"later, and small")
        assert two.quiet.ask(1, b"a") == b"re a"
    until(lambda: two.arrived() == 20)
    assert two.lane.connection.is_reading()


def test_a_poll_of_watches_takes_no_share(lane_host: LaneHost) -> None:
    """It is under way until something happens, so it must not keep its client from asking for anything else."""
    held: list[Any] = []
    host = LaneHost(2, submit=lambda frame, done: held.append(done) if is_poll(frame) else done(lambda: b"re"))
    try:
        watching, other = host.client(), host.client()
        poll = encode(poll_of(5000))
        assert len(poll) > LANE_SHARE_BYTES
        for number in range(3):
            watching.send(number, poll)
            assert other.ask(number, b"a") == b"re"
        until(lambda: len(held) == 3)
        assert watching.ask(9, b"a") == b"re"
    finally:
        host.close()


def test_polls_are_told_from_other_requests() -> None:
    poll = poll_of(1)
    for token in (b"", b"t" * 40, b"t" * 300):
        assert is_poll(encode(AsUser(token, poll)))
        assert not is_poll(encode(AsUser(token, KeepAlive(1, 1.0, 9))))
    assert is_poll(encode(poll))
    assert not is_poll(encode(Reads(9, 9.0, False, ())))
    for garbage in (b"", b"\x96", b"\x93\x10", b"\x93\x10\xc4", b"\x93\x10\xc4\xff", b"\x93\x10\xc5\x00"):
        assert not is_poll(garbage)


class Asks:
    """A lane with replies to make."""

    def __init__(self) -> None:
        self.slow: Waiting = Waiting()


def test_a_turn_reads_a_few_lanes_and_the_next_one_others(lane_host: LaneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much each has to say, what one turn reads is bounded, and each is read in the end."""
    monkeypatch.setattr(lane_server, "TURN_BYTES", 2 * LANE_READ_BYTES)
    clients = [lane_host.client() for _ in range(5)]
    until(lambda: len(lane_host.lanes) == 5)
    lane_host.end_loop()
    read: list[Connection] = []

    def receive(connection: Connection) -> list[LaneFrame]:  # which leaves what there is
        read.append(connection)
        return []

    monkeypatch.setattr(Connection, "receive", receive)
    for number, client in enumerate(clients):
        client.send(number, b"more than one turn can read")
    turns = []
    for _ in range(10):
        lane_host.lanes.serve(lane_host.lanes.wait(PATIENCE), clients=True)
        turns.append(set(read))
        read.clear()
    assert [len(turn) for turn in turns[1:]] == [2] * 9, "the first may be a wake-up before all has come"
    assert set.union(*turns) == {lane.connection for lane in lane_host.lanes._lanes.values()}
    for client in clients:
        client.close()


def test_more_requests_than_a_member_can_hold_are_refused(lane_host: LaneHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all clients together, before each has had its share: who comes then is told at once."""
    monkeypatch.setattr(lane_server, "MAX_LANES_REQUESTS", 3)
    clients = [lane_host.client() for _ in range(4)]
    for number, client in enumerate(clients[:3]):
        client.send(number, b"later")
        until(lambda number=number: len(lane_host.open) == number + 1)  # type: ignore[misc]
    refused = msgspec.msgpack.decode(clients[3].ask(9, b"one more"), type=Reply)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.OVERLOADED
    done = lane_host.open.pop(0)[1]
    lane_host.do(lambda: done(lambda: b""))
    clients[0].receive()
    assert clients[3].ask(10, b"now") == b"re now"
    for client in clients:
        client.close()


def test_lanes_take_turns_with_replies_that_take_long() -> None:
    made: list[tuple[Asks, int]] = []
    under_way, go_on = threading.Semaphore(0), threading.Event()

    def finish(lane: Asks, number: int, weight: int, make: Any) -> None:
        made.append((lane, number))
        under_way.release()
        assert go_on.wait(60)

    readers, noisy, quiet = LaneReaders(finish), Asks(), Asks()
    for number in range(20):
        assert readers.submit(noisy, number, 1, bytes)
    for _ in range(LANE_READERS):
        assert under_way.acquire(timeout=60)
    assert readers.submit(quiet, 0, 1, bytes)
    go_on.set()
    for _ in range(21 - LANE_READERS):
        assert under_way.acquire(timeout=60)
    assert (quiet, 0) in made[: LANE_READERS + 2], "it waits for those under way, and for one more"
    assert sorted(number for lane, number in made if lane is noisy) == list(range(20))
    readers.close()
    assert not readers.submit(quiet, 1, 1, bytes)


def test_a_flood_that_is_held_back_does_not_keep_the_listener_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is paused stays so until the next look, whatever other connections do meanwhile."""
    monkeypatch.setattr(lane_listener, "LANE_ACCEPTS_PER_S", 0)
    monkeypatch.setattr(lane_listener, "LANE_ACCEPTS_AT_ONCE", 20)
    monkeypatch.setattr(lane_listener, "_LOOK_S", 3600.0)
    taken: list[bool] = []
    take = lane_listener.AcceptRate.take

    def counted(rate: lane_listener.AcceptRate) -> bool:
        taken.append(take(rate))
        return taken[-1]

    monkeypatch.setattr(lane_listener.AcceptRate, "take", counted)
    host = LaneHost(2)
    try:
        socks = [host.unauthenticated() for _ in range(60)]
        until(lambda: host.lanes._listener._paused != set())
        for sock in socks[:20]:
            sock.sendall(b"x" * 64)
        until(lambda: not host.lanes._listener._unauthenticated, "they are rejected")
        assert len(host.lanes._listener._paused) == 1
        assert taken == [True] * 20 + [False]
        for sock in socks:
            sock.close()
    finally:
        host.close()


def test_a_lane_that_ends_with_a_share_under_way_leaves_nothing(two: Two) -> None:
    two.send()
    until(lambda: two.arrived() == 1)
    assert two.quiet.ask(1, b"a") == b"re a"
    two.noisy.close()
    until(lambda: len(two.host.lanes) == 1)
    two.host.open.pop(0)[1](lambda: b"to nobody")
    assert two.lane.bytes_under_way == 0
    again: LaneEnd = two.host.client()
    assert again.ask(1, b"a") == b"re a"
    again.close()
