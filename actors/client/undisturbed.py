"""Keeping foreign code off our locks and off our threads.

Python runs code of the user's at places that nobody chose: when the garbage collector comes, in whatever thread has
just allocated something, it runs destructors and the callbacks of weak references; and in the main thread it runs
handlers of signals. If that happens while our lock is held, or on a thread that all calls of the process wait for, and
that code then waits for one of our calls (or just sleeps), everything stands still. There is no lock that would help,
so:

- **The collector does not run there.** Whoever holds one of our locks, and those of our threads that everybody waits
  for while they are awake, are *undisturbed*: automatic collection is put off for the moment, and comes again as soon
  as no thread is. A moment is some ten microseconds, and nothing of Ray's or the user's is called in it. What had to be
  collected is collected a moment later, in a thread of the user's. Where such moments follow on each other without a
  gap, and at every look for forgotten leases, a thread of our own collects (:mod:`errands`), on which nobody waits:
  there a destructor may take its time.
- **What signal handlers and destructors may call does not wait.** Cancelling a watch, giving a lease up, closing a
  handle only put something into a queue; events are set without a lock (:class:`Bell`).
- **Whoever waits where he would wait for ever is refused.** A handler of a signal that has interrupted us in the
  middle, in the main thread, finds our lock held by its own thread: its call ends at once in ``ReentrantCall``, and has
  no effect. So does any call from one of our threads. Another attempt, elsewhere or later, will do.

A call of ours that drops the last reference to something of the user's does so after it has let go of its locks.

Collection is put off by the threshold of the youngest generation, which is so high meanwhile that it is not reached.
``gc.disable`` would leave no trace of what the user does in another thread at the same time: his own ``disable`` would
be undone, and ``isenabled`` would tell him that he had done it. A threshold that he sets is seen, and stays. Who reads
``gc.get_threshold`` in such a moment finds ours; if he sets it again later, the next moment takes it for ours. And if
Ctrl-C comes in between, where no ``finally`` can help, collection is late until the next call, but not off for ever.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from gc import get_count, get_threshold, isenabled, set_threshold
from threading import get_ident
from typing import Any

_undisturbed: set[int] = set()
"""Threads that are."""
_ours: set[int] = set()
"""Threads of ours that everybody waits for."""
_PUT_OFF = 10_000_019
"""The youngest generation's threshold meanwhile. Nobody else has chosen this number; and it may be multiplied."""
_thresholds = get_threshold()
"""The user's, which come back afterwards."""


# Every call of the client comes through here, so these two take no lock: each step is one of the interpreter's, and in
# whatever order two threads take theirs, the user's thresholds are back in the end. A thread that comes in the very
# moment that the last one goes may be undisturbed an instruction late.


class _Here:
    """``with here, lock:`` is how a lock of ours is taken. In this order: asking for the thresholds makes an object,
    and that may be when the collector comes."""

    __slots__ = ()

    def __enter__(self) -> None:
        global _thresholds
        me = get_ident()
        if me in _undisturbed:
            return
        _undisturbed.add(me)
        now = get_threshold()
        if now[0] != _PUT_OFF and now[0]:
            _thresholds = now
            set_threshold(_PUT_OFF)

    def __exit__(self, *_: object) -> None:
        me = get_ident()
        if me in _ours:  # which is undisturbed until it rests
            return
        _undisturbed.discard(me)
        if not _undisturbed:
            _end()


here = _Here()


def _end() -> None:
    """Nobody is undisturbed any more."""
    while get_threshold()[0] == _PUT_OFF:
        set_threshold(*_thresholds)
        if not _undisturbed:
            return
        set_threshold(_PUT_OFF)  # somebody has come just now...
        if _undisturbed:
            return  # ... and ends it when he goes; one who has gone meanwhile has found nothing to end


def recover() -> None:
    """A call of this thread was interrupted (Ctrl-C) where it may not have come to its end."""
    here.__exit__()


class OurThread:
    """Made by a thread of ours at its start: undisturbed while it is awake."""

    def __init__(self) -> None:
        self._me = get_ident()
        _ours.add(self._me)
        self.wake()

    def rest(self) -> None:
        """It is about to wait, or to call somebody else."""
        _undisturbed.discard(self._me)
        if not _undisturbed:
            _end()

    def wake(self) -> None:
        """It goes on."""
        here.__enter__()

    def over(self) -> None:
        """It ends."""
        _ours.discard(self._me)
        self.rest()


def held_here(lock: Any) -> bool:
    """Whether this very thread holds a lock (``threading.RLock``) of ours: then it has been interrupted in the
    middle."""
    held: bool = lock._is_owned()
    return held


def is_ours() -> bool:
    """Whether this is a thread that everybody waits for."""
    return get_ident() in _ours


def held_off() -> bool:
    """Whether automatic collection has been kept waiting for long."""
    return get_threshold()[0] == _PUT_OFF and isenabled() and get_count()[0] > 10 * max(_thresholds[0], 100)


def collection_wanted() -> bool:
    """Whether the user wants automatic collection."""
    return isenabled() and get_threshold()[0] > 0


def _in_child() -> None:
    """Only the thread that forked goes on."""
    _undisturbed.clear()
    _ours.clear()
    _end()


os.register_at_fork(after_in_child=_in_child)


class Bell(threading.Event):
    """An event without a lock of its own, so that it can be set, and waited for, anywhere: in destructors, in handlers
    of signals, and under any lock, whoever waits for it."""

    _flag: bool

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[Any] = deque()

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._flag

    def set(self) -> None:
        """Set it, and wake whoever waits."""
        self._flag = True
        self.ring()

    def ring(self) -> None:
        """Wake whoever waits."""
        with contextlib.suppress(IndexError):
            while True:
                self._waiting.popleft().release()

    def clear(self) -> None:
        """From now on it can be waited for again."""
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, for so many seconds at most; whether it was."""
        if self.is_set():
            return True
        gate = threading.Lock()
        gate.acquire()
        self._waiting.append(gate)
        try:
            if self.is_set():  # just now, and whoever did so may not have seen the gate
                return True
            woken = gate.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX))
            return woken or self.is_set()
        finally:
            with contextlib.suppress(ValueError, IndexError):
                self._waiting.remove(gate)
