"""The poller: the loop sleeps until there is something for a turn, and what came by lane is passed on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec

from lab.patience import PATIENCE
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.member.events import Unreachable
from raykeeper.actors.member.inbox import Inbox, TurnInput
from raykeeper.actors.member.poller import InboxPoller, LanePoller, Waker
from raykeeper.actors.transport.lane_server import Arrived
from raykeeper.actors.transport.peer_frames import PeerFrame, ReceivedFrame
from raykeeper.limits import LANE_LOOK_S, LANE_PAUSE_S, Limits, Timings
from raykeeper.raft.messages import Configuration
from raykeeper.schema.frames import Refusal, Refused, Reply

LOG = MemberLog("member", "c", "m1")


def five() -> float:
    return 5.0


def frame(sequence: int) -> ReceivedFrame:
    return ReceivedFrame(PeerFrame(1, 2, 1, 0, sequence, ()), 10)


def made() -> tuple[Inbox, InboxPoller]:
    waker = Waker()
    inbox = Inbox(Limits(), waker.wake)
    return inbox, InboxPoller(inbox, waker, time.monotonic)


def test_it_sleeps_until_something_comes() -> None:
    inbox, poller = made()
    taken: list[TurnInput] = []
    thread = threading.Thread(target=lambda: taken.append(poller.wait(time.monotonic() + PATIENCE)))
    thread.start()
    inbox.put_frame(frame(7))
    thread.join(PATIENCE)
    assert [each.frame.sequence for each in taken[0].frames] == [7]


def test_it_comes_back_empty_at_its_time_or_when_woken() -> None:
    inbox, poller = made()
    start = time.monotonic()
    assert poller.wait(start + 0.02) == TurnInput([], [])
    assert time.monotonic() >= start + 0.02
    inbox.wake()
    assert poller.wait(time.monotonic() + PATIENCE) == TurnInput([], [])


class Lanes:
    """Brings what it is given, once."""

    def __init__(self) -> None:
        self.arrived = Arrived()
        self.clients: list[bool] = []
        self.slept: list[float] = []
        self.woken = 0

    def wait(self, seconds: float) -> list[tuple[int, int]]:
        self.slept.append(seconds)
        return []

    def wake(self) -> None:
        self.woken += 1

    def serve(self, ready: list[tuple[int, int]], *, clients: bool) -> Arrived:
        self.clients.append(clients)
        arrived, self.arrived = self.arrived, Arrived()
        return arrived


class Everything:
    """All that a poller passes things on to; notes what it is told."""

    timings = Timings()

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.node = self
        self.id, self.configuration = 1, Configuration()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.told.append((name, *arguments))


def test_what_came_by_lane_is_passed_on_before_the_turn() -> None:
    lanes, others = Lanes(), Everything()
    inbox = Inbox(Limits(), lanes.wake)
    any_part = cast("Any", others)
    poller = LanePoller(
        inbox,
        cast("Any", lanes),
        any_part,
        any_part,
        any_part,
        any_part,
        others.handle_request,
        others.report,
        lambda: 5.0,
        LOG,
    )
    done = print
    lane = cast("Any", "a lane")
    lanes.arrived.frames, lanes.arrived.requests, lanes.arrived.sessions_dead = [b"f"], [(b"r", done, lane)], [8]
    lanes.arrived.peers_connected, lanes.arrived.lanes_lost, lanes.arrived.peers_gone = [2], [3], [4]
    assert poller.wait(7.0) == TurnInput([], [])
    assert lanes.slept == [2.0]
    assert others.told == [
        ("receive_from_lane", b"f"),
        ("handle_request", b"r", done, lane, False),
        ("report", [8]),
        ("peer_connected", 2),
        ("lane_lost", 3),
        ("report_unreachable", 3),
        ("peer_gone", 4, 5.0, Timings().election_timeout),
    ]
    inbox.put_frame(frame(1))
    assert len(poller.wait(7.0).frames) == 1
    assert lanes.slept[1] == 0.0, "nobody sleeps while something waits"


def test_lanes_to_all_members_are_kept_though_there_is_nothing_to_say_to_them() -> None:
    """Else two followers would have none when their leader is lost, and could perhaps not ask Ray for each other."""
    lanes, others, now = Lanes(), Everything(), [100.0]
    others.configuration = Configuration(voters=(1, 2, 3), learners=(4,))
    had: set[int] = set()

    def is_open(member: int) -> bool:
        others.told.append(("is_open", member))
        return member in had

    vars(others)["is_open"] = is_open
    any_part = cast("Any", others)
    inbox = Inbox(Limits(), lanes.wake)
    poller = LanePoller(
        inbox,
        cast("Any", lanes),
        any_part,
        any_part,
        any_part,
        any_part,
        any_part.handle_request,
        any_part.report,
        lambda: now[0],
        LOG,
    )

    def asked() -> list[int]:
        found = [member for name, member in others.told if name == "is_open"]
        others.told.clear()
        return found

    inbox.put_frame(frame(1))
    poller.wait(now[0])
    assert sorted(asked()) == [2, 3, 4], "though something waits: it may never be idle"
    poller.wait(now[0])
    assert asked() == []
    had |= {2, 3}
    for _ in range(2):
        now[0] += LANE_PAUSE_S
        poller.wait(now[0])
        assert sorted(asked()) == [2, 3, 4], "soon, while there was none yet to one of them"
    had.add(4)
    now[0] += LANE_PAUSE_S
    poller.wait(now[0])
    assert sorted(asked()) == [2, 3, 4]
    had.clear()
    now[0] += LANE_LOOK_S / 2
    poller.wait(now[0])
    assert asked() == [], "it does not look more often after the end of a lane"
    now[0] += LANE_LOOK_S / 2
    poller.wait(now[0])
    assert sorted(asked()) == [2, 3, 4]


def test_a_request_that_breaks_the_handler_is_refused_and_harms_nobody_else() -> None:
    def submit(request: bytes, done: object, lane: object, in_loop: bool) -> None:
        raise ValueError(request.decode())

    lanes, any_part = Lanes(), cast("Any", Everything())
    poller = LanePoller(
        Inbox(Limits(), lanes.wake),
        cast("Any", lanes),
        any_part,
        any_part,
        any_part,
        any_part,
        submit,
        any_part.report,
        lambda: 0.0,
        LOG,
    )
    answers: list[bytes] = []
    for text in (b"one", b"two"):
        lanes.arrived.requests.append((text, lambda make: answers.append(make()), any_part))
    poller.wait(5.0)
    replies = [msgspec.msgpack.decode(each, type=Reply) for each in answers]
    assert [(type(each), each.refusal, each.message) for each in replies] == [
        (Refused, Refusal.NOT_SERVING, "ValueError: one"),
        (Refused, Refusal.NOT_SERVING, "ValueError: two"),
    ]


def test_requests_that_were_answered_need_no_turn() -> None:
    """The loop waits on, until something else comes or its time is over; a stop or a wake-up is not missed."""
    lanes, any_part = Lanes(), cast("Any", Everything())
    inbox = Inbox(Limits(), lanes.wake)
    now = [5.0]
    came: list[bytes] = [b"read", b"read", b"put", b"read", b"wake", b"read", b"late", b"read", b"with a frame"]
    handled: list[bytes] = []

    def arrive(seconds: float) -> list[tuple[int, int]]:
        lanes.slept.append(seconds)
        request = came.pop(0)
        lanes.arrived.requests = [(request, print, any_part)]
        if request == b"with a frame":
            lanes.arrived.frames = [b"f"]
        return []

    def handle(request: bytes, done: object, lane: object, in_loop: bool) -> bool:
        handled.append(request)
        if request == b"wake":
            inbox.wake()
        if request == b"late":
            now[0] = 7.0
        return request != b"put"

    played = cast("Any", lanes)
    played.wait = arrive
    poller = LanePoller(
        inbox, played, any_part, any_part, any_part, any_part, handle, any_part.report, lambda: now[0], LOG
    )
    poller.wait(7.0)
    assert handled == [b"read", b"read", b"put"]
    poller.wait(7.0)
    assert handled[3:] == [b"read", b"wake"]
    poller.wait(7.0)
    assert handled[5:] == [b"read", b"late"]
    poller.wait(8.0)
    assert handled[7:] == [b"read", b"with a frame"]
    assert all(lanes.slept)


def test_the_loop_does_not_wake_itself() -> None:
    """What arrives by lane is put into the inbox by the loop, which is awake: a wake-up would cost it an empty turn."""
    lanes, others = Lanes(), Everything()
    inbox = Inbox(Limits(), lanes.wake)
    any_part = cast("Any", others)

    def handle(request: bytes, done: object, lane: object, in_loop: bool) -> None:
        assert inbox.put_event(Unreachable(2), 10)
        assert inbox.put_frame(frame(1))

    poller = LanePoller(
        inbox, cast("Any", lanes), any_part, any_part, any_part, any_part, handle, any_part.report, lambda: 5.0, LOG
    )
    lanes.arrived.requests = [(b"r", print, any_part)]
    batch = poller.wait(7.0)
    assert (len(batch.events), len(batch.frames), lanes.woken) == (1, 1, 0)
    assert inbox.about_to_sleep()
    inbox.put_own(Unreachable(2))
    assert lanes.woken == 1, "while it sleeps, it is woken"
