"""Between an event loop and the hub: how the calls of coroutines are submitted, and how their outcomes come back.

Requests that coroutines make during one iteration of their loop are submitted together, many in several parts, a lone
one at once, on the loop's own thread. While all calls that are open are those of one loop, it reads the replies itself,
too (:mod:`loop_reader`), so no call changes threads; otherwise another thread reads them, and wakes the loop once for
all that arrived together.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Callable

from ...errors import KeeperError, RequestTimeout
from ...limits import ASYNC_CHECK_S, LOOP_SUBMIT_DIVISOR, LOOP_SUBMIT_REQUESTS
from ...schema.frames import Read
from ...schema.operations import Operation
from ..background import background
from ..transport.loop_reader import LoopReader
from .core.in_flight import LeaseQuestion, request_size
from .hub import Hub, Outcome
from .view import Call


class AsyncCall:
    """One request of a coroutine, and the future that it awaits.

    Args:
        counted: whether the hub counts it among the loop's open calls.
    """

    __slots__ = ("_bridge", "_counted", "future", "number", "outcome")

    def __init__(self, bridge: LoopBridge, counted: bool, future: asyncio.Future[Outcome]) -> None:
        self._bridge = bridge
        self._counted = counted
        self.future = future
        self.number = 0
        """The hub's number of the call; 0 until it is submitted."""
        self.outcome: Outcome | None = None

    def set_outcome(self, outcome: Outcome) -> None:
        """Called on any thread, with the hub's lock held. The first outcome counts."""
        bridge = self._bridge
        if self.outcome is None:
            self.outcome = outcome
            if self._counted and bridge.reader is not None:
                bridge.reader.open_calls -= 1
        bridge.finished.append(self)
        bridge.hub.flush_later(bridge)

    @property
    def over(self) -> bool:
        """Whether nobody waits for an outcome any more."""
        return self.future.done()

    def deliver(self, outcome: Outcome) -> None:
        """Hand over the outcome, unless it is over. In the loop."""
        if not self.future.done():
            self.future.set_result(outcome)


class DirectCall(AsyncCall):
    """One request whose outcome a function gets, in the loop: it costs neither a task nor a future.

    Args:
        done: must not raise.
    """

    __slots__ = ("_done",)

    def __init__(self, bridge: LoopBridge, done: Callable[[Outcome], None]) -> None:
        self._bridge = bridge
        self._counted = True
        self._done: Callable[[Outcome], None] | None = done
        self.number = 0
        self.outcome = None

    @property
    def over(self) -> bool:
        """Whether ``done`` was called."""
        return self._done is None

    def deliver(self, outcome: Outcome) -> None:
        """Call ``done``, the first time. In the loop."""
        done, self._done = self._done, None
        if done is not None:
            self._bridge.direct_ended()
            done(outcome)

    def give_up(self) -> None:
        """The outcome is wanted at once, whatever it is: as at the timeout. What is not submitted yet never is."""
        if self._done is None:
            return
        if self.number:
            self._bridge.hub.give_up(self.number)
        else:
            self.deliver(RequestTimeout("given up before it was submitted", applied=False))


class LoopBridge:
    """Carries calls from one event loop to the hub, and their outcomes back to the loop.

    The loop's callbacks here serve all its coroutines. If a signal handler raises in one, even before its first
    instruction, the loop reports the exception and keeps running (or its owner runs it again, as Jupyter does). So a
    timer checks once a second, while calls are open, whether such a callback left anything undone.
    """

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self.hub = hub
        self.reader: LoopReader | None = None
        """Reads lanes in the loop; ``None`` if this loop cannot."""
        with contextlib.suppress(NotImplementedError, OSError):
            self.reader = LoopReader(loop, hub.recover_interrupted)
        self.finished: deque[AsyncCall] = deque()
        self.loop = weakref.ref(loop)  # the hub keeps its bridges by loop, and must not keep dead loops alive
        self._new: list[tuple[AsyncCall, Call, int, float]] = []
        """What is not submitted yet: its future, the call, its size in bytes, its timeout in seconds."""
        self._woken = False
        self._open = 0
        """Number of calls that wait for their outcome."""
        self._check_at = 0.0
        """When the next check is due, on the loop's clock."""

    async def call(self, call: Call, timeout: float) -> Outcome:
        """Send a request to the cluster and wait for its outcome."""
        try:
            size = request_size(call.request, self.hub.limits)
        except KeeperError as error:
            return error
        call = self._with_parent(call)
        loop = self.loop()
        assert loop is not None  # it runs this coroutine
        pending = AsyncCall(self, not isinstance(call.request, LeaseQuestion), loop.create_future())
        if loop.time() >= self._check_at and not self._new:
            self._schedule_check(loop)
        self._open += 1
        try:
            if self._open == 1 and not getattr(loop, "_ready", True):  # nothing else runs in this iteration
                pending.number = self.hub.submit(call, size, timeout, pending.set_outcome, self.reader)
            else:
                if not self._new:
                    loop.call_soon(self._submit_new)
                self._new.append((pending, call, size, timeout))
                if self._are_many():
                    self._submit_new()
            return await pending.future
        except KeeperError as error:
            return error
        except asyncio.CancelledError:
            if pending.number:
                self.hub.give_up(pending.number)
            raise
        finally:
            self._open -= 1

    def submit(
        self,
        request: Operation | Read,
        serializable: bool,
        timeout: float,
        done: Callable[[Outcome], None],
        soon: Callable[[Callable[[], None]], object],
    ) -> DirectCall:
        """Send a request to the cluster; ``done`` gets its outcome later, in the loop. It must not raise.

        Args:
            soon: has something done in the loop before long, and not before this returns. What is submitted until then
                travels together.

        Raises:
            KeeperError: the request is not valid; ``done`` is not called.
        """
        hub = self.hub
        size = request_size(request, hub.limits)
        pending = DirectCall(self, done)
        if not self._new:
            loop = self.loop()
            assert loop is not None  # it runs this
            if loop.time() >= self._check_at:
                self._schedule_check(loop)
            soon(self._submit_new)
        self._open += 1
        call = Call(request, serializable)
        self._new.append((pending, call if hub.tracer is None else self._with_parent(call), size, timeout))
        if self._are_many() and not (self.reader is not None and self.reader.reads_now()):  # so no outcome comes now
            self._submit_new()
        return pending

    def _with_parent(self, call: Call) -> Call:
        """The call with the span that it belongs to: it may be submitted by a callback, for many coroutines."""
        tracer = self.hub.tracer
        return call if tracer is None else call._replace(parent=tracer.parent())

    def direct_ended(self) -> None:
        """A call of :meth:`submit` is over."""
        self._open -= 1

    def new_call(self) -> AsyncCall:
        """For a write that goes on if the coroutine no longer waits: the coroutine submits it with this ``reader``."""
        return AsyncCall(self, True, asyncio.get_running_loop().create_future())

    def _are_many(self) -> bool:
        """Whether so many requests wait that the iteration of the loop is not waited for.

        The members work at the first while the loop makes the others, and at these while it takes in the first answers.
        Otherwise a thousand coroutines and their members would wait for each other in turn: that was 40,000 reads a
        second, where it is 65,000 now."""
        new = len(self._new)
        return new >= LOOP_SUBMIT_REQUESTS and new >= self._open // LOOP_SUBMIT_DIVISOR

    def _submit_new(self) -> None:
        """Submit the requests of this iteration of the loop, except those that were cancelled, or given up, since."""
        new, self._new = self._new, []
        if not new:
            return
        try:
            wanted = [each for each in new if not each[0].over]
            if not wanted:
                return
            if len(wanted) == 1:  # the hub has a shorter way for a lone one
                pending, call, size, timeout = wanted[0]
                pending.number = self.hub.submit(call, size, timeout, pending.set_outcome, self.reader)
                return
            numbers = self.hub.submit_many(
                [(call, size, timeout, pending.set_outcome) for pending, call, size, timeout in wanted], self.reader
            )
            for (pending, _, _, _), number in zip(wanted, numbers, strict=True):
                pending.number = number
        except BaseException as error:
            for pending, _, _, _ in new:
                pending.deliver(_submission_error(error))
            raise

    def flush(self) -> None:
        """Deliver the outcomes if the loop itself has read them, or have it deliver them. Called on any thread."""
        if self.reader is not None and self.reader.reads_now():
            self._deliver_here()
            return
        if self._woken:
            return
        self._woken = True
        loop = self.loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop is closed: free its calls on the background thread, with the user's destructors
            gone, self.finished = self.finished, deque()
            background.submit(gone.clear)

    def _deliver(self) -> None:
        self._woken = False
        self._deliver_here()

    def hub_closed(self) -> None:
        """Stop reading. Called on any thread."""
        if self.reader is not None:
            self.reader.close()

    def _deliver_here(self) -> None:
        while self.finished:
            pending = self.finished[0]
            if pending.outcome is not None:
                pending.deliver(pending.outcome)
            self.finished.popleft()

    def _schedule_check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._check_at = loop.time() + ASYNC_CHECK_S
        loop.call_later(ASYNC_CHECK_S, self._check)

    def _check(self) -> None:
        """Do what an interrupted callback left undone."""
        if self._new:
            self._submit_new()
        if self.finished:
            self._deliver()
        loop = self.loop()
        if self._open and loop is not None:
            self._schedule_check(loop)


def _submission_error(error: BaseException) -> KeeperError:
    """The outcome of calls whose submission was interrupted: some may have been sent."""
    if isinstance(error, KeeperError):
        return error
    return RequestTimeout(f"interrupted while it was submitted: {type(error).__name__}", applied=None)


def bridge_to(hub: Hub) -> LoopBridge:
    """The bridge between the running loop and a hub."""
    loop = asyncio.get_running_loop()
    last = hub.last_listener  # most processes have one loop, and looking it up costs more than this
    if isinstance(last, LoopBridge) and last.loop() is loop:
        return last
    bridge = hub.listeners.get(loop)
    if not isinstance(bridge, LoopBridge):
        bridge = LoopBridge(hub, loop)
        hub.listeners[loop] = bridge
    hub.last_listener = bridge
    return bridge
