"""A latch: opens once it was counted down a number of times, and stays open.

::

    latch = client.latch("shards-loaded", count=8)
    latch.count_down()          # eight times, by any process
    latch.wait()                # in any process: until it was counted down eight times

Each ``count_down`` counts exactly once, whatever becomes of the request on its way. In a task that Ray may run again,
pass the same ``request_id`` each time.

- *A process dies after counting down*: it has counted.
- *A process dies before counting down*: nothing counts for it, so give ``wait`` a timeout, or have the work done again.
- *The cluster cannot be reached*: a waiter goes on waiting; ``count_down`` raises, and ``error.applied`` says what is
  known.
- *History is compacted*: a waiter reads the present.

A latch has no lease: it outlives all processes, until it is ``reset``. A waiter costs one watch, of a key that is
written once, when the latch opens.
"""

from __future__ import annotations

import functools

from ...errors import CompactedError, InvalidArgument, RequestTimeout, Unavailable
from .. import arguments as check
from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from ..client.results import KeyValue, RangeResult, TxnResult
from ..client.txn_parts import Compare, Op
from .sync_async import (
    AnyHandle,
    TimeLimit,
    Unpicklable,
    bounded,
    cancel_watch,
    folder,
    next_event,
    open_watch,
    recipe_request_id,
    resolved,
    retry_while_unreachable,
    run_sync,
)


class _Latch:
    """The logic. The count is the ``version`` of a key: each put adds one, without reading it before."""

    def __init__(self, handle: AnyHandle, name: str | bytes, count: int) -> None:
        self.name = name
        self.count = check.whole_number("count", count, 1)
        self._handle = handle
        self.space: AnyHandle = handle.reserved("latch")
        self._text = b"%d" % self.count
        base = folder(handle, name)
        self._counted, self._open = base + b"counted", base + b"open"

    @bounded
    async def count_down(self, request_id: str | bytes | None) -> int:
        """Count one down; how many are left.

        One transaction covers all cases, so that each count is one write. The key's value is the latch's count, so a
        latch that is used with another count is refused. The put that makes the version reach the count also writes the
        key that waiters watch, in the same revision.
        """
        key, text = self._counted, self._text
        count = Op.put(key, text)
        last = Op.put(self._open, b"")
        ours = Compare.value(key) == text
        first = Op.txn([Compare.version(key) == 0], [count, *([last] if self.count == 1 else [])])
        result = await resolved(
            self.space.txn(
                [ours, Compare.version(key) == self.count - 1],
                [count, last],
                [Op.txn([ours], [count, Op.get(key)], [first, Op.get(key)])],
                request_id=recipe_request_id(self._handle, request_id, b"latch", key, text),
            )
        )
        if result.succeeded:
            return 0
        inner = result.responses[0]
        assert isinstance(inner, TxnResult)
        there = inner.responses[1]
        assert isinstance(there, KeyValue)
        self._check(there)
        return max(0, self.count - there.version)

    @bounded
    async def left(self) -> int:
        """How many are left."""
        there = await resolved(self.space.get(self._counted))
        if there is None:
            return self.count
        self._check(there)
        return max(0, self.count - there.version)

    def _check(self, there: KeyValue) -> None:
        if there.raw != self._text:
            raise InvalidArgument(f"latch {self.name!r} counts to {there.text}, not to {self.count}")

    async def wait(self, timeout: float | None) -> bool:
        """Wait until it is open; ``False`` when the time is over."""
        deadline = TimeLimit(timeout)
        seen = False
        try:
            with deadline.covering(self.space):
                while True:
                    now = await self._now(deadline)
                    seen = True
                    if now.items:
                        return True
                    if not deadline.left:
                        return False
                    watch = await open_watch(self.space, self._open, start_revision=now.revision + 1, only="put")
                    try:
                        return await next_event(watch, deadline.left) is not None
                    except CompactedError:
                        pass
                    finally:
                        await cancel_watch(watch)
        except (RequestTimeout, Unavailable) as error:
            if deadline.caused(error, answered=seen):
                return False
            raise

    async def _now(self, deadline: TimeLimit) -> RangeResult:
        """Read the key that is written when it opens; repeatedly while the cluster cannot be reached."""
        look = functools.partial(self.space.range, self._open, keys_only=True)
        return await retry_while_unreachable(self.space, lambda: resolved(look()), lambda: bool(deadline.left))

    @bounded
    async def reset(self) -> None:
        """Close it, with nothing counted."""
        await resolved(self.space.txn([], [Op.delete(self._counted), Op.delete(self._open)]))


class Latch(Unpicklable):
    """A latch, which opens once it was counted down ``count`` times; made by ``client.latch``.

    ::

        latch = client.latch("shards-loaded", count=8)
        latch.count_down()          # eight times, by any process
        latch.wait()
    """

    def __init__(self, client: KeyValueClient, name: str | bytes, count: int) -> None:
        self._latch = _Latch(client, name, count)

    def count_down(self, *, request_id: str | bytes | None = None) -> int:
        """Count one down, exactly once.

        Args:
            request_id: a name for this call, for tasks that Ray may run again: calls with the same name count once,
                within the cluster's ``request_ttl``.

        Returns:
            How many are left.

        Raises:
            InvalidArgument: this latch is in use with another count; nothing was counted.
            Unavailable, RequestTimeout: the cluster cannot be reached; ``applied`` says whether it counted.
        """
        return run_sync(self._latch.count_down(request_id))

    def left(self) -> int:
        """How many are left to count down; 0 if it is open."""
        return run_sync(self._latch.left())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is open.

        Args:
            timeout: seconds; ``None`` waits forever, 0 does not wait.

        Returns:
            Whether it is open.

        Raises:
            Unavailable, RequestTimeout: the cluster cannot be reached.
        """
        return run_sync(self._latch.wait(timeout))

    def reset(self) -> None:
        """Close it again, with nothing counted. A waiter that has not noticed yet that it was open goes on waiting."""
        run_sync(self._latch.reset())


class AsyncLatch(Unpicklable):
    """As ``Latch``, for asyncio."""

    def __init__(self, client: AsyncKeyValueClient, name: str | bytes, count: int) -> None:
        self._latch = _Latch(client, name, count)

    async def count_down(self, *, request_id: str | bytes | None = None) -> int:
        """See ``Latch.count_down``."""
        return await self._latch.count_down(request_id)

    async def left(self) -> int:
        """See ``Latch.left``."""
        return await self._latch.left()

    async def wait(self, timeout: float | None = None) -> bool:
        """See ``Latch.wait``."""
        return await self._latch.wait(timeout)

    async def reset(self) -> None:
        """See ``Latch.reset``."""
        await self._latch.reset()
