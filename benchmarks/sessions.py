"""Many client processes' worth of sessions: each with lanes of its own, from few processes.

Two thousand Python processes would take the machine's memory before the members felt anything. A session and its lanes
do not know what process they are in, so each client process here opens many hubs, as a process of its own would open
one. What the client's side costs is therefore less than that of real processes, and is not claimed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from accounting import come_to_rest, sockets
from crew import Crew
from crowds import Usage, at_rate, largest
from faces import Face
from loads import VALUE
from measures import Plan, Row, distribution
from systems import RayKeeper, running

CLIENTS = 4
AT_ONCE = 8
"""Hubs that one process opens at a time."""
PUTS_TO_A_LANE = 3
"""The second request to a member opens a lane, while it travels as an actor call."""
NOTES = (
    f"Sessions with lanes of their own, opened by {CLIENTS} processes; idle, and with one put a second in each. "
    "Memory is the largest member's."
)


class Sessions:
    """The hubs of one client process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.handles: list[Any] = []

    def open(self, count: int) -> None:
        """Open more of them, each with a session and a lane to the leader."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self.handles += pool.map(lambda _: self._open(), range(count))

    def _open(self) -> Any:
        from raykeeper.actors.client.hub import Hub
        from raykeeper.actors.client.hub_pool import HubShare, open_hub
        from raykeeper.actors.handles import Client
        from raykeeper.actors.transport.client_actor import ActorTransport
        from raykeeper.actors.transport.client_lanes import LaneTransport
        from raykeeper.limits import Settings

        first = open_hub(self.name, 60).hub
        settings = Settings(limits=first.limits, timings=first.timings)
        hub = Hub(self.name, first.cluster, LaneTransport(ActorTransport(self.name)), settings=settings)
        handle = Client(self.name, first.cluster, share=HubShare(hub), timeout=60)
        for _ in range(PUTS_TO_A_LANE):
            handle.put(f"session/{random.randrange(1000)}", VALUE)
        return handle


_sessions: dict[Face, Sessions] = {}


def sessions_of(face: Face) -> list[Any]:
    """In a client process: the handles of those that were opened."""
    return _sessions[face].handles


async def open_sessions(face: Face, name: str, count: int) -> float:
    """In a client process: open more of them; the seconds that this took."""
    sessions = _sessions.setdefault(face, Sessions(name))
    began = time.monotonic()
    await asyncio.to_thread(sessions.open, count)
    return time.monotonic() - began


async def put_in_each(face: Face, seconds: float) -> tuple[list[float], int, str]:
    """In a client process: one put a second in each session; latencies, failures, and what the first said."""
    handles = _sessions[face].handles
    times: list[float] = []

    async def one(number: int) -> None:
        began = time.monotonic()
        await handles[number % len(handles)].aio.put(f"session/{number % 1000}", VALUE)
        times.append(time.monotonic() - began)

    failed, problem = await at_rate(one, len(handles), int(len(handles) * seconds))
    return times, failed, problem


def measure(system: RayKeeper, counts: tuple[int, ...], seconds: float, say: Callable[[str], None]) -> Iterator[Row]:
    """Two rows for each number of sessions: idle, and with puts. 0 is one of the numbers, to compare with."""
    with Crew(system.kind, system.address(), CLIENTS) as crew:
        opened, before = 0, largest(system.pids())
        without = max(sockets(pid) for pid in system.pids())
        for count in sorted({0, *counts}):
            say(f"{count:,} sessions")
            share = (count - opened) // CLIENTS
            began = time.monotonic()
            for client in crew.clients:
                client.ask("run", open_sessions, (system.address()["name"], share))
            for client in crew.clients:
                client.answer(900)
            took = time.monotonic() - began
            opened += share * CLIENTS
            come_to_rest(patience=10)
            usage = Usage(system)
            time.sleep(seconds)
            row = usage.into(Row(system.name, "sessions, idle", "coroutines", CLIENTS, opened))
            if opened:
                each = ((row.bytes or 0) - before) / opened
                row.note = f"{each / 1e3:.1f} kB of the largest member each; {share * CLIENTS:,} opened in {took:.0f} s"
                lanes = max(sockets(pid) for pid in system.pids()) - without
                row.note += "" if lanes >= opened else f"; only {lanes:,} have a lane to the leader"
            yield row
            if opened:
                yield _with_puts(system, crew, opened, seconds)


def _with_puts(system: RayKeeper, crew: Crew, opened: int, seconds: float) -> Row:
    usage, began = Usage(system), time.monotonic()
    for client in crew.clients:
        client.ask("run", put_in_each, (seconds,))
    answers = [client.answer(600) for client in crew.clients]
    took = time.monotonic() - began
    times = [each for answer in answers for each in answer[0]]
    row = Row(system.name, "sessions, one put a second each", "coroutines", CLIENTS, opened)
    row = usage.into(distribution(row, times))
    row.per_second = len(times) / took
    row.failed = sum(answer[1] for answer in answers)
    row.note = next((answer[2] for answer in answers if answer[2]), "")
    return row


def rows(folder: str, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    """The sessions of the plan."""
    with running(RayKeeper(folder)) as system:
        yield from measure(system, (plan.sessions,), plan.crowd_seconds, say)
