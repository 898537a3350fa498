"""The record of what clients did that watch, hold leases, and queue for locks and elections (``lodgers``).

What they saw is held against the chronicle:

- a watch sees exactly the changes of its range from its start to its position, whole revisions in order, and is told of
  progress never ahead of them; ``CompactedError`` comes only when its next revision is gone;
- a lease never ends before its process, by its own clock, must take it for lost; and on a quiet cluster soon after;
- a lock is held by one at a time as the holders' own clocks have it, unless somebody else has revoked the lease that it
  is held by; its tokens only grow, in the order of the line; what is written through a guard never comes from a holder
  that was overtaken;
- observers of an election see its leaders in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raykeeper.actors.recipes.election import AsyncElection
from raykeeper.actors.recipes.lock import AsyncLock
from raykeeper.errors import (
    RequestTimeout,
    SessionExpired,
    Unavailable,
)
from raykeeper.schema.answers import Item
from raykeeper.schema.operations import KeyRange
from simulation.checker import Violation
from simulation.chronicle import Change, Chronicle, inside
from simulation.recipe_book import Holding, RecipeBook
from simulation.scripts import SimWatch

if TYPE_CHECKING:
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


class Book:
    """All that lodgers saw and did in one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.watches: list[Seen] = []
        self.live: dict[Seen, SimWatch] = {}
        """Watches that somebody still looks at."""
        self.leases: list[Any] = []
        """``SimLease`` and ``EtcdLease``."""
        self.holders: dict[str, list[Holding]] = {}
        self.observers: list[tuple[str, list[tuple[int, str]]]] = []
        """(election, what was seen: tokens and values)."""
        self.watched_events = 0
        self.hand_overs = 0
        self.recipes = RecipeBook(world)

    # --- as it happens -----------------------------------------------------------------------------------------------

    def newest_known(self) -> int:
        """The newest revision that any client had an answer of."""
        return max((client.hub.revision for client in self.world.clients), default=0)

    def acquired(self, owner: str, name: str, lock: AsyncLock | AsyncElection) -> Holding:
        """A lock was taken: nobody else may believe that it holds it, and its token is the greatest so far."""
        lease: Any = lock._holder.current_ticket().lease
        held = Holding(owner, lock.token, lease)
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
        self.recipes.judge()

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


def check_content(chronicle: Chronicle, items: tuple[Item, ...]) -> None:
    """What the store holds in the end is what happened."""
    there = {item.key: item for item in items}
    for key in sorted(there.keys() | chronicle.items.keys()):
        if there.get(key) != chronicle.items.get(key):
            raise Violation(f"key {key!r} is {there.get(key)}, and should be {chronicle.items.get(key)}")
