"""Many clients in an outage: they ask seldom, at different times, and Ray least of all; none is late afterwards."""

from __future__ import annotations

import functools
import heapq
import itertools
import random
import threading
from collections import Counter
from typing import Any

import msgspec
import pytest

from lab.client.cluster import FakeCluster, connect, hub_of, serve, wait_until
from lab.patience import PATIENCE
from raykeeper import KeeperError
from raykeeper.actors.client import hub_pool
from raykeeper.actors.client.core.dispatch_core import DispatchCore
from raykeeper.actors.client.core.router import Router
from raykeeper.actors.transport import directory
from raykeeper.limits import (
    CLIENT_BACKOFF_FRACTION,
    CLIENT_MAX_BACKOFF_S,
    CLIENT_MAX_REFRESH_INTERVAL_S,
    Limits,
    Timings,
)
from raykeeper.schema.answers import PutAnswer
from raykeeper.schema.frames import Open, Opened, Refusal, Refused, Request, Writes, Written
from raykeeper.schema.operations import Put

HUBS = 500
decode = msgspec.msgpack.Decoder(Request).decode
encode = msgspec.msgpack.Encoder().encode


class Outage:
    """Hubs of as many processes in imagined time, and members that all refuse until the outage is over."""

    def __init__(self, hubs: int, until: float) -> None:
        self.until = until
        self.asked: list[float] = []
        self.done: dict[int, float] = {}
        self.now = 0.0
        rng = random.Random(7)
        self.cores = [
            DispatchCore(7, Router((1, 2, 3), leader=1), Limits(), Timings(), random.Random(rng.random()))
            for _ in range(hubs)
        ]

    def play(self, seconds: float) -> None:
        for number, core in enumerate(self.cores):
            done = functools.partial(self._over, number)
            core.submit(Put(b"k", b"v"), now=0.0, timeout=1e6, done=done)
            self._exchange(core)
        alarms = [(core.next_wakeup() or 0.0, number) for number, core in enumerate(self.cores)]
        heapq.heapify(alarms)
        while alarms and alarms[0][0] <= seconds:
            wakeup, number = heapq.heappop(alarms)
            core, self.now = self.cores[number], max(self.now, wakeup)
            core.on_time(self.now)
            self._exchange(core)
            if number not in self.done:
                heapq.heappush(alarms, (core.next_wakeup() or self.now, number))

    def _over(self, number: int, answer: object) -> None:
        self.done[number] = self.now

    def _exchange(self, core: DispatchCore) -> None:
        while out := core.outgoing(self.now):
            for call, member, frame in out:
                request: Any = decode(frame)
                self.asked.append(self.now)
                if self.now < self.until:
                    reply: Any = Refused(Refusal.NOT_LEADER)
                elif isinstance(request, Open):
                    reply = Opened(50 + member, 60.0)
                else:
                    assert isinstance(request, Writes)
                    reply = Written((PutAnswer(3),) * len(request.commands.writes))
                core.on_reply(call, encode(reply), self.now)


def test_five_hundred_clients_in_an_outage_ask_seldom_and_come_back_one_by_one() -> None:
    outage = Outage(HUBS, until=60.0)
    outage.play(200.0)
    assert len(outage.done) == HUBS
    seconds = Counter(int(when) for when in outage.asked)
    late = [seconds[second] for second in range(30, 60)]
    # A pause is drawn from 0 to 5 s; all of them every 0.2 s would be 2,500.
    assert max(late) < HUBS * 2 / 3
    # They come back over the length of a pause, not all at once, and none later than that.
    back = Counter(int(10 * (when - outage.until)) for when in outage.done.values())
    assert max(back.values()) < HUBS / 6
    assert max(outage.done.values()) <= outage.until + CLIENT_MAX_BACKOFF_S + 0.01


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0, 10.0])
def test_an_outage_is_made_longer_by_a_share_of_itself_at_most(length: float) -> None:
    outage = Outage(100, until=length)
    outage.play(100.0)
    added = sorted(when - length for when in outage.done.values())
    most = max(0.3, CLIENT_BACKOFF_FRACTION * length)
    assert added[-1] <= most + 0.01
    assert added[len(added) // 2] <= 0.75 * most


def test_hubs_of_one_process_share_a_look_at_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    gate = threading.Event()

    def look(name: str) -> dict[int, Any]:
        looks.append(name)
        gate.wait(PATIENCE)
        return {1: object()}

    monkeypatch.setattr(directory, "member_actors", look)
    shared = directory.Directory()
    threads = [threading.Thread(target=shared.member_handles, args=("c",)) for _ in range(HUBS)]
    for thread in threads:
        thread.start()
    wait_until(lambda: looks)
    gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(looks) <= 3


def test_a_fresh_look_is_not_older_than_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    monkeypatch.setattr(directory, "member_actors", lambda name: looks.append(name) or {})
    shared = directory.Directory()
    for _ in range(3):
        shared.member_handles("c", fresh=True)
    assert len(looks) == 3
    shared.member_handles("c")
    assert len(looks) == 3


def test_a_hub_looks_the_members_up_at_random_times_and_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()
    serve(monkeypatch, cluster)
    kv = connect()
    lookup = hub_of(kv)._lookup
    monkeypatch.setattr(lookup, "_look", lambda: setattr(lookup, "_under_way", False))
    now, looks = 1000.0, []
    while now < 1120.0:
        before = lookup.unanswered
        lookup.start(now)
        if lookup.unanswered > before:
            looks.append(now)
            wait_until(lambda: not lookup._under_way)
        now += 0.1
    pauses = [b - a for a, b in itertools.pairwise(looks)]
    assert 12 <= len(looks) <= 70, "half of the longest pause each, when it has grown"
    assert max(pauses) > CLIENT_MAX_REFRESH_INTERVAL_S / 3
    assert len({round(pause, 1) for pause in pauses[-10:]}) > 4
    cluster.broken = {1, 2, 3}
    with pytest.raises(KeeperError):
        kv.get("k", timeout=0.1)
    cluster.broken = set()
    kv.get("k")
    assert lookup.unanswered == 0, "a hub that was answered starts over"


class ImaginedTime:
    """In the place of the module ``time``, and of the deadline of what runs here."""

    def __init__(self, until: float) -> None:
        self.now = 0.0
        self.until = until

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def left(self) -> float:
        return self.until - self.now


class Refusing:
    """The way to members that all say that they do not serve."""

    node = ""

    def __init__(self, time: ImaginedTime) -> None:
        self.time = time
        self.asked: list[float] = []
        self.looked: list[float] = []

    def members(self) -> dict[int, str]:
        return {1: "m1"}

    def send(self, member: int, frame: bytes, done: Any) -> None:
        self.asked.append(self.time.now)
        done(RuntimeError("it does not serve"))

    def refresh(self) -> None:
        self.looked.append(self.time.now)


def test_five_hundred_processes_that_connect_in_an_outage_ask_as_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = []
    for _ in range(HUBS):
        time = ImaginedTime(until=120.0)
        monkeypatch.setattr(hub_pool, "time", time)
        monkeypatch.setattr(hub_pool, "time_left", time.left)
        way = Refusing(time)
        ways.append(way)
        with pytest.raises(KeeperError):
            hub_pool._find_serving_member("c", way, None, set())  # type: ignore[arg-type]
        assert time.now > 119.0  # it did not give up before its time
    late = [at for way in ways for at in way.looked if 60.0 <= at < 100.0]
    assert len(late) < HUBS * 40 / (CLIENT_MAX_REFRESH_INTERVAL_S / 2) * 1.5
    each_second = Counter(int(at) for at in late)
    assert max(each_second.values()) < 2 * HUBS / (CLIENT_MAX_REFRESH_INTERVAL_S / 2)
    asked = Counter(int(at) for way in ways for at in way.asked if 60.0 <= at < 100.0)
    assert max(asked.values()) < 2 * HUBS / CLIENT_MAX_BACKOFF_S * 1.5
