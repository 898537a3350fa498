"""What is taken for the time of a call is free again, wherever the call was interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lab.interrupts import Interrupted
from lab.onemember import in_thread, one_member
from lab.patience import PATIENCE, until
from raykeeper import Client, InvalidArgument, ReentrantCall
from raykeeper.actors import ray_calls
from raykeeper.actors.deadline import covering
from raykeeper.actors.interruptible import Places, refuse_reentry
from raykeeper.actors.ray_calls import in_time
from raykeeper.actors.recipes import callbacks
from raykeeper.actors.recipes.holder import Holder
from raykeeper.actors.recipes.sync_async import run_sync
from raykeeper.actors.transport import directory
from raykeeper.actors.transport.directory import Directory


@pytest.fixture(scope="module")
def kv() -> Iterator[Client]:
    with one_member() as member, member.client() as client:
        yield client


def everywhere(attempt: Callable[[], object], after: Callable[[int], object], least: int) -> None:
    """Interrupt an attempt at each place in turn, and look at what it leaves."""
    place = 0
    came = True
    while came:
        place += 1
        came = Interrupted(place).run(attempt)
        after(place)
    assert place > least


def test_there_are_so_many_places() -> None:
    places = Places(2)
    assert [places.take(who) for who in (1, 2, 3)] == [True, True, False]
    places.leave(3, None)
    assert not places.take(3)
    places.leave(1, None)
    assert places.take(3)
    assert len(places) == 2


def test_a_lock_that_its_own_thread_holds_is_not_waited_for() -> None:
    lock = threading.RLock()
    with lock:
        with pytest.raises(ReentrantCall):
            refuse_reentry(lock)
        in_thread(lambda: refuse_reentry(lock)).result()
    refuse_reentry(lock)


class Alone(Holder):
    """A contender whose turn it always is."""

    def __init__(self) -> None:
        def nothing(*_: object) -> None:
            pass

        contenders: Any = SimpleNamespace(
            name="n", space=SimpleNamespace(timeout=PATIENCE), check_lease=nothing, monitor=nothing
        )

        async def leave(*_: object) -> None:
            pass

        contenders.leave = contenders.give_back = leave
        super().__init__(contenders)

    async def join(self) -> Any:
        return SimpleNamespace(token=1, prefix=b"p/", lost=threading.Event())

    async def wait_turn(self, ticket: Any, deadline: Any) -> bool:
        return True


@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_lock_can_be_acquired_after_an_interrupt_anywhere() -> None:
    holders = [Alone()]

    def after(place: int) -> None:
        holder = holders[-1]
        if holder._ticket is not None:  # the interrupt came when it was held already
            run_sync(holder.release())
        assert run_sync(holder.acquire(None)), place
        with pytest.raises(InvalidArgument):
            run_sync(holder.acquire(None))
        run_sync(holder.release())
        holders.append(Alone())

    everywhere(lambda: run_sync(holders[-1].acquire(None)), after, 10)


@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_lock_is_released_after_an_interrupt_anywhere() -> None:
    holder = Alone()
    run_sync(holder.acquire(None))

    def after(place: int) -> None:
        if holder._ticket is not None:
            run_sync(holder.release())
        assert run_sync(holder.acquire(None)), place

    everywhere(lambda: run_sync(holder.release()), after, 2)


def test_a_watch_can_be_read_after_an_interrupt_anywhere(kv: Client) -> None:
    with kv.watch("w", timeout=PATIENCE) as watch:

        def free() -> bool:
            return watch._taker.acquire(timeout=1) and watch._taker.release() is None

        def after(place: int) -> None:
            assert in_thread(free).result(), place

        everywhere(lambda: watch.next(timeout=0), after, 5)


def test_members_can_be_looked_up_after_an_interrupt_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "member_actors", lambda name: {})
    looked_up = Directory()

    def look() -> None:
        with covering(PATIENCE):
            looked_up.member_handles("c", fresh=True)

    def after(place: int) -> None:
        in_thread(look).result()

    everywhere(look, after, 5)


def test_calls_to_ray_find_a_place_after_an_interrupt_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = Places(1)
    monkeypatch.setattr(ray_calls, "_helpers", helpers)

    def call() -> None:
        with covering(PATIENCE):
            in_time(int)

    def after(place: int) -> None:
        call()
        until(lambda: not len(helpers), what=f"the place is free: {place}")

    everywhere(call, after, 10)


@pytest.mark.filterwarnings("ignore:coroutine")
def test_callbacks_find_a_place_after_an_interrupt_anywhere(kv: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(1)
    monkeypatch.setattr(callbacks, "_places", places)
    monkeypatch.setattr(callbacks, "spawn", lambda handle, coroutine, name: coroutine.close())

    class Caller(callbacks._CallbackLoop):
        async def begin(self) -> None:
            pass

        async def follow(self) -> None:
            pass

        async def clean_up(self) -> None:
            pass

    begun: list[callbacks._CallbackLoop] = []

    def register() -> None:
        begun.append(Caller(kv, print))
        callbacks.register(kv, begun[-1])

    def after(place: int) -> None:
        assert not len(places) or not begun[-1].over.is_set(), place
        for caller in begun:
            places.leave(caller, None)  # as its thread would

    everywhere(register, after, 5)
