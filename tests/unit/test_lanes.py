"""Lanes without Ray: who is let in, what is bounded, what an end of file does. Real sockets, played members."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from raykeeper.actors.protocol import Refused, Reply
from raykeeper.actors.service import Slow
from raykeeper.actors.transport import descriptors, lane_frames, lane_gate, lanes
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.actors.transport.lane_frames import (
    FrameKind,
    Hello,
    LaneBroken,
    LaneOffer,
    NoRoom,
    Splitter,
    Wire,
    open_lane,
    pack,
    pack_hello,
)
from raykeeper.actors.transport.lanes import Lanes
from raykeeper.actors.transport.peer_lanes import PeerLanes
from raykeeper.limits import (
    MAX_LANE_REQUESTS,
    MAX_LANE_STRANGERS,
    RESERVED_DESCRIPTORS,
)

CLUSTER = 77
PATIENCE = 5.0
"""Seconds: a machine may be slow, and no test waits for time to pass."""


def until(condition: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.002)


# --- a member's side --------------------------------------------------------------------------------------------------


class House:
    """A member's lanes with a thread in place of its loop."""

    def __init__(self, member: int = 1, submit: Callable[..., None] | None = None) -> None:
        self.now = 0.0
        self.member = member
        self.asked: list[bytes] = []
        self.open: list[tuple[bytes, Callable[[Any], None]]] = []
        self.heard: list[bytes] = []
        self.news: list[tuple[str, int]] = []
        self.todo: list[Callable[[], None]] = []
        self.lanes = Lanes(
            cluster=CLUSTER,
            member=member,
            node="here",
            host="127.0.0.1",
            submit=submit or self._echo,
            take_in=self.heard.append,
            came=lambda peer: self.news.append(("came", peer)),
            lost=lambda peer: self.news.append(("lost", peer)),
            gone=lambda peer: self.news.append(("gone", peer)),
            clock=lambda: self.now,
        )
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _echo(self, frame: bytes, done: Callable[[Any], None]) -> None:
        self.asked.append(frame)
        if frame.startswith(b"later"):
            self.open.append((frame, done))
        elif frame.startswith(b"slow"):
            done(Slow(lambda: frame + b" by " + threading.current_thread().name.encode()))
        elif frame.startswith(b"bad"):
            raise ValueError("no")
        else:
            done(lambda: b"re " + frame)

    def _run(self) -> None:
        while not self._stop:
            self.lanes.work(self.lanes.wait(0.02), clients=True)
            while self.todo:
                self.todo.pop(0)()

    def do(self, what: Callable[[], None]) -> None:
        """Have the loop do something."""
        self.todo.append(what)
        self.lanes.ring()

    def close(self) -> None:
        self._stop = True
        self.lanes.ring()
        self._thread.join(PATIENCE)
        self.lanes.close()

    def client(self, node: str = "here", peer: int = 0) -> Client:
        return Client(open_lane(self.lanes.offer(peer=peer != 0), node, peer, PATIENCE))

    def stranger(self) -> socket.socket:
        offer = self.lanes.offer()
        sock = socket.create_connection((offer.host, offer.port), PATIENCE)
        sock.settimeout(PATIENCE)
        return sock


class Client:
    """One end of a lane, blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(PATIENCE)
        self._splitter = Splitter()
        self._frames: list[Any] = []

    def send(self, number: int, frame: bytes, kind: FrameKind = FrameKind.REQUEST) -> None:
        self.sock.sendall(pack(kind, number, frame))

    def receive(self) -> tuple[int, int, bytes]:
        while not self._frames:
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError
            self._frames += self._splitter.feed(data)
        frame: tuple[int, int, bytes] = self._frames.pop(0)
        return frame

    def ask(self, number: int, frame: bytes) -> bytes:
        self.send(number, frame)
        kind, answered, reply = self.receive()
        assert (kind, answered) == (FrameKind.REPLY, number)
        return reply

    def close(self) -> None:
        self.sock.close()


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side closed without a word."""
    try:
        return sock.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


@pytest.mark.parametrize("node", ["here", "there"])
def test_requests_are_answered_by_number_in_any_order(house: House, node: str) -> None:
    client = house.client(node)
    assert client.sock.family == (socket.AF_UNIX if node == "here" else socket.AF_INET)
    assert client.ask(1, b"a") == b"re a"
    client.send(2, b"later")
    assert client.ask(3, b"b") == b"re b"
    house.open[0][1](lambda: b"at last")
    assert client.receive() == (FrameKind.REPLY, 2, b"at last")


def test_what_may_take_long_is_not_done_by_the_loop(house: House) -> None:
    assert b"lane reader" in house.client().ask(1, b"slow")


def test_a_request_that_fails_is_refused_and_the_lane_lives(house: House) -> None:
    client = house.client()
    assert isinstance(msgspec.msgpack.decode(client.ask(1, b"bad"), type=Reply), Refused)
    assert client.ask(2, b"a") == b"re a"


def test_a_reply_that_is_too_large_is_asked_for_by_a_call(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_LANE_FRAME_BYTES", 10)
    client = house.client()
    client.send(1, b"x" * 20)
    assert client.receive() == (FrameKind.BY_CALL, 1, b"")


@pytest.mark.parametrize(
    "hello",
    [
        pack_hello(Hello(b"x" * 16, 0, CLUSTER)),
        b"GET / HTTP/1.1\r\nHost: somebody.example\r\n\r\n",
        b"\0" * lane_frames.HELLO_BYTES,
    ],
    ids=["a wrong token", "another protocol", "zeros"],
)
def test_a_port_answers_nobody_without_the_token(house: House, hello: bytes) -> None:
    stranger = house.stranger()
    stranger.sendall(hello)
    assert is_closed(stranger)
    assert len(house.lanes) == 0


def test_a_token_opens_one_lane_and_only_of_its_cluster(house: House) -> None:
    offer = house.lanes.offer()
    other = msgspec.structs.replace(house.lanes.offer(), cluster=CLUSTER + 1)
    open_lane(offer, "here", 0, PATIENCE).close()
    for used in (offer, other):
        with pytest.raises(LaneBroken):
            open_lane(used, "here", 0, PATIENCE)


def test_whoever_has_taken_the_address_of_a_dead_member_is_found_out(house: House) -> None:
    offer = msgspec.structs.replace(house.lanes.offer(), proof=b"of another one..")
    with pytest.raises(LaneBroken):
        open_lane(offer, "here", 0, PATIENCE)


def test_silent_strangers_have_little_time(house: House) -> None:
    stranger = house.stranger()
    stranger.sendall(b"RK")
    assert house.client().ask(1, b"a") == b"re a"
    house.now += lane_gate.LANE_HELLO_TIMEOUT
    assert is_closed(stranger)


def test_many_strangers_keep_nobody_out(house: House) -> None:
    strangers = [house.stranger() for _ in range(2 * MAX_LANE_STRANGERS)]
    assert house.client("there").ask(1, b"a") == b"re a"
    assert is_closed(strangers[0])
    assert len(house.lanes._gate._strangers) <= MAX_LANE_STRANGERS
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("kind", [FrameKind.MESSAGES, FrameKind.REPLY, 99])
def test_a_client_that_sends_what_is_not_its_own_to_send_is_closed(house: House, kind: Any) -> None:
    client = house.client()
    client.send(1, b"x", kind)
    assert is_closed(client.sock)
    until(lambda: len(house.lanes) == 0)
    assert house.heard == []


def test_a_member_has_a_bounded_number_of_lanes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = house.lanes.offer()
    monkeypatch.setattr(lanes, "MAX_LANES", 1)
    first = house.client()
    with pytest.raises(NoRoom):
        open_lane(offer, "here", 0, PATIENCE)
    assert house.lanes.offer() is None
    assert first.ask(1, b"a") == b"re a"
    assert house.client(peer=2) is not None, "peers are few, and always have room"


def test_lanes_leave_descriptors_to_the_disk_and_to_peers(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on numbers: what is free above it stays free, whatever else this process opens meanwhile."""
    number = descriptors.next_number(0)
    offer = house.lanes.offer()
    monkeypatch.setattr(descriptors, "limit", lambda: number + RESERVED_DESCRIPTORS + 20)
    clients = []
    refused = None
    while refused is None:
        assert len(clients) < 100
        try:
            clients.append(Client(open_lane(offer, "here", 0, PATIENCE)))
        except NoRoom as error:
            refused = error
        offer = house.lanes._gate.offer()
    assert 5 <= len(clients) <= 20
    assert max(house.lanes._lanes) < number + 20
    assert house.lanes.offer() is None
    peer_offer = house.lanes.offer(peer=True)
    assert peer_offer is not None
    Client(open_lane(peer_offer, "here", 2, PATIENCE))
    until(lambda: ("came", 2) in house.news)
    assert all(client.ask(1, b"a") == b"re a" for client in clients)
    for client in clients[:3]:
        client.sock.close()
    until(lambda: house.lanes.offer() is not None, "room again")
    monkeypatch.setattr(descriptors, "limit", lambda: 100)
    assert house.lanes.offer() is None
    assert house.lanes.offer(peer=True) is None, "no room at all: members speak by calls, too"


def test_a_process_without_descriptors_neither_spins_nor_breaks() -> None:
    """In one of its own, which has none left: nobody is let in, the loop rests, and all goes on when some are free."""
    code = """
import os, resource, socket, time
from raykeeper.actors.transport.lane_frames import open_lane, LaneBroken
from raykeeper.actors.transport.lanes import Lanes
from raykeeper.actors.transport.client_lanes import LaneTransport
now = [0.0]
nothing = lambda *_: None
house = Lanes(cluster=7, member=1, node="here", host="127.0.0.1", submit=nothing, take_in=nothing,
              came=nothing, lost=nothing, gone=nothing, clock=lambda: now[0])
offer = house._gate.offer()
caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
taken = [os.dup(0) for _ in range(5)]
resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
caller.connect(chr(0) + offer.local)
turns = 0
end = time.monotonic() + 0.3
while time.monotonic() < end:
    ready = house.wait(0.1)
    house.work(ready, clients=True)
    turns += 1
assert turns < 20, turns
class Calls:
    node = "here"
transport = LaneTransport(Calls())
try:
    transport._begin(1, offer, time.monotonic() + 1)
    raise SystemExit("it was opened")
except LaneBroken:
    pass
os.close(taken[0])
try:
    transport._begin(1, offer, time.monotonic() + 0.2)
    raise SystemExit("it was opened")
except (LaneBroken, OSError):
    pass
assert transport._watch is None
for each in taken[1:]:
    os.close(each)
now[0] += 2.0
until = time.monotonic() + 5
while not house._gate._strangers and time.monotonic() < until:
    house.work(house.wait(0.01), clients=True)
assert house._gate._strangers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_member_raises_its_own_limit_as_far_as_it_may() -> None:
    code = """
import resource
from raykeeper.actors.transport.descriptors import limit, raise_limit
hard = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
assert limit() == 256
raise_limit()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
raise_limit()
assert limit() == hard
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_client_has_a_bounded_number_of_requests_under_way(house: House) -> None:
    client = house.client()

    def send() -> None:  # as far as the member takes it
        for number in range(2 * MAX_LANE_REQUESTS):
            client.send(number, b"later")
        client.send(9999, b"a")

    threading.Thread(target=send, daemon=True).start()
    until(lambda: len(house.asked) >= MAX_LANE_REQUESTS)
    assert house.client().ask(1, b"b") == b"re b", "others are served"
    # What had been read with the last of them is taken; the rest stays with the sender.
    lane = max(house.lanes._lanes.values(), key=lambda each: each.under_way)
    assert not lane.wire.is_reading()
    answered = 0
    while answered < 2 * MAX_LANE_REQUESTS:
        until(lambda: house.open)
        house.open.pop(0)[1](lambda: b"late")
        answered += 1
    replies = [client.receive() for _ in range(2 * MAX_LANE_REQUESTS + 1)]
    assert {number for _, number, _ in replies} == {*range(2 * MAX_LANE_REQUESTS), 9999}


def test_a_client_that_does_not_read_its_answers_is_held_up_and_then_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "LANE_BACKLOG_BYTES", 100_000)
    monkeypatch.setattr(lanes, "MAX_LANE_BACKLOG_BYTES", 3_000_000)
    waiting: list[Callable[[Any], None]] = []
    house = House(submit=lambda frame, done: waiting.append(done))
    client = house.client()
    for number in range(20):
        client.send(number, b"x")
    until(lambda: len(waiting) == 20)
    (lane,) = house.lanes._lanes.values()
    for done in waiting[:4]:
        done(lambda: b"x" * 500_000)
    assert not lane.wire.is_reading()
    assert lane.wire.backlog <= 2_000_000
    for done in waiting[4:]:
        done(lambda: b"x" * 500_000)
    until(lambda: len(house.lanes) == 0, "the lane is closed")
    assert lane.wire.backlog == 0
    house.close()


def test_all_lanes_together_hold_a_bounded_number_of_bytes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "MAX_LANES_BYTES", 1_000_000)
    client = house.client()
    with pytest.raises(OSError):
        client.sock.sendall(pack(FrameKind.REQUEST, 1, b"x" * 20_000_000))
    until(lambda: len(house.lanes) == 0)
    assert house.client().ask(1, b"a") == b"re a"


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_hundreds_of_clients_come_and_go_without_a_trace(house: House) -> None:
    assert house.client().ask(1, b"slow")
    before, threads = open_descriptors(), threading.active_count()
    for _ in range(3):
        clients = [house.client("here" if n % 2 else "there") for n in range(150)]
        for client in clients:
            client.send(1, b"a")
            client.send(2, b"later")
        for client in clients[::3]:
            client.receive()
        for client in clients:
            client.close()
    until(lambda: len(house.lanes) == 0)
    for _, done in house.open:
        done(lambda: b"to nobody")
    until(lambda: house.lanes._under_way == 0)
    assert open_descriptors() <= before
    assert threading.active_count() <= threads + lanes.LANE_READERS


# --- peers ------------------------------------------------------------------------------------------------------------


@contextmanager
def two_members() -> Iterator[tuple[House, House, PeerLanes]]:
    here, there = House(1), House(2)

    def dial(member: int) -> socket.socket:
        return open_lane(there.lanes.offer(), "here", 1, PATIENCE)

    peers = PeerLanes(member=1, lanes=here.lanes, dial=dial, hand_over=here.do, clock=lambda: here.now)
    here.lanes._lost = peers.lost
    try:
        yield here, there, peers
    finally:
        here.close()
        there.close()


def test_messages_of_a_peer_come_by_lane_once_one_is_open() -> None:
    with two_members() as (_, there, peers):
        assert not peers.is_open(2), "the first go by call"
        until(lambda: peers.is_open(2))
        assert peers.carry(2, b"one")
        assert peers.carry(2, b"two")
        until(lambda: there.heard == [b"one", b"two"])
        assert there.news == [("came", 1)]


def test_the_end_of_a_peers_lane_is_noticed_and_another_opened() -> None:
    with two_members() as (here, there, peers):
        until(lambda: peers.is_open(2))
        lane = peers._ways[2].lane
        assert lane is not None
        lane.wire.finish(abruptly=True)
        until(lambda: not peers.is_open(2))
        until(lambda: there.news == [("came", 1), ("gone", 1)])
        assert not peers.is_open(2), "not at once"
        here.now += 60
        until(lambda: peers.is_open(2))


def test_a_peer_that_has_opened_another_lane_is_not_gone(house: House) -> None:
    first, second = house.client(peer=2), house.client(peer=2)
    until(lambda: house.news == [("came", 2), ("came", 2)])
    first.close()
    until(lambda: len(house.lanes) == 1)
    assert ("gone", 2) not in house.news
    second.close()
    until(lambda: ("gone", 2) in house.news)


def test_a_peer_that_takes_nothing_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in deaf:
        end.setblocking(False)
    house = House()
    peers = PeerLanes(member=1, lanes=house.lanes, dial=lambda to: deaf[0], hand_over=house.do, clock=lambda: 0.0)
    until(lambda: peers.is_open(2))
    while peers.is_open(2):
        assert peers.carry(2, b"x" * 100_000)
    lane = peers._ways[2].lane
    assert lane is not None
    assert lane.wire.backlog > 0
    deaf[1].settimeout(PATIENCE)
    while not peers.is_open(2):
        assert deaf[1].recv(1 << 20)
    house.close()
    deaf[1].close()


# --- a client's side --------------------------------------------------------------------------------------------------


class PlayedCalls:
    """Stands where actor calls would."""

    node = "here"

    def __init__(self, house: House | None) -> None:
        self.house = house
        self.frames: list[bytes] = []
        self.offers = 0
        self.closed = 0

    def members(self) -> dict[int, str]:
        return {1: "m1"}

    def refresh(self) -> None:
        pass

    def valid(self) -> bool:
        return True

    def send(self, member: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        self.frames.append(frame)
        done(b"by call " + frame)

    poll = send

    def offer(self, member: int) -> Future[LaneOffer | None]:
        self.offers += 1
        future: Future[LaneOffer | None] = Future()
        future.set_result(None if self.house is None else self.house.lanes.offer())
        return future

    def close(self) -> None:
        self.closed += 1


class Asker:
    """A hub, as far as its transport sees it."""

    def __init__(self, house: House | None) -> None:
        self.calls = PlayedCalls(house)
        self.transport = LaneTransport(self.calls)
        self.replies: dict[bytes, bytes | Exception] = {}

    def send(self, frame: bytes) -> None:
        self.transport.send(1, frame, lambda reply: self.replies.update({frame: reply}))

    def ask(self, frame: bytes) -> bytes | Exception:
        self.send(frame)
        until(lambda: frame in self.replies)
        return self.replies.pop(frame)

    def open(self) -> None:
        until(lambda: not str(self.ask(b"x")).startswith("b'by call"), "a lane is opened")


@pytest.fixture
def asker(house: House) -> Iterator[Asker]:
    made = Asker(house)
    yield made
    made.transport.close()
    until(lambda: len(house.lanes) == 0)


def test_the_first_frames_go_by_call_and_a_single_question_opens_no_lane(asker: Asker) -> None:
    assert asker.ask(b"who leads") == b"by call who leads"
    assert asker.calls.offers == 0
    asker.open()
    assert asker.calls.offers == 1
    asker.calls.frames.clear()
    assert asker.ask(b"put") == b"re put"
    assert asker.calls.frames == []


def test_where_no_lane_is_offered_all_goes_by_call() -> None:
    asker = Asker(None)
    for _ in range(10):
        assert asker.ask(b"a") == b"by call a"
    until(lambda: not asker.transport._ways[1].opening)
    assert asker.calls.offers == 1, "it is not asked for over and over"
    asker.transport.close()


def test_when_a_lane_ends_what_is_under_way_fails_at_once(house: House, asker: Asker) -> None:
    asker.open()
    asker.send(b"later 1")
    asker.send(b"later 2")
    until(lambda: len(house.open) == 2)
    house.close()
    until(lambda: len(asker.replies) == 2)
    assert {type(reply) for reply in asker.replies.values()} == {LaneBroken}
    assert asker.ask(b"a") == b"by call a"


def test_a_lane_that_was_cut_is_opened_again(house: House, asker: Asker) -> None:
    asker.open()
    for lane in list(house.lanes._lanes.values()):
        lane.wire.finish(abruptly=True)
    until(lambda: asker.ask(b"a") == b"by call a")
    asker.open()


def test_a_reply_that_is_too_large_comes_by_call(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    asker.open()
    monkeypatch.setattr(lanes, "MAX_LANE_FRAME_BYTES", 50)
    assert asker.ask(b"y" * 60) == b"by call " + b"y" * 60


def test_a_closed_transport_lets_go_of_everything(house: House) -> None:
    before = open_descriptors()
    asker = Asker(house)
    asker.open()
    asker.send(b"later goodbye")
    asker.transport.close()
    asker.transport.close()
    until(lambda: len(house.lanes) == 0)
    assert house.asked[-1] == b"later goodbye", "the last words have arrived"
    until(lambda: asker.transport._watch is None)
    assert open_descriptors() == before
    assert not [each for each in threading.enumerate() if each.name.startswith("raykeeper-lane")]
    assert asker.calls.closed == 1
    assert isinstance(asker.replies[b"later goodbye"], LaneBroken)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_lets_go_of_its_parents_lanes_without_a_trace(house: House, asker: Asker) -> None:
    asker.open()
    (lane,) = asker.transport._by_fd.values()
    watch = asker.transport._watch
    assert watch is not None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # nothing but this may run in it
        try:
            signal.alarm(60)  # nobody else would end it if it hangs
            os.fstat(lane.wire.fd)
            os.write(writer, b"held")
        except OSError:
            os.write(writer, b"free" if watch.closed else b"watched")
        finally:
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 100) == b"free"
    os.waitpid(child, 0)
    os.close(reader)
    assert asker.ask(b"a") == b"re a", "the parent's lane is as it was"


def test_a_wire_is_written_by_many_threads_and_frames_stay_whole() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    watch = select.epoll()
    wire = Wire(ours, watch)
    threads = [
        threading.Thread(target=lambda frame=frame: [wire.send(frame) for _ in range(200)])
        for frame in [pack(FrameKind.REPLY, n, bytes([n]) * 3000) for n in range(8)]
    ]
    other = Client(theirs)
    for thread in threads:
        thread.start()
    done = threading.Event()

    def flush() -> None:
        while not done.is_set():
            for _, events in watch.poll(0.01):
                if events & select.EPOLLOUT:
                    wire.flush()

    flusher = threading.Thread(target=flush)
    flusher.start()
    for _ in range(1600):
        _, number, payload = other.receive()
        assert payload == bytes([number]) * 3000
    done.set()
    flusher.join()
    assert wire.backlog == 0
    wire.close()
    other.close()
    watch.close()
