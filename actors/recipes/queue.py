"""A work queue: each item is done by one worker, and comes back if that worker dies.

::

    queue = client.queue("shards")
    queue.put("shard-17")
    claim = queue.claim()           # waits for an item
    work(claim.item)
    claim.ack()                     # done: the item is gone; or claim.nack(): another worker should do it

Items come out by priority, lower numbers first, and within a priority in the order in which they were put: if one
``put`` had returned before another began, its item comes first. An item that comes back is in its old position.

- *A worker dies*, or drops its claim: within the TTL (and a second) the item can be claimed again.
- *A worker is paused, or cut off for longer than the TTL*: the same, and its ``ack`` is refused with ``LockLost``. Of
  all claims of an item, one is acknowledged. So no item is lost, and none is acknowledged twice. But the work may be
  done more than once, so what it writes should go through ``claim.guard()``.
- *The cluster cannot be reached*: calls raise; a ``claim`` that waits goes on until its lease is lost.
- *History is compacted*: the present is read.

Workers that wait form a line; a new item wakes only the first, and a worker that comes while others wait joins at the
end. Items are handed out one after another, so a queue is for hundreds of items a second, not for thousands.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast, overload

from ...errors import (
    CompactedError,
    InvalidArgument,
    KeeperError,
    LeaseLost,
    LeaseNotFound,
    LockLost,
    RequestTimeout,
    Unavailable,
)
from ...limits import RECIPE_SCAN_ITEMS, RECIPE_SPARE_LEASES
from .. import arguments as check
from ..client.aio import AsyncKeyValueClient
from ..client.bindings import binding_of
from ..client.guard import guarded
from ..client.handle import KeyValueClient
from ..client.leases import AsyncLease, Lease
from ..client.results import KeyValue
from ..client.txn_parts import Compare, Op
from ..finalizer_guard import LockFreeEvent
from .contenders import Contenders, Ticket, drop_lease, head, leased_txn_or_nothing, tail
from .sync_async import (
    AnyHandle,
    TimeLimit,
    Unpicklable,
    bounded,
    cancel_watch,
    decoded,
    encoded,
    next_event,
    open_watch,
    recipe_request_id,
    resolved,
    run_sync,
    whoami,
)

if TYPE_CHECKING:
    from ..handles import AsyncClient, Client

_MIDDLE = 2**31


class _Claimed:
    """An item that this process has claimed. The claim is a key, attached to a lease; its ``create_revision`` is the
    token."""

    def __init__(self, queue: _Queue, suffix: bytes, raw: bytes, token: int, lease: Lease | AsyncLease) -> None:
        self.queue = queue
        self.space = queue.space
        self.item_key = queue.items + suffix
        self.key = queue.claims + suffix
        self.raw = raw
        self.token = token
        self.lease = lease
        self.bound = False
        """Whether the lease is bound to something else than this process."""
        self.over = False
        self.finished = LockFreeEvent()
        """Set once it was acknowledged or given back while it was held. Who waits for that need not keep the claim."""
        self.maybe_finished = False
        """Whether an attempt to finish the claim ended without an answer."""

    async def ack(self) -> None:
        if not await self._finish(Op.delete(self.item_key), Op.delete(self.key)):
            name = self.queue.contenders.name
            if self.maybe_finished:  # an earlier attempt may have done it
                raise LockLost(f"the claim of an item of {name!r} is over; whether by ack is unknown", applied=None)
            raise LockLost(f"the claim of an item of {name!r} was lost: the item is not acknowledged")

    async def nack(self) -> None:
        if self.over:
            return
        try:
            await self._finish(Op.delete(self.key))
        except BaseException as error:  # the end of the lease ends the claim
            self.over = True
            await drop_lease(self.lease)
            if not isinstance(error, KeeperError):
                raise

    @bounded
    async def _finish(self, *then: Op) -> bool:
        """End the claim by a transaction, on condition that it is still held; whether it was.

        While the request is open, and if it ends without a certain outcome, ``maybe_finished`` is set: the next attempt
        cannot tell then whether the claim was lost or was finished by this one. A claim that is finished leaves its
        lease to the next claim.
        """
        if self.over:
            raise InvalidArgument("this claim is over: it was acknowledged or given back")
        before, self.maybe_finished = self.maybe_finished, True
        try:
            done = await resolved(
                self.queue.contenders.space.txn([Compare.create_revision(self.key) == self.token], list(then))
            )
        except KeeperError as error:
            self.maybe_finished = before or error.applied is not False
            raise
        self.maybe_finished = before
        self.over = True
        if done.succeeded:
            self.finished.set()
        elif not before:  # nor was it finished by an earlier attempt
            self.lease.lost.lose()
        if done.succeeded and not self.bound:
            self.queue.keep_spare(self.lease)
        else:
            await drop_lease(self.lease)
        return done.succeeded


class _Queue:
    def __init__(self, handle: AnyHandle, name: str | bytes, ttl: float) -> None:
        self.contenders = Contenders(handle, "queue", name, ttl)
        self.space = self.contenders.space
        self.items = self.contenders.folder + b"i/"
        self.claims = self.contenders.folder + b"c/"
        self.waiting = self.contenders.folder + b"w/"
        self._spare: list[Lease | AsyncLease] = []

    @bounded
    async def put(self, item: object, priority: object, request_id: str | bytes | None) -> None:
        if isinstance(priority, bool) or not isinstance(priority, int) or not -_MIDDLE <= priority < _MIDDLE:
            raise InvalidArgument(f"a priority is a whole number of at most 31 bits, not {check.shown(priority)}")
        data = encoded(self.contenders.handle, item)
        # The present revision gives the order: an item that was put before this call began has a smaller one.
        now = await resolved(self.contenders.space.revision())
        key = self.items + b"%08x/%016x/%s" % (priority + _MIDDLE, now, os.urandom(4).hex().encode())
        meaning = recipe_request_id(self.contenders.handle, request_id, b"queue", self.items, b"%d" % priority, data)
        await resolved(self.contenders.space.put(key, data, request_id=meaning))

    @bounded
    async def size(self) -> int:
        return (await resolved(self.contenders.space.range(prefix=self.items, count_only=True))).count

    async def claim(self, timeout: float | None, bound_to: Any = None) -> _Claimed | None:
        """Claim the first free item, waiting in line if there is none; ``None`` when the time is over.

        One lease carries the place in line and then the claim. If nothing was claimed, it is ended on every way out,
        and with it the place in line.
        """
        deadline = TimeLimit(timeout)
        binding_of(bound_to)
        lease = ticket = claimed = None
        try:
            with deadline.covering(self.space):
                lease = await self._lease(bound_to)
                try:
                    claimed, ticket = await self._claim_or_join(lease, deadline)
                except LeaseNotFound:  # a spare one that was revoked since: nothing was attached to it
                    await drop_lease(lease)
                    lease = await self._new_lease(bound_to)
                    claimed, ticket = await self._claim_or_join(lease, deadline)
                if ticket is not None and await self.contenders.wait_turn(ticket, deadline):
                    claimed = await self._claim_in_turn(lease, ticket, deadline)
                if claimed is not None:
                    claimed.bound = bound_to is not None
            return claimed
        except LeaseNotFound as error:
            raise LeaseLost(f"the lease of a claim from {self.contenders.name!r} has ended") from error
        except (RequestTimeout, Unavailable) as error:
            if deadline.caused(error, answered=lease is not None):
                return None
            raise
        finally:
            if claimed is None and ticket is not None:
                await self.contenders.leave(ticket, head(self.waiting))
            elif claimed is None and lease is not None:
                await drop_lease(lease)

    async def _claim_or_join(
        self, lease: Lease | AsyncLease, deadline: TimeLimit
    ) -> tuple[_Claimed | None, Ticket | None]:
        """Claim an item at once, or join the line while there is time.

        Raises:
            LeaseNotFound: the lease has ended, and nothing was done.
        """
        claimed, _ = await self._try_claim(lease, None)
        if claimed is not None or not deadline.left:
            return claimed, None
        return None, await self.contenders.join_with_lease(lease, self.waiting, b"", whoami())

    async def _lease(self, bound_to: Any) -> Lease | AsyncLease:
        """A lease for the next claim: a spare one with enough time left, or a new one."""
        while self._spare and bound_to is None:
            try:
                lease = self._spare.pop()
            except IndexError:  # another thread took it
                break
            if lease.remaining() > self.contenders.ttl / 3:
                return lease
        return await self._new_lease(bound_to)

    async def _new_lease(self, bound_to: Any) -> Lease | AsyncLease:
        space, ttl = self.contenders.space, self.contenders.ttl
        made, _ = await leased_txn_or_nothing(space, ttl, lambda id: Op.txn(), bound_to)
        assert made is not None  # without comparisons
        return made

    def keep_spare(self, lease: Lease | AsyncLease) -> None:
        """Keep a lease that nothing is attached to any more for the next claim."""
        if not lease.lost.is_set() and len(self._spare) < RECIPE_SPARE_LEASES:
            self._spare.append(lease)

    async def _claim_in_turn(self, lease: Lease | AsyncLease, ticket: Ticket, deadline: TimeLimit) -> _Claimed | None:
        while True:
            claimed, revision = await self._try_claim(lease, ticket)
            if claimed is not None:
                return claimed
            if not deadline.left:
                return None
            await self._wait_for_item(ticket, revision, deadline)

    async def _try_claim(self, lease: Lease | AsyncLease, ticket: Ticket | None) -> tuple[_Claimed | None, int]:
        """Claim the first free item, if there is one and it is this worker's turn; and the revision that was read.

        Finding the item and claiming it are two requests, so the claim is a transaction on condition that the item
        still exists, is not claimed, and that it is this worker's turn. A worker with a ticket leaves the line in the
        same transaction. If the transaction is refused, a worker that has the turn tries again; another one must join
        the line.
        """
        # A worker without a ticket may take an item only if no worker waits.
        none = Compare.version(prefix=self.waiting) == 0
        turn = none if ticket is None else Compare.create_revision(ticket.key) == ticket.token
        while True:
            try:
                free, revision = await self._first_free()
            except CompactedError:
                continue
            if free is None:
                return None, revision
            suffix = free.key[len(self.items) :]
            key = self.claims + suffix
            result = await resolved(
                self.contenders.space.txn(
                    [turn, Compare.create_revision(free.key) == free.create_revision, Compare.version(key) == 0],
                    [
                        Op.get(free.key),
                        Op.put(key, whoami(), lease=lease),
                        *([] if ticket is None else self._leave_line(ticket)),
                    ],
                )
            )
            if result.succeeded:
                item = result.responses[0]
                assert isinstance(item, KeyValue)
                return _Claimed(self, suffix, item.raw, result.revision, lease), result.revision
            if ticket is None:
                return None, revision  # others were faster, or are waiting: join the line
            await self.contenders.check_key(ticket)

    def _leave_line(self, ticket: Ticket) -> list[Op]:
        """The operations that end a turn in the line, while the lease goes on."""
        last, turn = tail(ticket.prefix), head(ticket.prefix)
        empty = Op.txn(
            [self.contenders.alone(ticket)],
            [Op.delete(last), Op.delete(turn)],
            [self.contenders.record_release(ticket)],
        )
        return [empty, Op.delete(ticket.key)]

    async def _first_free(self) -> tuple[KeyValue | None, int]:
        """The first item without a claim, and the revision at which that was so.

        Items and claims have the same suffixes, in the same order. So a page of items is compared with the claims of
        the same range, all at one revision.
        """
        space, skip = self.contenders.space, len(self.items)
        start, revision = self.items, None
        while True:
            items = await resolved(
                space.range(start, self.items[:-1] + b"0", limit=RECIPE_SCAN_ITEMS, keys_only=True, revision=revision)
            )
            revision = items.revision if revision is None else revision
            if not items.items:
                return None, revision
            first, last = items.items[0].key[skip:], items.items[-1].key[skip:]
            claims = await resolved(
                space.range(self.claims + first, self.claims + last + b"\0", keys_only=True, revision=revision)
            )
            taken = {claim.key[skip:] for claim in claims}
            for item in items:
                if item.key[skip:] not in taken:
                    return item, revision
            start = items.items[-1].key + b"\0"

    async def _wait_for_item(self, ticket: Ticket, revision: int, deadline: TimeLimit) -> None:
        """Wait until an item is put, or a claim ends so that its item comes back."""
        watch = await open_watch(
            self.contenders.space, self.claims, self.items[:-1] + b"0", start_revision=revision + 1
        )
        try:
            while deadline.left:
                self.contenders.check_lease(ticket)
                event = await next_event(watch, self.contenders.wait_limit(ticket, deadline))
                if event is not None and (event.type == "put") == event.kv.key.startswith(self.items):
                    return
        except CompactedError:
            pass
        finally:
            await cancel_watch(watch)


class _ClaimBase(Unpicklable):
    """What needs no request to the cluster."""

    def __init__(self, claimed: _Claimed) -> None:
        self._claimed = claimed

    @property
    def item(self) -> Any:
        """The item that was put into the queue.

        Raises:
            DecodeError: the handle's codec cannot read it.
        """
        return decoded(self._claimed.queue.contenders.handle, self._claimed.raw)

    @property
    def token(self) -> int:
        """The fencing token: later claims of the same item have greater ones."""
        return self._claimed.token

    @property
    def over(self) -> bool:
        """Whether it was acknowledged or given back."""
        return self._claimed.over

    @property
    def lost(self) -> threading.Event:
        """Set when the claim can no longer be guaranteed, so that the item may go to another worker."""
        return self._claimed.lease.lost

    @property
    def _finished(self) -> LockFreeEvent:
        return self._claimed.finished

    def __repr__(self) -> str:
        state = "over" if self._claimed.over else "lost" if self.lost.is_set() else "held"
        return f"<{type(self).__name__} of {self._claimed.raw[:40]!r}, {state}>"


class Claim(_ClaimBase):
    """An item that this process works on.

    As a context manager it is acknowledged at the end, or given back if there was an exception. It does not pickle.
    """

    def ack(self) -> None:
        """Acknowledge the item: it is done, and leaves the queue.

        Raises:
            LockLost: the claim was lost before, so the item goes to another worker. With ``applied=None`` if an earlier
                ``ack`` ended without an answer: that one may have acknowledged the item.
            InvalidArgument: the claim is over already.
            Unavailable, RequestTimeout: the cluster cannot be reached; call ``ack`` again.
        """
        run_sync(self._claimed.ack())

    def nack(self) -> None:
        """Give the item back, for another worker; does nothing if the claim is over or lost.

        If the cluster cannot be reached, nothing is raised: that goes on in the background, and the claim ends with its
        TTL at the latest.
        """
        run_sync(self._claimed.nack())

    def guard(self) -> Client:
        """A handle like the queue's, whose every write is refused with ``LockLost`` once the claim is over or lost."""
        claimed, contenders = self._claimed, self._claimed.queue.contenders
        return guarded(cast("Client", contenders.handle), contenders.space, claimed.key, claimed.token)

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


class AsyncClaim(_ClaimBase):
    """As ``Claim``, for asyncio."""

    async def ack(self) -> None:
        """See ``Claim.ack``."""
        await self._claimed.ack()

    async def nack(self) -> None:
        """See ``Claim.nack``."""
        await self._claimed.nack()

    def guard(self) -> AsyncClient:
        """See ``Claim.guard``."""
        claimed, contenders = self._claimed, self._claimed.queue.contenders
        return guarded(cast("AsyncClient", contenders.handle), contenders.space, claimed.key, claimed.token)

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
    """A work queue; made by ``client.queue``.

    ::

        queue = client.queue("shards")
        queue.put("shard-17")
        with queue.claim() as claim:    # waits for an item; acknowledged at the end
            work(claim.item)

    ``len(queue)`` is the number of items that are not acknowledged.
    """

    def __init__(self, client: KeyValueClient, name: str | bytes, ttl: float = 10) -> None:
        self._queue = _Queue(client, name, ttl)

    def put(self, item: Any, priority: int = 0, *, request_id: str | bytes | None = None) -> None:
        """Put an item into the queue.

        Args:
            item: ``bytes`` or ``str``; on a handle with a codec, any object that it encodes.
            priority: items with lower numbers come out first; a whole number of at most 31 bits.
            request_id: a name for this call, for tasks that Ray may run again: calls with the same name put the item
                once, within the cluster's ``request_ttl``.

        Raises:
            InvalidArgument: the item or the priority is not valid, or the name was used for another call.
            Unavailable, RequestTimeout: the cluster cannot be reached; ``applied`` says whether the item was put.
        """
        run_sync(self._queue.put(item, priority, request_id))

    @overload
    def claim(self, timeout: None = None, *, bound_to: Any = None) -> Claim: ...

    @overload
    def claim(self, timeout: float | None, *, bound_to: Any = None) -> Claim | None: ...

    def claim(self, timeout: float | None = None, *, bound_to: Any = None) -> Claim | None:
        """Claim the first item, waiting for one if there is none.

        Args:
            timeout: seconds; ``None`` waits forever, 0 does not wait.
            bound_to: whose death gives the item back before the TTL: ``"process"`` (the default), ``"ttl"`` (nobody's),
                the handle of an actor, ``"job"`` or ``"driver"``, as for ``lease``.

        Returns:
            The claim; ``None`` if there was no item in time (for a ``with`` block see ``claiming``).

        Raises:
            LeaseLost: the cluster could not be reached for the TTL while this waited, or somebody revoked its lease.
            Unavailable, RequestTimeout: the cluster cannot be reached.
        """
        claimed = run_sync(self._queue.claim(timeout, bound_to))
        return None if claimed is None else Claim(claimed)

    @contextlib.contextmanager
    def claiming(self, timeout: float | None = None, *, bound_to: Any = None) -> Iterator[Claim | None]:
        """As :meth:`claim`, for a ``with`` block that also runs if there was no item in time.

        ::

            with queue.claiming(timeout=5) as claim:
                if claim is not None:
                    work(claim.item)
        """
        claim = self.claim(timeout, bound_to=bound_to)
        if claim is None:
            yield None
        else:
            with claim:
                yield claim

    def __len__(self) -> int:
        """The number of items that are not acknowledged, claimed or not."""
        return run_sync(self._queue.size())

    def __bool__(self) -> bool:
        return True


class AsyncQueue(Unpicklable):
    """As ``Queue``, for asyncio; ``await queue.size()`` is the number of items."""

    def __init__(self, client: AsyncKeyValueClient, name: str | bytes, ttl: float = 10) -> None:
        self._queue = _Queue(client, name, ttl)

    async def put(self, item: Any, priority: int = 0, *, request_id: str | bytes | None = None) -> None:
        """See ``Queue.put``."""
        await self._queue.put(item, priority, request_id)

    @overload
    async def claim(self, timeout: None = None, *, bound_to: Any = None) -> AsyncClaim: ...

    @overload
    async def claim(self, timeout: float | None, *, bound_to: Any = None) -> AsyncClaim | None: ...

    async def claim(self, timeout: float | None = None, *, bound_to: Any = None) -> AsyncClaim | None:
        """See ``Queue.claim``."""
        claimed = await self._queue.claim(timeout, bound_to)
        return None if claimed is None else AsyncClaim(claimed)

    @contextlib.asynccontextmanager
    async def claiming(self, timeout: float | None = None, *, bound_to: Any = None) -> AsyncIterator[AsyncClaim | None]:
        """See ``Queue.claiming``."""
        claim = await self.claim(timeout, bound_to=bound_to)
        if claim is None:
            yield None
        else:
            async with claim:
                yield claim

    async def size(self) -> int:
        """The number of items that are not acknowledged, claimed or not."""
        return await self._queue.size()
