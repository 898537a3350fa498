"""`raykeeper snapshot status` and `snapshot save`: what is in a backup's file, and backups from an endpoint."""

from __future__ import annotations

import os
import tempfile

import click

from ..errors import InvalidArgument, Unavailable
from ..limits import BACKUP_TIMEOUT_S
from .etcd_gateway import number, unb64
from .options import common, endpoint_option, given_endpoint, open_cluster, options, output_option, timeout_of
from .render import CommandResult, show
from .shown_steps import shown_progress


@click.group()
def snapshot() -> None:
    """Backups, in etcdctl's words. `backup` and `restore` are about the same files."""


@snapshot.command("status")
@click.argument("file")
@options(output_option)
def snapshot_status(file: str, output: str) -> None:
    """Check every byte of the backup FILE, and print what it holds. It needs no cluster."""
    from ..store.backup_file import verify
    from ..store.engine.rocks import RocksDisk

    path = os.path.abspath(file)
    if not os.path.isfile(path):
        raise InvalidArgument(f"there is no file {file}")
    with shown_progress("checking"):
        header = verify(RocksDisk(), path)
    fields = {
        "cluster": header.cluster_name,
        "id": header.cluster,
        "member": header.member,
        "revision": header.revision,
        "compact_revision": header.compact_revision,
        "created": header.created,
        "bytes": os.path.getsize(path),
        "content": header.content,
    }
    lines = [f"{name}: {value:x}" if name == "id" else f"{name}: {value}" for name, value in fields.items()]
    show(CommandResult(fields, lines), output)


@snapshot.command("save")
@click.argument("file")
@options(common, endpoint_option, timeout_of(BACKUP_TIMEOUT_S))
def snapshot_save(cluster: str, address: str | None, output: str, timeout: float, file: str) -> None:
    """Write a backup to FILE: of the cluster by Ray, or of the one at --endpoint (of an etcd, in etcd's format)."""
    client = given_endpoint(timeout)
    path = os.path.abspath(file)
    with shown_progress("backing up") as progress:
        if client is None:
            size = open_cluster(cluster, address).backup(path, timeout=timeout).bytes
        else:
            size = 0
            folder = os.path.dirname(path)
            try:
                descriptor, partial = tempfile.mkstemp(prefix=".raykeeper-", suffix=".partial", dir=folder)
            except OSError as error:
                raise InvalidArgument(f"{file} cannot be written: {error.strerror or error}") from None
            try:
                with client, os.fdopen(descriptor, "wb") as target:
                    for message in client.gateway.stream("maintenance/snapshot", {}):
                        part = unb64(message.get("blob"))
                        target.write(part)
                        size += len(part)
                        left = number(message.get("remaining_bytes"))
                        progress.count(size, size + left)
                    if not size:
                        raise Unavailable(f"{client.gateway.url} sent nothing", applied=False)
                    target.flush()
                    os.fsync(target.fileno())
                os.replace(partial, path)
            except BaseException:
                os.unlink(partial)
                raise
    show(CommandResult({"path": path, "bytes": size}, [f"Snapshot saved at {file}"]), output)
