"""What is handed to Ray's metrics: each figure once, counters by their growth."""

from __future__ import annotations

import threading
from collections import Counter as Count
from typing import Any

import pytest

from lab.patience import until
from raykeeper.actors.logs import MemberLog
from raykeeper.actors.ray_metrics import RayMetrics, hand_to_ray
from raykeeper.limits import MAX_RAY_SAMPLES
from raykeeper.telemetry import Family, Histogram, Sample, counter, gauge, gauges, histogram


class _Metric:
    made: dict[str, _Metric]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        assert name not in self.made, "Ray warns of a metric that is made twice"
        self.keys = set(tag_keys)
        self.values: Count[frozenset[tuple[str, str]]] = Count()
        self.made[name] = self

    def _key(self, tags: dict[str, str]) -> frozenset[tuple[str, str]]:
        assert set(tags) == self.keys, "Ray refuses tags that were not declared"
        return frozenset(tags.items())


@pytest.fixture
def classes() -> Any:
    made: dict[str, _Metric] = {}

    class Gauge(_Metric):
        def set(self, value: float, tags: dict[str, str]) -> None:
            self.values[self._key(tags)] = value  # type: ignore[assignment]

    class Counter(_Metric):
        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0, "Ray refuses others"
            self.values[self._key(tags)] += value  # type: ignore[assignment]

    class Classes:
        pass

    Gauge.made = Counter.made = made
    Classes.Gauge, Classes.Counter, Classes.made = Gauge, Counter, made  # type: ignore[attr-defined]
    return Classes


def values(classes: Any, name: str) -> list[float]:
    return list(classes.made[name].values.values()) if name in classes.made else []


def test_counters_are_handed_over_by_their_growth(classes: Any) -> None:
    handed = RayMetrics(classes, {"cluster": "c", "member": "m1"})
    for value in (3, 3, 10):
        handed.hand_over([counter("c", "", value), gauge("g", "", value)])
        assert values(classes, "c_total") == values(classes, "g") == [value]
    handed.hand_over([counter("c", "", 4)])  # it has begun again: 4 more
    assert values(classes, "c_total") == [14]


def test_of_histograms_sum_and_count(classes: Any) -> None:
    seen = Histogram()
    handed = RayMetrics(classes, {})
    seen.observe(0.5)
    seen.observe(1.5)
    handed.hand_over([histogram("h", "", seen)])
    assert (values(classes, "h_sum"), values(classes, "h_count")) == ([2.0], [2])
    assert "h_bucket" not in classes.made


def test_labels_are_tags(classes: Any) -> None:
    handed = RayMetrics(classes, {"cluster": "c", "member": "m1"})
    handed.hand_over([gauges("g", "", "member", {"m2": 1.0, "m3": 2.0})])
    (metric,) = classes.made.values()
    assert frozenset({("cluster", "c"), ("member", "m1"), ("label_member", "m2")}) in metric.values
    assert len(metric.values) == 2


def test_the_number_of_samples_is_bounded(classes: Any) -> None:
    many = Family("g", "gauge", "", tuple([Sample("", 1.0, (("n", str(n)),)) for n in range(2 * MAX_RAY_SAMPLES)]))
    assert RayMetrics(classes, {}).hand_over([many]) == MAX_RAY_SAMPLES


def test_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYKEEPER_RAY_METRICS", "0")
    monkeypatch.setattr("raykeeper.actors.ray_metrics.RAY_METRICS_PAUSE_S", 0.0)
    before = set(threading.enumerate())
    hand_to_ray("c", "m1", MemberLog("member", "c", "m1"), lambda: pytest.fail("asked"))
    assert not [each for each in set(threading.enumerate()) - before if each.name == "ray metrics"]


def test_an_error_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raykeeper.actors.ray_metrics.RAY_METRICS_PAUSE_S", 0.001)
    asked, stop = [], threading.Event()

    def collect() -> list[Family]:
        asked.append(1)
        raise OSError("no Ray")

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    hand_to_ray("c", "m1", MemberLog("member", "c", "m1"), collect, stop)
    until(lambda: len(asked) > 2)
    stop.set()
