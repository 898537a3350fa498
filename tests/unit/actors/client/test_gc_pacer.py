"""When an idle process that holds leases is collected, and what that costs."""

from __future__ import annotations

import gc

import pytest

from raykeeper.actors.client.gc_pacer import GcPacer
from raykeeper.limits import GC_CHECK_PAUSE_S, GC_CPU_FRACTION


class Process:
    """A process whose time and work are played."""

    def __init__(self, cost: float = 0.001) -> None:
        self.now = 100.0
        self.used = 5.0
        self.cost = cost
        self.collections = 0
        self.young = 0
        self.automatic = 0
        self.pacer = GcPacer(lambda: self.used, lambda: self.automatic, self._collect)

    def _collect(self, generation: int) -> None:
        self.automatic += 1
        if generation == 2:
            self.collections += 1
            self.used += self.cost
        else:
            self.young += 1

    def live(self, seconds: int, share: float, *, allocates: bool = True) -> int:
        """Use this much of a core for this long; how often everything was collected meanwhile."""
        before = self.collections
        for _ in range(seconds * 10):
            self.now += GC_CHECK_PAUSE_S / 10
            self.used += share * GC_CHECK_PAUSE_S / 10
            self.automatic += allocates
            self.pacer.maybe_collect(self.now)
        return self.collections - before


def test_an_idle_process_collects() -> None:
    assert Process().live(20, share=0.01) >= 15


def test_a_busy_one_that_allocates_does_not() -> None:
    process = Process()
    process.live(5, share=0.9)
    assert process.live(20, share=0.9) == 0
    assert process.live(3, share=0.0) >= 1


def test_one_that_computes_without_allocating_does() -> None:
    process = Process()
    process.live(5, share=0.9)
    assert process.live(20, share=1.0, allocates=False) >= 15
    dear = Process(cost=1.0)
    dear.live(5, share=1.0, allocates=False)
    before = dear.young
    assert dear.live(20, share=1.0, allocates=False) <= 1
    assert dear.young >= before + 15, "what was made lately costs next to nothing"


@pytest.mark.parametrize("cost", [0.001, 0.02, 0.3])
def test_it_costs_next_to_nothing(cost: float) -> None:
    process = Process(cost)
    collections = process.live(600, share=0.01)
    assert collections >= 1
    assert collections * cost <= 600 * GC_CPU_FRACTION * 1.1 + cost


def test_who_has_turned_the_collector_off_is_left_alone() -> None:
    gc.disable()
    try:
        assert Process().live(5, share=0.0) == 0
    finally:
        gc.enable()
