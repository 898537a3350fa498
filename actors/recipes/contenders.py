"""Contenders in a waiting line: what locks, semaphores and elections have in common.

**Tickets.** A contender writes one key, attached to a lease of its own. That is its *ticket*. The revision that created
the key is its position in the line and its fencing token: revisions only grow, so a later contender has a greater
token. If its process dies, the lease ends and the key is deleted, without any other process taking part.

**Waiting.** Each contender waits for its *predecessor*, the one directly before it, by one watch of that one key. So a
contender that leaves wakes one other, not all (no thundering herd). Nor does anyone read the whole line, however long:

- If only one ticket was there when a contender joined, which the transaction says that creates the ticket, nothing has
  to be read: the contender waits for that one. When it is gone, no earlier one exists, since a ticket created later has
  a greater token, and so has one whose key is created again.
- A key beside the line, the *tail*, names the last contender. One that finds others there writes itself into it, in the
  transaction that creates its ticket, and learns which it has replaced: its predecessor (as in the queue lock of
  Mellor-Crummey and Scott). Who comes alone writes none, since the next to come sees it as the only one.
- Another key, the *head*, holds the last token that was held and released, so no earlier ticket can exist any more. The
  holder writes it in the transaction that deletes its ticket. So when the predecessor's ticket is gone, the head tells
  whether the predecessor had its turn. Only if it did not, because it died or gave up, is the line read.

**Cleaning up.** A name that is not in use costs nothing. The tail is attached to the lease of the contender that wrote
it, and goes with it. If that one dies or gives up while others wait, the next contender finds no tail in a line that is
not empty, and reads the line. The last contender to leave, by releasing or giving up, deletes the head too. (Only if
the last of several dies does the head stay, until the name is used again.)

**No lost wake-ups.** The watch of the predecessor starts right after the revision that created its ticket. At that
revision the predecessor's ticket existed or was gone already; one read tells which. If that history has been compacted,
the present is read instead.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from ...errors import CompactedError, InvalidArgument, KeeperError, LeaseLost
from ...limits import CLEANUP_GRACE_S, RECIPE_CHECK_S, RECIPE_MAX_PAUSE_S, RECIPE_PAUSE_S
from ..client.aio import AsyncKeyValueClient
from ..client.bindings import binding_of
from ..client.client_info import Owner
from ..client.leases import AsyncLease, Lease, LeaseInfo, LossEvent
from ..client.results import KeyValue, PutResult, RangeResult, TxnResult
from ..client.txn_parts import Compare, Condition, Op, first_keys
from ..deadline import time_left
from .key_monitor import key_monitor
from .sync_async import (
    AnyHandle,
    TimeLimit,
    bounded,
    cancel_watch,
    end_lease,
    folder,
    leased_txn,
    next_event,
    number_in,
    open_watch,
    pause,
    resolved,
    retry_while_unreachable,
    seconds_to_live,
    spawn,
)

T = TypeVar("T")


class Contender(msgspec.Struct, frozen=True):
    """A contender, as seen by others.

    Attributes:
        token: the revision that created its key; later contenders have greater ones.
        lease: the id of the lease that its key is attached to.
        who: its host and process id, as ``host:pid``.
        owner: the process, its Ray actor, task and job, and since when it is in the line; ``None`` if the lease has
            just ended, or if its client did not say.
        weight: of a semaphore, how many slots it takes; otherwise 1.
    """

    token: int
    lease: int
    who: str
    owner: Owner | None = None
    weight: int = 1


class WaitFor(NamedTuple):
    """What to wait for: a change of a key (or, with ``all``, of any key under it) at a revision or later."""

    key: bytes
    revision: int
    only: str | None = "delete"
    all: bool = False


class Happened(NamedTuple):
    """What was waited for has happened, or may have."""

    revision: int
    """When it did; 0 if that history has been compacted, so that only the present can tell."""


class Predecessor(NamedTuple):
    """The contender that came directly before."""

    key: bytes
    token: int


class Ticket:
    """A contender's key in a line, and the lease that the key is attached to."""

    __slots__ = ("__weakref__", "alone_before", "key", "lease", "predecessor", "prefix", "token", "uncontended")

    def __init__(
        self,
        prefix: bytes,
        key: bytes,
        lease: Lease | AsyncLease,
        token: int,
        before: Predecessor | None,
        there: RangeResult,
    ) -> None:
        self.prefix = prefix
        self.key = key
        self.lease = lease
        self.token = token
        self.predecessor = before
        """``None`` if there was none, or if it is not known."""
        self.uncontended = not there.items
        """Whether the line was empty."""
        self.alone_before = there.items[0].key if len(there.items) == 1 else None
        """The key of the one ticket that was there; ``None`` if there was none, or were several."""

    @property
    def lost(self) -> LossEvent:
        """Set once the ticket may be gone."""
        return self.lease.lost


def tail(prefix: bytes) -> bytes:
    """The key that names the last contender of a line. Like the head's, it is beside the prefix, not under it."""
    return prefix[:-1] + b"-tail"


def ticket_key(prefix: bytes, kind: bytes, lease: int) -> bytes:
    """The key of the ticket that is attached to a lease."""
    return prefix + kind + b"%016x" % lease


def head(prefix: bytes) -> bytes:
    """The key that holds the last token that was held and released."""
    return prefix[:-1] + b"-head"


class Contenders:
    """The contenders for one name, and what each of them does.

    Args:
        handle: the user's.
        area: the kind of recipe.
        name: the user's name for it.
        ttl: seconds after which a dead contender's ticket is gone.
        bound_to: whose death ends its lease before that, as for ``lease``.
    """

    def __init__(self, handle: AnyHandle, area: str, name: str | bytes, ttl: float, bound_to: Any = None) -> None:
        binding_of(bound_to)
        self.bound_to = bound_to
        self.handle = handle
        self.space: AnyHandle = handle.reserved(area)
        self.name = name
        self.folder = folder(handle, name)
        self.ticket_prefix = self.folder + b"p/"
        """The prefix of the contenders' keys."""
        self.ttl = seconds_to_live(ttl)
        self.reads: AnyHandle = self.space.with_timeout(min(self.space.timeout, self.ttl))
        """For reads while a ticket is held: none takes longer than the ticket can be kept."""

    # -- tickets ------------------------------------------------------------------------------------------------------

    async def join(
        self,
        value: bytes,
        kind: bytes = b"",
        compare: Sequence[Condition] = (),
        prefix: bytes = b"",
        chained: bool = True,
    ) -> Ticket | None:
        """Join the line; ``None`` if the comparisons do not hold.

        The key is named after a lease of this call's own, which is made in the same transaction, and it is created only
        if it does not exist. So a request that is retried on the way still makes one ticket.

        Args:
            value: what the key holds.
            kind: what the key's name begins with, to tell kinds of contenders apart.
            compare: what else must hold.
            prefix: of the line's keys, if not ``ticket_prefix``.
            chained: whether to learn the predecessor, by writing the tail.
        """
        prefix = prefix or self.ticket_prefix
        lease, result = await leased_txn_or_nothing(
            self.space, self.ttl, lambda id: self._join_txn(id, prefix, kind, value, compare, chained), self.bound_to
        )
        return None if lease is None else self._ticket_of(lease, prefix, kind, result)

    async def join_with_lease(
        self, lease: Lease | AsyncLease, prefix: bytes, kind: bytes, value: bytes, compare: Sequence[Condition] = ()
    ) -> Ticket | None:
        """Join the line by a lease that exists already; it stays the caller's, whatever happens."""
        taking = self._join_txn(lease.id, prefix, kind, value, compare)
        result = await resolved(self.space.txn(**taking.arguments))
        return self._ticket_of(lease, prefix, kind, result) if result.succeeded else None

    def _join_txn(
        self, lease: int, prefix: bytes, kind: bytes, value: bytes, compare: Sequence[Condition], chained: bool = True
    ) -> Op:
        """The transaction that creates a ticket. Its first operation tells whether there were none, one, or more."""
        key = ticket_key(prefix, kind, lease)
        there = first_keys(prefix, 2)
        behind = Op.put(tail(prefix), key, lease=lease, prev=True)
        chain = [Op.txn([Compare.version(prefix=prefix) == 0], [], [behind])] if chained else []
        return Op.txn([Compare.create_revision(key) == 0, *compare], [there, Op.put(key, value, lease=lease), *chain])

    def _ticket_of(self, lease: Lease | AsyncLease, prefix: bytes, kind: bytes, result: TxnResult) -> Ticket:
        key = ticket_key(prefix, kind, lease.id)
        there, _, *chain = result.responses
        assert isinstance(there, RangeResult)
        last = chain[0].responses if chain and isinstance(chain[0], TxnResult) else ()
        replaced = last[0].prev if last and isinstance(last[0], PutResult) else None
        # The tail is written in the transaction that creates a ticket, so its revision is the writer's token. Who came
        # alone did not write it, so it tells who was last only if two are there or more: the later one found the other.
        before = None if replaced is None or len(there.items) < 2 else Predecessor(replaced.raw, replaced.mod_revision)
        return Ticket(prefix, key, lease, result.revision, before, there)

    async def agree_on(self, key: bytes, text: bytes, prefix: bytes) -> None:
        """Agree on a parameter that all contenders under a prefix must share: it is written while there are none.

        Raises:
            InvalidArgument: there are some, and they use another value.
        """
        result = await resolved(
            self.space.txn([Compare.version(prefix=prefix) == 0], [Op.put(key, text)], [Op.get(key)])
        )
        there = result.responses[0]
        if not result.succeeded and (not isinstance(there, KeyValue) or there.raw != text):
            used = there.text if isinstance(there, KeyValue) else "nothing"
            raise InvalidArgument(f"{self.name!r} is in use with {used!r}, not with {text.decode()!r}")

    async def leave(self, ticket: Ticket, *keys: bytes, max_wait: float = CLEANUP_GRACE_S) -> None:
        """Give up the ticket; and if no other contender is left, delete these keys, which are of no use then.

        Args:
            max_wait: seconds to wait for it; after that it goes on in the background.
        """
        over = Op.revoke(ticket.lease)
        ending = Op.txn([self.alone(ticket)], [*map(Op.delete, keys), over], [over]) if keys else None
        await self._end(ticket, ending, max_wait)

    async def give_back(self, ticket: Ticket) -> None:
        """Release what is held exclusively, and end the lease, in one write.

        If the ticket was lost, or the cluster cannot be reached, the end of the lease does it.
        """
        over = Op.revoke(ticket.lease)
        ending = Op.txn(
            [self.alone(ticket)], [Op.delete(head(ticket.prefix)), over], [self.record_release(ticket), over]
        )
        await self._end(ticket, ending, self.space.timeout)

    async def _end(self, ticket: Ticket, ending: Op | None, max_wait: float) -> None:
        lease = ticket.lease
        lease.lost.set()
        await end_lease(lease, lease.id, lease.ttl, ending, max_wait)

    def alone(self, ticket: Ticket) -> Condition:
        """The condition that the ticket exists, and no other."""
        return Compare.create_revision(prefix=ticket.prefix) == ticket.token

    def record_release(self, ticket: Ticket) -> Op:
        """The operation, in the transaction that ends an exclusive turn, that records it in the head."""
        return Op.put(head(ticket.prefix), b"%d" % ticket.token)

    async def nearest(self, ticket: Ticket, prefix: bytes) -> WaitFor | None:
        """The nearest key under a prefix that is before this ticket now, by reading all of them; ``None`` if none is.

        Raises:
            LeaseLost: the ticket is gone.
        """
        now = await resolved(self.reads.range(prefix=prefix, sort="create_revision", keys_only=True))
        earlier = [item for item in now if item.create_revision < ticket.token]
        if earlier:
            return WaitFor(earlier[-1].key, now.revision + 1)
        await self.check_key(ticket)
        return None

    async def _predecessor(self, ticket: Ticket) -> WaitFor | None:
        """What this ticket waits for; ``None`` if it is its turn."""
        before = ticket.predecessor
        there = None if before is None else await resolved(self.reads.get(before.key))
        if before is not None and there is not None and there.create_revision == before.token:
            return WaitFor(before.key, ticket.token + 1)
        return await self._next(ticket)

    async def _next(self, ticket: Ticket) -> WaitFor | None:
        """What this ticket waits for, now that its predecessor is gone or not known; ``None`` if it is its turn."""
        before = ticket.predecessor
        if before is not None and await self._was_released(ticket, before):
            return None
        return await self.nearest(ticket, ticket.prefix)

    async def _was_released(self, ticket: Ticket, before: Predecessor) -> bool:
        """Whether the predecessor has held and released: then there is no ticket before it either."""
        given_back = await resolved(self.reads.get(head(ticket.prefix)))
        return given_back is not None and number_in(given_back.raw, f"{self.name!r}") >= before.token

    async def check_key(self, ticket: Ticket) -> None:
        """Raise ``LeaseLost`` unless the ticket's key exists."""
        here = await resolved(self.reads.get(ticket.key))
        if here is None or here.create_revision != ticket.token:
            ticket.lost.lose()
            raise LeaseLost(f"the place in the line of {self.name!r} is gone: its lease has ended")

    async def wait_for(self, ticket: Ticket, ahead: WaitFor, deadline: TimeLimit) -> Happened | None:
        """Wait until what this ticket waits for has happened, or may have; ``None`` when the time is over.

        Raises:
            LeaseLost: the ticket's lease was lost meanwhile.
        """
        if not deadline.left:
            return None
        start = ahead.revision
        if ahead.all:
            watch = await open_watch(self.space, prefix=ahead.key, start_revision=start, only=ahead.only)
        else:
            watch = await open_watch(self.space, ahead.key, start_revision=start, only=ahead.only)
        try:
            while True:
                event = await next_event(watch, self.wait_limit(ticket, deadline))
                if event is not None:
                    return Happened(event.kv.mod_revision)
                self.check_lease(ticket)
                if not deadline.left:
                    return None
        except CompactedError:
            return Happened(0)
        finally:
            await cancel_watch(watch)

    def wait_limit(self, ticket: Ticket, deadline: TimeLimit) -> float:
        """Seconds to wait for an event before looking at the clock and the lease again."""
        return min(deadline.left, max(RECIPE_PAUSE_S, ticket.lease.remaining()))

    def check_lease(self, ticket: Ticket) -> None:
        """Raise ``LeaseLost`` if the ticket's lease can no longer be guaranteed."""
        if ticket.lost.is_set():
            raise LeaseLost(f"the place in the line of {self.name!r} is lost: {ticket.lease.why_lost()}")

    def monitor(self, ticket: Ticket) -> None:
        """Set the ticket's ``lost`` when its key alone is deleted, which the lease does not notice."""
        space, lost = self.space, ticket.lost
        if isinstance(space, AsyncKeyValueClient):
            watching = _monitor_key(space, weakref.ref(ticket), ticket.key, ticket.token + 1, lost)
            spawn(space, watching, f"raykeeper-holds-{self.name!r}")
        else:
            key_monitor.watch_key(space, ticket, ticket.key, ticket.token + 1, lost)

    async def wait_turn(self, ticket: Ticket, deadline: TimeLimit) -> bool:
        """Wait until no ticket is before this one; ``False`` when the time is over."""
        if ticket.uncontended:
            return True
        if ticket.alone_before is not None:
            # It was there at the revision of this ticket's token, so whatever deletes its key from the next one on
            # deletes that very ticket.
            gone = await self.wait_for(ticket, WaitFor(ticket.alone_before, ticket.token + 1), deadline)
            if gone is None or gone.revision:
                return gone is not None
            ahead = await self.retry_read(ticket, lambda: self._next(ticket), deadline)
        else:
            ahead = await self.retry_read(ticket, lambda: self._predecessor(ticket), deadline)
        while ahead is not None:
            if not await self.wait_for(ticket, ahead, deadline):
                return False
            ahead = await self.retry_read(ticket, lambda: self._next(ticket), deadline)
        return True

    async def retry_read(self, ticket: Ticket, look: Callable[[], Awaitable[T]], deadline: TimeLimit) -> T:
        """Read from the cluster, repeatedly while it cannot be reached and the ticket is not lost."""

        def go_on() -> bool:
            self.check_lease(ticket)
            return bool(deadline.left)

        return await retry_while_unreachable(self.space, look, go_on)

    # -- observing ----------------------------------------------------------------------------------------------------

    @bounded
    async def in_order(self) -> list[Contender]:
        """All contenders, in the order of the line."""
        listing = await resolved(self.space.range(prefix=self.ticket_prefix, sort="create_revision"))
        return await self.described(listing.items)

    @bounded
    async def first(self) -> Contender | None:
        """The first contender of the line."""
        listing = await resolved(self.space.range(prefix=self.ticket_prefix, sort="create_revision", limit=1))
        return next(iter(await self.described(listing.items)), None)

    async def described(self, items: Sequence[KeyValue]) -> list[Contender]:
        """The contenders that wrote these keys of a line, with who made their leases."""
        infos: dict[int, LeaseInfo] = {}
        if items:
            infos = await resolved(self.space._lease_infos([item.lease for item in items if item.lease]))
        return [contender(item, infos.get(item.lease)) for item in items]


def contender(item: KeyValue, info: LeaseInfo | None = None) -> Contender:
    """The contender that wrote a key of a line.

    Args:
        info: of the key's lease, if it is there.
    """
    owner = None if info is None else info.owner
    return Contender(item.create_revision, item.lease, item.raw.decode(errors="replace"), owner)


async def leased_txn_or_nothing(
    space: AnyHandle, ttl: float, make: Callable[[int], Op], bound_to: Any = None
) -> tuple[Lease | AsyncLease | None, TxnResult]:
    """As ``leased_txn``, for a transaction all of whose effects are attached to the lease.

    So if the call fails in any way, ending the lease undoes it. And if it took so long that the lease is lost already,
    the lease is dropped, and another one is made.
    """
    ids: list[int] = []

    def making(id: int) -> Op:
        ids.append(id)
        return make(id)

    deadline = TimeLimit(min(space.timeout, time_left()) / 2)
    while True:
        try:
            lease, result = await leased_txn(space, ttl, making, bound_to)
        except BaseException as error:
            # The transaction may have happened, but cannot happen after this, which ends the lease.
            if ids and not (isinstance(error, KeeperError) and error.applied is False):
                await end_lease(space, ids[-1], ttl)
            raise
        if lease is None or not lease.lost.is_set() or not deadline.left:
            return lease, result
        await drop_lease(lease)


async def drop_lease(lease: Lease | AsyncLease) -> None:
    """End a lease; it is kept alive no longer. If the cluster cannot be reached soon, the hub goes on trying in the
    background, until the lease has expired by itself."""
    lease.lost.set()
    await end_lease(lease, lease.id, lease.ttl)


async def _monitor_key(space: AnyHandle, ticket: weakref.ref[Ticket], key: bytes, start: int, lost: LossEvent) -> None:
    """Set ``lost`` when a key is deleted at a revision from ``start`` on; the task for an async handle.

    The ticket is held weakly, so that a forgotten one is not kept alive by this. The watch is opened a moment later:
    what is held only briefly costs no watch, and nothing is missed, since the watch starts at that revision.
    """
    await pause(space, RECIPE_MAX_PAUSE_S)
    if lost.is_set():
        return
    try:
        while True:
            watch = await open_watch(space, key, start_revision=start, only="delete")
            try:
                while ticket() is not None and not lost.is_set():
                    if await next_event(watch, RECIPE_CHECK_S) is not None:
                        lost.lose()
                return
            except CompactedError:
                now = await resolved(space.range(key, keys_only=True))
                if not now.items:
                    lost.lose()
                    return
                start = now.revision + 1
            finally:
                await cancel_watch(watch)
    except KeeperError:
        pass  # the lease says soon enough if it is lost
