"""One lane to a member, and the thread that reads it.

One thread of the process reads all its lanes. But to be woken by another thread costs a caller more than the rest of
its call. So a caller's thread reads the lane itself *while the lane carries no request but its own*: it is the lane's
*reader*, and the epoll of the lanes' thread leaves the lane alone. As soon as another request is sent on it, the lanes'
thread reads it as well. So no reply but the reader's own ever waits for the reader, which may be held up in a signal
handler of the user's; even that one does not wait for long, because the hub's timer thread takes the lane back
(:meth:`ClientLane.take_back`).

It does no harm if two threads read: the bytes are read and split into frames under the lane's lock, and each reply
finds its request once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any

from ...limits import LANE_BACKLOG_BYTES, MAX_LANE_REQUESTS
from .. import finalizer_guard
from ..background import background
from .client_transport import FrameSender, ReplyReceiver
from .lane import Connection, FrameKind, LaneBroken, pack
from .waiter import LaneSleep, OutcomeWaiter

_log = logging.getLogger("raykeeper.transport")


class ClientLane:
    """A lane to one member.

    Args:
        by_call: sends a frame by actor call, if its reply is too large for a lane.
    """

    def __init__(self, member: int, connection: Connection, by_call: FrameSender) -> None:
        self.member = member
        self.connection = connection
        self._by_call = by_call
        self._lock = threading.RLock()
        self._number = 0
        self._waiting: dict[int, tuple[bytes, ReplyReceiver]] = {}
        self._ended = False
        self._reader: OutcomeWaiter[Any] | None = None
        """The caller that reads this lane itself: the lanes' thread does not. Its request is the only one."""
        self._sleeps: list[LaneSleep] = []
        """For the next reader: the last one's."""

    def send_request(self, frame: bytes, done: ReplyReceiver, waiter: OutcomeWaiter[Any] | None = None) -> bool:
        """Send a frame; False if the lane takes none now. Every frame to a member by lane goes through here.

        Once this returns True, ``done`` is called exactly once: the thread that takes the request out of ``_waiting``
        calls it.

        Args:
            waiter: this thread, if it calls :meth:`read_for` next."""
        if finalizer_guard.held_by_this_thread(self._lock):
            return False
        try:
            with finalizer_guard.gc_deferred:
                with self._lock:
                    if (
                        self._ended
                        or len(self._waiting) >= MAX_LANE_REQUESTS
                        or self.connection.backlog > LANE_BACKLOG_BYTES
                    ):
                        return False
                    self._reader = None if self._waiting else waiter
                    if self.connection.is_reading() is not (self._reader is None):
                        self.connection.set_reading(self._reader is None)
                    self._number += 1
                    number = self._number
                    self._waiting[number] = frame, done
                if self.connection.send(pack(FrameKind.REQUEST, number, frame)):
                    return True
                with self._lock:  # if another thread has taken it, it has failed already
                    return self._waiting.pop(number, None) is None
        except BaseException:
            self._interrupted()
            raise

    def take_in(self) -> None:
        """Read what has arrived, and hand each reply over. Any thread.

        Raises:
            LaneBroken: the lane has ended.
        """
        try:
            with finalizer_guard.gc_deferred, self._lock:
                frames = self.connection.receive()
                replies = [
                    (asked, kind, payload)
                    for kind, number, payload in frames
                    if (asked := self._waiting.pop(number, None)) is not None
                ]
        except LaneBroken:
            raise
        except BaseException:
            self._interrupted()
            raise
        for (frame, done), kind, payload in replies:
            try:
                if kind == FrameKind.BY_CALL:
                    self._by_call(self.member, frame, done)
                else:
                    done(payload)
            except Exception as error:  # the other replies must still be delivered
                message = "a reply from member %d could not be handled"
                background.log(_log, logging.ERROR, message, self.member, error=error)

    def read_for(self, waiter: OutcomeWaiter[Any]) -> None:
        """See ``LaneReader``. When this thread stops without its outcome, the lanes' thread reads on."""
        try:
            sleep = self._sleeps.pop() if self._sleeps else LaneSleep(self.connection.fd)
        except (OSError, IndexError):  # no descriptor is left; or another reader has just taken it
            self._watch()
            return
        with contextlib.suppress(LaneBroken):  # the lanes' thread sees that, too
            while self._reader is waiter:
                waiter.sleep = sleep
                if waiter.outcome is not None:  # read last; the thread that sets the outcome looks for the sleep last
                    break
                readable = sleep.sleep()
                waiter.sleep = None  # this thread is awake
                if readable:
                    self.take_in()
        waiter.sleep = None
        if not self._sleeps:
            self._sleeps.append(sleep)
        if waiter.outcome is None:
            self._watch()

    def take_back(self) -> None:
        """Have the lanes' thread read on if a caller was to read, which may be held up, and read what has arrived."""
        if not self.connection.is_reading():
            self._watch()
            with contextlib.suppress(LaneBroken):  # the lanes' thread sees that, too
                self.take_in()

    def _watch(self) -> None:
        with finalizer_guard.gc_deferred, self._lock:
            self._reader = None
            self.connection.set_reading(True)

    def _interrupted(self) -> None:
        """A signal handler has raised in between: bytes may be lost, and what follows them makes no sense. The lane
        ends, and what waits on it is sent again."""
        self.connection.shut_down(abruptly=True)

    def end_all(self) -> list[ReplyReceiver]:
        """Refuse further requests; returns the callbacks of those without a reply."""
        with finalizer_guard.gc_deferred, self._lock:
            self._ended = True
            self._reader = None
            self._sleeps.clear()
            left = [done for _, done in self._waiting.values()]
            self._waiting.clear()
            return left
