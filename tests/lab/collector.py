"""The garbage collector's thresholds, which the client raises for moments (:mod:`raykeeper.actors.finalizer_guard`)."""

from __future__ import annotations

import gc
import time

from lab.patience import PATIENCE
from raykeeper.actors import finalizer_guard


def thresholds() -> tuple[int, int, int]:
    """The user's, read at a moment when no thread of ours defers collection: to set what is read meanwhile would take
    our value for the user's."""
    deadline = time.monotonic() + PATIENCE
    while (found := gc.get_threshold())[0] == finalizer_guard._DEFERRED_THRESHOLD:
        assert time.monotonic() < deadline, "collection stays deferred"
        time.sleep(0.001)
    return found
