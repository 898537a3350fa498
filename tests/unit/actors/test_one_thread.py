"""Threads that are started when they are needed: whatever interrupts their start, and where the system has none left.

The one that starts a thread may be interrupted anywhere, and what it has noted before must not stand forever. So no
module starts a thread by itself without a reason that is written down here.
"""

from __future__ import annotations

import ast
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import raykeeper
from lab.lanes import LaneHost
from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, until
from raykeeper import Unavailable
from raykeeper.actors.background import BackgroundQueue
from raykeeper.actors.client.core.router import Router
from raykeeper.actors.client.login import Credentials, UserLogin
from raykeeper.actors.client.member_lookup import MemberLookup
from raykeeper.actors.client.proxy_monitor import ProxyMonitor
from raykeeper.actors.cluster import supervisor, supervisor_actor
from raykeeper.actors.cluster.supervisor_actor import SupervisorActor
from raykeeper.actors.log_files import BackgroundHandler
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.member import actor, event_loop, wiring
from raykeeper.actors.member.death_reports import DeathReports
from raykeeper.actors.member.events import BackgroundDone
from raykeeper.actors.member.inbox import Inbox
from raykeeper.actors.member.maintenance import Maintenance
from raykeeper.actors.member.member_actor import MemberHost
from raykeeper.actors.naming import MemberSpec, encode_member_spec
from raykeeper.actors.one_thread import NoThreadLeft, OneThread
from raykeeper.actors.ray_metrics import hand_to_ray
from raykeeper.actors.tracing import OpenSpan, SpanContext, Tracer
from raykeeper.actors.transport.client_lanes import LaneTransport
from raykeeper.actors.transport.lane import LaneSocket, open_lane
from raykeeper.actors.transport.lane_readers import LaneReaders, Waiting
from raykeeper.actors.transport.peer_frames import BarePeerFrame, PeerFrame, decode_frame
from raykeeper.actors.transport.peer_lanes import LaneLinks
from raykeeper.actors.transport.peer_transport import PeerTransport
from raykeeper.limits import Limits
from raykeeper.raft.messages import Heartbeat

ALONE = {
    "actors/client/aio_timeout.py": "one call of the caller's, who hears of it",
    "actors/client/cache_sync.py": "in a constructor",
    "actors/client/hub_timer.py": "in the constructor of a hub",
    "actors/client/loss_watch.py": "its place is given back, whatever is raised",
    "actors/log_files.py": "in a constructor",
    "actors/member/actor.py": "a member that starts: its process ends, and Ray starts it again",
    "actors/member/announce.py": "a member that starts, which tries again",
    "actors/member/event_loop.py": "a member that starts, which tries again; or gives up, and then its process ends",
    "actors/member/maintenance.py": "a member that starts, which ends the first one and tries again",
    "actors/one_thread.py": "what all others use",
    "actors/proxy/process_watch.py": "in a constructor",
    "actors/proxy/proxy_actor.py": "in a constructor",
    "actors/ray_calls.py": "its place is given back, whatever is raised",
    "actors/ray_metrics.py": "an actor that starts",
    "actors/recipes/key_monitor.py": "it asks for its watch again if there is no thread",
    "actors/recipes/sync_async.py": "the caller hears of it",
    "actors/tracing.py": "it is noted once it runs; a second one would do no harm",
    "actors/transport/client_lanes.py": "the reader of the lanes, which is noted once it runs",
    "actors/transport/lane_listener.py": "in a constructor, at a member's start, which tries again",
    "actors/transport/lane_readers.py": "by the loop, which no signal handler interrupts; counted once it runs",
    "actors/transport/peer_lanes.py": "by the member's loop, which no signal handler interrupts",
    "actors/transport/relay.py": "in a constructor",
    "actors/cluster/supervisor.py": "an actor that starts: its process ends, and Ray starts it again",
    "cli/watch.py": "a command that starts",
    "store/engine/files.py": "one call of the caller's, who hears of it",
}


def test_nothing_else_starts_threads_by_itself() -> None:
    root = Path(raykeeper.__file__).parent
    found = set()
    for folder in ("actors", "cli", "raft", "schema", "store"):
        for file in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("threading.Thread", "Thread"):
                    found.add(file.relative_to(root).as_posix())
    assert found == set(ALONE)


# --- interrupted ------------------------------------------------------------------------------------------------------


class Interrupt(BaseException):
    pass


def interrupted(start: Callable[[], object], place: int) -> bool:
    """Start, interrupted at the line that it comes to so-manieth; whether it comes to so many."""
    left = place

    def look(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupt
        return look

    sys.settrace(lambda frame, *_: look if frame.f_code is OneThread.start.__code__ else None)
    try:
        start()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_an_interrupt_anywhere_leaves_one_thread_at_most_and_another_can_be_started() -> None:
    for place in range(1, 100):
        one, begun, go_on, running, most = OneThread(), threading.Event(), threading.Event(), [], 0

        def run(begun: threading.Event = begun, go_on: threading.Event = go_on, running: list[int] = running) -> None:
            nonlocal most
            running.append(1)
            most = max(most, len(running))
            begun.set()
            go_on.wait(PATIENCE)
            running.pop()

        came = interrupted(partial(one.start, run, "test"), place)
        assert one.start(run, "test")
        assert begun.wait(PATIENCE), place
        go_on.set()
        until(lambda one=one: not one.runs, what=str(place))
        assert most == 1
        begun.clear()
        assert one.start(run, "test")
        assert begun.wait(PATIENCE), place
        if not came:
            break
    else:
        pytest.fail("there is no end to it")
    assert place > 4


def test_one_that_says_it_is_done_makes_room_for_the_next() -> None:
    one, go_on, seen = OneThread(), threading.Event(), []

    def first() -> None:
        one.done()
        go_on.wait(PATIENCE)

    assert one.start(first, "first")
    until(lambda: not one.runs)
    second = threading.Event()
    assert one.start(partial(second.wait, PATIENCE), "second")
    go_on.set()
    until(lambda: not any(thread.name == "first" for thread in threading.enumerate()))
    assert one.runs, "the first has not given up what is the second's"
    assert one.start(lambda: seen.append("third"), "third")
    second.set()
    until(lambda: not one.runs)
    assert not seen


def test_one_that_raises_can_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one, raised = OneThread(), []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: raised.append(arguments.exc_type))

    def fail() -> None:
        raise OSError

    for _ in range(3):
        assert one.start(fail, "test")
        until(lambda: not one.runs)
    until(lambda: raised == [OSError] * 3)


class Alarm(RuntimeError):
    """Raised by a signal handler of the user's."""


def test_what_a_handler_raises_is_not_taken_for_a_lack_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    one, begun = OneThread(), threading.Event()
    start = threading.Thread.start

    def interrupted_at_the_end(thread: threading.Thread) -> None:
        start(thread)
        assert begun.wait(PATIENCE)
        raise Alarm

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted_at_the_end)
        with pytest.raises(Alarm):
            one.start(begun.set, "test")
    until(lambda: not one.runs)


# --- the system has no thread left ------------------------------------------------------------------------------------


class Threads:
    """While ``none`` is set, no thread whose name begins so can be started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.none = ""
        self.refused: list[str] = []
        start = threading.Thread.start

        def start_or_not(thread: threading.Thread) -> None:
            if self.none and thread.name.startswith(self.none):
                self.refused.append(thread.name)
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_not)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


@pytest.fixture
def member() -> Iterator[OneMember]:
    with one_member(by_lane=True) as member:
        yield member


@pytest.mark.parametrize("name", ["raykeeper-lane-", "raykeeper-lanes"])
def test_without_a_thread_a_client_goes_by_actor_calls_and_opens_a_lane_later(
    member: OneMember, threads: Threads, name: str
) -> None:
    threads.none = name
    with member.client() as kv:
        transport = kv._hub(1.0).transport
        assert isinstance(transport, LaneTransport)
        while not threads.refused:
            kv.put("k", "v")
        assert kv.get("k") is not None
        threads.none = ""
        while not any(route.lane is not None for route in transport._routes.values()):
            kv.get("k", timeout=PATIENCE)


def test_without_a_thread_a_member_opens_a_lane_to_a_peer_later(threads: Threads) -> None:
    here, there = LaneHost(1), LaneHost(2)
    threads.none = "lane to member"

    def dial(member: int) -> LaneSocket:
        return open_lane(there.lanes.offer_lane("here", peer=True), "here", 1, PATIENCE)

    links = LaneLinks(member=1, lanes=here.lanes, dial=dial, hand_over=here.do, clock=lambda: here.now)
    try:
        assert not links.is_open(2)
        assert threads.refused
        assert not links.is_open(2), "in the pause"
        assert len(threads.refused) == 1
        threads.none = ""
        here.now += 60
        assert not links.is_open(2)
        until(lambda: links.is_open(2))
    finally:
        here.close()
        there.close()


class Lanes(LaneLinks):
    """One is open to each peer; frames on them are counted."""

    def __init__(self) -> None:
        self.sent = 0

    def is_open(self, member: int) -> bool:
        return True

    def send_by_lane(self, member: int, frame: bytes) -> bool:
        self.sent += 1
        return True


class Called:
    """A peer's actor: what it was called with."""

    def __init__(self) -> None:
        self.frames: list[PeerFrame | BarePeerFrame] = []
        self.append_entries = self

    def remote(self, frame: bytes) -> Any:
        decoded = decode_frame(frame)
        assert decoded is not None
        self.frames.append(decoded)
        return self

    def future(self) -> Future[bytes]:
        answer: Future[bytes] = Future()
        answer.set_result(b"")
        return answer


def to_peers(peer: Called, lanes: LaneLinks | None = None) -> PeerTransport:
    return PeerTransport(
        cluster=7,
        member=1,
        lookup=lambda member: peer,
        deliver=lambda frame: True,
        unreachable=lambda member: None,
        give_up_after=PATIENCE,
        lanes=lanes,
    )


def test_without_a_thread_messages_to_a_peer_wait_for_one(threads: Threads) -> None:
    """They are sent by the member's loop, and whatever is raised there ends the member."""
    peer = Called()
    transport = to_peers(peer)
    messages = [Heartbeat(1, 2, 1, 0, context) for context in range(3)]
    threads.none = "to member"
    for message in messages[:2]:
        transport.send([message])
    assert len(threads.refused) == 2
    threads.none = ""
    transport.send(messages[2:])
    until(lambda: [message for frame in peer.frames for message in frame.messages] == messages)
    transport.close()
    until(lambda: not transport._peers[2]._thread.runs, what="its thread has ended")
    threads.none = "to member"
    transport.send(messages)
    assert len(threads.refused) == 2, "once closed it starts no other"


def test_messages_by_lane_need_no_thread(threads: Threads) -> None:
    peer, lanes = Called(), Lanes()
    transport = to_peers(peer, lanes)
    threads.none = "to member"
    transport.send([Heartbeat(1, 2, 1, 0, 0)])
    assert lanes.sent == 1
    assert not threads.refused
    transport.close()


def test_without_another_thread_a_members_slow_work_waits_for_those_there_are(threads: Threads) -> None:
    inbox, go_on = Inbox(Limits(), lambda: None), threading.Event()
    did: list[object] = []
    done: list[Exception | None] = []
    with ThreadPoolExecutor(2, thread_name_prefix="background") as workers:
        background = wiring._in_background(workers, inbox)
        threads.none = "background"
        background(lambda: did.append(go_on.wait(PATIENCE)), done.append)
        background(lambda: did.append("second"), done.append)
        assert threads.refused
        assert not did
        go_on.set()
        until(lambda: did == [True, "second"])
    for event in inbox.take_batch().events:
        assert isinstance(event, BackgroundDone)
        event.then()
    assert done == [None, None]


def test_slow_work_that_can_never_be_done_is_refused_aloud(threads: Threads) -> None:
    workers = ThreadPoolExecutor(2)
    background = wiring._in_background(workers, Inbox(Limits(), lambda: None))
    workers.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        background(lambda: None, lambda error: None)


@pytest.mark.parametrize("lacks", [NoThreadLeft("none is left"), MemoryError()], ids=["thread", "memory"])
@pytest.mark.parametrize("kind", ["member", "supervisor"])
def test_an_actor_that_lacks_what_it_needs_ends_its_process_so_that_ray_starts_it_again(
    kind: str, lacks: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose constructor raises is dead for good."""
    ended: list[int] = []

    def refuse(*_: object) -> None:
        raise lacks

    def end(code: int) -> None:
        ended.append(code)
        raise SystemExit

    for module in (actor, supervisor_actor):
        monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(module.os, "_exit", end)
    monkeypatch.setattr(event_loop.faulthandler, "disable", lambda: None)
    monkeypatch.setattr(actor, "Member", refuse)
    monkeypatch.setattr(supervisor, "Supervisor", refuse)
    spec = encode_member_spec(MemberSpec("c", 7, 1, "m1", "/data/c/m1", "pin"))
    with pytest.raises(SystemExit):
        MemberHost(spec) if kind == "member" else SupervisorActor(spec)
    assert ended == [1]


@pytest.mark.parametrize("none", ["raykeeper-log", "ray metrics"])
def test_what_such_a_constructor_starts_says_that_there_is_no_thread(
    threads: Threads, none: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYKEEPER_RAY_METRICS", raising=False)
    threads.none = none
    start: dict[str, Callable[[], object]] = {
        "raykeeper-log": lambda: BackgroundHandler("c", "m1"),
        "ray metrics": lambda: hand_to_ray("c", "m1", MemberLog("member", "c", "m1")),
    }
    with pytest.raises(NoThreadLeft):
        start[none]()
    assert threads.refused == [none]


def test_without_a_second_thread_of_maintenance_there_is_no_first(member: OneMember, threads: Threads) -> None:
    """A start that fails is tried again and again, and each time it would leave one."""
    threads.none = "maintenance: content"

    def left() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "maintenance: room"]

    before = len(left())
    for _ in range(3):
        with pytest.raises(NoThreadLeft):
            Maintenance("c", member.cluster, member.loop.replica, "/")
    until(lambda: len(left()) <= before)
    assert len(threads.refused) == 3


def test_without_a_thread_a_member_makes_slow_replies_itself(threads: Threads) -> None:
    class Lane:
        slow: Waiting

        def __init__(self) -> None:
            self.slow = Waiting()

    made: Future[str] = Future()
    readers: LaneReaders[Lane] = LaneReaders(lambda lane, number, weight, make: made.set_result(make().decode()))
    threads.none = "lane reader"
    lane = Lane()
    assert readers.submit(lane, 1, 1, lambda: threading.current_thread().name.encode())
    assert made.result(0) == threading.current_thread().name
    assert not lane.slow
    threads.none, made = "", Future()
    assert readers.submit(lane, 2, 1, lambda: threading.current_thread().name.encode())
    assert made.result(PATIENCE).startswith("lane reader")
    readers.close()


def test_without_a_thread_members_are_looked_up_later(threads: Threads) -> None:
    looked = threading.Event()

    class Transport:
        def refresh(self) -> None:
            looked.set()

        def members(self) -> dict[int, str]:
            return {1: "m1"}

    router: Any = type("R", (Router,), {"__init__": lambda self: None, "set_members": lambda self, members: None})()
    transport: Any = Transport()
    lookup = MemberLookup("x", transport, router, threading.RLock(), random.Random(1), lambda: None)
    threads.none = "raykeeper-members"
    again = lookup.start(0.0)
    assert threads.refused
    threads.none = ""
    lookup.start(again)
    assert looked.wait(PATIENCE)


def test_without_a_thread_a_process_is_watched_later(threads: Threads) -> None:
    asked = threading.Event()

    def ask(name: str, node: str) -> None:
        asked.set()

    monitor = ProxyMonitor("x", "node", lambda session: None, ask)
    threads.none = "raykeeper-watched"
    monitor.claim(1)
    assert threads.refused
    threads.none = ""
    monitor.claim(2)
    assert asked.wait(PATIENCE)
    monitor.close()


def test_without_a_thread_the_background_waits(threads: Threads) -> None:
    background, did = BackgroundQueue(), []
    threads.none = "raykeeper-background"
    background.submit(lambda: did.append(1))
    threads.none = ""
    background.submit(lambda: did.append(2))
    until(lambda: did == [1, 2])


class Login(UserLogin):
    def __init__(self) -> None:
        nothing: Any = None
        super().__init__(Credentials("ann", "secret"), nothing, "x", 1)
        self.said: list[str] = []

    def log_in(self) -> None:
        self.said.append("logged in")

    def ask(self) -> None:
        """A reply has refused the token."""
        self.refresh(self.token, lambda: self.said.append("again"), lambda error: self.said.append(repr(error)))


def test_without_a_thread_a_user_is_refused_and_logged_in_later(threads: Threads) -> None:
    login = Login()
    threads.none = "raykeeper-login"
    login.ask()
    assert login.said == [repr(Unavailable("no thread is left to log in with"))]
    login.said.clear()
    threads.none = ""
    login.ask()
    until(lambda: login.said == ["logged in", "again"])


def test_an_interrupt_leaves_a_user_who_can_be_logged_in() -> None:
    for place in range(1, 100):
        login = Login()
        came = interrupted(login.ask, place)
        login.ask()
        until(lambda login=login: login.said.count("again") == 2, what=str(place))
        if not came:
            break
    assert place > 4


def test_without_a_thread_a_span_is_written_later(threads: Threads) -> None:
    written: list[str] = []

    class Sink:
        def open(self, *of: Any) -> Any:
            return SpanContext("1" * 32, "1" * 16), None

        def write(self, spans: list[OpenSpan]) -> None:
            written.extend(span.name for span in spans)

        def current(self) -> None:
            return None

    tracer = Tracer(Sink(), rate=1.0)
    threads.none = "raykeeper-spans"
    tracer.open("first", "client", None, 0.0, {}).end(1.0)
    assert threads.refused
    threads.none = ""
    tracer.open("second", "client", None, 0.0, {}).end(1.0)
    until(lambda: written == ["first", "second"])
    tracer.close()


def test_without_a_thread_a_death_is_reported_with_the_next(threads: Threads) -> None:
    asked: list[tuple[int, ...]] = []

    class Reports(DeathReports):
        def __init__(self) -> None:
            unused: Any = None
            log = MemberLog("member", "x", "m1")
            super().__init__(9, 1, leader=unused, ask_here=unused, lookup=unused, token=unused, log=log)

        def _ask(self, sessions: tuple[int, ...]) -> bool:
            asked.append(sessions)
            return True

    reports = Reports()
    threads.none = "death reports"
    reports.report([1])
    assert threads.refused
    threads.none = ""
    reports.report([2])
    until(lambda: asked == [(1, 2)])
