"""The inbox: peers and clients each in their own bounded queue, and bounded turns."""

from __future__ import annotations

import threading
import time

import pytest

from raykeeper.actors.events import Unreachable
from raykeeper.actors.inbox import Inbox
from raykeeper.actors.transport.seam import Frame, Received
from raykeeper.limits import MAX_PEER_FRAMES, TURN_BYTES, TURN_EVENTS, Limits


def frame(sequence: int, size: int = 10) -> Received:
    return Received(Frame(1, 2, 1, 0, sequence, ()), size)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(Limits(max_inbox_batches=1000, max_inbox_bytes=10_000), time.monotonic)


def test_what_came_is_handed_out_in_order_and_once(inbox: Inbox) -> None:
    events = [Unreachable(n) for n in range(5)]
    for n, event in enumerate(events):
        assert inbox.put_event(event, 1)
        assert inbox.put_frame(frame(n))
    frames, taken = inbox.take(until=0.0)
    assert [each.frame.sequence for each in frames] == [0, 1, 2, 3, 4]
    assert taken == events
    assert inbox.take(until=0.0) == ([], [])


def test_a_turn_takes_a_bounded_number(inbox: Inbox) -> None:
    for n in range(TURN_EVENTS + 1):
        assert inbox.put_event(Unreachable(n), 1)
        assert inbox.put_frame(frame(n))
    frames, events = inbox.take(until=0.0)
    assert (len(frames), len(events)) == (TURN_EVENTS, TURN_EVENTS)
    frames, events = inbox.take(until=0.0)
    assert (len(frames), len(events)) == (1, 1)


def test_a_turn_takes_bounded_bytes_but_at_least_one() -> None:
    inbox = Inbox(Limits(max_inbox_bytes=1 << 30), time.monotonic)
    for n in range(3):
        assert inbox.put_event(Unreachable(n), TURN_BYTES)
        assert inbox.put_frame(frame(n, TURN_BYTES))
    for _ in range(3):
        frames, events = inbox.take(until=0.0)
        assert (len(frames), len(events)) == (1, 1)


def test_a_full_inbox_refuses_clients_and_peers_apart(inbox: Inbox) -> None:
    assert inbox.put_event(Unreachable(1), 9_000)
    assert not inbox.put_event(Unreachable(2), 2_000), "bytes"
    for n in range(999):
        assert inbox.put_event(Unreachable(n), 0)
    assert not inbox.put_event(Unreachable(2), 0), "number"
    for n in range(MAX_PEER_FRAMES):
        assert inbox.put_frame(frame(n, 1)), "a flood of clients does not shut out the peers"
    assert not inbox.put_frame(frame(1, 1))


def test_the_member_itself_is_never_refused(inbox: Inbox) -> None:
    assert inbox.put_event(Unreachable(1), 10_000)
    inbox.put_own(Unreachable(2))
    assert inbox.take(0.0)[1] == [Unreachable(1), Unreachable(2)]


def test_take_sleeps_until_something_comes(inbox: Inbox) -> None:
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take(time.monotonic() + 30)))
    thread.start()
    inbox.put_frame(frame(7))
    thread.join(10)
    ((frames, events),) = taken  # type: ignore[misc]
    assert [each.frame.sequence for each in frames] == [7]
    assert events == []


def test_take_comes_back_empty_at_its_time_or_when_woken(inbox: Inbox) -> None:
    start = time.monotonic()
    assert inbox.take(start + 0.02) == ([], [])
    assert time.monotonic() >= start + 0.02
    inbox.wake()
    assert inbox.take(time.monotonic() + 30) == ([], [])


def test_a_closed_inbox_hands_out_the_rest_and_takes_nothing(inbox: Inbox) -> None:
    inbox.put_frame(frame(1))
    inbox.put_event(Unreachable(1), 1)
    frames, events = inbox.close()
    assert (len(frames), len(events)) == (1, 1)
    assert not inbox.put_frame(frame(2))
    assert not inbox.put_event(Unreachable(1), 1)
