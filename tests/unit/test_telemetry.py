"""What figures are put together to, and how they are shown."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from raykeeper.telemetry import (
    Family,
    Histogram,
    Sample,
    Telemetry,
    counter,
    counters,
    gauge,
    histogram,
    histograms,
    labelled,
    merged,
    process_families,
    registry_of,
)


def shown(families: list[Family]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = generate_latest(registry_of(lambda: families)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


@given(st.lists(st.floats(0, 10)))
def test_a_histogram_counts_what_lies_at_or_below_each_bound(values: list[float]) -> None:
    bounds = (0.5, 1.0, 2.0)
    seen = Histogram(bounds)
    for value in values:
        seen.observe(value)
    found = shown([histogram("h", "", seen)])
    for bound in bounds:
        assert found["h_bucket", frozenset({("le", str(bound))})] == sum(value <= bound for value in values)
    assert found["h_bucket", frozenset({("le", "+Inf")})] == found["h_count", frozenset()] == len(values)
    assert found["h_sum", frozenset()] == pytest.approx(sum(values))
    assert seen.count == len(values)
    assert bisect_left(bounds, 0.5) == 0  # a value at a bound belongs to it


def test_names_types_and_labels() -> None:
    families = [
        gauge("g", "a gauge", 2),
        counter("c", "a counter", 3),
        counters("cs", "some", "to", {"1": 4, "2": 5}),
        histograms("hs", "some", "to", {"1": Histogram((1.0,))}),
    ]
    found = shown(families)
    assert found["g", frozenset()] == 2
    assert found["c_total", frozenset()] == 3
    assert found["cs_total", frozenset({("to", "2")})] == 5
    assert found["hs_count", frozenset({("to", "1")})] == 0
    types = {family.name: family.type for family in parse_text(generate_latest(registry_of(lambda: families)).decode())}
    assert types == {"g": "gauge", "c": "counter", "cs": "counter", "hs": "histogram"}


def test_a_name_stands_once() -> None:
    first, second = (labelled([gauge("g", "", value)], {"member": f"m{value}"}) for value in (1, 2))
    other = Family("g", "counter", "", (Sample("_total", 9),))
    (family,) = merged([*first, *second, other])
    assert [(sample.value, sample.labels) for sample in family.samples] == [
        (1, (("member", "m1"),)),
        (2, (("member", "m2"),)),
    ]


def test_sources_come_and_go_and_may_fail() -> None:
    telemetry = Telemetry()
    remove = telemetry.add(lambda: [gauge("a", "", 1)])

    def fail() -> list[Family]:
        raise RuntimeError("closing")

    telemetry.add(fail)
    found = shown(telemetry.collect())
    assert found["a", frozenset()] == 1
    assert found["raykeeper_telemetry_failed_sources", frozenset()] == 1
    remove()
    remove()
    assert ("a", frozenset()) not in shown(telemetry.collect())


def test_the_kernel_on_this_process() -> None:
    found = shown(process_families())
    assert found["process_resident_memory_bytes", frozenset()] > 0
    assert ("process_cpu_seconds_total", frozenset()) in found
