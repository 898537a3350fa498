"""What one thing costs, and what ends first: slopes, bounds, and the page of docs/scale.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import scale_report
from measures import Row

from rooms import ROOT

KIND = scale_report.Kind("things", "things kept", 1000, "`max_things`")


def row(count: int, cores: float, memory: int, measure: str = "things kept", **more: int) -> Row:
    made = Row("RayKeeper", measure, "coroutines", 1, count, bytes=memory, busiest_cores=cores)
    made.disk = more.get("disk")
    return made


def test_a_cost_is_the_slope_from_the_fewest_to_the_most() -> None:
    found = scale_report.cost(KIND, [row(100, 0.12, 2_000_000), row(0, 0.02, 1_000_000), row(200, 0.22, 5_000_000)])
    assert found is not None
    assert (found.most, found.bytes) == (200, 20_000)
    assert found.cores == pytest.approx(0.001)
    assert found.full_at == pytest.approx(980)
    assert found.ends_first == "the busiest member's core, at some 980"


def test_a_bound_ends_first_if_the_core_has_room_there() -> None:
    found = scale_report.cost(KIND, [row(100, 0.03, 1), row(200, 0.04, 1)])
    assert found is not None
    assert found.full_at == pytest.approx(9800)
    assert found.ends_first == "the bound of 1,000"


def test_what_costs_nothing_fills_no_core() -> None:
    found = scale_report.cost(KIND, [row(100, 0.03, 9), row(200, 0.02, 5)])
    assert found is not None
    assert (found.bytes, found.cores, found.full_at) == (0, 0, float("inf"))
    assert scale_report.cost(KIND, [row(100, 0.03, 9)]) is None
    assert scale_report.cost(KIND, [row(100, 0.03, 9, "others"), row(200, 0.03, 9, "others")]) is None


def test_what_did_not_keep_up_comes_before_bound_and_core_and_is_in_no_slope() -> None:
    kind = scale_report.Kind("things", "things kept", 1000, "`max_things`", "events")

    def kept(count: int, cores: float, rate: float, p50: float = 0.01) -> Row:
        made = row(count, cores, 1000)
        made.per_second, made.p50 = rate, p50
        return made

    few, more = kept(100, 0.1, 100), kept(200, 0.2, 181)
    found = scale_report.cost(kind, [few, more, kept(400, 0.21, 300, 0.5), kept(500, 0.21, 300, 0.5)])
    assert found is not None
    assert (found.most, found.cores) == (200, pytest.approx(0.001))
    assert found.ends_first == "this machine, at 400: 300 of 400 events a second, half of them within 500 ms"
    late = scale_report.cost(kind, [few, more, kept(400, 0.4, 400, 1.5)])
    assert late is not None
    assert late.ends_first.startswith("this machine, at 400")
    assert scale_report.cost(kind, [few, kept(200, 0.2, 150)]) is None


def test_the_quota_ends_keys() -> None:
    rows = [row(1000, 0, 1, "keys", disk=1_000_000), row(2000, 0, 1, "keys", disk=1_200_000)]
    (_, _, cells), *_ = scale_report.sheets(rows)
    assert cells == [
        ["keys, with values of 100 bytes", "2,000", "0.00 kB; 200 bytes of disk", "", "",
         "8 GiB of disk (`quota_bytes`)", "the quota, at some 43,000,000"],
    ]  # fmt: skip


def test_the_page_has_every_table_and_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row(n, n / 1e4, n, measure) for n in (10, 20) for measure in ("leases kept", "sessions, idle")]
    drawn = scale_report.plot(rows, tmp_path / "pictures" / "scale.png")
    assert drawn is not None
    assert drawn.stat().st_size > 10_000
    text = scale_report.page(rows, {"mind": "**loaded**"}, drawn, tmp_path / "scale.md")
    assert "![What one group carries](pictures/scale.png)" in text
    assert "| mind | **loaded** |" in text
    assert text.count("### ") == 3
    assert "| leases, kept alive | 20 |" in text


def test_the_page_that_is_written_is_there() -> None:
    text = (ROOT / "docs" / "scale.md").read_text()
    assert "<!-- generated: begin -->" in text
    assert "<!-- generated: end -->" in text
