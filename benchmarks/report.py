"""What was measured, for people: medians over the rounds with their spread, the targets, tables and a page."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from accounting import file_system
from measures import Row
from rich.console import Console
from rich.table import Table

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
RAYKEEPER, CALLS, ETCD, ZOOKEEPER = "RayKeeper", "RayKeeper, lanes off", "etcd + aetcd", "ZooKeeper + kazoo"
ACTOR_CALL = "floor: Ray actor call"
Key = tuple[str, str, str, int, int]


@dataclass
class Result:
    """One measurement over all rounds: medians, and the least and the most of what was measured."""

    system: str
    measure: str
    face: str
    processes: int
    in_flight: int
    rows: list[Row]

    def median(self, field: str) -> float | None:
        """The median over the rounds that have it."""
        values = self._values(field)
        return statistics.median(values) if values else None

    def spread(self, field: str) -> tuple[float, float] | None:
        """The least and the most."""
        values = self._values(field)
        return (min(values), max(values)) if values else None

    def _values(self, field: str) -> list[float]:
        return [value for row in self.rows if (value := getattr(row, field)) is not None]

    @property
    def notes(self) -> list[str]:
        """What was said of it, and how many calls failed."""
        failed = sum(row.failed for row in self.rows)
        said = list(dict.fromkeys(row.note for row in self.rows if row.note))
        return [*([f"{failed} calls failed"] if failed and self.measure != "durability" else []), *said]


class Results:
    """All of them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._results: dict[Key, Result] = {}
        for row in rows:
            key = (row.system, row.measure, row.face, row.processes, row.in_flight)
            self._results.setdefault(key, Result(*key, [])).rows.append(row)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results.values())

    def find(
        self, system: str, measure: str, face: str = "coroutines", processes: int = 1, in_flight: int = 1
    ) -> Result | None:
        """One of them, if it was measured."""
        return self._results.get((system, measure, face, processes, in_flight))

    def median(
        self, field: str, system: str, measure: str, face: str = "coroutines", processes: int = 1, in_flight: int = 1
    ) -> float | None:
        """The median of one of them, if it was measured."""
        found = self.find(system, measure, face, processes, in_flight)
        return found.median(field) if found else None


# --- targets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A bound that was set before anything was measured."""

    what: str
    measured: Callable[[Results], float | None]
    target: float
    stretch: float
    at_least: bool = False
    unit: str = ""

    def verdict(self, results: Results) -> tuple[str, str]:
        """What came out, and how that stands to the bounds."""
        value = self.measured(results)
        if value is None:
            return "not measured", ""
        shown = f"{value:.2f}{self.unit}"
        if self._meets(value, self.stretch):
            return shown, "reached, and the stretch"
        if self._meets(value, self.target):
            return shown, "reached"
        by = self.target / value if self.at_least else value / self.target
        return shown, f"missed by a factor of {by:.2f}"

    def _meets(self, value: float, bound: float) -> bool:
        return value >= bound if self.at_least else value <= bound

    @property
    def bounds(self) -> tuple[str, str]:
        """Target and stretch as text."""
        word = "at least" if self.at_least else "at most"
        return f"{word} {self.target:g}{self.unit}", f"{self.stretch:g}{self.unit}"


def _against(
    other: str, field: str, measure: str, in_flight: int = 1, processes: int = 1
) -> Callable[[Results], float | None]:
    def ratio(results: Results) -> float | None:
        ours = results.median(field, RAYKEEPER, measure, "coroutines", processes, in_flight)
        theirs = results.median(field, other, measure, "coroutines", processes, in_flight)
        return ours / theirs if ours and theirs else None

    return ratio


def _by_calls(results: Results) -> float | None:
    put = results.median("p50", CALLS, "put", "threads") or results.median("p50", CALLS, "put")
    call = results.median("p50", ACTOR_CALL, "call", "threads")
    return put / call if put and call else None


def _microseconds(results: Results) -> float | None:
    value = results.median("p50", RAYKEEPER, "cached get", "threads")
    return None if value is None else value * 1e6


TARGETS = (
    Target("serial put p50 / etcd + aetcd", _against(ETCD, "p50", "put"), 0.6, 0.45),
    Target("puts/s, 1,000 in flight / etcd + aetcd", _against(ETCD, "per_second", "put", 1000), 4, 6, True),
    Target("serial linearizable get p50 / etcd + aetcd", _against(ETCD, "p50", "get"), 0.5, 0.3),
    Target(
        "linearizable gets/s, 1,000 in flight / etcd + aetcd", _against(ETCD, "per_second", "get", 1000), 4, 8, True
    ),
    Target("put to watch event p50 / etcd + aetcd", _against(ETCD, "p50", "put to watch event", 1, 2), 0.6, 0.4),
    Target("uncontended lock and unlock p50 / etcd + aetcd", _against(ETCD, "p50", "lock and unlock"), 0.6, 0.4),
    Target("failover, median", lambda r: r.median("p50", RAYKEEPER, "failover"), 1.0, 0.3, unit=" s"),
    Target("failover / etcd + aetcd", _against(ETCD, "p50", "failover"), 1.0, 1.0),
    Target("lanes off: serial put p50 / bare Ray actor call", _by_calls, 4.5, 3.5),
    Target("get of a `cached` copy", _microseconds, 5, 2, unit=" µs"),
)

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
    said: list[Sheet] = [_targets(results)]
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


def _targets(results: Results) -> Sheet:
    rows = [[each.what, *each.bounds, *each.verdict(results)] for each in TARGETS]
    return "Targets", ["", "target", "stretch", "measured", ""], rows


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
    for title, columns, rows in said:
        lines += ["", f"### {title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in row)} |" for row in rows]
    return "\n".join(lines)


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
