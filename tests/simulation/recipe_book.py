"""The record of what clients did that use transactions as functions, rates, and semaphores with weights (``sharers``).

It is held against the chronicle, and against true time:

- **atomically**: each revision keeps what every function keeps that is run alone: money is moved and not made, somebody
  is on duty, a room has so many places. What a function reads is of one revision. A function that has returned has
  written once; one that has failed for certain has written nothing.
- **rate**: in any time of *t* seconds all processes together take at most the burst, and the rate times *t*. True time
  counts, beside which the clocks of clients are a little fast or slow. Nobody takes any after the end of its lease.
- **semaphore**: those who take slots for their own have no more weight together than the limit, at any moment. What is
  written through a guard comes from a place in the line up to which all weights fit into the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raykeeper.schema.answers import Item
from simulation.checker import Violation
from simulation.chronicle import Change
from simulation.member import DRIFT
from simulation.scripts import SimLease, running

if TYPE_CHECKING:
    from simulation.world import World

ACCOUNTS = 4
OPENING_BALANCE = 100
"""Of an account that is not there."""
DOCTORS = 2
ROOM = 3
"""Places in it."""
LIMIT = 4
"""Slots of each semaphore."""
PER_SECOND = 6.0
BURST = 12
LEASE_DIGITS = 16


def balance(value: bytes | None) -> int:
    """What an account has, by what is written there."""
    return OPENING_BALANCE if value is None else int(value.partition(b" ")[0])


class Holding:
    """Somebody who holds a lock or slots by a lease, as far as it knows."""

    def __init__(self, owner: str, token: int, lease: SimLease) -> None:
        self.owner = owner
        self.token = token
        self.lease = lease
        self.released = False

    def believes(self) -> bool:
        """Whether it takes that for its own at this moment, and may: nobody has taken its lease away."""
        lease = self.lease
        if self.released or lease.life != lease.process.lives or lease.was_taken:
            return False
        with running(lease.process):
            return not lease.lost.is_set()


class SlotHolder(Holding):
    """Somebody who holds slots."""

    def __init__(self, owner: str, weight: int, token: int, lease: SimLease) -> None:
        super().__init__(owner, token, lease)
        self.weight = weight


class RecipeBook:
    """All that they did in one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.moves: dict[bytes, bool | None] = {}
        """By its id, of each run of ``atomically``: whether it wrote, ``None`` if that is not known."""
        self.taken: list[tuple[float, int]] = []
        """When tokens were taken, and how many."""
        self.slots: dict[str, list[SlotHolder]] = {}

    # --- as it happens -----------------------------------------------------------------------------------------------

    def took(self, owner: str, rate: Any, tokens: int) -> None:
        """Tokens were taken, by a share that is not the others' yet."""
        holding = rate._logic._holding
        if holding is not None and holding.lease.id in self.world.chronicle.ended:
            raise Violation(f"{owner} takes tokens by lease {holding.lease.id:x}, which has ended")
        self.taken.append((self.world.now, tokens))

    def holds(self, owner: str, name: str, semaphore: Any) -> SlotHolder:
        """Slots were taken: with those that others take for theirs, they are no more than there are."""
        lease: Any = semaphore._holder.current_ticket().lease
        held = SlotHolder(owner, semaphore.weight, semaphore.token, lease)
        others = self.slots.setdefault(name, [])
        others[:] = [each for each in others if each.believes()]
        self.world.trace(f"{owner} holds {held.weight} of {name} under {held.token}")
        if sum([each.weight for each in others]) + held.weight > LIMIT:
            line = ", ".join([f"{each.owner} {each.weight} under {each.token}" for each in (*others, held)])
            raise Violation(f"more than {LIMIT} slots of {name} are held: {line}")
        others.append(held)
        return held

    # --- the judgement -----------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Hold everything against the chronicle."""
        self._judge_functions()
        self._judge_tokens()
        self._judge_guarded_slots()

    def _states(self, prefix: bytes) -> Iterator[tuple[int, list[Change], dict[bytes, Item]]]:
        """Each revision that changed something under a prefix: what, and what is there after it."""
        there: dict[bytes, Item] = {}
        for revision, changes in sorted(self.world.chronicle.changes.items()):
            ours = [change for change in changes if change.item.key.startswith(prefix)]
            for change in ours:
                if change.deleted:
                    there.pop(change.item.key, None)
                else:
                    there[change.item.key] = change.item
            if ours:
                yield revision, ours, there

    def _judge_functions(self) -> None:
        written: dict[bytes, int] = {}
        for revision, changes, there in self._states(b"ufunction/"):
            for change in changes:
                move = change.item.value.rpartition(b" ")[2]
                if not change.deleted and written.setdefault(move, revision) != revision:
                    raise Violation(f"the function {move!r} wrote twice, the second time at {revision}")
            accounts = [there.get(b"ufunction/account/%d" % n) for n in range(ACCOUNTS)]
            total = sum([balance(None if item is None else item.value) for item in accounts])
            if total != ACCOUNTS * OPENING_BALANCE:
                raise Violation(f"an update is lost: at {revision} the accounts have {total} in all: {changes}")
            off = [
                key for key, item in there.items() if key.startswith(b"ufunction/duty/") and item.value[:3] == b"off"
            ]
            if len(off) == DOCTORS:
                raise Violation(f"no serial order: at {revision} nobody is on duty: {changes}")
            people = [key for key in there if key.startswith(b"ufunction/room/")]
            if len(people) > ROOM:
                raise Violation(f"no serial order: at {revision} {len(people)} are in a room for {ROOM}: {changes}")
        for move, wrote in self.moves.items():
            if wrote is not None and wrote != (move in written):
                raise Violation(f"the function {move!r} {'wrote nothing' if wrote else 'wrote, and said it had not'}")

    def _judge_tokens(self) -> None:
        """As from one bucket, which is full at first: it gives whatever all the others together may give."""
        most = 0
        for _, _, there in self._states(b"rrate/"):
            most = max(most, len([key for key in there if b"/h/" in key]))
        most = max(BURST, most)  # each holder may gather one token
        level, at = float(most), 0.0
        for when, tokens in self.taken:
            level, at = min(most, level + (when - at) * PER_SECOND * (1 + 2 * DRIFT)), when
            level -= tokens
            if level < -1e-6:
                raise Violation(f"at {when:.4f} {-level:.3f} tokens more were taken than {BURST}, {PER_SECOND}/s allow")

    def _judge_guarded_slots(self) -> None:
        line: dict[bytes, Item] = {}
        for revision, changes in sorted(self.world.chronicle.changes.items()):
            for change in changes:
                key = change.item.key
                if key.startswith(b"rsemaphore/") and b"/p/" in key:
                    if change.deleted:
                        line.pop(key, None)
                    else:
                        line[key] = change.item
                elif key.startswith(b"uslots/") and not change.deleted:
                    self._judge_place(revision, key.rpartition(b"/")[2], int(change.item.value.split()[0]), line)

    def _judge_place(self, revision: int, name: bytes, token: int, line: dict[bytes, Item]) -> None:
        ours = [item for key, item in line.items() if key.startswith(b"rsemaphore/" + name + b"/")]
        ahead = [item for item in ours if item.create_revision <= token]
        weights = [_weight(item.key.rpartition(b"/")[2][:-LEASE_DIGITS]) for item in ahead]
        if token not in [item.create_revision for item in ahead] or sum(weights) > LIMIT:
            raise Violation(f"at {revision} one writes under {token} of {name!r} that does not hold it: {ahead}")


def _weight(kind: bytes) -> int:
    return int(kind[1:-1]) if kind else 1
