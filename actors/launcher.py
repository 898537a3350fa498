"""Launching a cluster: from nothing, over data that is there, or beside members that already run.

One launch of a name at a time, until the members' processes are there, and each looks before it acts. A bootstrap has
two phases on disk before anybody serves: first every place is reserved, then every place is written; so an interruption
in the first phase leaves nothing that counts, and one in the second leaves what ``recovery`` recognises. Then every
node that is alive gets a marker (``markers.py``), and only then the first member starts: from its first answer on, the
cluster is known everywhere.

What stands between two launches is an actor whose name only one of them can have, and which dies with its launcher;
but a name is no fence, so a place is only written by the launch that has it reserved, under the lock on the place.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import ray

from ..errors import ClusterMismatch, MembersMissing, SpecError, Unavailable
from ..limits import POLL_PAUSE, SETTLE_TIMEOUT, STOP_TIMEOUT, SURVEY_TIMEOUT
from ..spec import ClusterSpec
from ..store.folder import FirstMember, Identity
from . import sites
from .evidence import Evidence, destroyed, marker_of_seat, never
from .markers import MarkedMember, Marker
from .outlook import configuration_of
from .placement import Node, PackageMissing, alive_nodes, choose, run_on, run_where_possible
from .protocol import MemberStatus
from .raft.messages import Configuration
from .ray_calls import in_time
from .ray_session import ray_is_own
from .recovery import Bootstrap, Missing, Place, Redo, Start, decide
from .roster import ask_all, gone, listed_actors, member_actors, pause, settled, wait_for
from .seat import NAMESPACE, Seat, actor_name, member_name
from .sites import Site
from .starting import start_actor
from .supervisor import ask_supervisor

log = logging.getLogger("raykeeper")


def launch_members(spec: ClusterSpec, deadline: float, before: Callable[[], object] | None = None) -> int:
    """Have all members of the cluster started that can be, and return the cluster id; for errors see ``launch``.

    ``before`` is called first, while no other launch of that name can be under way.
    """
    with _one_launch_at_a_time(spec.name, deadline):
        if before is not None:
            before()
        launch = _Launch(spec, deadline)
        cluster = launch.run()
        launch.wait_for_processes()
        return cluster


@contextmanager
def _one_launch_at_a_time(name: str, deadline: float) -> Iterator[None]:
    """Hold the name that stands for launching this cluster. The actor is this process's, and dies with it."""
    # It goes to its process by value: Ray may run it on a node that does not have this package.
    kind = type("Sign", (), {"__module__": "__main__", "__doc__": "An actor that only has a name."})
    sign: Any = ray.remote(num_cpus=0)(kind).options(name=f"raykeeper-launch/{name}", namespace=NAMESPACE)
    while True:
        try:
            actor = in_time(sign.remote)
            break
        except Exception as error:  # it exists; or its launcher has just died, and Ray fails in one of many ways
            if time.monotonic() >= deadline:
                raise Unavailable(f"another launch of cluster {name} is under way") from error
            pause(POLL_PAUSE)
    try:
        yield
    finally:
        with suppress(Unavailable):  # it is done soon, or with this process
            in_time(ray.kill, actor)


class _Launch:
    """One launch, from looking around to having all members started."""

    def __init__(self, spec: ClusterSpec, deadline: float) -> None:
        self._spec = spec
        self._deadline = deadline
        self._actors: dict[int, Any] = {}
        self._seats: dict[int, Seat] = {}
        self._started: set[int] = set()
        """Members whose actors were started, where their data is."""
        self._fast_death = False
        """Whether the processes of Ray's nodes fail fast on dead actors by themselves."""

    def run(self) -> int:
        self._actors = member_actors(self._spec.name)
        self._seats = ask_all(self._actors, "seat")
        self._check_data_dir()
        statuses = settled(self._actors, min(SETTLE_TIMEOUT, self._deadline - time.monotonic()))
        configuration = newest(statuses.values())
        serving = {member for member, status in statuses.items() if not status.why_not_serving}
        live = {
            member: seat
            for member, seat in self._seats.items()
            if member in serving or (member in statuses and statuses[member].role == "starting")
        }
        if configuration.voters and configuration.members <= serving and len({s.cluster for s in live.values()}) == 1:
            return self._all_well(next(iter(live.values())).cluster, configuration)
        found = self._survey()
        decision = decide(
            self._spec.name,
            found,
            live,
            configuration if configuration.voters else None,
            evidence=self._evidence(),
            data_dir=self._spec.data_dir,
            placement=self._placement,
        )
        if isinstance(decision, Redo):
            decision = self._redo(decision)
        if isinstance(decision, Bootstrap):
            return self._bootstrap(found)
        for line in decision.foreign:
            log.warning("%s", line)
        marker = self._marker_of(decision, [node for node, _ in found])
        self._mark(marker, [node for node, site in found if not site.silent])
        for place in decision.places:
            self._start(decision.cluster, place.member, place.site.base, self._pin(place))
        for missing in decision.missing:
            self._stand_in(decision.cluster, missing, found)
        return decision.cluster

    def wait_for_processes(self) -> None:
        """Wait until all processes that were started are there: to the next launch, which comes right after this one,
        they would look like members that do not answer, and it would end them and start them anew."""
        if not self._started:
            return
        actors = {m: actor for m, actor in member_actors(self._spec.name).items() if m in self._started}
        ask_all(actors, "seat", timeout=max(0.0, min(SURVEY_TIMEOUT, self._deadline - time.monotonic())))

    def _all_well(self, cluster: int, configuration: Configuration) -> int:
        """All members serve. Without a supervisor, nobody else brings the marker to nodes that have joined since."""
        if not self._spec.supervised:
            nodes = alive_nodes()
            marker = self._marker_of(Start(cluster, (), ()), nodes)
            left = max(0.0, self._deadline - time.monotonic())
            # A node that does not answer must not keep a launch from saying that all is well.
            self._mark(
                msgspec.structs.replace(marker, version=configuration.index), nodes, min(SURVEY_TIMEOUT, left / 2)
            )
        return cluster

    @property
    def _placement(self) -> tuple[str, ...]:
        return () if isinstance(self._spec.placement, str) else tuple(self._spec.placement)

    def _evidence(self) -> Evidence:
        """What tells of the cluster beside the data on the nodes."""
        name = self._spec.name
        listed = listed_actors(name)
        told = {seat.name: marker_of_seat(seat) for seat in self._seats.values()}
        supervisor = ask_supervisor(name, "marker") if "supervisor" in listed else None
        if isinstance(supervisor, Marker):
            told["supervisor"] = supervisor
        return Evidence(tuple(listed), told)

    def _check_data_dir(self) -> None:
        for seat in self._seats.values():
            base = os.path.dirname(os.path.dirname(seat.folder))
            # What ~ means is known only where the member lives.
            if not self._spec.data_dir.startswith("~") and base != os.path.abspath(self._spec.data_dir):
                raise ClusterMismatch(
                    f"cluster {seat.cluster_name} (id {seat.cluster:x}) has its data in {base}, "
                    f"not in {self._spec.data_dir}"
                )

    def _survey(self) -> list[tuple[Node, Site]]:
        nodes = {node.id: node for node in alive_nodes()}
        arguments = dict.fromkeys(nodes, (self._spec.data_dir, self._spec.name))
        surveyed = run_where_possible(nodes, sites.survey, arguments, SURVEY_TIMEOUT)
        self._fast_death = all(isinstance(site, Site) and site.fast_death for site in surveyed.values())
        return [
            (node, site if isinstance(site, Site) else Site("", "", problem=_problem(node, site), silent=True))
            for node, site in zip(nodes.values(), surveyed.values(), strict=True)
        ]

    # -- a new cluster ------------------------------------------------------------------------------------------------

    def _bootstrap(self, found: Sequence[tuple[Node, Site]]) -> int:
        spec = self._spec
        if spec.bootstrap == "never":
            raise never(spec.name, found)
        cluster = secrets.randbelow((1 << 63) - 1) + 1
        answered = [(node, site) for node, site in found if not site.silent]
        bases = {node.id: site.base for node, site in answered}
        usable = [node for node, site in answered if not site.problem] or [node for node, _ in answered]
        chosen = dict(enumerate(choose(spec.members, spec.placement, usable), start=1))
        nodes = {member: node for member, (node, _) in chosen.items()}
        warn_if_crowded(spec.name, nodes.values())
        first = tuple(FirstMember(member, member_name(member), pin) for member, (_, pin) in chosen.items())
        marker = first_marker(spec.name, cluster, chosen, {member: bases[node.id] for member, node in nodes.items()})
        reservations = {member: (bases[node.id], member_name(member), marker) for member, node in nodes.items()}
        settings = spec.settings
        identities = {
            member: (
                bases[node.id],
                Identity(
                    cluster_name=spec.name,
                    cluster=cluster,
                    member=member,
                    name=member_name(member),
                    members=first,
                    settings=settings,
                ),
            )
            for member, node in nodes.items()
        }
        try:
            finish_destroying(spec.name, spec.data_dir, found, {node.id for node in nodes.values()})
            run_on(nodes, sites.reserve, reservations, SURVEY_TIMEOUT)
            run_on(nodes, sites.create, identities, SURVEY_TIMEOUT)
        except sites.UnusableFolder as error:
            raise SpecError("spec", "data_dir", f"a folder that can be written on every node; {error}") from None
        self._mark(marker, [node for node, _ in answered])
        for member, (node, pin) in chosen.items():
            self._start(cluster, member, bases[node.id], pin)
        return cluster

    def _mark(self, marker: Marker, nodes: Sequence[Node], patience: float = SURVEY_TIMEOUT) -> None:
        """Leave a marker on these nodes. Where that is not possible the supervisor tries again; the data tells, too."""
        on = {node.id: node for node in nodes}
        arguments = dict.fromkeys(on, (self._spec.data_dir, marker))
        for id, result in run_where_possible(on, sites.mark, arguments, patience).items():
            if isinstance(result, Exception) and not isinstance(result, PackageMissing):
                log.warning(f"no marker of cluster {marker.cluster_name} could be left on {on[id].address}: {result}")

    def _marker_of(self, start: Start, nodes: Sequence[Node]) -> Marker:
        """What is known of a cluster over whose data this launch starts members."""
        members = {
            place.member: MarkedMember(place.member, place.name, self._pin(place), place.site.base, place.node.address)
            for place in start.places
        }
        members |= {missing.member: missing.marked for missing in start.missing}
        for member, seat in self._seats.items():
            if seat.cluster == start.cluster and member not in members:
                address = next((node.address for node in nodes if seat.pin in node.resources), "")
                [known] = marker_of_seat(seat).members
                members[member] = MarkedMember(member, seat.name, seat.pin, known.base, address)
        return Marker(self._spec.name, start.cluster, tuple(members[member] for member in sorted(members)))

    def _redo(self, redo: Redo) -> Bootstrap | Start:
        """Clear a bootstrap that was interrupted half-way, if it is certain that it never was a cluster."""
        if self._spec.bootstrap == "never":
            if redo.instead is None:
                raise MembersMissing(redo.error)
            return redo.instead
        places = {place.name: place for place in redo.places}
        nodes = {name: place.node for name, place in places.items()}
        arguments = {name: (place.site.base, name, redo.cluster) for name, place in places.items()}
        if all(run_on(nodes, sites.is_unused, arguments, SURVEY_TIMEOUT).values()):
            run_on(nodes, sites.clear, arguments, SURVEY_TIMEOUT)
            return Bootstrap()
        if redo.instead is None:
            raise MembersMissing(redo.error)
        return redo.instead

    # -- members ------------------------------------------------------------------------------------------------------

    def _pin(self, place: Place) -> str:
        """The pin that a member had, if the node with its data offers that still; else one of the spec's or its own."""
        had = [place.pin] if place.pin else []
        return place.node.pin((*had, *self._placement))

    def _stand_in(self, cluster: int, missing: Missing, found: Sequence[tuple[Node, Site]]) -> None:
        """An actor for a member without data: it says so in its status, and serves once its disk is back."""
        if not missing.pin or missing.member in self._actors:
            return
        known = [(missing.pin not in node.resources, site.base) for node, site in found if not site.silent]
        self._start(cluster, missing.member, min(known)[1], missing.pin)
        self._started.discard(missing.member)  # its node may be away

    def _start(self, cluster: int, member: int, base: str, pin: str) -> None:
        """Start a member's actor, or have the one that there is try again, if it is where the data is."""
        spec, name = self._spec, member_name(member)
        seat = Seat(spec.name, cluster, member, name, os.path.join(base, name), pin, spec.data_dir, self._placement)
        actor, old = self._actors.get(member), self._seats.get(member)
        if actor is not None:
            if old is not None and (old.cluster, old.folder, old.pin) == (seat.cluster, seat.folder, seat.pin):
                ask_all({member: actor}, "open")
                return
            in_time(ray.kill, actor, no_restart=True)
            wait_for(lambda: gone([actor_name(spec.name, name)]), time.monotonic() + STOP_TIMEOUT)
        start_actor(seat, fast_death=self._fast_death, fresh=False)
        self._started.add(member)


def first_marker(name: str, cluster: int, chosen: Mapping[int, tuple[Node, str]], bases: Mapping[int, str]) -> Marker:
    """The marker of a new cluster, from the node and the pin of each member, and the folder there."""
    members = (
        MarkedMember(member, member_name(member), pin, bases[member], node.address)
        for member, (node, pin) in chosen.items()
    )
    return Marker(name, cluster, tuple(members))


def warn_if_crowded(name: str, nodes: Iterable[Node]) -> None:
    """Say that members of a new cluster share a host, if they do: it is lost with less than each having its own.

    Where no other host is expected, in a Ray that this process has started, that is no warning.
    """
    addresses = [node.address for node in nodes]
    members, hosts = len(addresses), sorted(set(addresses))
    if len(hosts) < members:
        log.log(
            logging.INFO if len(hosts) == 1 and ray_is_own() else logging.WARNING,
            f"the {members} members of the new cluster {name} are on {len(hosts)} host{'s' * (len(hosts) > 1)} "
            f"({', '.join(hosts)}): a host that is lost takes several of them along; for one on each host, let "
            f"{members} Ray nodes join before the cluster is made",
        )


def finish_destroying(
    name: str, data_dir: str, found: Sequence[tuple[Node, Site]], needed: Container[str] | None = None
) -> None:
    """Delete what is left of clusters that were destroyed while a node was away, where a new one needs the room.

    Args:
        needed: ids of the nodes that it needs; ``None`` for all.
    """
    for cluster in destroyed(found):
        remains = Marker(name, cluster, destroyed=True)
        nodes = {
            node.id: node
            for node, site in found
            if (needed is None or node.id in needed)
            and any(place.identity is not None and place.identity.cluster == cluster for place in site.found)
        }
        for node in nodes.values():
            log.warning(f"deleting what is left on {node.address} of cluster {name}, id {cluster:x}: it was destroyed")
        arguments = (data_dir, name, cluster, STOP_TIMEOUT, remains)
        run_on(nodes, sites.clear_all, dict.fromkeys(nodes, arguments), SURVEY_TIMEOUT)


def _problem(node: Node, error: Exception) -> str:
    return str(error) if isinstance(error, Unavailable) else f"Ray node {node.address}: {error!r}"


def newest(statuses: Iterable[MemberStatus]) -> Configuration:
    """The configuration that the member furthest on in the log told of; an empty one if none serves."""
    serving = [status for status in statuses if not status.why_not_serving]
    if not serving:
        return Configuration()
    status = max(serving, key=lambda status: (status.configuration_index, status.applied_index))
    return configuration_of(status)


def why_not(statuses: Mapping[int, MemberStatus], members: Iterable[int]) -> str:
    """What stands in the way of the members that do not serve, in one line."""
    said = []
    for member in sorted(set(members) | set(statuses)):
        status = statuses.get(member)
        if status is None:
            said.append(f"{member_name(member)}: does not answer")
        elif status.why_not_serving:
            said.append(f"{member_name(member)}: {status.why_not_serving}")
    return "; ".join(said)
