"""The threads of a member that make replies which may take a long time: lanes take turns, and a lane's come in order.

Where one client has many ranges waiting, another's waits for those that are being made, and not for all of them.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ...limits import LANE_READERS
from ...schema.replies import MakeReply
from ..one_thread import NoThreadLeft, start_thread

Waiting = deque[tuple[int, int, MakeReply]]
"""Replies of one lane: number and weight of the request, and what makes the reply."""


class Asking(Protocol):
    """A lane, as far as this goes."""

    slow: Waiting


LaneT = TypeVar("LaneT", bound=Asking)


class LaneReaders(Generic[LaneT]):
    """See the module. The threads start with the first reply.

    Args:
        finish: makes a reply and sends it; raises nothing.
    """

    def __init__(self, finish: Callable[[LaneT, int, int, MakeReply], None]) -> None:
        self._finish = finish
        self._wake = threading.Condition(threading.Lock())
        self._turns: deque[LaneT] = deque()
        """Lanes with replies to make, each once."""
        self._idle = 0
        """Threads that wait and that nobody has woken."""
        self._threads = 0
        self._closed = False

    def submit(self, lane: LaneT, number: int, weight: int, make: MakeReply) -> bool:
        """Have a thread make and send a reply; False if the member has stopped. Any thread."""
        with self._wake:
            if self._closed:
                return False
            if self._idle:
                self._idle -= 1
                self._wake.notify()
            elif self._threads < LANE_READERS:
                thread = threading.Thread(target=self._run, name=f"lane reader_{self._threads + 1}", daemon=True)
                with contextlib.suppress(NoThreadLeft):
                    start_thread(thread)
                    self._threads += 1
            alone = not self._threads
            if not alone:
                if not lane.slow:
                    self._turns.append(lane)
                lane.slow.append((number, weight, make))
        if alone:  # on the caller's thread: better late than never
            self._finish(lane, number, weight, make)
        return True

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._turns:
                    if self._closed:
                        return
                    self._idle += 1
                    self._wake.wait()
                lane = self._turns.popleft()
                number, weight, make = lane.slow.popleft()
                if lane.slow:
                    self._turns.append(lane)
            self._finish(lane, number, weight, make)

    def close(self) -> None:
        """Take no more; what waits is still made. Returns at once."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
