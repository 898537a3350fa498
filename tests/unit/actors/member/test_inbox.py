"""The inbox: peers and clients each in their own bounded queue, and bounded turns."""

from __future__ import annotations

import pytest

from raykeeper.actors.member.events import Unreachable
from raykeeper.actors.member.inbox import Inbox, TurnInput
from raykeeper.actors.transport.peer_frames import PeerFrame, ReceivedFrame
from raykeeper.limits import MAX_PEER_FRAMES, TURN_BYTES, TURN_EVENTS, Limits


def frame(sequence: int, size: int = 10) -> ReceivedFrame:
    return ReceivedFrame(PeerFrame(1, 2, 1, 0, sequence, ()), size)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(Limits(max_inbox_batches=1000, max_inbox_bytes=10_000), lambda: None)


def test_what_came_is_handed_out_in_order_and_once(inbox: Inbox) -> None:
    events = [Unreachable(n) for n in range(5)]
    for n, event in enumerate(events):
        assert inbox.put_event(event, 1)
        assert inbox.put_frame(frame(n))
    frames, taken = inbox.take_batch()
    assert [each.frame.sequence for each in frames] == [0, 1, 2, 3, 4]
    assert taken == events
    assert inbox.take_batch() == TurnInput([], [])


def test_a_turn_takes_a_bounded_number(inbox: Inbox) -> None:
    for n in range(TURN_EVENTS + 1):
        assert inbox.put_event(Unreachable(n), 1)
        assert inbox.put_frame(frame(n))
    frames, events = inbox.take_batch()
    assert (len(frames), len(events)) == (TURN_EVENTS, TURN_EVENTS)
    frames, events = inbox.take_batch()
    assert (len(frames), len(events)) == (1, 1)


def test_a_turn_takes_bounded_bytes_but_at_least_one() -> None:
    inbox = Inbox(Limits(max_inbox_bytes=1 << 30), lambda: None)
    for n in range(3):
        assert inbox.put_event(Unreachable(n), TURN_BYTES)
        assert inbox.put_frame(frame(n, TURN_BYTES))
    for _ in range(3):
        frames, events = inbox.take_batch()
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
    assert inbox.take_batch()[1] == [Unreachable(1), Unreachable(2)]


def test_it_rings_only_while_the_loop_sleeps() -> None:
    rung: list[int] = []
    inbox = Inbox(Limits(), lambda: rung.append(1))
    inbox.put_frame(frame(1))
    assert not inbox.about_to_sleep(), "something waits"
    inbox.take_batch()
    assert inbox.about_to_sleep()
    inbox.put_frame(frame(2))
    inbox.put_frame(frame(3))
    assert rung == [1], "once awake, it needs no more"
    inbox.take_batch()
    inbox.wake()
    assert rung == [1]
    assert not inbox.about_to_sleep(), "the loop must run once more"
    inbox.take_batch()
    assert inbox.about_to_sleep()


def test_a_closed_inbox_hands_out_the_rest_and_takes_nothing(inbox: Inbox) -> None:
    inbox.put_frame(frame(1))
    inbox.put_event(Unreachable(1), 1)
    frames, events = inbox.close()
    assert (len(frames), len(events)) == (1, 1)
    assert not inbox.put_frame(frame(2))
    assert not inbox.put_event(Unreachable(1), 1)
