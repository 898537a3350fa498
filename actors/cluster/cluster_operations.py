"""An operator's calls: changing the settings of a cluster, comparing its members, taking a backup.

``Cluster`` inherits them (``cluster.py``); they are here because they concern neither launching nor membership.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...errors import InvalidArgument, Unavailable
from ...limits import (
    BACKUP_TIMEOUT_S,
    CHECK_TIMEOUT_S,
    DEFAULT_TIMEOUT_S,
    POLL_PAUSE_S,
    Settings,
    decode_settings,
    encode_settings,
)
from ...schema.answers import Failed, Reason
from ...schema.commands import Configure
from ...spec import ClusterSpec, check_fields
from ...store.backup_file import PARTIAL, Header
from .. import arguments as check
from ..client.client_info import ClientInfo, client_info
from ..client.load_tables import ClusterTop
from ..consistency import Comparison, compare_contents
from ..deadline import at_most, covered
from ..discovery import pause_between_checks
from ..leader_call import administer, ask_clients, ask_events, expect
from .backup import take_backup
from .cluster_load import cluster_load
from .observe import observe_cluster

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


class EventInfo(msgspec.Struct, frozen=True):
    """Something that has happened to the cluster.

    Attributes:
        number: grows from one event to the next.
        at: when, in seconds since 1970, by the clock of the process that saw it.
        kind: ``"election"``, ``"lost"``, ``"back"``, ``"alarm"``, ``"alarm over"``, ``"configuration"``, or
            ``"supervisor"`` for a step that the supervisor has begun.
        member: the id of the member that it is about, of an election the leader; 0 for none.
        text: for people, one line.
    """

    number: int
    at: float
    kind: str
    member: int
    text: str


class ClusterOperations:
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
        lanes: bool | str | None = None,
        lane_ports: str | None = None,
        lane_interface: str | None = None,
        proxy: str | None = None,
        proxy_listen: str | None = None,
        proxy_advertise: str | None = None,
        proxy_cors: Sequence[str] | None = None,
        proxy_console: str | None = None,
        proxy_tls: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
    ) -> Settings:
        """Change timings, limits, compaction, lanes and proxies of the running cluster. What is not named stays as it
        is, even if another caller changes it at the same time. Fixed for good are only ``lease_reads`` and
        ``clock_drift``.

        Members follow within a heartbeat, except for the bounds of their queues of requests (``max_inbox_...``) and for
        lanes, which they take when they start: :meth:`~raykeeper.Cluster.upgrade` restarts one after the other. The
        supervisor starts and stops proxies as soon as it sees the change; those that
        would listen or be found elsewhere are started again.

        Args:
            lanes, lane_ports, lane_interface, proxy, proxy_listen, proxy_advertise,
                proxy_cors, proxy_console, proxy_tls: as in the spec.
            timeout: seconds.

        Returns:
            the new settings.

        Raises:
            SpecError: a field is unknown, or a value is not valid.
            Unavailable, RequestTimeout: see :class:`KeeperError`.
        """
        fields = {
            "timings": timings,
            "limits": limits,
            "compaction": compaction,
            "lanes": lanes,
            "lane_ports": lane_ports,
            "lane_interface": lane_interface,
            "proxy": proxy,
            "proxy_listen": proxy_listen,
            "proxy_advertise": proxy_advertise,
            "proxy_cors": proxy_cors,
            "proxy_console": proxy_console,
            "proxy_tls": proxy_tls,
        }
        changed = {name: change for name, change in fields.items() if change is not None}
        check_fields("arguments", changed)  # first what can be checked without the cluster
        deadline = time.monotonic() + at_most(timeout)
        while True:
            best = observe_cluster(self.name).best
            if best is None:
                raise Unavailable(f"no member of cluster {self.name} serves")
            now = decode_settings(best.settings) if best.settings else Settings()
            spec = ClusterSpec(
                name=self.name,
                timings=now.timings,
                limits=now.limits,
                compaction=now.compaction,
                lanes=now.lanes,
                lane_ports=now.lane_ports,
                lane_interface=now.lane_interface,
                lease_reads=now.lease_reads,
                clock_drift=now.clock_drift,
                proxy=now.proxy,
                proxy_listen=now.proxy_listen,
                proxy_advertise=now.proxy_advertise,
                proxy_cors=now.proxy_cors,
                proxy_console=now.proxy_console,
                proxy_tls=now.proxy_tls,
            )
            settings = ClusterSpec.load(spec, **changed).settings
            answer = administer(self.name, self.id, Configure(encode_settings(settings), best.settings), deadline)
            changed_meanwhile = isinstance(answer, Failed) and answer.reason is Reason.CHANGED
            if not changed_meanwhile or time.monotonic() >= deadline:
                expect(answer)
                return settings
            pause_between_checks(POLL_PAUSE_S)  # and again, on top of the other change

    @covered
    def settings(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> Settings:
        """The settings of the running cluster: timings, limits and the like, as :meth:`configure` has left them.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: no member serves, or Ray does not answer in time.
        """
        best = observe_cluster(self.name).best
        if best is None:
            raise Unavailable(f"no member of cluster {self.name} serves; `raykeeper status` says why")
        return decode_settings(best.settings) if best.settings else Settings()

    @covered
    def check(self, *, timeout: float = CHECK_TIMEOUT_S) -> Comparison:
        """Have all members hash their contents at one index of the log, and compare (see ``Comparison``).

        The cluster serves meanwhile. The leader does the same every ``check_interval``.

        Args:
            timeout: seconds; a member that has not answered by then is ``silent`` in the result.

        Raises:
            Unavailable, RequestTimeout: no leader accepted the request.
        """
        return compare_contents(self.name, self.id, time.monotonic() + at_most(timeout))

    @covered
    def clients(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> list[ClientInfo]:
        """The processes that are clients of the cluster: those that have a session, and those whose session has ended
        while leases last that they made. A process that has only read has no session, and is not among them.

        Args:
            timeout: seconds.

        Raises:
            PermissionDenied, AuthFailed: users are needed, and this one does not have the role root.
            Unavailable, RequestTimeout: no member answers.
        """
        return [client_info(each) for each in ask_clients(self.name, self.id, time.monotonic() + at_most(timeout))]

    @covered
    def events(self, *, after: int = 0, timeout: float = DEFAULT_TIMEOUT_S) -> list[EventInfo]:
        """What has happened to the cluster: elections, members that were lost and came back, alarms, changes of the
        configuration, and what the supervisor did; the last thousand, oldest first. They are kept in the replicated
        state, so they outlive all processes, and Ray.

        Args:
            after: only events with a greater number.
            timeout: seconds.

        Raises:
            PermissionDenied, AuthFailed: users are needed, and this one does not have the role root.
            Unavailable, RequestTimeout: no member answers.
        """
        check.whole_number("after", after)
        found = ask_events(self.name, self.id, after, time.monotonic() + at_most(timeout))
        return [EventInfo(number, each.at, each.kind, each.member, each.text) for number, each in found]

    @covered
    def top(self, *, limit: int = 20, timeout: float = DEFAULT_TIMEOUT_S) -> ClusterTop:
        """What loads the cluster: puts, gets, watch events and bytes a second by client and by prefix, as an average
        over the last five seconds, and the last requests that were slow.

        A member that has more than some hundred requests a second counts a sample of them.

        Args:
            limit: how many clients, and how many prefixes, at most.
            timeout: seconds.

        Raises:
            PermissionDenied, AuthFailed: users are needed, and this one does not have the role root.
            Unavailable: no member answers.
        """
        check.whole_number("limit", limit, 1)
        return cluster_load(self.name, self.id, limit, timeout)

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
