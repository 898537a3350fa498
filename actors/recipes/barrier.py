"""A barrier: nobody goes on before so many parties have arrived.

::

    barrier = client.barrier("epoch", parties=8)
    for epoch in range(10):
        train(epoch)
        barrier.wait()          # goes on once all eight are here; then it is closed again, for the next epoch

*A party dies while it waits*: within the TTL it does not count any more, and the others wait until another one has come
in its place. *A party times out*: it does not count from that moment on, and gets ``False``; it is never among those
that the barrier opened for. *It opened, and a party dies at once*: the others do not notice; they were all there.
*The cluster cannot be reached*: waiting goes on; a party whose lease is lost gets ``LeaseLost``. *History is
compacted*: the present is looked at. If more than ``parties`` wait, it opens for those who came first.

All parties wait by a watch on one key, the gate, which is written when it opens: one wakes all of them, for once. A
place's key begins with the number of parties, and is made only while nobody is there who says another number.
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import CompactedError, InvalidArgument, RequestTimeout
from ...limits import CLEANUP_GRACE, RECIPE_PAUSE
from ..client import arguments as check
from ..client.aio import AsyncClient
from ..client.handle import Client
from ..client.operations import Compare, Op
from .faces import Deadline, Handle, Unpicklable, drive, news, pause, settled, stop, watching
from .line import Line, Place


class _Gate(NamedTuple):
    """What was seen at one revision."""

    cut: int
    """The last place that it has opened for."""
    written: int
    """The revision in which the gate's key was written last; 0 if never."""
    waiting: list[int]
    """The places behind the cut, in order."""
    revision: int


class _Barrier:
    def __init__(self, handle: Handle, name: str | bytes, parties: int, ttl: float) -> None:
        self.parties = check.whole_number("parties", parties, 1)
        self.line = Line(handle, "barrier", name, ttl)
        self._gate = self.line.folder + b"gate"

    async def wait(self, timeout: float | None) -> bool:
        deadline = Deadline(timeout)
        with deadline.covering(self.line.space, CLEANUP_GRACE):  # giving up is a write of its own
            return await self._wait_for_all(deadline)

    async def _wait_for_all(self, deadline: Deadline) -> bool:
        try:
            place = await self._arrive(deadline)
        except RequestTimeout:
            if deadline.left:
                raise
            place = None
        if place is None:
            return False
        try:
            while True:
                gate = await self.line.patiently(place, self._look, deadline)
                if gate.cut >= place.token:
                    return True
                if place.token not in gate.waiting:
                    await self.line.check(place)
                if len(gate.waiting) >= self.parties:
                    # All up to this place were here at the revision that was seen. If this fails, somebody has opened
                    # it or given up since: look again.
                    await self._change(gate, self._opening(gate.waiting[self.parties - 1]))
                elif deadline.left:
                    await self._wait(place, gate.revision, deadline)
                else:
                    # That the gate is written makes everybody count again who has counted this place. The last to go
                    # takes it with him: it says nothing to those who come next.
                    last = Op.txn([self.line.alone(place)], [Op.delete(self._gate)], [self._opening(gate.cut)])
                    if await self._change(gate, last, Op.delete(place.key)):
                        return False
        finally:
            await self.line.leave(place, self._gate)

    async def _arrive(self, deadline: Deadline) -> Place | None:
        """Take a place; ``None`` if those it opened for last, who were another number, are not gone in time."""
        line, own = self.line, self.line.places + b"%d-" % self.parties
        alone = [  # in the ranges before and behind those who say the same number: "." follows "-", and "0" follows "/"
            Compare.version(line.places, own) == 0,
            Compare.version(own[:-1] + b".", line.places[:-1] + b"0") == 0,
        ]
        while True:
            place = await line.join(b"%d" % self.parties, b"%d-" % self.parties, alone, chained=False)
            if place is not None:
                return place
            await self._look()
            if not deadline.left:
                return None
            await pause(line.space, RECIPE_PAUSE)

    async def _look(self) -> _Gate:
        seen = await settled(self.line.looks.range(prefix=self.line.folder, sort="create_revision"))
        gate = next((item for item in seen if item.key == self._gate), None)
        cut = int(gate.raw) if gate is not None else 0
        places = self.line.places
        waiting = [item for item in seen if item.create_revision > cut and item.key.startswith(places)]
        for item in waiting:
            if int(item.raw) != self.parties:
                raise InvalidArgument(
                    f"barrier {self.line.name!r} is for {item.text} parties, say those who wait, not for {self.parties}"
                )
        written = gate.mod_revision if gate is not None else 0
        return _Gate(cut, written, [item.create_revision for item in waiting], seen.revision)

    def _opening(self, cut: int) -> Op:
        return Op.put(self._gate, b"%d" % cut)

    async def _change(self, gate: _Gate, *what: Op) -> bool:
        """Write the gate if nobody has since it was seen."""
        unchanged = Compare.mod_revision(self._gate) == gate.written
        return (await settled(self.line.space.txn([unchanged], what))).succeeded

    async def _wait(self, place: Place, revision: int, deadline: Deadline) -> None:
        """Until the gate is written, or the time is over."""
        watch = await watching(self.line.space, self._gate, start_revision=revision + 1)
        try:
            while deadline.left:
                self.line.alive(place)
                if await news(watch, self.line.patience(place, deadline)) is not None:
                    return
        except CompactedError:
            pass
        finally:
            await stop(watch)


class Barrier(Unpicklable):
    """A barrier; see the module."""

    def __init__(self, client: Client, name: str | bytes, parties: int, ttl: float = 10) -> None:
        self._barrier = _Barrier(client, name, parties, ttl)

    def wait(self, timeout: float | None = None) -> bool:
        """Arrive, and wait for the others.

        Args:
            timeout: seconds, ``None`` for ever.

        Returns:
            Whether it opened for this party; if not, this party does not count any more.

        Raises:
            InvalidArgument: parties that wait already say another number of parties.
            LeaseLost: the cluster was out of reach for the TTL.
        """
        return drive(self._barrier.wait(timeout))


class AsyncBarrier(Unpicklable):
    """A barrier for asyncio; see the module and ``Barrier``."""

    def __init__(self, client: AsyncClient, name: str | bytes, parties: int, ttl: float = 10) -> None:
        self._barrier = _Barrier(client, name, parties, ttl)

    async def wait(self, timeout: float | None = None) -> bool:
        """See ``Barrier.wait``. Cancelling it means to give up."""
        return await self._barrier.wait(timeout)
