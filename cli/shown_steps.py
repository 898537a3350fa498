"""What a long command shows while it works: its steps, with the seconds that each takes, on stderr.

On a terminal the step that lasts has a bar that moves, and bytes, keys or log entries where they are counted; ``up``
prints a line for each step, because where its seconds went is part of what it says. Elsewhere nothing is shown, so that
a log file or a pipe gets the result alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..actors.steps import listening
from .stdio import UnfinishedLine, tell


class ShownProgress:
    """Shows steps. Without a terminal all of its methods do nothing."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar
        self._task: Any = None
        self._steps: list[str] = []

    def take_step(self, what: str, begins: bool) -> None:
        """As ``StepListener``."""
        if begins:
            self._steps.append(what)
        else:
            self._steps.pop()
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("", total=None)
            said = self._steps[-1] if self._steps else ""
            self._bar.update(self._task, description=said, completed=0, total=None)

    def count(self, done: float, total: float | None = None) -> None:
        """How much of the present step is done."""
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("", total=None)
            self._bar.update(self._task, completed=done, total=total)


@contextmanager
def shown_progress(what: str) -> Iterator[ShownProgress]:
    """In this context what the command does is shown, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield ShownProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = ShownProgress(bar)
        shown.take_step(what, True)
        with listening(shown.take_step, shown.count):
            yield shown


@contextmanager
def steps_told() -> Iterator[None]:
    """In this context each step is told on stderr, with the seconds that it took; at the end, how long all took.
    Without a terminal nothing is: there, what stands on stderr is a warning or an error."""
    if not sys.stderr.isatty():
        yield
        return
    began = time.monotonic()
    steps: list[tuple[float, UnfinishedLine]] = []

    def tell_step(what: str, begins: bool) -> None:
        if begins:
            steps.append((time.monotonic(), UnfinishedLine(f"raykeeper: {what} ...")))
        else:
            since, line = steps.pop()
            line.end(f" {time.monotonic() - since:.1f} s")

    with listening(tell_step):
        yield
    tell(f"all of it: {time.monotonic() - began:.1f} s")
