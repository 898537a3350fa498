"""What metrics cost a put, in observations of distributions: it does not grow with the puts that travel together."""

from __future__ import annotations

from pathlib import Path

import pytest
from where import Bench

from raykeeper.schema.commands import ClientWrite, ClientWrites
from raykeeper.schema.frames import Open, Opened, Writes
from raykeeper.schema.operations import Put
from raykeeper.telemetry import Histogram

MOST = 20
"""On three members, over all turns of a frame. A turn has two; a frame, an fsync and a write of RocksDB have one."""


def test_observations_of_a_put_and_of_a_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    observe = Histogram.observe

    def counted(self: Histogram, value: float) -> None:
        seen.append(value)
        observe(self, value)

    monkeypatch.setattr(Histogram, "observe", counted)
    bench = Bench(str(tmp_path))
    opened = bench.ask(Open(7, 5.0, b"n" * 16))
    assert isinstance(opened, Opened)
    sequence = 0
    for puts in (1, 100, 1, 100):
        low = sequence + 1
        writes = tuple([ClientWrite(low + number, Put(b"%d" % number, b"v")) for number in range(puts)])
        sequence += puts
        seen.clear()
        bench.ask(Writes(7, 5.0, ClientWrites(opened.session, low, writes)))
        assert 0 < len(seen) <= MOST
