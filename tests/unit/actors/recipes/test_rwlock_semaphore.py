"""Readers and writers, and slots: which may hold at the same time, and in which order."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lab.onemember import in_thread
from lab.patience import PATIENCE
from raykeeper import Client, InvalidArgument, LockLost
from raykeeper.actors.recipes.contenders import Contenders
from raykeeper.actors.recipes.holder import Holder

Until = Callable[..., None]


def test_readers_share_and_writers_do_not(kv: Client, until: Until) -> None:
    lock = kv.rwlock("a")
    one, two = lock.read(), lock.read()
    assert one.acquire(timeout=0)
    assert two.acquire(timeout=0)
    assert not lock.write().acquire(timeout=0)
    assert [each.token for each in lock.holders()] == [one.token, two.token]
    one.release()
    assert not lock.write().acquire(timeout=0)
    two.release()
    with lock.write() as writing:
        assert not lock.read().acquire(timeout=0)
        assert not lock.write().acquire(timeout=0)
        writing.guard().put("k", "1")
        assert [each.token for each in lock.holders()] == [writing.token]
    assert lock.holders() == []


def test_no_writer_starves_behind_readers_that_keep_coming(kv: Client, until: Until) -> None:
    lock = kv.rwlock("a")
    early = lock.read()
    early.acquire()
    writer = lock.write()
    writing = in_thread(writer.acquire)
    until(lambda: len(lock.waiters()) == 1)
    late = lock.read()
    reading = in_thread(late.acquire)
    until(lambda: len(lock.waiters()) == 2)
    assert not lock.read().acquire(timeout=0)
    early.release()
    assert writing.result() is True
    assert not reading.done
    writer.release()
    assert reading.result() is True
    late.release()


def test_a_writer_that_gives_up_lets_the_readers_by(kv: Client, until: Until) -> None:
    lock = kv.rwlock("a")
    early = lock.read()
    early.acquire()
    writing = in_thread(lambda: lock.write().acquire(timeout=0.3))
    until(lambda: writing.done or len(lock.waiters()) == 1)
    late = lock.read()
    reading = in_thread(late.acquire)
    assert writing.result() is False
    assert reading.result() is True
    assert len(lock.holders()) == 2
    early.release()
    late.release()


def test_readers_and_writers_at_random(kv: Client) -> None:
    inside = {"r": 0, "w": 0}
    mutex = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        lock = kv.rwlock("a")
        for _ in range(6):
            kind = rng.choice("rrw")
            with lock.read() if kind == "r" else lock.write():
                with mutex:
                    inside[kind] += 1
                    assert inside["w"] <= 1
                    assert not (inside["w"] and inside["r"])
                with mutex:
                    inside[kind] -= 1

    for worker in [in_thread(lambda seed=seed: work(seed)) for seed in range(6)]:
        worker.result(PATIENCE)


def test_asyncio_readers_and_writers(kv: Client) -> None:
    async def main() -> None:
        lock = kv.aio.rwlock("a")
        async with lock.read() as reading, lock.read():
            assert not await lock.write().acquire(timeout=0)
            assert len(await lock.holders()) == 2
            await reading.guard().put("k", "1")
        async with lock.write() as writing:
            assert not await lock.read().acquire(timeout=0)
            guard = writing.guard()
            assert await lock.waiters() == []
        with pytest.raises(LockLost):
            await guard.put("k", "2")

    asyncio.run(main())


# --- semaphore -------------------------------------------------------------------------------------------------------


def test_a_semaphore_has_so_many_slots(kv: Client, until: Until) -> None:
    held = [kv.semaphore("s", 2) for _ in range(2)]
    assert all(each.acquire(timeout=0) for each in held)
    extra = kv.semaphore("s", 2)
    assert not extra.acquire(timeout=0)
    assert not extra.acquire(timeout=0.1)
    assert [each.token for each in held[0].holders()] == [each.token for each in held]
    assert held[0].waiters() == []
    waiting = in_thread(extra.acquire)
    until(lambda: len(held[0].waiters()) == 1)
    held[1].release()
    assert waiting.result() is True
    extra.release()
    held[0].release()


def test_those_who_wait_enter_in_order(kv: Client, until: Until) -> None:
    entered: list[int] = []
    held = [kv.semaphore("s", 2) for _ in range(2)]
    for each in held:
        each.acquire()
    others = []
    gate = threading.Event()

    def contend(number: int) -> None:
        with kv.semaphore("s", 2):
            entered.append(number)
            assert gate.wait(PATIENCE)

    for number in range(5):
        others.append(in_thread(lambda number=number: contend(number)))
        until(lambda number=number: len(held[0].waiters()) == number + 1)
    held[1].release()
    until(lambda: entered == [0])
    held[0].release()
    until(lambda: entered == [0, 1])
    gate.set()
    for other in others:
        other.result()
    assert sorted(entered) == [0, 1, 2, 3, 4]


def test_never_more_than_the_limit(kv: Client) -> None:
    inside = [0]
    most = [0]
    mutex = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(5):
            semaphore = kv.semaphore("s", 3, ttl=600)
            if not semaphore.acquire(timeout=rng.choice([None, None, 0.01])):
                continue
            with mutex:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            semaphore.guard().put("k", str(seed))
            with mutex:
                inside[0] -= 1
            semaphore.release()

    for worker in [in_thread(lambda seed=seed: work(seed)) for seed in range(8)]:
        worker.result(PATIENCE)
    assert most[0] <= 3
    assert kv.semaphore("s", 3).holders() == []


def test_the_limit_is_everybodys(kv: Client) -> None:
    with kv.semaphore("s", 2):
        with pytest.raises(InvalidArgument, match="limit 2"):
            kv.semaphore("s", 3).acquire()
        with kv.semaphore("s", 2):
            pass
    with kv.semaphore("s", 3) as three:  # no contender is left, so the limit may be another one
        assert three.limit == 3
        with pytest.raises(InvalidArgument):
            kv.semaphore("s", 2).acquire()
    bad: Any
    for bad in (0, -1, 1.5, "2", True, None):
        with pytest.raises(InvalidArgument):
            kv.semaphore("s", bad)


def test_somebody_comes_and_goes_between_the_two_steps_of_the_first(
    kv: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is written first, and the place is taken then; the last to go takes the limit with it."""
    agree = Contenders.agree_on
    visits = iter([True, True])

    async def visited(line: Contenders, *arguments: Any) -> None:
        await agree(line, *arguments)
        if next(visits, False):
            with kv.semaphore("s", 2):
                pass

    monkeypatch.setattr(Contenders, "agree_on", visited)
    with kv.semaphore("s", 2) as slot:
        assert slot.held


def test_another_thread_may_release_at_once(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object in two threads is one contender, and keeps count of that."""
    lock = kv.lock("shared")

    class Released:
        """Stands for a thread that releases as soon as it can."""

        def __set_name__(self, owner: type, name: str) -> None:
            self.now = False

        def __get__(self, holding: Any, owner: Any) -> Any:
            return holding.__dict__.get("_ticket")

        def __set__(self, holding: Any, place: Any) -> None:
            holding.__dict__["_ticket"] = place
            if place is not None and not self.now:
                self.now = True
                lock.release()

    monkeypatch.setattr(Holder, "_ticket", Released(), raising=False)
    Holder.__dict__["_ticket"].now = False
    assert lock.acquire(timeout=PATIENCE)
    assert not lock.held
    assert lock.acquire(timeout=PATIENCE)
    assert lock.held
    lock.release()


def test_asyncio_semaphore(kv: Client) -> None:
    async def main() -> None:
        inside = most = 0

        async def work() -> None:
            nonlocal inside, most
            async with kv.aio.semaphore("s", 3) as slot:
                inside += 1
                most = max(most, inside)
                await slot.guard().put("k", "1")
                inside -= 1

        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(20))), PATIENCE)
        assert 1 < most <= 3

    asyncio.run(main())
