"""A client's lanes, on real sockets: when one is opened, and what its end means for what is in flight."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest

from lab.lane_asker import Asker, PlayedCalls
from lab.lanes import LaneHost, open_descriptors, until
from lab.patience import PATIENCE
from raykeeper.actors.transport import client_lanes, lane_server
from raykeeper.actors.transport.client_lane import ClientLane
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.actors.transport.lane import (
    HELLO_BYTES,
    SECRET_BYTES,
    Connection,
    FrameKind,
    LaneBroken,
    LaneOffer,
    pack,
)
from raykeeper.actors.transport.lane_retry import SWALLOWED
from raykeeper.actors.transport.loop_reader import PollAudience
from raykeeper.actors.transport.waiter import LaneSleep, OutcomeWaiter, WakeQueue
from raykeeper.limits import LANE_UNREACHABLE_PAUSE_S


@pytest.fixture
def asker(lane_host: LaneHost) -> Iterator[Asker]:
    made = Asker(lane_host)
    yield made
    made.transport.close()
    until(lambda: len(lane_host.lanes) == 0)


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
    until(lambda: not asker.transport._routes[1].opener.runs)
    assert asker.calls.offers == 1, "it is not asked for over and over"
    asker.transport.close()


def test_when_a_lane_ends_what_is_under_way_fails_at_once(lane_host: LaneHost, asker: Asker) -> None:
    asker.open()
    asker.send(b"later 1")
    asker.send(b"later 2")
    until(lambda: len(lane_host.open) == 2)
    lane_host.close()
    until(lambda: len(asker.replies) == 2)
    assert {type(reply) for reply in asker.replies.values()} == {LaneBroken}
    assert asker.ask(b"a") == b"by call a"


def test_a_lane_that_was_cut_is_opened_again(lane_host: LaneHost, asker: Asker) -> None:
    asker.open()
    for lane in list(lane_host.lanes._lanes.values()):
        lane.connection.shut_down(abruptly=True)
    until(lambda: asker.ask(b"a") == b"by call a")
    asker.open()


def test_a_reply_that_is_too_large_comes_by_call(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    asker.open()
    monkeypatch.setattr(lane_server, "MAX_LANE_FRAME_BYTES", 50)
    assert asker.ask(b"y" * 60) == b"by call " + b"y" * 60


def test_a_caller_that_waits_alone_takes_its_reply_in_itself(asker: Asker) -> None:
    asker.open()
    for _ in range(3):
        assert asker.send_alone(b"put").wait() == (threading.get_ident(), b"re put")
    assert asker.ask(b"get") == b"re get", "and then the lanes' thread reads again"


def test_no_other_reply_waits_for_a_caller_that_is_held_up(asker: Asker) -> None:
    asker.open()
    held_up = asker.send_alone(b"put")
    assert asker.ask(b"get") == b"re get"
    assert held_up.wait() == (asker.thread(), b"re put")


def test_a_caller_that_is_not_alone_leaves_its_reply_to_the_lanes_thread(lane_host: LaneHost, asker: Asker) -> None:
    asker.open()
    asker.send(b"later 1")
    assert asker.send_alone(b"put").wait() == (asker.thread(), b"re put")


def test_the_reply_of_a_caller_that_is_held_up_is_taken_back(lane_host: LaneHost, asker: Asker) -> None:
    asker.open()
    held_up = asker.send_alone(b"put")
    until(lambda: lane_host.asked[-1] == b"put")
    until(lambda: asker.transport.take_back() or held_up.outcome is not None)
    assert held_up.wait()[1] == b"re put"


def test_an_outcome_from_elsewhere_wakes_a_caller_that_reads(asker: Asker) -> None:
    asker.open()
    queue = WakeQueue()
    waiter: OutcomeWaiter[str] = OutcomeWaiter(queue)
    lane = asker.transport.send_alone(1, b"later 1", lambda reply: None, waiter)
    assert lane is not None
    waiter.lanes = [lane]
    outcomes: list[str] = []
    caller = threading.Thread(target=lambda: outcomes.append(waiter.wait()), daemon=True)
    caller.start()
    until(lambda: waiter.sleep is not None)
    waiter.set_outcome("its time is over")
    queue.wake_next()
    until(lambda: outcomes == ["its time is over"])
    assert asker.ask(b"get") == b"re get"


def test_the_end_of_a_lane_is_seen_by_a_caller_that_reads(asker: Asker) -> None:
    asker.open()
    waiter = asker.send_alone(b"later 1")
    (lane,) = asker.transport._by_fd.values()
    threading.Timer(0.05, lane.connection.shut_down, kwargs={"abruptly": True}).start()
    assert isinstance(waiter.wait()[1], LaneBroken)


class TwoLanes:
    """A caller that has asked two members, each by a lane that it reads itself.

    Args:
        needs: how many of the replies make its outcome.
    """

    def __init__(self, needs: int, before: Callable[[LaneTransport], None] = lambda transport: None) -> None:
        self.hosts = {1: LaneHost(1), 2: LaneHost(2)}
        self.asker = Asker(self.hosts[1])
        self.asker.calls.ask_for_lane = self._offer  # type: ignore[method-assign]
        self.transport = self.asker.transport
        self.replies: list[bytes | Exception] = []
        self.readers: list[int] = []
        self.outcomes: list[bool] = []
        self._needs = needs
        self._queue = WakeQueue()
        self.waiter: OutcomeWaiter[bool] = OutcomeWaiter(self._queue)
        opened: list[object] = []
        for member in self.hosts:
            until(lambda m=member: self.transport._by_lane(m, b"x", opened.append) is not None)  # type: ignore[misc]
        until(lambda: len(opened) == 2)
        before(self.transport)
        for member in self.hosts:
            lane = self.transport.send_alone(member, b"later %d" % member, self._done, self.waiter)
            assert lane is not None
            self.waiter.lanes.append(lane)
        until(lambda: all(host.open for host in self.hosts.values()))
        self.caller = threading.Thread(target=lambda: self.outcomes.append(self.waiter.wait()), daemon=True)

    def _offer(self, member: int) -> Future[LaneOffer | None]:
        future: Future[LaneOffer | None] = Future()
        future.set_result(self.hosts[member].lanes.offer_lane(""))
        return future

    def _done(self, reply: bytes | Exception) -> None:
        self.replies.append(reply)
        self.readers.append(threading.get_ident())
        if len(self.replies) == self._needs:
            self.waiter.set_outcome(True)
            self._queue.wake_next()

    def answer(self, member: int, but: bytes = b"nothing") -> None:
        def answer() -> None:
            for frame, reply in self.hosts[member].open:
                if but not in frame:
                    reply(lambda frame=frame: b"re " + frame)

        self.hosts[member].do(answer)

    def __enter__(self) -> TwoLanes:
        return self

    def __exit__(self, *error: object) -> None:
        self.transport.close()
        for host in self.hosts.values():
            host.close()


@pytest.mark.parametrize("first", [1, 2])
def test_a_caller_takes_in_the_replies_of_two_lanes_itself(first: int) -> None:
    """Each asked of another member, whichever of the two answers first; and the outcome may need both."""
    with TwoLanes(needs=2) as two:
        two.caller.start()
        until(lambda: two.waiter.sleep is not None)
        two.answer(first)
        if first == 1:  # the lane that it reads first: it goes on to the other one
            until(lambda: two.replies == [b"re later 1"])
        two.answer(3 - first)
        until(lambda: two.outcomes)
        assert sorted(two.replies) == [b"re later 1", b"re later 2"]  # type: ignore[type-var]
        assert set(two.readers) == {two.caller.ident}


def test_a_caller_whose_reply_another_thread_takes_in_reads_its_other_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if that happens just before it sleeps: nobody else reads the other lane."""
    about_to_sleep, may_sleep = threading.Event(), threading.Event()
    sleeps = LaneSleep.sleep

    def sleep(lane_sleep: LaneSleep) -> bool:
        about_to_sleep.set()
        assert may_sleep.wait(PATIENCE)
        return sleeps(lane_sleep)

    monkeypatch.setattr(LaneSleep, "sleep", sleep)
    with TwoLanes(needs=2) as two:
        two.caller.start()
        assert about_to_sleep.wait(PATIENCE)
        assert two.asker.ask(b"put") == b"re put", "another caller's, so the lanes' thread reads the lane"
        two.answer(1)
        until(lambda: two.replies == [b"re later 1"])
        may_sleep.set()
        two.answer(2)
        until(lambda: two.outcomes)
        assert two.readers == [two.asker.thread(), two.caller.ident]


def test_a_caller_does_not_stay_at_a_lane_for_a_poll() -> None:
    """One that goes on after the last watch has ended."""
    with TwoLanes(needs=2, before=lambda transport: transport.poll(1, b"later poll", lambda reply: None)) as two:
        two.caller.start()
        until(lambda: two.waiter.sleep is not None)
        two.answer(1, but=b"poll")
        until(lambda: two.replies == [b"re later 1"])
        two.answer(2)
        until(lambda: two.outcomes)


def test_a_caller_that_needs_a_reply_no_longer_has_the_lanes_thread_read_it() -> None:
    """Unread, it would look as if the member did not answer."""
    with TwoLanes(needs=1) as two:
        two.caller.start()
        two.answer(1)
        until(lambda: two.outcomes)
        two.caller.join(PATIENCE)
        two.answer(2)
        until(lambda: two.replies == [b"re later 1", b"re later 2"])
        assert two.readers == [two.caller.ident, two.asker.thread()]


def test_a_closed_transport_lets_go_of_everything(lane_host: LaneHost) -> None:
    lane_host.lanes.offer_lane("")  # it listens from now on
    before = open_descriptors()
    asker = Asker(lane_host)
    asker.open()
    asker.send_alone(b"put").wait()
    asker.send(b"later goodbye")
    asker.transport.close()
    asker.transport.close()
    until(lambda: len(lane_host.lanes) == 0)
    assert lane_host.asked[-1] == b"later goodbye", "the last words have arrived"
    until(lambda: asker.transport._epoll is None)
    until(lambda: open_descriptors() <= before)
    until(lambda: not asker.threads())
    assert asker.calls.closed == 1
    assert isinstance(asker.replies[b"later goodbye"], LaneBroken)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_lets_go_of_its_parents_lanes_without_a_trace(lane_host: LaneHost, asker: Asker) -> None:
    asker.open()
    (lane,) = asker.transport._by_fd.values()
    watch = asker.transport._epoll
    assert watch is not None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # nothing but this may run in it
        try:
            signal.alarm(60)  # nobody else would end it if it hangs
            os.fstat(lane.connection.fd)
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


@contextmanager
def refuses() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else gets meanwhile."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield nobody.getsockname()[1]


@contextmanager
def swallows() -> Iterator[int]:
    """A port behind which everything is accepted, and nothing is answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


@contextmanager
def lets_the_beginning_pass(lane_host: LaneHost) -> Iterator[int]:
    """A port behind which lanes are welcomed, and end with their first request."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:

        def relay() -> None:
            while True:
                try:
                    near, _ = server.accept()
                except OSError:
                    return
                offer = lane_host.lanes.offer_lane("")
                with near, socket.create_connection((offer.host, offer.port), PATIENCE) as far:
                    near.settimeout(PATIENCE)
                    far.settimeout(PATIENCE)
                    far.sendall(_exactly(near, HELLO_BYTES))
                    near.sendall(_exactly(far, len(pack(FrameKind.WELCOME, 1, bytes(SECRET_BYTES)))))
                    near.recv(1)

        threading.Thread(target=relay, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part
        data += part
    return data


@pytest.mark.parametrize("kind", ["refuses", "swallows", "lets the beginning pass"])
def test_a_firewall_before_a_member_is_said_once_and_tried_ever_less(
    kind: str, lane_host: LaneHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, pauses = [1000.0], []
    monkeypatch.setattr(client_lanes, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(client_lanes, "LANE_OPEN_TIMEOUT_S", 0.05 if kind == "swallows" else PATIENCE)
    places = {
        "refuses": refuses(),
        "swallows": swallows(),
        "lets the beginning pass": lets_the_beginning_pass(lane_host),
    }
    with places[kind] as port:

        class Firewall(PlayedCalls):
            def ask_for_lane(self, member: int) -> Future[LaneOffer | None]:
                future = super().ask_for_lane(member)
                offer = future.result()
                assert offer is not None
                changed: Future[LaneOffer | None] = Future()
                changed.set_result(msgspec.structs.replace(offer, node="elsewhere", port=port))
                return changed

        asker = Asker(lane_host)
        asker.calls = Firewall(lane_host)
        asker.transport = LaneTransport(asker.calls)
        for attempt in range(20):

            def failed(times: int = attempt + 1) -> bool:
                asker.ask(b"a")
                route = asker.transport._routes[1]
                settled = not route.opener.runs and route.lane is None
                return asker.calls.offers == times and settled and route.retry.not_before > now[0]

            until(failed)
            route = asker.transport._routes[1]
            pauses.append(route.retry.not_before - now[0])
            now[0] = route.retry.not_before

        def warnings() -> list[str]:
            return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

        until(warnings)
        (warning,) = warnings()
        assert "m1" in warning
        assert (SWALLOWED if kind == "lets the beginning pass" else str(port)) in warning
        assert max(pauses[:3]) <= 1
        assert min(pauses[15:]) >= LANE_UNREACHABLE_PAUSE_S / 2
        asker.transport.close()


@pytest.mark.parametrize(
    ("sent", "answered", "useless"),
    [
        ("", False, False),
        ("p", False, False),  # it waits for a change, which may never come
        ("pp", False, False),
        ("r", False, True),
        ("pr", False, True),
        ("pr", True, False),
        ("rr", True, False),
    ],
)
def test_a_lane_is_useless_if_no_request_on_it_was_answered(sent: str, answered: bool, useless: bool) -> None:
    here, there = socket.socketpair()
    polls = PollAudience()
    with select.epoll() as epoll, there:
        lane = ClientLane(1, Connection(here, epoll), lambda *_: None, polls)
        for kind in sent:
            assert lane.send_request(b"a frame", lambda reply: None, polls if kind == "p" else None)
        if answered:
            lane._waiting.popitem()
        lane.end_all()
        lane.connection.close()
    assert lane.was_useless is useless
