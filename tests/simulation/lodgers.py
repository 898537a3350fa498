"""Clients that watch, hold leases, and queue for locks and elections.

Lodgers live in clients, and move in again when their process has died. They use the product's own handles and recipes
(see ``scripts``). What they did and saw is judged in ``coordination``.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from raykeeper.actors.client.txn_parts import Op
from raykeeper.actors.client.view import View
from raykeeper.actors.recipes.election import AsyncElection
from raykeeper.actors.recipes.lock import AsyncLock
from raykeeper.errors import (
    CompactedError,
    LeaseLost,
    LeaseNotFound,
    LockLost,
)
from simulation.checker import Violation
from simulation.scripts import Script, SimClient, SimLease, sleep

if TYPE_CHECKING:
    from simulation.client import Client

from simulation.coordination import ORDINARY, Seen


class Lodger:
    """Somebody who does something in a client, over and over."""

    background = False
    """It never ends by itself, and nobody waits for its end."""

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self.world = client.world
        self.book = client.world.book
        self.name = f"{type(self).__name__.lower()} {client.number}.{number}"
        self.rng = client.world.random(self.name)
        self.move_in()

    def move_in(self) -> None:
        """Begin in a new life of the client."""
        if not self.world.closing:
            Script(self.client, self._live(), background=self.background)

    async def _live(self) -> None:
        await self.rest(self.rng.random())
        while not self.world.closing:
            try:
                await self.act(SimClient(self.client))
            except ORDINARY:
                await self.rest(0.3)

    async def rest(self, mean: float) -> None:
        await sleep(self.client, self.world.profile.scale * min(5 * mean, self.rng.expovariate(1.0 / mean)))

    def act(self, kv: SimClient) -> Coroutine[Any, Any, None]:
        """Do it once."""
        raise AssertionError("each kind does something of its own")


class Watcher(Lodger):
    """Looks at something for a while, quickly or slowly."""

    background = True

    async def act(self, kv: SimClient) -> None:
        rng, book, chronicle = self.rng, self.book, self.world.chronicle
        raw = SimClient(self.client, View(b"", None))
        newest = max(1, self.client.hub.revision)
        draw = rng.random()
        if draw < 0.4:
            start = 0
        elif draw < 0.75:
            start = max(chronicle.compact_revision, newest - rng.randrange(60), 1)
        elif draw < 0.85:
            start = max(1, chronicle.compact_revision)
        elif draw < 0.92:
            start = max(1, chronicle.compact_revision - rng.randrange(1, 4))
        else:
            start = newest + rng.randrange(1, 12)
        where: dict[str, Any] = rng.choice(
            (
                {"key": b"r%d" % rng.randrange(5)},
                {"key": b"c", "end": b"s"},
                {"prefix": b"r"},
                {"prefix": b"p"},
                {"prefix": b"u"},
                {"key": b"c0"},
            )
        )
        prev, only = rng.random() < 0.4, rng.choice((None, None, None, "put", "delete"))
        slow = rng.choice((0.0, 0.0, 0.3, 1.5))
        keys = raw._view.keys(where.get("key"), where.get("end"), where.get("prefix"))
        seen = Seen(self.name, keys, start, prev, only, book.newest_known())
        watch = await raw.watch(**where, start_revision=start or None, prev=prev, only=only)
        seen.begins(watch.start or start, chronicle)
        book.watches.append(seen)
        book.live[seen] = watch
        try:
            until = self.world.now + rng.expovariate(1 / 8.0)
            async for batch in watch.batches():
                seen.batches.append((batch.revision, batch.events, chronicle.compact_revision))
                seen.position = batch.revision
                book.watched_events += len(batch.events)
                if slow and not self.world.closing:
                    await self.rest(slow)
                if self.world.now > until and not self.world.closing:
                    break
            seen.position = max(seen.position, watch.revision)
        except CompactedError as error:
            seen.position = max(seen.position, watch.revision)
            if not seen.position + 1 < error.compact_revision <= chronicle.compact_revision:
                raise Violation(f"{seen} ends with {error}, at {chronicle.compact_revision}") from error
        finally:
            book.live.pop(seen, None)
            watch._end()


class Tenant(Lodger):
    """Has a lease with keys, keeps it for a while, and lets it go in one way or another."""

    _transactions = 0

    async def act(self, kv: SimClient) -> None:
        rng = self.rng
        lease = await self.somebody_elses(kv) if self.world.profile.deaths and rng.random() < 0.4 else None
        if lease is None:
            lease = await kv.lease(self.world.profile.scale * rng.choice((1.0, 1.5, 3.0)))
        try:
            if rng.random() < 0.5:
                await self.once(kv)
            for n in range(rng.randrange(4)):
                await kv.put(f"tenant/{self.name}/{n}", f"{lease.id:x}", lease=lease)
            if rng.random() < 0.2:
                await kv.put(f"tenant/{self.name}/0", "moved out")
            for _ in range(rng.randrange(8)):
                await self.rest(0.8)
                if lease.lost.is_set():
                    return
                if rng.random() < 0.3 and not self.world.closing:
                    await kv.put(f"tenant/{self.name}/{rng.randrange(3)}", f"{lease.id:x}", lease=lease)
        except (LeaseNotFound, LeaseLost):
            if not lease.lost.is_set() and not self.book.was_revoked(lease.id):
                raise Violation(f"{self.name}: lease {lease.id:x} is gone, and nobody knows") from None
            return
        except ORDINARY:
            pass
        if rng.random() < 0.4:
            try:
                await lease.revoke()
            finally:
                lease.forget()
        else:
            lease.forget()
            if rng.random() < 0.5:
                await self.rest(1.0)

    async def once(self, kv: SimClient) -> None:
        """A transaction with a lease of its own, whose effect must not come twice, however long it takes."""
        self._transactions += 1
        value = f"{self.client.lives}.{self._transactions}"
        lease, _ = await kv.leased_txn(
            self.world.profile.scale, lambda id: Op.txn(success=[Op.put(f"once/{self.name}", value, lease=id)])
        )
        if lease is not None:
            lease.forget()

    async def somebody_elses(self, kv: SimClient) -> SimLease | None:
        """A lease that another tenant has made, kept alive from here; ``None`` if there is none, or if this one only
        attaches a key to it."""
        ended = self.world.chronicle.ended
        known = [lease for lease in self.book.leases[-12:] if lease.id not in ended and lease.process is not kv.client]
        if not known:
            return None
        try:
            orphans = [lease for lease in known if lease.life in lease.process.died_at]
            id = self.rng.choice(orphans or known).id
            if self.rng.random() < 0.3:
                await kv.put(f"tenant/{self.name}/guest", f"{id:x}", lease=id)
                return None
            return await kv.adopt(id)
        except (LeaseNotFound, *ORDINARY):
            return None


class Contender(Lodger):
    """Takes a lock, writes under its guard, and lets it go or forgets it."""

    NAMES = ("a", "b")

    def candidate(self, kv: SimClient, name: str) -> AsyncLock | AsyncElection:
        return kv.lock(name, ttl=self.rng.choice((1.0, 2.0, 3.0)))

    async def take(self, contender: Any) -> bool:
        taken: bool = await contender.acquire(self.rng.choice((None, None, 0.5, 4.0)))
        return taken

    async def work(self, contender: Any) -> None:
        """What only a holder does."""

    async def act(self, kv: SimClient) -> None:
        rng, world = self.rng, self.world
        await self.rest(0.5)
        name = rng.choice(self.NAMES)
        contender = self.candidate(kv, name)
        title = f"{type(contender).__name__[5:].lower()} {name}"
        try:
            if not await self.take(contender):
                return
        except (LeaseLost, LeaseNotFound):
            return
        held = self.book.acquired(self.name, title, contender)
        try:
            for n in range(rng.randrange(1, 6)):
                await self.work(contender)
                await contender.guard().put(f"guarded/{title}", f"{held.token} {n} of {self.name}")
                if not world.closing:
                    await self.rest(0.3)
        except (LockLost, *ORDINARY):
            pass
        held.released = True
        if rng.random() < 0.8 or contender._holder._ticket is None:
            await contender.release()
        else:
            held.lease.lost.set()
        held.lease.forget()


class Candidate(Contender):
    """Campaigns in an election, and proclaims things while it leads."""

    NAMES = ("e",)
    _number = 0

    def candidate(self, kv: SimClient, name: str) -> AsyncLock | AsyncElection:
        return kv.election(name, ttl=self.rng.choice((1.0, 2.0, 3.0)))

    def _value(self) -> str:
        self._number += 1
        return f"{self.name} {self._number}"

    async def take(self, contender: Any) -> bool:
        taken: bool = await contender.campaign(self._value(), self.rng.choice((None, None, 1.0, 4.0)))
        return taken

    async def work(self, contender: Any) -> None:
        if self.rng.random() < 0.5:
            await contender.proclaim(self._value())


class Spectator(Lodger):
    """Observes an election."""

    background = True

    async def act(self, kv: SimClient) -> None:
        told: list[tuple[int, str]] = []
        self.book.observers.append(("e", told))
        observed = kv.election("e").observe()
        async for leader in observed:
            value = leader.value.decode() if isinstance(leader.value, bytes) else leader.value
            told.append((leader.token, value))
