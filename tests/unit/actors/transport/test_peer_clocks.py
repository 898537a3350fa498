"""Clocks of hosts are compared by what members tell each other: how far they are off, and when that is said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from raykeeper.actors.logs import MemberLog
from raykeeper.actors.transport.peer_clocks import PeerClocks
from raykeeper.actors.transport.peer_frames import BarePeerFrame, PeerFrame, decode_frame, encode_frame
from raykeeper.actors.transport.peer_transport import PeerTransport
from raykeeper.limits import CLOCK_DIFFERS_S, CLOCK_LOG_PAUSE_S, CLOCK_LOOK_READINGS, CLOCK_LOOK_S, CLOCK_TOLD_FRAMES
from raykeeper.raft.messages import Heartbeat


class Host:
    """A host with a clock that the test sets."""

    def __init__(self) -> None:
        self.monotonic = 0.0
        self.ahead = 0.0
        log = MemberLog("transport", "test", "m1", clock=lambda: self.monotonic)
        self.clocks = PeerClocks(log, wall=lambda: 1e9 + self.monotonic + self.ahead, clock=lambda: self.monotonic)

    def look(self, member: int, ahead: float, delays: tuple[float, ...] = (0.0,) * CLOCK_LOOK_READINGS) -> None:
        """The readings of a whole look: by so much the member's clock is ahead of true time."""
        for delay in delays:
            self.monotonic += 1.01 * CLOCK_LOOK_S / (len(delays) - 1)
            self.clocks.heard(member, 1e9 + self.monotonic - delay + ahead)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    class Lines(list[Any]):
        def new(self) -> list[str]:
            found = [record.getMessage() for record in caplog.records]
            caplog.clear()
            return found

    with caplog.at_level(logging.INFO, "raykeeper.transport"):
        yield Lines()


def test_clocks_that_agree_say_nothing(host: Host, lines: Any) -> None:
    for _ in range(5):
        host.look(2, 0.01)
    assert host.clocks.offsets() == {2: pytest.approx(0.01)}
    assert lines.new() == []


@pytest.mark.parametrize(("ahead", "said"), [(3.0, "3.000 s ahead of"), (-90.0, "90.000 s slow by")])
def test_one_that_differs_is_said_once_an_hour_and_when_it_is_right_again(
    host: Host, lines: Any, ahead: float, said: str
) -> None:
    host.look(2, ahead)
    (line,) = lines.new()
    assert said in line
    assert "m2" in line
    assert "cluster test, m1" in line
    for _ in range(10):
        host.look(2, ahead)
    assert lines.new() == []
    assert host.clocks.offsets() == {2: pytest.approx(ahead)}
    host.monotonic += CLOCK_LOG_PAUSE_S
    host.look(2, ahead)
    assert len(lines.new()) == 1
    host.look(2, 0.0)
    (line,) = lines.new()
    assert "agrees" in line
    host.look(2, 0.0)
    assert lines.new() == []


def test_this_hosts_own_clock_jumps(host: Host, lines: Any) -> None:
    host.look(2, 0.0)
    host.ahead = 3600.0
    host.look(2, 0.0)
    assert host.clocks.offsets() == {2: pytest.approx(-3600.0)}
    assert len(lines.new()) == 1


def test_frames_that_were_long_on_their_way_are_no_clock_that_differs(host: Host, lines: Any) -> None:
    host.look(2, 0.0, delays=(9.0, 0.02, 5.0, 7.0))
    assert host.clocks.offsets() == {2: pytest.approx(-0.02)}
    assert lines.new() == []


def test_few_readings_are_no_look(host: Host) -> None:
    host.clocks.heard(2, 5e9)
    host.monotonic += 2 * CLOCK_LOOK_S
    host.clocks.heard(2, 5e9)
    assert host.clocks.offsets() == {}


def test_who_is_not_heard_any_more_is_forgotten(host: Host) -> None:
    host.look(2, 9.0)
    assert host.clocks.offsets()
    host.monotonic += 5 * CLOCK_LOOK_S
    assert host.clocks.offsets() == {}


def test_a_frame_in_so_many_says_the_clock_and_the_others_are_not_a_byte_longer() -> None:
    transport = PeerTransport(
        cluster=7,
        member=1,
        lookup=lambda member: None,
        deliver=lambda frame: True,
        unreachable=lambda member: None,
        give_up_after=1.0,
    )
    try:
        beat = Heartbeat(1, 2, 1, 0, 5)
        peer = transport._peer(2)
        made = [transport._frame(peer, sequence, [beat]) for sequence in range(1, 2 * CLOCK_TOLD_FRAMES + 1)]
    finally:
        transport.close()
    frames = [decode_frame(each) for each in made]
    told = [frame.sequence for frame in frames if frame is not None and frame.wall]
    assert told == [CLOCK_TOLD_FRAMES, 2 * CLOCK_TOLD_FRAMES]
    bare = encode_frame(BarePeerFrame(7, 1, 2, transport._epoch, 1, (beat,)))
    assert made[0] == bare


def test_an_older_member_reads_a_frame_that_says_the_clock() -> None:
    frame = PeerFrame(7, 1, 2, 1, 16, (), 1e9)
    older = msgspec.msgpack.decode(encode_frame(frame)[4:], type=BarePeerFrame)
    assert (older.sequence, older.messages) == (16, ())


def test_a_member_hears_what_another_tells() -> None:
    host = Host()
    transport = PeerTransport(
        cluster=7,
        member=1,
        lookup=lambda member: None,
        deliver=lambda frame: True,
        unreachable=lambda member: None,
        give_up_after=1.0,
        clocks=host.clocks,
    )
    try:
        for number in range(CLOCK_LOOK_READINGS):
            host.monotonic += CLOCK_LOOK_S
            frame = PeerFrame(7, 2, 1, 1, number + 1, (), 1e9 + host.monotonic + 2 * CLOCK_DIFFERS_S)
            assert transport.receive_from_lane(encode_frame(frame))
    finally:
        transport.close()
    assert host.clocks.offsets() == {2: pytest.approx(2 * CLOCK_DIFFERS_S)}
