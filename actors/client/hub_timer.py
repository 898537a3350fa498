"""A hub's timer thread: it looks at the clock for the cores, and does what others must leave to it.

It sleeps while nothing is due. What callers, destructors and signal handlers may not do where they are (they may hold
the hub's lock, or have interrupted a thread that does) they leave to this thread.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ...limits import GC_CHECK_PAUSE_S
from .. import finalizer_guard
from ..background import background, collect_young
from .gc_pacer import gc_pacer


class TimedCore(Protocol):
    """A core, as far as its timer is concerned."""

    def next_wakeup(self) -> float | None:
        """When it wants to be told the time; ``None`` for never."""
        ...


class TimedHub(Protocol):
    """A hub, as far as its timer is concerned."""

    def closes_at(self, now: float) -> float:
        """When it closes if nothing happens: 0 for at once, infinity for not at all."""
        ...

    def take_in_arrived(self) -> None:
        """Something is due: take in what has arrived first, before anything counts as late."""
        ...

    def tell_time(self, now: float) -> float:
        """Tell the cores the time, with the lock held; returns when to do that again, apart from what they want."""
        ...

    def send_due(self) -> None:
        """Send what the cores have made of it. Without the lock."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


class HubTimer:
    """The timer thread of one hub.

    Args:
        hub: whose it is.
        cores: the hub's.
        lock: the hub's.
        clock: the hub's.
        keeping: whether leases are kept alive; the garbage collector is then run in time (:mod:`gc_pacer`).
    """

    def __init__(
        self,
        hub: TimedHub,
        cores: Sequence[TimedCore],
        lock: AbstractContextManager[Any],
        clock: Callable[[], float],
        keeping: Callable[[], bool],
    ) -> None:
        self._hub = hub
        self._cores = cores
        self._lock = lock
        self._clock = clock
        self._keeping = keeping
        self._soon: deque[Callable[[float], object]] = deque()
        """What this thread is to do with the cores."""
        self._wakeup = finalizer_guard.Wakeup()
        self.wakes_at = math.inf
        """When it wakes by itself; -inf if it has been woken."""
        self._closing = False

    def start(self, name: str) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def run_soon(self, act: Callable[[float], object]) -> None:
        """Have this done with the time as its argument, with the lock held. Safe anywhere, in destructors too."""
        self._soon.append(act)
        self.wake()

    def wake(self) -> None:
        """Wake the thread. Safe anywhere."""
        self._wakeup.release()

    def end(self) -> None:
        """End the thread when it wakes next. Safe anywhere."""
        self._closing = True

    def interrupted(self) -> None:
        """A thread was interrupted in the midst of the cores: when this one wakes may have been noted, and not told."""
        self.wakes_at = -math.inf

    def heed(self, cores: Sequence[TimedCore]) -> None:
        """Wake the thread if it would sleep too long for these cores, which have changed. With the lock held."""
        for core in cores:
            wakeup = core.next_wakeup()
            if wakeup is not None and wakeup < self.wakes_at:
                self.wakes_at = -math.inf  # woken once is enough
                self._wakeup.release()

    def _next_wakeup(self) -> float:
        return min([math.inf if (at := core.next_wakeup()) is None else at for core in self._cores])

    def _run(self) -> None:
        thread = finalizer_guard.ServiceThread()
        try:
            self._loop(thread)
        finally:
            thread.close()

    def _loop(self, thread: finalizer_guard.ServiceThread) -> None:
        """Run what was left to this thread, tell the cores the time, and sleep until the next wake-up.

        ``wakes_at`` is set under the lock, before sleeping. A thread that finds an earlier wake-up afterwards
        releases what this thread sleeps on, so no wake-up is missed. The lock is held for one pass only,
        and this thread stops deferring collection before it sleeps.
        """
        hub, lock = self._hub, self._lock
        while not self._closing:
            now = self._clock()
            closes_at = hub.closes_at(now)
            if closes_at == 0.0:
                break
            with lock:
                due = self._next_wakeup() <= now
            if due:
                hub.take_in_arrived()
            with lock:
                while self._soon:
                    self._soon.popleft()(now)
                wakeup = min(hub.tell_time(now), self._next_wakeup(), closes_at)
                keeping = self._keeping()
                if keeping:
                    wakeup = min(wakeup, now + GC_CHECK_PAUSE_S)
                self.wakes_at = wakeup
            hub.send_due()
            if finalizer_guard.collection_overdue():
                background.submit(collect_young)
            if keeping:
                background.submit(lambda: gc_pacer.maybe_collect(self._clock()))
            self._wakeup.wait(max(0.001, wakeup - self._clock()), thread)
        hub.close()
