"""What one noisy client process costs nine quiet ones, which are sessions of their own with lanes of their own.

The quiet ones put and get, one call at a time, at a steady pace that is far below their share of what the cluster can
do. They do so alone and beside each kind of noise, in turn, in one run: what counts is the ratio of the two. A process
that only computes is one kind of noise: what it costs is the machine's doing, for a noisy client has to run somewhere.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from accounting import come_to_rest
from crew import ClientProcess, Crew
from faces import Face
from loads import VALUE
from measures import Plan, Row, distribution
from sessions import open_sessions, sessions_of
from systems import RayKeeper, running

QUIET = 9
PACE_S = 0.05
"""From one put and get of a quiet client to the next, if these take no longer."""
SETTLE_S = 0.5
"""For noise to reach its height, and to die down."""
NOISY_KEYS = 10_000
RANGES = 32
PUTS = 4000
BIG_PUTS = 32
BIG_VALUE = bytes(512 * 1024)
WATCHES = 1000
NOTES = (
    f"{QUIET} quiet sessions, each with a put and a get every {PACE_S * 1000:.0f} ms, alone and beside one noisy "
    "client process, in turn. `a second` is what all of them did; the note has the ratios to the run alone."
)


class Quiet(NamedTuple):
    """What the quiet clients saw: latencies, calls that failed, and what the first said."""

    puts: list[float]
    gets: list[float]
    failed: int
    problem: str


async def quiet(face: Face, seconds: float) -> Quiet:
    """In a client process with open sessions: their calls for this long."""
    end = time.monotonic() + seconds
    puts: list[float] = []
    gets: list[float] = []
    failures: list[Exception] = []

    async def timed(call: Awaitable[Any], times: list[float]) -> None:
        began = time.monotonic()
        try:
            await call
        except Exception as error:
            failures.append(error)
        times.append(time.monotonic() - began)

    async def one(number: int, handle: Any) -> None:
        await asyncio.sleep(random.random() * PACE_S)
        while (began := time.monotonic()) < end:
            await timed(handle.put(f"quiet/{number}", VALUE), puts)
            await timed(handle.get(f"quiet/{number}"), gets)
            await asyncio.sleep(max(0.0, began + PACE_S - time.monotonic()))

    await asyncio.gather(*[one(number, handle.aio) for number, handle in enumerate(sessions_of(face))])
    return Quiet(puts, gets, len(failures), next((f"{type(each).__name__}: {each}" for each in failures), ""))


async def _again_and_again(at_once: int, until: float, call: Callable[[int], Awaitable[Any]]) -> int:
    done = 0

    async def worker(number: int) -> None:
        nonlocal done
        while time.monotonic() < until:
            try:
                await call(number)
                done += 1
            except Exception:
                await asyncio.sleep(0.01)

    await asyncio.gather(*[worker(number) for number in range(at_once)])
    return done


async def noisy_puts(face: Face, until: float) -> int:
    """Small puts, as many as a handle of this program ever has in flight."""
    return await _again_and_again(PUTS, until, lambda n: face.ops["put"](f"noisy/{n:05}", VALUE))


async def noisy_gets(face: Face, until: float) -> int:
    """Gets, as many."""
    return await _again_and_again(PUTS, until, lambda n: face.ops["get"](f"noisy/{n:05}", VALUE))


async def noisy_values(face: Face, until: float) -> int:
    """Puts of big values."""
    return await _again_and_again(BIG_PUTS, until, lambda n: face.ops["put"](f"big/{n}", BIG_VALUE))


async def noisy_ranges(face: Face, until: float) -> int:
    """Reads of ten thousand keys each."""
    kv: Any = face.kv  # type: ignore[attr-defined]
    return await _again_and_again(RANGES, until, lambda n: kv.aio.range(prefix="noisy/"))


async def noisy_watches(face: Face, until: float) -> int:
    """Many watches of one prefix, and puts under it: each put is an event for all of them."""
    came = 0

    async def follow(number: int) -> None:
        nonlocal came
        async for _ in face.watch_prefix("watched/"):
            came += 1

    watches = [asyncio.ensure_future(follow(number)) for number in range(WATCHES)]
    await _again_and_again(8, until, lambda n: face.ops["put"](f"watched/{n}", VALUE))
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*watches, return_exceptions=True)
    return came


async def computing(face: Face, until: float) -> int:
    """Not the cluster, but the machine."""
    turns = 0
    while time.monotonic() < until:
        sum(range(10_000))
        turns += 1
    return turns


async def fill(face: Face) -> int:
    """Write the keys that are read."""
    keys = [f"noisy/{number:05}" for number in range(NOISY_KEYS)]
    for begin in range(0, NOISY_KEYS, 1000):
        await asyncio.gather(*[face.ops["put"](key, VALUE) for key in keys[begin : begin + 1000]])
    return NOISY_KEYS


NOISES: dict[str, Callable[[Face, float], Awaitable[int]]] = {
    "a process that only computes": computing,
    f"{PUTS:,} puts in flight": noisy_puts,
    f"{PUTS:,} gets in flight": noisy_gets,
    f"{BIG_PUTS} puts of 512 KiB in flight": noisy_values,
    f"{RANGES} ranges of {NOISY_KEYS:,} keys in flight": noisy_ranges,
    f"{WATCHES:,} watches of one prefix, and puts there": noisy_watches,
}


def measure(system: RayKeeper, seconds: float, say: Callable[[str], None], only: str = "") -> Iterator[Row]:
    """For each kind of noise, the quiet clients alone, and beside it."""
    with Crew(system.kind, system.address(), 2) as crew:
        client, noisy = crew.clients
        noisy.do("run", fill, ())
        client.do("run", open_sessions, (system.address()["name"], QUIET))
        come_to_rest()
        for name, noise in NOISES.items():
            if only in name:
                yield from _beside(client, noisy, name, noise, seconds, say)


def _beside(
    client: ClientProcess,
    noisy: ClientProcess,
    name: str,
    noise: Callable[[Face, float], Awaitable[int]],
    seconds: float,
    say: Callable[[str], None],
) -> Iterator[Row]:
    say(f"alone, and beside {name}")
    alone = client.do("run", quiet, (seconds,))
    began = time.monotonic()
    noisy.ask("run", noise, (began + seconds + 2 * SETTLE_S,))
    time.sleep(SETTLE_S)
    beside = client.do("run", quiet, (seconds,))
    done = noisy.answer()
    rate = done / (time.monotonic() - began)
    time.sleep(SETTLE_S)
    yield from (_row("put", "nobody", seconds, alone, alone.puts), _row("get", "nobody", seconds, alone, alone.gets))
    for op, times, before in (("put", beside.puts, alone.puts), ("get", beside.gets, alone.gets)):
        row = _row(op, name, seconds, beside, times)
        was = distribution(Row("", ""), before)
        slower = [(now or 0) / (then or 1) for now, then in ((row.p50, was.p50), (row.p99, was.p99))]
        row.note = f"p50 x {slower[0]:.1f}, p99 x {slower[1]:.1f}, done x {len(times) / max(1, len(before)):.2f}; "
        row.note += f"the noise: {rate:,.0f} a second" + (f"; {beside.problem}" if beside.problem else "")
        yield row


def _row(op: str, beside: str, seconds: float, seen: Quiet, times: list[float]) -> Row:
    row = distribution(Row(f"beside {beside}", f"quiet clients: {op}", "coroutines", QUIET, QUIET), times)
    row.per_second, row.failed = len(times) / seconds, seen.failed
    return row


def rows(folder: str, plan: Plan, say: Callable[[str], None]) -> Iterator[Row]:
    """All kinds of noise."""
    with running(RayKeeper(folder)) as system:
        yield from measure(system, plan.crowd_seconds, say)
