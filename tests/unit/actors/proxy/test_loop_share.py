"""A part of a loop's time: with a clock that is played."""

from __future__ import annotations

import asyncio

import pytest

from raykeeper.actors.proxy.loop_share import LoopShare, MeasuredSteps


class PlayedClock:
    """Seconds that the test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def work(clock: PlayedClock, share: LoopShare, seconds: float) -> None:
    began = clock.now
    clock.now += seconds
    share.spend(began)


def test_what_was_taken_beyond_the_part_is_waited_for() -> None:
    clock = PlayedClock()
    share = LoopShare(clock, 0.05, 0.1, 10.0)
    assert share.pause() == 0
    work(clock, share, 0.1)
    assert share.pause() == pytest.approx(0, abs=1e-6), "what may be done at once"
    work(clock, share, 0.2)
    assert share.pause() == pytest.approx(0.2 / 0.05 - 0.2 - 0.1, abs=0.2)
    clock.now += share.pause()
    assert share.pause() == pytest.approx(0, abs=1e-6)
    clock.now += 1000
    work(clock, share, 0.1)
    assert share.pause() == pytest.approx(0, abs=1e-6)
    work(clock, share, 0.01)
    assert share.pause() > 0.1, "a long rest saves no more than what may be done at once"


@pytest.mark.parametrize("slowness", [1, 10, 100])
def test_the_part_is_the_same_on_a_slow_machine(slowness: int) -> None:
    """A thing that takes 0.2 ms on a machine with time takes 20 ms where others have it."""
    clock = PlayedClock()
    share = LoopShare(clock, 0.05, 0.02, 10.0)
    began, spent, done = clock.now, 0.0, 0
    while clock.now < began + 100:
        if pause := share.pause():
            clock.now += max(pause, 0.01)
            continue
        work(clock, share, 0.0002 * slowness)
        spent, done = spent + 0.0002 * slowness, done + 1
    assert 0.04 < spent / 100 < 0.055
    assert done == pytest.approx(100 * 0.05 / (0.0002 * slowness), rel=0.2)


def test_no_pause_is_longer_than_it_may_be() -> None:
    clock = PlayedClock()
    share = LoopShare(clock, 0.05, 0.02, 2.0)
    for _ in range(10):
        work(clock, share, 30.0)
    assert share.pause() == pytest.approx(2.0)


def test_what_is_done_while_nothing_counts_is_not_waited_for_later() -> None:
    clock, counts = PlayedClock(), False
    share = LoopShare(clock, 0.05, 0.02, 2.0, lambda: counts)
    work(clock, share, 30.0)
    assert share.pause() == 0
    counts = True
    assert share.pause() == 0
    work(clock, share, 1.0)
    assert share.pause() > 0
    counts = False
    assert share.pause() == 0


def test_a_stall_in_a_step_is_no_work() -> None:
    """One collection of garbage, and nobody was let in for a second."""
    clock = PlayedClock()
    share = LoopShare(clock, 0.05, 0.0, 2.0, longest_step_s=0.01)
    work(clock, share, 30.0)
    assert share.pause() == pytest.approx(0.01 / 0.05)
    clock.now += 10
    work(clock, share, 0.005)
    assert share.pause() == pytest.approx(0.005 / 0.05), "what is shorter counts as it is"


def test_another_part() -> None:
    clock = PlayedClock()
    share = LoopShare(clock, 0.2, 0.0, 2.0)
    work(clock, share, 0.1)
    assert share.pause() == pytest.approx(0.1 / 0.2)
    share.set_fraction(0.1)
    assert share.pause() == pytest.approx(0.1 / 0.1)
    share.set_fraction(0.01)
    assert share.pause() == pytest.approx(2.0), "no longer than it may be"
    clock.now += 2.0
    share.set_fraction(0.2)
    assert share.pause() == pytest.approx(0, abs=1e-6)


def test_steps_are_spent_and_not_the_time_between_them() -> None:
    clock = PlayedClock()
    share = LoopShare(clock, 0.5, 0.0, 1000.0)
    over = asyncio.Event()

    async def steps() -> str:
        clock.now += 1
        await over.wait()
        clock.now += 2
        return "done"

    async def test() -> None:
        task = asyncio.get_running_loop().create_task(MeasuredSteps(steps(), share))
        await asyncio.sleep(0)
        before = share.pause()
        assert before == pytest.approx(1 / 0.5)
        clock.now += before
        over.set()
        assert await task == "done"
        assert share.pause() == pytest.approx(2 / 0.5)

    asyncio.run(test())


def test_steps_can_be_cancelled_and_fail() -> None:
    share = LoopShare(PlayedClock(), 0.5, 0.0, 1000.0)
    ends: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("ended")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise OSError("a client is gone")

    async def test() -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(MeasuredSteps(waits(), share))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        unbegun = loop.create_task(MeasuredSteps(waits(), share))
        unbegun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unbegun
        with pytest.raises(OSError, match="gone"):
            await loop.create_task(MeasuredSteps(fails(), share))
        assert ends == ["ended"]

    asyncio.run(test())
