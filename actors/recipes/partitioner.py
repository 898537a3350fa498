"""Divides a fixed set of partitions among the members that have joined, again whenever one joins, leaves or dies.

::

    with client.partitioner("logs", partitions=64) as share:
        while running:
            for partition, token in share.mine():
                share.guard(partition).put(f"offset/{partition}", collect(partition))

Each member is to own the same number of partitions, give or take one. A member that owns too many gives up the surplus;
a member that owns too few takes free ones, and only free ones. Each owned partition has a key, whose
``create_revision`` is the owner's token. So no two members own a partition at the same revision, and no more partitions
move than must. A partition may be lost between two calls of ``mine()``; a write through its ``guard`` is refused then.

- *A member dies*, or drops its share: within the TTL its partitions are free, and the others take them at once.
- *A member is cut off or paused* for longer than the TTL: the same. Before that, its ``mine()`` becomes empty and its
  guards refuse; when it is back, it joins again.
- *The cluster cannot be reached*: no partition moves meanwhile.
- *History is compacted*: the present is read.

All members watch the members and the partitions, so each move wakes each of them once.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from ...errors import CompactedError, InvalidArgument, KeeperError, LockLost
from ...limits import MAX_PARTITIONS, RECIPE_CHECK_S, RECIPE_MAX_PAUSE_S, RECIPE_MOVES_PER_TXN, RECIPE_PAUSE_S
from .. import arguments as check
from ..client.aio import AsyncKeyValueClient
from ..client.guard import guarded
from ..client.handle import KeyValueClient
from ..client.results import KeyValue, RangeResult
from ..client.txn_parts import Compare, Op
from ..client.watch import AsyncWatch, Watch
from .contenders import Contenders, Ticket
from .sync_async import (
    AnyHandle,
    Unpicklable,
    bounded,
    cancel_watch,
    next_event,
    open_watch,
    pause,
    quoted,
    resolved,
    run_sync,
    spawn,
    whoami,
)

if TYPE_CHECKING:
    from ..handles import AsyncClient, Client

Partition = int | str


class _Member(NamedTuple):
    key: bytes
    lease: int
    quota: int
    owns: list[bytes]


def shares(members: Sequence[KeyValue], owners: Sequence[KeyValue], partitions: int) -> list[_Member]:
    """What each member may own and does own, in the order in which they joined; the first ones may own one more."""
    every, more = divmod(partitions, len(members)) if members else (0, 0)
    owned: dict[int, list[bytes]] = {}
    for owner in owners:
        owned.setdefault(owner.lease, []).append(owner.key)
    return [
        _Member(member.key, member.lease, every + (index < more), owned.get(member.lease, []))
        for index, member in enumerate(members)
    ]


def taking(split: Sequence[_Member], free: Sequence[bytes], me: bytes) -> list[bytes]:
    """The free partitions that this member is to take. Members that see the same state compute disjoint lists."""
    at = 0
    for member in split:
        wants = max(0, member.quota - len(member.owns))
        if member.key == me:
            return list(free[at : at + wants])
        at += wants
    return []


class _Membership:
    """One membership, from ``join`` to ``leave``. The background work for it uses this object alone, so that nothing of
    an earlier membership can affect a later one."""

    __slots__ = ("__weakref__", "over", "owned", "ticket", "watch")

    def __init__(self) -> None:
        self.ticket: Ticket | None = None
        self.owned: dict[bytes, int] = {}
        """The keys of the partitions that are owned, with their tokens."""
        self.watch: Watch | AsyncWatch | None = None
        """The watch that waits for changes now."""
        self.over = False


class _Partitioner:
    def __init__(self, handle: AnyHandle, name: str | bytes, partitions: object, ttl: float) -> None:
        self.contenders = Contenders(handle, "partitioner", name, ttl)
        self.space = self.contenders.space
        self.partitions = _partitions(partitions)
        self._members = self.contenders.folder + b"m/"
        self._owners = self.contenders.folder + b"o/"
        self._keys = {self._owners + quoted(str(each)): each for each in self.partitions}
        if len(self._keys) != len(self.partitions):
            raise InvalidArgument("partitions must have different names")
        digest = hashlib.sha256(msgspec.json.encode(self.partitions)).hexdigest()[:16]
        self._shape_key = self.contenders.folder + b"shape"
        self._shape = f"{len(self.partitions)} partitions {digest}".encode()
        self._changing = threading.Lock()
        self._membership: _Membership | None = None
        self._problem: KeeperError | None = None
        """Why it is no longer a member, if it did not leave."""
        self.left = False
        """Whether it has left."""

    # -- calls --------------------------------------------------------------------------------------------------------

    @bounded
    async def join(self) -> None:
        """Become a member and take a first share; a failure leaves nothing of it. Then rebalance in the background."""
        with self._changing:
            self.left, self._problem = False, None
            if self._membership is not None:
                return
            member = self._membership = _Membership()
        try:
            revision = await self.rebalance(member)
        except BaseException:
            await self._end(member)
            raise
        if not member.over:
            keeping = _keep_balanced(self.space, weakref.ref(self), weakref.ref(member), revision)
            spawn(self.space, keeping, f"raykeeper-{self.contenders.name!r}")

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
        owned, ticket = member.owned, member.ticket
        if ticket is None or ticket.lost.is_set():
            return []
        return [(partition, owned[key]) for key, partition in self._keys.items() if key in owned]

    def fence(self, partition: Partition) -> tuple[bytes, int]:
        """The key and the token of a partition that this member owns. Raises ``LockLost`` if it does not."""
        key = next((key for key, each in self._keys.items() if each == partition), None)
        if key is None or isinstance(partition, bool):
            raise InvalidArgument(f"{check.shown(partition)} is not a partition of {self.contenders.name!r}")
        owned = dict(self.mine())
        if self._keys[key] not in owned:
            raise LockLost(f"partition {check.shown(partition)} is not owned by this member now")
        return key, owned[self._keys[key]]

    # -- membership ---------------------------------------------------------------------------------------------------

    def detach(self, member: _Membership, problem: KeeperError | None = None) -> Ticket | None:
        """Mark a membership as over; its ticket, which the caller gets, is still to be given up."""
        with self._changing:
            if self._membership is member:
                self._membership, self._problem = None, problem
        member.over = True
        member.owned = {}
        ticket, member.ticket = member.ticket, None
        return ticket

    def abandon(self, member: _Membership, problem: KeeperError | None = None) -> None:
        """Mark a membership as over where nothing can wait for the end of its lease: it is kept alive no longer."""
        ticket = self.detach(member, problem)
        if ticket is not None:
            ticket.lost.set()

    async def _end(self, member: _Membership) -> None:
        ticket, watch = self.detach(member), member.watch
        if watch is not None:
            await cancel_watch(watch)  # which ends the wait of the background work
        if ticket is not None:
            await self.contenders.leave(ticket, self._shape_key, max_wait=self.space.timeout)

    # -- splitting ----------------------------------------------------------------------------------------------------

    async def rebalance(self, member: _Membership) -> int:
        """Give up and take partitions until there is nothing to do; the revision at which that was so."""
        while not member.over:
            ticket = await self._ensure_ticket(member)
            listing = await resolved(self.space.range(prefix=self.contenders.folder, sort="create_revision"))
            if not await self._split(member, ticket, listing):
                return listing.revision
        return 0

    async def _ensure_ticket(self, member: _Membership) -> Ticket:
        """This member's ticket; a new one if there is none, or if it was lost. Then nothing is owned any more."""
        ticket = member.ticket
        if ticket is not None and not ticket.lost.is_set():
            return ticket
        member.owned = {}
        member.ticket = ticket = await self._join()
        if member.over:  # it left meanwhile, by another thread
            self.detach(member)
            await self.contenders.leave(ticket, self._shape_key, max_wait=self.space.timeout)
        return ticket

    async def _join(self) -> Ticket:
        contenders = self.contenders
        while True:
            same = [Compare.value(self._shape_key) == self._shape]
            ticket = await contenders.join(whoami(), compare=same, prefix=self._members, chained=False)
            if ticket is not None:
                return ticket
            # There are no members, or members with other partitions, which is an error. It may take several attempts:
            # a member that comes and goes in between takes the key of the shape with it.
            await contenders.agree_on(self._shape_key, self._shape, self._members)

    async def _split(self, member: _Membership, me: Ticket, listing: RangeResult) -> bool:
        """Give up or take some partitions; whether anything was changed, or may have been.

        Partitions are given up first, so that they are free for others as soon as possible. What this member owns
        follows from the listing alone: keys attached to its present lease, with their ``create_revision`` as tokens.
        """
        members = [item for item in listing if item.key.startswith(self._members)]
        owners = [item for item in listing if item.key.startswith(self._owners)]
        split = shares(members, owners, len(self._keys))
        mine = next((each for each in split if each.key == me.key), None)
        if mine is None:
            me.lost.lose()  # its key was deleted
            return True
        tokens = {item.key: item.create_revision for item in owners if item.lease == me.lease.id}
        member.owned = tokens
        surplus = list(tokens)[mine.quota :]
        if surplus:
            return await self._give_up(member, surplus[:RECIPE_MOVES_PER_TXN], tokens)
        free = [key for key in self._keys if key not in {item.key for item in owners}]
        wanted = taking(split, free, me.key)
        return bool(wanted) and await self._take(member, wanted[:RECIPE_MOVES_PER_TXN], me)

    async def _give_up(self, member: _Membership, keys: list[bytes], tokens: dict[bytes, int]) -> bool:
        # ``mine()`` must not name a partition any more when another member can own it.
        member.owned = {key: token for key, token in tokens.items() if key not in keys}
        await resolved(
            self.space.txn(
                [Compare.create_revision(key) == tokens[key] for key in keys], [Op.delete(key) for key in keys]
            )
        )
        return True

    async def _take(self, member: _Membership, keys: list[bytes], me: Ticket) -> bool:
        """Take free partitions in one transaction, on condition that all are free and this member's ticket exists."""
        result = await resolved(
            self.space.txn(
                [Compare.create_revision(me.key) == me.token, *(Compare.version(key) == 0 for key in keys)],
                [Op.put(key, me.key[len(self._members) :], lease=me.lease) for key in keys],
            )
        )
        if result.succeeded:
            member.owned = {**member.owned, **dict.fromkeys(keys, result.revision)}
        else:
            await pause(self.space, RECIPE_PAUSE_S)  # another member saw something else: read again
        return True


async def _keep_balanced(
    space: AnyHandle, share: weakref.ref[_Partitioner], membership: weakref.ref[_Membership], revision: int
) -> None:
    """The background work for a membership: rebalance after every change.

    Both objects are held weakly while it waits, so that a share that was dropped gives up what it owns. If this work
    ends in another way, as when its event loop is closed, the membership ends too.
    """
    try:
        while await _changed(space, share, membership, revision):
            logic, member = share(), membership()
            if logic is None or member is None or member.over:
                return
            try:
                revision = await logic.rebalance(member)
            except InvalidArgument as error:  # its ticket was lost, and members with other partitions have joined
                logic.abandon(member, error)
                return
            except KeeperError:
                await pause(space, RECIPE_MAX_PAUSE_S)
            finally:
                logic = member = None
    except BaseException:
        logic, member = share(), membership()
        if logic is not None and member is not None:
            logic.abandon(member)
        raise


async def _changed(
    space: AnyHandle, share: weakref.ref[_Partitioner], membership: weakref.ref[_Membership], revision: int
) -> bool:
    """Wait until there may be something to do: a change of members or owners, or the loss of this member's lease;
    ``False`` when the membership is over."""
    logic, member = share(), membership()
    if logic is None or member is None or member.over:
        return False
    prefix, lost = logic.contenders.folder, None if member.ticket is None else member.ticket.lost
    logic = None
    try:
        watch = await open_watch(space, prefix=prefix, start_revision=revision + 1)
        try:
            member.watch = watch
            member = None
            while not _over(share, membership) and not (lost is None or lost.is_set()):
                if await next_event(watch, RECIPE_CHECK_S / 2) is not None:
                    break
        finally:
            await cancel_watch(watch)
    except CompactedError:
        pass
    except KeeperError:
        await pause(space, RECIPE_MAX_PAUSE_S)
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


class _PartitionerBase(Unpicklable):
    _logic: _Partitioner

    @property
    def partitions(self) -> list[Any]:
        """All partitions, whichever member owns them."""
        return list(self._logic.partitions)


class Partitioner(_PartitionerBase):
    """A member that owns its share of a fixed set of partitions; made by ``client.partitioner``.

    ::

        with client.partitioner("logs", partitions=64) as share:
            for partition, token in share.mine():
                share.guard(partition).put(f"offset/{partition}", "...")
    """

    def __init__(
        self, client: KeyValueClient, name: str | bytes, partitions: int | Sequence[str], ttl: float = 10
    ) -> None:
        self._logic = _Partitioner(client, name, partitions, ttl)

    def join(self) -> None:
        """Become a member, as ``mine`` does too; does nothing if this is one already.

        Raises:
            InvalidArgument: the present members have other partitions.
            Unavailable, RequestTimeout: the cluster cannot be reached; this is not a member then.
        """
        run_sync(self._logic.join())

    def leave(self) -> None:
        """Give up all partitions, and stop being a member."""
        run_sync(self._logic.leave())

    def mine(self) -> list[tuple[Any, int]]:
        """The partitions that this member owns now, each with its fencing token.

        It joins first if this is not a member and has not left, and raises as ``join`` then.
        """
        if not self._logic.left:
            self.join()
        return self._logic.mine()

    def guard(self, partition: int | str) -> Client:
        """A handle like the client, whose every write is refused with ``LockLost`` once this member no longer owns the
        partition.

        Raises:
            LockLost: this member does not own the partition now.
            InvalidArgument: there is no such partition.
        """
        contenders = self._logic.contenders
        return guarded(cast("Client", contenders.handle), contenders.space, *self._logic.fence(partition))

    def __enter__(self) -> Partitioner:
        self.join()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()


class AsyncPartitioner(_PartitionerBase):
    """As ``Partitioner``, for asyncio. Here ``mine`` is not a coroutine, so it does not join by itself."""

    def __init__(
        self, client: AsyncKeyValueClient, name: str | bytes, partitions: int | Sequence[str], ttl: float = 10
    ) -> None:
        self._logic = _Partitioner(client, name, partitions, ttl)

    async def join(self) -> None:
        """See ``Partitioner.join``."""
        await self._logic.join()

    async def leave(self) -> None:
        """See ``Partitioner.leave``."""
        await self._logic.leave()

    def mine(self) -> list[tuple[Any, int]]:
        """The partitions that this member owns now, each with its fencing token.

        Raises:
            InvalidArgument: this is no longer a member: it was cut off, and members with other partitions have joined.
        """
        return self._logic.mine()

    def guard(self, partition: int | str) -> AsyncClient:
        """See ``Partitioner.guard``."""
        contenders = self._logic.contenders
        return guarded(cast("AsyncClient", contenders.handle), contenders.space, *self._logic.fence(partition))

    async def __aenter__(self) -> AsyncPartitioner:
        await self.join()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()
