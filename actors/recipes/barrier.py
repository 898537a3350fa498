"""A barrier: no party goes on before a number of parties have arrived.

::

    barrier = client.barrier("epoch", parties=8)
    for epoch in range(10):
        train(epoch)
        barrier.wait()          # goes on once all eight have arrived; then the barrier is closed for the next epoch

If more than ``parties`` wait, it opens for those that came first.

- *A party dies while it waits*: within the TTL it no longer counts, and the others wait until another one has come.
- *A party times out*: it no longer counts, and gets ``False``; it is never among those that the barrier opened for.
- *A party dies just after the barrier opened*: the others do not notice, since all had arrived.
- *The cluster cannot be reached*: waiting goes on; a party whose lease is lost gets ``LeaseLost``.
- *History is compacted*: the present is read.

All parties watch one key, the gate. It is written when the barrier opens, which wakes all of them, as intended. The key
of a ticket begins with the number of parties, and is created only while no ticket has another number.
"""

from __future__ import annotations

from typing import NamedTuple

from ...errors import CompactedError, InvalidArgument, RequestTimeout
from ...limits import CLEANUP_GRACE_S, RECIPE_PAUSE_S
from .. import arguments as check
from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from ..client.txn_parts import Compare, Op
from .contenders import Contenders, Ticket
from .sync_async import (
    AnyHandle,
    TimeLimit,
    Unpicklable,
    cancel_watch,
    next_event,
    number_in,
    open_watch,
    pause,
    resolved,
    run_sync,
)


class _Arrivals(NamedTuple):
    """The state of the barrier as of one revision."""

    opened_to: int
    """The token of the last ticket that it has opened for."""
    written: int
    """The revision at which the gate's key was written last; 0 if never."""
    waiting: list[int]
    """The tokens after ``opened_to``, in order."""
    revision: int


class _Barrier:
    def __init__(self, handle: AnyHandle, name: str | bytes, parties: int, ttl: float) -> None:
        self.parties = check.whole_number("parties", parties, 1)
        self.contenders = Contenders(handle, "barrier", name, ttl)
        self._gate = self.contenders.folder + b"gate"

    async def wait(self, timeout: float | None) -> bool:
        deadline = TimeLimit(timeout)
        with deadline.covering(self.contenders.space, CLEANUP_GRACE_S):  # giving up is a write of its own
            return await self._wait_for_all(deadline)

    async def _wait_for_all(self, deadline: TimeLimit) -> bool:
        """Arrive, and wait until the barrier has opened for this party's ticket; ``False`` when the time is over.

        Opening and giving up both write the gate, on condition that it was not written since it was read. So one of two
        that conflict fails, and reads again: a party that gave up was not counted, and one that was counted cannot give
        up. Whatever happens, the ticket is given up at the end.
        """
        try:
            ticket = await self._arrive(deadline)
        except RequestTimeout:
            if deadline.left:
                raise
            ticket = None
        if ticket is None:
            return False
        try:
            while True:
                gate = await self.contenders.retry_read(ticket, self._read, deadline)
                if gate.opened_to >= ticket.token:
                    return True
                if ticket.token not in gate.waiting:
                    await self.contenders.check_key(ticket)
                if len(gate.waiting) >= self.parties:
                    # The first ``parties`` tickets existed at the revision that was read. If this fails, a party has
                    # opened the barrier or given up since: read again.
                    await self._write_gate(gate, self._opening(gate.waiting[self.parties - 1]))
                elif deadline.left:
                    await self._wait(ticket, gate.revision, deadline)
                else:
                    # Writing the gate makes every party that has counted this ticket count again. The last one to
                    # leave deletes it instead, since it means nothing to those that come next.
                    last = Op.txn(
                        [self.contenders.alone(ticket)], [Op.delete(self._gate)], [self._opening(gate.opened_to)]
                    )
                    if await self._write_gate(gate, last, Op.delete(ticket.key)):
                        return False
        finally:
            await self.contenders.leave(ticket, self._gate)

    async def _arrive(self, deadline: TimeLimit) -> Ticket | None:
        """Take a ticket; ``None`` if parties of another number, for which it has opened, have not left in time."""
        contenders, own = self.contenders, self.contenders.ticket_prefix + b"%d-" % self.parties
        alone = [  # in the ranges before and after the tickets of this number: "." follows "-", and "0" follows "/"
            Compare.version(contenders.ticket_prefix, own) == 0,
            Compare.version(own[:-1] + b".", contenders.ticket_prefix[:-1] + b"0") == 0,
        ]
        while True:
            ticket = await contenders.join(b"%d" % self.parties, b"%d-" % self.parties, alone, chained=False)
            if ticket is not None:
                return ticket
            await self._read()
            if not deadline.left:
                return None
            await pause(contenders.space, RECIPE_PAUSE_S)

    async def _read(self) -> _Arrivals:
        """Read the gate and all tickets, as of one revision.

        Raises:
            InvalidArgument: parties that wait have another number.
        """
        seen = await resolved(self.contenders.reads.range(prefix=self.contenders.folder, sort="create_revision"))
        gate = next((item for item in seen if item.key == self._gate), None)
        opened_to = number_in(gate.raw, f"barrier {self.contenders.name!r}") if gate is not None else 0
        places = self.contenders.ticket_prefix
        waiting = [item for item in seen if item.create_revision > opened_to and item.key.startswith(places)]
        for item in waiting:
            if number_in(item.raw, f"barrier {self.contenders.name!r}") != self.parties:
                raise InvalidArgument(
                    f"barrier {self.contenders.name!r} is in use for {item.text} parties, not for {self.parties}"
                )
        written = gate.mod_revision if gate is not None else 0
        return _Arrivals(opened_to, written, [item.create_revision for item in waiting], seen.revision)

    def _opening(self, opened_to: int) -> Op:
        return Op.put(self._gate, b"%d" % opened_to)

    async def _write_gate(self, gate: _Arrivals, *what: Op) -> bool:
        """Write the gate, unless it was written since it was read; whether that was done."""
        unchanged = Compare.mod_revision(self._gate) == gate.written
        return (await resolved(self.contenders.space.txn([unchanged], what))).succeeded

    async def _wait(self, ticket: Ticket, revision: int, deadline: TimeLimit) -> None:
        """Wait until the gate is written, or the time is over."""
        watch = await open_watch(self.contenders.space, self._gate, start_revision=revision + 1)
        try:
            while deadline.left:
                self.contenders.check_lease(ticket)
                if await next_event(watch, self.contenders.wait_limit(ticket, deadline)) is not None:
                    return
        except CompactedError:
            pass
        finally:
            await cancel_watch(watch)


class Barrier(Unpicklable):
    """A reusable barrier; made by ``client.barrier``.

    ::

        barrier = client.barrier("epoch", parties=8)
        for epoch in range(10):
            train(epoch)
            barrier.wait()
    """

    def __init__(self, client: KeyValueClient, name: str | bytes, parties: int, ttl: float = 10) -> None:
        self._barrier = _Barrier(client, name, parties, ttl)

    def wait(self, timeout: float | None = None) -> bool:
        """Arrive, and wait for the others.

        Args:
            timeout: seconds; ``None`` waits forever.

        Returns:
            Whether the barrier opened for this party. If not, this party no longer counts.

        Raises:
            InvalidArgument: parties that wait already use another number of parties.
            LeaseLost: the cluster could not be reached for the TTL.
            Unavailable, RequestTimeout: the cluster cannot be reached.
        """
        return run_sync(self._barrier.wait(timeout))


class AsyncBarrier(Unpicklable):
    """As ``Barrier``, for asyncio."""

    def __init__(self, client: AsyncKeyValueClient, name: str | bytes, parties: int, ttl: float = 10) -> None:
        self._barrier = _Barrier(client, name, parties, ttl)

    async def wait(self, timeout: float | None = None) -> bool:
        """See ``Barrier.wait``. To cancel the coroutine is to give up."""
        return await self._barrier.wait(timeout)
