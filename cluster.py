"""Launching clusters, finding them, and administering them from outside.

A :class:`Cluster` holds only a name and where the data is. Whatever it reports it has just asked the members, so
several objects for one cluster do no harm.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .actors import arguments as check
from .actors.client.hub_pool import HubShare
from .actors.client.login import Credentials, credentials_of
from .actors.cluster.administrator import administer_by, credentials_of_spec
from .actors.cluster.cluster_backup import ClusterBackup
from .actors.cluster.cluster_membership import ClusterMembership
from .actors.cluster.cluster_operations import ClusterOperations
from .actors.cluster.cluster_report import ClusterReport
from .actors.cluster.destroy import delete_data, stop_members
from .actors.cluster.destroy import discard as discard_cluster
from .actors.cluster.evidence import marker_of_member
from .actors.cluster.launch import launch_members, why_not
from .actors.cluster.proxy_start import restart_proxies, settle_proxies
from .actors.cluster.restore import backup_of, place_backup
from .actors.cluster.supervisor_handle import start_supervisor, stop_supervisor
from .actors.cluster.supervisor_spec import SupervisorSpec
from .actors.cluster.upgrade import restart_all
from .actors.connect import connect_as
from .actors.deadline import at_most, covered, pause_between_checks
from .actors.discovery import ask_all, listed_actors, member_actors, settled_statuses
from .actors.naming import MemberSpec
from .actors.proxy.view_ray import view_ray
from .actors.ray_session import join_or_start_ray, join_ray
from .actors.ray_view import RayView
from .actors.steps import step
from .errors import (
    AuthFailed,
    ClusterNotFound,
    ForkedProcess,
    InvalidArgument,
    KeeperError,
    PermissionDenied,
    Unavailable,
)
from .limits import (
    DEFAULT_TIMEOUT_S,
    DESTROY_TIMEOUT_S,
    LAUNCH_TIMEOUT_S,
    POLL_PAUSE_S,
    RESTORE_TIMEOUT_S,
    SHUTDOWN_TIMEOUT_S,
    STATUS_TIMEOUT_S,
    UPGRADE_TIMEOUT_S,
)
from .raft.quorum import is_majority
from .spec import ClusterSpec

if TYPE_CHECKING:
    from .actors.handles import Client


class Cluster(ClusterReport, ClusterOperations, ClusterMembership, ClusterBackup):
    """A running cluster: its status, its clients, its administration. As a context manager it is shut down at the end.

    Attributes:
        name: what ``connect`` finds it by.
        id: the cluster id, drawn once at bootstrap.
    """

    def __init__(self, name: str, id: int, data_dir: str, placement: Sequence[str] = ()) -> None:
        self.name = name
        self.id = id
        self._data_dir = data_dir
        self._placement = placement
        self._credentials: Credentials | None = None
        """Of the user who administers it..."""
        self._share: HubShare | None = None
        """... and what keeps that user's connection."""

    def __repr__(self) -> str:
        return f"<Cluster {self.name} ({self.id:x})>"

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ForkedProcess):  # a forked child leaves its parent's cluster alone
            self.shutdown()

    def client(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> Client:
        """A client handle whose calls have this timeout (seconds) unless they name one; this call has it too. Its user
        is the one that administers the cluster, if there is one.

        Raises:
            AuthFailed: that user's password was changed.
            ClusterNotFound: the cluster does not run any more.
            Unavailable: neither the members nor Ray answer in time.
        """
        return connect_as(self.name, self._credentials, check.seconds("timeout", timeout))

    def _administer_by(self, credentials: Credentials | None, timeout: float) -> None:
        self._share = administer_by(self.name, self.id, credentials, timeout)
        self._credentials = credentials

    def _ray_view(self) -> RayView:
        return view_ray(self.name, self.id, self._placement)

    # -- looking after it ---------------------------------------------------------------------------------------------

    @covered
    def upgrade(self, *, timeout: float = UPGRADE_TIMEOUT_S) -> int:
        """Restart all members one by one, the leader last, always with a quorum, so that they run the code that is
        installed on their nodes now. With fewer than three voters there is a pause.

        Commands that only newer code knows are refused until every member has reported that it knows them.

        Returns:
            the version of commands that all members know afterwards.

        Raises:
            Unavailable: a member is missing, or does not come back in time; the others continue to serve.
        """
        supervised = stop_supervisor(self.name)  # what starts members must itself run the new code
        if supervised:
            self.supervise()
        deadline = time.monotonic() + at_most(timeout)
        version = restart_all(self.name, deadline)
        restart_proxies(self.name, deadline)
        return version

    @covered
    def supervise(self, *, timeout: float = DEFAULT_TIMEOUT_S) -> None:
        """Start the cluster's supervisor, if it has none: it restarts and replaces members from now on.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: no member answers in time.
        """
        deadline = time.monotonic() + at_most(timeout)
        while True:
            actors = member_actors(self.name)
            member_specs: dict[int, MemberSpec] = ask_all(actors, "member_spec")
            if member_specs or not actors or time.monotonic() >= deadline:
                break
            pause_between_checks(POLL_PAUSE_S)  # they may still be starting
        ops = self._membership_ops()
        members = tuple(marker_of_member(member_spec).members[0] for _, member_spec in sorted(member_specs.items()))
        spec = SupervisorSpec(self.name, self.id, ops.data_dir, ops.placement, members)
        start_supervisor(spec, near=next((member.node for member in self.members() if member.node), ""))

    @covered
    def unsupervise(self, *, timeout: float = SHUTDOWN_TIMEOUT_S) -> None:
        """Stop the cluster's supervisor: lost members stay lost until an operator acts.

        Args:
            timeout: seconds.
        """
        stop_supervisor(self.name)

    # -- stopping -----------------------------------------------------------------------------------------------------

    @covered
    def shutdown(self, *, timeout: float = SHUTDOWN_TIMEOUT_S) -> None:
        """Stop all members and proxies. Their data stays, and ``launch`` starts them again.

        Args:
            timeout: seconds.
        """
        stop_members(self.name)

    @covered
    def destroy(self, *, timeout: float = DESTROY_TIMEOUT_S) -> None:
        """Stop all members and delete their data and all traces of the cluster, on every node that is alive.

        What is left on a node that is away is recognized when that comes back, and does no harm.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: a process that is still ending holds the data, or a node does not answer; call it again.
        """
        stop_members(self.name)
        delete_data(self.name, self.id, self._data_dir)


@covered
def launch(
    spec: str | os.PathLike[str] | Mapping[str, Any] | ClusterSpec | None = None,
    *,
    timeout: float = LAUNCH_TIMEOUT_S,
    **overrides: Any,
) -> Cluster:
    """Start a cluster, or the missing part of it, and return once a leader serves a linearizable read.

    Starts a local Ray if this process has none and ``RAY_ADDRESS`` names none. A running cluster of that name is
    returned. One whose data is on the nodes is started from that data, whatever ``members`` says. A new one is created
    only if there is no trace of one, neither data nor an actor nor a marker on any node.

    If the spec asks for proxies, or ``proxy`` is given, the settings of a running cluster change to that, and the
    proxies serve when the call returns, or ``Cluster.proxies`` says why one does not.

    If users are needed in it, the spec names one, and the file or environment variable with its password. Proxies are
    changed only by a user with the role ``root``.

    Args:
        spec: a path, a mapping or a ``ClusterSpec``; ``overrides`` name its fields.
        timeout: seconds.

    Raises:
        AuthFailed: users are needed in the cluster, and the spec names none, or one with another password. The members
            run, as after other errors; neither supervisor nor proxies were started.
        PermissionDenied: proxies were asked for by a user without the role ``root``.
        SpecError: the spec is wrong, or its ``data_dir`` or ``placement`` cannot be used on the nodes.
        ClusterMismatch: name, cluster id or data directory contradict what is there.
        DataCorrupted: the data that is there cannot be read.
        MembersMissing: less than a quorum of the members was found, or only traces of a cluster. The message says which
            are missing, where their data was last, and what to do. No cluster is created in its place.
        Unavailable: less than a quorum of the members can serve, or a node does not say what it holds.
        ClusterNotFound: ``RAY_ADDRESS`` names a Ray that cannot be reached.
    """
    loaded = ClusterSpec.load(spec, **overrides)
    credentials = credentials_of_spec(loaded)
    deadline = time.monotonic() + at_most(timeout)
    with step("joining Ray"):
        join_or_start_ray()
    with step("finding or starting the members"):
        cluster = _cluster(loaded, launch_members(loaded, deadline))
    _settle(cluster, loaded, credentials, deadline, explicit="proxy" in overrides)
    return cluster


@covered
def restore(
    path: str | os.PathLike[str] | None,
    spec: str | os.PathLike[str] | Mapping[str, Any] | ClusterSpec | None = None,
    *,
    from_data_dir: str | os.PathLike[str] | None = None,
    timeout: float = RESTORE_TIMEOUT_S,
    **overrides: Any,
) -> Cluster:
    """Start a new cluster from a backup, and return once a leader serves.

    It has a new id, so that members of the old cluster cannot join it, and its clients do not mistake it for the old
    one. Keys, history, leases (with their full TTL) and answers to request ids are kept; sessions are not. Settings are
    those of the spec.

    Args:
        path: a backup on this machine.
        spec: as for ``launch``; there must be no cluster of that name, and no data of one.
        from_data_dir: instead of a backup, the folder of one member of a cluster whose majority is lost for good, on
            this machine, with no process working on it. What the others had acknowledged and this member never received
            is lost; what its log holds is taken as committed, though that is unknown for the newest entries.
        timeout: seconds.

    Raises:
        DataCorrupted: the backup or the data is damaged; nothing remains of the new cluster.
        ClusterMismatch: a cluster of that name runs, or there is data of one.
        InvalidArgument: there is no such file.
        AuthFailed, PermissionDenied, SpecError, Unavailable, ClusterNotFound: as for ``launch``. Users are in a backup.
    """
    loaded = ClusterSpec.load(spec, **overrides)
    credentials = credentials_of_spec(loaded)
    deadline = time.monotonic() + at_most(timeout)
    if (path is None) is (from_data_dir is None):
        raise InvalidArgument("a cluster is restored from a backup or from a data directory: exactly one of them")
    if from_data_dir is not None:
        with backup_of(check.path("from_data_dir", from_data_dir)) as (file, _, _):
            return restore(file, loaded, timeout=timeout)
    file = check.path("a backup", path)
    if not os.access(file, os.R_OK) or os.path.isdir(file):
        raise InvalidArgument(f"there is no backup that can be read: {check.shown(file)}")
    join_or_start_ray()
    with step("placing the backup, and starting the members"):
        id = launch_members(loaded, deadline, before=lambda: place_backup(loaded, file))
    cluster = _cluster(loaded, id)
    _settle(cluster, loaded, credentials, deadline)
    return cluster


def _settle(
    cluster: Cluster, spec: ClusterSpec, credentials: Credentials | None, deadline: float, explicit: bool = False
) -> None:
    """Wait until a cluster serves, and start what looks after it."""
    with step("waiting for a leader that serves"):
        _wait_until_it_serves(cluster, credentials, deadline)
        cluster._administer_by(credentials, max(0.1, deadline - time.monotonic()))
    if spec.supervised:
        with step("starting the supervisor"):
            cluster.supervise()
    with step("starting proxies"):
        _start_proxies(cluster, spec, deadline, explicit)


def _start_proxies(cluster: Cluster, spec: ClusterSpec, deadline: float, explicit: bool = False) -> None:
    """Start the proxies that the spec asks for. If the cluster was running, its settings change to that first; a spec
    that asks for none leaves those that run, unless that was asked for explicitly."""
    if spec.proxy == "off" and not explicit:
        return
    cluster.configure(
        proxy=spec.proxy,
        proxy_listen=spec.proxy_listen,
        proxy_advertise=spec.proxy_advertise,
        proxy_cors=spec.proxy_cors,
        proxy_console=spec.proxy_console,
        proxy_tls={name: getattr(spec.proxy_tls, name) for name in spec.proxy_tls.__struct_fields__},
    )
    settle_proxies(cluster.name, cluster.id, deadline, supervised=spec.supervised)


def _cluster(spec: ClusterSpec, id: int) -> Cluster:
    placement = () if isinstance(spec.placement, str) else spec.placement
    return Cluster(spec.name, id, spec.data_dir, placement)


@covered
def discard(
    name: str = "default",
    id: int | None = None,
    *,
    data_dir: str = "~/.raykeeper",
    timeout: float = DESTROY_TIMEOUT_S,
) -> int:
    """Give up a cluster that does not run and never will, or what is left of one: end the actors that Ray still has for
    it, and delete its data and markers on every node that is alive. Then ``launch`` may create a new one of that name.

    For a running cluster see ``Cluster.destroy``. Data of another cluster id is not touched.

    Args:
        id: of the cluster, as named by the error of a launch or an alarm; ``None`` if there are traces of only one.
        data_dir: as in the spec.

    Returns:
        the id; 0 if only actors and damaged data were found, which do not tell the id.

    Raises:
        SpecError: the name or the folder is not valid.
        InvalidArgument: the id is not valid.
        ClusterNotFound: there is nothing of it, or no Ray.
        ClusterMismatch: there are traces of several clusters, and no ``id`` was given.
        Unavailable: a process holds the data, or a node does not answer, or cannot list its folder. If that is all, and
            ``id`` was given, the cluster was given up on the other nodes.
    """
    spec = ClusterSpec.load(None, name=name, data_dir=data_dir)  # what is deleted is in the folder of that name
    if id is not None:
        check.whole_number("the id of a cluster", id, 1)
    join_ray()
    return discard_cluster(spec.name, id, spec.data_dir)


@covered
def attach(
    name: str = "default",
    *,
    user: str | None = None,
    password: str | None = None,
    password_file: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_S,
) -> Cluster:
    """The cluster of that name, if any member of it runs; it never starts anything.

    Args:
        user, password, password_file: as of ``connect``: who administers a cluster that needs a user, with the role
            ``root``. It counts for all that this process does to the cluster from now on.
        timeout: seconds.

    Raises:
        AuthFailed: there is no such user, or this is not its password.
        InvalidArgument: the name is not text, a password was given without a user, or a user without one.
        ClusterNotFound: there is none, or no Ray.
        Unavailable: Ray does not answer in time.
    """
    check.text("the name of a cluster", name)
    credentials = credentials_of(user, password, password_file)
    join_ray()
    member_specs: dict[int, MemberSpec] = ask_all(member_actors(name), "member_spec")
    if not member_specs:
        listed = sorted(listed_actors(name))
        waiting = f"; Ray lists {', '.join(listed)}, but no member answers: its node may be away" if listed else ""
        raise ClusterNotFound(f"no cluster {name} runs in this Ray cluster{waiting}")
    member_spec = next(iter(member_specs.values()))
    data_dir = member_spec.data_dir or os.path.dirname(os.path.dirname(member_spec.folder))
    cluster = Cluster(name, member_spec.cluster, data_dir, member_spec.placement)
    if credentials is not None:
        cluster._administer_by(credentials, timeout)
    return cluster


def _wait_until_it_serves(cluster: Cluster, credentials: Credentials | None, deadline: float) -> None:
    """Wait for a linearizable read. Fails early where waiting would not change that: if half of the members or more
    report that they cannot serve, or if the user is not good, twice, since a member that has just started may not have
    applied all of its log."""
    refusals = 0
    while True:
        actors = member_actors(cluster.name)
        statuses = settled_statuses(actors, STATUS_TIMEOUT_S)
        serving = {member: status for member, status in statuses.items() if not status.why_not_serving}
        problem = ""
        if is_majority(len(serving), len(actors)):
            if not any(status.leader for status in serving.values()):
                # The member with the longest log may as well campaign now as after its election timeout.
                actors[max(serving, key=lambda member: serving[member].last_log_index)].campaign.remote()
            try:
                with connect_as(cluster.name, credentials, max(0.1, min(2.0, deadline - time.monotonic()))) as client:
                    client.revision()
                return
            except PermissionDenied:  # of a user without the right to that read: by a member that serves
                return
            except AuthFailed as error:
                refusals += any(status.leader for status in serving.values())
                if refusals > 1 and credentials is None:
                    raise AuthFailed(
                        f"cluster {cluster.name} runs, and its users are enabled: name one, by `user` and either "
                        "`password_file` or `password_env`, in the spec or as arguments of launch"
                    ) from None
                if refusals > 1:
                    raise
                problem = str(error)
            except KeeperError as error:
                problem = str(error)
        out = [status for status in statuses.values() if status.role == "not serving"]
        if not is_majority(len(actors) - len(out), len(actors)) or time.monotonic() >= deadline:
            why = why_not(statuses, actors) or problem
            raise Unavailable(f"cluster {cluster.name} (id {cluster.id:x}) has no quorum that serves: {why}")
        pause_between_checks(POLL_PAUSE_S)
