"""One hub per process and cluster: four cores under a lock, a transport, and one timer thread (:mod:`hub_timer`).

The calling thread submits its request under the lock and sends the resulting frames itself, so a lone request changes
no thread on its way out. Replies are taken in on the transport's thread, or by a caller that waits alone: a thread, or
an event loop whose coroutines have made all the calls that are open. The timer
thread looks at the clock for the cores, and sleeps while nothing is open. The lock guards the hand-over only; every
decision is made in :mod:`core.dispatch_core` for requests, :mod:`core.watch_core` for watches,
:mod:`core.lease_core` for leases, and :mod:`core.monitor_core` for those that end with this process.

None of the user's code runs under the lock or on these threads (:mod:`finalizer_guard`). So the lock is never held for
long, and calls wait for nothing but the cluster.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Protocol, TypeVar

from ...errors import AuthFailed, ForkedProcess, KeeperError, ReentrantCall
from ...limits import (
    CLIENT_SUSPICION_S,
    CLIENT_TERM_WAIT_S,
    Settings,
)
from ...schema.answers import Answer
from ...schema.client_identity import ClientIdentity
from ...schema.frames import LeasesKept, LeaseStatuses
from ...schema.operations import Operation
from .. import finalizer_guard
from ..background import background
from ..process_tracer import process_tracer
from ..transport.client_transport import ClientTransport, Reader
from ..transport.loop_reader import LoopReader
from ..transport.waiter import OutcomeWaiter, WakeQueue
from .call_span import begin_span
from .core.dispatch_core import DispatchCore
from .core.in_flight import LeaseQuestion, OutgoingFrame, request_size
from .core.lease_core import LeaseCore
from .core.monitor_core import MonitorCore
from .core.router import Router
from .core.subscription import Subscription
from .core.watch_core import WatchCore
from .hub_figures import HubFigures
from .hub_timer import HubTimer
from .login import UserLogin
from .member_lookup import MemberLookup
from .proxy_monitor import ProxyMonitor
from .reading_loop import ReadingLoop
from .view import Call

_log = logging.getLogger("raykeeper.client")

Outcome = Answer | LeaseStatuses | LeasesKept | KeeperError
ClientCore = DispatchCore | WatchCore | LeaseCore | MonitorCore
RoutedFrame = tuple[ClientCore, OutgoingFrame]
"""A frame to send, and the core that takes in its reply."""
T = TypeVar("T")


def _ignore_outcome(outcome: Outcome) -> None:
    pass


_process = os.getpid()


def this_process() -> int:
    """The id of this process, without a system call: every call of a handle needs it."""
    return _process


def _in_child() -> None:
    global _process
    _process = os.getpid()


os.register_at_fork(after_in_child=_in_child)

clock: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Monotonic seconds that include the time in which the machine sleeps, as the members' clocks do."""


class Listener(Protocol):
    """Takes in many outcomes at once: it is flushed when a reply has been taken in as a whole."""

    def flush(self) -> None:
        """All outcomes of a reply have been set. Called without the hub's lock."""
        ...


class LoopListener(Listener, Protocol):
    """The listener of an event loop."""

    def hub_closed(self) -> None:
        """Nothing more will come. Any thread."""
        ...


class Hub:
    """The one client of a process and cluster, shared by all its handles.

    Args:
        name: the cluster's name.
        cluster: the cluster's id.
        leader: id of the leader, 0 if it is not known.
        settings: limits and timings of the cluster, as they were when the hub was opened.
        near: ids of members on this process's node; the set may grow.
        login: the user whose calls it sends; ``None`` for none.
        client: who this process is; ``None`` says nothing.
        keep_until: until when a hub that was marked unused stays open; 0 closes it at once, infinity means that it is
            in use again.
    """

    def __init__(
        self,
        name: str,
        cluster: int,
        transport: ClientTransport,
        *,
        leader: int = 0,
        settings: Settings | None = None,
        near: Set[int] = frozenset(),
        rng: random.Random | None = None,
        login: UserLogin | None = None,
        keep_until: Callable[[Hub, float], float] = lambda hub, now: 0.0,
        client: ClientIdentity | None = None,
    ) -> None:
        self.name = name
        self.cluster = cluster
        self.login = login
        settings = settings or Settings()
        self.limits = settings.limits
        self.timings = settings.timings
        self.process = this_process()
        self.listeners: weakref.WeakKeyDictionary[object, LoopListener] = weakref.WeakKeyDictionary()
        """By event loop, for the coroutines that call through this hub (see ``loop_bridge``)..."""
        self.last_listener: LoopListener | None = None
        """... and the one that was used last."""
        self.transport = transport
        self.idle_since = -math.inf
        """When the last handle was dropped."""
        self._keep_until = keep_until
        self._unused = False
        """Whether the last handle was dropped and ``keep_until`` is to be asked."""
        self._rng = rng = rng or random.Random(os.urandom(16))
        self.near = near
        self._router = router = Router(transport.members(), leader=leader, near=near, cluster=name)
        self._dispatch_core = DispatchCore(cluster, router, self.limits, settings.timings, rng, client)
        self.watch_core = WatchCore(cluster, router, self.limits, rng)
        """All watches of the process; use it only inside :meth:`run_locked`."""
        self.lease_core = LeaseCore(cluster, router, self.limits, rng, lambda: self._dispatch_core.session)
        """All leases of the process; use it only inside :meth:`run_locked`."""
        self._proxy_monitor = ProxyMonitor(name, transport.node, lambda s: self.monitor_core.monitored_elsewhere(s))
        self.monitor_core = MonitorCore(
            cluster,
            router,
            lambda: self._dispatch_core.session,
            self.lease_core.owns,
            rng,
            self._proxy_monitor.claim,
        )
        """Has this process's death noticed, while it owns leases."""
        self._cores: tuple[ClientCore, ...] = (
            self._dispatch_core,
            self.watch_core,
            self.lease_core,
            self.monitor_core,
        )
        self._lock = threading.RLock()  # never taken twice by a thread; an RLock, because it knows its owner
        self._timer = HubTimer(self, self._cores, self._lock, clock, lambda: len(self.lease_core) > 0)
        self._lookup = MemberLookup(name, transport, router, self._lock, rng, self.wake)
        self._due: tuple[list[RoutedFrame], list[Listener]] = [], []
        """What the timer thread is about to send and to flush."""
        self._listeners_to_flush: list[Listener] = []
        self._to_wake = WakeQueue()
        self._reading_loop = ReadingLoop(transport)
        self.tracer = process_tracer()
        """Samples calls; ``None`` where this process does not trace."""
        self._timer.start(f"raykeeper-hub-{name}")

    @property
    def revision(self) -> int:
        """The newest revision that an answer has named; 0 before the first."""
        return self._dispatch_core.revision

    @property
    def term(self) -> int:
        """The newest Raft term that a member has named; 0 before the first."""
        return self._router.term

    @property
    def session(self) -> int:
        """The id of the session, 0 while there is none."""
        return self._dispatch_core.session

    def figures(self) -> HubFigures:
        """What metrics show of it. Any thread."""
        dispatch, router = self._dispatch_core, self._router
        return HubFigures(
            dispatch.pending,
            dispatch.frames_in_flight,
            len(self.watch_core),
            len(self.lease_core),
            len(router.members),
            router.leader,
            router.term,
            dispatch.revision,
            self._lookup.unanswered,
        )

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(self, call: Call, timeout: float) -> Outcome:
        """Send a request to the cluster and wait for its outcome. An interrupt (Ctrl-C) gives the call up."""
        if finalizer_guard.on_service_thread():
            return ReentrantCall()
        try:
            size = request_size(call.request, self.limits)
        except KeeperError as error:
            return error
        waiter: OutcomeWaiter[Outcome] = OutcomeWaiter(self._to_wake)
        number = 0
        try:
            number = self.submit(call, size, timeout, waiter.set_outcome, waiter)
            return waiter.wait()
        except (ReentrantCall, ForkedProcess) as error:
            return error
        except BaseException:
            finalizer_guard.recover()
            waiter.leave()
            if waiter.lanes:
                self.recover_interrupted()
            if number:
                self.give_up(number)
            raise

    def submit(
        self,
        call: Call,
        size: int,
        timeout: float,
        done: Callable[[Outcome], None],
        reader: Reader | None = None,
    ) -> int:
        """Submit a checked request; ``done`` gets its outcome, with the hub's lock held, so it must not call back.

        If this thread is interrupted on the way (Ctrl-C), the call is given up by the timer thread, which knows it by
        ``done`` alone: its number may not have been assigned to anything yet.

        The steps are those of :meth:`run_locked`, written out: every call of a user passes here, and most need neither
        the other cores' frames nor the timer.

        Args:
            size: what ``request_size`` returned for it.
            timeout: seconds.
            reader: this thread, if it waits for the outcome next, or the loop that runs on it: if no other caller has
                an open call, it takes in the reply itself.

        Returns:
            The number of the call, for :meth:`give_up`.

        Raises:
            ForkedProcess: see :meth:`run_locked`.
            ReentrantCall: this thread was interrupted while it holds the hub's lock, and calls again.
        """
        self.check_process()
        now = clock()
        loop = reader if isinstance(reader, LoopReader) else None
        if isinstance(call.request, LeaseQuestion):
            return self.submit_many([(call, size, timeout, done)], loop)[0]
        trace = None if self.tracer is None else begin_span(self.tracer, call, self.name)
        self._check_not_held()
        listeners: list[Listener] = []
        try:
            with finalizer_guard.gc_deferred, self._lock:
                self._reading_loop.submitting(loop, 1, self._dispatch_core.pending)
                number = self._dispatch_core.submit(
                    call.request,
                    now=now,
                    timeout=timeout,
                    serializable=call.serializable,
                    request_id=call.request_id,
                    done=done,
                    size=size,
                )
                if trace is not None:
                    self._dispatch_core.trace(number, trace)
                out: list[RoutedFrame] = [(self._dispatch_core, each) for each in self._dispatch_core.outgoing(now)]
                patience = CLIENT_SUSPICION_S if len(out) < 2 else CLIENT_TERM_WAIT_S
                if now + min(timeout, patience) < self._timer.wakes_at or self._router.wants_members:
                    self._set_timer((self._dispatch_core,))  # otherwise it wakes before anything new is due
                pending = self._dispatch_core.pending
                alone = pending == 1 if loop is None else self._reading_loop.loop(pending) is loop
                listeners, self._listeners_to_flush = self._listeners_to_flush, listeners
            self._send_all(out, listeners, reader if alone else None)
            if isinstance(reader, OutcomeWaiter) and reader.outcome is not None:  # refused
                self._to_wake.wake_next()
        except BaseException:
            self._give_up_callback(done)
            self._recover_interrupted(listeners)
            raise
        return number

    def submit_many(
        self, calls: list[tuple[Call, int, float, Callable[[Outcome], None]]], loop: LoopReader | None = None
    ) -> list[int]:
        """As :meth:`submit`, for many requests at once (call, size, timeout, done): they travel together."""

        tracer = self.tracer
        traces = [] if tracer is None else [begin_span(tracer, call, self.name) for call, _, _, _ in calls]

        def hand_in(now: float) -> list[int]:
            """All in one call, under the lock, so that no frame leaves before the last is in: they share as few frames
            as can be. The numbers are in the order of the calls; those of lease questions, which another core asks,
            are negative (see ``give_up``)."""
            counted = sum([not isinstance(each[0].request, LeaseQuestion) for each in calls])
            self._reading_loop.submitting(loop, counted, self._dispatch_core.pending)
            submit = self._dispatch_core.submit
            numbers = [
                self.lease_core.ask_status(call.request, now=now, timeout=timeout, done=done)
                if isinstance(call.request, LeaseQuestion)
                else submit(
                    call.request,
                    now=now,
                    timeout=timeout,
                    serializable=call.serializable,
                    request_id=call.request_id,
                    done=done,
                    size=size,
                )
                for call, size, timeout, done in calls
            ]
            for number, trace in zip(numbers, traces, strict=False):  # none, if this process does not trace
                if trace is not None and number > 0:
                    self._dispatch_core.trace(number, trace)
            return numbers

        try:
            return self.run_locked(hand_in)
        except BaseException:
            for _, _, _, done in calls:
                self._give_up_callback(done)
            raise

    def _give_up_callback(self, done: Callable[[Outcome], None]) -> None:
        """Give a call up whose caller was interrupted before it learned the number."""

        def give_up(now: float) -> None:
            self._dispatch_core.give_up_callback(done, now)
            self.lease_core.give_up_callback(done)

        self.run_soon(give_up)

    def give_up(self, number: int) -> None:
        """The caller of a request no longer waits."""
        if number < 0:
            self.run_now_or_soon(lambda now: self.lease_core.give_up(number))
        else:
            self.run_now_or_soon(lambda now: self._dispatch_core.give_up(number, now))

    def run_locked(self, act: Callable[[float], T]) -> T:
        """Run ``act(now)`` on the cores under the hub's lock, then send the frames that result.

        Sending and the flushing of listeners come after the lock was released: both may lead to other code of ours.

        Raises:
            ForkedProcess: this process was forked from the hub's own; the lock may be held forever by a thread that the
                child does not have.
            ReentrantCall: this thread was interrupted while it holds the hub's lock, and calls again.
        """
        self.check_process()
        self._check_not_held()
        now = clock()
        listeners: list[Listener] = []
        try:
            with finalizer_guard.gc_deferred, self._lock:
                result = act(now)
                out = self._outgoing(now)
                self._set_timer(self._cores)
                loop = self._reading_loop.loop(self._dispatch_core.pending)
                listeners, self._listeners_to_flush = self._listeners_to_flush, listeners
            self._send_all(out, listeners, loop)
            self._to_wake.wake()
        except KeeperError:
            raise
        except BaseException:
            self._recover_interrupted(listeners)
            raise
        return result

    def run_soon(self, act: Callable[[float], object]) -> None:
        """As :meth:`run_locked`, but soon and on the timer thread. Safe anywhere, in destructors too."""
        self._timer.run_soon(act)

    def submit_soon(self, request: Operation, size: int, timeout: float) -> None:
        """Submit a request without waiting for its outcome, on the timer thread. Safe anywhere, in destructors too."""

        def submit(now: float) -> None:
            self._reading_loop.submitting(None, 1, self._dispatch_core.pending)
            self._dispatch_core.submit(request, now=now, timeout=timeout, done=_ignore_outcome, size=size)

        self.run_soon(submit)

    def cannot_wait(self) -> bool:
        """Whether waiting here would never end: this code has interrupted the hub, or runs on a service thread."""
        return self._is_held_here() or finalizer_guard.on_service_thread()

    def run_now_or_soon(self, act: Callable[[float], object]) -> None:
        """As :meth:`run_locked`, or as :meth:`run_soon` if this thread holds the hub's lock already."""
        if self._is_held_here():
            self.run_soon(act)
        else:
            self.run_locked(act)

    def _is_held_here(self) -> bool:
        """Whether this thread was interrupted while it held the hub's lock, or one of the transport's."""
        return finalizer_guard.held_by_this_thread(self._lock) or self.transport.is_held_here()

    def _check_not_held(self) -> None:
        if self._is_held_here():
            raise ReentrantCall()

    def read_locked(self, read: Callable[[], T]) -> T:
        """Read something of the cores under the hub's lock. Raises as :meth:`run_locked`."""
        self.check_process()
        self._check_not_held()
        with finalizer_guard.gc_deferred, self._lock:
            return read()

    def check_process(self) -> None:
        """Refuse in a forked child: it has none of the hub's threads, and locks may be held by threads that are gone.

        Raises:
            ForkedProcess: this process is one.
        """
        if self.process != _process:
            raise ForkedProcess()

    def cancel_soon(self, watch: Subscription) -> None:
        """Cancel a watch soon, on the timer thread. Safe anywhere, in destructors too."""
        self.run_soon(lambda now: self.watch_core.cancel(watch, now))

    def flush_later(self, listener: Listener) -> None:
        """Flush a listener once the lock is released; for ``done`` callbacks, which run with the lock held."""
        if listener not in self._listeners_to_flush:
            self._listeners_to_flush.append(listener)

    def mark_unused(self) -> None:
        """The last handle was dropped: the timer thread closes the hub unless it is used again in time.

        Safe anywhere, in destructors too.
        """
        self.idle_since = clock()
        self._unused = True
        self.wake()

    def wake(self) -> None:
        """Wake the timer thread. Safe anywhere."""
        self._timer.wake()

    def close(self) -> None:
        """End all calls, and tell the cluster that the session is over, without waiting for a reply."""
        self._timer.end()

        def close(now: float) -> None:
            for core in self._cores:
                core.close(now)

        self.run_locked(close)
        self._proxy_monitor.close()
        self._timer.wake()
        self.transport.close()
        for listener in list(self.listeners.values()):
            listener.hub_closed()

    def recover_interrupted(self) -> None:
        """A signal handler has raised while this thread read a lane: replies may be lost."""
        self._recover_interrupted([])

    def _recover_interrupted(self, listeners: list[Listener]) -> None:
        """A signal handler (Ctrl-C's, or one of the user's) has raised while this thread worked on the cores.

        What it left half done concerns the calls of other threads too, so the timer thread has the cores restore order.
        """
        finalizer_guard.recover()
        self.run_soon(lambda now: self._listeners_to_flush.extend(listeners))
        self._timer.interrupted()
        for core in self._cores:
            self.run_soon(core.resume)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _outgoing(self, now: float) -> list[RoutedFrame]:
        """The frames to send now. With the lock held."""
        self._reading_loop.watches_of(self.watch_core.loops, self._dispatch_core.pending)
        return [(core, each) for core in self._cores for each in core.outgoing(now)]

    def _set_timer(self, cores: Sequence[ClientCore]) -> None:
        """Have the timer thread heed these cores, which have changed. With the lock held."""
        self._timer.heed(cores)
        if self._wants_members():
            self._lookup.start(clock())

    def _wants_members(self) -> bool:
        """Whether something is pending and the list of members may be out of date."""
        return self._router.wants_members and any(core.pending for core in self._cores)

    def _send_all(self, out: list[RoutedFrame], listeners: list[Listener], reader: Reader | None = None) -> None:
        self._reading_loop.take_back_if_needed()
        for core, frame in out:
            self._send(core, frame, reader)
        for listener in listeners:
            listener.flush()
        errors = self._dispatch_core.callback_errors
        while errors:
            with contextlib.suppress(IndexError):
                background.log(
                    _log,
                    logging.ERROR,
                    "the callback of a request failed",
                    error=errors.pop(),
                )

    def _send(self, core: ClientCore, outgoing: OutgoingFrame, reader: Reader | None) -> None:
        """Give a frame to the transport. Every frame is reported back to its core once, even if sending it fails."""
        number, member, frame = outgoing
        if self.login is not None:
            frame, done = self._with_login(self.login, core, outgoing)
        else:

            def done(reply: bytes | Exception) -> None:
                self._replied(core, number, reply)

        try:
            if core is self.watch_core:
                self.transport.poll(member, frame, done)
            elif reader is None or core is self.lease_core or core is self.monitor_core:
                self.transport.send(member, frame, done)
            else:
                lane = self.transport.send_alone(member, frame, done, reader)
                if isinstance(reader, OutcomeWaiter) and lane is not None:
                    reader.lanes.append(lane)
        except Exception as error:
            self._replied(core, number, error)

    def _with_login(
        self, login: UserLogin, core: ClientCore, outgoing: OutgoingFrame, again: bool = True
    ) -> tuple[bytes, Callable[[bytes | Exception], None]]:
        """A frame with the user's token, and what takes in its reply: if the token is refused, the frame is sent once
        more with another one."""
        number, member, frame = outgoing
        used = login.token

        def send_again() -> None:
            wrapped, taken = self._with_login(login, core, outgoing, again=False)
            send = self.transport.poll if core is self.watch_core else self.transport.send
            try:
                send(member, wrapped, taken)
            except Exception as error:
                self._replied(core, number, error)

        def done(reply: bytes | Exception) -> None:
            if again and isinstance(reply, bytes) and login.is_refusal(reply):
                login.refresh(
                    used,
                    send_again,
                    lambda error: self._replied(core, number, reply if isinstance(error, AuthFailed) else error),
                )
            else:
                self._replied(core, number, reply)

        return login.wrap(frame), done

    def _replied(self, core: ClientCore, frame_number: int, reply: bytes | Exception) -> None:
        """Take in a reply, or the news that there is none, and send what results. On any thread, holding no lock.

        A revision that a write or a read has seen is passed on to the watches, so that they notice a member that lags.
        """
        now = clock()
        problem = f"{type(reply).__name__}: {str(reply).partition(chr(10))[0]}" if isinstance(reply, Exception) else ""
        listeners: list[Listener] = []
        try:
            with finalizer_guard.gc_deferred, self._lock:
                if isinstance(reply, Exception):
                    core.on_failure(frame_number, now, problem)
                else:
                    core.on_reply(frame_number, reply, now)
                    if not core.failing:
                        self._lookup.unanswered = 0
                if core is self._dispatch_core:
                    self.watch_core.learn_revision(self._dispatch_core.revision, now)
                out = self._outgoing(now)
                self._set_timer(self._cores if out else (core, self.watch_core))
                loop = self._reading_loop.loop(self._dispatch_core.pending)
                listeners, self._listeners_to_flush = self._listeners_to_flush, listeners
            if core is self.watch_core:  # its events are on their way to the consumers before the next poll leaves
                for listener in listeners:
                    listener.flush()
                self._send_all(out, [], loop)
            else:  # the next batch leaves before the threads are woken that would compete with it for the interpreter
                self._send_all(out, listeners, loop)
            self._to_wake.wake()
        except BaseException:
            self._recover_interrupted(listeners)
            raise

    # -- for the timer thread -----------------------------------------------------------------------------------------

    def closes_at(self, now: float) -> float:
        """See ``TimedHub``: when the hub closes if it stays unused; infinity while it is in use."""
        if not self._unused:
            return math.inf
        self._unused = False  # before asking: the last handle may be dropped once more meanwhile
        closes_at = self._keep_until(self, now)
        self._unused |= closes_at < math.inf
        return closes_at

    def take_in_arrived(self) -> None:
        """See ``TimedHub``."""
        self.transport.take_back(if_overdue=True)

    def tell_time(self, now: float) -> float:
        """See ``TimedHub``."""
        for core in self._cores:
            core.on_time(now)
        listeners, self._listeners_to_flush = self._listeners_to_flush, []
        self._due = self._outgoing(now), listeners
        return self._lookup.start(now) if self._wants_members() else math.inf

    def send_due(self) -> None:
        """See ``TimedHub``."""
        (out, listeners), self._due = self._due, ([], [])
        self._send_all(out, listeners)
        self._to_wake.wake()
