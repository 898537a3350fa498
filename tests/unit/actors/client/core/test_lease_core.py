"""The client's core of leases: when a lease counts as lost, what travels, and promises over a network that loses."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from lab.client.ear import Ear
from lab.patience import PATIENCE
from raykeeper.actors.client import leases as leases_module
from raykeeper.actors.client.core.in_flight import LeaseQuestion
from raykeeper.actors.client.core.lease_core import HeldLease, LeaseCore, margin
from raykeeper.actors.client.core.router import Router
from raykeeper.actors.client.leases import LossEvent
from raykeeper.errors import InvalidArgument, KeeperError, LeaseLost, RequestTimeout, Unavailable
from raykeeper.limits import Limits
from raykeeper.schema.frames import (
    AskLeases,
    KeepLeases,
    Kept,
    LeasesKept,
    LeaseStatus,
    LeaseStatuses,
    Refusal,
    Refused,
    Reply,
    Request,
)

CLUSTER = 7
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Request).decode


class Play:
    """A core whose frames are answered by hand."""

    def __init__(self, leader: int = 1) -> None:
        self.now = 100.0
        self.core = LeaseCore(CLUSTER, Router((1, 2, 3), leader=leader), Limits(), random.Random(1))
        self.frames: list[tuple[int, int, Any]] = []
        self.last_id = 0

    def hold(self, ttl: float = 9.0, *, keep: bool = True, asked_at: float | None = None) -> HeldLease:
        self.last_id += 1
        since = self.now if asked_at is None else asked_at
        return self.core.hold_lease(self.last_id, ttl, since, keep=keep, signal=Ear(), now=self.now)

    def look(self) -> None:
        for call, member, frame in self.core.outgoing(self.now):
            self.frames.append((call, member, decode(frame)))

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            wakeup = self.core.next_wakeup()
            self.now = until if wakeup is None else max(self.now, min(until, wakeup))
            self.core.on_time(self.now)
            self.look()
            if self.now >= until:
                return
            self.now += 0.001

    def reply(self, reply: Reply, index: int = 0) -> None:
        call, _, _ = self.frames.pop(index)
        self.core.on_reply(call, encode(reply), self.now)
        self.look()

    def fail(self) -> None:
        call, _, _ = self.frames.pop(0)
        self.core.on_failure(call, self.now, "it is dead")
        self.look()

    def ask(self, *leases: int, timeout: float = 5.0) -> list[LeaseStatuses | KeeperError]:
        answers: list[LeaseStatuses | KeeperError] = []
        self.core.ask_status(LeaseQuestion(leases), now=self.now, timeout=timeout, done=answers.append)
        self.look()
        return answers


@pytest.fixture
def play() -> Play:
    return Play()


# --- keeping alive ---------------------------------------------------------------------------------------------------


def test_a_lease_counts_from_when_it_was_asked_for(play: Play) -> None:
    held = play.hold(9.0, keep=False, asked_at=play.now - 4.0)
    assert held.good_until == pytest.approx(play.now + 5.0 - margin(9.0))
    play.wait(5.0 - margin(9.0) - 0.01)
    assert not held.lost
    play.wait(0.02)
    assert held.lost
    assert isinstance(held.error, LeaseLost)
    assert held.signal.woken  # type: ignore[attr-defined]


def test_a_keep_alive_goes_to_the_leader_every_third_of_the_ttl(play: Play) -> None:
    held = play.hold(9.0)
    play.wait(2.9)
    assert play.frames == []
    play.wait(0.2)
    ((_, member, frame),) = play.frames
    assert (member, frame.leases) == (1, (held.id,))
    play.reply(LeasesKept((Kept.ALIVE,)))
    play.wait(2.8)
    assert play.frames == []
    play.wait(0.2)
    assert len(play.frames) == 1


def test_a_confirmation_counts_from_the_sending(play: Play) -> None:
    held = play.hold(9.0)
    play.wait(3.0)
    sent_at = play.now
    play.wait(0.4)
    play.reply(LeasesKept((Kept.ALIVE,)))
    assert held.good_until == pytest.approx(sent_at + 9.0 - margin(9.0))


def test_a_late_confirmation_counts_too_and_never_shortens(play: Play) -> None:
    held = play.hold(6.0)
    play.wait(2.0)
    first = play.now
    play.wait(1.5)
    assert len(play.frames) >= 2, "it is asked again well inside the TTL"
    play.reply(LeasesKept((Kept.ALIVE,)), index=1)
    good_until = held.good_until
    assert good_until > first + 6.0 - margin(6.0)
    play.reply(LeasesKept((Kept.ALIVE,)))
    assert held.good_until == good_until


def test_keep_alives_travel_together(play: Play) -> None:
    for _ in range(5):
        play.hold(9.0)
        play.wait(0.2)
    play.hold(60.0)
    play.wait(2.1)
    ((_, _, frame),) = play.frames
    assert frame.leases == (1, 2, 3, 4, 5)
    play.reply(LeasesKept((Kept.ALIVE,) * 5))
    frames = 1
    for _ in range(10):
        play.wait(3.0)
        frames += len(play.frames)
        for _ in range(len(play.frames)):
            play.reply(LeasesKept((Kept.ALIVE,) * len(play.frames[0][2].leases)))
    assert frames <= 13


def test_one_that_is_not_to_be_kept_alive_is_not(play: Play) -> None:
    play.hold(9.0, keep=False)
    play.wait(8.0)
    assert play.frames == []


def test_one_that_was_dropped_is_kept_alive_no_longer_and_runs_out(play: Play) -> None:
    held = play.hold(9.0)
    play.core.drop_lease(held, play.now)
    play.wait(8.7)
    assert play.frames == []
    assert not held.lost
    play.wait(0.3)
    assert held.lost
    assert play.core.next_wakeup() is None


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("how", ["dropped", "closed"])
def test_it_is_let_go_if_it_is_not_lost_yet_by_the_clock(play: Play, how: str, late: bool) -> None:
    held = play.hold(9.0)
    now = held.good_until if late else play.now
    if how == "dropped":
        play.core.drop_lease(held, now)
    else:
        play.core.close(now)
    assert held.released is not late


def test_gone_is_lost_at_once(play: Play) -> None:
    held, other = play.hold(9.0), play.hold(9.0)
    play.wait(3.0)
    play.reply(LeasesKept((Kept.GONE, Kept.ALIVE)))
    assert held.lost
    assert not other.lost


def test_what_the_leader_cannot_tell_is_asked_again_soon(play: Play) -> None:
    held = play.hold(9.0)
    play.wait(3.0)
    good_until = held.good_until
    play.reply(LeasesKept((Kept.ASK_AGAIN,)))
    assert held.good_until == good_until
    play.wait(0.1)
    assert len(play.frames) == 1


def test_a_lost_lease_stays_lost(play: Play) -> None:
    held = play.hold(6.0)
    play.wait(7.0)
    assert held.lost
    play.reply(LeasesKept((Kept.ALIVE,)))
    assert held.lost
    assert len(play.core) == 0


def test_nobody_answers_everybody_is_asked_and_the_loss_comes_in_time(play: Play) -> None:
    held = play.hold(6.0)
    play.wait(2.0)
    asked = set()
    while not held.lost:
        for _, member, _ in play.frames:
            asked.add(member)
        play.frames.clear()
        play.wait(0.1)
    assert asked == {1, 2, 3}
    assert play.now <= held.good_until + 0.11
    assert "does not answer" in str(held.error)


def test_a_deposed_leader_points_to_the_new_one(play: Play) -> None:
    play.hold(9.0)
    play.wait(3.0)
    play.reply(Refused(Refusal.NOT_LEADER, 3))
    assert play.frames[-1][1] == 3
    play.reply(LeasesKept((Kept.ALIVE,)))
    play.wait(3.0)
    assert play.frames[-1][1] == 3, "it is remembered"


def test_a_dead_leader_is_replaced_by_asking_around(play: Play) -> None:
    play.hold(9.0)
    play.wait(3.0)
    play.fail()
    assert play.frames[-1][1] != 1
    play.reply(Refused(Refusal.NOT_LEADER))
    play.wait(0.5)
    assert len(play.frames) == 1


def test_a_leader_that_was_silent_is_asked_again_if_others_hear_it(play: Play) -> None:
    held = play.hold(1.0)
    play.wait(0.55)
    asked = play.frames[-1][1]
    assert asked != 1
    play.reply(Refused(Refusal.NOT_LEADER, 1), index=-1)
    assert play.frames[-1][1] == 1, "a short lease cannot wait until it is trusted again"
    play.reply(LeasesKept((Kept.ALIVE,)), index=-1)
    assert held.good_until > play.now + 0.9


def test_what_somebody_else_found_out_helps() -> None:
    play = Play(leader=0)
    play.core._router.note_leader(2)
    play.hold(9.0)
    play.wait(3.0)
    assert play.frames[-1][1] == 2


def test_a_leader_that_nobody_knows_is_looked_up(play: Play) -> None:
    play.hold(9.0)
    play.wait(3.0)
    play.reply(Refused(Refusal.NOT_LEADER, 9))
    assert play.core._router.wants_members
    play.core._router.set_members((1, 2, 9))
    assert not play.core._router.wants_members


def test_closing_loses_everything(play: Play) -> None:
    held = play.hold()
    answers = play.ask()
    play.core.close(play.now)
    assert held.lost
    assert isinstance(answers[0], Unavailable)
    with pytest.raises(InvalidArgument):
        play.hold()


# --- questions -------------------------------------------------------------------------------------------------------


def test_a_question_is_answered_by_the_leader(play: Play) -> None:
    answers = play.ask(5)
    ((_, member, frame),) = play.frames
    assert member == 1
    assert isinstance(frame, AskLeases)
    assert frame.leases == (5,)
    status = LeaseStatuses((LeaseStatus(5, 9.0, 3.0),))
    play.reply(status)
    assert answers == [status]


def test_a_question_is_asked_again_until_somebody_answers(play: Play) -> None:
    answers = play.ask()
    play.fail()
    asked = play.frames[-1][1]
    assert asked != 1
    play.reply(Refused(Refusal.NOT_LEADER, 5 - asked))
    assert play.frames[-1][1] == 5 - asked
    play.wait(1.0)
    assert len(play.frames) > 1, "and when no member answers"
    play.reply(LeaseStatuses(()), index=-1)
    assert answers == [LeaseStatuses(())]


def test_a_question_ends_at_its_deadline(play: Play) -> None:
    answers = play.ask(timeout=0.2)
    play.wait(0.3)
    assert isinstance(answers[0], RequestTimeout)
    answers = play.ask(timeout=3.0)
    for _ in range(30):
        play.wait(0.1)
        while play.frames:
            play.fail()
    play.wait(0.1)
    assert isinstance(answers[0], Unavailable)
    assert isinstance(play.ask(timeout=0)[0], RequestTimeout)
    assert play.core.next_wakeup() is None


def test_a_question_that_was_given_up_is_over(play: Play) -> None:
    answers: list[LeaseStatuses | KeeperError] = []
    number = play.core.ask_status(LeaseQuestion(), now=play.now, timeout=5.0, done=answers.append)
    play.look()
    play.core.give_up(number)
    assert len(answers) == 1
    play.reply(LeaseStatuses(()))
    assert len(answers) == 1


# --- the loss --------------------------------------------------------------------------------------------------------


def test_a_loss_looks_at_the_clock_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is true at once in a process that was stopped and goes on, before its timer has had its turn."""
    now = 100.0
    monkeypatch.setattr(leases_module, "clock", lambda: now)
    loss = LossEvent()
    held = HeldLease(1, 9.0, now, True, loss)
    loss.belong_to(held)
    assert not loss.is_set()
    now += 9.0
    assert loss.is_set()


def test_setting_a_loss_gives_the_lease_up() -> None:
    loss = LossEvent()
    held = HeldLease(1, 9.0, 1e12, True, loss)
    loss.belong_to(held)
    loss.set()
    assert not held.keep
    with pytest.raises(TypeError):
        loss.clear()


def test_a_coroutine_can_wait_for_a_loss() -> None:
    loss = LossEvent()
    loss.belong_to(HeldLease(1, 9.0, 1e12, True, loss))

    async def wait() -> None:
        threading.Timer(0.05, loss.wake).start()
        await asyncio.wait_for(loss, PATIENCE)  # type: ignore[arg-type]
        await loss

    asyncio.run(wait())
    assert loss.wait(0)


def test_a_lease_and_its_loss_do_not_pickle() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(LossEvent())


# --- at random -------------------------------------------------------------------------------------------------------


class World:
    """The core over a bad network, and a leader that moves and that counts as leaders do."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.core = LeaseCore(CLUSTER, Router((1, 2, 3), leader=1), Limits(), random.Random(seed))
        self.leader = 1
        self.ends: dict[int, float] = {}
        """When the cluster ends each lease, if it hears nothing more."""
        self.held: list[HeldLease] = []
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.loss = self.rng.choice((0.0, 0.1, 0.5))
        self.cut_until = 0.0
        self.delays = [0.001, 0.01, 0.05, 0.8]
        self.frames = 0

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (self.now + seconds, next(self.order), act))

    def lost_on_the_way(self) -> bool:
        return self.now < self.cut_until or self.rng.random() < self.loss

    def send(self) -> None:
        for call, member, frame in self.core.outgoing(self.now):
            self.frames += 1
            request = decode(frame)
            assert isinstance(request, KeepLeases)
            for _ in range(self.rng.choice((1, 1, 1, 2))):
                if not self.lost_on_the_way():
                    self.after(self.delay(), lambda c=call, m=member, r=request: self.arrive(c, m, r))  # type: ignore[misc]

    def delay(self) -> float:
        return self.rng.choice(self.delays)

    def arrive(self, call: int, member: int, request: KeepLeases) -> None:
        reply: Reply = Refused(Refusal.NOT_LEADER, self.rng.choice((0, self.leader)))
        if member == self.leader:
            reply = LeasesKept(tuple(self.keep(id) for id in request.leases))
        if not self.lost_on_the_way():
            self.after(self.delay(), lambda: self.core.on_reply(call, encode(reply), self.now))

    def keep(self, id: int) -> Kept:
        if id not in self.ends:
            return Kept.GONE
        if self.rng.random() < 0.05:
            return Kept.ASK_AGAIN
        ttl = next(held.ttl for held in self.held if held.id == id)
        self.ends[id] = max(self.ends[id], self.now + ttl)
        return Kept.ALIVE

    def step(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            wakeup = self.core.next_wakeup()
            at = min([until, *([self.agenda[0][0]] if self.agenda else []), *([] if wakeup is None else [wakeup])])
            self.now = max(self.now, at)
            while self.agenda and self.agenda[0][0] <= self.now:
                heapq.heappop(self.agenda)[2]()
            for id in [id for id, end in self.ends.items() if end <= self.now]:
                del self.ends[id]
            self.core.on_time(self.now)
            self.send()
            self.check()
            if self.now >= until:
                return
            self.now += 1e-4

    def check(self) -> None:
        """A client that believes in a lease is right."""
        for held in self.held:
            if not held.lost and held.good_until > self.now:
                assert held.id in self.ends, f"lease {held.id} has ended, and its holder does not know"


@pytest.mark.parametrize("seed", range(40))
def test_who_believes_in_a_lease_is_right(seed: int) -> None:
    world = World(seed)
    rng = world.rng
    for number in range(1, 200):
        if len(world.held) < 8 and rng.random() < 0.2:
            ttl = rng.choice((1.0, 3.0, 10.0))
            world.ends[number] = world.now + rng.uniform(0.0, 0.3) + ttl
            world.held.append(world.core.hold_lease(number, ttl, world.now, keep=True, signal=Ear(), now=world.now))
        if rng.random() < 0.05:
            world.leader = rng.choice((1, 2, 3))
            for id in world.ends:  # a new leader starts over
                world.ends[id] += rng.uniform(0.0, 1.0)
        if rng.random() < 0.03:
            world.cut_until = world.now + rng.choice((0.5, 5.0))
        if rng.random() < 0.02 and world.ends:
            del world.ends[rng.choice(list(world.ends))]  # revoked: its holder hears of it with the next keep-alive
            world.held = [held for held in world.held if held.id in world.ends or held.lost]
        world.step(rng.choice((0.05, 0.2)))


def test_on_a_good_network_nothing_is_ever_lost() -> None:
    world = World(1)
    world.loss = 0.0
    world.delays = [0.001, 0.05]
    for id, ttl in enumerate((1.0, 1.5, 3.0, 10.0, 10.0), 1):
        world.ends[id] = world.now + ttl
        world.held.append(world.core.hold_lease(id, ttl, world.now, keep=True, signal=Ear(), now=world.now))
    for _ in range(300):
        world.step(0.1)
    assert not any(held.lost for held in world.held)
