"""Lanes between members, on real sockets."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import permutations
from typing import Any

import pytest

from lab.lanes import PATIENCE, LaneHost, until
from raykeeper.actors.transport.lane import LaneBroken, LaneUnreachable, open_lane
from raykeeper.actors.transport.lane_retry import SWALLOWED
from raykeeper.actors.transport.lane_server import Lane
from raykeeper.actors.transport.peer_lanes import UNANSWERED, LaneLinks
from raykeeper.limits import LANE_ANSWER_TOLD_S, LANE_REFUSED_PAUSE_S, LANE_UNREACHABLE_PAUSE_S


@contextmanager
def two_members() -> Iterator[tuple[LaneHost, LaneHost, LaneLinks]]:
    here, there = LaneHost(1), LaneHost(2)

    def dial(member: int) -> socket.socket:
        return open_lane(there.lanes.offer_lane(""), "here", 1, PATIENCE)

    peers = LaneLinks(member=1, lanes=here.lanes, dial=dial, hand_over=here.do, clock=lambda: here.now)
    here.lost = peers.lane_lost
    try:
        yield here, there, peers
    finally:
        here.close()
        there.close()


def in_loop(host: LaneHost, what: Callable[[], Any]) -> Any:
    """Methods of ``LaneLinks`` are its loop's: two threads at once would dial twice."""
    done: Future[Any] = Future()
    host.do(lambda: done.set_result(what()))
    return done.result(PATIENCE)


def test_messages_of_a_peer_come_by_lane_once_one_is_open() -> None:
    with two_members() as (here, there, peers):
        assert not in_loop(here, lambda: peers.is_open(2)), "the first go by call"
        until(lambda: in_loop(here, lambda: peers.is_open(2)))
        assert peers.send_by_lane(2, b"one")
        assert peers.send_by_lane(2, b"two")
        until(lambda: there.heard == [b"one", b"two"])
        assert there.news == [("peers_connected", 1)]


def test_the_end_of_a_peers_lane_is_noticed_and_another_opened() -> None:
    with two_members() as (here, there, peers):
        until(lambda: in_loop(here, lambda: peers.is_open(2)))
        lane = peers._routes[2].lane
        assert lane is not None
        lane.connection.shut_down(abruptly=True)
        until(lambda: not in_loop(here, lambda: peers.is_open(2)))
        until(lambda: there.news == [("peers_connected", 1), ("peers_gone", 1)])
        assert not in_loop(here, lambda: peers.is_open(2)), "not at once"
        here.now += 60
        until(lambda: in_loop(here, lambda: peers.is_open(2)))


def test_a_peer_that_has_opened_another_lane_is_not_gone(lane_host: LaneHost) -> None:
    first, second = lane_host.client(peer=2), lane_host.client(peer=2)
    until(lambda: lane_host.news == [("peers_connected", 2), ("peers_connected", 2)])
    first.close()
    until(lambda: len(lane_host.lanes) == 1)
    assert ("peers_gone", 2) not in lane_host.news
    second.close()
    until(lambda: ("peers_gone", 2) in lane_host.news)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_peer_is_gone_when_the_last_of_its_lanes_has_ended_whichever_that_is(
    lane_host: LaneHost, order: tuple[int, ...]
) -> None:
    lanes = []
    for opened in (1, 2, 3):
        lanes.append(lane_host.client(peer=2))
        until(lambda opened=opened: lane_host.news.count(("peers_connected", 2)) == opened)  # type: ignore[misc]
    other = lane_host.client(peer=3)
    until(lambda: ("peers_connected", 3) in lane_host.news)
    for left, end in zip((2, 1), order, strict=False):
        lanes[end].close()
        until(lambda left=left: len(lane_host.lanes) == left + 1)  # type: ignore[misc]
        assert in_loop(lane_host, lambda: lane_host.lanes.has_lane_from(2))
        assert ("peers_gone", 2) not in lane_host.news
    lanes[order[-1]].close()
    until(lambda: ("peers_gone", 2) in lane_host.news)
    assert not in_loop(lane_host, lambda: lane_host.lanes.has_lane_from(2))
    assert lane_host.news.count(("peers_gone", 2)) == 1
    assert ("peers_gone", 3) not in lane_host.news
    other.close()


def test_a_peer_that_takes_nothing_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in deaf:
        end.setblocking(False)
    lane_host = LaneHost()
    peers = LaneLinks(
        member=1, lanes=lane_host.lanes, dial=lambda to: deaf[0], hand_over=lane_host.do, clock=lambda: 0.0
    )
    until(lambda: in_loop(lane_host, lambda: peers.is_open(2)))
    while in_loop(lane_host, lambda: peers.is_open(2)):
        assert peers.send_by_lane(2, b"x" * 100_000)
    lane = peers._routes[2].lane
    assert lane is not None
    assert lane.connection.backlog > 0
    deaf[1].settimeout(PATIENCE)
    while not in_loop(lane_host, lambda: peers.is_open(2)):
        assert deaf[1].recv(1 << 20)
    lane_host.close()
    deaf[1].close()


class _Answers:
    """In place of the dialer: each attempt waits until the test answers it."""

    def __init__(self, there: LaneHost) -> None:
        self.there = there
        self.attempts: list[Future[socket.socket]] = []
        self.threads: list[threading.Thread] = []

    def dial(self, member: int) -> socket.socket:
        attempt: Future[socket.socket] = Future()
        self.threads.append(threading.current_thread())
        self.attempts.append(attempt)
        return attempt.result(PATIENCE)

    def answer(self, attempt: int) -> socket.socket:
        sock = open_lane(self.there.lanes.offer_lane("", peer=True), "here", 1, PATIENCE)
        self.attempts[attempt].set_result(sock)
        return sock


@contextmanager
def two_members_that_answer() -> Iterator[tuple[LaneHost, LaneHost, LaneLinks, _Answers]]:
    """The first one is member 1; what is to happen in its loop is called there."""
    here, there = LaneHost(1), LaneHost(2)
    answers = _Answers(there)
    peers = LaneLinks(member=1, lanes=here.lanes, dial=answers.dial, hand_over=here.do, clock=lambda: here.now)
    here.lost = peers.lane_lost
    try:
        yield here, there, peers, answers
    finally:
        for attempt in answers.attempts:
            attempt.cancel()
        here.close()
        there.close()


def test_a_peer_that_runs_and_does_not_answer_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with two_members_that_answer() as (here, _, peers, answers):
        assert not in_loop(here, lambda: peers.is_open(2))
        until(lambda: len(answers.attempts) == 1)
        here.now += LANE_ANSWER_TOLD_S
        assert not in_loop(here, lambda: peers.is_open(2))
        assert peers.unreachable() == {}, "its node may be gone: then that is what an operator hears"
        theirs = here.client(peer=2)
        until(lambda: ("peers_connected", 2) in here.news)
        for _ in range(3):
            assert not in_loop(here, lambda: peers.is_open(2))
        assert peers.unreachable() == {2: UNANSWERED}
        answers.attempts[0].set_exception(LaneBroken("no answer"))
        until(lambda: not peers._routes[2].opening)
        assert peers.unreachable() == {2: UNANSWERED}, "nor is there a lane now"
        here.now += 60
        assert not in_loop(here, lambda: peers.is_open(2))
        until(lambda: len(answers.attempts) == 2)
        answers.answer(1)
        until(lambda: in_loop(here, lambda: peers.is_open(2)))
        assert peers.unreachable() == {}
        assert [record.levelname for record in caplog.records].count("WARNING") == 1
        theirs.close()


class _Walks(dict[int, Lane]):
    """The lanes of a member, which note who asks for all of them."""

    def __init__(self, lanes: dict[int, Lane]) -> None:
        super().__init__(lanes)
        self.count = 0

    def values(self) -> Any:
        self.count += 1
        return super().values()


def test_for_a_peer_that_is_gone_a_message_does_not_walk_over_all_lanes() -> None:
    """There may be thousands, of clients, and a leader has messages for such a peer in every turn."""
    with two_members_that_answer() as (here, _, peers, answers):
        assert not in_loop(here, lambda: peers.is_open(2))
        until(lambda: len(answers.attempts) == 1)
        here.now += LANE_ANSWER_TOLD_S

        def ask() -> int:
            walks = here.lanes._lanes = _Walks(here.lanes._lanes)
            for _ in range(10):
                assert not peers.is_open(2)
            return walks.count

        assert in_loop(here, ask) == 0
        assert not peers._routes[2].told


def test_a_member_that_has_stopped_has_lanes_from_nobody(lane_host: LaneHost) -> None:
    end = lane_host.client(peer=2)
    until(lambda: in_loop(lane_host, lambda: lane_host.lanes.has_lane_from(2)))
    lane_host.close()
    assert not lane_host.lanes.has_lane_from(2)
    end.close()


def test_the_end_of_an_attempt_that_another_has_followed_changes_nothing() -> None:
    with two_members_that_answer() as (here, _, peers, answers):
        for attempts in (1, 2):
            assert not in_loop(here, lambda: peers.is_open(2))
            until(lambda attempts=attempts: len(answers.attempts) == attempts)  # type: ignore[misc]
            here.now += LANE_REFUSED_PAUSE_S
            if attempts == 1:
                in_loop(here, lambda: peers.peer_connected(2))
        answers.attempts[0].set_exception(LaneBroken("no answer"))
        answers.threads[0].join(PATIENCE)  # it has handed over
        assert not in_loop(here, lambda: peers.is_open(2))
        assert peers._routes[2].opening
        assert len(answers.attempts) == 2


@pytest.mark.parametrize("first", ["the lost one", "the next one"])
def test_a_peer_that_opens_a_lane_is_asked_again_though_it_has_not_answered(first: str) -> None:
    with two_members_that_answer() as (here, there, peers, answers):
        assert not in_loop(here, lambda: peers.is_open(2))
        until(lambda: len(answers.attempts) == 1)
        in_loop(here, lambda: peers.peer_connected(2))
        assert not in_loop(here, lambda: peers.is_open(2))
        assert len(answers.attempts) == 1, "it may still be about to answer"
        here.now += LANE_REFUSED_PAUSE_S
        assert not in_loop(here, lambda: peers.is_open(2))
        assert len(answers.attempts) == 1
        in_loop(here, lambda: peers.peer_connected(2))
        assert not in_loop(here, lambda: peers.is_open(2))
        until(lambda: len(answers.attempts) == 2)
        opened = 0 if first == "the lost one" else 1
        answers.answer(opened)
        until(lambda: in_loop(here, lambda: peers.is_open(2)))
        other = answers.answer(1 - opened)
        until(lambda: other.fileno() < 0, "the second lane is not kept")
        assert in_loop(here, lambda: peers.is_open(2))
        assert peers.send_by_lane(2, b"one")
        until(lambda: there.heard == [b"one"])
        assert not peers._routes[2].opening
        until(lambda: there.news.count(("peers_connected", 1)) == 2 and there.lanes.lanes_open() == (0, 1))
        assert in_loop(there, lambda: there.lanes.has_lane_from(1))
        assert ("peers_gone", 1) not in there.news, "one of two has ended"
        here.close()
        until(lambda: there.news.count(("peers_gone", 1)) == 1)
        assert not in_loop(there, lambda: there.lanes.has_lane_from(1))


def _refused() -> socket.socket:
    raise LaneUnreachable("192.0.2.7, port 7000, cannot be reached: timed out")


class _Swallowing:
    """A connection that is made, and on which nothing arrives: some time after something was sent it is given up, as
    TCP does."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()

    def fileno(self) -> int:
        return self._near.fileno()

    def send(self, data: bytes) -> int:
        self._far.send(b"!")  # wakes the loop
        return len(data)

    def recv(self, size: int) -> bytes:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    def shutdown(self, how: int) -> None:
        self._near.shutdown(how)

    def close(self) -> None:
        self._near.close()
        self._far.close()


@pytest.mark.parametrize(
    ("dial", "why"),
    [(_refused, "192.0.2.7, port 7000, cannot be reached: timed out"), (_Swallowing, SWALLOWED)],
    ids=["refuses", "accepts and swallows"],
)
def test_a_firewall_before_a_peer_is_said_once_and_tried_ever_less(
    dial: Callable[[], Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    here, pauses, dialled = LaneHost(1), [], [0]

    def dial_it(member: int) -> Any:
        dialled[0] += 1
        return dial()

    peers = LaneLinks(member=1, lanes=here.lanes, dial=dial_it, hand_over=here.do, clock=lambda: here.now)
    here.lost = peers.lane_lost
    try:
        for attempt in range(20):

            def ask() -> None:
                if peers.is_open(2):
                    peers.send_by_lane(2, b"into nothing")

            def failed(times: int = attempt + 1) -> bool:
                here.do(ask)  # as a member's loop: two threads at once would dial twice
                route = peers._routes.get(2)
                if route is None or route.opening or dialled[0] != times:
                    return False
                return route.retry.not_before > here.now

            until(failed)
            route = peers._routes[2]
            until(lambda times=attempt: bool(peers.unreachable()) == (times >= 2))  # type: ignore[misc]
            pauses.append(route.retry.not_before - here.now)
            here.now = route.retry.not_before
        assert peers.unreachable() == {2: why}
        assert [record.levelname for record in caplog.records].count("WARNING") == 1
        assert max(pauses[:3]) <= 1
        assert min(pauses[15:]) >= LANE_UNREACHABLE_PAUSE_S / 2
    finally:
        here.close()
