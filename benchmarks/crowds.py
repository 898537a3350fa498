"""What crowds cost: so many things (watches, leases, sessions), and what they took of the machine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from accounting import cpu_seconds, descendants, resident
from measures import Row
from systems import System


class Usage:
    """Processor time since it was made: of the members, and of all else that this process has started: clients,
    proxies, Ray's daemons."""

    def __init__(self, system: System) -> None:
        self._members = system.pids()
        self._others = sorted(set(descendants(os.getpid())) - set(self._members))
        self._before = self._now()

    def into(self, row: Row) -> Row:
        """Cores in use since then, and the memory of the largest member now."""
        began, members, others = self._before
        now, members_now, others_now = self._now()
        each = [(after - before) / (now - began) for before, after in zip(members, members_now, strict=True)]
        row.member_cores, row.busiest_cores = sum(each), max(each)
        row.client_cores = (others_now - others) / (now - began)
        row.bytes = largest(self._members)
        return row

    def _now(self) -> tuple[float, list[float], float]:
        return time.monotonic(), [cpu_seconds([pid]) for pid in self._members], cpu_seconds(self._others)


def largest(pids: Iterable[int]) -> int:
    """Bytes of the largest of some processes."""
    return max(resident(pid) for pid in pids)


async def each_of(numbers: Iterable[int], work: Callable[[int], Awaitable[object]], at_once: int) -> None:
    """Do something for each number, so many at a time."""
    todo = iter(numbers)

    async def worker() -> None:
        for number in todo:
            await work(number)

    await asyncio.gather(*[worker() for _ in range(at_once)])


async def at_rate(call: Callable[[int], Awaitable[Any]], rate: float, count: int, most: int = 2000) -> tuple[int, str]:
    """Begin calls at a steady rate, whatever became of those before, but never more than ``most`` at a time: how many
    failed, and what the first said."""
    running: set[asyncio.Task[None]] = set()
    failed, problem = 0, ""
    began = time.monotonic()

    async def one(number: int) -> None:
        nonlocal failed, problem
        try:
            await call(number)
        except Exception as error:
            failed, problem = failed + 1, problem or f"{type(error).__name__}: {error}"

    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        while len(running) >= most:
            await asyncio.sleep(0.001)
        task = asyncio.ensure_future(one(number))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    return failed, problem
