"""`raykeeper lease ...`: grant leases, revoke them, keep them alive, and inspect them. The words are etcdctl's.

Ids are hexadecimal wherever they are text, and numbers in JSON.
"""

from __future__ import annotations

from typing import Any

import click

from ..actors.client.adoption import adopted
from ..actors.client.aio_timeout import within
from ..actors.client.leases import Lease, LeaseInfo
from ..errors import LeaseLost
from .options import (
    beginning_option,
    common,
    common_of_streams,
    lease_id,
    open_client,
    options,
    seconds,
    timeout_option,
)
from .render import CommandResult, show, text
from .streaming import StreamingCommand, run_streaming


@click.group()
def lease() -> None:
    """Leases: keys attached to one are deleted when it ends."""


@lease.command()
@click.argument("ttl", type=seconds)
@options(common, timeout_option)
def grant(cluster: str, address: str | None, output: str, timeout: float, ttl: float) -> None:
    """Grant a lease that ends after TTL seconds unless it is kept alive."""
    with open_client(cluster, address, timeout) as kv:
        made = kv.lease(ttl, keep_alive=False)
    show(
        CommandResult({"id": made.id, "ttl": made.ttl}, [f"lease {made.id:x} granted with TTL({made.ttl:g}s)"]), output
    )


@lease.command()
@click.argument("id", type=lease_id)
@options(common, timeout_option)
def revoke(cluster: str, address: str | None, output: str, timeout: float, id: int) -> None:
    """End a lease, and delete the keys attached to it."""
    with open_client(cluster, address, timeout) as kv:
        adopted(kv, id, keep_alive=False).revoke()
    show(CommandResult({"id": id, "revoked": True}, [f"lease {id:x} revoked"]), output)


@lease.command("timetolive")
@click.argument("id", type=lease_id)
@click.option("--keys", is_flag=True, help="Also print the keys attached to it.")
@options(common, timeout_option)
def time_to_live(cluster: str, address: str | None, output: str, timeout: float, id: int, keys: bool) -> None:
    """Print the remaining time of a lease. `ttl` and `timetolive` are the same."""
    with open_client(cluster, address, timeout) as kv:
        info = kv.time_to_live(id, keys=keys)
    line = f"lease {id:x} granted with TTL({info.ttl:g}s), remaining({info.remaining:.1f}s)"
    fields = _fields(info)
    if keys:
        line += f", attached keys([{' '.join(text(key) for key in info.keys)}])"
        fields["keys"] = list(info.keys)
    show(CommandResult(fields, [line]), output)


lease.add_command(time_to_live, "ttl")


@lease.command("list")
@options(common, timeout_option)
def list_all(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """List all leases of the cluster, including those of locks, candidates and the like."""
    with open_client(cluster, address, timeout) as kv:
        found = sorted(kv.leases(), key=lambda info: info.id)
    lines = [f"found {len(found)} leases", *(f"{info.id:x}" for info in found)]
    show(CommandResult({"leases": [_fields(info) for info in found]}, lines), output)


@lease.command("keep-alive")
@click.argument("id", type=lease_id)
@click.option("--once", is_flag=True, help="Send one keep-alive and exit.")
@options(common_of_streams, beginning_option)
def keep_alive(cluster: str, address: str | None, output: str, timeout: float, id: int, once: bool) -> None:
    """Keep a lease alive until a signal comes; then it is not revoked, but expires.

    Prints a line for each keep-alive that the cluster has confirmed.
    """
    with open_client(cluster, address, timeout) as kv:
        held = adopted(kv, id, keep_alive=True)
        run_streaming(lambda command: _keep(command, held, once, output))


async def _keep(command: StreamingCommand, held: Lease, once: bool, output: str) -> int:
    said = CommandResult({"id": held.id, "ttl": held.ttl}, [f"lease {held.id:x} keepalived with TTL({held.ttl:g}s)"])
    printed = 0  # the first may have been confirmed already: it is sent as soon as the lease is adopted
    while not held.lost.is_set():
        if held.keep_alives > printed:
            printed = held.keep_alives
            command.write(lambda: show(said, output))
            if once:
                return 0
        await within(min(held.ttl / 30, 0.1), held.lost)
    raise LeaseLost(f"lease {held.id:x} has ended, or the cluster could not be reached for its TTL")


def _fields(info: LeaseInfo) -> dict[str, Any]:
    return {"id": info.id, "ttl": info.ttl, "remaining": round(info.remaining, 3)}
