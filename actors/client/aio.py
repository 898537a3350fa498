"""The client handle for asyncio: ``await kv.aio.put("key", "value")``, with the arguments and results of ``Client``.

How requests reach the hub and outcomes the coroutines is in :mod:`loop_bridge`. To cancel a coroutine is to give its
call up: as at a timeout, a write may or may not take effect.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import KeeperError, RequestTimeout, Unavailable
from .. import arguments as check
from ..arguments import Key
from .aio_timeout import on_thread, within
from .base import Handle
from .bindings import Binding, binding_of, settled
from .hub import Hub, clock
from .leases import (
    AsyncLease,
    LeaseInfo,
    grant_steps,
    lease_info_steps,
    lease_owner_steps,
    leased_txn_steps,
    list_lease_steps,
)
from .loop_bridge import bridge_to
from .results import DeleteResult, End, KeyValue, PutResult, RangeResult, TxnResult
from .txn_parts import Condition, Op
from .view import Steps
from .watch import AsyncWatch, watch_spec

if TYPE_CHECKING:
    from .cached import AsyncCached

T = TypeVar("T")


C = TypeVar("C", bound="AsyncKeyValueClient")


class AsyncKeyValueClient(Handle):
    """A handle whose calls are coroutines; made by ``Client.aio``.

    Arguments, results and errors are those of the call of the same name of ``Client``.
    """

    _opening: concurrent.futures.Future[Hub] | None = None
    """The attempt to find the hub that is in progress; the calls of all coroutines share it."""

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
        """Set a key. Arguments, result and errors: see ``Client.put``."""
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
        """Read one key. Arguments, result and errors: see ``Client.get``."""
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
        """Read a range of keys. Arguments, result and errors: see ``Client.range``."""
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
        """Delete a key, a range or a prefix. Arguments, result and errors: see ``Client.delete``."""
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
        """Run a transaction. Arguments, result and errors: see ``Client.txn``."""
        return await self._run(self._view.txn(compare, success, failure, request_id), timeout)

    async def compact(self, revision: int, *, timeout: float | None = None) -> None:
        """Forget the history below a revision. Arguments and errors: see ``Client.compact``."""
        return await self._run(self._view.compact(revision), timeout)

    async def revision(self, *, timeout: float | None = None) -> int:
        """The current revision of the store: see ``Client.revision``."""
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
        """Watch a key, a range or a prefix: ``async for event in await kv.aio.watch(prefix="jobs/")``.

        Arguments and errors: see ``Client.watch``. The watch belongs to the running event loop.
        """
        self._check_open()
        deadline = clock() + self._seconds(timeout)
        asked = watch_spec(self._view, key, end, prefix, start_revision, prev, only)
        await self._hub(deadline - clock())
        assert self._share is not None
        watch = AsyncWatch(self._share, self._view, asked)
        self._watches.add(watch)
        await watch.begin(deadline - clock())
        return watch

    async def cached(self, prefix: Key, *, max_bytes: int | None = None, timeout: float | None = None) -> AsyncCached:
        """Make a read-only copy of a prefix in this process. Arguments and errors: see ``Client.cached``."""
        from .cached import open_async_copy

        return await open_async_copy(self, prefix, max_bytes, self._seconds(timeout))

    async def lease(
        self, ttl: float, *, keep_alive: bool = True, bound_to: Any = None, timeout: float | None = None
    ) -> AsyncLease:
        """Make a lease: ``async with await kv.aio.lease(10) as lease``. Arguments and errors: see ``Client.lease``."""
        keep = check.flag("keep_alive", keep_alive)
        owned, life = await self._settled(binding_of(bound_to, keep), timeout)
        steps = grant_steps(self._view, ttl, clock() + self._seconds(timeout) / 2, bool(owned))
        granted = await self._run(steps, timeout)
        return AsyncLease(self._derive(self._view), await self._hub(0), granted, keep, life)

    async def leased_txn(
        self, ttl: float, make: Callable[[int], Op], *, bound_to: Any = None, timeout: float | None = None
    ) -> tuple[AsyncLease | None, TxnResult]:
        """Make a lease and run a transaction that uses it, in one write: see ``Client.leased_txn``."""
        owned, life = await self._settled(binding_of(bound_to), timeout)
        granted, result = await self._run(leased_txn_steps(self._view, ttl, make, bool(owned)), timeout)
        if granted is None:
            return None, result
        return AsyncLease(self._derive(self._view), await self._hub(0), granted, True, life), result

    async def _settled(self, binding: Binding, timeout: float | None) -> Binding:
        """``settled``, on a thread if Ray is to be asked."""
        if binding.owned is not None:
            return settled(binding, 0.0)
        seconds = self._seconds(timeout)
        asking = asyncio.wrap_future(on_thread("raykeeper-binds", settled, binding, seconds))
        if not await within(seconds, asking):
            raise Unavailable("Ray did not say in time whether this actor can be restarted", applied=False)
        return asking.result()

    async def leases(self, *, timeout: float | None = None) -> list[LeaseInfo]:
        """All leases of the cluster: see ``Client.leases``."""
        return await self._run(list_lease_steps(self._view), timeout)

    async def time_to_live(self, lease: Any, *, keys: bool = False, timeout: float | None = None) -> LeaseInfo:
        """The TTL of a lease, and the seconds that it has left: see ``Client.time_to_live``."""
        return await self._run(lease_info_steps(self._view, lease, keys), timeout)

    async def _lease_infos(self, leases: Sequence[int]) -> dict[int, LeaseInfo]:
        """Those of these leases that exist, with their owners, by id."""
        return await self._run(lease_owner_steps(self._view, leases), None)

    async def close(self) -> None:
        """Close this handle: see ``Client.close``."""
        self._release()

    async def __aenter__(self: C) -> C:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()

    async def _run(self, steps: Steps[T], timeout: float | None) -> T:
        """Run the steps of a call, awaiting each outcome, within one timeout for all of them."""
        self._check_open()
        left = self._seconds(timeout)
        deadline = clock() + left
        try:
            request = next(steps)
            hub = await self._hub(left)
            left = deadline - clock()
            bridge = bridge_to(hub)
            while True:
                outcome = await bridge.call(request, left)
                request = steps.throw(outcome) if isinstance(outcome, KeeperError) else steps.send(outcome)
                left = deadline - clock()
        except StopIteration as end:
            result: T = end.value
            return result

    async def _hub(self, timeout: float) -> Hub:
        """This process's hub, opened if need be, on a thread: that may block.

        Coroutines that need it at the same time share one attempt. Each waits within its own timeout; if an attempt
        fails that another coroutine started, with less time, the others start one of their own.
        """
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
                if own or clock() >= deadline:
                    raise
        return hub
