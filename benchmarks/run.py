"""Side by side: RayKeeper, etcd with aetcd and from Go, ZooKeeper with kazoo, a Ray actor with a dict, and more.

    python benchmarks/run.py [--quick] [--only NAME]... [--rounds N] [--docs]

Each round starts the systems one after another, measures each alone on the machine, and stops it; the order changes
from round to round. Then come the sections (``benchmarks/sections.py``): the floors below all systems, etcd's clients
at a proxy, and others. A system that is not installed is named, with the command that installs it; one that fails is
reported, and the others continue. Results lie in ``bench-runs/`` as JSON and PNG; ``--docs`` also writes them into
docs/benchmarks.md. Whatever was started is stopped at the end, and after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import click
import go_client
from large import kept
from measures import FULL, QUICK, Plan, Row, measure
from plots import draw
from report import machine, page, put_into, sheets, show
from results import Results
from rich.console import Console
from sections import PARTS, SECTIONS, Part
from systems import SYSTEMS, Etcd, Missing, System, kill_left, running

ROOT = Path(__file__).resolve().parents[1]
MEASURES = ("put", "get", "stale get", "txn", "mixed", "watch", "lock", "failover", "memory", "durability", "cached")


class Bench:
    """One run: what is measured, and what came of it."""

    def __init__(self, plan: Plan, systems: list[type[System]], parts: list[Part], folder: Path) -> None:
        self.plan = plan
        self.systems = systems
        self.parts = parts
        self.folder = folder
        self.rows: list[Row] = []
        self.notes: dict[str, str] = {}
        self.console = Console(stderr=True)

    def rounds(self, count: int) -> None:
        """Measure everything this many times. Ctrl-C ends that; what was measured is kept."""
        for number in range(count):
            turn = number % max(1, len(self.systems))
            for kind in [*self.systems[turn:], *self.systems[:turn]]:
                self._measure(kind, number, count)
            for part in self.parts:
                self._run(part, number, count)

    def _run(self, part: Part, number: int, count: int) -> None:
        self._say(part.name, f"round {number + 1} of {count}")
        if part.notes:
            self.notes.setdefault(part.name, part.notes)
        try:
            with self._scratch() as folder, self._told(part.name):
                self._keep(part.rows(folder, self.plan, lambda text: self._say(part.name, text)), number)
        finally:
            kill_left()

    def _measure(self, kind: type[System], number: int, count: int) -> None:
        with self._scratch() as folder, self._told(kind.name):
            system = kind(folder)
            system.check()
            self.notes.setdefault(kind.name, " ".join(filter(None, [system.durability + ".", system.notes])))
            self._say(kind.name, f"round {number + 1} of {count}: starting")
            with running(system):
                self._keep(measure(system, self.plan, lambda text: self._say(kind.name, text)), number)
                if kind is Etcd:
                    self._from_go(system, number)

    def _from_go(self, system: System, number: int) -> None:
        """The same etcd, by its own client."""
        with self._told(go_client.NAME):
            self._keep(go_client.rows(system, self.plan, lambda text: self._say(go_client.NAME, text)), number)
            self.notes.setdefault(go_client.NAME, go_client.NOTES)

    def _keep(self, rows: Iterator[Row], number: int) -> None:
        for row in rows:
            row.round = number
            self.rows.append(row)

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """A failure is printed and noted, and the others continue."""
        try:
            yield
        except Missing as missing:
            self.notes[name] = f"not measured: {missing}"
        except Exception as error:
            self.notes[name] = f"failed: {type(error).__name__}: {str(error).strip().splitlines()[-1:]}"
            self.console.print(f"[red]{name} failed[/red]")
            self.console.print(traceback.format_exc(), markup=False, highlight=False)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[str]:
        folder = tempfile.mkdtemp(prefix="rkb-", dir=self.folder)  # short: Ray puts sockets into it
        try:
            yield folder
        finally:
            end = time.monotonic() + 10
            while os.path.exists(folder) and time.monotonic() < end:  # what just ends may still write
                shutil.rmtree(folder, ignore_errors=True)

    def _say(self, name: str, text: str) -> None:
        self.console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {name}: {text}", highlight=False)


def chosen(only: tuple[str, ...]) -> tuple[list[type[System]], list[Part], tuple[str, ...]]:
    """Which systems, which parts of sections, and which measures ``--only`` names; none of a sort means all of it."""
    measures = tuple(name for name in only if name in MEASURES)
    wanted = [name.lower() for name in only if name not in MEASURES]
    named = [name for name in wanted if name not in SECTIONS]
    for name in named:
        if not any(name in each.name.lower() for each in SYSTEMS):
            known = ", ".join([*SECTIONS, *(each.name for each in SYSTEMS), *MEASURES])
            raise click.BadParameter(f"{name!r} is none of: {known}")
    exact = [each for each in SYSTEMS if each.name.lower() in named]
    fragments = [name for name in named if name not in [each.name.lower() for each in exact]]
    systems = [each for each in SYSTEMS if each in exact or any(name in each.name.lower() for name in fragments)]
    parts = [each for each in PARTS if each.section in wanted or not (wanted or measures)]
    return (systems if wanted else list(SYSTEMS)), parts, measures


@click.command()
@click.option("--quick", is_flag=True, help="A few minutes in all; for a look, not for the record.")
@click.option(
    "--only", multiple=True, metavar="NAME", help="A system (or a part of its name), a section, or a measure."
)
@click.option("--rounds", type=click.IntRange(1), help="How often everything is measured (default 3; 1 with --quick).")
@click.option("--seconds", type=click.FloatRange(0.1), help="Of each cell of the load.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where the members' data lies for the time.")
@click.option("--docs", is_flag=True, help="Write the results into docs/benchmarks.md.")
def main(
    quick: bool, only: tuple[str, ...], rounds: int | None, seconds: float | None, folder: Path | None, docs: bool
) -> None:
    """Measure RayKeeper and its peers side by side on this machine."""
    systems, parts, measures = chosen(only)
    plan = dataclasses.replace(QUICK if quick else FULL, only=measures)
    if seconds is not None:
        plan = dataclasses.replace(plan, seconds=seconds)
    data = folder or Path(tempfile.gettempdir())
    bench = Bench(plan, systems, parts, data)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    interrupted = False
    began = time.monotonic()
    try:
        bench.rounds(rounds or (1 if quick else 3))
    except KeyboardInterrupt:
        interrupted = True
        bench.console.print("interrupted: stopping everything")
    finally:
        kill_left()
    if not bench.rows:
        for name, note in bench.notes.items():
            bench.console.print(f"{name}: {note}", markup=False, highlight=False)
        sys.exit(130 if interrupted else 1)
    write(bench, time.monotonic() - began, quick, docs and not interrupted)
    failed = any(note.startswith("failed") for note in bench.notes.values())
    sys.exit(130 if interrupted else int(failed))


def write(bench: Bench, took: float, quick: bool, docs: bool) -> None:
    """Print the tables, and write JSON and plots."""
    carried = kept()
    results = Results([*bench.rows, *([carried] if carried else [])])
    now = datetime.datetime.now(datetime.timezone.utc)
    facts = {
        **machine(str(bench.folder)),
        "measured": f"{now:%Y-%m-%d %H:%M} UTC, {took / 60:.0f} minutes",
        "command": f"`python {shlex.join(['benchmarks/run.py', *sys.argv[1:]])}`",
    }
    if quick:
        facts["mind"] = "**a quick run, for a look: not what is claimed**"
    target = ROOT / "bench-runs" / f"{now:%Y%m%d-%H%M%S}"
    target.mkdir(parents=True)
    said = sheets(results)
    document = {"facts": facts, "notes": bench.notes, "rows": [row.as_dict() for row in bench.rows]}
    (target / "results.json").write_text(json.dumps(document, indent=1))
    draw(results, target)
    console = Console(width=None if sys.stdout.isatty() else 190)
    show(said, console)
    for name, note in {**facts, **bench.notes}.items():
        console.print(f"{name}: {note}", markup=False, highlight=False)
    console.print(f"written to {target}", markup=False, highlight=False)
    if docs:
        where = ROOT / "docs" / "benchmarks.md"
        put_into(where, page(said, facts, bench.notes, draw(results, ROOT / "docs" / "benchmarks"), where))
        console.print(f"and into {where}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
