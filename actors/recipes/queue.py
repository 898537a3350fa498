"""A queue of work: each item is done by one worker, and comes back if that worker dies.

::

    queue = client.queue("shards")
    queue.put("shard-17")
    claim = queue.claim()           # waits for an item
    work(claim.item)
    claim.ack()                     # done: the item is gone; or claim.nack(): somebody else should do it

Items come out by priority (lower numbers first), and within one in the order in which they were put: one whose ``put``
had returned before another one's began comes first. An item that comes back takes its old place. *A worker dies*, or
forgets its claim: within the TTL (and a second) the item can be claimed again. *A worker is paused, or cut off for
longer than the TTL*: the same, and its ``ack`` is refused with ``LockLost``; of all claims of an item one is
acknowledged. So no item is lost, and none acknowledged twice; but the work itself may be done more than once, and what
it writes should go through ``claim.guard()``. *The cluster cannot be reached*: calls raise; a waiting ``claim`` waits
until its lease is lost. *History is compacted*: the present is looked at.

Workers that wait form a line; a new item wakes the first of it only, and who comes while others wait stands behind
them. Handing out takes one step after the other, so a queue is for hundreds of items a second, not for thousands.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any

from ...errors import CompactedError, InvalidArgument, KeeperError, LockLost, RequestTimeout, Unavailable
from ...limits import RECIPE_LOOK_AT_ONCE, RECIPE_SPARE_LEASES
from ..client import arguments as check
from ..client.aio import AsyncClient
from ..client.guard import guarded
from ..client.handle import Client
from ..client.leases import AsyncLease, Lease
from ..client.operations import Compare, Op
from ..client.results import KeyValue
from .faces import (
    Deadline,
    Handle,
    Unpicklable,
    bounded,
    decoded,
    drive,
    encoded,
    news,
    once,
    settled,
    stop,
    watching,
    whoami,
)
from .line import Line, Place, begin, drop, head, tail

_MIDDLE = 2**31


class _Claimed:
    """An item in somebody's hands."""

    def __init__(self, queue: _Queue, suffix: bytes, raw: bytes, token: int, lease: Lease | AsyncLease) -> None:
        self.queue = queue
        self.space = queue.space
        self.item_key = queue.items + suffix
        self.key = queue.claims + suffix
        self.raw = raw
        self.token = token
        self.lease = lease
        self.over = False
        self.doubtful = False
        """Whether an attempt to finish it ended without an answer."""

    async def ack(self) -> None:
        if not await self._finish(Op.delete(self.item_key), Op.delete(self.key)):
            name = self.queue.line.name
            if self.doubtful:  # the attempt before this may have done it
                raise LockLost(f"the claim of an item of {name!r} is over; nobody knows whether by ack", applied=None)
            raise LockLost(f"the claim of an item of {name!r} was lost: the item is not acknowledged")

    async def nack(self) -> None:
        if self.over:
            return
        try:
            await self._finish(Op.delete(self.key))
        except BaseException as error:  # the end of the lease does it
            self.over = True
            await drop(self.lease)
            if not isinstance(error, KeeperError):
                raise

    @bounded
    async def _finish(self, *then: Op) -> bool:
        if self.over:
            raise InvalidArgument("this claim is over: it was acknowledged or given back")
        doubtful, self.doubtful = self.doubtful, True
        try:
            done = await settled(
                self.queue.line.space.txn([Compare.create_revision(self.key) == self.token], list(then))
            )
        except KeeperError as error:
            self.doubtful = doubtful or error.applied is not False
            raise
        self.doubtful = doubtful
        self.over = True
        if done.succeeded:
            self.queue.keep(self.lease)
        else:
            await drop(self.lease)
        return done.succeeded


class _Queue:
    def __init__(self, handle: Handle, name: str | bytes, ttl: float) -> None:
        self.line = Line(handle, "queue", name, ttl)
        self.space = self.line.space
        self.items = self.line.folder + b"i/"
        self.claims = self.line.folder + b"c/"
        self.waiting = self.line.folder + b"w/"
        self._spare: list[Lease | AsyncLease] = []

    @bounded
    async def put(self, item: object, priority: object, request_id: str | bytes | None) -> None:
        if isinstance(priority, bool) or not isinstance(priority, int) or not -_MIDDLE <= priority < _MIDDLE:
            raise InvalidArgument(f"a priority is a whole number of at most 31 bits, not {check.shown(priority)}")
        data = encoded(self.line.handle, item)
        # A revision is the order: whatever was put before this call began lies behind a smaller one.
        now = await settled(self.line.space.revision())
        key = self.items + b"%08x/%016x/%s" % (priority + _MIDDLE, now, os.urandom(4).hex().encode())
        meaning = once(self.line.handle, request_id, b"queue", self.items, b"%d" % priority, data)
        await settled(self.line.space.put(key, data, request_id=meaning))

    @bounded
    async def size(self) -> int:
        return (await settled(self.line.space.range(prefix=self.items, count_only=True))).count

    async def claim(self, timeout: float | None) -> _Claimed | None:
        deadline = Deadline(timeout)
        lease = place = claimed = None
        try:
            with deadline.covering(self.space):
                lease = await self._lease()
                claimed, _ = await self._pick(lease, None)
                if claimed is None and deadline.left:
                    place = await self.line.take(lease, self.waiting, b"", whoami())
                    if place is not None and await self.line.turn(place, deadline):
                        claimed = await self._at_its_turn(lease, place, deadline)
            return claimed
        except (RequestTimeout, Unavailable) as error:
            if deadline.cut(error, began=lease is not None):
                return None
            raise
        finally:
            if claimed is None and place is not None:
                await self.line.leave(place, head(self.waiting))
            elif claimed is None and lease is not None:
                await drop(lease)

    async def _lease(self) -> Lease | AsyncLease:
        while self._spare:
            try:
                lease = self._spare.pop()
            except IndexError:  # another thread took it
                break
            if lease.remaining() > self.line.ttl / 3:
                return lease
        made, _ = await begin(self.line.space, self.line.ttl, lambda id: Op.txn())
        assert made is not None  # without comparisons
        return made

    def keep(self, lease: Lease | AsyncLease) -> None:
        """A lease that nothing hangs on any more serves the next claim."""
        if not lease.lost.is_set() and len(self._spare) < RECIPE_SPARE_LEASES:
            self._spare.append(lease)

    async def _at_its_turn(self, lease: Lease | AsyncLease, place: Place, deadline: Deadline) -> _Claimed | None:
        while True:
            claimed, revision = await self._pick(lease, place)
            if claimed is not None:
                return claimed
            if not deadline.left:
                return None
            await self._change(place, revision, deadline)

    async def _pick(self, lease: Lease | AsyncLease, place: Place | None) -> tuple[_Claimed | None, int]:
        """Claim the first free item, if there is one and it is this worker's turn; and the revision that was seen."""
        # Who stands in no line takes an item only if nobody waits.
        none = Compare.version(prefix=self.waiting) == 0
        turn = none if place is None else Compare.create_revision(place.key) == place.token
        while True:
            try:
                free, revision = await self._first_free()
            except CompactedError:
                continue
            if free is None:
                return None, revision
            suffix = free.key[len(self.items) :]
            key = self.claims + suffix
            result = await settled(
                self.line.space.txn(
                    [turn, Compare.create_revision(free.key) == free.create_revision, Compare.version(key) == 0],
                    [
                        Op.get(free.key),
                        Op.put(key, whoami(), lease=lease),
                        *([] if place is None else self._turn_over(place)),
                    ],
                )
            )
            if result.succeeded:
                item = result.responses[0]
                assert isinstance(item, KeyValue)
                return _Claimed(self, suffix, item.raw, result.revision, lease), result.revision
            if place is None:
                return None, revision  # others are faster, or wait: stand in line
            await self.line.check(place)

    def _turn_over(self, place: Place) -> list[Op]:
        """What ends a turn in the line, while the lease goes on."""
        last, turn = tail(place.under), head(place.under)
        empty = Op.txn([self.line.alone(place)], [Op.delete(last), Op.delete(turn)], [self.line.had_turn(place)])
        return [empty, Op.delete(place.key)]

    async def _first_free(self) -> tuple[KeyValue | None, int]:
        """The first item that nobody has claimed, and the revision at which that was so."""
        space, skip = self.line.space, len(self.items)
        start, revision = self.items, None
        while True:
            items = await settled(
                space.range(start, self.items[:-1] + b"0", limit=RECIPE_LOOK_AT_ONCE, keys_only=True, revision=revision)
            )
            revision = items.revision if revision is None else revision
            if not items.items:
                return None, revision
            first, last = items.items[0].key[skip:], items.items[-1].key[skip:]
            claims = await settled(
                space.range(self.claims + first, self.claims + last + b"\0", keys_only=True, revision=revision)
            )
            taken = {claim.key[skip:] for claim in claims}
            for item in items:
                if item.key[skip:] not in taken:
                    return item, revision
            start = items.items[-1].key + b"\0"

    async def _change(self, place: Place, revision: int, deadline: Deadline) -> None:
        """Wait until an item is put or comes back."""
        watch = await watching(self.line.space, self.claims, self.items[:-1] + b"0", start_revision=revision + 1)
        try:
            while deadline.left:
                self.line.alive(place)
                event = await news(watch, self.line.patience(place, deadline))
                if event is not None and (event.type == "put") == event.kv.key.startswith(self.items):
                    return
        except CompactedError:
            pass
        finally:
            await stop(watch)


class _ClaimFace(Unpicklable):
    """What needs no waiting."""

    def __init__(self, claimed: _Claimed) -> None:
        self._claimed = claimed

    @property
    def item(self) -> Any:
        """What was put into the queue.

        Raises:
            DecodeError: the handle's codec cannot read it.
        """
        return decoded(self._claimed.queue.line.handle, self._claimed.raw)

    @property
    def token(self) -> int:
        """The fencing token: a later claim of the same item has a greater one."""
        return self._claimed.token

    @property
    def lost(self) -> threading.Event:
        """Set once the claim can no longer be guaranteed: the item goes to somebody else."""
        return self._claimed.lease.lost

    def __repr__(self) -> str:
        state = "over" if self._claimed.over else "lost" if self.lost.is_set() else "held"
        return f"<{type(self).__name__} of {self._claimed.raw[:40]!r}, {state}>"


class Claim(_ClaimFace):
    """An item that this process works on. As a context manager it is acknowledged at the end, or given back if there
    was an exception."""

    def ack(self) -> None:
        """The item is done.

        Raises:
            LockLost: the claim was lost before, so the item is or will be somebody else's. With ``applied=None`` where
                an ``ack`` before this ended without an answer: then it may be that one which has acknowledged it.
            InvalidArgument: the claim is over already.
        """
        drive(self._claimed.ack())

    def nack(self) -> None:
        """Give the item back at once. Does nothing if the claim is over or lost. If the cluster cannot be told, nothing
        is raised: it is told in the background, and the TTL does the rest."""
        drive(self._claimed.nack())

    def guard(self) -> Client:
        """The client, but every write is refused with ``LockLost`` once the claim is over or lost."""
        claimed, line = self._claimed, self._claimed.queue.line
        assert isinstance(line.handle, Client)
        return guarded(line.handle, line.space, claimed.key, claimed.token)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._claimed.over:
            return
        if error is None:
            self.ack()
            return
        self.nack()


class AsyncClaim(_ClaimFace):
    """The same as ``Claim`` for asyncio."""

    async def ack(self) -> None:
        """See ``Claim.ack``."""
        await self._claimed.ack()

    async def nack(self) -> None:
        """See ``Claim.nack``."""
        await self._claimed.nack()

    def guard(self) -> AsyncClient:
        """See ``Claim.guard``."""
        claimed, line = self._claimed, self._claimed.queue.line
        assert isinstance(line.handle, AsyncClient)
        return guarded(line.handle, line.space, claimed.key, claimed.token)

    async def __aenter__(self) -> AsyncClaim:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._claimed.over:
            return
        if error is None:
            await self.ack()
            return
        await self.nack()


class Queue(Unpicklable):
    """A queue; see the module."""

    def __init__(self, client: Client, name: str | bytes, ttl: float = 10) -> None:
        self._queue = _Queue(client, name, ttl)

    def put(self, item: Any, priority: int = 0, *, request_id: str | bytes | None = None) -> None:
        """Put an item in.

        Args:
            item: ``bytes`` or ``str``, or what the handle's codec takes.
            priority: lower numbers come out first.
            request_id: the same again puts it once.
        """
        drive(self._queue.put(item, priority, request_id))

    def claim(self, timeout: float | None = None) -> Claim | None:
        """Wait for an item.

        Args:
            timeout: seconds, ``None`` for ever, 0 not at all.

        Returns:
            The claim, or ``None`` if there was no item in time (for a ``with`` block see ``claiming``).

        Raises:
            LeaseLost: the cluster was out of reach for the TTL.
        """
        claimed = drive(self._queue.claim(timeout))
        return None if claimed is None else Claim(claimed)

    @contextlib.contextmanager
    def claiming(self, timeout: float | None = None) -> Iterator[Claim | None]:
        """``with queue.claiming(timeout=5) as claim:`` is ``claim`` for a ``with`` block that also runs when there was
        no item in time: then ``claim`` is ``None``."""
        claim = self.claim(timeout)
        if claim is None:
            yield None
        else:
            with claim:
                yield claim

    def __len__(self) -> int:
        """Items that are not acknowledged yet, claimed or not."""
        return drive(self._queue.size())

    def __bool__(self) -> bool:
        return True


class AsyncQueue(Unpicklable):
    """A queue for asyncio; see the module and ``Queue``."""

    def __init__(self, client: AsyncClient, name: str | bytes, ttl: float = 10) -> None:
        self._queue = _Queue(client, name, ttl)

    async def put(self, item: Any, priority: int = 0, *, request_id: str | bytes | None = None) -> None:
        """See ``Queue.put``."""
        await self._queue.put(item, priority, request_id)

    async def claim(self, timeout: float | None = None) -> AsyncClaim | None:
        """See ``Queue.claim``."""
        claimed = await self._queue.claim(timeout)
        return None if claimed is None else AsyncClaim(claimed)

    @contextlib.asynccontextmanager
    async def claiming(self, timeout: float | None = None) -> AsyncIterator[AsyncClaim | None]:
        """See ``Queue.claiming``."""
        claim = await self.claim(timeout)
        if claim is None:
            yield None
        else:
            async with claim:
                yield claim

    async def size(self) -> int:
        """Items that are not acknowledged yet, claimed or not."""
        return await self._queue.size()
