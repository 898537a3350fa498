"""A line of contenders: what locks, semaphores and elections have in common.

A contender writes one key under a lease of its own. The revision that created the key is its place in the line, and
its fencing token: revisions only grow, so whoever comes later has the greater token. When its process dies the lease
ends and the key goes, and with it the place; nobody has to be asked.

Each waits for the one directly before it, by one watch on that one key, so that whoever leaves wakes one other: no
herd. And nobody reads the whole line for that, however long it is. A key beside the line, the *tail*, names who came
last; whoever comes writes itself there, in the transaction that takes its place, and is told whom it has replaced (as
in the queue lock of Mellor-Crummey and Scott). Another one, the *head*, tells the last token that was held and given
back, so that nobody before it can be there any more; who gives back writes it in the transaction that removes its key.
So a waiter whose predecessor has gone knows, from the head, whether it had its turn. If it did not (it died, or gave
up), and only then, the line is read.

A name that nobody uses any more costs nothing. The tail hangs on the lease of whoever wrote it last, and goes with it;
if that one dies or gives up while others wait, whoever comes next finds no tail in a line that is not empty, and reads
it. Whoever leaves an empty line, by giving back or giving up, takes the head with it. Tokens grow all the same, since
they are revisions. (Only where the last of several dies does the head stay, until the name is used again.)

The watch on the predecessor starts right behind the revision that made the own place, at which the predecessor was
there or had gone before; which of the two, is asked once. So no wake-up can be lost; and if that history is compacted
away, the present is read instead.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from ...errors import CompactedError, InvalidArgument, KeeperError, LeaseLost
from ...limits import CLEANUP_GRACE, RECIPE_LOOK, RECIPE_MAX_PAUSE, RECIPE_PAUSE
from ..client.aio import AsyncClient
from ..client.deadline import time_left
from ..client.leases import AsyncLease, Lease, Loss
from ..client.operations import Compare, Condition, Op
from ..client.results import KeyValue, PutResult, TxnResult
from .eyes import eyes
from .faces import (
    Deadline,
    Handle,
    bounded,
    end_lease,
    folder,
    leased_txn,
    news,
    patiently,
    pause,
    seconds_to_live,
    settled,
    spawn,
    stop,
    watching,
)

T = TypeVar("T")


class Contender(msgspec.Struct, frozen=True):
    """Somebody in a line.

    Attributes:
        token: the revision that created its key; who comes later has a greater one.
        lease: the lease that its place hangs on.
        who: the host and the process id it gave.
    """

    token: int
    lease: int
    who: str


class Ahead(NamedTuple):
    """Whom to wait for: the end of a key (or, with ``all``, of any key under it), from a revision on."""

    key: bytes
    revision: int
    only: str | None = "delete"
    all: bool = False


class Before(NamedTuple):
    """Who came directly before."""

    key: bytes
    token: int


class Place:
    """A place in a line: the key, and the lease that it lives by."""

    __slots__ = ("__weakref__", "before", "free", "key", "lease", "token", "under")

    def __init__(
        self,
        under: bytes,
        key: bytes,
        lease: Lease | AsyncLease,
        token: int,
        before: Before | None,
        free: bool,
    ) -> None:
        self.under = under
        self.key = key
        self.lease = lease
        self.token = token
        self.before = before
        """``None`` if nobody was, or if nobody is known."""
        self.free = free
        """Whether nobody else was there."""

    @property
    def lost(self) -> threading.Event:
        """Set once the place may be gone."""
        return self.lease.lost


def tail(under: bytes) -> bytes:
    """The key that names who came last into a line; it and the head lie side by side, and not in the line's folder."""
    return under[:-1] + b"-tail"


def place_key(under: bytes, kind: bytes, lease: int) -> bytes:
    """The key of a place that hangs on a lease."""
    return under + kind + b"%016x" % lease


def head(under: bytes) -> bytes:
    """The key that tells the last token that was given back."""
    return under[:-1] + b"-head"


class Line:
    """A line of one name.

    Args:
        handle: the user's.
        area: the kind of recipe.
        name: the user's name for it.
        ttl: seconds after which a dead contender's place is free.
    """

    def __init__(self, handle: Handle, area: str, name: str | bytes, ttl: float) -> None:
        self.handle = handle
        self.space: Handle = handle.reserved(area)
        self.name = name
        self.folder = folder(handle, name)
        self.places = self.folder + b"p/"
        """Where the contenders' keys are."""
        self.ttl = seconds_to_live(ttl)
        self.looks: Handle = self.space.with_timeout(min(self.space.timeout, self.ttl))
        """For reads while there is a place to lose: no such read lasts longer than it could be kept."""

    # -- places -------------------------------------------------------------------------------------------------------

    async def join(
        self,
        value: bytes,
        kind: bytes = b"",
        compare: Sequence[Condition] = (),
        under: bytes = b"",
        chained: bool = True,
    ) -> Place | None:
        """Take a place; ``None`` if the comparisons do not hold. One not chained does not know who is before it.

        The key is named by a lease of this call's own, which is made in the same transaction; and only if it does not
        exist, so that a call that is retried on the way still makes one place.
        """
        under = under or self.places
        lease, result = await begin(
            self.space, self.ttl, lambda id: self._taking(id, under, kind, value, compare, chained)
        )
        return None if lease is None else self._taken(lease, under, kind, result)

    async def take(
        self, lease: Lease | AsyncLease, under: bytes, kind: bytes, value: bytes, compare: Sequence[Condition] = ()
    ) -> Place | None:
        """Take a place by a lease that is there already; it stays with the caller whatever happens."""
        taking = self._taking(lease.id, under, kind, value, compare)
        result = await settled(self.space.txn(**taking.arguments))
        return self._taken(lease, under, kind, result) if result.succeeded else None

    def _taking(
        self, lease: int, under: bytes, kind: bytes, value: bytes, compare: Sequence[Condition], chained: bool = True
    ) -> Op:
        """The transaction that takes a place."""
        key = place_key(under, kind, lease)
        empty = Op.txn([Compare.version(prefix=under) == 0])
        chain = [Op.put(tail(under), key, lease=lease, prev=True)] if chained else []
        return Op.txn([Compare.create_revision(key) == 0, *compare], [empty, Op.put(key, value, lease=lease), *chain])

    def _taken(self, lease: Lease | AsyncLease, under: bytes, kind: bytes, result: TxnResult) -> Place:
        key = place_key(under, kind, lease.id)
        empty, _, *chain = result.responses
        assert isinstance(empty, TxnResult)
        replaced = chain[0].prev if chain and isinstance(chain[0], PutResult) else None
        # The tail is written in the transaction that takes a place: its revision is the token of who wrote it.
        before = None if replaced is None else Before(replaced.raw, replaced.mod_revision)
        return Place(under, key, lease, result.revision, before, empty.succeeded)

    async def agree(self, key: bytes, text: bytes, under: bytes) -> None:
        """Have a key say what all contenders in a folder go by: it is written while nobody is there.

        Raises:
            InvalidArgument: somebody is there, and goes by something else.
        """
        result = await settled(self.space.txn([Compare.version(prefix=under) == 0], [Op.put(key, text)], [Op.get(key)]))
        there = result.responses[0]
        if not result.succeeded and (not isinstance(there, KeyValue) or there.raw != text):
            said = there.text if isinstance(there, KeyValue) else "nothing"
            raise InvalidArgument(f"those who use {self.name!r} now go by {said!r}, not by {text.decode()!r}")

    async def leave(self, place: Place, *keys: bytes, patience: float = CLEANUP_GRACE) -> None:
        """Give the place up; and if nobody else is there, remove these keys, which nobody needs then.

        Args:
            patience: seconds to wait for it; after that it goes on in the background.
        """
        over = Op.revoke(place.lease)
        ending = Op.txn([self.alone(place)], [*map(Op.delete, keys), over], [over]) if keys else None
        await self._end(place, ending, patience)

    async def give_back(self, place: Place) -> None:
        """End an exclusive turn, and the lease with it, in one write. If it was lost, or the cluster cannot be told,
        the end of the lease does it."""
        over = Op.revoke(place.lease)
        ending = Op.txn([self.alone(place)], [Op.delete(head(place.under)), over], [self.had_turn(place), over])
        await self._end(place, ending, self.space.timeout)

    async def _end(self, place: Place, ending: Op | None, patience: float) -> None:
        lease = place.lease
        lease.lost.set()
        await end_lease(lease, lease.id, lease.ttl, ending, patience)

    def alone(self, place: Place) -> Condition:
        """What holds if the place is there, and no other."""
        return Compare.create_revision(prefix=place.under) == place.token

    def had_turn(self, place: Place) -> Op:
        """What tells, in the transaction that ends an exclusive turn, that it ended well."""
        return Op.put(head(place.under), b"%d" % place.token)

    async def nearest(self, place: Place, prefix: bytes) -> Ahead | None:
        """The nearest key under a prefix that is before this place now, by a look at all of them.

        Raises:
            LeaseLost: the place is gone.
        """
        now = await settled(self.looks.range(prefix=prefix, sort="create_revision", keys_only=True))
        earlier = [item for item in now if item.create_revision < place.token]
        if earlier:
            return Ahead(earlier[-1].key, now.revision + 1)
        await self.check(place)
        return None

    async def _predecessor(self, place: Place) -> Ahead | None:
        """Whom this place waits for; ``None`` if it is its turn."""
        before = place.before
        there = None if before is None else await settled(self.looks.get(before.key))
        if before is not None and there is not None and there.create_revision == before.token:
            return Ahead(before.key, place.token + 1)
        return await self._next(place)

    async def _next(self, place: Place) -> Ahead | None:
        """Whom this place waits for, now that who was before it is gone, or is not known."""
        before = place.before
        if before is not None and await self._had_its_turn(place, before):
            return None
        return await self.nearest(place, place.under)

    async def _had_its_turn(self, place: Place, before: Before) -> bool:
        """Whether the one before has given back what it held: then nobody before it is there."""
        given_back = await settled(self.looks.get(head(place.under)))
        return given_back is not None and int(given_back.raw) >= before.token

    async def check(self, place: Place) -> None:
        """Raise ``LeaseLost`` unless the place is still there."""
        here = await settled(self.looks.get(place.key))
        if here is None or here.create_revision != place.token:
            place.lost.set()
            raise LeaseLost(f"the place in the line of {self.name!r} is gone: its lease has ended")

    async def wait(self, place: Place, ahead: Ahead, deadline: Deadline) -> bool:
        """Wait until whom this place waits for is gone, or may be; ``False`` when the time is over."""
        if not deadline.left:
            return False
        start = ahead.revision
        if ahead.all:
            watch = await watching(self.space, prefix=ahead.key, start_revision=start, only=ahead.only)
        else:
            watch = await watching(self.space, ahead.key, start_revision=start, only=ahead.only)
        try:
            while True:
                if await news(watch, self.patience(place, deadline)) is not None:
                    return True
                self.alive(place)
                if not deadline.left:
                    return False
        except CompactedError:
            return True  # look again, in the present
        finally:
            await stop(watch)

    def patience(self, place: Place, deadline: Deadline) -> float:
        """How long to wait for news before looking at the clock and the lease again."""
        return min(deadline.left, max(RECIPE_PAUSE, place.lease.remaining()))

    def alive(self, place: Place) -> None:
        """Raise ``LeaseLost`` if the place can no longer be guaranteed."""
        if place.lost.is_set():
            raise LeaseLost(f"the place in the line of {self.name!r} is lost: {place.lease.why_lost()}")

    def keep_an_eye_on(self, place: Place) -> None:
        """Have ``lost`` set when somebody deletes the key of a place, as soon as its lease would set it otherwise."""
        space, lost = self.space, place.lost
        if isinstance(space, AsyncClient):
            watching = _guardian(space, weakref.ref(place), place.key, place.token + 1, lost)
            spawn(space, watching, f"raykeeper-holds-{self.name!r}")
        else:
            assert isinstance(lost, Loss)
            eyes.keep_on(space, place, place.key, place.token + 1, lost)

    async def turn(self, place: Place, deadline: Deadline) -> bool:
        """Wait until nobody is before this place; ``False`` when the time is over."""
        if place.free:
            return True
        ahead = await self.patiently(place, lambda: self._predecessor(place), deadline)
        while ahead is not None:
            if not await self.wait(place, ahead, deadline):
                return False
            ahead = await self.patiently(place, lambda: self._next(place), deadline)
        return True

    async def patiently(self, place: Place, look: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """Look at the cluster, again and again while it cannot be reached but the place can still be kept."""

        def go_on() -> bool:
            self.alive(place)
            return bool(deadline.left)

        return await patiently(self.space, look, go_on)

    # -- looking on ---------------------------------------------------------------------------------------------------

    @bounded
    async def contenders(self) -> list[Contender]:
        """Everybody, in the order of the line."""
        listing = await settled(self.space.range(prefix=self.places, sort="create_revision"))
        return [contender(item) for item in listing]


def contender(item: KeyValue) -> Contender:
    """Who wrote a key of a line."""
    return Contender(item.create_revision, item.lease, item.raw.decode(errors="replace"))


async def begin(space: Handle, ttl: float, make: Callable[[int], Op]) -> tuple[Lease | AsyncLease | None, TxnResult]:
    """A lease, and a transaction that uses it, as ``leased_txn``. But if it fails in any way, nothing of it stays; and
    a lease that was too long in the making is dropped and another one made: all that the transaction does hangs on it.
    """
    ids: list[int] = []

    def making(id: int) -> Op:
        ids.append(id)
        return make(id)

    deadline = Deadline(min(space.timeout, time_left()) / 2)
    while True:
        try:
            lease, result = await leased_txn(space, ttl, making)
        except BaseException as error:
            # It may have happened, but cannot happen later than this, which ends the lease.
            if ids and not (isinstance(error, KeeperError) and error.applied is False):
                await end_lease(space, ids[-1], ttl)
            raise
        if lease is None or not lease.lost.is_set() or not deadline.left:
            return lease, result
        await drop(lease)


async def drop(lease: Lease | AsyncLease) -> None:
    """End a lease. Nobody keeps it alive from now on. If the cluster cannot be told soon, that is left to the
    background, and at last to the lease, which ends by itself."""
    lease.lost.set()
    await end_lease(lease, lease.id, lease.ttl)


async def _guardian(space: Handle, place: weakref.ref[Place], key: bytes, start: int, lost: threading.Event) -> None:
    """Watch a key. The place is held weakly, so that one that is forgotten is not kept alive by this. What is held
    only for a moment is spared the watch, which misses nothing by beginning later."""
    await pause(space, RECIPE_MAX_PAUSE)
    if lost.is_set():
        return
    try:
        while True:
            watch = await watching(space, key, start_revision=start, only="delete")
            try:
                while place() is not None and not lost.is_set():
                    if await news(watch, RECIPE_LOOK) is not None:
                        lost.set()
                return
            except CompactedError:
                now = await settled(space.range(key, keys_only=True))
                if not now.items:
                    lost.set()
                    return
                start = now.revision + 1
            finally:
                await stop(watch)
    except KeeperError:
        pass  # the lease itself tells, soon enough
