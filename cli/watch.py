"""`raykeeper watch`: changes of keys as they happen, in order, until it is stopped; and a command for each of them.

As for etcdctl, the changes of several watches can be asked for on stdin (``-i``), a request a line, and a command after
``--`` is run once for each change, one after the other, with the change in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Sequence
from typing import Any

import click

from ..actors.arguments import shown
from ..actors.client.results import Batch, Event
from ..actors.handles import Client
from ..errors import KeeperError
from ..limits import MAX_WATCH_LINE_BYTES
from .child import end_child, start_child
from .options import (
    BYTES,
    MAX_NUMBER,
    WholeNumber,
    beginning_option,
    common_of_streams,
    open_client,
    options,
    selected,
)
from .render import show
from .stdio import tell
from .streaming import StreamingCommand, run_streaming

_COMMAND = "raykeeper.watch.command"


class WatchCommand(click.Command):
    """A command whose arguments after ``--``, if there are others before it, are a command to run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Called by Click."""
        if "--" in args:
            place = args.index("--")
            before, _, _ = self.make_parser(ctx).parse_args(args[:place])
            if isinstance(before.get("key"), str):
                ctx.meta[_COMMAND] = args[place + 1 :]
                args = args[:place]
            elif "--" in args[place + 1 :]:  # the first one is for keys that begin with a dash
                second = args.index("--", place + 1)
                ctx.meta[_COMMAND] = args[second + 1 :]
                args = args[:second]
        return super().parse_args(ctx, args)


_which = options(
    click.argument("key", type=BYTES, required=False),
    click.argument("end", type=BYTES, required=False),
    click.option("--prefix", is_flag=True, help="All keys that start with KEY."),
    click.option("--from-key", is_flag=True, help="All keys from KEY on."),
    click.option(
        "--rev",
        type=WholeNumber(1, MAX_NUMBER),
        help="Start with the changes of this revision (default: with future ones).",
    ),
    click.option("--prev", "--prev-kv", "prev", is_flag=True, help="Also print the previous value with each change."),
    click.option("--only", type=click.Choice(["put", "delete"]), help="Print only changes of this kind."),
    click.option(
        "--progress",
        "--progress-notify",
        "progress",
        is_flag=True,
        help="Also print, now and then, the revision up to which all was printed.",
    ),
)


class _Request:
    """One watch that was asked for.

    Args:
        key, end, prefix, from_key, rev, prev, only: which changes.
        progress: whether notices of progress are printed.
        command: run for each change; empty for none.
    """

    def __init__(
        self,
        key: bytes | None,
        end: bytes | None,
        prefix: bool,
        from_key: bool,
        rev: int | None,
        prev: bool,
        only: str | None,
        progress: bool,
        command: Sequence[str],
    ) -> None:
        if key is None:
            raise click.UsageError("Missing argument 'KEY'.")
        where = selected(key, end, prefix, from_key)
        self.asked = {**where, "start_revision": rev, "prev": prev, "only": only}
        self.progress = progress
        self.command = command


@click.command(cls=WatchCommand, options_metavar="[OPTIONS]")
@_which
@click.option(
    "-i", "--interactive", is_flag=True, help="Read requests from stdin: `watch KEY [END] [OPTIONS]`, a line each."
)
@options(common_of_streams, beginning_option)
@click.pass_context
def watch(
    ctx: click.Context,
    /,
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    interactive: bool,
    **which: Any,
) -> None:
    """Print every change of KEY, or of the keys from KEY up to END, END excluded, in order, until a signal comes.

    \b
    raykeeper watch KEY [END] [-- COMMAND ARGUMENT...]
    raykeeper watch -i

    As JSON each change is an object on a line of its own. --timeout is for starting the watch only. COMMAND is run for
    each change, with ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE, ETCD_WATCH_KEY and ETCD_WATCH_VALUE (quoted) in its
    environment; if it fails, the watch ends.
    """
    if interactive:
        if which["key"] is not None:
            raise click.UsageError("with --interactive the keys are read from stdin")
        with open_client(cluster, address, timeout) as kv:
            run_streaming(lambda command: _serve_requests(command, kv, output))
    request = _Request(command=ctx.meta.get(_COMMAND, ()), **which)
    with open_client(cluster, address, timeout) as kv:
        run_streaming(lambda command: _follow_until_unread(command, kv, request, output))


async def _follow_until_unread(command: StreamingCommand, kv: Client, request: _Request, output: str) -> int:
    with command.ending_when_unread():
        return await _follow(command, kv, request, output)


async def _follow(command: StreamingCommand, kv: Client, request: _Request, output: str) -> int:
    async with await kv.aio.watch(**request.asked) as changes:
        if request.progress:  # the first one says that the watch has started, and at which revision
            command.write(lambda: show(Batch(changes.revision, ()), output))
        async for batch in changes.batches():
            if batch.events or request.progress:
                command.write(lambda batch=batch: show(batch, output))  # type: ignore[misc]
            for event in batch.events if request.command else ():
                status = await _run(request.command, event, batch.revision)
                if status:
                    tell(f"{shlex.join(request.command)} ended with status {status}")
                    return 1
    return 0


async def _run(words: Sequence[str], event: Event, revision: int) -> int:
    """Run a command for a change, to its end; returns its exit status."""
    child = await start_child(words, {**os.environ, **environment(event, revision)})
    if isinstance(child, int):
        return child
    ended = asyncio.ensure_future(child.wait())
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        await end_child(child, ended, 1.0)
        raise


def environment(event: Event, revision: int) -> dict[str, str]:
    """What a command is told of a change, as by etcdctl: keys and values are quoted, as Go quotes text."""
    return {
        "ETCD_WATCH_REVISION": str(revision),
        "ETCD_WATCH_EVENT_TYPE": f'"{event.type.upper()}"',
        "ETCD_WATCH_KEY": quoted(event.kv.key),
        "ETCD_WATCH_VALUE": quoted(event.kv.raw),
    }


_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}


def quoted(data: bytes) -> str:
    """Bytes as Go's ``%q`` writes them."""
    said = []
    for letter in data.decode(errors="surrogateescape"):
        code = ord(letter)
        if letter in _ESCAPES:
            said.append(_ESCAPES[letter])
        elif 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
            said.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x80 and not letter.isprintable():
            said.append(f"\\x{code:02x}")
        elif not letter.isprintable():
            said.append(f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}")
        else:
            said.append(letter)
    return f'"{"".join(said)}"'


# --- requests on stdin -----------------------------------------------------------------------------------------------


async def _serve_requests(command: StreamingCommand, kv: Client, output: str) -> int:
    """Follow each watch that is asked for on stdin; ends when all have ended and stdin has too."""
    lines: asyncio.Queue[str] = asyncio.Queue(maxsize=1)
    loop = asyncio.get_running_loop()

    def read() -> None:
        """On a thread of its own, which a read that never returns must not keep the process from ending."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            while True:
                line = sys.stdin.readline(MAX_WATCH_LINE_BYTES)
                asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
                if not line:
                    return

    threading.Thread(target=read, daemon=True).start()
    following: set[asyncio.Task[int]] = set()
    with command.ending_when_unread():
        try:
            while line := await _next_line(lines, following):
                request = _request(line)
                if request is not None:
                    following.add(asyncio.ensure_future(_follow(command, kv, request, output)))
            while following:
                done, following = await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
                _raise_errors(done)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
    return 0


async def _next_line(lines: asyncio.Queue[str], following: set[asyncio.Task[int]]) -> str:
    """The next line of stdin, empty at its end; an error of a watch is raised meanwhile."""
    waiting = asyncio.ensure_future(lines.get())
    try:
        while not waiting.done():
            done, _ = await asyncio.wait({waiting, *following}, return_when=asyncio.FIRST_COMPLETED)
            _raise_errors(done - {waiting})
            following -= done
        return waiting.result()
    finally:
        waiting.cancel()


def _raise_errors(done: Any) -> None:
    """Raise what ended a watch; its exit status, if that was its command."""
    for task in done:
        status = task.result()
        if status:
            raise click.exceptions.Exit(status)


@click.command("watch", cls=WatchCommand, add_help_option=False)
@_which
@click.pass_context
def _request_of(ctx: click.Context, /, **which: Any) -> _Request:
    return _Request(command=ctx.meta.get(_COMMAND, ()), **which)


def _request(line: str) -> _Request | None:
    """The watch that a line asks for; ``None`` for none, which has been reported."""
    try:
        words = shlex.split(line)
        if not words:
            return None
        if words[0] != "watch":
            raise click.UsageError(f"{shown(line.strip())} is not a request such as: watch KEY --prefix")
        with _request_of.make_context("watch", words[1:]) as context:
            request: _Request = _request_of.invoke(context)
            return request
    except (click.ClickException, ValueError, KeeperError) as error:
        tell(error.format_message() if isinstance(error, click.ClickException) else str(error))
        return None
