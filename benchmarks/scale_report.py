"""What one group carries, for people: what each thing costs, what ends first, the tables and the plot.

A cost is the slope between the least and the most that was measured and carried. From it follows at how many the core
of the busiest member would be full: its loop runs on one core, whatever the machine has. The bounds are those of
``limits.py``. What was measured and not carried, because calls or events did not keep up, comes before both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from measures import Row
from report import Sheet, markdown, seconds
from report import show as show_sheets
from rich.console import Console

from raykeeper.limits import MAX_LANES, MAX_WATCH_STREAMS, MAX_WATCHES_PER_STREAM, Limits

LIMITS = Limits()
KEPT_UP_FRACTION = 0.9
"""Of the calls or events that were to come each second, this many must have come..."""
LATE_S = 1.0
"""... and half of them no later than this."""


@dataclass(frozen=True)
class Kind:
    """Something that a group carries.

    Attributes:
        measure: the rows with its costs.
        bound: how many are allowed by default...
        bound_name: ... and by what.
        each_second: what each of them does once a second; empty if they do nothing.
    """

    what: str
    measure: str
    bound: int
    bound_name: str
    each_second: str = ""

    def carried(self, row: Row) -> bool:
        """Whether so many of them kept up."""
        late = row.p50 is not None and row.p50 > LATE_S
        return not self.each_second or ((row.per_second or 0.0) >= KEPT_UP_FRACTION * row.in_flight and not late)


KINDS = (
    Kind("client processes, idle", "sessions, idle", MAX_LANES, "`MAX_LANES`; more go by actor calls"),
    Kind(
        "client processes, one put a second each",
        "sessions, one put a second each",
        MAX_LANES,
        "`MAX_LANES`; more go by actor calls",
        "puts",
    ),
    Kind(
        "watches, 100 puts a second, each an event for 1 in 100",
        "watches, 100 puts/s",
        MAX_WATCH_STREAMS * MAX_WATCHES_PER_STREAM,
        "`MAX_WATCH_STREAMS` of `MAX_WATCHES_PER_STREAM`",
        "events",
    ),
    Kind("leases, kept alive", "leases kept", LIMITS.max_leases, "`max_leases`"),
)


@dataclass(frozen=True)
class Cost:
    """What one of them costs, and what ends first."""

    kind: Kind
    most: int
    """That was measured."""
    bytes: float
    """Memory of the largest member, each."""
    cores: float
    """Of the busiest member, each."""
    full_at: float
    """How many fill its core; infinite if they cost nothing that could be measured."""
    not_carried: Row | None = None
    """The fewest that were measured and did not keep up."""

    @property
    def ends_first(self) -> str:
        """What was seen to end, the bound, or the core."""
        if self.not_carried is not None:
            row, name = self.not_carried, self.kind.each_second
            rate = f"{row.per_second or 0:,.0f} of {row.in_flight:,} {name} a second"
            return f"this machine, at {row.in_flight:,}: {rate}, half of them within {seconds(row.p50)}"
        if self.kind.bound <= self.full_at:
            return f"the bound of {self.kind.bound:,}"
        return f"the busiest member's core, at some {_round(self.full_at):,}"


def _round(value: float) -> int:
    """Two digits: it is an extrapolation."""
    digits = max(0, len(str(int(value))) - 2)
    return round(int(value), -digits)


def cost(kind: Kind, rows: Iterable[Row]) -> Cost | None:
    """Of one kind, by its rows: those of the fewest and of the most."""
    measured = sorted((row for row in rows if row.measure == kind.measure), key=lambda row: row.in_flight)
    failing = next((row for row in measured if not kind.carried(row)), None)
    found = measured if failing is None else measured[: measured.index(failing)]
    if len(found) < 2:
        return None
    few, most = found[0], found[-1]
    more = most.in_flight - few.in_flight
    memory = ((most.bytes or 0) - (few.bytes or 0)) / more
    cores = ((most.busiest_cores or 0.0) - (few.busiest_cores or 0.0)) / more
    base = (few.busiest_cores or 0.0) - cores * few.in_flight
    full_at = (1.0 - base) / cores if cores > 0 else float("inf")
    return Cost(kind, most.in_flight, max(0.0, memory), max(0.0, cores), full_at, failing)


def _ends(rows: Sequence[Row]) -> Sheet:
    columns = ["", "carried", "memory each", "processor each", "a core is full at", "bound", "ends first"]
    cells = [
        [
            found.kind.what,
            f"{found.most:,}",
            f"{found.bytes / 1e3:.1f} kB",
            f"{found.cores * 1e6:.0f} µs a second",
            f"some {_round(found.full_at):,}" if found.full_at < 10 * kind.bound else "",
            f"{kind.bound:,} ({kind.bound_name})",
            found.ends_first,
        ]
        for kind in KINDS
        if (found := cost(kind, rows)) is not None
    ]
    keys = sorted((row for row in rows if row.measure == "keys"), key=lambda row: row.in_flight)
    if len(keys) > 1:
        more = keys[-1].in_flight - keys[0].in_flight
        memory = max(0.0, ((keys[-1].bytes or 0) - (keys[0].bytes or 0)) / more)
        disk = ((keys[-1].disk or 0) - (keys[0].disk or 0)) / more
        fit = LIMITS.quota_bytes / disk if disk > 0 else float("inf")
        cells.append(
            [
                "keys, with values of 100 bytes",
                f"{keys[-1].in_flight:,}",
                f"{memory / 1e3:.2f} kB; {disk:.0f} bytes of disk",
                "",
                "",
                f"{LIMITS.quota_bytes / 2**30:.0f} GiB of disk (`quota_bytes`)",
                "" if fit == float("inf") else f"the quota, at some {_round(fit):,}",
            ]
        )
    return "What one costs, and what ends first", columns, cells


def sheets(rows: Sequence[Row]) -> list[Sheet]:
    """All tables."""
    said = [_ends(rows)]
    for measure in dict.fromkeys(row.measure for row in rows):
        columns = [
            "how many",
            "p50",
            "p99",
            "a second",
            "cores: members",
            "the busiest",
            "all others",
            "memory",
            "notes",
        ]
        cells = [
            [
                f"{row.in_flight:,}",
                seconds(row.p50),
                seconds(row.p99),
                "" if row.per_second is None else f"{row.per_second:,.0f}",
                f"{row.member_cores or 0:.2f}",
                f"{row.busiest_cores or 0:.2f}",
                f"{row.client_cores or 0:.2f}",
                f"{(row.bytes or 0) / 1e6:.0f} MB",
                "; ".join(filter(None, [row.note, f"{row.failed} calls failed" if row.failed else ""])),
            ]
            for row in rows
            if row.measure == measure
        ]
        said.append((_TITLES.get(measure, measure[:1].upper() + measure[1:]), columns, cells))
    return said


_TITLES = {
    "puts in flight": "Puts of 256 bytes, by calls in flight from one process",
    "leases kept": "Leases kept alive (`a second`: grants, each with a key)",
    "watches, 100 puts/s": "Watches under 100 puts a second (`a second`: events; p50 and p99: from put to event)",
    "keys": "Keys with values of 100 bytes (`a second`: puts of new keys, 500 in flight; p50 and p99: of a read)",
    "bytes of a value": "Values by their length in bytes (up to 1,000 puts in flight, 8 MB together)",
}


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the tables."""
    show_sheets(sheets(rows), console)


def page(rows: Sequence[Row], facts: dict[str, str], drawn: Path | None, where: Path) -> str:
    """The generated part of the page, in Markdown."""
    lines = ["| | |", "|---|---|", *[f"| {name} | {value} |" for name, value in facts.items()]]
    if drawn is not None:
        lines += ["", f"![What one group carries]({drawn.relative_to(where.parent).as_posix()})"]
    return "\n".join([*lines, *markdown(sheets(rows))])


_PANELS: tuple[tuple[str, str, str, str, Callable[[Row], float | None]], ...] = (
    ("puts in flight", "Puts by calls in flight", "calls in flight", "puts a second", lambda row: row.per_second),
    ("sessions, idle", "Memory by sessions", "sessions", "MB, largest member", lambda row: (row.bytes or 0) / 1e6),
    (
        "sessions, one put a second each",
        "One put a second in each session",
        "sessions",
        "p99 of a put, ms",
        lambda row: None if row.p99 is None else row.p99 * 1e3,
    ),
    (
        "watches, 100 puts/s",
        "100 puts a second, by watches",
        "watches",
        "p99 of put to event, ms",
        lambda row: None if row.p99 is None else row.p99 * 1e3,
    ),
    ("leases kept", "Leases kept alive", "leases", "cores, busiest member", lambda row: row.busiest_cores),
    ("keys", "Puts of new keys, by keys", "keys", "puts a second", lambda row: row.per_second),
)


def plot(rows: Sequence[Row], path: Path) -> Path | None:
    """The curves, as a PNG file; ``None`` without matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 3, figsize=(11, 6))
    for axes, (measure, title, x, y, value) in zip(grid.flat, _PANELS, strict=True):
        found = sorted((row for row in rows if row.measure == measure), key=lambda row: row.in_flight)
        points = [(row.in_flight, value(row)) for row in found if value(row) is not None]
        axes.plot([each[0] for each in points], [each[1] for each in points], marker="o")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x, fontsize=8)
        axes.set_ylabel(y, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.grid(True, alpha=0.25)
        if points and measure in ("puts in flight", "keys"):
            axes.set_xscale("log")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
