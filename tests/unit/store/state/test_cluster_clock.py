"""The replicated clock: no second is counted twice, and its memory stays short and errs to the safe side."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.store_model import FIRST, Hand
from raykeeper.limits import CLOCK_RESOLUTION_DIVISOR, MAX_BEGINNINGS, MAX_CLOCK_GAP_S
from raykeeper.schema.answers import Done, Failed, Reason
from raykeeper.schema.commands import PassTime
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.state.cluster_clock import ClusterClock
from raykeeper.store.state.machine import State


def clock() -> ClusterClock:
    pending: Any = SimpleNamespace(set=lambda *arguments: None)
    return ClusterClock(pending)


def test_a_reading_that_another_one_has_overtaken_is_void(hand: Hand) -> None:
    assert isinstance(hand.apply(PassTime(0.0, 5.0, 0, 1)), Done)
    again = hand.apply(PassTime(0.0, 7.0, 0, 1))
    assert isinstance(again, Failed)
    assert again.reason is Reason.CHANGED
    assert hand.state.clock.seconds == 5.0


def test_no_two_readings_are_equal(hand: Hand) -> None:
    """Members count on from each reading, and know that there is a new one by its being another."""
    assert isinstance(hand.apply(PassTime(0.0, 0.0, 0, 1, True)), Failed)
    while hand.state.clock.seconds < 2.0**30:
        assert isinstance(hand.apply(PassTime(hand.state.clock.seconds, MAX_CLOCK_GAP_S, 0, 1)), Done)
    before = hand.state.clock.encoded()
    assert isinstance(hand.apply(PassTime(hand.state.clock.seconds, 1e-9, 0, 1, True)), Failed)
    assert hand.state.clock.encoded() == before


@pytest.mark.parametrize("seconds", [-1.0, math.inf, -math.inf, math.nan, 1e300])
def test_no_time_passes_that_cannot(hand: Hand, seconds: float) -> None:
    assert isinstance(hand.apply(PassTime(0.0, seconds, 0, 1)), Failed)
    assert isinstance(hand.apply(PassTime(seconds, 1.0, 0, 1)), Failed)
    assert hand.state.clock.seconds == 0.0


def test_it_is_there_after_a_restart(tmp_path: Any) -> None:
    disk, path = RocksDisk(), str(tmp_path / "state")
    hand = Hand(State.create(disk, path, FIRST))
    hand.apply(PassTime(0.0, 5.0, 1, 1, True))
    hand.apply(PassTime(5.0, 2.5, 2, 1))
    before = hand.state.clock.encoded()
    hand.state.close()
    state = State.open(disk, path)
    assert state.clock.encoded() == before
    assert (state.clock.seconds, state.clock.beginning) == (7.5, 2)
    state.close()


@given(st.lists(st.tuples(st.floats(0.001, 50), st.booleans()), max_size=150))
def test_what_it_says_of_ages_is_true_and_not_far_off(steps: list[tuple[float, bool]]) -> None:
    one = clock()
    readings, beginnings = [], []
    for index, (seconds, begins) in enumerate(steps, 1):
        assert one.pass_time(PassTime(one.seconds, seconds, index, index, begins), index, 1e9)
        readings.append((one.seconds, index))
        if begins:
            beginnings.append((one.seconds, index))
    for age in (0.0, 1.0, 10.0, 60.0, 400.0):
        then = one.seconds - age
        true = max((each for each in readings if each[0] <= then), default=None)
        found = one.before(then)
        if found is not None:
            assert true is not None
            assert found.index <= true[1], "older than it says"
            assert found.seconds >= true[0] - max(age, one.seconds - true[0]) * 2 / CLOCK_RESOLUTION_DIVISOR
        else:
            assert true is None
    for heard in range(len(steps) + 1):
        after = [each for each in beginnings if each[1] > heard]
        since = one.silent_since(heard)
        assert (since is None) == (not after)
        if since is not None:
            assert since >= after[0][0], "silent for longer than it is"
            assert since <= after[0][0] + (one.seconds - after[0][0]) / CLOCK_RESOLUTION_DIVISOR + 1e-6


def test_its_memory_is_bounded() -> None:
    one = clock()
    for index in range(1, 20_000):
        one.pass_time(PassTime(one.seconds, 1.0, index, index, True), index, 3600.0)
    assert len(one.readings) < 250
    assert len(one.beginnings) <= MAX_BEGINNINGS
    assert len(one.encoded()) < 16_000
