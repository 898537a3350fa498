"""A counter that many processes add to.

::

    counter = client.counter("rows")
    counter.add(250)            # -> the value after this addition
    counter.value()

Each ``add`` counts exactly once: a request that is retried on its way is not added again, and if the outcome of a call
is unknown, its error says so (``applied`` is ``None``). In a task that Ray may run again, pass the same ``request_id``
each time; it is remembered for the cluster's ``request_ttl``. The value is a Python integer of up to 8,192 bits. No two
additions return the same value, unless ``n`` is 0. A counter has no lease and outlives all processes.

An addition compares the value that it has seen and puts the sum. If others add at the same time, it tries again after a
short and growing pause. So a counter is for hundreds of additions a second, not for thousands.
"""

from __future__ import annotations

from random import SystemRandom

from ...errors import InvalidArgument, Unavailable
from ...limits import COUNTER_BITS, RECIPE_MAX_PAUSE_S, RECIPE_PAUSE_S
from .. import arguments as check
from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from ..client.results import KeyValue
from ..client.txn_parts import Compare, Op
from ..deadline import time_left
from .sync_async import (
    AnyHandle,
    TimeLimit,
    Unpicklable,
    bounded,
    folder,
    number_in,
    pause,
    recipe_request_id,
    resolved,
    run_sync,
)

_rng = SystemRandom()


def _text(value: int) -> bytes:
    if value.bit_length() > COUNTER_BITS:
        raise InvalidArgument(f"a counter holds whole numbers of at most {COUNTER_BITS} bits")
    return b"%d" % value


class _Counter:
    def __init__(self, handle: AnyHandle, name: str | bytes) -> None:
        self.name = name
        self._handle = handle
        self.space: AnyHandle = handle.reserved("counter")
        self._key = folder(handle, name)[:-1]
        self._seen: KeyValue | None = None

    @bounded
    async def add(self, n: object, request_id: str | bytes | None) -> int:
        """Add by compare-and-put, starting from the value that this object saw last; the value after this addition.

        With a ``request_id``, the put is followed by a get in the same transaction. If an earlier run of the task has
        added already, the cluster returns that run's answer, and the get in it tells the value that it returned.
        """
        if isinstance(n, bool) or not isinstance(n, int):
            raise InvalidArgument(f"a counter adds whole numbers, not {check.shown(n)}")
        key = self._key
        # ``held=1``: the name is remembered only if the comparison held; an attempt that came too late may be repeated.
        name = recipe_request_id(self._handle, request_id, b"counter", key, _text(n), held=1)
        deadline = TimeLimit(time_left())
        wait = RECIPE_PAUSE_S / 10
        there = self._seen
        while True:
            seen = 0 if there is None else there.mod_revision
            value = (0 if there is None else number_in(there.raw, f"counter {self.name!r}")) + n
            text = _text(value)
            added = [Op.put(key, text)] if name is None else [Op.put(key, text), Op.get(key)]
            result = await resolved(
                self.space.txn([Compare.mod_revision(key) == seen], added, [Op.get(key)], request_id=name)
            )
            if result.succeeded and name is None:
                self._seen = KeyValue(key, text, 0, result.revision, 0)
                return value
            now = result.responses[-1]
            self._seen = there = now if isinstance(now, KeyValue) else None
            if result.succeeded and there is not None:
                return number_in(there.raw, f"counter {self.name!r}")
            if not deadline.left:
                raise Unavailable(f"too many additions to counter {self.name!r} at once: none of this call's succeeded")
            await pause(self.space, _rng.uniform(0, wait))
            wait = min(RECIPE_MAX_PAUSE_S, 2 * wait)

    @bounded
    async def value(self) -> int:
        there = await resolved(self.space.get(self._key))
        return 0 if there is None else number_in(there.raw, f"counter {self.name!r}")


class Counter(Unpicklable):
    """A counter that many processes add to; made by ``client.counter``.

    ::

        counter = client.counter("rows")
        counter.add(250)            # the value after this addition
    """

    def __init__(self, client: KeyValueClient, name: str | bytes) -> None:
        self._counter = _Counter(client, name)

    def add(self, n: int, *, request_id: str | bytes | None = None) -> int:
        """Add a whole number, exactly once.

        Args:
            n: the number, which may be negative.
            request_id: a name for this call, for tasks that Ray may run again: calls with the same name add once, and
                return the same value, within the cluster's ``request_ttl``.

        Returns:
            The value after this addition.

        Raises:
            Unavailable, RequestTimeout: the cluster cannot be reached, or too many add at once; ``applied`` says
                whether it was added.
        """
        return run_sync(self._counter.add(n, request_id))

    def value(self) -> int:
        """The present value; 0 if nothing was ever added."""
        return run_sync(self._counter.value())


class AsyncCounter(Unpicklable):
    """As ``Counter``, for asyncio."""

    def __init__(self, client: AsyncKeyValueClient, name: str | bytes) -> None:
        self._counter = _Counter(client, name)

    async def add(self, n: int, *, request_id: str | bytes | None = None) -> int:
        """See ``Counter.add``."""
        return await self._counter.add(n, request_id)

    async def value(self) -> int:
        """See ``Counter.value``."""
        return await self._counter.value()
