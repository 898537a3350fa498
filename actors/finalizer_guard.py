"""Keeping the user's destructors and signal handlers away from our locks and threads.

**The danger.** Python runs the user's code at points that no one chose. When the garbage collector starts, the thread
that happens to allocate runs destructors and weak-reference callbacks. Between two bytecodes, the main thread runs
signal handlers. Suppose that happens while the thread holds one of our locks, or on a thread that every call of the
process waits for, and that the user's code then waits for one of our calls, or merely sleeps. Then the whole process
hangs, and no further lock can prevent that.

**The three rules.**

1. *No collection in a critical section.* A thread that holds one of our locks, and a service thread (one that all calls
   wait for) while it is busy, *defers* automatic collection. Collection comes back as soon as no thread defers it, so
   garbage is collected a moment later, usually on a thread of the user's. A critical section takes some ten
   microseconds and calls neither Ray nor the user. If critical sections follow one another without a gap, the
   background thread (:mod:`background`) collects: no caller waits for it, so a destructor there may take its time. A
   service thread sleeps where waking up allocates nothing that the collector counts, so that it does not start there
   before collection is deferred again (:class:`Wakeup`).

2. *What destructors and signal handlers may call never waits.* Cancelling a watch, giving up a lease and closing a
   handle only put an entry into a queue. Events are set without a lock (:class:`LockFreeEvent`).
3. *A call that would wait for itself is refused.* A signal handler that has interrupted a critical section finds our
   lock held by its own thread. Its call ends at once in ``ReentrantCall``, without effect; so does a call made on a
   service thread. The same call from another thread, or later, works.

When one of our calls drops the last reference to an object of the user's, it does so after releasing its locks.

**The mechanism.** To defer collection is to raise the threshold of the youngest generation so far that it is never
reached. ``gc.disable()`` would not do: if the user calls ``gc.disable()`` on another thread meanwhile, our
``gc.enable()`` would undo it, and ``gc.isenabled()`` would report our state as the user's. A threshold that the user
sets meanwhile differs from ours, so it is seen and kept. Three imperfections remain. Code that reads
``gc.get_threshold()`` during a critical section sees our value; if it sets that value again later, the next critical
section takes it for ours. A thread that sleeps in ``epoll`` may start the collector as it wakes up, if the interpreter
has no list left over that it can use again, as after a full collection. And if Ctrl-C strikes where no ``finally`` can
help, collection stays deferred until the next call of ours, but not forever.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence
from gc import get_count, get_threshold, isenabled, set_threshold
from threading import get_ident
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_deferring: set[int] = set()
"""Ids of the threads that defer collection now."""
_service_threads: set[int] = set()
"""Ids of our threads that all calls of the process wait for."""
_DEFERRED_THRESHOLD = 10_000_019
"""The youngest generation's threshold while collection is deferred: a number that no user has chosen by chance, never
reached, and small enough that the interpreter may multiply it."""
_thresholds = get_threshold()
"""The user's thresholds, restored when the last thread stops deferring."""


# Every call of the client passes through ``_Deferral``, so it takes no lock. Each of its steps is atomic under the
# interpreter lock, and in whatever order two threads interleave theirs, the user's thresholds are back in the end. The
# price: a thread that starts deferring just as the last one stops may be protected one instruction late.


class _Deferral:
    """Defers collection inside a ``with`` block. Take every lock of ours as ``with gc_deferred, lock:``.

    The order matters: ``get_threshold`` allocates, and an allocation may start the collector, so it must run before
    the lock is held.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        global _thresholds
        me = get_ident()
        if me in _deferring:
            return
        _deferring.add(me)
        now = get_threshold()
        if now[0] != _DEFERRED_THRESHOLD and now[0]:
            _thresholds = now
            set_threshold(_DEFERRED_THRESHOLD)

    def __exit__(self, *_: object) -> None:
        me = get_ident()
        if me in _service_threads:  # it defers until it is idle
            return
        _deferring.discard(me)
        if not _deferring:
            _restore_thresholds()


gc_deferred = _Deferral()


def _restore_thresholds() -> None:
    """The last thread has stopped deferring."""
    while get_threshold()[0] == _DEFERRED_THRESHOLD:
        set_threshold(*_thresholds)
        if not _deferring:
            return
        set_threshold(_DEFERRED_THRESHOLD)  # another thread has started in between...
        if _deferring:
            return  # ... and restores them when it stops; one that stopped meanwhile found nothing to restore


def recover() -> None:
    """Stop deferring on this thread, after an interrupt (Ctrl-C) that may have skipped ``__exit__``."""
    gc_deferred.__exit__()


class Wakeup:
    """What wakes one thread, without a shared lock; releasing it a second time does no harm."""

    __slots__ = ("_acquire", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._acquire = self._lock.acquire

    def release(self) -> None:
        """Wake the thread that waits, or else the next that does."""
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def wait(self, timeout: float, thread: ServiceThread | None = None) -> None:
        """Wait to be released; it may come back early.

        Args:
            timeout: seconds at most; infinity waits forever.
            thread: the service thread that waits, which is idle meanwhile. Until it is busy again nothing is allocated
                that the collector counts, which might start it on this thread: no arguments; no exception that tells of
                the end of the time, as queues raise one; no thresholds, since those that are given back just before
                ``busy`` reads them are taken again.
        """
        blocking_for = (True, min(max(0.0, timeout), threading.TIMEOUT_MAX))
        if thread is None:
            self._acquire(*blocking_for)
            return
        spare = get_threshold()
        thread.idle()
        self._acquire(*blocking_for)
        del spare
        thread.busy()


class ServiceQueue(Generic[T]):
    """Entries for a service thread, put from anywhere: destructors and signal handlers, and under any lock."""

    __slots__ = ("_entries", "_wakeup")

    def __init__(self) -> None:
        self._entries: deque[T] = deque()
        self._wakeup = Wakeup()

    def put(self, entry: T) -> None:
        """Add an entry, and wake the thread."""
        self._entries.append(entry)
        self._wakeup.release()

    def take(self, thread: ServiceThread, timeout: float) -> T | None:
        """The next entry, waiting for it if there is none; ``None`` when that took this number of seconds (infinity:
        forever), or for no reason."""
        if not self._entries:
            self._wakeup.wait(timeout, thread)
        return self._entries.popleft() if self._entries else None


class ServiceThread:
    """One of our threads that all calls of the process wait for.

    It defers collection while it is busy, and calls that are made on it are refused. The thread makes this object when
    it starts, and counts as busy at once.
    """

    def __init__(self) -> None:
        self._me = get_ident()
        _service_threads.add(self._me)
        self.busy()

    def idle(self) -> None:
        """Stop deferring: the thread is about to wait, or to call code that is not ours."""
        _deferring.discard(self._me)
        if not _deferring:
            _restore_thresholds()

    def busy(self) -> None:
        """Defer again: the thread goes on with its work."""
        gc_deferred.__enter__()

    def close(self) -> None:
        """The thread ends."""
        _service_threads.discard(self._me)
        self.idle()


def held_by_this_thread(lock: Any) -> bool:
    """Whether this thread holds the ``threading.RLock``: it does only if it was interrupted in a critical section."""
    held: bool = lock._is_owned()
    return held


def on_service_thread() -> bool:
    """Whether this is a thread that all calls of the process wait for."""
    return get_ident() in _service_threads


def collection_overdue() -> bool:
    """Whether collection has been deferred for so long that the background thread should collect."""
    return get_threshold()[0] == _DEFERRED_THRESHOLD and isenabled() and get_count()[0] > 10 * max(_thresholds[0], 100)


def collection_wanted() -> bool:
    """Whether the user has left automatic collection on."""
    return isenabled() and get_threshold()[0] > 0


def _in_child() -> None:
    """After a fork: only the thread that forked exists in the child."""
    _deferring.clear()
    _service_threads.clear()
    _restore_thresholds()


os.register_at_fork(after_in_child=_in_child)


class LockFreeEvent(threading.Event):
    """An event without a shared lock: it can be set anywhere, in destructors, in signal handlers and under any lock."""

    _flag: bool

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[Any] = deque()

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._flag

    def set(self) -> None:
        """Set it, and wake all threads that wait."""
        self._flag = True
        self.wake_waiters()

    def wake_waiters(self) -> None:
        """Wake all threads that wait."""
        with contextlib.suppress(IndexError):
            while True:
                self._waiting.popleft().release()

    def clear(self) -> None:
        """Reset it."""
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; whether it was.

        Each waiter brings a lock of its own, acquired, which ``set`` releases. A waiter enqueues its lock first and
        looks at the flag afterwards; ``set`` raises the flag first and looks at the queue afterwards. So one of the two
        always sees the other.

        Args:
            timeout: seconds; ``None`` waits forever.
        """
        if self.is_set():
            return True
        own = threading.Lock()
        own.acquire()
        self._waiting.append(own)
        try:
            if self.is_set():  # in between, by a thread that may not have seen our lock
                return True
            woken = own.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX))
            return woken or self.is_set()
        finally:
            with contextlib.suppress(ValueError, IndexError):
                self._waiting.remove(own)


def wait_for_any(events: Sequence[LockFreeEvent], timeout: float) -> None:
    """Wait until one of the events is set, or this number of seconds is over."""
    own = Wakeup()
    for event in events:
        event._waiting.append(own)
    try:
        if not any(event.is_set() for event in events):  # last, as in ``LockFreeEvent.wait``
            own.wait(timeout)
    finally:
        for event in events:
            with contextlib.suppress(ValueError, IndexError):
                event._waiting.remove(own)
