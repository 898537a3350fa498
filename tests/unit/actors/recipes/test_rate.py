"""Rate limits: no more than the bound in any window, by a model and by counting; and what becomes of shares."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.onemember import OneMember, in_thread
from lab.patience import PATIENCE
from raykeeper import Client, InvalidArgument
from raykeeper.actors.recipes import rate_holder as rate
from raykeeper.actors.recipes.rate_shares import (
    BILLION,
    RateState,
    after_leaving,
    decoded_state,
    encoded_state,
    share_for,
    with_share,
    without,
)
from raykeeper.actors.recipes.token_bucket import TokenBucket, TokenWait

Until = Callable[..., None]
NEVER = 1e-6
"""Tokens a second: none comes while a test runs."""
TTL = 600.0
"""No lease is lost because a machine is slow."""


@pytest.fixture
def kv(member: OneMember, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A handle on a namespace of the test's own, whose calls have all the time that a slow machine takes."""
    with member.client() as client:
        yield client.namespace(f"{request.node.name}/").with_timeout(PATIENCE)


@pytest.fixture(autouse=True)
def nobody_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """No share is given back because a machine is slow."""
    monkeypatch.setattr(rate, "RATE_IDLE_S", TTL)


def most_over(taken: list[tuple[float, float, int]], per_second: float) -> float:
    """By how much the number of tokens that were taken in a window was over the rate, at most: the burst that was seen.

    Args:
        taken: for each call, a time before which it had not decided, one by which it had, and how many it took.
    """
    worst = 0.0
    for begin, _, _ in taken:
        inside = sorted([(end, n) for start, end, n in taken if start >= begin])
        count = 0
        for end, n in inside:
            count += n
            worst = max(worst, count - per_second * (end - begin))
    return worst


# --- one bucket ------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def waits(made: TokenBucket, n: int) -> TokenWait:
    """One that waits in the bucket."""
    wait = TokenWait(n)
    made.enqueue(wait)
    return wait


def bucket(per_second: float, burst: float, tokens: float) -> tuple[TokenBucket, Clock, threading.Event]:
    clock, lost = Clock(), threading.Event()
    made = TokenBucket(clock)
    made.open(lost)
    made.set_share(per_second, burst, tokens)
    return made, clock, lost


def test_tokens_come_at_the_rate_and_are_kept_up_to_the_burst() -> None:
    made, clock, _ = bucket(10, 3, 3)
    assert [made.try_take(1) for _ in range(4)] == [True, True, True, False]
    clock.now += 0.11
    assert [made.try_take(1) for _ in range(2)] == [True, False]
    clock.now += 1000
    assert [made.try_take(2) for _ in range(2)] == [True, False]
    assert made.try_take(1)


def test_those_who_wait_come_first_and_in_order() -> None:
    made, clock, _ = bucket(10, 2, 0)
    heavy, light = waits(made, 2), waits(made, 1)
    clock.now += 0.11
    assert made.take(light) > 0
    assert not made.try_take(1)
    assert made.take(heavy) == pytest.approx(0.09)
    clock.now += 0.1
    assert made.take(heavy) == 0
    made.leave(heavy)
    assert made.take(light) == pytest.approx(0.1)
    made.leave(light)
    clock.now += 0.11
    assert made.try_take(1)


def test_more_than_its_burst_is_gathered_for_one_who_waits_and_only_for_that_one() -> None:
    made, clock, _ = bucket(10, 1, 1)
    heavy = waits(made, 5)
    clock.now += 0.5
    assert made.take(heavy) == 0
    made.leave(heavy)
    clock.now += 10
    assert [made.try_take(1) for _ in range(3)] == [True, False, False]


def test_what_was_gathered_for_one_who_gives_up_is_gone() -> None:
    made, clock, _ = bucket(10, 2, 2)
    heavy = waits(made, 9)
    clock.now += 0.65
    assert made.take(heavy) > 0
    assert made.tokens == pytest.approx(8.5)
    made.leave(heavy)
    assert made.tokens == 2
    made.leave(heavy)  # as often as you like
    assert [made.try_take(1) for _ in range(3)] == [True, True, False]


def test_what_was_gathered_for_one_who_gives_up_serves_the_next_as_far_as_that_one_wants_it() -> None:
    made, clock, _ = bucket(10, 2, 2)
    heavy, light = waits(made, 9), waits(made, 4)
    clock.now += 0.65
    made.leave(heavy)
    assert made.take(light) == 0
    assert made.tokens == 0


def test_one_that_was_interrupted_before_it_could_leave_is_in_nobodys_way() -> None:
    made, _, _ = bucket(10, 5, 5)
    gone, there = waits(made, 5), waits(made, 2)
    gone.over = True
    assert made.take(there) == 0
    assert not made.waiting
    assert made.try_take(1)


def test_a_bucket_that_was_opened_for_another_lease_is_not_drained() -> None:
    made, _, lost = bucket(10, 5, 5)
    assert made.drain(threading.Event()) == 0
    assert made.try_take(1)
    assert made.drain(lost) == 4
    assert not made.try_take(1)


def test_nothing_is_given_once_the_lease_is_lost() -> None:
    made, clock, lost = bucket(10, 5, 5)
    assert made.try_take(1)
    lost.set()
    clock.now += 10
    assert not made.try_take(1)
    assert made.take(waits(made, 5)) > 0


def test_a_wait_of_no_time_is_not_taken_for_success() -> None:
    """The tokens are there, but it is not the turn of this one; or the lease is lost."""
    made, _, lost = bucket(10, 5, 5)
    first, second = waits(made, 2), waits(made, 3)
    assert made.take(second) > 0
    lost.set()
    assert made.take(first) > 0
    assert made.tokens == 5


def test_what_is_given_up_is_no_longer_there() -> None:
    made, clock, lost = bucket(10, 6, 6)
    assert made.lower(5, 2) == 4
    assert not made.try_take(3)
    assert made.lower(50, 20) == 0
    assert (made.per_second, made.burst) == (5, 2)
    assert made.drain(lost) == 2
    clock.now += 100
    assert made.drain(lost) == 0
    assert not made.try_take(1)


# --- the model: holders that come, go, die and are late, by a clock that the test turns ------------------------------


class Model:
    """Holders in the order of ``RateHolder``'s steps: look, give up, write, take. Between any two, anything happens."""

    def __init__(self, rng: random.Random, per_second: int, burst: int) -> None:
        self.rng = rng
        self.clock = Clock()
        self.state = RateState(per_second * BILLION, burst * BILLION, burst * BILLION, {})
        self.version = 0
        self.quiet = False
        """Whether nobody takes anything at the moment."""
        self.buckets: dict[str, TokenBucket] = {}
        self.lost: dict[str, threading.Event] = {}
        self.owed: dict[str, float] = {}
        self.waiting: dict[str, list[TokenWait]] = {}
        self.half_done: list[tuple[str, int, Any, int]] = []
        """Writes on their way: whose, based on which version, the state, and how much may be taken then."""
        self.taken: list[tuple[float, float, int]] = []
        self.names = iter(range(10**6))

    def join(self) -> None:
        name = f"{next(self.names):x}"
        self.buckets[name], self.lost[name] = TokenBucket(self.clock), threading.Event()
        self.buckets[name].open(self.lost[name])
        self.owed[name], self.waiting[name] = 0.0, []

    def propose(self, name: str) -> None:
        state = without(self.state, self.state.shares.keys() - self.buckets.keys())
        share = share_for(state, name)
        self.owed[name] += self.buckets[name].lower(share.rate / BILLION, share.burst / BILLION)
        proposed, taken = with_share(state, name, share, int(self.owed[name] * BILLION))
        self.owed[name] = 0.0  # if the write is lost, so are these
        self.half_done.append((name, self.version, proposed, taken))

    def write(self) -> None:
        name, version, proposed, taken = self.half_done.pop(self.rng.randrange(len(self.half_done)))
        if version != self.version or name not in self.buckets:
            return
        self.state, self.version = proposed, self.version + 1
        if self.rng.random() < 0.9:  # otherwise the answer is lost
            share = proposed.shares[name]
            self.buckets[name].set_share(share.rate / BILLION, share.burst / BILLION, taken / BILLION)

    def leave(self, name: str) -> None:
        left = self.buckets.pop(name).drain(self.lost[name])
        self.state, self.version = after_leaving(self.state, name, int(left * BILLION)), self.version + 1

    def die(self, name: str) -> None:
        self.lost[name].set()
        del self.buckets[name]

    def take(self, name: str) -> None:
        """Nobody takes more at once than its share of the burst; who waits for more gives up before it has it."""
        made, n = self.buckets[name], self.rng.choice([1, 1, 2])
        if n <= made.burst and made.try_take(n):
            self.taken.append((self.clock.now, self.clock.now, n))

    def wait(self, name: str) -> None:
        made, n = self.buckets[name], self.rng.choice([1, 2, 2, self.state.burst // BILLION])
        if n > 2 or n <= made.burst:
            self.waiting[name].append(waits(made, n))

    def look(self, name: str) -> None:
        """One of those who wait takes its tokens, or gives up."""
        made, there = self.buckets[name], self.waiting[name]
        wait = self.rng.choice(there)
        if wait.n <= 2 and made.take(wait) == 0:
            self.taken.append((self.clock.now, self.clock.now, wait.n))
        elif self.rng.random() < 0.5:
            return
        there.remove(wait)
        made.leave(wait)

    def check(self) -> None:
        shares = self.state.shares.values()
        assert sum(share.rate for share in shares) <= self.state.rate
        assert sum(share.burst for share in shares) + self.state.pool <= self.state.burst
        alive = [made for name, made in self.buckets.items() if not self.lost[name].is_set()]
        assert sum(made.per_second for made in alive) <= self.state.rate / BILLION + 1e-6
        assert sum(made.burst for made in alive) <= self.state.burst / BILLION + 1e-6

    def step(self) -> None:
        roll, some = self.rng.random(), list(self.buckets)
        if roll < 0.03 and len(some) < 6:
            self.join()
        elif roll < 0.04 and some:
            self.die(self.rng.choice(some))
        elif roll < 0.05 and some:
            self.leave(self.rng.choice(some))
        elif roll < 0.20 and some:
            self.propose(self.rng.choice(some))
        elif roll < 0.35 and self.half_done:
            self.write()
        elif roll < 0.55:
            self.clock.now += self.rng.choice([0.001, 0.01, 0.1])
        elif roll < 0.60 and some:
            self.wait(self.rng.choice(some))
        elif not some or self.quiet:
            pass  # tokens are gathered
        elif waiting := [name for name in some if self.waiting[name] and roll < 0.85]:
            self.look(self.rng.choice(waiting))
        else:
            self.take(self.rng.choice(some))
        self.check()


@pytest.mark.parametrize("seed", range(20))
def test_no_window_has_more_than_the_bound_whatever_holders_do(seed: int) -> None:
    """Nobody takes more at once than its share of the burst (6 holders at most, and a burst of 12)."""
    model = Model(random.Random(seed), per_second=40, burst=12)
    for step in range(3000):
        model.quiet = step % 300 < 150
        model.step()
    assert len(model.taken) > 20
    assert most_over(model.taken, 40) <= 12 + 1e-3


def test_a_state_survives_being_written() -> None:
    state, _ = with_share(RateState(5, 6, 6, {}), "a", share_for(RateState(5, 6, 6, {}), "a"), 0)
    assert decoded_state(encoded_state(state)) == state


# --- over a cluster --------------------------------------------------------------------------------------------------


def taken(limiter: Any, most: int = 100) -> int:
    """How many tokens there are now."""
    count = 0
    while count < most and limiter.try_acquire():
        count += 1
    return count


def test_the_burst_is_there_at_once_and_no_more(kv: Client) -> None:
    calls = kv.rate("r", NEVER, 5, TTL)
    assert calls.acquire(3)
    assert taken(calls) == 2
    assert not calls.acquire(1, timeout=0.05)
    calls.close()


def test_all_processes_together_have_one_burst(kv: Client) -> None:
    limiters = [kv.rate("r", NEVER, 10, TTL) for _ in range(4)]
    assert limiters[0].acquire()
    counts = [0] * 4

    def work(number: int) -> None:
        for _ in range(30):
            counts[number] += taken(limiters[number])

    for worker in [in_thread(lambda number=number: work(number)) for number in range(4)]:
        worker.result()
    assert sum(counts) <= 9
    for limiter in limiters:
        limiter.close()


def test_what_is_given_back_is_there_for_the_next(kv: Client) -> None:
    with kv.rate("r", NEVER, 10, TTL) as first:
        assert first.acquire(3)
    with kv.rate("r", NEVER, 10, TTL) as second:
        assert taken(second) == 7
    with kv.rate("r", NEVER, 10, TTL) as third:
        assert taken(third) == 0


def test_the_share_of_one_that_dies_is_divided_and_its_tokens_are_gone(kv: Client, until: Until) -> None:
    first, second = kv.rate("r", NEVER, 10, TTL), kv.rate("r", NEVER, 10, TTL)
    assert first.acquire()
    assert not second.try_acquire(10)
    until(lambda: first.share == second.share > 0)
    holding = first._logic._holding
    assert holding is not None
    kv._run(_revoke(holding.lease.id), None)
    until(lambda: second.share == pytest.approx(NEVER))
    assert taken(second) <= 9
    until(lambda: holding.lease.lost.is_set())
    assert taken(first) == 0  # it joins again, with nothing
    for limiter in (first, second):
        limiter.close()


def _revoke(id: int) -> Any:
    from raykeeper.actors.client.leases import revoke_steps

    return revoke_steps(id)


def test_counted_with_a_real_clock(kv: Client) -> None:
    """Four holders come one after the other, and take what they get; each window is counted."""
    noted: list[tuple[float, float, int]] = []
    over = threading.Event()

    def work(number: int) -> None:
        n = 1 + number % 2
        with kv.rate("r", 300, 20, TTL) as calls:
            while not over.is_set():
                begin = time.monotonic()
                assert calls.acquire(n)
                noted.append((begin, time.monotonic(), n))
                if len(noted) >= 400:
                    over.set()

    for worker in [in_thread(lambda number=number: work(number)) for number in range(4)]:
        worker.result()
    assert most_over(noted, 300 * 1.02) <= 20 + 1


def test_one_that_has_not_asked_for_a_while_leaves(kv: Client, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "RATE_LOOK_S", 0.02)
    calls = kv.rate("r", NEVER, 10, TTL)
    assert calls.acquire(4)
    monkeypatch.setattr(rate, "RATE_IDLE_S", 0.0)
    holders = calls._logic._holders
    until(lambda: calls._logic._holding is None)
    until(lambda: kv.reserved("rate").range(prefix=holders, count_only=True).count == 0)  # all is given back
    monkeypatch.setattr(rate, "RATE_IDLE_S", TTL)
    with kv.rate("r", NEVER, 10, TTL) as other:
        assert taken(other) == 6
    assert not calls.try_acquire()
    calls.close()


def test_another_rate_under_the_same_name(kv: Client) -> None:
    with kv.rate("r", 5, 10, TTL) as calls:
        assert calls.acquire()
        for per_second, burst in ((6, 10), (5, 11)):
            with pytest.raises(InvalidArgument, match="is in use with"):
                kv.rate("r", per_second, burst, TTL).acquire()
    with kv.rate("r", NEVER, 3, TTL) as other:
        assert taken(other) <= 3


@pytest.mark.parametrize(("per_second", "burst", "ttl"), [(0, 1, 10), (-1, 1, 10), (1, 0, 10), (1, 1.5, 10), (1, 1, 0)])
def test_what_is_no_rate(per_second: Any, burst: Any, ttl: Any, kv: Client) -> None:
    with pytest.raises(InvalidArgument):
        kv.rate("r", per_second, burst, ttl)


def test_what_can_never_be_had(kv: Client) -> None:
    calls = kv.rate("r", 5, 10, TTL)
    for n in (11, 0, -1, True, 1.0):
        with pytest.raises(InvalidArgument):
            calls.acquire(n)  # type: ignore[arg-type]


def test_with_asyncio(kv: Client) -> None:
    async def main() -> None:
        async with kv.aio.rate("r", 200, 5, TTL) as calls:
            done = await asyncio.gather(*[calls.acquire(1, PATIENCE) for _ in range(30)])
            assert all(done)
        async with kv.aio.rate("other", NEVER, 5, TTL) as calls:
            assert await calls.acquire(5)
            assert not await calls.try_acquire()
            assert not await calls.acquire(1, 0.05)
            waiting = asyncio.ensure_future(calls.acquire())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert not calls._logic.bucket.waiting

    asyncio.run(main())
