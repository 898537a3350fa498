"""The election of a leader among whoever campaigns, in the order in which they came.

::

    election = client.election("trainer")
    if election.campaign("host-1:5000"):              # waits until this is the leader
        election.proclaim("host-1:5000 epoch 3")      # what it says of itself
        election.guard().put("checkpoint", data)      # refused once another one leads
        election.resign()

    for leader in election.observe():                 # anybody: each leader and proclamation, in order
        print(leader.value, leader.token)

*The leader dies*: within the TTL the next candidate leads. *It is paused or cut off*: as a lock's holder; ``lost`` is
set before the TTL is over, and the guard refuses it afterwards. There are never two leaders with the same token, and
tokens only grow. *History is compacted under an observer*: it goes on with whoever leads now, and may have missed some
in between. *The cluster cannot be reached*: an observer waits; ``campaign`` raises if it loses its place in the line.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ...errors import LeaseLost, LockLost
from ..client.aio import AsyncClient
from ..client.handle import Client
from ..client.operations import Compare, Op
from ..client.results import KeyValue
from ..client.watch import Event
from .faces import Handle, bounded, decoded, drive, encoded, settled
from .following import AsyncFollowing, Follower, Following
from .holding import AsyncHeld, Held, Holding
from .line import Line


class Leader(msgspec.Struct, frozen=True):
    """A leader, with what it said last.

    Attributes:
        value: what it campaigned with or proclaimed; if that was nothing (``acquire``), ``b""``, or ``None`` on a
            handle with a codec.
        token: its fencing token; that of each later leader is greater.
    """

    value: Any
    token: int


class _Candidate(Holding):
    """A contender whose key holds what it wants to be known by."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.campaigned = b""

    def value(self) -> bytes:
        return self.campaigned

    async def acquire(self, timeout: float | None) -> bool:
        self.campaigned = b""
        return await super().acquire(timeout)

    async def campaign(self, value: object, timeout: float | None) -> bool:
        self.campaigned = encoded(self.line.handle, value)
        return await super().acquire(timeout)

    @bounded
    async def proclaim(self, value: object) -> None:
        place = self.held()
        try:
            result = await settled(
                self.line.space.txn(
                    [Compare.create_revision(place.key) == place.token],
                    [Op.put(place.key, encoded(self.line.handle, value), lease=place.lease)],
                )
            )
        except LeaseLost as error:  # nothing was sent: it is known here already
            raise LockLost(f"{self.line.name!r} is no longer led by this object: its lease is lost") from error
        if not result.succeeded:
            place.lost.set()
            raise LockLost(f"another one leads {self.line.name!r}: the proclamation was refused")


def _leader(handle: Handle, item: KeyValue) -> Leader:
    if not item.raw and handle.codec is not None:  # it campaigned with nothing, by ``acquire``
        return Leader(None, item.create_revision)
    return Leader(decoded(handle, item.raw), item.create_revision)


async def _current(line: Line) -> Leader | None:
    listing = await settled(line.space.range(prefix=line.places, sort="create_revision", limit=1))
    return _leader(line.handle, listing.items[0]) if listing.items else None


class _Observer(Follower[Leader]):
    """Follows all candidates' keys, so that no leader is missed, however short its time."""

    def __init__(self, line: Line) -> None:
        super().__init__(line.space, line.places)
        self._handle = line.handle
        self._candidates: dict[bytes, KeyValue] = {}
        self._told = (0, 0)

    def present(self, items: list[KeyValue]) -> None:
        self._candidates = {item.key: item for item in items}
        self._tell()

    def changed(self, event: Event) -> None:
        if event.type == "put":
            self._candidates[event.kv.key] = event.kv
        else:
            self._candidates.pop(event.kv.key, None)
        self._tell()

    def _tell(self) -> None:
        first = min(self._candidates.values(), key=lambda item: item.create_revision, default=None)
        if first is not None and self._told < (news := (first.create_revision, first.mod_revision)):
            self._told = news
            self.ready.append(_leader(self._handle, first))


class Election(Held):
    """An election, and one candidate in it; see the module. ``acquire`` campaigns with an empty value."""

    _holding: _Candidate

    def __init__(self, client: Client, name: str | bytes, ttl: float = 10) -> None:
        super().__init__(_Candidate(Line(client, "election", name, ttl)))

    def campaign(self, value: Any, timeout: float | None = None) -> bool:
        """Wait until this is the leader.

        Args:
            value: what observers are to see.
            timeout: seconds, ``None`` for ever.

        Returns:
            Whether it leads; if not, it is no candidate any more.

        Raises:
            As ``acquire``.
        """
        return drive(self._holding.campaign(value, timeout))

    def proclaim(self, value: Any) -> None:
        """Change what observers see of this leader.

        Raises:
            LockLost: this is not the leader (any more); nothing was changed.
        """
        drive(self._holding.proclaim(value))

    def resign(self) -> None:
        """Stop being the leader; the next candidate leads. Raises as ``release``."""
        self.release()

    def leader(self) -> Leader | None:
        """Who leads now; ``None`` if nobody does."""
        return drive(_current(self._holding.line))

    def observe(self) -> Following[Leader]:
        """Each leader, from the present one on, and each of their proclamations, in order. An iterator that waits for
        ever; its ``next(timeout)`` does not, and ``cancel()`` ends it."""
        return Following(_Observer(self._holding.line))


class AsyncElection(AsyncHeld):
    """An election for asyncio; see the module and ``Election``."""

    _holding: _Candidate

    def __init__(self, client: AsyncClient, name: str | bytes, ttl: float = 10) -> None:
        super().__init__(_Candidate(Line(client, "election", name, ttl)))

    async def campaign(self, value: Any, timeout: float | None = None) -> bool:
        """See ``Election.campaign``."""
        return await self._holding.campaign(value, timeout)

    async def proclaim(self, value: Any) -> None:
        """See ``Election.proclaim``."""
        await self._holding.proclaim(value)

    async def resign(self) -> None:
        """See ``Election.resign``."""
        await self.release()

    async def leader(self) -> Leader | None:
        """See ``Election.leader``."""
        return await _current(self._holding.line)

    def observe(self) -> AsyncFollowing[Leader]:
        """See ``Election.observe``."""
        return AsyncFollowing(_Observer(self._holding.line))
