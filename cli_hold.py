"""`raykeeper lock` and `raykeeper elect`: hold something, for as long as a command runs or until a signal comes.

What is held is given back at the end, whatever the end was. A command that runs under a lock is this process's child:
it gets the signals that this process gets, it stops and goes on with it, it does not outlive it, and if the lock is
lost it is ended, because it must not go on without. A process can only be told so late, and not at all while it does
not run; hence the token in the child's environment.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from collections.abc import Mapping, Sequence

import click

from .actors.client.aio import AsyncClient
from .actors.client.leases import Loss
from .actors.recipes.election import AsyncElection, Leader
from .actors.recipes.faces import whoami
from .actors.recipes.holding import AsyncHeld
from .cli_child import begin, end, pause, resume, send
from .cli_common import (
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
from .cli_lasting import PAUSING, Lasting, lasting
from .cli_streams import tell
from .limits import DEFAULT_TIMEOUT
from .printing import Said, show, text

NOT_IN_TIME, LOST = 124, 125
"""Exit statuses beside those of all commands, and of the command that is run; 124 as of timeout(1)."""

GRACE = 5.0
"""Seconds that a command has between SIGTERM and SIGKILL, once its lock is lost."""

_common = options(
    cluster_option,
    address_option,
    output_option,
    click.option("--ttl", type=seconds, default=10.0, show_default=True, help="Seconds until it is free if this dies."),
    click.option("--timeout", type=seconds_or_none, help="Seconds to wait for it (default: for ever)."),
)


@click.command()
@click.argument("name", type=BYTES)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_common
@click.option(
    "--grace",
    type=seconds_or_none,
    default=GRACE,
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
    """Take the lock NAME, run COMMAND while it is held, and give it back: raykeeper lock NAME -- COMMAND...

    The exit status is that of COMMAND, 128+n if signal n ended it; 124 if the lock was not free in time; 125 if it was
    lost while COMMAND ran, which is then ended; 126 or 127 if COMMAND cannot be run. Signals that can be caught go to
    COMMAND, and it is killed if this process is. Its environment has RAYKEEPER_LOCK_NAME, RAYKEEPER_LOCK_KEY and
    RAYKEEPER_LOCK_TOKEN; `put`, `del` and `txn` take them with --guard.

    Without COMMAND, prints the lock's key and token, and holds it until a signal comes.
    """
    # Before Ray adds to it: the command is to see what this one was given.
    environment = {**os.environ, "RAYKEEPER_CLUSTER": cluster, **({"RAY_ADDRESS": address} if address else {})}

    async def work(lasts: Lasting, kv: AsyncClient) -> int:
        held = kv.lock(name, ttl)
        if not await held.acquire(timeout):
            tell(f"the lock {text(name)} was not free within {timeout:g} s")
            return NOT_IN_TIME
        try:
            key, what = _key("lock", held), f"the lock {text(name)}"
            if command:
                given = {LOCK_NAME: os.fsdecode(name), LOCK_KEY: os.fsdecode(key), LOCK_TOKEN: str(held.token)}
                return await _run(lasts, command, environment | given, _loss(held), grace, what)
            fields = {"name": name, "key": key, "token": held.token}
            lasts.write(lambda: show(Said(fields, [text(key), str(held.token)]), output))
            return await _until_lost(held, what)
        finally:
            lasts.gives_back()
            await held.release()

    with open_client(cluster, address, DEFAULT_TIMEOUT) as kv:
        lasting(lambda lasts: work(lasts, kv.aio))


@click.command()
@click.argument("name", type=BYTES)
@click.argument("value", type=BYTES, required=False)
@_common
@click.option("--listen", is_flag=True, help="Stand for nothing; print each leader, and each thing it says, in order.")
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

    With --listen, prints token and value of whoever leads now, and of each leader from then on; JSON one a line.
    """
    if listen and (value is not None or timeout is not None or output == "table"):
        raise click.UsageError("--listen takes no VALUE and no --timeout, and prints no table")

    async def work(lasts: Lasting, kv: AsyncClient) -> int:
        election = kv.election(name, ttl)
        if listen:
            return await _listen(lasts, election, output)
        said = whoami() if value is None else value
        if not await election.campaign(said, timeout):
            tell(f"not elected in {text(name)} within {timeout:g} s")
            return NOT_IN_TIME
        try:
            key, token = _key("election", election), election.token
            fields = {"name": name, "key": key, "token": token, "value": said}
            lasts.write(lambda: show(Said(fields, [text(key), str(token), text(said)]), output))
            return await _until_lost(election, f"the leadership in {text(name)}")
        finally:
            lasts.gives_back()
            await election.resign()

    with open_client(cluster, address, DEFAULT_TIMEOUT) as kv:
        lasting(lambda lasts: work(lasts, kv.aio))


async def _listen(lasts: Lasting, election: AsyncElection, output: str) -> int:
    def tell_of(leader: Leader) -> None:
        show(Said({"token": leader.token, "value": leader.value}, [str(leader.token), text(leader.value)]), output)

    with lasts.while_read():
        async with election.observe() as leaders:
            async for leader in leaders:
                lasts.write(lambda leader=leader: tell_of(leader))  # type: ignore[misc]
    return 0


def _key(area: str, held: AsyncHeld) -> bytes:
    """The key that stands for what is held, with the area of the reserved space that it lies in."""
    return area.encode() + b"/" + held._holding.held().key


def _loss(held: AsyncHeld) -> Loss:
    loss = held.lost
    assert isinstance(loss, Loss)
    return loss


async def _until_lost(held: AsyncHeld, what: str) -> int:
    await _loss(held)
    tell(f"{what} is lost")
    return LOST


async def _run(
    lasts: Lasting, command: Sequence[str], environment: Mapping[str, str], lost: Loss, grace: float, what: str
) -> int:
    """Run a command to its end, or to that of what it runs under; the exit status."""
    early: list[tuple[int, bool]] = []
    child: asyncio.subprocess.Process | None = None

    def take(number: int) -> None:
        # The loop hands signals over between its steps, and the step that begins here makes the child a process: what
        # the terminal sends meanwhile reaches it too, though it may not be known here yet.
        told = _terminal_told(number)
        if child is None:
            early.append((number, told))
        else:
            give(child, number, told)

    def give(child: asyncio.subprocess.Process, number: int, told: bool) -> None:
        if number in PAUSING:
            pause(child, number, told)
            if not lost.is_set():
                resume(child)
        elif not told:
            send(child, number)

    with lasts.taking_signals(take):
        begun = await begin(command, environment)
        if isinstance(begun, int):
            return begun
        child = begun
        for number, told in early:
            give(child, number, told)
        ended, over = asyncio.ensure_future(child.wait()), asyncio.ensure_future(_lost(lost))
        try:
            await asyncio.wait({ended, over}, return_when=asyncio.FIRST_COMPLETED)
            if not lost.is_set():
                return _status(await ended)
            tell(f"{what} is lost: {shlex.join(command)} is ended")
            await end(child, ended, grace)
            return LOST
        finally:
            over.cancel()


def _status(returned: int) -> int:
    """An exit status as shells have it."""
    return returned if returned >= 0 else 128 - returned


def _terminal_told(number: int) -> bool:
    """Whether the child has got this signal too: Ctrl-C, Ctrl-\\ and Ctrl-Z go to all processes in a terminal's
    foreground, and what is interrupted twice may not find the time to clean up."""
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


async def _lost(loss: Loss) -> None:
    await loss
