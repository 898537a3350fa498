"""Keeps slow background work to its share of a core."""

from __future__ import annotations

import time

from ...limits import HASH_CPU_FRACTION, MAX_THROTTLE_PAUSE_S


class Throttle:
    """Sleeps after each slice of work, which so takes at most ``HASH_CPU_FRACTION`` of a core. For one thread."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def __call__(self) -> None:
        """Sleep in proportion to the work since the last call."""
        worked = time.monotonic() - self._since
        time.sleep(min(MAX_THROTTLE_PAUSE_S, worked * (1 / HASH_CPU_FRACTION - 1)))
        self._since = time.monotonic()
