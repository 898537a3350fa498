"""Who holds and who waits, from a shell: `raykeeper locks`, `semaphores`, `elections`, `queues`, `barriers`
and `services`; and who is connected: `raykeeper clients`.

A process is shown with its host and process id, its Ray node, actor, task and job, and since when, by its own clock.
What is stuck is marked with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from .options import BYTES, WholeNumber, common, open_client, open_operations, options, timeout_option
from .render import CommandResult, duration, show, text

if TYPE_CHECKING:
    from ..actors.client.client_info import ClientInfo, Owner
    from ..actors.recipes.in_use import InUse

_most = click.option(
    "--limit", type=WholeNumber(1, 1_000_000), default=1000, show_default=True, help="Show at most this many names."
)
_only_stuck = click.option("--stuck", is_flag=True, help="Show only what is stuck.")


def _command(plural: str, help: str) -> click.Command:
    """The command that prints one of the lists."""

    @click.command(plural, help=help)
    @click.argument("prefix", type=BYTES, default=b"")
    @options(common, timeout_option)
    @_most
    @_only_stuck
    def listing(
        cluster: str, address: str | None, output: str, timeout: float, prefix: bytes, limit: int, stuck: bool
    ) -> None:
        from ..actors.recipes.in_use_fields import LISTS, in_use_fields

        with open_client(cluster, address, timeout) as kv:
            under = kv.namespace(prefix) if prefix else kv
            found = [each for kind in LISTS[plural] for each in under.in_use(kind, limit=limit)]
        found = [each for each in found if each.stuck or not stuck]
        show(CommandResult({plural: [in_use_fields(each) for each in found]}, list(_lines(found, plural))), output)

    return listing


locks = _command("locks", "List the locks that are held, whose names begin with PREFIX.")
semaphores = _command("semaphores", "List the semaphores that are held.")
elections = _command("elections", "List the elections, with their leaders and candidates.")
queues = _command("queues", "List the queues that have items, claims, or waiting workers.")
barriers = _command("barriers", "List the barriers at which parties wait.")
services = _command("services", "List the services that are registered, by topic.")


@click.command()
@options(common, timeout_option)
def clients(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """List the processes that have a session, or leases that they made."""
    from ..actors.client.client_info import client_fields

    found = open_operations(cluster, address).clients(timeout=timeout)
    show(
        CommandResult({"clients": [client_fields(each) for each in found]}, [_client_line(each) for each in found]),
        output,
    )


def _lines(found: list[InUse], plural: str) -> Iterator[str]:
    for each in found:
        size = {
            "semaphore": f", limit {each.size}",
            "barrier": f", {each.size} parties",
            "queue": f", {each.size} items",
        }
        yield f"{each.kind} {text(each.name)}{size.get(each.kind, '')}{'  STUCK' if each.stuck else ''}"
        holds, waits = _WORDS.get(each.kind, ("held by", "waits"))
        for role, people in ((holds, each.holders), (waits, each.waiters)):
            for one in people:
                what = f" [{text(one.what.encode(errors='surrogateescape'))}]" if one.what else ""
                what += f" {one.weight} slots" if one.weight > 1 else ""
                lease = f", lease {one.lease:x}" if one.lease else ""
                stuck = f"  STUCK: {one.stuck}" if one.stuck else ""
                yield f"  {role}{what} {describe(one.owner)}, token {one.token}{lease}{stuck}"
        if each.more:
            yield "  and more"
    if not found:
        yield f"no {plural}"


_WORDS = {
    "election": ("led by", "candidate"),
    "queue": ("claimed", "worker waits"),
    "registry": ("service", ""),
    "barrier": ("", "has arrived"),
}


def describe(owner: Owner | None) -> str:
    """A process, its Ray actor, task and job, and since when, for people."""
    if owner is None:
        return "by an unknown process"
    parts = [f"task {owner.task}"] if owner.task else []
    since = f" for {duration(time.time() - owner.since)}" if owner.since else ""
    return (
        f"{', '.join([process(owner.client), *parts])}{since}{'' if owner.client.open else ' (its session has ended)'}"
    )


def process(client: ClientInfo) -> str:
    """A process, for people: ``actor the-holder (pid 4711 on rk1, 10.0.0.1; job 01000000)``."""
    if not client.pid:
        return f"session {client.session}"
    name = f"actor {client.actor} " if client.actor else f"{client.program} " if client.program else ""
    place = f"pid {client.pid} on {client.host}" + (f", {client.address}" if client.address else "")
    job = f"; job {client.job}" if client.job else ""
    user = f"; user {client.user}" if client.user else ""
    return f"{name}({place}{job}{user})"


def _client_line(client: ClientInfo) -> str:
    since = f", connected for {duration(time.time() - client.since)}" if client.since else ""
    leases = f", {client.leases} leases" if client.leases else ""
    return f"{client.session}: {process(client)}{since}{leases}{'' if client.open else ', its session has ended'}"
