"""What was measured, for people: medians over the rounds with their spread, the targets, tables and a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from accounting import file_system
from results import Result, Results
from rich.console import Console
from rich.table import Table
from targets import PROXY_TARGETS, TARGETS, VIA_PROXY, Target

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"

# --- tables ----------------------------------------------------------------------------------------------------------

Sheet = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""


def seconds(value: float | None) -> str:
    """A time as people write it."""
    if value is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1 or unit == "µs":
            return f"{value * scale:.3g} {unit}"
    return ""


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _between(bounds: tuple[float, float] | None, show: Callable[[float | None], str]) -> str:
    return "" if bounds is None or bounds[0] == bounds[1] else f"{show(bounds[0])} to {show(bounds[1])}"


def sheets(results: Results) -> list[Sheet]:
    """Everything as tables."""
    said: list[Sheet] = [_targets("Targets", TARGETS, results)]
    if any(each.measure.startswith(VIA_PROXY.format("")) for each in results):
        said.append(_targets("Targets of a proxy, for etcd's clients", PROXY_TARGETS, results))
    crowds = [each for each in results if each.median("member_cores") is not None]
    if crowds:
        said.append(_crowd_sheet(crowds))
    results = Results(row for each in results if each not in crowds for row in each.rows)
    loads = [each for each in results if each.median("per_second") is not None]
    for measure in dict.fromkeys(each.measure for each in loads):
        said.append(_load_sheet(measure, [each for each in loads if each.measure == measure]))
    others = [
        each
        for each in results
        if each.median("per_second") is None and each.measure not in ("memory", "durability") and each.median("p50")
    ]
    if others:
        columns = ["measure", "system", "p50", "spread of p50", "p99", "CPU an operation", "samples", "notes"]
        rows = [
            [
                each.measure,
                each.system,
                seconds(each.median("p50")),
                _between(each.spread("p50"), seconds),
                seconds(each.median("p99")),
                seconds(each.median("cpu_per_op")),
                str(sum(row.count for row in each.rows)),
                "; ".join(each.notes),
            ]
            for each in sorted(others, key=lambda each: each.measure)
        ]
        said.append(("Watches, locks, failovers, local copies", columns, rows))
    memory = [each for each in results if each.measure == "memory"]
    if memory:
        rows = [
            [each.system, str(each.rows[0].count), f"{(each.median('bytes') or 0) / 1e6:.0f} MB"] for each in memory
        ]
        said.append(("Memory of the largest member after the load", ["system", "members", "memory"], rows))
    synced = [each for each in results if each.measure == "durability"]
    if synced:
        rows = [[each.system, "; ".join(each.notes), _synced(each)] for each in synced]
        said.append(("Syncs to the disk, counted by strace", ["system", "counted", "enough for a quorum?"], rows))
    return said


def _synced(result: Result) -> str:
    if any(not row.failed and "syncs of" not in row.note for row in result.rows):
        return "not counted"
    return "no" if any(row.failed for row in result.rows) else "yes"


def _targets(title: str, targets: Sequence[Target], results: Results) -> Sheet:
    rows = [[each.what, *each.bounds, *each.cells(results)] for each in targets]
    return title, ["", "must", "stretch", "median round", "worst round", "best round", ""], rows


_TITLES = {
    "get": "get, linearizable",
    "stale get": "get that may be stale (RayKeeper and etcd: serializable; ZooKeeper: its ordinary get)",
    "sync+get": "sync and then get (ZooKeeper's nearest to linearizable)",
    "mixed": "mixed: half puts, half linearizable gets",
    "stale mixed": "mixed: half puts, half gets that may be stale (ZooKeeper)",
    "txn": "transaction: one comparison, two puts",
}


def _load_sheet(measure: str, results: Sequence[Result]) -> Sheet:
    columns = [
        "system",
        "by",
        "processes",
        "in flight",
        "a second",
        "spread",
        "p50",
        "p99",
        "CPU an operation",
        "notes",
    ]
    order = {name: number for number, name in enumerate(dict.fromkeys(each.system for each in results))}
    rows = [
        [
            each.system,
            each.face,
            str(each.processes),
            f"{each.in_flight:,}",
            _rate(each.median("per_second")),
            _between(each.spread("per_second"), _rate),
            seconds(each.median("p50")),
            seconds(each.median("p99")),
            seconds(each.median("cpu_per_op")),
            "; ".join(each.notes),
        ]
        for each in sorted(results, key=lambda e: (e.face, e.processes, e.in_flight, order[e.system]))
    ]
    return _TITLES.get(measure, measure), columns, rows


def _crowd_sheet(results: Sequence[Result]) -> Sheet:
    columns = ["", "system", "how many", "p50", "p99", "a second"]
    columns += ["cores: members", "the busiest", "all others", "memory", "notes"]
    rows = [
        [
            each.measure,
            each.system,
            f"{each.in_flight:,}",
            seconds(each.median("p50")),
            seconds(each.median("p99")),
            _rate(each.median("per_second")),
            f"{each.median('member_cores') or 0:.2f}",
            f"{each.median('busiest_cores') or 0:.2f}",
            f"{each.median('client_cores') or 0:.2f}",
            f"{(each.median('bytes') or 0) / 1e6:.0f} MB",
            "; ".join(each.notes),
        ]
        for each in sorted(results, key=lambda each: (each.measure, each.in_flight))
    ]
    return "Crowds: watches, leases, sessions", columns, rows


def show(said: Iterable[Sheet], console: Console) -> None:
    """Print tables."""
    for title, columns, rows in said:
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        console.print(table)


# --- the page --------------------------------------------------------------------------------------------------------


def machine(folder: str) -> dict[str, str]:
    """What it was measured on, and with which versions."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    said = {
        "machine": f"{os.cpu_count()} cores ({model}), {memory / 2**30:.0f} GiB of memory",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "data on": file_system(os.path.realpath(folder)),
    }
    for package in ("ray", "rocksdict", "aetcd", "grpcio", "protobuf", "kazoo"):
        try:
            said[package] = version(package)
        except PackageNotFoundError:
            said[package] = "not installed"
    return said


def page(
    said: Iterable[Sheet], facts: dict[str, str], notes: dict[str, str], plots: Iterable[Path], where: Path
) -> str:
    """The generated part of the page, in Markdown."""
    lines = ["| | |", "|---|---|", *[f"| {name} | {value} |" for name, value in facts.items()], ""]
    lines += [f"- **{name}**: {text}" for name, text in notes.items() if text]
    for plot in plots:
        lines += ["", f"![{plot.stem}]({plot.relative_to(where.parent).as_posix()})"]
    return "\n".join([*lines, *markdown(said)])


def markdown(said: Iterable[Sheet]) -> list[str]:
    """Tables as lines of Markdown, each under a heading."""
    lines = []
    for title, columns, rows in said:
        lines += ["", f"### {title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in row)} |" for row in rows]
    return lines


def put_into(document: Path, generated: str) -> None:
    """Replace what stands between the markers of a document.

    Raises:
        ValueError: it has no markers.
    """
    text = document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{document} has no markers {BEGIN} and {END}")
    document.write_text(f"{before}{begin}\n\n{generated}\n\n{end}{after}")
