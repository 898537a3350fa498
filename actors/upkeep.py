"""What an operator does to a cluster now and then: changing its settings, comparing its members, taking a backup.

``Cluster`` has these calls (``cluster.py``); they are here because they are about neither launching nor membership.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import InvalidArgument, Unavailable
from ..limits import (
    BACKUP_TIMEOUT,
    CHECK_TIMEOUT,
    DEFAULT_TIMEOUT,
    POLL_PAUSE,
    Settings,
    decode_settings,
    encode_settings,
)
from ..spec import ClusterSpec, check_fields
from ..store.backup import PARTIAL, Header
from ..store.commands import Configure, Failed, Reason
from .administration import administer, expect
from .backup import take_backup
from .care import compare_contents
from .client import arguments as check
from .client.deadline import at_most, covered
from .content_check import Comparison
from .outlook import look
from .roster import pause

SUFFIX = ".rkbackup"


class BackupInfo(msgspec.Struct, frozen=True):
    """A backup that was taken.

    Attributes:
        path: the file.
        cluster, cluster_name: of which cluster.
        member: id of the member that it was taken from.
        revision, compact_revision: it holds the revisions from the one to the other.
        bytes: size of the file.
    """

    path: str
    cluster_name: str
    cluster: int
    member: int
    revision: int
    compact_revision: int
    bytes: int


class Upkeep:
    """Base of ``Cluster``."""

    name: str
    id: int

    @covered
    def configure(
        self,
        *,
        timings: Mapping[str, float] | None = None,
        limits: Mapping[str, int] | None = None,
        compaction: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> Settings:
        """Change timings, limits and compaction of the running cluster; what is not named stays as it is, also if
        somebody else changes that at the same moment.

        Members follow within a heartbeat, except for the bounds of their queues of requests (``max_inbox_...``), which
        they take when they start.

        Args:
            timeout: seconds.

        Returns:
            the settings as they are now.

        Raises:
            SpecError: a field is unknown, or a value cannot be.
            Unavailable, RequestTimeout: see :class:`KeeperError`.
        """
        fields = {"timings": timings, "limits": limits, "compaction": compaction}
        changed = {name: change for name, change in fields.items() if change is not None}
        check_fields("arguments", changed)  # at once, as far as that can be told without the cluster
        deadline = time.monotonic() + at_most(timeout)
        while True:
            best = look(self.name).best
            if best is None:
                raise Unavailable(f"no member of cluster {self.name} serves")
            now = decode_settings(best.settings) if best.settings else Settings()
            spec = ClusterSpec(
                name=self.name,
                timings=now.timings,
                limits=now.limits,
                compaction=now.compaction,
                lanes=now.lanes,
                lease_reads=now.lease_reads,
                clock_drift=now.clock_drift,
            )
            settings = ClusterSpec.load(spec, **changed).settings
            answer = administer(self.name, self.id, Configure(encode_settings(settings), best.settings), deadline)
            changed_meanwhile = isinstance(answer, Failed) and answer.reason is Reason.CHANGED
            if not changed_meanwhile or time.monotonic() >= deadline:
                expect(answer)
                return settings
            pause(POLL_PAUSE)  # and once more, of what the other one made

    @covered
    def check(self, *, timeout: float = CHECK_TIMEOUT) -> Comparison:
        """Have all members hash their contents at one index of the log, and compare (see ``Comparison``).

        The cluster goes on serving meanwhile. The leader does the same every ``check_interval``.

        Args:
            timeout: seconds; a member that has not said by then is ``silent`` in the result.

        Raises:
            Unavailable, RequestTimeout: no leader took the question.
        """
        return compare_contents(self.name, self.id, time.monotonic() + at_most(timeout))

    @covered
    def backup(self, path: str | os.PathLike[str], *, timeout: float = BACKUP_TIMEOUT) -> BackupInfo:
        """Write a backup to a file of this machine: the cluster at one revision, while it serves.

        All that was acknowledged before the call is in it, leases and answers to request ids too. The file is there
        whole, with every byte checked, or not at all; one that is there before is replaced.

        Args:
            path: a file, or a folder that is there: then the file is named after cluster and revision.
            timeout: seconds.

        Raises:
            InvalidArgument: the file cannot be written, or something that is no file has its name.
            NoSpace: there is no room for it.
            Unavailable: no member gave a backup in time.
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
    """Where a file of that path lies, links followed.

    Raises:
        InvalidArgument: a backup would take the place of something else there (a device, a folder), and end it.
    """
    file = os.path.realpath(path)
    for name in (file, f"{file}{PARTIAL}"):
        if os.path.lexists(name) and not os.path.isfile(name):
            raise InvalidArgument(f"{name} is there and no file: a backup would take its place")
    return file
