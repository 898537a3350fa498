"""The commands that maintain a cluster's data: `backup`, `restore`, `compact`. `check` is in ``check.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..errors import Unavailable
from ..limits import BACKUP_TIMEOUT_S, RESTORE_TIMEOUT_S
from .options import (
    MAX_NUMBER,
    WholeNumber,
    address_option,
    common,
    endpoint_option,
    given_endpoint,
    load_spec,
    open_client,
    open_cluster,
    open_operations,
    options,
    output_option,
    silence_ray,
    timeout_of,
    timeout_option,
    user_options,
)
from .render import show
from .shown_steps import shown_progress

if TYPE_CHECKING:
    from ..cluster import Cluster
    from ..spec import ClusterSpec


@click.command()
@click.argument("path", metavar="FILE")
@options(common, timeout_of(BACKUP_TIMEOUT_S))
def backup(cluster: str, address: str | None, output: str, timeout: float, path: str) -> None:
    """Write a backup of the cluster to FILE on this machine, while it serves.

    FILE may be a folder: then the file in it is named after the cluster and its revision.
    """
    with shown_progress("backing up"):
        taken = open_cluster(cluster, address).backup(path, timeout=timeout)
    fields = {name: getattr(taken, name) for name in taken.__struct_fields__}
    show({**fields, "cluster": f"{taken.cluster:x}"}, output)


@click.command()
@click.argument("source", metavar="[FILE]", required=False)
@click.argument("spec", required=False, type=click.Path())
@click.option("--from-data-dir", metavar="DIR", help="Instead of FILE: the folder of the one member that is left.")
@click.option("--cluster", help="Name of the new cluster, instead of the spec's.")
@options(user_options, address_option, output_option, timeout_of(RESTORE_TIMEOUT_S))
def restore(
    source: str | None,
    spec: str | None,
    from_data_dir: str | None,
    cluster: str | None,
    address: str | None,
    output: str,
    timeout: float,
) -> None:
    """Start a new cluster of SPEC (all defaults, if none is given) from the backup FILE, and leave it running.

    \b
    raykeeper restore FILE [SPEC]
    raykeeper restore --from-data-dir DIR [SPEC]

    --from-data-dir is for a cluster whose majority is lost for good. DIR is the folder of one of its members, on this
    machine, with no process working on it. What the lost members acknowledged and this one never received is lost.

    Starts a Ray head if no Ray runs on this machine and no address is given, as `raykeeper up` does; `raykeeper down`
    stops it again.
    """
    if from_data_dir is not None:
        if spec is not None:
            raise click.UsageError("either FILE or --from-data-dir DIR")
        source, spec = None, source
    elif source is None:
        raise click.UsageError("what to restore: FILE, or --from-data-dir DIR")
    silence_ray()
    from .up_down import ray_joined

    loaded = load_spec(spec, name=cluster)
    with ray_joined(address):
        restored = _restored(source, from_data_dir, loaded, timeout)
    show(restored.status(), output)  # the cluster is there, and so its Ray stays, even if this fails


def _restored(source: str | None, data_dir: str | None, spec: ClusterSpec, timeout: float) -> Cluster:
    """Restore; returns the new cluster. That a member's folder may lack writes is said first."""
    from ..actors.cluster.restore import backup_of
    from ..cluster import restore as restore_cluster

    if data_dir is None:
        with shown_progress("restoring"):
            return restore_cluster(source, spec, timeout=timeout)
    with backup_of(data_dir) as (file, header, taken):
        click.echo(
            f"raykeeper: {data_dir} is of cluster {header.cluster_name} (id {header.cluster:x}) at revision "
            f"{header.revision}; {taken} entries of its log are taken as committed though that is unknown, and what "
            "other members acknowledged and this one never received is lost",
            err=True,
        )
        with shown_progress("restoring"):
            return restore_cluster(file, spec, timeout=timeout)


@click.command()
@click.argument("revision", type=WholeNumber(1, MAX_NUMBER))
@click.option("--physical", is_flag=True, help="Return once all members have removed what is compacted.")
@options(common, endpoint_option, timeout_option)
def compact(cluster: str, address: str | None, output: str, timeout: float, revision: int, physical: bool) -> None:
    """Compact the history before REVISION: it can no longer be read or watched."""
    client = given_endpoint(timeout)
    if client is not None:
        with client:
            client.compact(revision, physical=physical)
    else:
        if physical:
            open_operations(cluster, address)  # the way to each member
        with open_client(cluster, address, timeout) as kv:
            kv.compact(revision)
            if physical:
                _await_compaction(cluster, kv.cluster_id, revision, timeout)
    show({"compacted": revision}, output)


def _await_compaction(cluster: str, id: int, revision: int, timeout: float) -> None:
    from ..actors.cluster.member_upkeep import await_compaction
    from ..actors.naming import member_name

    answers = await_compaction(cluster, id, revision, timeout=timeout)
    late = [f"{member_name(member)}: {answer.error}" for member, answer in answers.items() if answer.error]
    if late:
        raise Unavailable(
            f"revision {revision} is compacted, but not yet on the disks of all members: {'; '.join(late)}"
        )
