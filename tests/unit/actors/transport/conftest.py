"""A member's side of lanes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.lanes import LaneHost


@pytest.fixture
def lane_host() -> Iterator[LaneHost]:
    made = LaneHost()
    yield made
    made.close()
