"""A thread that waits for one outcome, and may read a lane meanwhile.

On most machines it takes longer to wake a sleeping thread than to do all the rest of a call. So a caller's thread that
waits alone for a reply does not sleep on a lock until another thread has read the reply: it reads the lane itself
(:meth:`client_lane.ClientLane.read_for`). Its outcome may come from elsewhere all the same, at its timeout, say: then
its :class:`LaneSleep` is ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from typing import Any, Generic, Protocol, TypeVar

from ...limits import THREADS_WOKEN_AT_ONCE

T = TypeVar("T")


class LaneSleep:
    """Sleeps until a lane is readable, or until another thread ends that.

    Its descriptor lives as long as the object, and a thread that ends the sleep holds the object. So no thread ever
    writes to another descriptor of the same number.

    Args:
        fd: the lane's descriptor.
    """

    __slots__ = ("_poll", "_wake_fd")

    def __init__(self, fd: int) -> None:
        self._wake_fd = -1  # until there is one: an interrupt, or a limit on files, may leave a half-made object
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._wake_fd, select.POLLIN)

    def sleep(self) -> bool:
        """Whether the lane is readable, or has ended. One thread at a time."""
        readable = False
        for fd, _ in self._poll.poll():
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            else:
                readable = True
        return readable

    def end(self) -> None:
        """End the sleep, or the next one. Any thread; never blocks."""
        os.eventfd_write(self._wake_fd, 1)

    def __del__(self) -> None:
        if self._wake_fd >= 0:
            os.close(self._wake_fd)


class LaneReader(Protocol):
    """Reads a lane on behalf of a waiting thread."""

    def read_for(self, waiter: OutcomeWaiter[T]) -> None:
        """Take in replies on this thread until the waiter has its outcome, or until another thread reads them."""
        ...


class WakeQueue:
    """Threads whose outcome is there, and which are woken a few at a time: each wakes the next one.

    A reply may be for a thousand threads. If all were woken at once, all would wait for the interpreter lock, and a
    thread that waits for that is woken 200 times a second to ask for it. So few are awake, and each has its turn before
    it would ask. They are not so few that a thread of the user's which computes would take every other turn.
    """

    def __init__(self) -> None:
        self._waiters: deque[OutcomeWaiter[Any]] = deque()

    def add(self, waiter: OutcomeWaiter[Any]) -> None:
        """The waiter has its outcome. Any thread, under any lock."""
        self._waiters.append(waiter)

    def wake(self) -> None:
        """Wake the first threads, after outcomes were added. Holding no lock."""
        for _ in range(min(len(self._waiters), THREADS_WOKEN_AT_ONCE)):
            self.wake_next()

    def wake_next(self) -> None:
        """Wake one, if there is one: every thread that is awake calls this. Holding no lock.

        If a signal handler raises in a thread that should have woken the next one, that happens when the next outcome
        arrives, or when the hub's timer thread has its next look.
        """
        try:
            while self._waiters and not self._waiters.popleft().wake():
                pass
        except IndexError:  # another thread has taken the last one
            return


class OutcomeWaiter(Generic[T]):
    """A thread that waits for one outcome."""

    __slots__ = ("_gone", "_pending", "_queue", "lanes", "outcome", "sleep")

    def __init__(self, queue: WakeQueue) -> None:
        self._queue = queue
        self._pending = threading.Lock()  # released when the outcome is there; cheaper than an event
        self._pending.acquire()
        self._gone = False
        self.outcome: T | None = None
        self.lanes: list[LaneReader] = []
        """What this thread may read while it waits."""
        self.sleep: LaneSleep | None = None
        """What to end when the outcome is there: set while the thread may sleep at a lane."""

    def set_outcome(self, outcome: T) -> None:
        """Take the outcome; the queue wakes the thread with it. On any thread, under any lock; the first one counts."""
        if self.outcome is None:
            self.outcome = outcome
        self._queue.add(self)

    def wake(self) -> bool:
        """Wake the thread, which has its outcome; whether it still waits."""
        sleep = self.sleep
        if sleep is not None:
            sleep.end()
        if self._pending.locked():
            self._pending.release()
        return not self._gone

    def wait(self) -> T:
        """Wait for the outcome, without limit; the hub ends every call at its timeout."""
        for lane in self.lanes:
            lane.read_for(self)
        self._pending.acquire()
        self._queue.wake_next()
        outcome, self.outcome = self.outcome, None  # a lane may refer to this object for longer
        assert outcome is not None
        return outcome

    def leave(self) -> None:
        """The thread was interrupted, and waits no longer."""
        self._gone = True
        self._queue.wake_next()
