"""`raykeeper up` and `down`: starting a cluster, with a Ray for it if none runs, and stopping both again. `restore`, in
``maintenance.py``, starts Ray by ``ray_joined``, too."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..actors.steps import step
from ..errors import ClusterNotFound, MembersMissing
from ..limits import POLL_PAUSE_S, UP_SETTLE_S
from ..spec import PROXY_MODES, ClusterSpec
from .options import (
    address_option,
    cluster_id,
    common,
    join,
    load_spec,
    open_cluster,
    options,
    output_option,
    silence_ray,
    user_options,
)
from .ray_head import RayHead
from .render import show
from .shown_steps import steps_told
from .stdio import tell
from .streaming import signals_raised

if TYPE_CHECKING:
    from ..actors.cluster.status import ClusterStatus
    from ..cluster import Cluster


@click.command()
@click.argument("spec", required=False, type=click.Path())
@click.option("--cluster", help="Name of the cluster, instead of the spec's.")
@click.option("--bootstrap", type=click.Choice(["auto", "never"]), help="Instead of the spec's.")
@click.option("--proxy", type=click.Choice(PROXY_MODES), help="Instead of the spec's; a running cluster changes to it.")
@options(user_options, address_option, output_option)
def up(
    spec: str | None,
    cluster: str | None,
    bootstrap: str | None,
    proxy: str | None,
    address: str | None,
    output: str,
) -> None:
    """Launch the cluster of SPEC (./cluster.yaml if there is one) and leave it running.

    Starts a Ray head if no Ray runs on this machine and no address is given; `raykeeper down` stops it again. The user
    is for a cluster in which users are needed, and takes the place of the spec's.
    """
    silence_ray()
    from ..cluster import launch

    if spec is None and os.path.exists("cluster.yaml"):
        spec = "cluster.yaml"
    loaded = load_spec(spec, name=cluster, bootstrap=bootstrap)
    with steps_told(), ray_joined(address):
        asked: dict[str, Any] = {"proxy": proxy} if proxy else {}
        status = _settled(launch(loaded, **asked))
    show(status, output)
    if not status.complete:
        click.get_current_context().exit(1)


@contextlib.contextmanager
def ray_joined(address: str | None) -> Iterator[None]:
    """In this context this process is attached to Ray, and signals end the command in order. If none runs on this
    machine, and no address is given, a head is started. It is stopped again if the context fails, unless nodes of the
    cluster are away: they must be able to join it.

    Raises:
        ClusterNotFound: there is no Ray, or it does not start.
    """
    head, started = RayHead(), False
    with signals_raised():
        try:
            if address is None:
                with step("starting Ray if none runs"):
                    started = head.start_if_none_runs()
            with step("attaching to Ray"):
                join(address)
            yield
        except MembersMissing:
            if started:
                tell("Ray's head keeps running, so that the missing nodes can join it; `raykeeper down` stops it")
            raise
        except BaseException:
            if started:
                head.stop()
            raise


def _settled(cluster: Cluster) -> ClusterStatus:
    """The status of a cluster that was just launched, once all members serve, or at the end of some patience: a leader
    serves as soon as it has a majority, while others may still be starting."""
    until = time.monotonic() + UP_SETTLE_S
    while True:
        status = cluster.status()
        if status.complete or time.monotonic() >= until:
            return status
        time.sleep(POLL_PAUSE_S)


@click.command()
@common
@click.option("--destroy", is_flag=True, help="Also delete the cluster's data, on all nodes.")
@click.option("--yes", is_flag=True, help="Do not ask before deleting.")
@click.option(
    "--id", "id", type=cluster_id, help="With --destroy: the cluster of this id alone, even if it does not run."
)
@click.option("--data-dir", help="With --destroy: where the data of a cluster that does not run is.")
def down(
    cluster: str,
    address: str | None,
    output: str,
    destroy: bool,
    yes: bool,
    id: int | None,
    data_dir: str | None,
) -> None:
    """Stop the cluster; its data stays. Stops Ray too if `raykeeper up` or `restore` started it, and no other cluster
    runs on it.

    With --destroy and --id or --data-dir (of the spec; ~/.raykeeper by default), a cluster that does not run, or what
    is left of one, is given up too: an error of `up`, or an alarm, says how. If no Ray runs on this machine, and no
    address is given, one is started for that.
    """
    if (id is not None or data_dir is not None) and not destroy:
        raise click.UsageError("--id and --data-dir are for --destroy")
    if destroy and not yes:
        which = f" of id {id:x}" if id is not None else ""
        click.confirm(f"Delete all data of cluster {cluster}{which}?", abort=True, err=True)
    head = RayHead()
    said = {"cluster": cluster, "stopped": True, "destroyed": destroy, "ray_stopped": False}
    try:
        if id is not None or data_dir is not None:
            _discard(head, cluster, address, id, data_dir)
        elif destroy:
            open_cluster(cluster, address).destroy()
        else:
            open_cluster(cluster, address).shutdown()
    except ClusterNotFound as error:
        if destroy and id is None and data_dir is None:
            raise ClusterNotFound(f"{error}; to delete what is left of one that does not run, add --data-dir") from None
        if destroy or not (head.runs() and head.idle(cluster)):
            raise
        said["stopped"] = False
    if head.runs() and head.idle(cluster):
        head.stop()
        said["ray_stopped"] = True
    show(said, output)


def _discard(head: RayHead, cluster: str, address: str | None, id: int | None, data_dir: str | None) -> None:
    """Give up a cluster that does not run. If no Ray runs either, one is started for that time."""
    silence_ray()
    from ..cluster import discard

    spec = ClusterSpec.load(None, name=cluster, **({} if data_dir is None else {"data_dir": data_dir}))
    started = False
    with signals_raised():
        try:
            started = address is None and head.start_if_none_runs()
            join(address)
            discard(spec.name, id, data_dir=spec.data_dir)
        finally:
            if started:
                head.stop()
