"""The member's clock counts what passes, and neither jumps nor the way back."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raykeeper.actors.member import clock
from raykeeper.actors.member.clock import SteadyClock

HOUR = 3600.0


class Source:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_time_that_passes_is_counted() -> None:
    source = Source()
    steady = SteadyClock(source, max_step=60)
    before = steady()
    for step in (0.0, 0.1, 5.0, 60.0):
        source.now += step
        assert steady() - before == pytest.approx(step)
        before = steady()


@pytest.mark.parametrize("jump", [3 * HOUR, -3 * HOUR, 60.5, -0.001])
def test_a_jump_is_not(jump: float) -> None:
    source = Source()
    steady = SteadyClock(source, max_step=60)
    before = steady()
    source.now += jump
    assert steady() == pytest.approx(before)
    source.now += 1.0
    assert steady() == pytest.approx(before + 1.0)


@given(st.lists(st.floats(min_value=-1e6, max_value=1e6), max_size=50))
def test_it_never_goes_back_and_never_runs_ahead(steps: list[float]) -> None:
    source = Source()
    steady = SteadyClock(source, max_step=60)
    last, passed = steady(), 0.0
    for step in steps:
        source.now += step
        passed += max(0.0, step)
        now = steady()
        assert now >= last - 1e-6
        assert now - last <= 60 + 1e-6
        last = now
    assert last - 1000.0 <= passed + 1e-3


def test_the_member_has_the_systems_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    before = clock.member_clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= clock.member_clock() - before < 60
