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
import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from ...errors import CompactedError, InvalidArgument, KeeperError, LockLost
from ...limits import MAX_PARTITIONS, RECIPE_LOOK, RECIPE_MAX_PAUSE, RECIPE_MOVES, RECIPE_PAUSE
from ..client import arguments as check
from ..client.aio import AsyncClient
from ..client.guard import guarded
from ..client.handle import Client
from ..client.operations import Compare, Op
from ..client.results import KeyValue, RangeResult
from ..client.watch import AsyncWatch, Watch
from .faces import (
    Handle,
    Unpicklable,
    bounded,
    drive,
    news,
    pause,
    quoted,
    settled,
    spawn,
    stop,
    watching,
    whoami,
)
from .line import Line, Place

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


class _Membership:
    """One time of being a member, from ``join`` to ``leave``. What goes on for it in the background works on this
    object alone, so nothing of an earlier membership can touch a later one."""

    __slots__ = ("__weakref__", "over", "owned", "place", "watch")

    def __init__(self) -> None:
        self.place: Place | None = None
        self.owned: dict[bytes, int] = {}
        """Keys of the partitions that are owned, with their tokens."""
        self.watch: Watch | AsyncWatch | None = None
        """What waits for changes now."""
        self.over = False


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
        self._changing = threading.Lock()
        self._membership: _Membership | None = None
        self._problem: KeeperError | None = None
        """Why it is no member any more, if that was not its wish."""
        self.left = False

    # -- what a user asks ---------------------------------------------------------------------------------------------

    @bounded
    async def join(self) -> None:
        with self._changing:
            self.left, self._problem = False, None
            if self._membership is not None:
                return
            member = self._membership = _Membership()
        try:
            revision = await self.round(member)
        except BaseException:
            await self._end(member)
            raise
        if not member.over:
            keeping = _keep(self.space, weakref.ref(self), weakref.ref(member), revision)
            spawn(self.space, keeping, f"raykeeper-{self.line.name!r}")

    async def leave(self) -> None:
        self.left = True
        member = self._membership
        if member is not None:
            await self._end(member)

    def mine(self) -> list[tuple[Partition, int]]:
        member = self._membership
        if member is None:
            if self._problem is not None:
                raise self._problem
            return []
        owned, place = member.owned, member.place
        if place is None or place.lost.is_set():
            return []
        return [(partition, owned[key]) for key, partition in self._keys.items() if key in owned]

    def fence(self, partition: Partition) -> tuple[bytes, int]:
        """The key and the token that stand for owning a partition."""
        key = next((key for key, each in self._keys.items() if each == partition), None)
        if key is None or isinstance(partition, bool):
            raise InvalidArgument(f"{check.shown(partition)} is none of the partitions of {self.line.name!r}")
        owned = dict(self.mine())
        if self._keys[key] not in owned:
            raise LockLost(f"partition {check.shown(partition)} is not owned by this member now")
        return key, owned[self._keys[key]]

    # -- being a member -----------------------------------------------------------------------------------------------

    def detach(self, member: _Membership, problem: KeeperError | None = None) -> Place | None:
        """A membership is over; what it hangs on is still to be ended."""
        with self._changing:
            if self._membership is member:
                self._membership, self._problem = None, problem
        member.over = True
        member.owned = {}
        place, member.place = member.place, None
        return place

    def abandon(self, member: _Membership, problem: KeeperError | None = None) -> None:
        """A membership is over, and nobody can wait until its lease is: that is kept alive no longer."""
        place = self.detach(member, problem)
        if place is not None:
            place.lost.set()

    async def _end(self, member: _Membership) -> None:
        place, watch = self.detach(member), member.watch
        if watch is not None:
            await stop(watch)  # so that who waits for it looks up
        if place is not None:
            await self.line.leave(place, self._shape_key, patience=self.space.timeout)

    # -- splitting ----------------------------------------------------------------------------------------------------

    async def round(self, member: _Membership) -> int:
        """Give back and take until nothing is left to do here; the revision at which that was so."""
        while not member.over:
            place = await self._present(member)
            listing = await settled(self.space.range(prefix=self.line.folder, sort="create_revision"))
            if not await self._split(member, place, listing):
                return listing.revision
        return 0

    async def _present(self, member: _Membership) -> Place:
        """This member's place; a new one if there is none, or if it was lost."""
        place = member.place
        if place is not None and not place.lost.is_set():
            return place
        member.owned = {}
        member.place = place = await self._take_place()
        if member.over:  # meanwhile, by another thread
            self.detach(member)
            await self.line.leave(place, self._shape_key, patience=self.space.timeout)
        return place

    async def _take_place(self) -> Place:
        line = self.line
        while True:
            same = [Compare.value(self._shape_key) == self._shape]
            place = await line.join(whoami(), compare=same, under=self._members, chained=False)
            if place is not None:
                return place
            # Nobody is here, or somebody with other partitions, which ends this. If somebody comes and goes before the
            # next look, he takes the shape with him.
            await line.agree(self._shape_key, self._shape, self._members)

    async def _split(self, member: _Membership, me: Place, listing: RangeResult) -> bool:
        """One step; whether something was changed, or may have been."""
        members = [item for item in listing if item.key.startswith(self._members)]
        owners = [item for item in listing if item.key.startswith(self._owners)]
        split = shares(members, owners, len(self._keys))
        mine = next((each for each in split if each.key == me.key), None)
        if mine is None:
            me.lost.set()  # somebody has removed it
            return True
        tokens = {item.key: item.create_revision for item in owners if item.lease == me.lease.id}
        member.owned = tokens
        surplus = list(tokens)[mine.quota :]
        if surplus:
            return await self._give(member, surplus[:RECIPE_MOVES], tokens)
        free = [key for key in self._keys if key not in {item.key for item in owners}]
        wanted = taking(split, free, me.key)
        return bool(wanted) and await self._take(member, wanted[:RECIPE_MOVES], me)

    async def _give(self, member: _Membership, keys: list[bytes], tokens: dict[bytes, int]) -> bool:
        # First it is not ours any more, then anybody else's.
        member.owned = {key: token for key, token in tokens.items() if key not in keys}
        await settled(
            self.space.txn(
                [Compare.create_revision(key) == tokens[key] for key in keys], [Op.delete(key) for key in keys]
            )
        )
        return True

    async def _take(self, member: _Membership, keys: list[bytes], me: Place) -> bool:
        result = await settled(
            self.space.txn(
                [Compare.create_revision(me.key) == me.token, *(Compare.version(key) == 0 for key in keys)],
                [Op.put(key, me.key[len(self._members) :], lease=me.lease) for key in keys],
            )
        )
        if result.succeeded:
            member.owned = {**member.owned, **dict.fromkeys(keys, result.revision)}
        else:
            await pause(self.space, RECIPE_PAUSE)  # somebody saw something else; look again
        return True


async def _keep(
    space: Handle, share: weakref.ref[_Partitioner], membership: weakref.ref[_Membership], revision: int
) -> None:
    """What goes on in the background. Both are held only for a moment at a time: a share that is forgotten gives up
    what it owns. If this ends while the membership does not, as when its event loop is closed, so does that."""
    try:
        while await _changed(space, share, membership, revision):
            logic, member = share(), membership()
            if logic is None or member is None or member.over:
                return
            try:
                revision = await logic.round(member)
            except InvalidArgument as error:  # it had lost its place, and others with other partitions have come
                logic.abandon(member, error)
                return
            except KeeperError:
                await pause(space, RECIPE_MAX_PAUSE)
            finally:
                logic = member = None
    except BaseException:
        logic, member = share(), membership()
        if logic is not None and member is not None:
            logic.abandon(member)
        raise


async def _changed(
    space: Handle, share: weakref.ref[_Partitioner], membership: weakref.ref[_Membership], revision: int
) -> bool:
    """Wait until there may be something to do; ``False`` when the membership is over."""
    logic, member = share(), membership()
    if logic is None or member is None or member.over:
        return False
    prefix, lost = logic.line.folder, None if member.place is None else member.place.lost
    logic = None
    try:
        watch = await watching(space, prefix=prefix, start_revision=revision + 1)
        try:
            member.watch = watch
            member = None
            while not _over(share, membership) and not (lost is None or lost.is_set()):
                if await news(watch, RECIPE_LOOK / 2) is not None:
                    break
        finally:
            await stop(watch)
    except CompactedError:
        pass
    except KeeperError:
        await pause(space, RECIPE_MAX_PAUSE)
    return not _over(share, membership)


def _over(share: weakref.ref[_Partitioner], membership: weakref.ref[_Membership]) -> bool:
    member = membership()
    return share() is None or member is None or member.over


def _partitions(partitions: object) -> list[Partition]:
    if isinstance(partitions, int) and not isinstance(partitions, bool):
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise InvalidArgument(f"there are 1 to {MAX_PARTITIONS} partitions, not {check.shown(partitions)}")
        return list(range(partitions))
    named = isinstance(partitions, (list, tuple)) and all(isinstance(each, str) and each for each in partitions)
    if named and isinstance(partitions, (list, tuple)) and 1 <= len(partitions) <= MAX_PARTITIONS:
        return list(partitions)
    raise InvalidArgument(
        f"partitions are a number or a list of names, 1 to {MAX_PARTITIONS}, not {check.shown(partitions)}"
    )


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
            Unavailable, RequestTimeout: the cluster cannot be reached; this is no member then.
        """
        drive(self._logic.join())

    def leave(self) -> None:
        """Give everything back, and be no member any more."""
        drive(self._logic.leave())

    def mine(self) -> list[tuple[Any, int]]:
        """The partitions that this member owns now, each with its token; joins if it is no member and has not
        left. Raises as ``join``."""
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
        """The partitions that this member owns now, each with its token.

        Raises:
            InvalidArgument: it is no member any more: it was cut off, and others with other partitions came.
        """
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
