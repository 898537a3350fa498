"""The fault switch of the tests: it does what it says, does nothing unless told, and is not part of the product."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from lab.patience import PATIENCE
from lab.ray.faults import Faults, cut, rule
from lab.ray.patches.switch import LOOK, Lost, Post, Switch
from raykeeper.actors.member.actor import Member
from rooms import ROOT, product_files

PATCHES = ROOT / "tests" / "lab" / "ray" / "patches"


class Peer:
    """Takes frames and answers each with its own number."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.answers_to_copies: list[bytes] = []
        self._changed = threading.Condition()

    def bring(self, frame: bytes) -> Future[bytes]:
        future: Future[bytes] = Future()
        with self._changed:
            self.frames.append(frame)
            future.set_result(b"answer %d" % len(self.frames))
            self._changed.notify_all()
        return future

    def again(self, answer: bytes) -> None:
        with self._changed:
            self.answers_to_copies.append(answer)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)


class Place:
    def __init__(self, folder: Path) -> None:
        self.faults = Faults(folder / "switch")
        self.post = Post(Switch(str(folder / "switch"), seed=1))
        self.peer = Peer()

    def set(self, *rules: object) -> None:
        self.faults.set(*rules)  # type: ignore[arg-type]
        self.post.switch._looked = -1.0

    def call(self, frame: bytes = b"x" * 100, sender: str = "1", to: str = "2") -> Future[bytes]:
        return self.post.call(sender, to, frame, self.peer.bring, self.peer.again)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_without_a_table_a_frame_just_arrives(place: Place) -> None:
    assert place.call(b"hello").result(0) == b"answer 1"
    assert place.peer.frames == [b"hello"]
    assert not place.post.switch.counts


def test_a_lost_call_is_an_error_after_a_while(place: Place) -> None:
    place.set(rule("drop", 1, 2, seconds=[0.05, 0.05]))
    future = place.call()
    assert not future.done()
    with pytest.raises(Lost):
        future.result(PATIENCE)
    assert place.peer.frames == []
    assert place.call(sender="2", to="3").result(0) == b"answer 1", "another link is well"
    with pytest.raises(Lost):
        place.call(sender="2", to="1").result(PATIENCE)
    assert len(place.peer.frames) == 2, "the other direction is well; only the answer is lost"


def test_a_lost_answer_leaves_the_call_done(place: Place) -> None:
    place.set(rule("drop", 2, 1, seconds=[0.05, 0.05]))
    with pytest.raises(Lost):
        place.call().result(PATIENCE)
    assert len(place.peer.frames) == 1


def test_a_cut_is_both_ways(place: Place) -> None:
    place.set(cut([1], [2, 3], seconds=[0, 0]))
    for sender, to in (("1", "2"), ("2", "1"), ("3", "1")):
        with pytest.raises(Lost):
            place.call(sender=sender, to=to).result(PATIENCE)
    assert place.call(sender="2", to="3").result(0)


def test_held_frames_arrive_once_the_cut_is_healed(place: Place) -> None:
    place.set(rule("hold", 1, 2))
    futures = [place.call(b"%d" % n) for n in range(3)]
    threading.Event().wait(5 * LOOK)
    assert place.peer.frames == []
    place.faults.heal()
    assert [future.result(PATIENCE) for future in futures] == [b"answer 1", b"answer 2", b"answer 3"]
    assert place.faults.counts()["hold"] or place.post.switch.counts["hold"] == 3


def test_delayed_frames_overtake_each_other(place: Place) -> None:
    place.set(rule("delay", 1, 2, seconds=[0.0, 0.2]))
    futures = [place.call(b"%02d" % n) for n in range(20)]
    assert all(future.result(PATIENCE) for future in futures)
    assert sorted(place.peer.frames) == [b"%02d" % n for n in range(20)]
    assert place.peer.frames != sorted(place.peer.frames)


def test_a_duplicate_arrives_twice_and_so_does_its_answer(place: Place) -> None:
    place.set(rule("duplicate", 1, 2, seconds=[0.01, 0.02]))
    assert place.call(b"x").result(PATIENCE) == b"answer 1"
    place.peer.wait(lambda: place.peer.answers_to_copies == [b"answer 2"])
    assert place.peer.frames == [b"x", b"x"]


@pytest.mark.parametrize("fault", ["truncate", "garble"])
def test_a_damaged_frame_is_another_one(place: Place, fault: str) -> None:
    frame = bytes(range(256))
    place.set(rule(fault, 1, 2))
    for _ in range(50):
        assert place.call(frame).result(PATIENCE)
    assert all(arrived != frame for arrived in place.peer.frames)
    assert place.post.switch.counts[fault] == 50


def test_a_share_of_the_frames(place: Place) -> None:
    place.set(rule("truncate", share=0.3))
    for _ in range(300):
        place.call(sender="client", to="3")
    assert 150 < place.post.switch.counts["truncate"] < 250  # of 600: calls and answers


def test_a_link_that_flaps(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.set(rule("truncate", flap=[1.0, 2.0]))
    now = [0.0]
    monkeypatch.setattr("lab.ray.patches.switch._monotonic", lambda: now[0])
    bitten = []
    for tenth in range(60):
        now[0] = 100.0 + tenth / 10
        bitten.append(place.post.switch.copies("1", "2", b"abc") != [(0.0, b"abc")])
    assert 15 <= sum(bitten) <= 25


def test_clocks_step_and_run_fast_or_slow_without_a_step(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "clock_gettime", lambda which: now[0])

    def offset() -> float:
        place.post.switch._looked = -1.0
        return place.post.switch.offset(1)

    place.faults.step(os.getpid(), 5.0)
    assert offset() == 5.0
    place.faults.drift(os.getpid(), 0.5)
    assert offset() == 5.0
    now[0] += 10.0
    assert offset() == 10.0
    place.faults.drift(os.getpid(), -1.0)
    assert offset() == 10.0
    now[0] += 4.0
    assert offset() == 6.0
    place.faults.step(os.getpid(), -6.0)
    assert offset() == 0.0
    assert place.post.switch.offset(0) == 0.0
    place.faults.end()
    assert offset() == 0.0


def test_everybody_sees_what_was_done(place: Place) -> None:
    place.set(rule("duplicate", seconds=[0, 0]))
    place.call().result(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not place.faults.counts():
        assert time.monotonic() < deadline
        threading.Event().wait(LOOK)
    assert place.faults.counts()["duplicate"] >= 1


# --- off and unreachable in production --------------------------------------------------------------------------------

PROBE = """
import raykeeper, sys, time
from raykeeper.actors.client import hub
from raykeeper.actors.member import clock
from raykeeper.actors.transport import client_actor, client_lanes, peer_lanes, peer_transport
ways = [peer_transport.ActorLink._send_call, client_actor.ActorTransport._send_call]
ways += [peer_lanes.LaneLink.send, client_lanes.ClientLane.send_request]
for what in (*ways, clock.system_clock, clock.SteadyClock.__call__):
    print(what.__module__)
print(getattr(hub.clock, "__module__", None))
print("switch" in sys.modules)
"""


def modules(**environment: str) -> list[str]:
    """Where the functions come from through which all frames and all time of a member go."""
    package = str(ROOT.parent)
    path = os.pathsep.join([str(PATCHES)] * ("RAYKEEPER_TEST_SWITCH" in environment) + [package])
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAYKEEPER_")}
    env |= {"PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_switch_is_put_in_by_tests_alone(tmp_path: Path) -> None:
    clean = modules()
    assert clean[-1] == "False"
    assert not [name for name in clean[:-1] if name == "switch"]
    assert len([name for name in clean if name.startswith("raykeeper.")]) >= 6
    patched = modules(RAYKEEPER_TEST_SWITCH=str(tmp_path / "switch"))
    assert patched[:5] == ["switch"] * 5
    assert patched[6] == "switch"


def test_nothing_of_it_is_in_the_product() -> None:
    sources = {path: path.read_text() for path in product_files()}
    assert not [path for path, text in sources.items() if "TEST_SWITCH" in text or "TEST_FAULT" in text]
    assert not [name for name in dir(Member) if "fault" in name or "switch" in name]
