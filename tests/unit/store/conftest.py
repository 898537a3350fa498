"""A disk and a state for the tests of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.store_model import FIRST, Hand
from raykeeper.store.engine.rocks import RocksDisk
from raykeeper.store.log import segments
from raykeeper.store.state.machine import State


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated disk blanks a segment while its caller waits; what is paused for elsewhere is others' work."""
    monkeypatch.setattr(segments, "LOG_BLANK_PAUSE_S", 0.0)


@pytest.fixture
def disk() -> RocksDisk:
    return RocksDisk()


@pytest.fixture
def hand(disk: RocksDisk, tmp_path: Path) -> Iterator[Hand]:
    hand = Hand(State.create(disk, str(tmp_path / "state"), FIRST))
    yield hand
    hand.state.close()
