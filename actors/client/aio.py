"""The client handle for asyncio: ``await kv.aio.put("key", "value")``, with the arguments and results of ``Client``.

Requests that coroutines of one loop make in the same turn of it are handed to the hub together, and answers that come
together cost the loop one wake-up. Cancelling a coroutine gives its call up: that counts as a timeout, so a write may
or may not take effect.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import KeeperError, RequestTimeout
from ...limits import ASYNC_CHECK
from . import arguments as check
from .arguments import Key
from .base import Handle
from .coordination import AsyncCoordination
from .errands import errands
from .frames import check_request
from .hub import Hub, Outcome, clock
from .leases import AsyncLease, LeaseInfo, asking, granting, granting_in_txn, listing
from .operations import Condition, Op
from .requests import Ask, Steps
from .results import DeleteResult, End, KeyValue, PutResult, RangeResult, TxnResult
from .waiting import on_thread, within
from .watch import AsyncWatch, wanted

if TYPE_CHECKING:
    from .cached import AsyncCached

T = TypeVar("T")


class _Call:
    """One request of a coroutine."""

    __slots__ = ("_bridge", "future", "number", "outcome")

    def __init__(self, bridge: _Bridge, future: asyncio.Future[Outcome]) -> None:
        self._bridge = bridge
        self.future = future
        self.number = 0
        """The hub's number; 0 until it was handed in."""
        self.outcome: Outcome | None = None

    def done(self, outcome: Outcome) -> None:
        """On any thread, with the hub's lock held. The first outcome holds."""
        if self.outcome is None:
            self.outcome = outcome
        self._bridge.finished.append(self)
        self._bridge.hub.tell(self._bridge)


class _Bridge:
    """Between the threads of a hub and one event loop.

    What the loop calls here serves all its coroutines. If a handler of a signal raises in the middle of it, even before
    its first instruction, the loop reports that and runs on (or is run again by its owner, as Jupyter's is). So while
    calls are open, it is looked once a second whether something was left undone.
    """

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self.hub = hub
        self.finished: deque[_Call] = deque()
        self._loop = weakref.ref(loop)  # the hub knows its bridges by loop, and must not keep dead loops alive
        self._asked: list[tuple[_Call, Ask, int, float]] = []
        self._woken = False
        self._open = 0
        """Calls that wait."""
        self._check_at = 0.0
        """When it is looked next, on the loop's clock."""

    async def call(self, ask: Ask, timeout: float) -> Outcome:
        """Ask the cluster and wait."""
        try:
            size = check_request(ask.request, self.hub.limits)
        except KeeperError as error:
            return error
        loop = asyncio.get_running_loop()
        call = _Call(self, loop.create_future())
        if not self._asked:
            loop.call_soon(self._hand_in)
            if loop.time() >= self._check_at:
                self._check_soon(loop)
        self._asked.append((call, ask, size, timeout))
        self._open += 1
        try:
            return await call.future
        except asyncio.CancelledError:
            if call.number:
                self.hub.give_up(call.number)
            raise
        finally:
            self._open -= 1

    def _hand_in(self) -> None:
        """Hand in what this turn of the loop has asked, except what was cancelled since."""
        asked, self._asked = self._asked, []
        try:
            wanted = [each for each in asked if not each[0].future.done()]
            numbers = self.hub.submit_many([(ask, size, timeout, call.done) for call, ask, size, timeout in wanted])
            for (call, _, _, _), number in zip(wanted, numbers, strict=True):
                call.number = number
        except BaseException as error:
            for call, _, _, _ in asked:
                if not call.future.done():
                    call.future.set_result(_not_handed_in(error))
            raise

    def flush(self) -> None:
        """On any thread: answers have come."""
        if self._woken:
            return
        self._woken = True
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # the loop was closed, and all that waited in it is gone: with what it holds, elsewhere
            gone, self.finished = self.finished, deque()
            errands.do(gone.clear)

    def _deliver(self) -> None:
        self._woken = False
        while self.finished:
            call = self.finished[0]
            if not call.future.done() and call.outcome is not None:
                call.future.set_result(call.outcome)
            self.finished.popleft()

    def _check_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._check_at = loop.time() + ASYNC_CHECK
        loop.call_later(ASYNC_CHECK, self._check)

    def _check(self) -> None:
        if self._asked:
            self._hand_in()
        if self.finished:
            self._deliver()
        loop = self._loop()
        if self._open and loop is not None:
            self._check_soon(loop)


def _not_handed_in(error: BaseException) -> KeeperError:
    """What becomes of calls in whose handing in an exception came: some may be on their way."""
    if isinstance(error, KeeperError):
        return error
    return RequestTimeout(f"interrupted while it was handed in: {type(error).__name__}", applied=None)


def _bridge(hub: Hub) -> _Bridge:
    loop = asyncio.get_running_loop()
    bridge = hub.listeners.get(loop)
    if not isinstance(bridge, _Bridge):
        bridge = _Bridge(hub, loop)
        hub.listeners[loop] = bridge
    return bridge


class AsyncClient(AsyncCoordination, Handle):
    """A handle whose calls are coroutines. Arguments, results and errors are those of ``Client``'s calls."""

    _opening: concurrent.futures.Future[Hub] | None = None
    """The attempt under way to find the hub, which the calls of all coroutines share."""

    async def put(
        self,
        key: Key,
        value: Any,
        *,
        lease: Any = None,
        prev: bool = False,
        request_id: Key | None = None,
        timeout: float | None = None,
    ) -> PutResult:
        """Set a key: see ``Client.put``."""
        return await self._run(self._view.put(key, value, lease, prev, request_id), timeout)

    async def get(
        self,
        key: Key,
        *,
        revision: int | None = None,
        serializable: bool = False,
        at_least: int | None = None,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Read one key: see ``Client.get``."""
        return await self._run(self._view.get(key, revision, serializable, at_least), timeout)

    async def range(
        self,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        limit: int = 0,
        revision: int | None = None,
        sort: str | None = None,
        order: str = "ascend",
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> RangeResult:
        """Read a range or a prefix: see ``Client.range``."""
        steps = self._view.range(
            serializable,
            key=key,
            end=end,
            prefix=prefix,
            limit=limit,
            revision=revision,
            sort=sort,
            order=order,
            keys_only=keys_only,
            count_only=count_only,
        )
        return await self._run(steps, timeout)

    async def delete(
        self,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        prev: bool = False,
        request_id: Key | None = None,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete a key, a range or a prefix: see ``Client.delete``."""
        return await self._run(self._view.delete(key, end, prefix, prev, request_id), timeout)

    async def txn(
        self,
        compare: Sequence[Condition] = (),
        success: Sequence[Op] = (),
        failure: Sequence[Op] = (),
        *,
        request_id: Key | None = None,
        timeout: float | None = None,
    ) -> TxnResult:
        """Run a transaction: see ``Client.txn``."""
        return await self._run(self._view.txn(compare, success, failure, request_id), timeout)

    async def compact(self, revision: int, *, timeout: float | None = None) -> None:
        """Forget the history below a revision: see ``Client.compact``."""
        return await self._run(self._view.compact(revision), timeout)

    async def revision(self, *, timeout: float | None = None) -> int:
        """The current revision: see ``Client.revision``."""
        return await self._run(self._view.revision(), timeout)

    async def watch(
        self,
        key: Key | None = None,
        end: Key | End | None = None,
        *,
        prefix: Key | None = None,
        start_revision: int | None = None,
        prev: bool = False,
        only: str | None = None,
        timeout: float | None = None,
    ) -> AsyncWatch:
        """See every change of a key, a range or a prefix: see ``Client.watch``."""
        self._check_open()
        deadline = clock() + self._seconds(timeout)
        asked = wanted(self._view, key, end, prefix, start_revision, prev, only)
        await self._hub(deadline - clock())
        assert self._share is not None
        watch = AsyncWatch(self._share, self._view, asked)
        self._watches.add(watch)
        await watch.begin(deadline - clock())
        return watch

    async def cached(self, prefix: Key, *, max_bytes: int | None = None, timeout: float | None = None) -> AsyncCached:
        """A read-only copy of a prefix in this process: see ``Client.cached``."""
        from .cached import open_async_copy

        return await open_async_copy(self, prefix, max_bytes, self._seconds(timeout))

    async def lease(self, ttl: float, *, keep_alive: bool = True, timeout: float | None = None) -> AsyncLease:
        """Make a lease: see ``Client.lease``."""
        keep = check.flag("keep_alive", keep_alive)
        granted = await self._run(granting(self._view, ttl, clock() + self._seconds(timeout) / 2), timeout)
        return AsyncLease(self._derive(self._view), await self._hub(0), granted, keep)

    async def leased_txn(
        self, ttl: float, make: Callable[[int], Op], *, timeout: float | None = None
    ) -> tuple[AsyncLease | None, TxnResult]:
        """Make a lease and run a transaction that uses it, in one write: see ``Client.leased_txn``."""
        granted, result = await self._run(granting_in_txn(self._view, ttl, make), timeout)
        if granted is None:
            return None, result
        return AsyncLease(self._derive(self._view), await self._hub(0), granted, True), result

    async def leases(self, *, timeout: float | None = None) -> list[LeaseInfo]:
        """All leases of the cluster: see ``Client.leases``."""
        return await self._run(listing(self._view), timeout)

    async def time_to_live(self, lease: Any, *, keys: bool = False, timeout: float | None = None) -> LeaseInfo:
        """How a lease stands: see ``Client.time_to_live``."""
        return await self._run(asking(self._view, lease, keys), timeout)

    async def close(self) -> None:
        """End this handle; see ``Client.close``."""
        self._release()

    async def __aenter__(self) -> AsyncClient:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()

    async def _run(self, steps: Steps[T], timeout: float | None) -> T:
        """Take the steps of a call, awaiting each answer, within one timeout for all of them."""
        self._check_open()
        left = self._seconds(timeout)
        deadline = clock() + left
        try:
            ask = next(steps)
            hub = await self._hub(left)
            left = deadline - clock()
            bridge = _bridge(hub)
            while True:
                outcome = await bridge.call(ask, left)
                ask = steps.throw(outcome) if isinstance(outcome, KeeperError) else steps.send(outcome)
                left = deadline - clock()
        except StopIteration as end:
            result: T = end.value
            return result

    async def _hub(self, timeout: float) -> Hub:
        deadline = clock() + timeout
        while (hub := self._known_hub()) is None:
            opening, left = self._opening, deadline - clock()
            own = opening is None or opening.done()
            if opening is None or own:
                self._opening = opening = on_thread("raykeeper-opens", self._open_hub, left)
            opened: asyncio.Future[Hub] = asyncio.wrap_future(opening)
            try:
                if not await within(left, opened):
                    raise RequestTimeout("the cluster was not found in time", applied=False)
            except KeeperError:
                if own or clock() >= deadline:  # else another call's time was over, not this one's
                    raise
        return hub
