"""The client's core of watches, joined to three members' real ones by a network that loses, delays and doubles.

Members restart, stand still, lag, are cut off, and get snapshots. Every watch must have been told exactly what the
history of the store says, whatever it went through, and in the end everything.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import msgspec
import pytest

from lab.store_model import FIRST, Hand, Model, inside
from lab.turns import turn_of
from raykeeper.actors.client.core import subscription
from raykeeper.actors.client.core.router import Router
from raykeeper.actors.client.core.watch_core import WatchCore
from raykeeper.actors.member import watches
from raykeeper.actors.member.watches import Watches
from raykeeper.errors import CompactedError
from raykeeper.limits import Limits
from raykeeper.schema.answers import Item
from raykeeper.schema.frames import Refusal, Refused, Reply, Request, WatchEvent, WatchPoll
from raykeeper.schema.operations import Compact, Delete, KeyRange, Operation, Put, Txn
from raykeeper.store.state.machine import State
from simulation.disk import SimDisk

KEYS = [b"a", b"a\0", b"ab", b"b", b"c"]
CLUSTER = 7
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Request).decode


class Member:
    """One member's state and watches. It may lag the log, which is the world's."""

    def __init__(self, world: World, id: int) -> None:
        self.world = world
        self.id = id
        self.hand = Hand(State.create(SimDisk(), "state", FIRST))
        self.applied = 0
        self.slow_until = 0.0
        self.still_until = 0.0
        self.stale = False
        self.life = 0
        self.start()

    def start(self) -> None:
        self.life += 1
        self.watches = Watches(turn_of(lambda: self.hand.state), lambda: self.world.now, lambda: self.stale)

    def apply(self, upto: int) -> None:
        operations = self.world.log[self.applied : upto]
        if operations:
            self.hand.run(*operations)
            self.applied += len(operations)
        self.watches.keys_changed(self.hand.state.take_changed_keys(), self.hand.state.revision)
        self.watches.answer_others()

    def snapshot(self) -> None:
        old, self.hand = self.hand, Hand(State.create(SimDisk(), "state", FIRST))
        self.hand.run(*self.world.log)
        self.hand.state.take_changed_keys()
        while self.hand.state.compact_slice(100):
            pass
        self.applied = len(self.world.log)
        old.state.close()
        self.watches.state_replaced()

    def request(self, poll: WatchPoll, answer: Callable[[Callable[[], Reply]], None]) -> None:
        if any(create.start_revision == 0 for create in poll.create):
            if self.stale:  # no leader confirms anything to it
                self.world.after(poll.deadline, lambda: answer(lambda: Refused(Refusal.TIMED_OUT)))
                return
            self.apply(len(self.world.log))
        self.watches.poll(poll, self.world.now + poll.deadline, answer)


class Reader:
    """A consumer, and what it was told."""

    def __init__(self, world: World, slow: bool) -> None:
        rng = world.rng
        key = rng.choice(KEYS)
        self.keys = KeyRange(key, rng.choice((None, None, b"", b"b", b"\xff")))
        self.asked_at = world.model.revision
        self.start = rng.choice((0, 0, 0, rng.randrange(1, world.model.revision + 5)))
        self.puts, self.deletes = rng.choice(((True, True), (True, True), (True, False), (False, True)))
        self.prev = rng.random() < 0.3
        self.slow = slow
        self.told: list[WatchEvent] = []
        self.position = 0
        self.compacted = 0
        self.watch = world.core.create(
            self.keys, start_revision=self.start, prev=self.prev, puts=self.puts, deletes=self.deletes, signal=self
        )

    def wake(self) -> None:
        if not self.start and self.watch.fixed:
            self.start = self.watch.position + 1
            assert self.start > self.asked_at, "it sees what was there before it was asked for"

    def take(self, world: World) -> None:
        if not self.start:
            return
        taken = world.core.deliver(self.watch)
        self.told += taken.events
        assert taken.position >= self.position, "time goes backwards"
        self.position = taken.position
        if isinstance(taken.error, CompactedError):
            assert self.position + 1 < taken.error.compact_revision <= world.model.compacted
            self.compacted = taken.error.compact_revision
        else:
            assert taken.error is None
        self.takes += 1
        if self.takes % 8 == 0 or world.calm:
            self.check(world.model)

    takes = 0

    def check(self, model: Model) -> None:
        expected = []
        for revision, key, deleted in model.history:
            if revision < self.start or revision > self.position or not inside(key, self.keys):
                continue
            if self.deletes if deleted else self.puts:
                item = Item(key, b"", 0, revision, 0, 0) if deleted else model.past[revision][key]
                expected.append(WatchEvent(deleted, item, model.past[revision - 1].get(key) if self.prev else None))
        assert len(self.told) == len(expected), (self.told, expected)
        for told, event in zip(self.told, expected, strict=True):
            assert (told.deleted, told.item) == (event.deleted, event.item)
            assert told.prev == event.prev or (told.prev is None and told.item.mod_revision <= model.compacted)


class World:
    """The core, three members, and a network and a clock between them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.model = Model()
        self.log: list[Operation] = []
        self.members = {id: Member(self, id) for id in (1, 2, 3)}
        self.core = WatchCore(CLUSTER, Router((1, 2, 3)), Limits(), random.Random(seed))
        self.readers: list[Reader] = []
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.loss = self.rng.choice((0.0, 0.02, 0.1))
        self.double = self.rng.choice((0.0, 0.05))
        self.calm = False

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (self.now + seconds, next(self.order), act))

    # -- the network --------------------------------------------------------------------------------------------------

    def send(self) -> None:
        for call, id, frame in self.core.outgoing(self.now):
            poll = decode(frame)
            assert isinstance(poll, WatchPoll)
            if not self.calm and self.rng.random() < self.loss:
                if self.rng.random() < 0.5:
                    self.after(self.delay(), lambda call=call: self.core.on_failure(call, self.now))  # type: ignore[misc]
                continue
            for _ in range(2 if not self.calm and self.rng.random() < self.double else 1):
                self.after(self.delay(), lambda c=call, i=id, p=poll: self.arrive(c, i, p))  # type: ignore[misc]

    def delay(self) -> float:
        return self.rng.choice((0.001, 0.001, 0.01, 0.01 if self.calm else 0.4))

    def arrive(self, call: int, id: int, poll: WatchPoll) -> None:
        member = self.members[id]
        if self.now < member.still_until:
            self.after(member.still_until - self.now, lambda: self.arrive(call, id, poll))
            return
        life = member.life

        def answer(make: Callable[[], Reply]) -> None:
            self.after(self.rng.choice((0.0, 0.0, 0.01)), lambda: self.answer(call, member, life, make))

        member.request(poll, answer)

    def answer(self, call: int, member: Member, life: int, make: Callable[[], Reply]) -> None:
        if member.life != life:
            self.after(self.delay(), lambda: self.core.on_failure(call, self.now))
            return
        if self.now < member.still_until:
            self.after(member.still_until - self.now, lambda: self.answer(call, member, life, make))
            return
        reply = encode(make())
        if not self.calm and self.rng.random() < self.loss:
            return
        for _ in range(2 if not self.calm and self.rng.random() < self.double else 1):
            self.after(self.delay(), lambda: self.core.on_reply(call, reply, self.now))

    # -- what happens -------------------------------------------------------------------------------------------------

    def write(self) -> None:
        rng, value = self.rng, b"%d" % self.rng.randrange(1000)
        kind = rng.random()
        operation: Operation = Put(rng.choice(KEYS), value)
        if kind < 0.2:
            operation = Delete(KeyRange(rng.choice(KEYS), rng.choice((None, b"b"))))
        elif kind < 0.35:
            keys = rng.sample(KEYS, 2)
            operation = Txn((), (Put(keys[0], value), Delete(KeyRange(keys[1]))))
        elif kind < 0.37 and self.model.revision > self.model.compacted + 20:
            operation = Compact(rng.randrange(self.model.compacted + 1, self.model.revision + 1))
        self.model.do(operation)
        self.log.append(operation)
        if rng.random() < 0.2:
            self.core.learn_revision(self.model.revision, self.now)

    def fault(self) -> None:
        rng = self.rng
        member = rng.choice(list(self.members.values()))
        kind = rng.choice(("restart", "still", "slow", "stale", "snapshot"))
        if kind == "restart":
            member.start()
        elif kind == "still":
            member.still_until = self.now + rng.choice((1.0, 8.0, 40.0))
        elif kind == "slow":
            member.slow_until = self.now + rng.uniform(1.0, 6.0)
        elif kind == "stale":
            member.stale = not member.stale
        else:
            member.snapshot()

    def heal(self) -> None:
        self.calm = True
        for member in self.members.values():
            member.stale, member.still_until, member.slow_until = False, 0.0, 0.0

    def step(self, seconds: float) -> None:
        """Let time pass; members apply and tick as it does."""
        until = self.now + seconds
        while True:
            wakeup = self.core.next_wakeup()
            at = min([until, *([self.agenda[0][0]] if self.agenda else []), *([] if wakeup is None else [wakeup])])
            self.now = max(self.now, at)
            while self.agenda and self.agenda[0][0] <= self.now:
                heapq.heappop(self.agenda)[2]()
            self.core.on_time(self.now)
            self.send()
            if self.now >= until:
                break
            self.now += 1e-4
        for member in self.members.values():
            if self.now >= member.still_until:
                if self.now >= member.slow_until:
                    member.apply(len(self.log) if self.calm else self.rng.randrange(member.applied, len(self.log) + 1))
                member.hand.state.compact_slice(3)
                member.watches.answer_overdue_polls(self.now)

    def run(self, steps: int) -> None:
        rng = self.rng
        for _ in range(steps):
            for _ in range(rng.choice((0, 1, 1, 3))):
                self.write()
            if len(self.readers) < 12 and rng.random() < 0.1:
                self.readers.append(Reader(self, rng.random() < 0.3))
            if rng.random() < 0.04:
                self.fault()
            if self.readers and rng.random() < 0.01:
                gone = self.readers.pop(rng.randrange(len(self.readers)))
                self.core.cancel(gone.watch, self.now)
            self.step(rng.choice((0.02, 0.1, 0.3)))
            for reader in self.readers:
                if rng.random() < (0.05 if reader.slow else 0.7):
                    reader.take(self)

    def settle(self) -> None:
        """Everything arrives in the end."""
        self.heal()
        for _ in range(400):
            self.step(0.1)
            for reader in self.readers:
                reader.take(self)
            if all(reader.compacted or reader.position >= self.model.revision for reader in self.readers):
                return
        pytest.fail(f"not everything has arrived after 40 s: {[r.position for r in self.readers]}, {self.core.problem}")


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_repeated_or_out_of_order(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "WATCH_BUFFER_EVENTS", 8)
    monkeypatch.setattr(watches, "WATCH_REPLY_BYTES", 300)
    monkeypatch.setattr(watches, "WATCH_BATCH_BYTES", 150)
    monkeypatch.setattr(watches, "WATCH_SCAN_CHANGES", 5)
    world = World(seed)
    world.run(300)
    world.settle()
    assert world.readers


def test_runs_repeat_themselves() -> None:
    """The core draws nothing but from its own generator."""
    histories = []
    for _ in range(2):
        world = World(3)
        world.run(150)
        histories.append([reader.told for reader in world.readers])
    assert histories[0] == histories[1]
