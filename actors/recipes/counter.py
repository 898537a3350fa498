"""A counter that many processes add to.

::

    counter = client.counter("rows")
    counter.add(250)            # -> the value after this addition
    counter.value()

Each ``add`` counts exactly once: a request that is retried on its way is not added again, and if the outcome of a call
is unknown its error says so (``applied`` is ``None``). A task that Ray may run again passes the same ``request_id``
every time; it is remembered for an hour. The value is a Python integer of any size; no two additions return the same
value unless ``n`` is 0. A counter needs no lease and outlives everybody. *Many add at once*: each tries again until it
is its turn, after a short and growing pause, so a counter is for hundreds of additions a second, not for thousands.
"""

from __future__ import annotations

from random import SystemRandom

from ...errors import InvalidArgument, Unavailable
from ...limits import RECIPE_MAX_PAUSE, RECIPE_PAUSE, RECIPE_REMEMBER
from ..client import arguments as check
from ..client.aio import AsyncClient
from ..client.deadline import time_left
from ..client.handle import Client
from ..client.operations import Compare, Op
from ..client.results import KeyValue
from .faces import Deadline, Handle, Unpicklable, bounded, drive, folder, leased, pause, settled

_rng = SystemRandom()


class _Counter:
    def __init__(self, handle: Handle, name: str | bytes) -> None:
        self.name = name
        self.space: Handle = handle.reserved("counter")
        self._folder = folder(handle, name)
        self._key = self._folder[:-1]
        self._seen: KeyValue | None = None

    @bounded
    async def add(self, n: object, request_id: str | bytes | None) -> int:
        if isinstance(n, bool) or not isinstance(n, int):
            raise InvalidArgument(f"a counter adds whole numbers, not {n!r}")
        once = check.request_name(request_id)
        mark = None if once is None else self._folder + once
        deadline = Deadline(time_left())
        wait = RECIPE_PAUSE / 10
        there = self._seen
        lease = None if mark is None else await leased(self.space, RECIPE_REMEMBER, keep_alive=False)
        while True:
            seen = 0 if there is None else there.mod_revision
            value = (0 if there is None else int(there.raw)) + n
            text = b"%d" % value
            compare = [Compare.mod_revision(self._key) == seen]
            success = [Op.put(self._key, text)]
            failure = [Op.get(self._key)]
            if mark is not None:
                compare.append(Compare.version(mark) == 0)
                success.append(Op.put(mark, text, lease=lease))
                failure.append(Op.get(mark))
            result = await settled(self.space.txn(compare, success, failure))
            if result.succeeded:
                self._seen = KeyValue(self._key, text, 0, result.revision, 0)
                return value
            now, *before = result.responses
            if before and isinstance(before[0], KeyValue):
                return int(before[0].raw)  # added already, by an earlier run
            self._seen = there = now if isinstance(now, KeyValue) else None
            if not deadline.left:
                raise Unavailable(f"so many add to counter {self.name!r} that it was never this call's turn")
            await pause(self.space, _rng.uniform(0, wait))
            wait = min(RECIPE_MAX_PAUSE, 2 * wait)

    @bounded
    async def value(self) -> int:
        there = await settled(self.space.get(self._key))
        return 0 if there is None else int(there.raw)


class Counter(Unpicklable):
    """A counter; see the module."""

    def __init__(self, client: Client, name: str | bytes) -> None:
        self._counter = _Counter(client, name)

    def add(self, n: int, *, request_id: str | bytes | None = None) -> int:
        """Add a whole number, which may be negative.

        Args:
            request_id: the same again adds once.

        Returns:
            The value after this addition.

        Raises:
            Unavailable: the cluster cannot be reached, or too many add at once; if ``applied`` is ``False``, nothing
                was added.
        """
        return drive(self._counter.add(n, request_id))

    def value(self) -> int:
        """The value now; 0 if nothing was ever added."""
        return drive(self._counter.value())


class AsyncCounter(Unpicklable):
    """A counter for asyncio; see the module and ``Counter``."""

    def __init__(self, client: AsyncClient, name: str | bytes) -> None:
        self._counter = _Counter(client, name)

    async def add(self, n: int, *, request_id: str | bytes | None = None) -> int:
        """See ``Counter.add``."""
        return await self._counter.add(n, request_id)

    async def value(self) -> int:
        """See ``Counter.value``."""
        return await self._counter.value()
