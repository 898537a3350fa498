"""`raykeeper logs`: the log of a member, and what its crashes left, from whichever node it lived on."""

from __future__ import annotations

import click

from ..errors import InvalidArgument
from ..limits import MAX_LOG_TAIL_LINES, STATUS_TIMEOUT_S
from .options import WholeNumber, common, join, options, timeout_option
from .render import CommandResult, show


@click.command()
@click.argument("name", metavar="MEMBER")
@click.option(
    "-n", "--lines", type=WholeNumber(1, MAX_LOG_TAIL_LINES), default=100, show_default=True, help="Of each file."
)
@options(common, timeout_option)
def logs(cluster: str, address: str | None, output: str, timeout: float, name: str, lines: int) -> None:
    """Print the newest lines that MEMBER (m1, supervisor, or a proxy's name) has logged, on all nodes that are alive.

    What its processes wrote to standard error, as when they crash, follows. The member need not run.
    """
    join(address)
    from ..actors.cluster.node_logs import read_logs
    from ..actors.cluster.ray_nodes import run_where_possible
    from ..actors.discovery import alive_nodes

    nodes = {node.id: node for node in alive_nodes()}
    found = run_where_possible(
        nodes, read_logs, dict.fromkeys(nodes, (cluster, name, lines)), min(timeout, 2 * STATUS_TIMEOUT_S)
    )
    rows, said = [], []
    for id, texts in found.items():
        where = f"{nodes[id].address} ({id[:8]})"
        if isinstance(texts, Exception):
            said.append(f"==> {where}: {texts} <==")
            continue
        for text in texts:
            rows.append({"node": id, "address": nodes[id].address, "file": text.file, "lines": text.lines})
            said += [f"==> {where}: {text.file} <==", *text.lines]
    if not rows:
        raise InvalidArgument(
            f"no node that is alive has a log of {name} of cluster {cluster}: `raykeeper status` names the members; a "
            "node that is gone has taken its logs with it"
        )
    show(CommandResult({"logs": rows}, said), output)
