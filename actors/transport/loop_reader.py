"""An event loop that reads lanes itself, while nothing but its own coroutines waits for what comes on them.

To be woken by another thread costs a loop more than to read the reply itself: two switches of threads, a hand-over of
the interpreter lock each, and a byte through the loop's own pipe. So a loop has an epoll of its own, which it watches
as one descriptor, and lanes are moved between that epoll and the one of the lanes' thread
(:class:`client_lane.ClientLane` decides which). Any thread may move a lane, at once, whatever the loop does meanwhile;
and no lane's descriptor is ever known to the loop itself, which could not be told of its end in time, and would take
the next file of that number for the lane.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import select
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Protocol


class LoopReadLane(Protocol):
    """A lane, as far as a loop that reads it is concerned."""

    def read_in_loop(self) -> None:
        """Take in what has arrived; never blocks."""
        ...

    def take_back(self) -> None:
        """Have the lanes' thread read from now on; never blocks."""
        ...


class LoopReader:
    """The lanes that one event loop reads, of one hub.

    Args:
        loop: the running loop.
        interrupted: is called when a signal handler has raised while the loop read: replies may be lost.

    Raises:
        NotImplementedError: the loop cannot watch a descriptor.
        OSError: no descriptor is left.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, interrupted: Callable[[], None]) -> None:
        if not hasattr(select, "epoll"):
            raise NotImplementedError
        self.open_calls = 0
        """How many of the hub's open calls are those of this loop's coroutines. Under the hub's lock."""
        self._loop = weakref.ref(loop)
        self._interrupted = interrupted
        self._reading_thread = 0
        """The thread that reads at this moment: the loop's; 0 for none."""
        self._closed = False
        self._lanes: dict[int, LoopReadLane] = {}
        """By descriptor: at least those in the epoll."""
        self._epoll = select.epoll()
        # Callbacks keep the context in which they were added, and with it objects of the user's.
        contextvars.Context().run(loop.add_reader, self._epoll.fileno(), self._read)

    def runs(self) -> bool:
        """Whether the loop runs: one that is stopped or closed reads nothing. It may still be held up."""
        loop = self._loop()
        return loop is not None and loop.is_running()

    def add(self, fd: int, lane: LoopReadLane) -> bool:
        """Have the loop read a lane from now on; False if it cannot. Any thread; never blocks."""
        if not self.runs():
            return False
        self._lanes[fd] = lane  # and then look whether it was closed; ``close`` does both the other way round
        try:
            if self._closed:
                raise ValueError("closed")
            self._epoll.register(fd, select.EPOLLIN)
        except (OSError, ValueError):  # the kernel refuses; or this reader was closed
            self._lanes.pop(fd, None)
            return False
        return True

    def remove(self, fd: int) -> None:
        """The loop reads this lane no longer. Before its descriptor is closed; any thread, never blocks."""
        with contextlib.suppress(OSError, ValueError):  # it was not there; or this reader was closed
            self._epoll.unregister(fd)
        self._lanes.pop(fd, None)

    def reads_now(self) -> bool:
        """Whether this code is part of a read: then it runs on the loop's thread, in a callback of the loop's."""
        return self._reading_thread == get_ident()

    def close(self) -> None:
        """The loop reads nothing any more. Any thread; never blocks."""
        self._closed = True
        for lane in list(self._lanes.values()):
            lane.take_back()
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._close_in_loop)
        except RuntimeError:  # the loop is closed, and watches nothing
            self._epoll.close()

    def _close_in_loop(self) -> None:
        loop = self._loop()
        if loop is not None and not self._epoll.closed:
            loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _read(self) -> None:
        """A callback of the loop's: a lane is readable. It reads once from each, so that the loop's other callbacks
        have their turn; what is left makes the epoll readable again."""
        self._reading_thread = get_ident()
        try:
            lanes = list(self._lanes.values())
            if len(lanes) > 1:  # one alone must be the one: spare a system call
                readable = [fd for fd, _ in self._epoll.poll(0)]
                lanes = [lane for fd in readable if (lane := self._lanes.get(fd)) is not None]
            for lane in lanes:
                lane.read_in_loop()
        except BaseException:
            self._interrupted()
            raise
        finally:
            self._reading_thread = 0


class PollAudience:
    """Whom the replies to polls of watches are for. They are waited for long after they were asked for, and meanwhile
    watches come and go. The hub changes this under its lock, before a poll is sent for another."""

    def __init__(self) -> None:
        self.empty = True
        """Nobody has a watch."""
        self.loop: LoopReader | None = None
        """The event loop that has all the watches; ``None`` if there is none, or a thread has one, or another loop."""

    def can_spare(self, reader: object) -> bool:
        """Whether nobody minds if this reader is held up, and a reply to a poll with it."""
        return self.empty or self.loop is reader
