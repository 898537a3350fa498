"""`raykeeper health`: whether a cluster serves as it should, by named checks."""

from __future__ import annotations

import click

from ..limits import DEFAULT_TIMEOUT_S
from .options import common, open_operations, options, timeout_of
from .render import CommandResult, show


@click.command()
@click.option("--exclude", multiple=True, metavar="CHECK", help="A check that does not count; may be repeated.")
@options(common, timeout_of(DEFAULT_TIMEOUT_S))
def health(cluster: str, address: str | None, output: str, timeout: float, exclude: tuple[str, ...]) -> None:
    """Check that the cluster serves as it should: reads, alarms, clocks, and the disks of its members.

    The checks are serializable_read and disk (of each member), linearizable_read, alarms and clocks (of the cluster).
    Exit status 1 if one fails.
    """
    checks = [each for each in open_operations(cluster, address).health(timeout=timeout) if each.name not in exclude]
    lines = []
    for each in checks:
        what = f"{each.member} {each.name}" if each.member else each.name
        lines.append(f"[+] {what} ok" if each.ok else f"[-] {what} failed: {each.why}")
    rows = [{"check": each.name, "member": each.member, "ok": each.ok, "why": each.why} for each in checks]
    healthy = all(each.ok for each in checks)
    show(CommandResult({"healthy": healthy, "checks": rows}, lines), output)
    if not healthy:
        raise click.exceptions.Exit(1)
