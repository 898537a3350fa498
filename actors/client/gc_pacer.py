"""Garbage collection for processes that hold leases, so that a dropped lease is not kept alive indefinitely.

A lease is kept alive while its object exists, and an object in a reference cycle exists until the garbage collector
runs. Cycles are common: an exception kept in a variable holds its frame, and with it every local. The collector runs
when enough was allocated. In a worker whose task has failed and that is idle now, or that computes without allocating,
that may be never.

So while a process keeps leases alive, and either is idle or has had no collection since the last check, it is collected
here. The younger generations are collected at every check, which costs next to nothing; all generations only so often
that this takes a small share of the processor. A process that allocates needs no help.

It runs on the background thread (:mod:`background`), because a collection runs the user's destructors.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from ...limits import GC_CHECK_PAUSE_S, GC_CPU_FRACTION, GC_IDLE_FRACTION
from .. import finalizer_guard


def _collections() -> int:
    """How often the youngest generation was collected in this process."""
    collections: int = gc.get_stats()[0]["collections"]
    return collections


class GcPacer:
    """Decides when to collect.

    Args:
        processor_time: returns the seconds of processor time that this process has used.
        collections: returns how often the youngest generation was collected, by any thread.
        collect: collects the given generation and the younger ones; 2 means everything.
    """

    def __init__(
        self,
        processor_time: Callable[[], float] = time.process_time,
        collections: Callable[[], int] = _collections,
        collect: Callable[[int], object] = gc.collect,
    ) -> None:
        self._processor_time = processor_time
        self._collections = collections
        self._collect = collect
        self._checked_at: float | None = None
        self._used = 0.0
        self._collected = -1
        self._not_before = 0.0
        """No full collection before this time."""

    def maybe_collect(self, now: float) -> None:
        """Collect if it is time to. Call this about every ``GC_CHECK_PAUSE_S`` seconds, holding no lock."""
        since = self._checked_at
        if since is not None and now - since < GC_CHECK_PAUSE_S:
            return
        used, collected = self._processor_time(), self._collections()
        idle = since is not None and used - self._used <= GC_IDLE_FRACTION * (now - since)
        if (idle or collected == self._collected) and finalizer_guard.collection_wanted():
            everything = now >= self._not_before
            self._collect(2 if everything else 1)
            cost = self._processor_time() - used
            used += cost
            if everything:
                self._not_before = now + cost / GC_CPU_FRACTION
        self._checked_at, self._used, self._collected = now, used, self._collections()


gc_pacer = GcPacer()
"""The pacer of this process."""
