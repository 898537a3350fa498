"""A disk and a state for the tests of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raykeeper.store.rocks import RocksDisk
from raykeeper.store.state import State
from store_model import FIRST, Hand


@pytest.fixture
def disk() -> RocksDisk:
    return RocksDisk()


@pytest.fixture
def hand(disk: RocksDisk, tmp_path: Path) -> Iterator[Hand]:
    hand = Hand(State.create(disk, str(tmp_path / "state"), FIRST))
    yield hand
    hand.state.close()
