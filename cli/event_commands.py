"""What has happened to a cluster, from a shell: `raykeeper events`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from .options import MAX_NUMBER, WholeNumber, common, open_operations, options, timeout_option
from .render import CommandResult, show, text

if TYPE_CHECKING:
    from ..actors.cluster.cluster_operations import EventInfo


@click.command()
@options(common, timeout_option)
@click.option("--after", type=WholeNumber(0, MAX_NUMBER), default=0, help="Only events with a greater number.")
@click.option("--limit", type=WholeNumber(1, MAX_NUMBER), default=100, show_default=True, help="Only the last ones.")
def events(cluster: str, address: str | None, output: str, timeout: float, after: int, limit: int) -> None:
    """Print what has happened to the cluster: elections, losses, replacements, alarms."""
    found = open_operations(cluster, address).events(after=after, timeout=timeout)[-limit:]
    fields = {"events": [{name: getattr(each, name) for name in each.__struct_fields__} for each in found]}
    show(CommandResult(fields, list(map(_line, found))), output)


def _line(event: EventInfo) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.at)) if event.at else "at an unknown time"
    return f"{when} {event.kind}: {text(event.text.encode(errors='surrogateescape'))}"
