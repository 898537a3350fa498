"""Many watches: how late their events come while puts go on at a steady rate, and what that costs.

The watches are spread over prefixes, so that each put is an event for as many watches as there are on its prefix. Some
client processes hold them; another one puts. Delivery is counted from the put's beginning to the event in the watching
program. Every event must come: those that have not within the time are told, and are in no percentile.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import Callable, Iterator

from accounting import come_to_rest
from crew import ClientProcess
from crowds import Usage, at_rate, each_of
from faces import Face
from loads import VALUE
from measures import Plan, Row, distribution
from systems import Etcd, RayKeeper, System, running

PREFIXES = 100
PUTS_A_SECOND = 1000
CLIENTS = 4
OPENED_AT_ONCE = 50
PATIENCE_S = 30.0
"""For the last events, once the last put is answered."""
NOTES = (
    f"Watches on {PREFIXES} prefixes, held by {CLIENTS} client processes, which are spread over the members; another "
    f"process begins puts of 256 bytes at a steady rate. `a second` is events that came in."
)


class Watching:
    """The watches of one client process."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.delays: list[float] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def open(self, first: int, count: int) -> None:
        """Open the watches with these numbers."""

        async def one(number: int) -> None:
            watch = self.face.watch_prefix(prefix(number))
            await watch.__anext__()
            self.tasks.append(asyncio.ensure_future(self._follow(watch)))

        await each_of(range(first, first + count), one, OPENED_AT_ONCE)

    async def _follow(self, watch: object) -> None:
        async for value in watch:  # type: ignore[attr-defined]
            self.delays.append(time.monotonic() - struct.unpack_from("d", value)[0])

    async def arrived(self, expected: int, patience: float) -> list[float]:
        """The delays, once so many events have come, or the time is over."""
        end = time.monotonic() + patience
        while len(self.delays) < expected and time.monotonic() < end:
            await asyncio.sleep(0.05)
        delays, self.delays = self.delays, []
        return delays

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


_watching: dict[Face, Watching] = {}


def prefix(number: int) -> str:
    """Of the watch with this number; also of the put."""
    return f"watched/{number % PREFIXES:02}/"


async def open_watches(face: Face, first: int, count: int) -> None:
    """In a client process: open watches."""
    watching = _watching.setdefault(face, Watching(face))
    await watching.open(first, count)


async def arrived(face: Face, expected: int, patience: float) -> list[float]:
    """In a client process: what has come since the last call."""
    return await _watching[face].arrived(expected, patience)


async def put_at_rate(face: Face, rate: float, count: int) -> tuple[int, str]:
    """In a client process: put, each time under the next prefix."""
    put = face.ops["put"]

    async def one(number: int) -> None:
        await put(f"{prefix(number)}{number % 1000}", struct.pack("d", time.monotonic()) + VALUE[8:])

    return await at_rate(one, rate, count)


def measure(
    system: System, counts: tuple[int, ...], rate: int, seconds: float, say: Callable[[str], None]
) -> Iterator[Row]:
    """One row for each number of watches, at a system that runs."""
    clients: list[ClientProcess] = []
    with contextlib.ExitStack() as stack:
        for number in range(CLIENTS + 1):
            clients.append(ClientProcess(system.kind, system.address_of(number)))
            stack.callback(clients[-1].end)
        for client in clients:
            client.ready()
        writer, watchers = clients[0], clients[1:]
        opened = 0
        for count in sorted(counts):
            say(f"{count:,} watches")
            began = time.monotonic()
            share = (count - opened) // CLIENTS
            for number, watcher in enumerate(watchers):
                watcher.ask("run", open_watches, (opened + number * share, share))
            for watcher in watchers:
                watcher.answer(600)
            opened += share * CLIENTS
            took = time.monotonic() - began
            come_to_rest(patience=10)
            yield _row(system, writer, watchers, opened, rate, seconds, took)


def _row(
    system: System,
    writer: ClientProcess,
    watchers: list[ClientProcess],
    opened: int,
    rate: int,
    seconds: float,
    took: float,
) -> Row:
    puts = max(PREFIXES, int(rate * seconds))
    puts -= puts % PREFIXES  # each prefix gets as many
    per_watcher = puts * opened // PREFIXES // CLIENTS
    usage, began = Usage(system), time.monotonic()
    failed, problem = writer.do("run", put_at_rate, (rate, puts), timeout=600)
    written = time.monotonic() - began
    for watcher in watchers:
        watcher.ask("run", arrived, (per_watcher, PATIENCE_S))
    delays = [delay for watcher in watchers for delay in watcher.answer(PATIENCE_S + 60)]
    row = usage.into(distribution(Row(system.name, f"watches, {rate:,} puts/s", "coroutines", CLIENTS, opened), delays))
    row.per_second = len(delays) / (time.monotonic() - began)
    row.failed = failed
    told = [f"opened in {took:.1f} s" if took > 1 else "", problem]
    if written > 1.05 * puts / rate:
        told.append(f"only {puts / written:,.0f} puts/s were taken")
    missing = per_watcher * CLIENTS - len(delays)
    if missing > 0:
        told.append(f"{missing:,} of {per_watcher * CLIENTS:,} events had not come after {PATIENCE_S:g} s")
    row.note = "; ".join(filter(None, told))
    return row


def _of(kind: type[System]) -> Callable[[str, Plan, Callable[[str], None]], Iterator[Row]]:
    def rows(folder: str, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
        with running(kind(folder)) as system:
            for rate in plan.watched_puts:
                yield from measure(system, (plan.watches,), rate, plan.crowd_seconds, say)

    return rows


of_raykeeper, of_etcd = _of(RayKeeper), _of(Etcd)
