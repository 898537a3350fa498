"""`raykeeper status`, `member ...`, `move-leader` and `upgrade`: the members of a cluster."""

from __future__ import annotations

import click

from ..limits import MEMBERSHIP_TIMEOUT_S, UPGRADE_TIMEOUT_S
from .options import common, member_id, open_cluster, open_operations, options, timeout_of, timeout_option
from .render import show
from .shown_steps import shown_progress


@click.command()
@options(common, timeout_option)
def status(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Print the status of the cluster and of each member; exit status 1 if no member leads, or one does not serve."""
    found = open_operations(cluster, address).status(timeout=timeout)
    show(found, output)
    if not found.complete:
        click.get_current_context().exit(1)


@click.group()
def member() -> None:
    """The members of a cluster, and changes of the membership."""


@member.command("list")
@options(common, timeout_option)
def member_list(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """List all members with their status."""
    show(open_operations(cluster, address).status(timeout=timeout), output)


@member.command("add")
@click.argument("node", required=False)
@common
@click.option("--learner", is_flag=True, help="Leave it a learner, instead of a voter once it has caught up.")
@timeout_of(MEMBERSHIP_TIMEOUT_S, "Seconds to catch up in.")
def member_add(cluster: str, address: str | None, output: str, node: str | None, learner: bool, timeout: float) -> None:
    """Add a member on NODE: a Ray node's id or address, or a resource. By default on the node with the fewest."""
    with shown_progress("adding a member"):
        added = open_cluster(cluster, address).add_member(node, promote=not learner, timeout=timeout)
    show({"added": added.name, "id": added.id, "role": added.role, "node": added.node}, output)


@member.command("remove")
@click.argument("name", type=member_id)
@options(common, timeout_of(MEMBERSHIP_TIMEOUT_S))
def member_remove(cluster: str, address: str | None, output: str, name: int, timeout: float) -> None:
    """Remove member NAME (m4, or 4) for good, and delete its data."""
    open_cluster(cluster, address).remove_member(name, timeout=timeout)
    show({"removed": f"m{name}"}, output)


@member.command("promote")
@click.argument("name", type=member_id)
@options(common, timeout_of(MEMBERSHIP_TIMEOUT_S))
def member_promote(cluster: str, address: str | None, output: str, name: int, timeout: float) -> None:
    """Make the learner NAME (m4, or 4) a voter, if it has caught up."""
    open_operations(cluster, address).promote(name, timeout=timeout)
    show({"promoted": f"m{name}"}, output)


@click.command("move-leader")
@click.argument("name", type=member_id)
@options(common, timeout_option)
def move_leader(cluster: str, address: str | None, output: str, name: int, timeout: float) -> None:
    """Transfer leadership to member NAME (m2, or 2)."""
    open_operations(cluster, address).move_leader(name, timeout=timeout)
    show({"leader": f"m{name}"}, output)


@click.command()
@common
@timeout_of(UPGRADE_TIMEOUT_S, "Seconds for all of them.")
def upgrade(cluster: str, address: str | None, output: str, timeout: float) -> None:
    """Restart all members one by one, the leader last, with the code that is installed on their nodes now.

    Prints the version of commands that all of them know afterwards.
    """
    version = open_cluster(cluster, address).upgrade(timeout=timeout)
    show({"upgraded": cluster, "commands_version": version}, output)
