"""Finding dropped leases that Python has not let go of yet.

A lease is kept alive while its object lives, and an object that is part of a cycle lives until the garbage collector
comes round: an exception that a function has kept in a variable holds the function's frame, with all that is in it.
The collector comes when enough was allocated; in a worker process whose task has raised and that has nothing to do any
more, or that computes without allocating anything, that may be never. So while a process keeps leases alive, and is
idle or was not collected since the last look, it is done here: what was made lately at every look, which costs next to
nothing, and everything as rarely as it must be for that to cost little. A process that allocates needs no help.

It runs among the :mod:`errands`: a collection runs destructors of the user's, for which nobody must wait.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from ...limits import LITTER_IDLE_SHARE, LITTER_PAUSE, LITTER_SHARE
from . import undisturbed


def _collections() -> int:
    """How often the youngest objects have been collected in this process."""
    collections: int = gc.get_stats()[0]["collections"]
    return collections


class Litter:
    """When to collect.

    Args:
        processor_time: seconds of processor time that this process has used.
        collections: how often Python has come by itself.
        collect: collects a generation and those that are younger; 2 is everything.
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
        self._looked_at: float | None = None
        self._used = 0.0
        self._collected = -1
        self._not_before = 0.0

    def look(self, now: float) -> None:
        """Collect if it is time to. Call this about every ``LITTER_PAUSE`` seconds, without any lock."""
        since = self._looked_at
        if since is not None and now - since < LITTER_PAUSE:
            return
        used, collected = self._processor_time(), self._collections()
        idle = since is not None and used - self._used <= LITTER_IDLE_SHARE * (now - since)
        if (idle or collected == self._collected) and undisturbed.collection_wanted():
            everything = now >= self._not_before
            self._collect(2 if everything else 1)
            cost = self._processor_time() - used
            used += cost
            if everything:
                self._not_before = now + cost / LITTER_SHARE
        self._looked_at, self._used, self._collected = now, used, self._collections()


litter = Litter()
"""This process's."""
