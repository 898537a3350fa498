"""Finding dropped leases that Python has not let go of yet.

A lease is kept alive while its object lives, and an object that is part of a cycle lives until the garbage collector
comes round: an exception that a function has kept in a variable holds the function's frame, with all that is in it.
The collector comes when enough was allocated; in a worker process whose task has raised and that has nothing to do any
more, that may be never. So a hub that keeps leases alive runs it now and then while the process is idle, as rarely as
it must for that to cost next to nothing. A busy process allocates, and needs no help.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

from ...limits import LITTER_IDLE_SHARE, LITTER_PAUSE, LITTER_SHARE


class Litter:
    """When to collect.

    Args:
        processor_time: seconds of processor time that this process has used.
        collect: collects everything.
    """

    def __init__(
        self, processor_time: Callable[[], float] = time.process_time, collect: Callable[[], object] = gc.collect
    ) -> None:
        self._processor_time = processor_time
        self._collect = collect
        self._looked_at: float | None = None
        self._used = 0.0
        self._not_before = 0.0

    def look(self, now: float) -> None:
        """Collect if it is time to. Call this about every ``LITTER_PAUSE`` seconds, without any lock."""
        since = self._looked_at
        if since is not None and now - since < LITTER_PAUSE:
            return
        used = self._processor_time()
        idle = since is not None and used - self._used <= LITTER_IDLE_SHARE * (now - since)
        if idle and now >= self._not_before and gc.isenabled():
            self._collect()
            cost = self._processor_time() - used
            used += cost
            self._not_before = now + cost / LITTER_SHARE
        self._looked_at, self._used = now, used
