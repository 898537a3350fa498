"""`raykeeper lock` and `raykeeper elect`: hold a lock or a leadership while a command runs, or until a signal comes.

It is released at the end, whatever the end was. A command that runs under a lock is a child of this process: it
receives the signals that this process receives, stops and continues with it, and does not outlive it. If the lock is
lost, the command is ended, because it must not continue without it. But a process may learn of that late, and not at
all while it does not run. That is why the token is in the child's environment.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import Mapping, Sequence

import click

from ..actors.client.leases import LossEvent
from ..actors.handles import AsyncClient
from ..actors.recipes.election import AsyncElection, Leader
from ..actors.recipes.holder import AsyncLockLike
from ..actors.recipes.sync_async import whoami
from ..limits import DEFAULT_TIMEOUT_S, LOCK_COMMAND_GRACE_S
from .child import end_child, pause_child, resume_child, signal_child, start_child
from .options import (
    BYTES,
    LOCK_KEY,
    LOCK_NAME,
    LOCK_TOKEN,
    address_option,
    cluster_option,
    open_client,
    options,
    output_option,
    seconds,
    seconds_or_none,
)
from .render import CommandResult, show, text
from .stdio import tell
from .streaming import PAUSING, StreamingCommand, run_streaming

NOT_IN_TIME, LOST = 124, 125
"""Exit statuses besides those of all commands and of the command that is run; 124 as in timeout(1)."""

_common = options(
    cluster_option,
    address_option,
    output_option,
    click.option(
        "--ttl", type=seconds, default=10.0, show_default=True, help="Seconds until it is free if this process dies."
    ),
    click.option("--timeout", type=seconds_or_none, help="Seconds to wait for it (default: forever)."),
)


@click.command()
@click.argument("name", type=BYTES)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_common
@click.option(
    "--grace",
    type=seconds_or_none,
    default=LOCK_COMMAND_GRACE_S,
    show_default=True,
    help="Seconds from SIGTERM to SIGKILL for the COMMAND if the lock is lost.",
)
def lock(
    cluster: str,
    address: str | None,
    output: str,
    ttl: float,
    timeout: float | None,
    grace: float,
    name: bytes,
    command: tuple[str, ...],
) -> None:
    """Acquire the lock NAME, run COMMAND while it is held, and release it: raykeeper lock NAME -- COMMAND...

    The exit status is that of COMMAND, 128+n if signal n ended it; 124 if the lock was not free in time; 125 if it was
    lost while COMMAND ran, which is then ended; 126 or 127 if COMMAND cannot be run. Signals that can be caught go to
    COMMAND, and it is killed if this process is. Its environment has RAYKEEPER_LOCK_NAME, RAYKEEPER_LOCK_KEY and
    RAYKEEPER_LOCK_TOKEN; `put`, `del` and `txn` take them with --guard.

    Without COMMAND, prints the lock's key and token, and holds it until a signal comes.
    """
    # Before Ray adds to it: the command is to get the environment that this one got.
    environment = {**os.environ, "RAYKEEPER_CLUSTER": cluster, **({"RAY_ADDRESS": address} if address else {})}

    async def work(stream: StreamingCommand, kv: AsyncClient) -> int:
        """COMMAND runs only while the lock is held. However it ends, the lock is released, and a signal that comes only
        then does not stop the release: others would wait for the TTL."""
        held = kv.lock(name, ttl)
        if not await held.acquire(timeout):
            tell(f"the lock {text(name)} was not free within {timeout:g} s")
            return NOT_IN_TIME
        try:
            key, what = _key("lock", held), f"the lock {text(name)}"
            if command:
                given = {LOCK_NAME: os.fsdecode(name), LOCK_KEY: os.fsdecode(key), LOCK_TOKEN: str(held.token)}
                return await _run(stream, command, environment | given, _loss(held), grace, what)
            fields = {"name": name, "key": key, "token": held.token}
            stream.write(lambda: show(CommandResult(fields, [text(key), str(held.token)]), output))
            return await _until_lost(held, what)
        finally:
            stream.start_release()
            await held.release()

    with open_client(cluster, address, DEFAULT_TIMEOUT_S) as kv:
        run_streaming(lambda stream: work(stream, kv.aio))


@click.command()
@click.argument("name", type=BYTES)
@click.argument("value", type=BYTES, required=False)
@_common
@click.option(
    "-l", "--listen", is_flag=True, help="Do not campaign; print each leader, and each value it sets, in order."
)
def elect(
    cluster: str,
    address: str | None,
    output: str,
    ttl: float,
    timeout: float | None,
    listen: bool,
    name: bytes,
    value: bytes | None,
) -> None:
    """Campaign in the election NAME, known by VALUE (default: host and process id), and lead until a signal comes.

    Once elected, prints the leader's key, token and value. The exit status is 124 if this was not elected in time, 125
    if the leadership was lost.

    With --listen, prints token and value of the current leader, and of each later one; with JSON one per line.
    """
    if listen and (value is not None or timeout is not None or output == "table"):
        raise click.UsageError("--listen takes no VALUE and no --timeout, and prints no table")

    async def work(stream: StreamingCommand, kv: AsyncClient) -> int:
        """Nothing is printed before the election is won. However the leadership ends, it is resigned, and a signal that
        comes only then does not stop that: others would wait for the TTL."""
        election = kv.election(name, ttl)
        if listen:
            return await _listen(stream, election, output)
        said = whoami() if value is None else value
        if not await election.campaign(said, timeout):
            tell(f"not elected in {text(name)} within {timeout:g} s")
            return NOT_IN_TIME
        try:
            key, token = _key("election", election), election.token
            fields = {"name": name, "key": key, "token": token, "value": said}
            stream.write(lambda: show(CommandResult(fields, [text(key), str(token), text(said)]), output))
            return await _until_lost(election, f"the leadership in {text(name)}")
        finally:
            stream.start_release()
            await election.resign()

    with open_client(cluster, address, DEFAULT_TIMEOUT_S) as kv:
        run_streaming(lambda stream: work(stream, kv.aio))


async def _listen(stream: StreamingCommand, election: AsyncElection, output: str) -> int:
    def tell_of(leader: Leader) -> None:
        show(
            CommandResult({"token": leader.token, "value": leader.value}, [str(leader.token), text(leader.value)]),
            output,
        )

    with stream.ending_when_unread():
        async with election.observe() as leaders:
            async for leader in leaders:
                stream.write(lambda leader=leader: tell_of(leader))  # type: ignore[misc]
    return 0


def _key(area: str, held: AsyncLockLike) -> bytes:
    """The holder's key, after the area of the reserved space that it is in."""
    return area.encode() + b"/" + held._holder.current_ticket().key


def _loss(held: AsyncLockLike) -> LossEvent:
    loss = held.lost
    assert isinstance(loss, LossEvent)
    return loss


async def _until_lost(held: AsyncLockLike, what: str) -> int:
    await _loss(held)
    tell(f"{what} is lost")
    return LOST


async def _run(
    stream: StreamingCommand,
    command: Sequence[str],
    environment: Mapping[str, str],
    lost: LossEvent,
    grace: float,
    what: str,
) -> int:
    """Run a command until it ends or its lock is lost; returns the exit status.

    Signals that come before the child is known are kept and delivered to it afterwards. A signal that the terminal has
    sent to the child as well is not sent to it twice.
    """
    early: list[tuple[int, bool]] = []
    child: asyncio.subprocess.Process | None = None

    def receive(number: int) -> None:
        # The loop delivers signals between its steps, and one of these steps creates the child's process: a signal of
        # the terminal reaches that too, though the child may not be known here yet.
        delivered = _terminal_told(number)
        if child is None:
            early.append((number, delivered))
        else:
            deliver(child, number, delivered)

    def deliver(child: asyncio.subprocess.Process, number: int, delivered: bool) -> None:
        if number in PAUSING:
            pause_child(child, number, delivered)
            if not lost.is_set():
                resume_child(child)
        elif not delivered:
            signal_child(child, number)

    with stream.taking_signals(receive):
        started = await start_child(command, environment)
        if isinstance(started, int):
            return started
        child = started
        for number, delivered in early:
            deliver(child, number, delivered)
        ended, over = asyncio.ensure_future(child.wait()), asyncio.ensure_future(_lost(lost))
        try:
            await asyncio.wait({ended, over}, return_when=asyncio.FIRST_COMPLETED)
            if not lost.is_set():
                return _status(await ended)
            tell(f"{what} is lost: {shlex.join(command)} is ended")
            await end_child(child, ended, grace)
            return LOST
        finally:
            over.cancel()


def _status(returned: int) -> int:
    """An exit status by the convention of shells."""
    return returned if returned >= 0 else 128 - returned


def _terminal_told(number: int) -> bool:
    """Whether the child has received this signal too: Ctrl-C, Ctrl-\\ and Ctrl-Z go to all processes in a terminal's
    foreground, and a process that is interrupted twice may not have the time to clean up."""
    if number not in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:  # there is none
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


async def _lost(loss: LossEvent) -> None:
    await loss
