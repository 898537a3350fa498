"""Figures of a process: counted where the thing happens, and put together only when they are asked for.

What is counted on a hot path is a plain number, an attribute that is increased; what takes a distribution is a
:class:`Histogram`, whose ``observe`` costs less than 0.2 microseconds. Nothing else happens until somebody asks: then
each *source* of the process (its member, its proxy, its hubs, its supervisor) reads these numbers and makes *families*
of them, in the sense of Prometheus: a name, a type, and samples with labels.

Families are plain data, so a member sends them to a proxy in a frame; :func:`registry_of` shows them by way of
``prometheus_client``, which is loaded only where it is needed. Names are etcd's where etcd has the thing, so that
dashboards made for etcd work; ``raykeeper_*`` for the rest.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

FamilyKind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]
"""Names and values."""

DURATION_BUCKETS = tuple(0.0001 * 2**power for power in range(16))
"""Seconds, from 0.1 ms to 3.3 s: what happens on one machine."""
FSYNC_BUCKETS = tuple(0.001 * 2**power for power in range(14))
"""Seconds, as etcd's for its disk."""
TTL_BUCKETS = tuple(float(2**power) for power in range(24))
"""Seconds, as etcd's for leases."""
WORK_BUCKETS = tuple(0.01 * 2**power for power in range(17))
"""Seconds, as etcd's for what takes long: 10 ms to 11 minutes."""
COUNT_BUCKETS = tuple(float(2**power) for power in range(13))
"""Up to 4096 of something."""


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One number of a family."""

    suffix: str
    """Added to the family's name: ``_total`` of a counter; ``_bucket``, ``_count`` and ``_sum`` of a histogram."""
    value: float
    labels: Labels = ()


class Family(msgspec.Struct, frozen=True, array_like=True):
    """All samples of one name."""

    name: str
    """Without the suffix."""
    kind: FamilyKind
    help: str
    samples: tuple[Sample, ...]


class Histogram:
    """How often what was observed lay in which range. Any thread; in a race of two, one may not be counted.

    Args:
        bounds: upper bounds of the ranges, ascending; one more range has none.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float] = DURATION_BUCKETS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one more."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self._counts)

    def samples(self, labels: Labels = ()) -> Iterator[Sample]:
        """What a family holds of it."""
        counts = list(accumulate(self._counts))
        for bound, count in zip((*map(repr, map(float, self._bounds)), "+Inf"), counts, strict=True):
            yield Sample("_bucket", count, (*labels, ("le", bound)))
        yield Sample("_count", counts[-1], labels)
        yield Sample("_sum", self._sum, labels)


def gauge(name: str, help: str, value: float) -> Family:
    """A number that goes up and down, without labels."""
    return Family(name, "gauge", help, (Sample("", float(value)),))


def counter(name: str, help: str, value: float) -> Family:
    """A number that only grows, without labels. The name is given without ``_total``."""
    return Family(name, "counter", help, (Sample("_total", float(value)),))


def gauges(name: str, help: str, label: str, values: Mapping[str, float]) -> Family:
    """Numbers that go up and down, one for each value of a label."""
    return Family(name, "gauge", help, tuple([Sample("", float(v), ((label, key),)) for key, v in values.items()]))


def counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Family:
    """Numbers that only grow, one for each value of a label. The name is given without ``_total``."""
    samples = [Sample("_total", float(v), ((label, key),)) for key, v in values.items()]
    return Family(name, "counter", help, tuple(samples))


def histogram(name: str, help: str, seen: Histogram) -> Family:
    """A distribution, without labels."""
    return Family(name, "histogram", help, tuple(seen.samples()))


def histograms(name: str, help: str, label: str, seen: Mapping[str, Histogram]) -> Family:
    """Distributions, one for each value of a label."""
    samples = [sample for key, each in seen.items() for sample in each.samples(((label, key),))]
    return Family(name, "histogram", help, tuple(samples))


def labelled(families: Iterable[Family], labels: Mapping[str, str]) -> list[Family]:
    """The same families with labels added to every sample, before its own."""
    added = tuple(labels.items())
    return [
        Family(
            family.name,
            family.kind,
            family.help,
            tuple([Sample(sample.suffix, sample.value, (*added, *sample.labels)) for sample in family.samples]),
        )
        for family in families
    ]


def merged(families: Iterable[Family]) -> list[Family]:
    """Families of one name made one, in the order of their first appearance: a name may stand only once in a scrape. Of
    a name that appears with several types, only those of the first type are kept."""
    found: dict[str, Family] = {}
    for family in families:
        known = found.get(family.name)
        if known is None:
            found[family.name] = family
        elif known.kind == family.kind:
            samples = known.samples + family.samples
            found[family.name] = Family(known.name, known.kind, known.help, samples)
    return list(found.values())


FigureSource = Callable[[], Iterable[Family]]
"""Makes the families of one part of a process. Any thread."""


class Telemetry:
    """The sources of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: list[FigureSource] = []

    def add(self, source: FigureSource) -> Callable[[], None]:
        """Add a source; returns what removes it."""
        with self._lock:
            self._sources.append(source)

        def remove() -> None:
            with self._lock:
                if source in self._sources:
                    self._sources.remove(source)

        return remove

    def collect(self) -> list[Family]:
        """All that there is now. A source that fails is left out: its part may just be closing."""
        with self._lock:
            sources = list(self._sources)
        families: list[Family] = []
        failed = 0
        for source in sources:
            try:
                families += source()
            except Exception:
                failed += 1
        families.append(gauge("raykeeper_telemetry_failed_sources", "Parts that did not say their figures.", failed))
        return merged(families)


PROCESS = Telemetry()
"""This process's."""


def process_families() -> list[Family]:
    """What the kernel says of this process: memory, processor time, descriptors, start (``process_*``)."""
    import resource

    from prometheus_client import CollectorRegistry, ProcessCollector

    families = []
    for metric in ProcessCollector(registry=CollectorRegistry()).collect():
        kind: FamilyKind = "counter" if metric.type == "counter" else "gauge"
        samples = [Sample(each.name[len(metric.name) :], float(each.value)) for each in metric.samples]
        families.append(Family(metric.name, kind, metric.documentation, tuple(samples)))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    most = 2.0**64 if limit == resource.RLIM_INFINITY else float(limit)
    families.append(gauge("process_virtual_memory_max_bytes", "Maximum amount of virtual memory in bytes.", most))
    return families


def registry_of(collect: FigureSource) -> CollectorRegistry:
    """A registry of ``prometheus_client`` that shows the families of a source, read whenever it is asked."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

    class _Shown(Collector):
        def describe(self) -> Iterable[Metric]:
            """Nothing is collected for the sake of names."""
            return ()

        def collect(self) -> Iterator[Metric]:
            for family in collect():
                metric = Metric(family.name, family.help, family.kind)
                for sample in family.samples:
                    metric.add_sample(family.name + sample.suffix, dict(sample.labels), sample.value)
                yield metric

    registry = CollectorRegistry()
    registry.register(_Shown())
    return registry
