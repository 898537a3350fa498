"""Launching clusters, finding them, and looking after them from outside.

A :class:`Cluster` holds nothing but a name and where the data lies: whatever it says it has just asked the members, and
several of them for one cluster do no harm.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import ray

from .actors.client import arguments as check
from .actors.client.deadline import at_most, covered
from .actors.client.handle import Client
from .actors.client.registry import open_hub
from .actors.ending import delete_data, stop_members
from .actors.ending import discard as discard_cluster
from .actors.evidence import marker_of_seat
from .actors.launcher import launch_members, why_not
from .actors.membership import Hands
from .actors.outlook import Outlook, first_seat, homes, look
from .actors.placement import alive_nodes
from .actors.places import Spot, choose_spot
from .actors.ray_session import join_or_start_ray, join_ray
from .actors.restore import backup_of, place_backup
from .actors.roster import ask_all, collect, listed_actors, member_actors, pause, settled, wait_for
from .actors.seat import Seat, member_name
from .actors.supervisor import (
    Charge,
    ask_supervisor,
    start_supervisor,
    stop_supervisor,
    supervisor_actor,
)
from .actors.upgrading import restart_all
from .actors.upkeep import Upkeep
from .cluster_status import ClusterStatus, MemberInfo, status_of
from .errors import (
    ClusterNotFound,
    ForkedProcess,
    InvalidArgument,
    KeeperError,
    NotCaughtUp,
    RequestTimeout,
    Unavailable,
)
from .limits import (
    DEFAULT_TIMEOUT,
    DESTROY_TIMEOUT,
    LAUNCH_TIMEOUT,
    MEMBERSHIP_TIMEOUT,
    POLL_PAUSE,
    RESTORE_TIMEOUT,
    SHUTDOWN_TIMEOUT,
    STATUS_TIMEOUT,
    UPGRADE_TIMEOUT,
)
from .spec import ClusterSpec


class Cluster(Upkeep):
    """A cluster that was launched: see how it is, get a client, stop it. A context manager that shuts it down.

    Attributes:
        name: what ``connect`` finds it by.
        id: the cluster id, drawn once when it was bootstrapped.
    """

    def __init__(self, name: str, id: int, data_dir: str, placement: Sequence[str] = ()) -> None:
        self.name = name
        self.id = id
        self._data_dir = data_dir
        self._placement = placement

    def __repr__(self) -> str:
        return f"<Cluster {self.name} ({self.id:x})>"

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ForkedProcess):  # a child that ends inside leaves its parent's cluster alone
            self.shutdown()

    def client(self, *, timeout: float = DEFAULT_TIMEOUT) -> Client:
        """A client handle whose calls have this timeout (seconds) unless they name one, as this call has.

        Raises:
            ClusterNotFound: the cluster does not run any more.
            Unavailable: neither members nor Ray answer in time.
        """
        return connect(self.name, timeout=timeout)

    @covered
    def status(self, *, timeout: float = DEFAULT_TIMEOUT) -> ClusterStatus:
        """Ask every member how it is; a member that is silent costs a few seconds.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: Ray does not answer in time.
        """
        actors = member_actors(self.name)
        supervisor = supervisor_actor(self.name)
        asked = {member: actor.status.remote() for member, actor in actors.items()}
        if supervisor is not None:
            asked[0] = supervisor.alarms.remote()
        nodes = alive_nodes()  # first, because those that are silent may cost all the time there is
        answers = collect(asked, STATUS_TIMEOUT)
        seen: list[str] = answers.pop(0, [])
        found = status_of(self.name, self.id, actors, answers, nodes, self._placement, seen)
        if found.leader and not any(member.why_not_serving for member in found.members):
            return found
        said = ask_supervisor(self.name, "situation")
        if said is None and not found.leader:
            said = ["none answers, so nobody starts members where their data is now; `raykeeper up` does"]
        return replace(found, alarms=(*found.alarms, *(f"supervisor: {line}" for line in said or ())))

    def members(self, *, timeout: float = DEFAULT_TIMEOUT) -> tuple[MemberInfo, ...]:
        """All members; also those that are missing. Raises as :meth:`status`."""
        return self.status(timeout=timeout).members

    @covered
    def move_leader(self, id: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Hand leadership to a member; returns once it leads.

        Args:
            timeout: seconds.

        Raises:
            InvalidArgument: there is no such member.
            Unavailable: there is no leader, or the member does not take over in time.
        """
        check.whole_number("a member's id", id, 1)
        deadline = time.monotonic() + at_most(timeout)
        while True:
            status = self.status()
            if id not in {member.id for member in status.members}:
                raise InvalidArgument(f"cluster {self.name} has no member {id}")
            if status.leader == id:
                return
            leader = next((member for member in status.members if member.id == status.leader), None)
            if time.monotonic() >= deadline:
                raise Unavailable(f"{member_name(id)} did not become leader within {timeout:g} s")
            if leader is not None:
                try:
                    ray.get(leader.actor.move_leader.remote(id), timeout=at_most(STATUS_TIMEOUT))
                except (KeeperError, ray.exceptions.RayError, TimeoutError):
                    continue  # leadership has moved: look again
            wait_for(lambda: self.status().leader == id, min(deadline, time.monotonic() + 1.0))

    # -- membership ---------------------------------------------------------------------------------------------------

    @covered
    def add_member(
        self, node: str | None = None, *, promote: bool = True, timeout: float = MEMBERSHIP_TIMEOUT
    ) -> MemberInfo:
        """Add a member: a learner until it has caught up with the others, then a voter.

        Args:
            node: where it shall live: a Ray node's id or address, or a resource that nodes offer. By default the node
                with the fewest members, of those that the spec's ``placement`` allows.
            promote: make it a voter; otherwise it stays a learner (see :meth:`promote`).
            timeout: seconds.

        Raises:
            InvalidArgument: no Ray node that is alive is meant by ``node``, or it is no text.
            Unavailable: the cluster has no leader, or the node cannot be used.
            RequestTimeout: the member was added and has not caught up in time. It goes on catching up, and the
                supervisor promotes it.
        """
        deadline = time.monotonic() + at_most(timeout)
        check.flag("promote", promote)
        if node is not None:
            check.text("a node", node)
        hands, outlook = self._hands(), look(self.name)
        spot = _spot_for(node, outlook, hands.placement)
        new = hands.reserve(secrets.token_bytes(12), spot, voter=promote)
        hands.enroll(new, outlook.nodes)
        hands.learn(new.id)
        while promote:
            try:
                hands.promote(new.id)
                break
            except NotCaughtUp as error:
                if time.monotonic() >= deadline:
                    late = f"{new.name} is a learner, and has not caught up within {timeout:g} s"
                    raise RequestTimeout(late, applied=None) from error
                pause(POLL_PAUSE)
        # A learner may only just have been started.
        wait_for(lambda: self._member(new.id).role not in ("silent", "starting"), deadline)
        return self._member(new.id)

    def _member(self, id: int) -> MemberInfo:
        return next(info for info in self.members() if info.id == id)

    @covered
    def promote(self, id: int, *, timeout: float = MEMBERSHIP_TIMEOUT) -> None:
        """Make a learner a voter.

        Args:
            timeout: seconds.

        Raises:
            InvalidArgument: it does not take part.
            NotCaughtUp: it has not caught up with the leader's log yet.
            Unavailable: there is no leader, or too few voters can be heard.
        """
        check.whole_number("a member's id", id, 1)
        if id not in look(self.name).configuration.members:
            raise InvalidArgument(f"cluster {self.name} has no member {id}")
        self._hands().promote(id)

    @covered
    def remove_member(self, id: int, *, timeout: float = MEMBERSHIP_TIMEOUT) -> None:
        """Take a member out of the cluster for good: end its actor, and delete its data. Also the leader.

        Where its node is gone, the data is deleted when that comes back. To remove it again does nothing.

        Args:
            timeout: seconds.

        Raises:
            InvalidArgument: there never was such a member, or no voter would be left.
            Unavailable: there is no leader, or too few voters would be left that can be heard.
        """
        check.whole_number("a member's id", id, 1)
        outlook, hands = look(self.name), self._hands()
        best = outlook.best
        if best is None:
            raise Unavailable(f"no member of cluster {self.name} serves")
        known = {description.id: description for description in (*best.table, *best.removed)}
        if id not in known and id not in outlook.configuration.members:
            raise InvalidArgument(f"cluster {self.name} has no member {id}")
        hands.leave(id)
        hands.retire(id)
        hands.end(id)
        if id in known:
            hands.clear(known[id], outlook.nodes)

    def _hands(self) -> Hands:
        seat = first_seat(list(member_actors(self.name).values()))
        if seat is None:
            raise Unavailable(f"no member of cluster {self.name} answers")
        return Hands(self.name, self.id, seat.data_dir or self._data_dir, seat.placement)

    @covered
    def upgrade(self, *, timeout: float = UPGRADE_TIMEOUT) -> int:
        """Restart all members one by one, the leader last, always with a quorum, so that they run the code that is
        installed on their nodes now. With fewer than three voters there is a pause.

        Commands that only newer code knows are refused until every member has told that it knows them.

        Returns:
            the version of commands that all members know afterwards.

        Raises:
            Unavailable: a member is missing, or does not come back in time; the others serve on.
        """
        supervised = stop_supervisor(self.name)  # whatever starts members must be new code itself
        if supervised:
            self.supervise()
        return restart_all(self.name, time.monotonic() + at_most(timeout))

    @covered
    def supervise(self, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Start the cluster's supervisor, if it has none: it keeps the cluster at full strength from now on.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: no member answers in time.
        """
        deadline = time.monotonic() + at_most(timeout)
        while True:
            actors = member_actors(self.name)
            seats: dict[int, Seat] = ask_all(actors, "seat")
            if seats or not actors or time.monotonic() >= deadline:
                break
            pause(POLL_PAUSE)  # they may only just be starting
        hands = self._hands()
        members = tuple(marker_of_seat(seat).members[0] for _, seat in sorted(seats.items()))
        charge = Charge(self.name, self.id, hands.data_dir, hands.placement, members)
        start_supervisor(charge, near=next((member.node for member in self.members() if member.node), ""))

    @covered
    def unsupervise(self, *, timeout: float = SHUTDOWN_TIMEOUT) -> None:
        """End the cluster's supervisor: members that are lost stay lost until somebody sees to them.

        Args:
            timeout: seconds.
        """
        stop_supervisor(self.name)

    # -- its end ------------------------------------------------------------------------------------------------------

    @covered
    def shutdown(self, *, timeout: float = SHUTDOWN_TIMEOUT) -> None:
        """Stop all members; the data stays, and ``launch`` starts them again.

        Args:
            timeout: seconds.
        """
        stop_members(self.name)

    @covered
    def destroy(self, *, timeout: float = DESTROY_TIMEOUT) -> None:
        """Stop all members and delete their data, and all that tells of the cluster, on every node that is alive.

        What is left on a node that is away is known for what it is when it comes back, and does no harm.

        Args:
            timeout: seconds.

        Raises:
            Unavailable: a process that still ends holds the data, or a node does not answer; call it again.
        """
        stop_members(self.name)
        delete_data(self.name, self.id, self._data_dir)


@covered
def launch(
    spec: str | os.PathLike[str] | Mapping[str, Any] | ClusterSpec | None = None,
    *,
    timeout: float = LAUNCH_TIMEOUT,
    **overrides: Any,
) -> Cluster:
    """Start a cluster, or what is missing of it, and return once a leader serves a linearizable read.

    Starts a local Ray if this process has none and ``RAY_ADDRESS`` names none. A cluster of that name that runs is
    returned; one whose data lies on the nodes is started over that data, whatever ``members`` says; only where nothing
    tells of one, neither data nor an actor nor a marker on any node, a new one is made.

    Args:
        spec: a path, a mapping or a ``ClusterSpec``; ``overrides`` name its fields.
        timeout: seconds.

    Raises:
        SpecError: the spec is wrong, or its ``data_dir`` or ``placement`` cannot be used on the nodes.
        ClusterMismatch: name, cluster id or data directory contradict what is there.
        DataCorrupted: the data that is there cannot be read.
        MembersMissing: less than a quorum of the members was found, or nothing but traces of a cluster; says which are
            missing, where their data was last, and what to do. Nothing is made in its place.
        Unavailable: less than a quorum of the members can serve, or a node does not say what it holds.
        ClusterNotFound: ``RAY_ADDRESS`` names a Ray that cannot be reached.
    """
    loaded = ClusterSpec.load(spec, **overrides)
    deadline = time.monotonic() + at_most(timeout)
    join_or_start_ray()
    cluster = _cluster(loaded, launch_members(loaded, deadline))
    _wait_until_it_serves(cluster, deadline)
    if loaded.supervised:
        cluster.supervise()
    return cluster


@covered
def restore(
    path: str | os.PathLike[str] | None,
    spec: str | os.PathLike[str] | Mapping[str, Any] | ClusterSpec | None = None,
    *,
    from_data_dir: str | os.PathLike[str] | None = None,
    timeout: float = RESTORE_TIMEOUT,
    **overrides: Any,
) -> Cluster:
    """Start a new cluster from a backup, and return once a leader serves.

    It has a new id, so members of the old one cannot join it, nor its clients take it for the old one. Keys, history,
    leases (with their whole TTL) and answers to request ids are kept; sessions are not. Settings are those of the spec.

    Args:
        path: a backup, on this machine.
        spec: as for ``launch``; there must be no cluster of that name, and no data of one.
        from_data_dir: instead of a backup, the folder of one member of a cluster whose majority is lost for good, on
            this machine, with no process at work on it. What the others had acknowledged and this one never got is
            lost; what its log holds is taken for committed, though of the newest entries that is not known.
        timeout: seconds.

    Raises:
        DataCorrupted: backup or data are damaged; nothing is left of the new cluster.
        ClusterMismatch: a cluster of that name runs, or there is data of one.
        InvalidArgument: there is no such file.
        SpecError, Unavailable, ClusterNotFound: as for ``launch``.
    """
    loaded = ClusterSpec.load(spec, **overrides)
    deadline = time.monotonic() + at_most(timeout)
    if (path is None) is (from_data_dir is None):
        raise InvalidArgument("a new cluster is made of a backup or of a data directory: exactly one of them")
    if from_data_dir is not None:
        with backup_of(check.path("from_data_dir", from_data_dir)) as (file, _, _):
            return restore(file, loaded, timeout=timeout)
    file = check.path("a backup", path)
    if not os.access(file, os.R_OK) or os.path.isdir(file):
        raise InvalidArgument(f"there is no backup that can be read: {check.shown(file)}")
    join_or_start_ray()
    id = launch_members(loaded, deadline, before=lambda: place_backup(loaded, file))
    cluster = _cluster(loaded, id)
    _wait_until_it_serves(cluster, deadline)
    if loaded.supervised:
        cluster.supervise()
    return cluster


def _cluster(spec: ClusterSpec, id: int) -> Cluster:
    placement = () if isinstance(spec.placement, str) else spec.placement
    return Cluster(spec.name, id, spec.data_dir, placement)


@covered
def discard(
    name: str = "default",
    id: int | None = None,
    *,
    data_dir: str = "~/.raykeeper",
    timeout: float = DESTROY_TIMEOUT,
) -> int:
    """Give up a cluster that does not run and never will, or what is left of one: end the actors that Ray still has for
    it, and delete its data and markers on every node that is alive. Then ``launch`` may make a new one of that name.

    Of a cluster that runs, see ``Cluster.destroy``. Data of another cluster id is not touched.

    Args:
        id: of the cluster, as the error of a launch or an alarm names it; ``None`` if there are traces of one only.
        data_dir: as in the spec.

    Returns:
        the id; 0 if there was nothing but actors and damaged data that do not say it.

    Raises:
        SpecError: there can be no such cluster, or no such folder.
        InvalidArgument: there can be no such id.
        ClusterNotFound: there is nothing of it, or no Ray.
        ClusterMismatch: there are traces of several clusters, and no ``id`` was given.
        Unavailable: a process holds the data, or a node does not answer.
    """
    spec = ClusterSpec.load(None, name=name, data_dir=data_dir)  # what is deleted lies in the folder of that name
    if id is not None:
        check.whole_number("the id of a cluster", id, 1)
    join_ray()
    return discard_cluster(spec.name, id, spec.data_dir)


@covered
def attach(name: str = "default", *, timeout: float = DEFAULT_TIMEOUT) -> Cluster:
    """The cluster of that name, if any member of it runs; never starts anything.

    Args:
        timeout: seconds.

    Raises:
        InvalidArgument: the name is no text.
        ClusterNotFound: there is none, or no Ray.
        Unavailable: Ray does not answer in time.
    """
    check.text("the name of a cluster", name)
    join_ray()
    seats: dict[int, Seat] = ask_all(member_actors(name), "seat")
    if not seats:
        listed = sorted(listed_actors(name))
        waiting = f"; Ray lists {', '.join(listed)}, of which no member answers: its node may be away" if listed else ""
        raise ClusterNotFound(f"no cluster {name} runs in this Ray cluster{waiting}")
    seat = next(iter(seats.values()))
    data_dir = seat.data_dir or os.path.dirname(os.path.dirname(seat.folder))
    return Cluster(name, seat.cluster, data_dir, seat.placement)


def connect(name: str = "default", *, timeout: float = DEFAULT_TIMEOUT) -> Client:
    """A client handle for the cluster of that name, from any driver, task or actor of its Ray cluster.

    Args:
        timeout: seconds for this call, and by default for each call of the handle.

    Raises:
        InvalidArgument: the name is no text.
        ClusterNotFound: there is no such cluster, or no Ray.
        ForkedProcess: this is a forked child of a process that uses Ray.
        Unavailable: neither members nor Ray answer in time.
    """
    share = open_hub(check.text("the name of a cluster", name), check.seconds("timeout", timeout))
    return Client(name, share.hub.cluster, share=share, timeout=timeout)


def _wait_until_it_serves(cluster: Cluster, deadline: float) -> None:
    while True:
        actors = member_actors(cluster.name)
        statuses = settled(actors, STATUS_TIMEOUT)
        serving = {member: status for member, status in statuses.items() if not status.why_not_serving}
        problem = ""
        if 2 * len(serving) > len(actors):
            if not any(status.leader for status in serving.values()):
                # Whoever has the longest log may as well campaign now as after its election timeout.
                actors[max(serving, key=lambda member: serving[member].last_log_index)].campaign.remote()
            try:
                with cluster.client(timeout=max(0.1, min(2.0, deadline - time.monotonic()))) as client:
                    client.revision()
                return
            except KeeperError as error:
                problem = str(error)
        out = [status for status in statuses.values() if status.role == "not serving"]
        if 2 * len(out) >= len(actors) or time.monotonic() >= deadline:
            why = why_not(statuses, actors) or problem
            raise Unavailable(f"cluster {cluster.name} (id {cluster.id:x}) has no quorum that serves: {why}")
        pause(POLL_PAUSE)


def _spot_for(node: str | None, outlook: Outlook, placement: Sequence[str]) -> Spot:
    """The place for a new member: the one that is asked for, or the best."""
    if node is None:
        spot = choose_spot(outlook.nodes, placement, homes(outlook), crowded=True)
        if spot is None:
            raise Unavailable("no Ray node that is alive may hold a member")
        return spot
    meant = [Spot(each, each.pin(placement)) for each in outlook.nodes if each.id == node or each.address == node]
    meant = meant or [Spot(each, node) for each in outlook.nodes if node in each.resources]
    if not meant:
        raise InvalidArgument(f"no Ray node that is alive has the id or address {node}, or offers such a resource")
    load = Counter(homes(outlook).values())
    return min(meant, key=lambda spot: load[spot.node.id])
