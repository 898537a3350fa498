"""One hub per process and cluster: its cores under a lock, a transport, and one timer thread.

Callers submit under the lock and send what the core hands out themselves, so a lone request changes no thread on its
way out; replies are taken in on the transport's thread. The timer thread looks at the clock for all of them, and sleeps
for good while nothing is open. Locks here guard the hand-over only; what is decided is decided in :mod:`core`, for
watches in :mod:`watching`, and for leases in :mod:`leasing`.

No code of the user's runs under the lock or on these threads (:mod:`undisturbed`): so whoever holds the lock comes to
an end with it, and calls do not wait for anything but the cluster.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Set
from typing import Protocol, TypeVar

from ...errors import ForkedProcess, KeeperError, ReentrantCall
from ...limits import CLIENT_MAX_REFRESH_INTERVAL, CLIENT_REFRESH_INTERVAL, LITTER_PAUSE, Settings
from ...store.commands import Answer, Operation
from ..protocol import Leases
from . import undisturbed
from .core import HubCore
from .errands import collect_young, errands
from .frames import LeaseQuestion, Outgoing, check_request
from .leasing import LeaseCore
from .litter import litter
from .requests import Ask
from .subscription import Subscription
from .watching import WatchCore

_log = logging.getLogger(__name__)

Outcome = Answer | Leases | KeeperError
Core = HubCore | WatchCore | LeaseCore
Post = tuple[Core, Outgoing]
"""A frame to be sent, and who wants the answer."""
T = TypeVar("T")


def _nobody(outcome: Outcome) -> None:
    pass


def _now_including_suspend() -> float:
    """Monotonic seconds that run on while the machine sleeps, as the members' own clocks do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_process = os.getpid()


def this_process() -> int:
    """The id of this process, without asking the system: every call of a handle looks at it."""
    return _process


def _in_child() -> None:
    global _process
    _process = os.getpid()


os.register_at_fork(after_in_child=_in_child)

clock: Callable[[], float] = _now_including_suspend if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic


class Transport(Protocol):
    """How frames travel to members and replies come back. ``send`` and ``poll`` never block, and never call Ray on the
    thread that calls them: that may be the one on which Ray tells of results."""

    def send(self, member: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        """Send a frame; ``done`` is called once, on any thread, with the reply or with why there will be none."""
        ...

    def poll(self, member: int, frame: bytes, done: Callable[[bytes | Exception], None]) -> None:
        """Send a poll of watches, which may wait long and must hold up nothing else; otherwise as ``send``."""
        ...

    @property
    def node(self) -> str:
        """Id of the Ray node that this process is on; empty if there is none."""
        ...

    def members(self) -> dict[int, str]:
        """Names of the members that can be reached, by id, as last looked up."""
        ...

    def refresh(self) -> None:
        """Look the members up again. May block."""
        ...

    def valid(self) -> bool:
        """Whether the process is still attached to the Ray in which this transport was made."""
        ...

    def close(self) -> None:
        """Send what has been handed in, and let go of everything; may be called again. Never blocks."""
        ...


class Listener(Protocol):
    """Somebody who takes many outcomes at once: told to ``flush`` when a reply has been taken in whole."""

    def flush(self) -> None:
        """All outcomes that come at once have come."""
        ...


class _Waiter:
    """A thread that waits for one outcome."""

    __slots__ = ("_gate", "outcome")

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self.outcome: Outcome | None = None

    def done(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._gate.release()

    def wait(self) -> Outcome:
        with self._gate:
            assert self.outcome is not None
            return self.outcome


class Hub:
    """See the module.

    Args:
        name: of the cluster, for messages.
        cluster: its id.
        leader: who leads, if known.
        settings: limits and timings of the cluster, as they were when the hub was opened.
        near: members on this process's own node; may grow.
        stays: until when the hub stays that was let go, 0 if it goes at once, for ever if it is in use again.
    """

    def __init__(
        self,
        name: str,
        cluster: int,
        transport: Transport,
        *,
        leader: int = 0,
        settings: Settings | None = None,
        near: Set[int] = frozenset(),
        rng: random.Random | None = None,
        stays: Callable[[Hub, float], float] = lambda hub, now: 0.0,
    ) -> None:
        self.name = name
        self.cluster = cluster
        settings = settings or Settings()
        self.limits = settings.limits
        self.process = this_process()
        self.listeners: weakref.WeakKeyDictionary[object, Listener] = weakref.WeakKeyDictionary()
        """One for each event loop that asks this hub (see ``aio``)."""
        self.transport = transport
        self.idle_since = -math.inf
        """When it was let go last."""
        self._stays = stays
        self._let_go = False
        self._rng = rng = rng or random.Random(os.urandom(16))
        members = tuple(transport.members())
        self._core = HubCore(cluster, members, self.limits, settings.timings, rng, leader=leader, near=near)
        self.watching = WatchCore(cluster, members, self.limits, rng, leader=leader, near=near)
        """All watches of the process; only inside :meth:`do`."""
        self.leasing = LeaseCore(cluster, members, self.limits, rng, leader=leader)
        """All leases of the process; only inside :meth:`do`."""
        self._cores: tuple[Core, ...] = (self._core, self.watching, self.leasing)
        self._soon: deque[Callable[[float], object]] = deque()
        self._lock = threading.RLock()  # nobody takes it twice: it knows who holds it
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._timer_at = math.inf
        self._told: list[Listener] = []
        self._closing = False
        self._refreshing = False
        self._refresh_at = -math.inf
        self._refreshes = 0
        """In a row, without an answer from anybody since."""
        threading.Thread(target=self._keep_time, name=f"raykeeper-hub-{name}", daemon=True).start()

    # -- calls --------------------------------------------------------------------------------------------------------

    def call(self, ask: Ask, timeout: float) -> Outcome:
        """Ask the cluster and wait. An interrupt (Ctrl-C) gives the call up."""
        if undisturbed.is_ours():
            return ReentrantCall()
        try:
            size = check_request(ask.request, self.limits)
        except KeeperError as error:
            return error
        waiter = _Waiter()
        number = 0
        try:
            number = self.submit(ask, size, timeout, waiter.done)
            return waiter.wait()
        except ReentrantCall as error:
            return error
        except BaseException:
            undisturbed.recover()
            if number:
                self.give_up(number)
            raise

    def submit(self, ask: Ask, size: int, timeout: float, done: Callable[[Outcome], None]) -> int:
        """Hand a checked request in; ``done`` gets its outcome, with the hub's lock held, so it must not call back.

        Raises:
            ReentrantCall: this thread is at work on the hub already, and was interrupted.
        """
        now = clock()
        if isinstance(ask.request, LeaseQuestion):
            return self.submit_many([(ask, size, timeout, done)])[0]
        self._check_not_held()
        told: list[Listener] = []
        try:
            with undisturbed.here, self._lock:
                number = self._core.submit(
                    ask.request,
                    now=now,
                    timeout=timeout,
                    serializable=ask.serializable,
                    request_id=ask.request_id,
                    done=done,
                    size=size,
                )
                out: list[Post] = [(self._core, each) for each in self._core.outgoing(now)]
                if out or now + timeout < self._timer_at or self._core.wants_members:
                    self._set_timer()
                told, self._told = self._told, told
            self._post(out, told)
        except BaseException:
            self._give_up_who(done)
            self._interrupted(told)
            raise
        return number

    def submit_many(self, asks: list[tuple[Ask, int, float, Callable[[Outcome], None]]]) -> list[int]:
        """As :meth:`submit`, for many at once: they travel together."""

        def hand_in(now: float) -> list[int]:
            submit = self._core.submit
            return [
                self.leasing.ask(ask.request, now=now, timeout=timeout, done=done)
                if isinstance(ask.request, LeaseQuestion)
                else submit(
                    ask.request,
                    now=now,
                    timeout=timeout,
                    serializable=ask.serializable,
                    request_id=ask.request_id,
                    done=done,
                    size=size,
                )
                for ask, size, timeout, done in asks
            ]

        try:
            return self.do(hand_in)
        except BaseException:
            for _, _, _, done in asks:
                self._give_up_who(done)
            raise

    def _give_up_who(self, done: Callable[[Outcome], None]) -> None:
        """The caller was interrupted before he knew the number of his call."""

        def give_up(now: float) -> None:
            self._core.give_up_who(done, now)
            self.leasing.give_up_who(done)

        self.soon(give_up)

    def give_up(self, number: int) -> None:
        """The caller of a request waits no longer."""
        if number < 0:
            self.now_or_soon(lambda now: self.leasing.give_up(number))
        else:
            self.now_or_soon(lambda now: self._core.give_up(number, now))

    def do(self, act: Callable[[float], T]) -> T:
        """Do something with the cores, under the hub's lock and given the time, and then send what that brings up.

        Raises:
            ForkedProcess: this process is a child of the hub's own; the lock may be held by nobody for ever.
            ReentrantCall: this thread is at work on the hub already, and was interrupted.
        """
        self.check_process()
        self._check_not_held()
        now = clock()
        told: list[Listener] = []
        try:
            with undisturbed.here, self._lock:
                result = act(now)
                out = self._gather(now)
                self._set_timer()
                told, self._told = self._told, told
            self._post(out, told)
        except KeeperError:
            raise
        except BaseException:
            self._interrupted(told)
            raise
        return result

    def soon(self, act: Callable[[float], object]) -> None:
        """Do something with the cores soon, on the hub's own thread. Safe anywhere, in destructors too."""
        self._soon.append(act)
        self.wake()

    def submit_soon(self, request: Operation, size: int, timeout: float) -> None:
        """Hand a request in that nobody waits for, on the hub's own thread. Safe anywhere, in destructors too."""
        self.soon(lambda now: self._core.submit(request, now=now, timeout=timeout, done=_nobody, size=size))

    def interrupted(self) -> bool:
        """Whether this runs in the middle of the hub's own work, or on its thread: nothing can be waited for then."""
        return undisturbed.held_here(self._lock) or undisturbed.is_ours()

    def now_or_soon(self, act: Callable[[float], object]) -> None:
        """The same, but at once where that can be."""
        if undisturbed.held_here(self._lock):
            self.soon(act)
        else:
            self.do(act)

    def _check_not_held(self) -> None:
        if undisturbed.held_here(self._lock):
            raise ReentrantCall()

    def peek(self, look: Callable[[], T]) -> T:
        """Look at something of the cores, under the hub's lock. Raises as :meth:`do`."""
        self.check_process()
        self._check_not_held()
        with undisturbed.here, self._lock:
            return look()

    def check_process(self) -> None:
        """Refuse in a forked child, where nobody answers, and locks may be held by threads that are not there.

        Raises:
            ForkedProcess: this is one.
        """
        if self.process != _process:
            raise ForkedProcess()

    def drop(self, watch: Subscription) -> None:
        """Cancel a watch soon, on the hub's own thread. Safe anywhere, in destructors too."""
        self.soon(lambda now: self.watching.cancel(watch, now))

    def tell(self, listener: Listener) -> None:
        """Have a listener flushed once what is being taken in has been; for ``done`` callbacks, which hold the lock."""
        if listener not in self._told:
            self._told.append(listener)

    def let_go(self) -> None:
        """Nobody uses it any more: it closes, on its own thread, unless somebody does again before its time is over.
        Safe anywhere, in destructors too."""
        self.idle_since = clock()
        self._let_go = True
        self.wake()

    def wake(self) -> None:
        """Have the hub's own thread look at everything. Safe anywhere."""
        self._wakeups.put(None)

    def close(self) -> None:
        """End all calls, and tell the cluster that the session is over, without waiting for its answer."""
        self._closing = True

        def close(now: float) -> None:
            for core in self._cores:
                core.close(now)

        self.do(close)
        self._wakeups.put(None)
        self.transport.close()

    def _interrupted(self, told: list[Listener]) -> None:
        """A handler of a signal (Ctrl-C's, or one of the user's) has raised in the middle of this thread's work: what
        it leaves undone concerns others' calls too."""
        undisturbed.recover()
        self.soon(lambda now: self._told.extend(told))
        self._timer_at = -math.inf  # whoever set it last may not have woken the thread
        for core in self._cores:
            self.soon(core.resume)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _take_told(self) -> list[Listener]:
        told, self._told = self._told, []
        return told

    def _gather(self, now: float) -> list[Post]:
        """With the lock held: what is to be sent."""
        return [(core, each) for core in self._cores for each in core.outgoing(now)]

    def _next_wakeup(self) -> float:
        return min([math.inf if (at := core.next_wakeup()) is None else at for core in self._cores])

    def _set_timer(self) -> None:
        """With the lock held: wake the timer thread if it would sleep too long."""
        wakeup = self._next_wakeup()
        if wakeup < self._timer_at:
            self._timer_at = -math.inf  # one token is enough
            self._wakeups.put(None)
        if self._wants_members():
            self._start_refresh(clock())

    def _post(self, out: list[Post], told: list[Listener]) -> None:
        for core, frame in out:
            self._send(core, frame)
        for listener in told:
            listener.flush()
        while self._core.mishaps:
            with contextlib.suppress(IndexError):
                errands.log(_log, logging.ERROR, "the callback of a request failed", error=self._core.mishaps.pop())

    def _send(self, core: Core, outgoing: Outgoing) -> None:
        call, member, frame = outgoing

        def done(reply: bytes | Exception) -> None:
            self._replied(core, call, reply)

        try:
            if core is self.watching:
                self.transport.poll(member, frame, done)
            else:
                self.transport.send(member, frame, done)
        except Exception as error:
            self._replied(core, call, error)

    def _replied(self, core: Core, call: int, reply: bytes | Exception) -> None:
        now = clock()
        problem = f"{type(reply).__name__}: {str(reply).partition(chr(10))[0]}" if isinstance(reply, Exception) else ""
        with undisturbed.here, self._lock:
            if isinstance(reply, Exception):
                core.on_failure(call, now, problem)
            else:
                core.on_reply(call, reply, now)
                if not core.failing:
                    self._refreshes = 0
            if core is self._core:
                self.watching.learn(self._core.revision, now)
                self.leasing.learn_leader(self._core.leader)
                self.watching.learn_leader(self._core.leader)
            out = self._gather(now)
            self._set_timer()
            told = self._take_told()
        self._post(out, told)

    def _keep_time(self) -> None:
        thread = undisturbed.OurThread()
        try:
            self._keep_time_undisturbed(thread)
        finally:
            thread.over()

    def _keep_time_undisturbed(self, thread: undisturbed.OurThread) -> None:
        while not self._closing:
            now = clock()
            goes_at = self._goes_at(now)
            if goes_at == 0.0:
                break
            with self._lock:
                while self._soon:
                    self._soon.popleft()(now)
                for core in self._cores:
                    core.on_time(now)
                out = self._gather(now)
                wakeup = self._next_wakeup()
                if self._wants_members():
                    self._start_refresh(now)
                    wakeup = min(wakeup, max(self._refresh_at, now + CLIENT_REFRESH_INTERVAL))
                keeping = len(self.leasing) > 0
                if keeping:
                    wakeup = min(wakeup, now + LITTER_PAUSE)
                self._timer_at = wakeup = min(wakeup, goes_at)
                told = self._take_told()
            self._post(out, told)
            if undisturbed.held_off():
                errands.do(collect_young)
            thread.rest()
            if keeping:
                errands.do(lambda: litter.look(clock()))
            try:
                self._wakeups.get(timeout=None if wakeup == math.inf else max(0.001, wakeup - clock()))
                while True:
                    self._wakeups.get_nowait()
            except queue.Empty:
                pass
            thread.wake()
        self.close()

    def _goes_at(self, now: float) -> float:
        """When a hub that nobody uses goes, as far as is known now; 0 if it goes at once."""
        if not self._let_go:
            return math.inf
        self._let_go = False  # before looking: it may be let go again meanwhile
        goes_at = self._stays(self, now)
        self._let_go |= goes_at < math.inf
        return goes_at

    def _wants_members(self) -> bool:
        """Whether somebody waits for members that nobody knows."""
        return any(core.wants_members and core.pending for core in self._cores)

    def _start_refresh(self, now: float) -> None:
        """Look the members up, now and then, on a thread of its own: it may take long. The pauses grow while nobody
        answers and are drawn at random, so that the hubs of a thousand processes do not ask Ray all at once."""
        if self._refreshing or now < self._refresh_at:
            return
        self._refreshing = True
        longest = min(CLIENT_MAX_REFRESH_INTERVAL, CLIENT_REFRESH_INTERVAL * 2 ** min(self._refreshes, 10))
        self._refresh_at = now + self._rng.uniform(0, longest)
        self._refreshes += 1
        threading.Thread(target=self._refresh, name=f"raykeeper-members-{self.name}", daemon=True).start()

    def _refresh(self) -> None:
        try:
            self.transport.refresh()
        except Exception as error:
            _log.debug("looking up the members of %r failed: %s", self.name, error)
        with undisturbed.here, self._lock:
            self._refreshing = False
            for core in self._cores:
                core.set_members(tuple(self.transport.members()))
        self._wakeups.put(None)
