"""Semaphores whose contenders take several slots: the limit, the order, and who is shown."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from lab.onemember import OneMember, in_thread
from lab.patience import PATIENCE
from raykeeper import Client, InvalidArgument
from raykeeper.actors.recipes.weights import holders_by_weight, weight_kind, weight_of

Until = Callable[..., None]
LEASE = b"0123456789abcdef"
TTL = 600.0


@pytest.fixture
def kv(member: OneMember, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A handle on a namespace of the test's own, whose calls have all the time that a slow machine takes."""
    with member.client() as client:
        yield client.namespace(f"{request.node.name}/").with_timeout(PATIENCE)


def test_weights_count_together(kv: Client) -> None:
    three, two, one = (
        kv.semaphore("s", 5, TTL, weight=3),
        kv.semaphore("s", 5, TTL, weight=2),
        kv.semaphore("s", 5, TTL),
    )
    assert three.acquire(0)
    assert two.acquire(0)
    assert not one.acquire(0)
    assert [(each.token, each.weight) for each in one.holders()] == [(three.token, 3), (two.token, 2)]
    two.release()
    assert one.acquire(0)
    assert kv.semaphore("s", 5, TTL).acquire(0)
    assert not kv.semaphore("s", 5, TTL, weight=2).acquire(0)
    assert (three.weight, one.weight) == (3, 1)


def test_nobody_passes_a_heavy_one_and_it_gets_its_turn(kv: Client, until: Until) -> None:
    held = [kv.semaphore("s", 4, TTL) for _ in range(4)]
    for each in held:
        assert each.acquire(0)
    heavy, light = kv.semaphore("s", 4, TTL, weight=3), kv.semaphore("s", 4, TTL)
    waiting_heavy = in_thread(heavy.acquire)
    until(lambda: len(light.waiters()) == 1)
    waiting_light = in_thread(light.acquire)
    until(lambda: len(light.waiters()) == 2)
    assert [each.weight for each in light.waiters()] == [3, 1]
    held[3].release()
    assert not kv.semaphore("s", 4, TTL).acquire(0)  # a slot is free, but not for one that comes later
    held[0].release()
    assert not waiting_heavy.done
    held[1].release()
    assert waiting_heavy.result() is True
    assert [each.token for each in light.holders()] == [held[2].token, heavy.token]
    assert not waiting_light.done
    heavy.release()
    assert waiting_light.result() is True


def test_a_heavy_one_that_gives_up_lets_all_by_for_whom_there_is_room(kv: Client, until: Until) -> None:
    first = kv.semaphore("s", 4, TTL)
    assert first.acquire(0)
    heavy = kv.semaphore("s", 4, TTL, weight=4)
    waiting = in_thread(lambda: heavy.acquire(1.0))
    until(lambda: len(first.waiters()) == 1 or waiting.done)
    others = [kv.semaphore("s", 4, TTL) for _ in range(3)]
    entering = []
    for number, each in enumerate(others):
        entering.append(in_thread(each.acquire))
        until(lambda number=number: len(first.holders()) + len(first.waiters()) == number + 3 or waiting.done)
    assert waiting.result() is False
    assert [each.result() for each in entering] == [True] * 3
    assert len(first.holders()) == 4


def test_one_that_leaves_lets_many_light_ones_in(kv: Client, until: Until) -> None:
    heavy = kv.semaphore("s", 4, TTL, weight=4)
    assert heavy.acquire(0)
    others = [kv.semaphore("s", 4, TTL) for _ in range(4)]
    entering = [in_thread(each.acquire) for each in others]
    until(lambda: len(heavy.waiters()) == 4)
    heavy.release()
    assert [each.result() for each in entering] == [True] * 4


def test_at_random_the_limit_holds_and_all_get_their_turns(kv: Client) -> None:
    kv = kv.with_timeout(PATIENCE)
    taken, mutex, wrong = [0], threading.Lock(), []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(6):
            slots = kv.semaphore("s", 6, TTL)
            slots.acquire(weight=rng.choice([1, 1, 2, 5, 6]))
            with mutex:
                taken[0] += slots.weight
                if taken[0] > 6:
                    wrong.append(taken[0])
            slots.guard().put("k", str(seed))
            with mutex:
                taken[0] -= slots.weight
            slots.release()

    for worker in [in_thread(lambda seed=seed: work(seed)) for seed in range(6)]:
        worker.result()
    assert wrong == []
    assert kv.semaphore("s", 6, TTL).holders() == []


def test_what_is_in_use_shows_weights(kv: Client, until: Until) -> None:
    with kv.semaphore("s", 5, TTL, weight=3), kv.semaphore("s", 5, TTL):
        waiter = kv.semaphore("s", 5, TTL, weight=2)
        waiting = in_thread(waiter.acquire)
        until(lambda: kv.semaphore("s", 5, TTL).waiters())
        (found,) = kv.in_use("semaphore")
        assert [each.weight for each in found.holders] == [3, 1]
        assert [each.weight for each in found.waiters] == [2]
        assert found.size == 5
    assert waiting.result() is True
    waiter.release()


def test_with_asyncio_and_a_weight_of_its_own_each_time(kv: Client) -> None:
    async def main() -> None:
        slots = kv.aio.semaphore("s", 3, TTL, weight=2)
        async with slots:
            assert slots.weight == 2
            assert not await kv.aio.semaphore("s", 3).acquire(0, weight=2)
            assert [each.weight for each in await slots.holders()] == [2]
        assert await slots.acquire(0, weight=3)
        assert slots.weight == 3
        with pytest.raises(InvalidArgument):
            await slots.acquire(0, weight=1)
        assert slots.weight == 3
        await slots.release()
        assert await slots.acquire(0)
        assert slots.weight == 2
        await slots.release()

    asyncio.run(main())


@pytest.mark.parametrize("weight", [0, -1, 5, True, 1.0, "1", None])
def test_a_weight_that_could_never_be_held(weight: object, kv: Client) -> None:
    with pytest.raises(InvalidArgument):
        kv.semaphore("s", 4, TTL, weight=weight)  # type: ignore[arg-type]
    if weight is not None:
        with pytest.raises(InvalidArgument):
            kv.semaphore("s", 4, TTL).acquire(0, weight=weight)  # type: ignore[arg-type]
    assert kv.semaphore("s", 4, TTL).acquire(0)


def test_names_of_keys() -> None:
    for weight in (1, 2, 10, 2**40):
        assert weight_of(b"folder/p/" + weight_kind(weight) + LEASE) == weight
    assert weight_of(b"folder/p/odd" + LEASE) == 1
    assert [holders_by_weight([3, 1, 2], limit) for limit in range(1, 8)] == [0, 0, 1, 2, 2, 3, 3]
