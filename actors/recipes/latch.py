"""A latch: opens once it was counted down so many times, and stays open.

::

    latch = client.latch("shards-loaded", count=8)
    latch.count_down()          # eight times, by anybody
    latch.wait()                # anybody: until all eight have

Each ``count_down`` counts exactly once, whatever becomes of the request on its way; for a task that Ray may run again,
pass the same ``request_id`` to it. *Who counted down dies*: it has counted. *Who should have counted dies*: nobody
counts for it, so give ``wait`` a timeout or have another one do the work. *The cluster cannot be reached*: a waiter
waits on; ``count_down`` raises, and the error's ``applied`` says what is known. *History is compacted*: a waiter looks
at the present. A latch needs no lease and nobody's life, and stays until it is ``reset``; ``reset`` makes it a new one.

A waiter costs one watch, on a key that is written once, when the latch opens.
"""

from __future__ import annotations

import functools

from ...errors import CompactedError, InvalidArgument, RequestTimeout, Unavailable
from ..client import arguments as check
from ..client.aio import AsyncClient
from ..client.handle import Client
from ..client.operations import Compare, Op
from ..client.results import KeyValue, RangeResult, TxnResult
from .faces import Deadline, Handle, Unpicklable, bounded, drive, folder, news, once, patiently, settled, stop, watching


class _Latch:
    """The count is the ``version`` of a key: each put adds one, without a look at what is there."""

    def __init__(self, handle: Handle, name: str | bytes, count: int) -> None:
        self.name = name
        self.count = check.whole_number("count", count, 1)
        self._handle = handle
        self.space: Handle = handle.reserved("latch")
        self._text = b"%d" % self.count
        base = folder(handle, name)
        self._counted, self._open = base + b"counted", base + b"open"

    @bounded
    async def count_down(self, request_id: str | bytes | None) -> int:
        """Count; what is left to be counted."""
        key, text = self._counted, self._text
        count = Op.put(key, text)
        last = Op.put(self._open, b"")
        ours = Compare.value(key) == text
        # The one who counts last opens it, in the same revision.
        first = Op.txn([Compare.version(key) == 0], [count, *([last] if self.count == 1 else [])])
        result = await settled(
            self.space.txn(
                [ours, Compare.version(key) == self.count - 1],
                [count, last],
                [Op.txn([ours], [count, Op.get(key)], [first, Op.get(key)])],
                request_id=once(self._handle, request_id, b"latch", key, text),
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
        """What is left to be counted."""
        there = await settled(self.space.get(self._counted))
        if there is None:
            return self.count
        self._check(there)
        return max(0, self.count - there.version)

    def _check(self, there: KeyValue) -> None:
        if there.raw != self._text:
            raise InvalidArgument(f"latch {self.name!r} counts to {there.text}, not to {self.count}")

    async def wait(self, timeout: float | None) -> bool:
        """Wait until it is open."""
        deadline = Deadline(timeout)
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
                    watch = await watching(self.space, self._open, start_revision=now.revision + 1, only="put")
                    try:
                        return await news(watch, deadline.left) is not None
                    except CompactedError:
                        pass
                    finally:
                        await stop(watch)
        except (RequestTimeout, Unavailable) as error:
            if deadline.cut(error, began=seen):
                return False
            raise

    async def _now(self, deadline: Deadline) -> RangeResult:
        """Whether the key is there that opens it, asked again and again while the cluster cannot be reached."""
        look = functools.partial(self.space.range, self._open, keys_only=True)
        return await patiently(self.space, lambda: settled(look()), lambda: bool(deadline.left))

    @bounded
    async def reset(self) -> None:
        """Begin anew."""
        await settled(self.space.txn([], [Op.delete(self._counted), Op.delete(self._open)]))


class Latch(Unpicklable):
    """A latch; see the module."""

    def __init__(self, client: Client, name: str | bytes, count: int) -> None:
        self._latch = _Latch(client, name, count)

    def count_down(self, *, request_id: str | bytes | None = None) -> int:
        """Count one down.

        Args:
            request_id: the same again counts once, within the cluster's ``request_ttl``.

        Returns:
            How many are left.

        Raises:
            InvalidArgument: somebody uses this latch with another count; nothing was counted.
        """
        return drive(self._latch.count_down(request_id))

    def left(self) -> int:
        """How many are left to be counted; 0 if it is open."""
        return drive(self._latch.left())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is open; ``False`` if it is not in time. ``None`` is for ever."""
        return drive(self._latch.wait(timeout))

    def reset(self) -> None:
        """Close it again, with nothing counted. Whoever waited for the old one and has not heard yet waits on."""
        drive(self._latch.reset())


class AsyncLatch(Unpicklable):
    """A latch for asyncio; see the module and ``Latch``."""

    def __init__(self, client: AsyncClient, name: str | bytes, count: int) -> None:
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
