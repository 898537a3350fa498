"""The command `bench`: the performance of a running cluster, measured from here. It needs only the cluster.

It writes and reads a hundred keys in a part of the reserved space that no user's range reaches, and deletes them at the
end. Its puts are ordinary ones: a quorum syncs them, they make revisions, and they take their share of the cluster.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import Unavailable
from ..limits import BENCH_MAX_IN_FLIGHT, BENCH_MAX_S, Limits
from .options import WholeNumber, beginning_option, common, open_client, options, seconds
from .render import CommandResult, show

if TYPE_CHECKING:
    from ..actors.client.aio import AsyncKeyValueClient

KEYS = [f"{number:02}" for number in range(100)]
MAX_BYTES = Limits().max_request_bytes
"""Of a value, unless the cluster's limits were raised."""

BenchCall = Callable[[str], Awaitable[Any]]


def _duration(text: str) -> float:
    time = seconds(text)
    if not 0.05 <= time <= BENCH_MAX_S:
        raise click.BadParameter(f"{text} is not in the range of 0.05 to {BENCH_MAX_S:g} seconds")
    return time


@click.command()
@options(common, beginning_option)
@click.option(
    "--seconds",
    "each",
    type=_duration,
    metavar="SECONDS",
    default=2.0,
    show_default=True,
    help="For each measurement.",
)
@click.option(
    "--in-flight", type=WholeNumber(1, BENCH_MAX_IN_FLIGHT), default=100, show_default=True, help="Calls at a time."
)
@click.option(
    "--bytes", "size", type=WholeNumber(0, MAX_BYTES), default=256, show_default=True, help="Size of the values."
)
def bench(
    cluster: str, address: str | None, output: str, timeout: float, each: float, in_flight: int, size: int
) -> None:
    """Measure puts and gets of a running cluster from here: one at a time, and many in flight.

    It puts load on the cluster. What it writes is outside all users' keys, and is deleted at the end.
    """
    with open_client(cluster, address, timeout) as kv:
        place = kv.reserved("bench")
        try:
            measured = asyncio.run(_measure_all(place.aio, each, in_flight, os.urandom(size)))
        finally:
            place.delete(prefix="")
    show(_said(measured), output)


async def _measure_all(kv: AsyncKeyValueClient, seconds: float, in_flight: int, value: bytes) -> list[dict[str, Any]]:
    calls: dict[str, BenchCall] = {
        "put": lambda key: kv.put(key, value),
        "get": lambda key: kv.get(key),
        "serializable get": lambda key: kv.get(key, serializable=True),
    }
    for key in KEYS:
        await kv.put(key, value)
    measured = []
    for name, call in calls.items():
        for crowd in dict.fromkeys((1, in_flight)):
            times, elapsed = await _measure(call, seconds, crowd)
            measured.append(_summary(name, crowd, times, elapsed))
    return measured


async def _measure(call: BenchCall, seconds: float, in_flight: int) -> tuple[list[float], float]:
    """How long each call took, with this many in flight all the time, and how long the whole took."""
    times: list[float] = []
    keys = itertools.cycle(KEYS)
    began = time.monotonic()
    end = began + seconds

    async def worker() -> None:
        while (started := time.monotonic()) < end:
            await call(next(keys))
            times.append(time.monotonic() - started)

    workers = [asyncio.ensure_future(worker()) for _ in range(in_flight)]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
    if not times:
        raise Unavailable("no call was answered")
    return times, time.monotonic() - began


def _summary(name: str, in_flight: int, times: Sequence[float], elapsed: float) -> dict[str, Any]:
    """The result of one measurement; times in milliseconds."""
    return {
        "call": name,
        "in_flight": in_flight,
        "calls": len(times),
        "per_second": round(len(times) / elapsed, 1),
        "p50_ms": round(percentile(times, 0.5) * 1e3, 3),
        "p99_ms": round(percentile(times, 0.99) * 1e3, 3),
    }


def percentile(times: Sequence[float], share: float) -> float:
    """The smallest time that at least this fraction of them does not exceed."""
    return sorted(times)[max(0, math.ceil(len(times) * share) - 1)]


def _said(measured: list[dict[str, Any]]) -> CommandResult:
    lines = [
        f"{each['call']}, {each['in_flight']} in flight: {each['per_second']:,.0f}/s, "
        f"p50 {each['p50_ms']:.2f} ms, p99 {each['p99_ms']:.2f} ms"
        for each in measured
    ]
    return CommandResult({"measured": measured}, lines)
