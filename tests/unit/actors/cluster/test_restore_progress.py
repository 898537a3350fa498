"""A restore tells how much of the backup is on the nodes, and how much there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raykeeper.actors.cluster import restore
from raykeeper.actors.ray_view import RayNode
from raykeeper.actors.steps import listening


def test_the_bytes_that_were_sent_are_counted_with_their_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "backup"
    file.write_bytes(b"x" * 25)
    sent: list[tuple[int, bytes]] = []

    def run_on(members: Any, function: Any, arguments: Any, timeout: float) -> None:
        (_, _, _, offset, data) = arguments[1]
        sent.append((offset, data))

    monkeypatch.setattr(restore, "BACKUP_CHUNK_BYTES", 10)
    monkeypatch.setattr(restore, "run_on", run_on)
    monkeypatch.setattr(restore.ray, "put", lambda data: data)
    counted: list[tuple[float, float | None]] = []
    with listening(lambda what, begins: None, lambda done, total=None: counted.append((done, total))):
        restore._send(str(file), {1: RayNode("a", "10.0.0.1", frozenset())}, {1: ("/base", "m1", 7)})
    assert counted == [(10, 25), (20, 25), (25, 25)]
    assert b"".join(data for _, data in sent) == file.read_bytes()
