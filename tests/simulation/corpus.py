"""Seeds that are known to reach much: ``corpus.txt``, which the suite runs before all else.

A line is a seed and its profile. They were chosen from campaigns, one after the other, each for the pairs
(``coverage``) that those before it had not reached. What a seed does changes with the code, so the list
records nothing: it only is a better beginning than seeds from 0 on. ``make simulate KEEP=n`` chooses again, from
what is in the list and what the campaign has run.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.world import Report

PATH = Path(__file__).with_name("corpus.txt")
DEAR = 20_000
"""Turns: a run that takes more is not kept, since the list is run each time."""


def read() -> list[tuple[int, str]]:
    """The seeds and their profiles."""
    lines = PATH.read_text().splitlines() if PATH.exists() else []
    return [(int(seed), profile) for seed, _, profile in (line.partition(" ") for line in lines) if seed]


def choose(reports: Iterable[Report], most: int) -> list[Report]:
    """Those that reach the most pairs together, each the one that adds most for its turns."""
    left = {id(report): report for report in reports if not report.failure and report.turns <= DEAR}
    chosen: list[Report] = []
    reached = 0
    while left and len(chosen) < most:
        best = max(left.values(), key=lambda report: _gain(report, reached) / (2000 + report.turns))
        if not _gain(best, reached):
            break
        reached |= int(best.coverage, 16)
        chosen.append(left.pop(id(best)))
    return chosen


def _gain(report: Report, reached: int) -> int:
    return (int(report.coverage, 16) & ~reached).bit_count()


def write(reports: Iterable[Report]) -> None:
    """Keep these."""
    PATH.write_text("".join(f"{report.seed} {report.profile}\n" for report in reports))
