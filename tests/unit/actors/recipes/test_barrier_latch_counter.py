"""Barriers, latches and counters."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable

import pytest

from lab.onemember import in_thread
from lab.patience import PATIENCE
from raykeeper import Client, InvalidArgument

Until = Callable[..., None]


def places(kv: Client, name: str) -> int:
    """Parties that wait."""
    folder = (kv.prefix + name.encode()).replace(b"/", b"%2F") + b"/p/"
    return kv.reserved("barrier").range(prefix=folder, count_only=True).count


def test_nobody_goes_on_before_all_are_there_again_and_again(kv: Client) -> None:
    arrived = [0] * 4
    mutex = threading.Lock()

    def party() -> None:
        barrier = kv.barrier("b", 3)
        for epoch in range(4):
            with mutex:
                arrived[epoch] += 1
            assert barrier.wait(PATIENCE) is True
            assert arrived[epoch] == 3

    for each in [in_thread(party) for _ in range(3)]:
        each.result(PATIENCE)
    assert arrived == [3] * 4


def test_one_who_times_out_is_not_counted(kv: Client, until: Until) -> None:
    assert kv.barrier("b", 2).wait(0) is False
    assert kv.barrier("b", 2).wait(0.1) is False
    assert places(kv, "b") == 0
    one = in_thread(lambda: kv.barrier("b", 2).wait(PATIENCE))
    until(lambda: places(kv, "b") == 1)
    assert not one.done
    assert kv.barrier("b", 2).wait(PATIENCE) is True
    assert one.result() is True


def test_giving_up_and_opening_at_once(kv: Client) -> None:
    """Of two parties, either both go on or neither does, however close the time-out is."""
    for number in range(12):
        one = in_thread(lambda number=number: kv.barrier("b", 2).wait(0.004 * number))
        two = kv.barrier("b", 2).wait(0.02)
        assert one.result() is two


def test_a_party_that_dies_is_replaced(kv: Client, until: Until) -> None:
    space = kv.reserved("barrier")
    lease = kv.lease(6, keep_alive=False)  # a party of a process that is dead already
    folder = (kv.prefix + b"b").replace(b"/", b"%2F") + b"/p/"
    space.put(folder + b"3-%016x" % lease.id, "3", lease=lease)
    parties = [in_thread(lambda: kv.barrier("b", 3).wait(PATIENCE))]
    until(lambda: lease.lost.is_set() and places(kv, "b") == 1)
    parties.append(in_thread(lambda: kv.barrier("b", 3).wait(PATIENCE)))
    until(lambda: places(kv, "b") == 2)
    assert not any(each.done for each in parties)
    assert kv.barrier("b", 3).wait(PATIENCE) is True
    assert [each.result() for each in parties] == [True, True]


def test_more_than_enough_open_it_twice(kv: Client) -> None:
    parties = [in_thread(lambda: kv.barrier("b", 2).wait(PATIENCE)) for _ in range(6)]
    assert [each.result(PATIENCE) for each in parties] == [True] * 6


def test_the_number_of_parties_is_everybodys(kv: Client, until: Until) -> None:
    one = in_thread(lambda: kv.barrier("b", 2).wait(PATIENCE))
    until(lambda: places(kv, "b") == 1)
    with pytest.raises(InvalidArgument, match="2 parties"):
        kv.barrier("b", 3).wait()
    assert kv.barrier("b", 2).wait() is True
    assert one.result() is True
    assert kv.barrier("b", 1).wait() is True


def test_a_barrier_survives_compaction(kv: Client, until: Until) -> None:
    one = in_thread(lambda: kv.barrier("b", 2).wait(PATIENCE))
    until(lambda: places(kv, "b") == 1)
    kv.compact(kv.put("k", "1").revision)
    assert kv.barrier("b", 2).wait(PATIENCE) is True
    assert one.result() is True


def test_asyncio_barrier(kv: Client) -> None:
    async def main() -> None:
        barrier = kv.aio.barrier("b", 5)
        for _ in range(3):
            assert await asyncio.wait_for(asyncio.gather(*(barrier.wait() for _ in range(5))), PATIENCE) == [True] * 5
        assert await barrier.wait(0.05) is False

    asyncio.run(main())


# --- latch -----------------------------------------------------------------------------------------------------------


def test_a_latch_opens_when_all_have_counted(kv: Client, until: Until) -> None:
    latch = kv.latch("l", 3)
    assert latch.wait(0) is False
    assert latch.left() == 3
    waiting = [in_thread(kv.latch("l", 3).wait) for _ in range(3)]
    assert [latch.count_down(), latch.count_down()] == [2, 1]
    assert latch.wait(0.05) is False
    assert latch.count_down() == 0
    assert [each.result() for each in waiting] == [True] * 3
    assert latch.wait(0) is True
    assert latch.count_down() == 0
    assert latch.left() == 0
    latch.reset()
    assert latch.left() == 3
    assert latch.wait(0) is False


def test_a_latch_of_one(kv: Client) -> None:
    latch = kv.latch("l", 1)
    assert latch.count_down() == 0
    assert latch.wait(0) is True


def test_the_same_request_counts_once(kv: Client) -> None:
    latch = kv.latch("l", 3)
    assert [latch.count_down(request_id=f"{kv.prefix!r}-task-1") for _ in range(3)] == [2, 2, 2]
    assert latch.left() == 2


def test_the_count_is_everybodys(kv: Client) -> None:
    kv.latch("l", 3).count_down()
    with pytest.raises(InvalidArgument, match="counts to 3"):
        kv.latch("l", 2).count_down()
    with pytest.raises(InvalidArgument, match="counts to 3"):
        kv.latch("l", 4).left()
    assert kv.latch("l", 3).left() == 2


def test_a_latch_survives_compaction_and_counts_at_once(kv: Client) -> None:
    waiting = in_thread(kv.latch("l", 8).wait)
    kv.compact(kv.put("k", "1").revision)
    counting = [in_thread(kv.latch("l", 8).count_down) for _ in range(8)]
    assert sorted(each.result() for each in counting) == list(range(8))
    assert waiting.result() is True


def test_asyncio_latch(kv: Client) -> None:
    async def main() -> None:
        latch = kv.aio.latch("l", 2)
        waiting = asyncio.create_task(latch.wait())
        assert await latch.count_down() == 1
        assert await latch.left() == 1
        assert await latch.wait(0.05) is False
        assert await latch.count_down() == 0
        assert await asyncio.wait_for(waiting, PATIENCE) is True
        await latch.reset()
        assert await latch.left() == 2

    asyncio.run(main())


# --- counter ---------------------------------------------------------------------------------------------------------


def test_a_counter_adds(kv: Client) -> None:
    counter = kv.counter("c")
    assert counter.value() == 0
    assert [counter.add(5), counter.add(-7), counter.add(0), counter.add(2**80)] == [5, -2, -2, 2**80 - 2]
    assert kv.counter("c").value() == 2**80 - 2
    for bad in (1.5, "1", True, None):
        with pytest.raises(InvalidArgument):
            counter.add(bad)  # type: ignore[arg-type]


def test_everybodys_additions_count_once(kv: Client) -> None:
    def work() -> list[int]:
        counter = kv.counter("c")
        return [counter.add(1) for _ in range(10)]

    workers = [in_thread(work) for _ in range(5)]
    values = [value for worker in workers for value in worker.result(PATIENCE)]
    assert sorted(values) == list(range(1, 51))
    assert kv.counter("c").value() == 50


def test_the_same_request_adds_once(kv: Client) -> None:
    counter = kv.counter("c")
    assert counter.add(3, request_id="task-1") == 3
    assert counter.add(4) == 7
    assert kv.counter("c").add(3, request_id="task-1") == 3
    assert counter.add(1, request_id="task-2") == 8
    assert counter.value() == 8
    gc.collect()


def test_asyncio_counter(kv: Client) -> None:
    async def main() -> None:
        counter = kv.aio.counter("c")
        values = await asyncio.gather(*(counter.add(1) for _ in range(10)))
        assert sorted(values) == list(range(1, 11))
        assert await counter.add(1, request_id="once") == await counter.add(1, request_id="once") == 11
        assert await counter.value() == 11

    asyncio.run(main())
