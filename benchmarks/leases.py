"""The cost of many leases that are kept alive and not used.

    python benchmarks/leases.py [--leases 10000] [--ttl 30] [--seconds 60]

A cluster of three members and one client process, which keeps that many leases alive, each with a key. Printed for
each process: the share of one core that it uses without leases, with them, and while their leader is made to change.
Keep-alives of a process travel together, every third of the TTL; the quorum confirms the leader once for all of them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import raykeeper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from stage import stage

THREADS = 64
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used so far, by user and system together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure(pids: dict[str, int], seconds: float, meanwhile: Callable[[], None] = lambda: None) -> dict[str, float]:
    """The share of one core that each process uses over this many seconds."""
    began, before = time.monotonic(), {name: cpu_seconds(pid) for name, pid in pids.items()}
    meanwhile()
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    elapsed = time.monotonic() - began
    return {name: (cpu_seconds(pid) - before[name]) / elapsed for name, pid in pids.items()}


def processes(cluster: raykeeper.Cluster) -> dict[str, int]:
    """The members by their role, and this process."""
    members = sorted(cluster.members(), key=lambda member: member.role != "leader")
    return {**{f"{member.role} {member.name}": member.pid for member in members}, "client": os.getpid()}


@click.command(help=__doc__)
@click.option("--leases", default=10_000, show_default=True, help="How many.")
@click.option("--ttl", default=30.0, show_default=True, help="Seconds.")
@click.option("--seconds", default=60.0, show_default=True, help="How long each measurement takes.")
def main(leases: int, ttl: float, seconds: float) -> None:
    """Run it."""
    with stage() as cluster:
        kv = cluster.client()
        kv.put("warm", "")
        pids = processes(cluster)
        idle = measure(pids, seconds)
        began = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            held = list(pool.map(lambda _: kv.lease(ttl), range(leases)))
            granting = time.monotonic() - began
            list(pool.map(lambda n: kv.put(f"leased/{n}", "", lease=held[n]), range(leases)))
        kept = measure(pids, seconds)
        follower = next(member for member in cluster.members() if member.role == "follower")
        moved = measure(pids, seconds, lambda: cluster.move_leader(follower.id))
        alive = kv.range(prefix="leased/", count_only=True).count
        lost = sum(lease.lost.is_set() for lease in held)
    table = Table(
        title=f"{leases} leases of {ttl:g} s, kept alive by one process; share of one core over {seconds:g} s"
    )
    for column in ("process", "no leases", "kept alive", "and the leader changes"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for name in pids:
        table.add_row(name, *(f"{share[name]:.2%}" for share in (idle, kept, moved)))
    console = Console(width=100)
    console.print(table)
    console.print(f"granted in {granting:.1f} s by {THREADS} threads; at the end {alive} keys are there, {lost} lost")
    sys.exit(0 if alive == leases and not lost else 1)


if __name__ == "__main__":
    main()
