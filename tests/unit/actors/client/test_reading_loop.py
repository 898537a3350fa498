"""Which loop may read a hub's replies: never one on which another caller would have to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from raykeeper.actors.client.reading_loop import ReadingLoop
from raykeeper.actors.transport.client_transport import OnOwnThreads
from raykeeper.actors.transport.loop_reader import LoopReader


class Transport(OnOwnThreads):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.taken_back = 0
        self.audience: list[tuple[LoopReader | None, bool]] = []

    def set_poll_audience(self, loop: LoopReader | None, *, empty: bool) -> None:
        self.audience.append((loop, empty))

    def take_back(self, *, if_overdue: bool = False) -> None:
        self.taken_back += 1


class Play:
    def __init__(self) -> None:
        self.transport = Transport()
        self.reading = ReadingLoop(self.transport)  # type: ignore[arg-type]

    def taken_back(self) -> bool:
        before = self.transport.taken_back
        self.reading.take_back_if_needed()
        return self.transport.taken_back > before


@pytest.fixture
def readers() -> Iterator[tuple[LoopReader, LoopReader]]:
    loops = [asyncio.new_event_loop() for _ in range(2)]
    first, second = [LoopReader(loop, lambda: None) for loop in loops]
    yield first, second
    for loop in loops:
        loop.close()


Readers = tuple[LoopReader, LoopReader]


def test_a_loop_reads_while_all_open_calls_are_its_own(readers: Readers) -> None:
    play, (own, _) = Play(), readers
    play.reading.submitting(own, 3, 0)
    assert play.reading.loop(3) is own
    play.reading.submitting(own, 1, 3)
    assert play.reading.loop(4) is own
    own.open_calls -= 2  # answered
    assert play.reading.loop(2) is own
    assert not play.taken_back()


def test_the_call_of_a_thread_takes_the_lanes_back_until_it_is_answered(readers: Readers) -> None:
    play, (own, _) = Play(), readers
    play.reading.submitting(own, 3, 0)
    play.reading.submitting(None, 1, 3)
    assert play.taken_back()
    assert not play.taken_back(), "once is enough"
    assert play.reading.loop(4) is None
    play.reading.submitting(own, 2, 4)
    assert play.reading.loop(6) is None, "that of the thread may wait until a reply to one of these is taken in"
    assert play.reading.loop(5) is own, "the thread's is answered"


def test_the_call_of_another_loop_does_so_too(readers: Readers) -> None:
    play, (own, other) = Play(), readers
    play.reading.submitting(own, 3, 0)
    play.reading.submitting(other, 2, 3)
    assert play.taken_back()
    assert play.reading.loop(5) is None
    own.open_calls = 0
    assert play.reading.loop(2) is other
    play.reading.submitting(own, 1, 2)
    assert play.taken_back()
    assert play.reading.loop(3) is None


def test_a_count_that_an_interrupt_has_left_wrong_is_right_again_when_nothing_is_open(readers: Readers) -> None:
    play, (own, _) = Play(), readers
    own.open_calls = 7
    play.reading.submitting(own, 1, 0)
    assert play.reading.loop(1) is own


def test_polls_are_for_the_loop_that_has_all_watches(readers: Readers) -> None:
    play, (own, other) = Play(), readers
    play.reading.submitting(own, 1, 0)
    play.reading.watches_of({own}, 1)
    play.reading.watches_of({own}, 1)
    assert play.transport.audience == [(own, False)]
    assert not play.taken_back(), "it reads already, and may go on"
    for more in (None, other):
        play.reading.watches_of({own, more}, 1)
        assert play.transport.audience[-1] == (None, False)
        assert play.taken_back()
        play.reading.watches_of({own}, 1)
        assert play.transport.audience[-1] == (own, False)
        play.taken_back()
    play.reading.watches_of(set(), 1)
    assert play.transport.audience[-1] == (None, True)
    assert not play.taken_back(), "nobody waits for a poll"
    play.reading.watches_of({None}, 1)
    assert play.transport.audience[-1] == (None, False)
    assert play.taken_back(), "the loop may be reading a poll that hangs"


def test_a_loop_that_begins_to_watch_takes_polls_back_from_those_who_read_them(readers: Readers) -> None:
    play, (own, other) = Play(), readers
    play.reading.submitting(other, 1, 0)
    play.reading.watches_of({own}, 1)
    assert play.taken_back()
