"""A counter that many processes add to.

::

    counter = client.counter("rows")
    counter.add(250)            # -> the value after this addition
    counter.value()

Each ``add`` counts exactly once: a request that is retried on its way is not added again, and if the outcome of a call
is unknown its error says so (``applied`` is ``None``). A task that Ray may run again passes the same ``request_id``
every time; it is remembered for the cluster's ``request_ttl``. The value is a Python integer of up to 8,192 bits; no
two additions return the same value unless ``n`` is 0. A counter needs no lease and outlives everybody. *Many add at
once*: each tries again until it is its turn, after a short and growing pause, so a counter is for hundreds of additions
a second, not for thousands.
"""

from __future__ import annotations

from random import SystemRandom

from ...errors import InvalidArgument, Unavailable
from ...limits import COUNTER_BITS, RECIPE_MAX_PAUSE, RECIPE_PAUSE
from ..client import arguments as check
from ..client.aio import AsyncClient
from ..client.deadline import time_left
from ..client.handle import Client
from ..client.operations import Compare, Op
from ..client.results import KeyValue
from .faces import Deadline, Handle, Unpicklable, bounded, drive, folder, once, pause, settled

_rng = SystemRandom()


def _text(value: int) -> bytes:
    if value.bit_length() > COUNTER_BITS:
        raise InvalidArgument(f"a counter holds whole numbers of at most {COUNTER_BITS} bits")
    return b"%d" % value


class _Counter:
    def __init__(self, handle: Handle, name: str | bytes) -> None:
        self.name = name
        self._handle = handle
        self.space: Handle = handle.reserved("counter")
        self._key = folder(handle, name)[:-1]
        self._seen: KeyValue | None = None

    @bounded
    async def add(self, n: object, request_id: str | bytes | None) -> int:
        if isinstance(n, bool) or not isinstance(n, int):
            raise InvalidArgument(f"a counter adds whole numbers, not {check.shown(n)}")
        key = self._key
        # Remembered only once it was added: an attempt that somebody else was faster than may be made again.
        name = once(self._handle, request_id, b"counter", key, _text(n), held=1)
        deadline = Deadline(time_left())
        wait = RECIPE_PAUSE / 10
        there = self._seen
        while True:
            seen = 0 if there is None else there.mod_revision
            value = (0 if there is None else int(there.raw)) + n
            text = _text(value)
            added = [Op.put(key, text)] if name is None else [Op.put(key, text), Op.get(key)]
            result = await settled(
                self.space.txn([Compare.mod_revision(key) == seen], added, [Op.get(key)], request_id=name)
            )
            if result.succeeded and name is None:
                self._seen = KeyValue(key, text, 0, result.revision, 0)
                return value
            now = result.responses[-1]
            self._seen = there = now if isinstance(now, KeyValue) else None
            if result.succeeded and there is not None:
                return int(there.raw)  # what it was then, if it was added by an earlier run
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
            request_id: the same again adds once, and returns what the first did.

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
