"""What the benchmarks make of what they measured: medians, targets, tables, and the page."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import accounting
import click
import loads
import pytest
import report
import run
from measures import Row, percentile
from results import Results

from lab.patience import PATIENCE
from rooms import ROOT


def rows(system: str, put: float, rate: float, round: int = 0) -> list[Row]:
    return [
        Row(system, "put", "coroutines", 1, 1, round, 100, p50=put, p99=2 * put, per_second=1 / put),
        Row(system, "put", "coroutines", 1, 1000, round, 100, p50=put, p99=2 * put, per_second=rate),
    ]


def test_medians_and_spread_are_over_rounds() -> None:
    results = Results([each for n, p in enumerate((0.3, 0.1, 0.2)) for each in rows("etcd + aetcd", p, 10, n)])
    found = results.find("etcd + aetcd", "put")
    assert found is not None
    assert found.median("p50") == 0.2
    assert found.spread("p50") == (0.1, 0.3)
    assert found.median("cpu_per_op") is None
    assert results.find("etcd + aetcd", "put", in_flight=5) is None


def test_stale_reads_have_a_table_of_their_own_that_says_so() -> None:
    mixed = [Row("ZooKeeper + kazoo", "stale get", "coroutines", per_second=9.0, p50=0.1, p99=0.2)]
    mixed += [Row("RayKeeper", "get", "coroutines", per_second=8.0, p50=0.1, p99=0.2)]
    said = {title: cells for title, _, cells in report.sheets(Results(mixed))}
    (linearizable,) = [cells for title, cells in said.items() if title.startswith("get, linearizable")]
    (stale,) = [cells for title, cells in said.items() if title.startswith("get that may be stale")]
    assert [row[0] for row in linearizable] == ["RayKeeper"]
    assert [row[0] for row in stale] == ["ZooKeeper + kazoo"]


def test_failed_calls_and_missing_syncs_are_told() -> None:
    bad = [
        Row("A", "put", "coroutines", per_second=1.0, p50=1.0, failed=3, note="TypeError: no"),
        Row("A", "durability", count=30, failed=1, note="9 syncs of the members during 30 puts one by one"),
        Row("B", "durability", count=30, note="90 syncs of the members during 30 puts one by one"),
        Row("C", "durability", count=30, note="strace is not installed"),
    ]
    cells = [row for _, _, table in report.sheets(Results(bad)) for row in table]
    assert any("3 calls failed; TypeError: no" in row for row in cells)
    assert [row[-1] for row in cells if "syncs" in row[1] or "strace" in row[1]] == ["no", "yes", "not counted"]


def test_only_what_is_between_the_markers_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    said = report.sheets(Results(rows("RayKeeper", 0.001, 2000)))
    report.put_into(document, report.page(said, {"machine": "m"}, {"etcd": "not measured: x"}, [], document))
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| RayKeeper | coroutines | 1 | 1,000 | 2,000 |" in text
    assert "- **etcd**: not measured: x" in text
    document.write_text("nothing")
    with pytest.raises(ValueError, match="markers"):
        report.put_into(document, "x")
    report.put_into(Path(_copy(ROOT / "docs" / "benchmarks.md", tmp_path)), "x")


def _copy(path: Path, folder: Path) -> Path:
    copy = folder / path.name
    copy.write_text(path.read_text())
    return copy


def test_only_names_systems_sections_and_measures() -> None:
    def names(*only: str) -> tuple[list[str], list[str], tuple[str, ...]]:
        systems, parts, measures = run.chosen(only)
        return [each.name for each in systems], list(dict.fromkeys(each.section for each in parts)), measures

    everything = [each.name for each in run.SYSTEMS]
    assert names() == (everything, list(run.SECTIONS), ())
    assert names("raykeeper", "put") == (["RayKeeper"], [], ("put",))
    assert names("put") == (everything, [], ("put",))
    assert names("zoo", "lanes off", "floors") == (["RayKeeper, lanes off", "ZooKeeper + kazoo"], ["floors"], ())
    assert names("proxy") == ([], ["proxy"], ())
    with pytest.raises(click.BadParameter, match="etcd"):
        run.chosen(("consul",))


@pytest.mark.parametrize(("count", "share", "least"), [(1, 0.5, 0), (100, 0.5, 50), (100, 0.99, 99), (3, 0.99, 2)])
def test_percentiles(count: int, share: float, least: int) -> None:
    assert percentile([float(n) for n in reversed(range(count))], share) == least
    assert percentile([], share) is None


def test_a_window_waits_for_a_slow_crowd_but_not_forever() -> None:
    load = loads.Load(in_flight=2, begin=0.0, seconds=1.0)
    begin = loads.WARM_UP
    load.count(0.0, begin - 0.1, None)  # too early
    assert load.open(begin + 1.5), "two workers have not ended two calls each"
    for number in range(4):
        load.count(begin, begin + 1 + number / 10, None)
    load.count(begin, begin + 1.5, RuntimeError("no"))
    assert not load.open(begin + 2.0)
    load.count(begin, begin + 2.1, None)  # too late
    samples = load.samples
    assert (len(samples.times), samples.window, samples.done, samples.failed) == (4, 2.0, 6, 1)
    assert samples.problem == "RuntimeError: no"
    empty = loads.Load(in_flight=2, begin=0.0, seconds=1.0)
    assert not empty.open(begin + loads.PATIENCE)


def test_costs_are_of_all_descendants() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        below: list[Any] = []
        while len(below) < 2:
            below = [pid for pid in accounting.descendants(os.getpid()) if pid == child.pid or pid > child.pid]
            assert child.poll() is None
        assert child.pid in below
        assert accounting.resident(child.pid) > 0
        assert accounting.cpu_seconds([os.getpid()]) > 0
    finally:
        child.communicate(b"\n", timeout=PATIENCE)
    assert accounting.resident(child.pid) == 0
