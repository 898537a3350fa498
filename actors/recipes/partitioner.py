"""Splits a fixed set of partitions over whoever has joined, and splits them anew when somebody comes, leaves or dies.

::

    with client.partitioner("logs", partitions=64) as share:
        while running:
            for partition, token in share.mine():
                share.guard(partition).put(f"offset/{partition}", collect(partition))

Everybody is to own the same number, give or take one. Who owns too many gives the surplus back; who owns too few takes
what is free, and only what is free: each partition has one key, whose ``create_revision`` is the owner's token. So two
owners of a partition never overlap in the order of their tokens, and only what must move does. *A member dies*, or
forgets its share: within the TTL its partitions are free, and taken by the others at once. *It is cut off or paused*
for longer: the same; ``mine()`` is empty from before that moment, its guards refuse, and when it is back it joins
again. *The cluster cannot be reached*: nothing is split anew meanwhile. *History is compacted*: the present is looked
at, as always. A partition can be taken away between two calls of ``mine()``; what is written through ``guard`` while it
is not owned any more is refused.

All members watch the members and the partitions, so each move costs one wake-up for each of them.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from ...errors import CompactedError, InvalidArgument, KeeperError, LockLost
from ...limits import MAX_PARTITIONS, RECIPE_LOOK, RECIPE_MAX_PAUSE, RECIPE_MOVES, RECIPE_PAUSE
from ..client.aio import AsyncClient
from ..client.guard import guarded
from ..client.handle import Client
from ..client.leases import AsyncLease, Lease
from ..client.operations import Compare, Op
from ..client.results import KeyValue, RangeResult
from .faces import (
    Handle,
    Unpicklable,
    bounded,
    drive,
    leased,
    news,
    pause,
    quoted,
    settled,
    spawn,
    stop,
    watching,
    whoami,
)
from .line import Line, Place, drop

Partition = int | str


class _Member(NamedTuple):
    key: bytes
    lease: int
    quota: int
    owns: list[bytes]


def shares(members: Sequence[KeyValue], owners: Sequence[KeyValue], partitions: int) -> list[_Member]:
    """What each member may own and does, in the order in which they joined; the first ones may own one more."""
    every, more = divmod(partitions, len(members)) if members else (0, 0)
    owned: dict[int, list[bytes]] = {}
    for owner in owners:
        owned.setdefault(owner.lease, []).append(owner.key)
    return [
        _Member(member.key, member.lease, every + (place < more), owned.get(member.lease, []))
        for place, member in enumerate(members)
    ]


def taking(split: Sequence[_Member], free: Sequence[bytes], me: bytes) -> list[bytes]:
    """Which of the free partitions are this member's to take: everybody who sees the same computes the same."""
    at = 0
    for member in split:
        wants = max(0, member.quota - len(member.owns))
        if member.key == me:
            return list(free[at : at + wants])
        at += wants
    return []


class _Partitioner:
    def __init__(self, handle: Handle, name: str | bytes, partitions: object, ttl: float) -> None:
        self.line = Line(handle, "partitioner", name, ttl)
        self.space = self.line.space
        self.partitions = _partitions(partitions)
        self._members = self.line.folder + b"m/"
        self._owners = self.line.folder + b"o/"
        self._keys = {self._owners + quoted(str(each)): each for each in self.partitions}
        if len(self._keys) != len(self.partitions):
            raise InvalidArgument("partitions must have different names")
        digest = hashlib.sha256(msgspec.json.encode(self.partitions)).hexdigest()[:16]
        self._shape_key = self.line.folder + b"shape"
        self._shape = f"{len(self.partitions)} partitions {digest}".encode()
        self._place: Place | None = None
        self._owned: dict[bytes, int] = {}
        self.left = False

    # -- what a user asks ---------------------------------------------------------------------------------------------

    @bounded
    async def join(self) -> None:
        if self._place is not None:
            return
        self.left = False
        revision = await self._round()
        spawn(self.line.space, _keep(self.line.space, weakref.ref(self), revision), f"raykeeper-{self.line.name!r}")

    async def leave(self) -> None:
        self.left = True
        place, self._place = self._place, None
        self._owned = {}
        if place is not None:
            await drop(place.lease)

    def mine(self) -> list[tuple[Partition, int]]:
        owned, place = self._owned, self._place
        if place is None or place.lost.is_set():
            return []
        return [(partition, owned[key]) for key, partition in self._keys.items() if key in owned]

    def fence(self, partition: Partition) -> tuple[bytes, int]:
        """The key and the token that stand for owning a partition."""
        key = self._owners + quoted(str(partition))
        if key not in self._keys:
            raise InvalidArgument(f"{partition!r} is none of the partitions of {self.line.name!r}")
        owned = dict(self.mine())
        if self._keys[key] not in owned:
            raise LockLost(f"partition {partition!r} is not owned by this member now")
        return key, owned[self._keys[key]]

    # -- splitting ----------------------------------------------------------------------------------------------------

    async def _round(self) -> int:
        """Give back and take until nothing is left to do here; the revision at which that was so."""
        while not self.left:
            place = await self._present()
            listing = await settled(self.line.space.range(prefix=self.line.folder, sort="create_revision"))
            if not await self._split(place, listing):
                return listing.revision
        return 0

    async def _present(self) -> Place:
        """This member's place; a new one if there is none, or if it was lost."""
        place = self._place
        if place is not None and not place.lost.is_set():
            return place
        self._owned = {}
        lease = await leased(self.line.space, self.line.ttl)
        try:
            place = await self._take_place(lease)
        except BaseException:
            await drop(lease)
            raise
        self._place = place
        if self.left:  # meanwhile, by another thread
            await self.leave()
        return place

    async def _take_place(self, lease: Lease | AsyncLease) -> Place:
        line = self.line
        for _ in range(2):
            place = await line.take(
                lease, self._members, b"", whoami(), [Compare.value(self._shape_key) == self._shape]
            )
            if place is not None:
                return place
            # Nobody ever came here, or somebody with other partitions.
            await line.agree(self._shape_key, self._shape, self._members)
        raise InvalidArgument(f"the members of {line.name!r} have other partitions than these")

    async def _split(self, me: Place, listing: RangeResult) -> bool:
        """One step; whether something was changed, or may have been."""
        members = [item for item in listing if item.key.startswith(self._members)]
        owners = [item for item in listing if item.key.startswith(self._owners)]
        split = shares(members, owners, len(self._keys))
        mine = next((member for member in split if member.key == me.key), None)
        if mine is None:
            me.lost.set()  # somebody has removed it
            return True
        tokens = {item.key: item.create_revision for item in owners if item.lease == me.lease.id}
        self._owned = tokens
        surplus = list(tokens)[mine.quota :]
        if surplus:
            return await self._give(surplus[:RECIPE_MOVES], tokens)
        free = [key for key in self._keys if key not in {item.key for item in owners}]
        wanted = taking(split, free, me.key)
        return bool(wanted) and await self._take(wanted[:RECIPE_MOVES], me)

    async def _give(self, keys: list[bytes], tokens: dict[bytes, int]) -> bool:
        # First it is not ours any more, then anybody else's.
        self._owned = {key: token for key, token in tokens.items() if key not in keys}
        await settled(
            self.line.space.txn(
                [Compare.create_revision(key) == tokens[key] for key in keys], [Op.delete(key) for key in keys]
            )
        )
        return True

    async def _take(self, keys: list[bytes], me: Place) -> bool:
        result = await settled(
            self.line.space.txn(
                [Compare.create_revision(me.key) == me.token, *(Compare.version(key) == 0 for key in keys)],
                [Op.put(key, me.key[len(self._members) :], lease=me.lease) for key in keys],
            )
        )
        if result.succeeded:
            self._owned = {**self._owned, **dict.fromkeys(keys, result.revision)}
        else:
            await pause(self.line.space, RECIPE_PAUSE)  # somebody saw something else; look again
        return True


async def _keep(space: Handle, reference: weakref.ref[_Partitioner], revision: int) -> None:
    """What goes on in the background. The share is held weakly: one that is forgotten gives up what it owns."""
    while True:
        logic = reference()
        if logic is None or logic.left:
            return
        prefix, place = logic.line.folder, logic._place
        lost = place.lost if place is not None else None
        del logic, place
        try:
            watch = await watching(space, prefix=prefix, start_revision=revision + 1)
            try:
                while await news(watch, RECIPE_LOOK / 2) is None:
                    logic = reference()
                    if logic is None or logic.left:
                        return
                    del logic
                    if lost is None or lost.is_set():
                        break
            except CompactedError:
                pass
            finally:
                await stop(watch)
            logic = reference()
            if logic is None or logic.left:
                return
            revision = await logic._round()
            del logic
        except KeeperError:
            logic = None
            await pause(space, RECIPE_MAX_PAUSE)


def _partitions(partitions: object) -> list[Partition]:
    if isinstance(partitions, int) and not isinstance(partitions, bool):
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise InvalidArgument(f"there are 1 to {MAX_PARTITIONS} partitions, not {partitions}")
        return list(range(partitions))
    named = isinstance(partitions, (list, tuple)) and all(isinstance(each, str) and each for each in partitions)
    if named and isinstance(partitions, (list, tuple)) and 1 <= len(partitions) <= MAX_PARTITIONS:
        return list(partitions)
    raise InvalidArgument(f"partitions are a number or a list of names, 1 to {MAX_PARTITIONS}, not {partitions!r}")


class _Face(Unpicklable):
    _logic: _Partitioner

    @property
    def partitions(self) -> list[Any]:
        """All partitions, whoever owns them."""
        return list(self._logic.partitions)


class Partitioner(_Face):
    """A member of a partitioner; see the module."""

    def __init__(self, client: Client, name: str | bytes, partitions: int | Sequence[str], ttl: float = 10) -> None:
        self._logic = _Partitioner(client, name, partitions, ttl)

    def join(self) -> None:
        """Become a member, which ``mine`` does too. Does nothing if this is one.

        Raises:
            InvalidArgument: members that are there have other partitions.
        """
        drive(self._logic.join())

    def leave(self) -> None:
        """Give everything back, and be no member any more."""
        drive(self._logic.leave())

    def mine(self) -> list[tuple[Any, int]]:
        """The partitions that this member owns now, each with its token; joins if it never has."""
        if not self._logic.left:
            self.join()
        return self._logic.mine()

    def guard(self, partition: int | str) -> Client:
        """The client, but every write is refused with ``LockLost`` once this member does not own the partition.

        Raises:
            LockLost: it does not own it now.
        """
        line = self._logic.line
        assert isinstance(line.handle, Client)
        return guarded(line.handle, line.space, *self._logic.fence(partition))

    def __enter__(self) -> Partitioner:
        self.join()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()


class AsyncPartitioner(_Face):
    """The same as ``Partitioner`` for asyncio. ``mine`` does not join by itself here: it needs no waiting."""

    def __init__(
        self, client: AsyncClient, name: str | bytes, partitions: int | Sequence[str], ttl: float = 10
    ) -> None:
        self._logic = _Partitioner(client, name, partitions, ttl)

    async def join(self) -> None:
        """See ``Partitioner.join``."""
        await self._logic.join()

    async def leave(self) -> None:
        """See ``Partitioner.leave``."""
        await self._logic.leave()

    def mine(self) -> list[tuple[Any, int]]:
        """The partitions that this member owns now, each with its token."""
        return self._logic.mine()

    def guard(self, partition: int | str) -> AsyncClient:
        """See ``Partitioner.guard``."""
        line = self._logic.line
        assert isinstance(line.handle, AsyncClient)
        return guarded(line.handle, line.space, *self._logic.fence(partition))

    async def __aenter__(self) -> AsyncPartitioner:
        await self.join()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()
