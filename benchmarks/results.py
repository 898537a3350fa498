"""What was measured, by what it is of: each with its rows, one for each round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from measures import Row

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
