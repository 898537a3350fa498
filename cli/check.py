"""`raykeeper check`: compares the members; `check perf` and `check datascale`, as etcdctl's, put a known load on them.

The loads have the sizes and the limits of etcdctl's. What is measured are the puts of this one process, from this
machine: a result that fails may be this machine's. Nothing is written if the prefix has keys already, and what was
written is deleted at the end, however that comes, except by SIGKILL or by a second signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import click
from click.core import ParameterSource

from ..errors import DataCorrupted, InvalidArgument, KeeperError, Unavailable
from ..limits import (
    CHECK_DELETE_KEYS,
    CHECK_PERF_MAX_S,
    CHECK_PERF_S,
    CHECK_RATE_FRACTION,
    CHECK_SLOWEST_S,
    CHECK_STDDEV_S,
    CHECK_TIMEOUT_S,
    CHECK_VALUE_BYTES,
    OPERATOR_TIMEOUT_S,
)
from .options import (
    BYTES,
    beginning_option,
    common,
    open_client,
    open_operations,
    options,
    seconds,
    timeout_of,
)
from .render import CommandResult, show, text
from .shown_steps import ShownProgress, shown_progress
from .stdio import tell
from .streaming import signals_raised

if TYPE_CHECKING:
    from ..actors.client.aio import AsyncKeyValueClient
    from ..actors.handles import Client


class CheckLoad(NamedTuple):
    """One of etcdctl's loads.

    Attributes:
        clients: of `check perf`: puts under way at a time, at most.
        rate: of `check perf`: puts a second.
        keys: of `check datascale`.
    """

    clients: int
    rate: int
    keys: int


LOADS = {
    "s": CheckLoad(50, 150, 10_000),
    "m": CheckLoad(200, 1000, 100_000),
    "l": CheckLoad(500, 8000, 1_000_000),
    "xl": CheckLoad(1000, 15_000, 3_000_000),
}


@click.group(invoke_without_command=True)
@options(common, timeout_of(CHECK_TIMEOUT_S))
@click.pass_context
def check(ctx: click.Context, /, cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Compare the contents of all members as of one revision.

    Exit status 1 if one differs or does not answer; it is named. `check perf` and `check datascale` put load on the
    cluster instead.
    """
    if ctx.invoked_subcommand is not None:
        return
    from ..actors.consistency import summary
    from ..actors.naming import member_name

    compared = open_operations(cluster, address).check(timeout=timeout)
    hashes = {member_name(member): digest for member, digest in compared.hashes.items()}
    where = {"revision": compared.revision, "compact_revision": compared.compact_revision}
    show({"equal": compared.equal and not compared.silent, **where, **hashes}, output)
    if compared.odd:
        raise DataCorrupted(summary(compared))
    if compared.silent:
        raise Unavailable(summary(compared))


def _duration(text: str | float) -> float:
    time = seconds(text)
    if not 1 <= time <= CHECK_PERF_MAX_S:
        raise click.BadParameter(f"{text} is not in the range of 1 to {CHECK_PERF_MAX_S:g} seconds")
    return time


_load = click.option(
    "--load", type=click.Choice(list(LOADS)), default="s", show_default=True, help="How much, as for etcdctl."
)
_tidying = options(
    click.option("--auto-compact", is_flag=True, help="Compact the history that it has made."),
    click.option("--auto-defrag", is_flag=True, help="At the end defragment all members, one after the other."),
)


@check.command()
@options(common, beginning_option)
@_load
@click.option("--prefix", type=BYTES, default="/raykeeper-check-perf/", show_default=True, help="Of the keys it puts.")
@_tidying
@click.option(
    "--seconds", "each", type=_duration, metavar="SECONDS", default=CHECK_PERF_S, show_default=True, help="How long."
)
def perf(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    load: str,
    prefix: bytes,
    auto_compact: bool,
    auto_defrag: bool,
    each: float,
) -> None:
    """Put keys at a fixed rate for a minute, and say whether the cluster keeps up with this process.

    It fails if fewer than 90% of the puts were made in time, if one took over 0.5 s, or if their times have a standard
    deviation of over 0.1 s; the exit status is 1 then.
    """
    asked = LOADS[load]
    said = f"putting {asked.rate} keys a second"
    with (
        open_client(cluster, address, timeout) as kv,
        _cleared(kv, prefix, auto_compact),
        shown_progress(said) as progress,
    ):
        times, failed, took = asyncio.run(_put_at_rate(kv.aio, prefix, asked, each, progress))
    verdicts = list(judged(times, failed, asked.rate, took))
    passed = all(ok for ok, _ in verdicts)
    fields = {
        "load": load,
        "puts": len(times),
        "failed": failed,
        "puts_per_second": round(len(times) / took, 1),
        "slowest_s": round(max(times, default=0.0), 4),
        "stddev_s": round(statistics.pstdev(times) if times else 0.0, 4),
        "passed": passed,
    }
    lines = [f"{'PASS' if ok else 'FAIL'}: {what}" for ok, what in verdicts]
    show(CommandResult(fields, [*lines, "PASS" if passed else "FAIL"]), output)
    if auto_defrag:
        _defragment(cluster, address, timeout)
    if not passed:
        raise click.exceptions.Exit(1)


async def _put_at_rate(
    kv: AsyncKeyValueClient, prefix: bytes, load: CheckLoad, each: float, progress: ShownProgress
) -> tuple[list[float], int, float]:
    """Seconds of each put, how many failed, and how long all took. A put that is due while as many are under way as may
    be begins later, and none begins after the end."""
    times: list[float] = []
    failed = 0
    value = os.urandom(CHECK_VALUE_BYTES)
    total = math.ceil(load.rate * each)
    numbers = iter(range(total))
    began = time.monotonic()

    async def worker() -> None:
        nonlocal failed
        for number in numbers:
            pause = began + number / load.rate - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            started = time.monotonic()
            if started >= began + each:
                return
            try:
                await kv.put(prefix + b"%08x" % number, value)
                times.append(time.monotonic() - started)
            except KeeperError:
                failed += 1
            progress.count(len(times), total)

    await asyncio.gather(*[worker() for _ in range(load.clients)])
    return times, failed, max(each, time.monotonic() - began)


def judged(times: list[float], failed: int, rate: int, took: float) -> Iterator[tuple[bool, str]]:
    """What is good and what is not, in etcdctl's words."""
    throughput = len(times) / took
    enough = throughput >= CHECK_RATE_FRACTION * rate
    yield (
        enough,
        f"Throughput {'is' if enough else 'too low:'} {throughput:.0f} writes/s, of {rate} asked for",
    )
    slowest = max(times, default=math.inf)
    quick = slowest <= CHECK_SLOWEST_S
    yield quick, f"Slowest request took {'' if quick else 'too long: '}{slowest:.6f}s"
    spread = statistics.pstdev(times) if times else math.inf
    even = spread <= CHECK_STDDEV_S
    yield even, f"Stddev {'is' if even else 'too high:'} {spread:.6f}s"
    if failed:
        yield False, f"{failed} requests failed"


@check.command()
@options(common, beginning_option)
@_load
@click.option(
    "--prefix", type=BYTES, default="/raykeeper-check-datascale/", show_default=True, help="Of the keys it puts."
)
@_tidying
def datascale(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    load: str,
    prefix: bytes,
    auto_compact: bool,
    auto_defrag: bool,
) -> None:
    """Put many keys of 1 KiB, and say by how much each member's data has grown.

    What RocksDB has not merged yet is counted too, so the figure is that of a store under load.
    """
    keys = LOADS[load].keys
    found = open_operations(cluster, address)
    with open_client(cluster, address, timeout) as kv:
        before = {each.name: each.db_size for each in found.status(timeout=timeout).members}
        with _cleared(kv, prefix, auto_compact):
            began = time.monotonic()
            with shown_progress(f"putting {keys} keys") as progress:
                asyncio.run(_put_many(kv.aio, prefix, LOADS[load], progress))
            took = time.monotonic() - began
            after = {each.name: each.db_size for each in found.status(timeout=timeout).members if each.pid}
    grown = {name: size - before.get(name, 0) for name, size in after.items()}
    rows = [{"member": name, "grown_bytes": size} for name, size in grown.items()]
    lines = [f"{name}: grown by {size / 1e6:.1f} MB" for name, size in grown.items()]
    said = f"PASS: {keys} keys of {CHECK_VALUE_BYTES} bytes in {took:.1f} s"
    show(CommandResult({"load": load, "keys": keys, "took_s": round(took, 3), "members": rows}, [*lines, said]), output)
    if auto_defrag:
        _defragment(cluster, address, timeout)


async def _put_many(kv: AsyncKeyValueClient, prefix: bytes, load: CheckLoad, progress: ShownProgress) -> None:
    value = os.urandom(CHECK_VALUE_BYTES)
    numbers, done = iter(range(load.keys)), itertools.count(1)

    async def worker() -> None:
        for number in numbers:
            await kv.put(prefix + b"%08x" % number, value)
            progress.count(next(done), load.keys)

    workers = [asyncio.ensure_future(worker()) for _ in range(load.clients)]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()


@contextlib.contextmanager
def _cleared(kv: Client, prefix: bytes, auto_compact: bool) -> Iterator[None]:
    """In this context keys with the prefix may be put, and signals end the command in order; afterwards they are gone.

    Raises:
        InvalidArgument: there are such keys already.
    """
    if not prefix:
        raise click.UsageError("--prefix must not be empty: all keys would be deleted")
    if kv.range(prefix=prefix, limit=1, count_only=True).count:
        raise InvalidArgument(f"there are keys that begin with {text(prefix)}: delete them first, or give --prefix")
    with signals_raised():
        try:
            yield
        finally:
            try:
                _delete(kv, prefix)
                if auto_compact:
                    kv.compact(kv.revision(), timeout=OPERATOR_TIMEOUT_S)
            except BaseException:
                tell(f"keys are left: raykeeper del --prefix {text(prefix)}")
                raise


def _defragment(cluster: str, address: str | None, timeout: float) -> None:
    """Have all members return the space of what was deleted to their disks. After the verdict is shown: a member that
    fails in this must not take with it what a long measurement has found.

    Args:
        timeout: seconds, if it was given; otherwise `raykeeper defrag`'s, for one request's would be too short.

    Raises:
        Unavailable: one did not.
    """
    from .endpoint import defragmented

    if click.get_current_context().get_parameter_source("timeout") is ParameterSource.DEFAULT:
        timeout = OPERATOR_TIMEOUT_S
    rows = defragmented(cluster, address, None, timeout)
    failed = [f"{row['endpoint']}: {row['error']}" for row in rows if row["error"]]
    if failed:
        raise Unavailable(f"not defragmented: {'; '.join(failed)}")


def _delete(kv: Client, prefix: bytes) -> None:
    """Delete the keys with a prefix, some at a time."""
    while True:
        page = kv.range(prefix=prefix, limit=CHECK_DELETE_KEYS, keys_only=True, timeout=OPERATOR_TIMEOUT_S)
        if not page.items:
            return
        kv.delete(page.items[0].key, page.items[-1].key + b"\0", timeout=OPERATOR_TIMEOUT_S)
