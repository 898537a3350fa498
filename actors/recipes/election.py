"""The election of a leader among all candidates, in the order in which they campaign.

::

    election = client.election("trainer")
    if election.campaign("host-1:5000"):              # waits until this candidate leads
        election.proclaim("host-1:5000 epoch 3")      # changes what observers see
        election.guard().put("checkpoint", data)      # refused once another candidate leads
        election.resign()

    for leader in election.observe():                 # for any process: each leader and proclamation, in order
        print(leader.value, leader.token)

No two leaders have the same token, and tokens only grow.

- *The leader dies*: within the TTL the next candidate leads.
- *The leader is paused or cut off*: as the holder of a lock. ``lost`` is set before the TTL is over, and the guard
  refuses its writes afterwards.
- *History is compacted while a process observes*: it goes on with the present leader, and may have missed some between.
- *The cluster cannot be reached*: an observer waits; ``campaign`` raises if the candidate loses its place in the line.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...errors import LeaseLost, LockLost
from ..client.aio import AsyncKeyValueClient
from ..client.handle import KeyValueClient
from ..client.results import Event, KeyValue
from ..client.txn_parts import Compare, Op
from .change_stream import AsyncChangeStream, ChangeSource, ChangeStream
from .contenders import Contenders
from .holder import AsyncLockLike, Holder, LockLike
from .sync_async import AnyHandle, bounded, decoded, encoded, resolved, run_sync


class Leader(msgspec.Struct, frozen=True):
    """A leader, with its latest proclamation.

    Attributes:
        value: what it campaigned with or proclaimed last. If it campaigned by ``acquire``, ``b""``, or ``None`` on a
            handle with a codec.
        token: its fencing token; later leaders have greater ones.
    """

    value: Any
    token: int


class _Candidate(Holder):
    """A contender whose key holds the value that observers see."""

    def __init__(self, contenders: Contenders) -> None:
        super().__init__(contenders)
        self.campaigned = b""

    def value(self) -> bytes:
        return self.campaigned

    async def acquire(self, timeout: float | None) -> bool:
        self.campaigned = b""
        return await super().acquire(timeout)

    async def campaign(self, value: object, timeout: float | None) -> bool:
        self.campaigned = encoded(self.contenders.handle, value)
        return await super().acquire(timeout)

    @bounded
    async def proclaim(self, value: object) -> None:
        """Write the leader's key again, on condition that it still is the key of this candidate's token."""
        ticket = self.current_ticket()
        try:
            result = await resolved(
                self.contenders.space.txn(
                    [Compare.create_revision(ticket.key) == ticket.token],
                    [Op.put(ticket.key, encoded(self.contenders.handle, value), lease=ticket.lease)],
                )
            )
        except LeaseLost as error:  # known in this process already, so nothing was sent
            raise LockLost(f"{self.contenders.name!r} is no longer led by this object: its lease is lost") from error
        if not result.succeeded:
            ticket.lost.lose()
            raise LockLost(f"{self.contenders.name!r} is led by another candidate: the proclamation was refused")


def _leader(handle: AnyHandle, item: KeyValue) -> Leader:
    if not item.raw and handle.codec is not None:  # it campaigned by ``acquire``, without a value
        return Leader(None, item.create_revision)
    return Leader(decoded(handle, item.raw), item.create_revision)


async def _current(contenders: Contenders) -> Leader | None:
    listing = await resolved(contenders.space.range(prefix=contenders.ticket_prefix, sort="create_revision", limit=1))
    return _leader(contenders.handle, listing.items[0]) if listing.items else None


class _Observer(ChangeSource[Leader]):
    """Follows the keys of all candidates, so that no leader is missed, however briefly it leads."""

    def __init__(self, contenders: Contenders) -> None:
        super().__init__(contenders.space, contenders.ticket_prefix)
        self._handle = contenders.handle
        self._candidates: dict[bytes, KeyValue] = {}
        self._announced = (0, 0)

    def on_present(self, items: list[KeyValue]) -> None:
        self._candidates = {item.key: item for item in items}
        self._announce()

    def on_change(self, event: Event) -> None:
        if event.type == "put":
            self._candidates[event.kv.key] = event.kv
        else:
            self._candidates.pop(event.kv.key, None)
        self._announce()

    def _announce(self) -> None:
        first = min(self._candidates.values(), key=lambda item: item.create_revision, default=None)
        if first is not None and self._announced < (latest := (first.create_revision, first.mod_revision)):
            self._announced = latest
            self.ready.append(_leader(self._handle, first))


class Election(LockLike):
    """An election, and one candidate in it; made by ``client.election``.

    ::

        election = client.election("trainer")
        if election.campaign("host-1:5000"):          # waits until this candidate leads
            election.guard().put("checkpoint", data)  # refused once another candidate leads
            election.resign()

    ``acquire`` campaigns without a value. One object is one candidate; it does not pickle.
    """

    _holder: _Candidate

    def __init__(self, client: KeyValueClient, name: str | bytes, ttl: float = 10, bound_to: Any = None) -> None:
        super().__init__(_Candidate(Contenders(client, "election", name, ttl, bound_to)))

    def campaign(self, value: Any, timeout: float | None = None) -> bool:
        """Campaign, and wait until this candidate leads.

        Args:
            value: what observers see; ``bytes`` or ``str``, or an object on a handle with a codec.
            timeout: seconds; ``None`` waits forever, 0 does not wait for others.

        Returns:
            Whether it leads now. If not, it is no longer a candidate.

        Raises:
            InvalidArgument: this object leads, or campaigns, already.
            LeaseLost: the place in the line was lost, because the cluster could not be reached for the TTL.
            Unavailable, RequestTimeout: the cluster cannot be reached.
        """
        return run_sync(self._holder.campaign(value, timeout))

    def proclaim(self, value: Any) -> None:
        """Change what observers see of this leader.

        Args:
            value: as for :meth:`campaign`.

        Raises:
            LockLost: this object does not lead (any more); nothing was changed.
        """
        run_sync(self._holder.proclaim(value))

    def resign(self) -> None:
        """Stop leading, so that the next candidate leads.

        Raises:
            InvalidArgument: this object does not lead.
        """
        self.release()

    def leader(self) -> Leader | None:
        """The present leader; ``None`` if there is none."""
        return run_sync(_current(self._holder.contenders))

    def observe(self) -> ChangeStream[Leader]:
        """Iterate over the leaders, from the present one on, with each of their proclamations, in order.

        The iterator waits forever; its ``next(timeout)`` does not, and ``cancel()`` ends it.
        """
        return ChangeStream(_Observer(self._holder.contenders))


class AsyncElection(AsyncLockLike):
    """As ``Election``, for asyncio."""

    _holder: _Candidate

    def __init__(self, client: AsyncKeyValueClient, name: str | bytes, ttl: float = 10, bound_to: Any = None) -> None:
        super().__init__(_Candidate(Contenders(client, "election", name, ttl, bound_to)))

    async def campaign(self, value: Any, timeout: float | None = None) -> bool:
        """See ``Election.campaign``."""
        return await self._holder.campaign(value, timeout)

    async def proclaim(self, value: Any) -> None:
        """See ``Election.proclaim``."""
        await self._holder.proclaim(value)

    async def resign(self) -> None:
        """See ``Election.resign``."""
        await self.release()

    async def leader(self) -> Leader | None:
        """See ``Election.leader``."""
        return await _current(self._holder.contenders)

    def observe(self) -> AsyncChangeStream[Leader]:
        """See ``Election.observe``."""
        return AsyncChangeStream(_Observer(self._holder.contenders))
