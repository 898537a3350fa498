"""``Cluster.backup``: a backup of the running cluster to a file of this machine (``backup.py`` has the steps)."""

from __future__ import annotations

import os
import time

import msgspec

from ...errors import InvalidArgument
from ...limits import BACKUP_TIMEOUT_S
from ...store.backup_file import PARTIAL, Header
from .. import arguments as check
from ..deadline import at_most, covered
from .backup import take_backup

SUFFIX = ".rkbackup"


class BackupInfo(msgspec.Struct, frozen=True):
    """A backup that was taken.

    Attributes:
        path: the file.
        cluster, cluster_name: id and name of its cluster.
        member: id of the member that it was taken from.
        revision, compact_revision: it holds the revisions from ``compact_revision`` to ``revision``.
        bytes: size of the file.
    """

    path: str
    cluster_name: str
    cluster: int
    member: int
    revision: int
    compact_revision: int
    bytes: int


class ClusterBackup:
    """Base of ``Cluster``."""

    name: str
    id: int

    @covered
    def backup(self, path: str | os.PathLike[str], *, timeout: float = BACKUP_TIMEOUT_S) -> BackupInfo:
        """Write a backup to a file on this machine: the cluster at one revision, while it serves.

        It holds all that was acknowledged before the call, including leases and answers to request ids. The file is
        there whole, with every byte checked, or not at all; an existing one is replaced.

        Args:
            path: a file, or an existing folder: then the file is named after cluster and revision.
            timeout: seconds.

        Raises:
            InvalidArgument: the file cannot be written, or its name is taken by something that is not a file.
            NoSpace: there is no room for it.
            Unavailable: no member provided a backup in time.
            ClusterNotFound: no member runs.
        """
        deadline = time.monotonic() + at_most(timeout)
        given = check.path("the path of a backup", path)
        is_folder = os.path.isdir(given)

        def place(header: Header) -> str:
            return _replaceable(os.path.join(given, f"{self.name}-{header.revision}{SUFFIX}") if is_folder else given)

        try:
            header, size = take_backup(self.name, self.id, place, deadline)
        except OSError as error:
            raise InvalidArgument(f"{given}: {error.strerror or error}") from None
        return BackupInfo(
            path=place(header),
            cluster_name=header.cluster_name,
            cluster=header.cluster,
            member=header.member,
            revision=header.revision,
            compact_revision=header.compact_revision,
            bytes=size,
        )


def _replaceable(path: str) -> str:
    """The real path of a file, links followed.

    Raises:
        InvalidArgument: a backup would replace and destroy something else there (a device, a folder).
    """
    file = os.path.realpath(path)
    for name in (file, f"{file}{PARTIAL}"):
        if os.path.lexists(name) and not os.path.isfile(name):
            raise InvalidArgument(f"{name} exists and is not a file: a backup would replace it")
    return file
