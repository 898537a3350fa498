"""Many keys: what a large state costs in memory, speed, and time to come back.

    python benchmarks/large.py [--keys 10000000] [--dir FOLDER]

Three members on one machine and one client process, which fills them with keys of about 20 bytes and values of 100, in
random order; values are random too, so that nothing can be compressed. Printed, with the bounds that were set: the
memory of the largest member (its own, without page cache); puts of new keys a second, on the large store against an
empty one; p99 of a point read in a quiet cluster, and while a tenth of the keys, overwritten before, is compacted away;
and the time from launch to the first linearizable read. Without a bound: the time to count all keys, and p99 of a read
meanwhile. The memory also goes into ``bench-runs/large.json``, from which ``benchmarks/run.py`` takes it over.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import click
from accounting import resident
from measures import Row, percentile
from rich.console import Console
from rich.table import Table
from systems import RayKeeper, kill_left
from targets import MANY_KEYS

import raykeeper
from raykeeper import KeeperError, Op

VALUE_BYTES = 100
NOISE = random.Random(0).randbytes(1 << 20)
AT_ONCE = 100
"""Puts in one transaction, while the store is filled."""
BATCHES = 24
"""Such transactions in flight."""
CROWD = 500
"""Puts in flight while their speed is measured."""
FULL = 10_000_000
"""Keys; what was measured with fewer is not carried over."""
KEPT = Path(__file__).resolve().parents[1] / "bench-runs" / "large.json"


def key(number: int) -> bytes:
    """Keys of numbers that follow each other lie far from each other."""
    return b"large/%014x" % (number * 0x9E3779B97F4A7C15 % (1 << 56))


def value() -> bytes:
    """Another one each time."""
    start = random.randrange(len(NOISE) - VALUE_BYTES)
    return NOISE[start : start + VALUE_BYTES]


async def together(crowd: int, work: Callable[[], Awaitable[bool]]) -> None:
    """This many workers, each of which works until it says that there is no more."""

    async def worker() -> None:
        while await work():
            pass

    await asyncio.gather(*[worker() for _ in range(crowd)])


def fill(kv: Any, numbers: Iterator[int], say: Callable[[int], None]) -> None:
    """Put all these keys, in transactions."""
    done = 0

    async def batch() -> bool:
        nonlocal done
        puts = [Op.put(key(number), value()) for number in itertools.islice(numbers, AT_ONCE)]
        if not puts:
            return False
        while True:
            try:
                await kv.aio.txn(success=puts, timeout=60)
                break
            except KeeperError:  # putting the same again does no harm
                await asyncio.sleep(0.5)
        done += len(puts)
        if done % (AT_ONCE * 1000) == 0:
            say(done)
        return True

    asyncio.run(together(BATCHES, batch))


def puts_a_second(kv: Any, numbers: Iterator[int], seconds: float) -> float:
    """Single puts of new keys, many in flight."""
    count = 0
    end = time.monotonic() + seconds

    async def put() -> bool:
        nonlocal count
        await kv.aio.put(key(next(numbers)), value(), timeout=60)
        count += 1
        return time.monotonic() < end

    began = time.monotonic()
    asyncio.run(together(CROWD, put))
    return count / (time.monotonic() - began)


def read_times(kv: Any, keys: int, until: Callable[[], bool]) -> list[float]:
    """Latencies of linearizable reads of random keys, one after another."""
    rng = random.Random(1)
    times = []
    while not until():
        began = time.monotonic()
        found = kv.get(key(rng.randrange(keys)), timeout=60)
        times.append(time.monotonic() - began)
        assert found is not None, "a key is gone"
    return times


SETTLED = 3.0
"""Seconds for which the disks keep their size when a compaction is over."""


def compacted(kv: Any, revision: int, cluster: Any) -> None:
    """Forget the history below a revision, and wait until every member's disk has done so."""
    kv.compact(revision, timeout=60)
    size, since = -1, time.monotonic()
    while time.monotonic() < since + SETTLED:  # slices of a compaction follow each other much closer
        now = sum(member.db_size for member in cluster.status().members)
        if now != size:
            size, since = now, time.monotonic()
        time.sleep(0.2)


@click.command()
@click.option("--keys", type=click.IntRange(1000), default=FULL, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=10.0, show_default=True, help="Of each measurement.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where the members' data lies for the time.")
def main(keys: int, seconds: float, folder: Path | None) -> None:
    """Fill a cluster with many keys, and measure what that does to it."""
    console = Console(stderr=True)
    scratch = tempfile.mkdtemp(prefix="rkl-", dir=folder)
    system = RayKeeper(scratch)
    try:
        system.start()
        rows, memory = measure(system, keys, seconds, lambda text: console.print(text, highlight=False))
    finally:
        system.stop()
        kill_left()
        shutil.rmtree(scratch, ignore_errors=True)
    keep(keys, memory)
    table = Table(title=f"{keys:,} keys with values of {VALUE_BYTES} bytes, three members on one machine")
    for column in ("", "measured", "bound", ""):
        table.add_column(column)
    for what, measured, bound, held in rows:
        table.add_row(what, measured, bound, "" if not bound else "held" if held else "missed")
    Console(width=120).print(table)
    sys.exit(0 if all(row[-1] for row in rows) else 1)


def keep(keys: int, memory: int) -> None:
    """Leave the memory of a full run where :func:`kept` finds it."""
    if keys >= FULL:
        KEPT.parent.mkdir(exist_ok=True)
        when = datetime.datetime.now(datetime.timezone.utc)
        KEPT.write_text(json.dumps({"keys": keys, "bytes": memory, "measured": f"{when:%Y-%m-%d %H:%M} UTC"}))


def kept() -> Row | None:
    """What the last full run left, if there was one."""
    try:
        left = json.loads(KEPT.read_text())
        return Row("RayKeeper", MANY_KEYS, bytes=left["bytes"], note=f"benchmarks/large.py, {left['measured']}")
    except (OSError, ValueError, KeyError):
        return None


def while_counting(kv: Any, keys: int) -> tuple[float, float]:
    """Count everything: how long that takes, and the p99 of another client's reads meanwhile."""
    counts: list[int] = []
    work = threading.Thread(
        target=lambda: counts.append(kv.range(prefix="large/", count_only=True, timeout=600).count), daemon=True
    )
    began = time.monotonic()
    work.start()
    times = read_times(kv, keys, lambda: not work.is_alive())
    took = time.monotonic() - began
    assert max(counts, default=0) >= keys, f"only {counts} keys are there"
    return took, percentile(times, 0.99) or 0.0


def measure(
    system: RayKeeper, keys: int, seconds: float, say: Callable[[str], None]
) -> tuple[list[tuple[str, str, str, bool]], int]:
    """What, measured, the bound, and whether it was held; and the bytes of the largest member."""
    beyond = itertools.count(1 << 40)
    kv = raykeeper.connect("bench", timeout=60)
    say("puts on a small store")
    fill(kv, iter(range(10_000)), lambda _: None)
    small = puts_a_second(kv, beyond, seconds)
    say(f"{small:,.0f} puts/s; filling {keys:,} keys")
    began = time.monotonic()
    fill(kv, iter(range(10_000, keys)), lambda n: say(f"{n:,} keys, {n / (time.monotonic() - began):,.0f}/s"))
    counted, counting = while_counting(kv, keys)
    say(f"counted in {counted:.0f} s; puts")
    large = puts_a_second(kv, beyond, seconds)
    memory = max(resident(pid) for pid in system.pids())
    say(f"{large:,.0f} puts/s, {memory / 1e6:.0f} MB; reads")
    end = time.monotonic() + seconds
    quiet = percentile(read_times(kv, keys, lambda: time.monotonic() > end), 0.99) or 0.0
    say(f"p99 of a read {quiet * 1e3:.1f} ms; a tenth is written once more, and its past compacted away")
    fill(kv, iter(range(0, keys, 10)), lambda _: None)
    revision = kv.revision()
    work = threading.Thread(target=compacted, args=(kv, revision, system.cluster))
    work.start()
    busy = percentile(read_times(kv, keys, lambda: not work.is_alive()), 0.99) or 0.0
    work.join()
    memory = max(memory, *(resident(pid) for pid in system.pids()))
    say("restart")
    again = system.restart()
    assert kv.get(key(0), timeout=60) is not None
    kv.close()
    return _said(counted, counting, small, large, quiet, busy, again, memory), memory


def _said(
    counted: float, counting: float, small: float, large: float, quiet: float, busy: float, again: float, memory: int
) -> list[tuple[str, str, str, bool]]:
    return [
        ("memory of the largest member", f"{memory / 1e6:.0f} MB", "500 MB", memory < 500e6),
        ("puts/s, large store / small store", f"{large:,.0f} / {small:,.0f}", "at least 0.5", large >= small / 2),
        ("p99 of a read, in a compaction / quiet", f"{busy * 1e3:.1f} / {quiet * 1e3:.1f} ms", "3", busy <= 3 * quiet),
        ("restart to the first read", f"{again:.1f} s", "10 s", again <= 10),
        ("all keys counted; p99 of a read meanwhile", f"{counted:.0f} s; {counting * 1e3:.1f} ms", "", True),
    ]


if __name__ == "__main__":
    main()
