"""Looking for dropped leases: only when idle, and cheaply."""

from __future__ import annotations

import gc

import pytest

from raykeeper.actors.client.litter import Litter
from raykeeper.limits import LITTER_PAUSE, LITTER_SHARE


class Process:
    """A process whose time and work are played."""

    def __init__(self, cost: float = 0.001) -> None:
        self.now = 100.0
        self.used = 5.0
        self.cost = cost
        self.collections = 0
        self.litter = Litter(lambda: self.used, self._collect)

    def _collect(self) -> None:
        self.collections += 1
        self.used += self.cost

    def live(self, seconds: int, share: float) -> int:
        """Use so much of a core for so long; how often it collected meanwhile."""
        before = self.collections
        for _ in range(seconds * 10):
            self.now += LITTER_PAUSE / 10
            self.used += share * LITTER_PAUSE / 10
            self.litter.look(self.now)
        return self.collections - before


def test_an_idle_process_collects() -> None:
    assert Process().live(20, share=0.01) >= 15


def test_a_busy_one_does_not() -> None:
    process = Process()
    process.live(5, share=0.9)
    assert process.live(20, share=0.9) == 0
    assert process.live(3, share=0.0) >= 1


@pytest.mark.parametrize("cost", [0.001, 0.02, 0.3])
def test_it_costs_next_to_nothing(cost: float) -> None:
    process = Process(cost)
    collections = process.live(600, share=0.01)
    assert collections >= 1
    assert collections * cost <= 600 * LITTER_SHARE * 1.1 + cost


def test_who_has_turned_the_collector_off_is_left_alone() -> None:
    gc.disable()
    try:
        assert Process().live(5, share=0.0) == 0
    finally:
        gc.enable()
