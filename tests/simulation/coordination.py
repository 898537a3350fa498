"""Clients that watch, hold leases, and queue for locks and elections, and the record of what they did.

Lodgers live in clients, and move in again when their process has died. They use the product's own handles and recipes
(see ``scripts``). What they see is held against the chronicle:

- a watch sees exactly the changes of its range from its start to its position, whole revisions in order, and is told of
  progress never ahead of them; ``CompactedError`` comes only when its next revision is gone;
- a lease never ends before its process, by its own clock, must take it for lost; and on a quiet cluster soon after;
- a lock is held by one at a time as the holders' own clocks have it, its tokens only grow, in the order of the line;
  what is written through a guard never comes from a holder that was overtaken;
- observers of an election see its leaders in order.
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
    RequestTimeout,
    SessionExpired,
    Unavailable,
)
from raykeeper.schema.answers import Item
from raykeeper.schema.operations import KeyRange
from simulation.checker import Violation
from simulation.chronicle import Change, Chronicle, inside
from simulation.scripts import Script, SimClient, SimLease, SimWatch, running, sleep

if TYPE_CHECKING:
    from simulation.client import Client
    from simulation.world import World

ORDINARY = (RequestTimeout, Unavailable, SessionExpired)
"""How any call may fail here."""
PROMPT = 1.0
"""Seconds after its TTL in which a lease must have ended on a quiet cluster (issue: at most one)."""
STRAY = 2.2
"""Seconds after healing in which a frame may still arrive that the network held back before."""


class Seen:
    """One watch, and all that it was given."""

    def __init__(self, owner: str, keys: KeyRange, start: int, prev: bool, only: str | None, known: int) -> None:
        self.owner = owner
        self.keys = keys
        self.asked = start
        self.prev = prev
        self.only = only
        self.known = known
        """Somebody had an answer of this revision before the watch was asked for."""
        self.start = start
        """The first revision to see, once that is fixed."""
        self.position = start - 1
        self.batches: list[tuple[int, tuple[Any, ...], int]] = []
        """(revision, events, compacted revision when they were taken)."""

    def __str__(self) -> str:
        return (
            f"the watch of {self.owner} on {self.keys.key!r}..{self.keys.end!r} "
            f"(asked for {self.asked}, from {self.start}, only {self.only}, at {self.position})"
        )

    def begins(self, start: int, chronicle: Chronicle) -> None:
        """Its start is fixed."""
        self.start, self.position = start, start - 1
        if self.asked and start != self.asked:
            raise Violation(f"{self} begins at {start}")
        if not self.asked and not self.known < start <= chronicle.revision + 1:
            raise Violation(f"{self} begins now, when {self.known} was known and {chronicle.revision} is newest")

    def check(self, chronicle: Chronicle) -> None:
        """Hold it against what happened."""
        at = self.start - 1
        for revision, events, compacted in self.batches:
            if revision <= at:
                raise Violation(f"{self} is given revision {revision} behind {at}")
            for passed in range(at + 1, revision):
                if self._wanted(chronicle.changes.get(passed, [])):
                    raise Violation(f"{self} is at {revision} and was not given revision {passed}")
            wanted = self._wanted(chronicle.changes.get(revision, []))
            if len(wanted) != len(events):
                raise Violation(f"{self} was given {len(events)} of {len(wanted)} events of revision {revision}")
            for event, change in zip(events, wanted, strict=True):
                if (event.type == "delete") != change.deleted or not _same(event.kv, change.item):
                    raise Violation(f"{self} was given {event} for {change}")
                if self.prev and event.prev is None and change.prev is not None and revision <= compacted:
                    continue  # what was before is compacted
                if not _same(event.prev, change.prev if self.prev else None):
                    raise Violation(f"{self} was given {event} for {change}")
            at = revision
        for passed in range(at + 1, self.position + 1):
            if self._wanted(chronicle.changes.get(passed, [])):
                raise Violation(f"{self} was not given revision {passed}")

    def _wanted(self, changes: list[Change]) -> list[Change]:
        return [
            change
            for change in changes
            if inside(self.keys, change.item.key) and self.only != ("put" if change.deleted else "delete")
        ]


def _same(pair: Any, item: Item | None) -> bool:
    if pair is None or item is None:
        return pair is item
    if not item.version:
        return bool(pair.key == item.key and pair.mod_revision == item.mod_revision)
    return bool(
        (pair.key, pair.raw, pair.create_revision, pair.mod_revision, pair.version, pair.lease)
        == (item.key, item.value, item.create_revision, item.mod_revision, item.version, item.lease)
    )


class Held:
    """Somebody who holds a lock, as far as it knows."""

    def __init__(self, owner: str, name: str, token: int, lease: SimLease) -> None:
        self.owner = owner
        self.name = name
        self.token = token
        self.lease = lease
        self.released = False

    def believes(self) -> bool:
        """Whether it takes the lock for its own at this moment."""
        if self.released or self.lease.life != self.lease.process.lives:
            return False
        with running(self.lease.process):
            return not self.lease.lost.is_set()


class Book:
    """All that lodgers saw and did in one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.watches: list[Seen] = []
        self.live: dict[Seen, SimWatch] = {}
        """Watches that somebody still looks at."""
        self.leases: list[Any] = []
        """``SimLease`` and ``EtcdLease``."""
        self.holders: dict[str, list[Held]] = {}
        self.observers: list[tuple[str, list[tuple[int, str]]]] = []
        """(election, what was seen: tokens and values)."""
        self.watched_events = 0
        self.hand_overs = 0

    # --- as it happens -----------------------------------------------------------------------------------------------

    def newest_known(self) -> int:
        """The newest revision that any client had an answer of."""
        return max((client.hub.revision for client in self.world.clients), default=0)

    def acquired(self, owner: str, name: str, lock: AsyncLock | AsyncElection) -> Held:
        """A lock was taken: nobody else may believe that it holds it, and its token is the greatest so far."""
        lease: Any = lock._holder.current_ticket().lease
        held = Held(owner, name, lock.token, lease)
        before = self.holders.setdefault(name, [])
        self.world.trace(f"{owner} holds {name} under {held.token}")
        for other in before:
            if other.believes():
                raise Violation(f"{owner} holds {name} ({held.token}) while {other.owner} does ({other.token})")
        if before and before[-1].token >= held.token:
            raise Violation(f"{name}: token {held.token} of {owner} follows {before[-1].token} of {before[-1].owner}")
        before.append(held)
        self.hand_overs += 1
        return held

    def was_revoked(self, lease: int) -> bool:
        """Whether somebody has asked for its end."""
        return any(each.revoke_asked for each in self.leases if each.id == lease)

    @property
    def settled(self) -> bool:
        """Whether all watches have seen all, and every lease that nobody keeps has ended."""
        chronicle = self.world.chronicle
        kept = {lease.id for lease in self.leases if lease.kept}
        return all(watch.revision >= chronicle.revision for watch in self.live.values()) and kept.issuperset(
            chronicle.leases
        )

    # --- the judgement -----------------------------------------------------------------------------------------------

    def judge(self, quiet: float) -> None:
        """Hold everything against the chronicle.

        Args:
            quiet: true time since which nothing was wrong and one leader led.
        """
        chronicle = self.world.chronicle
        for seen in self.watches:
            seen.check(chronicle)
        self._judge_leases(quiet)
        self._judge_guarded_writes()
        self._judge_transactions()
        for name, told in self.observers:
            self._judge_observer(name, told)

    def _judge_transactions(self) -> None:
        written: dict[tuple[bytes, bytes], int] = {}
        for revision, changes in sorted(self.world.chronicle.changes.items()):
            for change in changes:
                item = change.item
                if change.deleted or not item.key.startswith(b"uonce/"):
                    continue
                if written.setdefault((item.key, item.value), revision) != revision:
                    raise Violation(f"a transaction ran twice, the second time at {revision}: {item}")

    def _judge_leases(self, quiet: float) -> None:
        chronicle = self.world.chronicle
        for lease in self.leases:
            ended = chronicle.ended.get(lease.id)
            what = f"lease {lease.id:x} of {lease.process.name} with {lease.ttl} s"
            if ended is None:
                continue
            if ended.dead:
                died = lease.process.died_at.get(lease.life)
                if (died is None or died > ended.at) and lease.process.time(ended.at) < lease.good_until:
                    raise Violation(f"{what} ended at {ended.at:.4f} because somebody died, and its process lives")
                continue
            if not ended.expired:
                if not self.was_revoked(lease.id):
                    raise Violation(f"{what} was revoked by nobody")
                continue
            shown = lease.process.time(ended.at)
            if shown < lease.good_until:
                raise Violation(f"{what} ended at {ended.at:.4f}, {lease.good_until - shown:.3f} s before its time")
            # From its grant on if nobody ever kept it alive: that may have taken a long time to be applied.
            silent = max(
                chronicle.granted[lease.id],
                *(each.forgotten_at or 0.0 for each in self.leases if each.id == lease.id),
            )
            if ended.at > max(quiet, silent) + 1.02 * lease.ttl + PROMPT * self.world.profile.scale:
                raise Violation(
                    f"{what}, silent since {silent:.3f}, ended late at {ended.at:.4f} (quiet from {quiet:.3f})"
                )

    def _judge_guarded_writes(self) -> None:
        newest: dict[bytes, int] = {}
        for revision, changes in sorted(self.world.chronicle.changes.items()):
            for change in changes:
                key = change.item.key
                if key.startswith(b"uguarded/") and not change.deleted:
                    token = int(change.item.value.partition(b" ")[0])
                    if token < newest.get(key, 0):
                        raise Violation(f"{key!r}: at {revision} a write under {token} follows one of {newest[key]}")
                    newest[key] = token

    def _judge_observer(self, name: str, told: list[tuple[int, str]]) -> None:
        chronicle = self.world.chronicle
        folder = f"relection/{name}/".encode()
        leaders: list[tuple[int, str]] = []
        candidates: dict[bytes, Item] = {}
        last = (0, 0)
        for _, changes in sorted(chronicle.changes.items()):
            for change in changes:
                if change.item.key.startswith(folder) and len(change.item.key.rpartition(b"/")[2]) == 16:
                    if change.deleted:
                        candidates.pop(change.item.key, None)
                    else:
                        candidates[change.item.key] = change.item
                    first = min(candidates.values(), key=lambda item: item.create_revision, default=None)
                    if first is not None and last < (first.create_revision, first.mod_revision):
                        last = (first.create_revision, first.mod_revision)
                        leaders.append((first.create_revision, first.value.decode()))
        if not told:
            return
        places = [leaders.index(each) if each in leaders else -1 for each in told]
        if -1 in places or sorted(set(places)) != places:
            raise Violation(f"an observer of {name} saw {told}, but the leaders were {leaders}")
        if not chronicle.compact_revision and places != list(range(places[0], places[0] + len(places))):
            raise Violation(f"an observer of {name} missed leaders: {told} of {leaders}")


# --- who lives in the clients ----------------------------------------------------------------------------------------


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


def populate(client: Client) -> None:
    """Let a client's lodgers move in."""
    from simulation.proxied_leases import EtcdTenant

    profile = client.world.profile
    for kind, many in (
        (EtcdTenant, profile.proxied_tenants),
        (Watcher, profile.watchers),
        (Tenant, profile.tenants),
        (Contender, profile.contenders),
        (Candidate, profile.candidates),
        (Spectator, 1 if profile.candidates and client.number == 1 else 0),
    ):
        client.lodgers += [kind(client, number) for number in range(many)]


def check_content(chronicle: Chronicle, items: tuple[Item, ...]) -> None:
    """What the store holds in the end is what happened."""
    there = {item.key: item for item in items}
    for key in sorted(there.keys() | chronicle.items.keys()):
        if there.get(key) != chronicle.items.get(key):
            raise Violation(f"key {key!r} is {there.get(key)}, and should be {chronicle.items.get(key)}")
