"""The history of a campaign: who asked for what, when, and what came of it.

A process notes each operation twice, before it begins and when it has ended, each as one line that it appends to a file
of its own: so what a killed process had under way is known, with its outcome open. ``gather`` makes one line of each
operation; that file is the campaign's result, and an independent checker can read it (docs/testing.md).
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

OK, FAIL, UNKNOWN = "ok", "fail", "unknown"
"""Took effect (once), had no effect, and nobody can know."""


@dataclass(slots=True)
class Record:
    """One operation of one process.

    Attributes:
        process: who; operations of one process follow each other, unless it was killed.
        operation: what, one of those listed in docs/testing.md.
        arguments, result: by name; ``result`` is ``None`` unless the outcome is ok, or says why it failed.
        start_ns, end_ns: on CLOCK_MONOTONIC, one clock for all processes of the machine; ``end_ns`` is ``None`` if the
            operation was under way when its process died.
        outcome: "ok", "fail" or "unknown".
    """

    process: str
    operation: str
    arguments: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    start_ns: int = 0
    end_ns: int | None = None
    outcome: str = UNKNOWN

    def __str__(self) -> str:
        return json.dumps(asdict(self))


class Journal:
    """One process's notes. Any thread.

    Args:
        path: is appended to.
    """

    def __init__(self, path: str | Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._numbers = itertools.count(1)

    def begin(self, process: str, operation: str, **arguments: Any) -> int:
        """An operation is about to begin; its number."""
        number = next(self._numbers)
        self._write(
            number=number,
            process=process,
            operation=operation,
            arguments=arguments,
            start_ns=time.monotonic_ns(),
        )
        return number

    def end(self, number: int, outcome: str, **result: Any) -> None:
        """It has ended."""
        self._write(number=number, end_ns=time.monotonic_ns(), outcome=outcome, result=result)

    def close(self) -> None:
        """Note nothing more."""
        os.close(self._fd)

    def _write(self, **line: Any) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")


def read_journal(path: Path) -> list[Record]:
    """The operations that a process noted; a last line that its death cut short counts as not written."""
    records: dict[int, Record] = {}
    for line in path.read_bytes().splitlines():
        try:
            noted = json.loads(line)
        except ValueError:
            continue
        number = noted.pop("number")
        if "operation" in noted:
            records[number] = Record(**noted)
        else:
            record = records[number]
            record.end_ns, record.outcome, record.result = noted["end_ns"], noted["outcome"], noted["result"]
    return list(records.values())


def gather(journals: Iterable[Path], into: Path, until_ns: int | None = None) -> list[Record]:
    """One history of many journals, in the order of the beginnings, and the same as a file.

    Args:
        until_ns: where it ends, if the processes still work: a moment before this call. The journals are read one after
            the other; without one end for all, the later ones would show effects of operations that are not in the
            earlier ones.
    """
    records = [record for path in journals for record in read_journal(path)]
    if until_ns is not None:
        records = [_until(record, until_ns) for record in records if record.start_ns <= until_ns]
    records.sort(key=lambda record: record.start_ns)
    with into.open("w", encoding="utf-8") as file:
        file.writelines(f"{record}\n" for record in records)
    return records


def _until(record: Record, until_ns: int) -> Record:
    """An operation, as it was known at a moment."""
    if record.end_ns is None or record.end_ns <= until_ns:
        return record
    return replace(record, end_ns=None, outcome=UNKNOWN, result=None)


def read_history(path: Path) -> Iterator[Record]:
    """The operations of a campaign's file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield Record(**json.loads(line))
