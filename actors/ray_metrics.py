"""Hands the figures of this process to Ray's own metrics, so that they appear where a Ray user's Prometheus scrapes.

Every ``RAY_METRICS_PAUSE_S`` seconds a thread of each member's, proxy's and supervisor's actor reads the process's
figures and gives them to ``ray.util.metrics``: gauges as they are, counters by what they have grown, of histograms the
sum and the count (Ray's own would need each observation). Ray adds the prefix ``ray_`` to the names. A sample costs two
microseconds; no more than ``MAX_RAY_SAMPLES`` are handed over each time.

Where Ray has no exporter (an installation without ``ray[default]``), Ray drops them; without Ray, nothing is done.
``RAYKEEPER_RAY_METRICS=0`` in the actor's environment turns this off.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ..limits import MAX_RAY_SAMPLES, RAY_METRICS_PAUSE_S
from ..telemetry import PROCESS, Family, Labels
from .logs import MemberLog
from .one_thread import start_thread


class RayMetricClasses(Protocol):
    """What is used of ``ray.util.metrics``."""

    Counter: Any
    Gauge: Any


class RayMetrics:
    """Knows what was handed over already.

    Args:
        classes: the module ``ray.util.metrics``.
        tags: added to all samples.
    """

    def __init__(self, classes: RayMetricClasses, tags: Mapping[str, str]) -> None:
        self._classes = classes
        self._tags = dict(tags)
        self._metrics: dict[str, Any] = {}
        self._counted: dict[tuple[str, Labels], float] = {}
        """The last value of each counter."""

    def hand_over(self, families: Iterable[Family]) -> int:
        """Give these to Ray; returns how many samples that were."""
        count = 0
        for family in families:
            for sample in family.samples:
                if sample.suffix == "_bucket":
                    continue
                if count >= MAX_RAY_SAMPLES:
                    return count
                count += 1
                name = family.name + sample.suffix
                if family.kind == "gauge":
                    self._metric(self._classes.Gauge, name, family, sample.labels).set(
                        sample.value, self._tagged(sample.labels)
                    )
                else:
                    self._count(name, family, sample.labels, sample.value)
        return count

    def _count(self, name: str, family: Family, labels: Labels, value: float) -> None:
        """A counter is told what it has grown by. One that is lower than before has begun again."""
        before = self._counted.get((name, labels), 0.0)
        self._counted[name, labels] = value
        grown = value - before if value >= before else value
        if grown > 0:
            self._metric(self._classes.Counter, name, family, labels).inc(grown, self._tagged(labels))

    def _metric(self, kind: Any, name: str, family: Family, labels: Labels) -> Any:
        metric = self._metrics.get(name)
        if metric is None:
            keys = (*self._tags, *[_tag(key) for key, _ in labels])
            metric = self._metrics[name] = kind(name, description=family.help, tag_keys=keys)
        return metric

    def _tagged(self, labels: Labels) -> dict[str, str]:
        return {**self._tags, **{_tag(key): value for key, value in labels}}


def _tag(label: str) -> str:
    """A label as Ray takes it: some names are Ray's own."""
    return f"label_{label}" if label in ("cluster", "member", "Version") else label


def hand_to_ray(
    cluster: str,
    member: str,
    log: MemberLog,
    collect: Callable[[], Iterable[Family]] = PROCESS.collect,
    stop: threading.Event | None = None,
) -> None:
    """Begin to hand the process's figures to Ray, on a thread of its own; see the module.

    Args:
        cluster, member: tags of all samples; a proxy and the supervisor have their own names.
        stop: ends the thread; an actor's ends with its process.

    Raises:
        NoThreadLeft: the system has no thread left.
    """
    if os.environ.get("RAYKEEPER_RAY_METRICS", "1") == "0":
        return
    over = stop or threading.Event()

    def run() -> None:
        import ray
        from ray.util import metrics

        handed = RayMetrics(metrics, {"cluster": cluster, "member": member})
        while not over.wait(RAY_METRICS_PAUSE_S):
            try:
                if ray.is_initialized():
                    handed.hand_over(collect())
            except Exception as error:
                log.info("metrics could not be handed to Ray: %r", error)

    start_thread(threading.Thread(target=run, name="ray metrics", daemon=True))
