"""`raykeeper watch`: changes of keys as they happen, in order, until it is stopped."""

from __future__ import annotations

from typing import Any

import click

from ..actors.client.results import Batch
from ..actors.handles import Client
from .options import (
    MAX_NUMBER,
    WholeNumber,
    beginning_option,
    common_of_streams,
    keys_option,
    open_client,
    options,
    selected,
)
from .render import show
from .streaming import StreamingCommand, run_streaming


@click.command()
@keys_option
@options(common_of_streams, beginning_option)
@click.option(
    "--rev",
    type=WholeNumber(1, MAX_NUMBER),
    help="Start with the changes of this revision (default: with future ones).",
)
@click.option("--prev", "--prev-kv", "prev", is_flag=True, help="Also print the previous value with each change.")
@click.option("--only", type=click.Choice(["put", "delete"]), help="Print only changes of this kind.")
@click.option("--progress", is_flag=True, help="Also print, now and then, the revision up to which all was printed.")
def watch(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    key: bytes,
    end: bytes | None,
    prefix: bool,
    from_key: bool,
    rev: int | None,
    prev: bool,
    only: str | None,
    progress: bool,
) -> None:
    """Print every change of KEY, or of the keys from KEY up to END, END excluded, in order, until a signal comes.

    As JSON each change is an object on a line of its own. --timeout is for starting the watch only.
    """
    asked = {**selected(key, end, prefix, from_key), "start_revision": rev, "prev": prev, "only": only}
    with open_client(cluster, address, timeout) as kv:
        run_streaming(lambda command: _follow(command, kv, asked, output, progress))


async def _follow(command: StreamingCommand, kv: Client, asked: dict[str, Any], output: str, progress: bool) -> int:
    with command.ending_when_unread():
        async with await kv.aio.watch(**asked) as watch:
            if progress:  # the first one says that the watch has started, and at which revision
                command.write(lambda: show(Batch(watch.revision, ()), output))
            async for batch in watch.batches():
                if batch.events or progress:
                    command.write(lambda batch=batch: show(batch, output))  # type: ignore[misc]
    return 0
