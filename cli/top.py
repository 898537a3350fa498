"""`raykeeper top`: what loads a cluster, by client and by prefix, and which requests were slow of late.

On a terminal the picture is drawn again each time. Elsewhere each round is printed after the other, or, as JSON, is one
object on a line.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..limits import MAX_TOP_ROUNDS, TOP_ROWS
from .holders import process
from .options import WholeNumber, beginning_option, common_of_streams, open_operations, options, seconds
from .render import CommandResult, show, text
from .streaming import StreamingCommand, run_streaming

if TYPE_CHECKING:
    from ..actors.client.load_tables import ClientTop, ClusterTop, PrefixTop
    from ..actors.cluster.cluster_operations import ClusterOperations

_CLEAR = "\x1b[H\x1b[2J"


@click.command()
@options(common_of_streams, beginning_option)
@click.option("--interval", type=seconds, default=2.0, show_default=True, help="Seconds between two rounds.")
@click.option(
    "-n", "rounds", type=WholeNumber(0, MAX_TOP_ROUNDS), default=0, help="Rounds, then end (default: until a signal)."
)
@click.option(
    "--limit", type=WholeNumber(1, TOP_ROWS), default=10, show_default=True, help="Clients, and prefixes, at most."
)
def top(
    cluster: str, address: str | None, output: str, timeout: float, interval: float, rounds: int, limit: int
) -> None:
    """Show what loads the cluster: puts, gets, watch events and bytes a second, by client and by prefix.

    The figures are averages over the last five seconds. A prefix is a key's first segment, with the slash after it.
    Below stand the last requests that took more than 100 ms, with where the time went.
    """
    found = open_operations(cluster, address)
    run_streaming(lambda command: _follow(command, found, output, timeout, interval, rounds, limit))


async def _follow(
    command: StreamingCommand,
    cluster: ClusterOperations,
    output: str,
    timeout: float,
    interval: float,
    rounds: int,
    limit: int,
) -> int:
    redrawn = output != "json" and sys.stdout.isatty()
    shown = 0
    with command.ending_when_unread():
        while True:
            seen = await asyncio.to_thread(lambda: cluster.top(limit=limit, timeout=timeout))
            said = CommandResult(fields(seen), list(lines(cluster.name, seen)))

            def draw(said: CommandResult = said) -> None:
                if redrawn:
                    click.echo(_CLEAR, nl=False)
                show(said, output)

            command.write(draw)
            shown += 1
            if shown == rounds:
                return 0
            await asyncio.sleep(interval)


def fields(top: ClusterTop) -> dict[str, Any]:
    """One round, for JSON."""
    from ..actors.client.client_info import client_fields

    return {
        "clients": [
            {
                **_rates(each),
                "source": each.source,
                "client": None if each.client is None else client_fields(each.client),
            }
            for each in top.clients
        ],
        "prefixes": [{"prefix": each.prefix, "reserved": each.reserved, **_rates(each)} for each in top.prefixes],
        "slow": [{name: getattr(each, name) for name in each.__struct_fields__} for each in top.slow],
        "silent": list(top.silent),
    }


def _rates(row: ClientTop | PrefixTop) -> dict[str, float]:
    return {"puts": row.puts, "gets": row.gets, "events": row.events, "bytes": row.bytes}


def lines(name: str, top: ClusterTop) -> Iterator[str]:
    """One round, for people."""
    silent = f"; no answer from {', '.join(top.silent)}" if top.silent else ""
    yield f"cluster {name} at {time.strftime('%H:%M:%S')}, a second over the last 5 s{silent}"
    yield from _table("client", [(_who(each), each) for each in top.clients])
    yield from _table("prefix", [(_what(each), each) for each in top.prefixes])
    for each in top.slow[-5:]:
        when = time.strftime("%H:%M:%S", time.localtime(each.at))
        yield f"slow: {when} {each.member} {each.took:.3f} s: {text(each.what.encode(errors='surrogateescape'))}"


def _table(heading: str, rows: Iterable[tuple[str, ClientTop | PrefixTop]]) -> Iterator[str]:
    yield f"{'puts':>9} {'gets':>9} {'events':>9} {'bytes':>10}  {heading}"
    for what, row in rows:
        yield f"{_rate(row.puts)} {_rate(row.gets)} {_rate(row.events)} {_size(row.bytes)}  {what}"


def _rate(value: float) -> str:
    return f"{value:9,.1f}" if value < 1000 else f"{value:9,.0f}"


def _size(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:7.1f} {unit}"
    return f"{value:8.0f} B"


def _who(row: ClientTop) -> str:
    return text((row.source if row.client is None else process(row.client)).encode(errors="surrogateescape"))


def _what(row: PrefixTop) -> str:
    return f"{text(row.prefix) or '(keys without a slash)'}{' (locks, queues and the like)' if row.reserved else ''}"
