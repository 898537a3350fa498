"""What one group carries on this machine: clients, watches, leases, keys, bytes; what each costs, and what ends first.

    python benchmarks/scale.py [--only NAME]... [--quick] [--docs]

For each, a fresh group of three members gets more and more of it. Written are tables, a plot, and what would end first
if it went on: the bound in ``limits.py``, or the core of the busiest member. ``--docs`` puts them into docs/scale.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import json
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import leases
import sessions
import watching
from accounting import come_to_rest
from crew import Crew
from crowds import Usage
from large import fill, puts_a_second, read_times
from measures import Row, load, percentile
from report import machine, put_into
from rich.console import Console
from scale_report import page, plot, show
from systems import RayKeeper, kill_left, running

import raykeeper

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scale.md"
WATCHED_PUTS = 100
"""Puts a second while the watches grow: each is an event for a hundredth of them."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """How far each goes."""

    clients: tuple[int, ...]
    watches: tuple[int, ...]
    leases: tuple[int, ...]
    keys: tuple[int, ...]
    values: tuple[int, ...]
    in_flight: tuple[int, ...]
    seconds: float
    """Of each measurement."""


FULL = Sizes(
    clients=(500, 1000, 2000, 4000),
    watches=(1000, 5000, 10_000, 20_000),
    leases=(1000, 10_000, 50_000, 100_000),
    keys=(10_000, 100_000, 1_000_000),
    values=(100, 1000, 10_000, 100_000, 1_000_000),
    in_flight=(1, 10, 100, 1000, 4000),
    seconds=10.0,
)
QUICK = Sizes((20, 40), (400, 800), (400, 800), (2000, 4000), (100, 10_000), (1, 100), 1.0)


def puts(system: RayKeeper, sizes: Sizes, say: Say) -> Iterator[Row]:
    """Puts a second, by calls in flight from one process."""
    with Crew(system.kind, system.address(), 1) as crew:
        crew.clients[0].do("prepare")
        come_to_rest()
        for together in sizes.in_flight:
            say(f"{together:,} puts in flight")
            usage = Usage(system)
            row = load(Row(system.name, "put", "coroutines", 1, together), crew.clients, sizes.seconds / 2)
            row.measure = "puts in flight"
            yield usage.into(row)


def clients(system: RayKeeper, sizes: Sizes, say: Say) -> Iterator[Row]:
    """Sessions with lanes."""
    yield from sessions.measure(system, sizes.clients, sizes.seconds, say)


def watches(system: RayKeeper, sizes: Sizes, say: Say) -> Iterator[Row]:
    """Watches, under a few puts."""
    yield from watching.measure(system, sizes.watches, WATCHED_PUTS, sizes.seconds, say)


def kept_leases(system: RayKeeper, sizes: Sizes, say: Say) -> Iterator[Row]:
    """Leases that are kept alive."""
    yield from leases.kept(system, sizes.leases, sizes.seconds, say)


def keys(system: RayKeeper, sizes: Sizes, say: Say) -> Iterator[Row]:
    """Keys with values of 100 bytes: puts of new ones, and reads."""
    beyond, done = itertools.count(1 << 40), 0
    with contextlib.closing(raykeeper.connect("bench", timeout=60)) as kv:
        for count in sizes.keys:
            say(f"{count:,} keys")
            fill(kv, iter(range(done, count)), lambda number: say(f"{number:,} are there"))
            done = count
            come_to_rest(patience=20)
            disk = max(member.db_size for member in system.cluster.status().members)
            usage = Usage(system)
            rate = puts_a_second(kv, beyond, sizes.seconds / 2)
            row = usage.into(Row(system.name, "keys", "coroutines", 1, count, per_second=rate))
            end = time.monotonic() + sizes.seconds / 2
            times = read_times(kv, count, lambda end=end: time.monotonic() > end)  # type: ignore[misc]
            row.p50, row.p99 = percentile(times, 0.5), percentile(times, 0.99)
            row.disk = disk
            yield row


def values(system: RayKeeper, sizes: Sizes, say: Say) -> Iterator[Row]:
    """Values of growing length, with as many puts in flight as fit into some megabytes."""
    with Crew(system.kind, system.address(), 1) as crew:
        for length in sizes.values:
            together = max(4, min(1000, 8_000_000 // length))
            say(f"values of {length:,} bytes, {together:,} in flight")
            usage = Usage(system)
            times, took = crew.clients[0].do("run", _put_values, (length, together, sizes.seconds / 2), timeout=600)
            row = usage.into(Row(system.name, "bytes of a value", "coroutines", 1, length))
            row.p50, row.p99 = percentile(times, 0.5), percentile(times, 0.99)
            row.per_second, row.note = len(times) / took, f"{length * len(times) / took / 1e6:.1f} MB/s"
            yield row


async def _put_values(face: Any, length: int, together: int, seconds: float) -> tuple[list[float], float]:
    noise, times = random.Random(0).randbytes(length + 4096), list[float]()
    began = time.monotonic()

    async def worker(number: int) -> None:
        while (started := time.monotonic()) < began + seconds:
            start = len(times) % 4096
            await face.ops["put"](f"sized/{number}", noise[start : start + length])
            times.append(time.monotonic() - started)

    await asyncio.gather(*[worker(number) for number in range(together)])
    return times, time.monotonic() - began


SERIES: dict[str, Callable[[RayKeeper, Sizes, Say], Iterator[Row]]] = {
    "puts": puts,
    "clients": clients,
    "watches": watches,
    "leases": kept_leases,
    "keys": keys,
    "bytes": values,
}


def measure(name: str, sizes: Sizes, folder: Path | None, say: Say) -> Iterator[Row]:
    """One series, on a group of its own."""
    scratch = tempfile.mkdtemp(prefix="rks-", dir=folder)  # short: Ray puts sockets into it
    try:
        with running(RayKeeper(scratch)) as system:
            yield from SERIES[name](system, sizes, say)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(SERIES)), help="One series; may be given again.")
@click.option("--quick", is_flag=True, help="Small sizes, for a look.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where the members' data lies for the time.")
@click.option("--docs", is_flag=True, help="Write tables and plot into docs/scale.md.")
@click.option("--mind", default="", help="What a reader of the figures must know, such as a loaded machine.")
def main(only: tuple[str, ...], quick: bool, folder: Path | None, docs: bool, mind: str) -> None:
    """Measure what one group carries on this machine."""
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows: list[Row] = []
    failed = False
    began = time.monotonic()
    try:
        for name in only or tuple(SERIES):
            try:
                rows += measure(name, QUICK if quick else FULL, folder, lambda text: console.print(text))
            except Exception:
                failed = True
                console.print_exception()
    finally:
        kill_left()
    now = datetime.datetime.now(datetime.timezone.utc)
    facts = {
        **machine(str(folder or tempfile.gettempdir())),
        "measured": f"{now:%Y-%m-%d %H:%M} UTC, {(time.monotonic() - began) / 60:.0f} minutes",
        "command": f"`python {shlex.join(['benchmarks/scale.py', *sys.argv[1:]])}`",
        **({"mind": mind} if mind else {}),
    }
    kept = ROOT / "bench-runs" / f"scale-{now:%Y%m%d-%H%M%S}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps({"facts": facts, "rows": [row.as_dict() for row in rows]}, indent=1))
    show(rows, Console(width=None if sys.stdout.isatty() else 170))
    if docs and not failed:
        drawn = plot(rows, ROOT / "docs" / "benchmarks" / "scale.png")
        put_into(PAGE, page(rows, facts, drawn, PAGE))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
