"""The parts of the benchmarks of crowds that have logic: steady rates, shares, and their table."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import report
import watching
from accounting import sockets
from crowds import at_rate, each_of
from measures import Row
from results import Results


def test_calls_begin_at_a_steady_rate_whatever_becomes_of_them() -> None:
    began: list[float] = []
    running = most = 0

    async def call(number: int) -> None:
        nonlocal running, most
        began.append(time.monotonic())
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.2)
        running -= 1
        if number % 2:
            raise ValueError(f"no {number}")

    start = time.monotonic()
    failed, problem = asyncio.run(at_rate(call, 200, 20))
    assert len(began) == 20
    assert all(moment - start >= number / 200 - 0.001 for number, moment in enumerate(began))
    assert most > 1, "they did not wait for each other"
    assert (failed, problem) == (10, "ValueError: no 1")


def test_calls_in_flight_are_bounded() -> None:
    running = most = 0

    async def call(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1

    asyncio.run(at_rate(call, 1e6, 50, most=7))
    assert most == 7


def test_each_number_is_worked_on_once() -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    asyncio.run(each_of(range(100), work, 7))
    assert sorted(done) == list(range(100))


def test_watches_are_spread_evenly_over_the_prefixes() -> None:
    names = [watching.prefix(number) for number in range(10 * watching.PREFIXES)]
    assert {names.count(name) for name in set(names)} == {10}
    assert len(set(names)) == watching.PREFIXES


def test_sockets_are_counted() -> None:
    before = sockets(os.getpid())
    with socket.socket(), socket.socket():
        assert sockets(os.getpid()) == before + 2
    assert sockets(os.getpid()) == before
    assert sockets(0) == 0


def test_crowds_have_a_table_of_their_own() -> None:
    row = Row("RayKeeper", "watches, 100 puts/s", "coroutines", 4, 10_000, p50=0.004, p99=0.02, per_second=9_000)
    row.member_cores, row.busiest_cores, row.client_cores = 0.341, 0.2, 0.5
    row.bytes, row.note = 61_000_000, "opened in 2.0 s"
    (found,) = [cells for title, _, cells in report.sheets(Results([row])) if title.startswith("Crowds")]
    assert found == [
        [
            "watches, 100 puts/s", "RayKeeper", "10,000", "4 ms", "20 ms", "9,000", "0.34", "0.20", "0.50",
            "61 MB", "opened in 2.0 s",
        ]
    ]  # fmt: skip
    titles = [title for title, _, _ in report.sheets(Results([row]))]
    assert titles == ["Targets", "Crowds: watches, leases, sessions"], "it is in no other table"
