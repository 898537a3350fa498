"""The targets, and how far what was measured is from them.

A ratio is taken within a round, because the machine's speed differs from round to round by more than the systems do.
What counts is the median over the rounds; the report shows the worst round and the best beside it. The bounds were set
before anything was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from results import Result, Results

RAYKEEPER, ETCD, ZOOKEEPER = "RayKeeper", "etcd + aetcd", "ZooKeeper + kazoo"
MANY_KEYS = "memory with 10 million keys"
"""The measure of benchmarks/large.py that is carried over into a report."""
VIA_PROXY = "etcd's clients: {}"
"""The measures that are taken by clients of etcd, at etcd and at a proxy."""
PROXY = "raykeeper proxy + aetcd"
PROXY_FROM_GO = "raykeeper proxy + Go"
HANDLE = "RayKeeper's handle"
ByRound = Callable[[Results], list[float]]
"""A value for each round that has it."""


@dataclass(frozen=True)
class Target:
    """A bound: ``must`` is asked for, ``stretch`` hoped for."""

    what: str
    measured: ByRound
    must: float
    stretch: float
    at_least: bool = False
    unit: str = ""

    def cells(self, results: Results) -> list[str]:
        """Median, worst round, best round, and how the median stands to the bounds."""
        values = sorted(self.measured(results), reverse=not self.at_least)
        if not values:
            return ["not measured", "", "", ""]
        value = statistics.median(values)
        shown = [self._show(each) for each in (value, values[0], values[-1])]
        if self._meets(value, self.stretch):
            return [*shown, "reached, and the stretch"]
        if self._meets(value, self.must):
            return [*shown, "reached"]
        if not self.must > 0 or not value > 0:
            return [*shown, "missed"]
        by = self.must / value if self.at_least else value / self.must
        return [*shown, f"missed by a factor of {by:.2f}"]

    def _show(self, value: float) -> str:
        return f"{value:.0f}{self.unit}" if self.must >= 10 else f"{value:.2f}{self.unit}"

    def _meets(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound

    @property
    def bounds(self) -> list[str]:
        """What must be reached, and the stretch, as text."""
        word = "at least" if self.at_least else "at most"
        return [f"{word} {self.must:g}{self.unit}", f"{self.stretch:g}{self.unit}"]


def by_round(result: Result | None, field: str) -> dict[int, float]:
    """The values of a field, by the round in which each was measured."""
    rows = result.rows if result is not None else []
    return {row.round: value for row in rows if (value := getattr(row, field)) is not None}


def pairs(one: Result | None, other: Result | None, field: str) -> list[tuple[float, float]]:
    """Both values of each round that has both."""
    ours, theirs = by_round(one, field), by_round(other, field)
    return [(ours[number], theirs[number]) for number in ours if number in theirs]


def against(
    other: str, field: str, measure: str, in_flight: int = 1, processes: int = 1, face: str = "coroutines"
) -> ByRound:
    """RayKeeper's value by another system's."""

    def ratios(results: Results) -> list[float]:
        cell = (measure, face, processes, in_flight)
        both = pairs(results.find(RAYKEEPER, *cell), results.find(other, *cell), field)
        return [ours / theirs for ours, theirs in both if theirs > 0]

    return ratios


def _proxy_by_etcd(op: str) -> ByRound:
    def ratios(results: Results) -> list[float]:
        cell = (VIA_PROXY.format(op), "coroutines", 1, 100)
        both = pairs(results.find(PROXY, *cell), results.find(ETCD, *cell), "per_second")
        return [ours / theirs for ours, theirs in both if theirs > 0]

    return ratios


def _above_handle(through_proxy: str) -> ByRound:
    def differences(results: Results) -> list[float]:
        cell = (VIA_PROXY.format("put"), "coroutines", 1, 1)
        both = pairs(results.find(through_proxy, *cell), results.find(HANDLE, *cell), "p50")
        return [(proxy - handle) * 1e3 for proxy, handle in both]

    return differences


def _memory(results: Results) -> list[float]:
    return [value / 1e6 for value in by_round(results.find(RAYKEEPER, MANY_KEYS, ""), "bytes").values()]


TARGETS = (
    Target("serial put p50 / etcd + aetcd", against(ETCD, "p50", "put"), 0.75, 0.5),
    Target(
        "serial put p50 by threads / ZooKeeper + kazoo", against(ZOOKEEPER, "p50", "put", face="threads"), 0.95, 0.7
    ),
    Target(
        "puts/s, 1,000 in flight, one process / etcd + aetcd", against(ETCD, "per_second", "put", 1000), 4.5, 7, True
    ),
    Target("the same, four processes", against(ETCD, "per_second", "put", 1000, 4), 5.5, 8, True),
    Target("transactions/s, 1,000 in flight / etcd + aetcd", against(ETCD, "per_second", "txn", 1000), 5, 7, True),
    Target("serial linearizable get p50 / etcd + aetcd", against(ETCD, "p50", "get"), 0.5, 0.3),
    Target("linearizable gets/s, 1,000 in flight / etcd + aetcd", against(ETCD, "per_second", "get", 1000), 6, 9, True),
    Target("put to watch event p50 / etcd + aetcd", against(ETCD, "p50", "put to watch event", 1, 2), 0.75, 0.5),
    Target("lock and unlock p50 / etcd + aetcd", against(ETCD, "p50", "lock and unlock"), 0.55, 0.4),
    Target("lock handed over p50 / ZooKeeper + kazoo", against(ZOOKEEPER, "p50", "lock handed over", 1, 2), 0.95, 0.7),
    Target(
        "processor time of a serial put, all processes / etcd + aetcd", against(ETCD, "cpu_per_op", "put"), 0.7, 0.5
    ),
    Target("memory of a member with 10 million keys", _memory, 300, 200, unit=" MB"),
)
PROXY_TARGETS = (
    Target("linearizable ranges/s of aetcd, 100 in flight, proxy / etcd", _proxy_by_etcd("get"), 1, 2, True),
    Target("puts/s of aetcd, 100 in flight, proxy / etcd", _proxy_by_etcd("put"), 1, 2, True),
    Target("serial put p50 of aetcd through a proxy, above the handle's", _above_handle(PROXY), 0.4, 0.2, unit=" ms"),
    Target("the same of etcd's client in Go", _above_handle(PROXY_FROM_GO), 0.4, 0.2, unit=" ms"),
)
