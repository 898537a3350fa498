"""One lane to a member, and who reads it.

One thread of the process reads all its lanes. But to be woken by another thread costs a caller more than the rest of
its call. So a caller's thread reads the lane itself *while the lane carries no request but its own*, and an event loop
*while it carries none but those of its own coroutines*: it is the lane's *reader*, and the epoll of the lanes' thread
leaves the lane alone. As soon as another request is sent on it, the lanes' thread reads it. So no reply but the
reader's own ever waits for the reader, which may be held up in a signal handler of the user's, or in a coroutine that
computes; even those do not wait for long, because the hub's timer thread takes the lane back
(:meth:`ClientLane.take_back`), and so does any other caller that has a request to send. Polls of watches count as the
requests of the loop that has all the watches (:class:`loop_reader.PollAudience`).

It does no harm if two threads read: the bytes are read and split into frames under the lane's lock, and each reply
finds its request once. But a caller may wait for the replies of two lanes, and sleeps at one of them while nobody else
reads the other. So the thread that takes a reply in for it has it go on to the other lane. And a caller that needs a
reply no longer leaves the lane to the lanes' thread: unread, it would look like a member that does not answer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any

from ...limits import LANE_UNSENT_BYTES, MAX_LANE_REQUESTS
from .. import finalizer_guard
from ..background import background
from .client_transport import FrameSender, Reader, ReplyReceiver
from .lane import Connection, FrameKind, LaneBroken, pack
from .loop_reader import LoopReader, PollAudience
from .waiter import LaneSleep, OutcomeWaiter

_log = logging.getLogger("raykeeper.transport")


class ClientLane:
    """A lane to one member.

    Args:
        by_call: sends a frame by actor call, if its reply is too large for a lane.
        polls: whom the replies to polls of watches are for.
    """

    def __init__(self, member: int, connection: Connection, by_call: FrameSender, polls: PollAudience) -> None:
        self.member = member
        self.connection = connection
        self._by_call = by_call
        self._polls = polls
        self._lock = threading.RLock()
        self._number = 0
        self._waiting: dict[int, tuple[bytes, ReplyReceiver, Reader | PollAudience | None]] = {}
        """Requests without a reply: the frame, what its reply goes to, and whom it is for, if that is known."""
        self._ended = False
        self.was_useless = False
        """Once it has ended: whether requests were sent on it, and none was answered, through no fault of this end.
        Polls of watches alone do not say so: they wait for a change, which may never come."""
        self._was_interrupted = False
        self._reader: Reader | None = None
        """The caller that reads this lane itself: the lanes' thread does not. No reply on it is for another."""
        self._sleeps: list[LaneSleep] = []
        """For the next reader: the last one's."""

    def send_request(self, frame: bytes, done: ReplyReceiver, asker: Reader | PollAudience | None = None) -> bool:
        """Send a frame; False if the lane takes none now. Every frame to a member by lane goes through here.

        Once this returns True, ``done`` is called exactly once: the thread that takes the request out of ``_waiting``
        calls it.

        Args:
            asker: whom the reply is for: this thread, if it calls :meth:`read_for` next; or a loop. ``None`` if the
                lanes' thread is to read it.
        """
        if self.is_held_here():
            return False
        try:
            with finalizer_guard.gc_deferred:
                with self._lock:
                    if (
                        self._ended
                        or len(self._waiting) >= MAX_LANE_REQUESTS
                        or self.connection.backlog > LANE_UNSENT_BYTES
                    ):
                        return False
                    reader = asker.loop if isinstance(asker, PollAudience) else asker
                    self._have_read_by(reader if self._waits_alone(reader) else None)
                    self._number += 1
                    number = self._number
                    self._waiting[number] = frame, done, asker
                if self.connection.send(pack(FrameKind.REQUEST, number, frame)):
                    return True
                with self._lock:  # if another thread has taken it, it has failed already
                    return self._waiting.pop(number, None) is None
        except BaseException:
            self._interrupted()
            raise

    def take_in(self) -> bool:
        """Read what has arrived, and hand each reply over; whether there was one. Any thread.

        Raises:
            LaneBroken: the lane has ended.
        """
        try:
            with finalizer_guard.gc_deferred, self._lock:
                if self._ended:
                    raise LaneBroken("interrupted")
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
        for (frame, done, asker), kind, payload in replies:
            try:
                if kind == FrameKind.BY_CALL:
                    self._by_call(self.member, frame, done)
                else:
                    done(payload)
            except Exception as error:  # the other replies must still be delivered
                message = "a reply from member %d could not be handled"
                background.log(_log, logging.ERROR, message, self.member, error=error)
            if isinstance(asker, OutcomeWaiter) and asker.outcome is None and (sleep := asker.sleep) is not None:
                sleep.end()  # another thread's: it may have a reply to read on another lane
        return bool(replies)

    def read_for(self, waiter: OutcomeWaiter[Any]) -> None:
        """See ``LaneReader``. When this thread stops without its outcome, the lanes' thread reads on."""
        try:
            sleep = self._sleeps.pop() if self._sleeps else LaneSleep(self.connection.fd)
        except (OSError, IndexError):  # no descriptor is left; or another reader has just taken it
            self._watch()
            return
        with contextlib.suppress(LaneBroken):  # the lanes' thread sees that, too
            while True:
                waiter.sleep = sleep
                # These are read last. A thread that changes one of them looks for the sleep last.
                if waiter.outcome is not None or self._reader is not waiter or not self._owes(waiter):
                    break
                readable = sleep.sleep()
                waiter.sleep = None  # this thread is awake
                if readable:
                    self.take_in()
        waiter.sleep = None
        if not self._sleeps:
            self._sleeps.append(sleep)
        if self._waiting and (waiter.outcome is None or (self._reader is waiter and self._owes(waiter))):
            self._watch()

    def take_back(self, *, if_overdue: bool = False) -> None:
        """Have the lanes' thread read on if a caller was to read, which may be held up, and read what has arrived.

        Args:
            if_overdue: leave the lane to a loop that has no reply to read at the moment.
        """
        if self.connection.is_reading() or self.is_held_here():
            return
        reader = self._reader
        if not (if_overdue and isinstance(reader, LoopReader) and reader.runs()):
            self._watch()
            with contextlib.suppress(LaneBroken):  # the lanes' thread sees that, too
                self.take_in()
            return
        with contextlib.suppress(LaneBroken):
            if not self.take_in():
                return
        self._watch()

    def read_in_loop(self) -> None:
        """See ``LoopReadLane``. If the lane has ended, the lanes' thread is to see that, too."""
        try:
            self.take_in()
        except LaneBroken:
            self._watch()

    def is_held_here(self) -> bool:
        """Whether this thread, which a signal handler has interrupted, holds a lock of the lane.

        The connection's counts, too: other threads may wait for it, with the lane's own lock held, and with requests of
        all callers to send.
        """
        return finalizer_guard.held_by_this_thread(self._lock) or self.connection.is_held_here()

    def _watch(self) -> None:
        with finalizer_guard.gc_deferred, self._lock:
            self._have_read_by(None)

    def _owes(self, reader: Reader) -> bool:
        """Whether a reply to this caller is still to come, without the lock: it may be a moment old. For polls alone a
        caller does not sleep here: it may wait for a reply of another lane."""
        return any(asker is reader for _, _, asker in list(self._waiting.values()))

    def _waits_alone(self, reader: Reader | None) -> bool:
        """With the lock held: whether no reply that is still to come on this lane is for another."""
        return all(
            asker is reader or (asker is self._polls and self._polls.can_spare(reader))
            for _, _, asker in self._waiting.values()
        )

    def _have_read_by(self, reader: Reader | None) -> None:
        """With the lock held: have this lane read by a caller, or by the lanes' thread."""
        before = self._reader
        if reader is not before:
            self._reader = None
            if isinstance(before, LoopReader):
                before.remove(self.connection.fd)
            if isinstance(reader, LoopReader) and not reader.add(self.connection.fd, self):
                reader = None
        if self.connection.is_reading() is not (reader is None):
            self.connection.set_reading(reader is None)
        self._reader = reader

    def _interrupted(self) -> None:
        """A signal handler has raised in between: bytes may be lost, and what follows them makes no sense. The lane
        ends, and what waits on it is sent again."""
        self._ended = self._was_interrupted = True
        self.connection.shut_down(abruptly=True)

    def end_all(self) -> list[ReplyReceiver]:
        """Refuse further requests; returns the callbacks of those without a reply."""
        with finalizer_guard.gc_deferred, self._lock:
            self._ended = True
            self._have_read_by(None)
            self._sleeps.clear()
            left = [done for _, done, _ in self._waiting.values()]
            asked = any(asker is not self._polls for _, _, asker in self._waiting.values())
            self.was_useless = asked and not self._was_interrupted and self._number == len(left)
            self._waiting.clear()
            return left
