"""The targets of the benchmarks: ratios within a round, their median, the worst round and the best."""

from __future__ import annotations

import report
import targets
from measures import Row
from results import Results


def puts(system: str, by_round: dict[int, float], in_flight: int = 1, face: str = "coroutines") -> list[Row]:
    return [
        Row(system, "put", face, 1, in_flight, number, p50=value, per_second=1 / value, cpu_per_op=value)
        for number, value in by_round.items()
    ]


def cells(rows: list[Row], of: tuple[targets.Target, ...] = targets.TARGETS) -> dict[str, list[str]]:
    return {each.what: each.cells(Results(rows)) for each in of}


def test_a_ratio_is_of_one_round_and_rounds_without_both_do_not_count() -> None:
    ours = puts("RayKeeper", {0: 1.0, 1: 4.0, 2: 9.0, 3: 0.001})
    theirs = puts("etcd + aetcd", {0: 2.0, 1: 4.0, 2: 12.0, 4: 100.0})
    said = cells([*ours, *theirs])
    # 0.5, 1.0, 0.75: the ratio of the medians (2.5 to 8) would have been another.
    assert said["serial put p50 / etcd + aetcd"] == ["0.75", "1.00", "0.50", "reached"]
    assert said["serial linearizable get p50 / etcd + aetcd"] == ["not measured", "", "", ""]


def test_the_worst_of_what_is_to_be_large_is_the_least() -> None:
    ours = puts("RayKeeper", {0: 1.0, 1: 1.0, 2: 1.0}, 1000)
    theirs = puts("etcd + aetcd", {0: 2.0, 1: 4.0, 2: 8.0}, 1000)
    said = cells([*ours, *theirs])["puts/s, 1,000 in flight, one process / etcd + aetcd"]
    assert said == ["4.00", "2.00", "8.00", "missed by a factor of 1.12"]


def test_each_bound_is_reached_at_its_edge() -> None:
    target = targets.Target("x", lambda results: [0.5], 0.75, 0.5)
    assert target.cells(Results([]))[-1] == "reached, and the stretch"
    assert targets.Target("x", lambda results: [0.75], 0.75, 0.5).cells(Results([]))[-1] == "reached"
    assert targets.Target("x", lambda results: [1.5], 0.75, 0.5).cells(Results([]))[-1] == "missed by a factor of 2.00"
    assert targets.Target("x", lambda results: [0.0], 1, 2, True).cells(Results([]))[-1] == "missed"


def test_threads_are_compared_with_threads() -> None:
    rows = [*puts("RayKeeper", {0: 1.0}, face="threads"), *puts("ZooKeeper + kazoo", {0: 2.0})]
    what = "serial put p50 by threads / ZooKeeper + kazoo"
    assert cells(rows)[what][0] == "not measured"
    rows += puts("ZooKeeper + kazoo", {0: 1.25}, face="threads")
    assert cells(rows)[what][0] == "0.80"


def test_memory_with_many_keys_is_in_megabytes() -> None:
    row = Row("RayKeeper", targets.MANY_KEYS, bytes=269_000_000)
    assert cells([row])["memory of a member with 10 million keys"] == ["269 MB", "269 MB", "269 MB", "reached"]


def test_the_proxy_is_held_against_etcd_and_against_the_handle() -> None:
    def row(system: str, op: str, in_flight: int, p50: float, rate: float) -> Row:
        measure = targets.VIA_PROXY.format(op)
        return Row(system, measure, "coroutines", 1, in_flight, p50=p50, per_second=rate)

    rows = [row(targets.PROXY, "put", 100, 0.1, 900), row("etcd + aetcd", "put", 100, 0.1, 1000)]
    rows += [row(targets.PROXY, "put", 1, 0.0015, 600), row(targets.HANDLE, "put", 1, 0.0012, 800)]
    rows += [row(targets.PROXY_FROM_GO, "put", 1, 0.0013, 700)]
    said = cells(rows, targets.PROXY_TARGETS)
    assert said["puts/s of aetcd, 100 in flight, proxy / etcd"][0] == "0.90"
    above = "serial put p50 of aetcd through a proxy, above the handle's"
    assert said[above] == ["0.30 ms", "0.30 ms", "0.30 ms", "reached"]
    assert said["the same of etcd's client in Go"][0] == "0.10 ms"
    titles = [title for title, _, _ in report.sheets(Results(rows))]
    assert "Targets of a proxy, for etcd's clients" in titles
    assert "Targets of a proxy, for etcd's clients" not in [title for title, _, _ in report.sheets(Results([]))]


def test_the_table_shows_the_bounds_and_the_worst_and_best_round() -> None:
    title, columns, rows = report.sheets(Results([]))[0]
    assert title == "Targets"
    assert columns == ["", "must", "stretch", "median round", "worst round", "best round", ""]
    assert len(rows) == 12
    assert rows[0][:3] == ["serial put p50 / etcd + aetcd", "at most 0.75", "0.5"]
    assert rows[-1][:3] == ["memory of a member with 10 million keys", "at most 300 MB", "200 MB"]
