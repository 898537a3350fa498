"""Launching a cluster: from nothing, from existing data, or alongside members that already run.

One launch of a name runs at a time, until the members' processes are there, and each observes before it acts. A
bootstrap has two phases on disk before any member serves: first every place is reserved, then every place is written.
An interruption in the first phase leaves nothing that counts, and one in the second leaves what ``launch_rule.py``
recognizes. Then every node that is alive gets a marker (``markers.py``), and only then the first member starts: from
its first answer on, the cluster is known everywhere.

Two launches exclude each other by an actor whose name only one of them can have, and which dies with its launcher. But
a name is not a fence: so a place is written only by the launch that has reserved it, under the lock on the place.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import ray

from ...errors import ClusterMismatch, MembersMissing, SpecError, Unavailable
from ...limits import POLL_PAUSE_S, SETTLE_TIMEOUT_S, STOP_TIMEOUT_S, SURVEY_TIMEOUT_S
from ...raft.messages import Configuration
from ...schema.operator_frames import MemberStatus
from ...spec import ClusterSpec
from ..deadline import pause_between_checks, wait_for
from ..discovery import actors_gone, alive_nodes, ask_all, listed_actors, member_actors, settled_statuses
from ..naming import NAMESPACE, MemberSpec, actor_name, member_name
from ..ray_attached import attached
from ..ray_calls import in_time
from ..ray_view import RayNode
from . import node_storage
from .evidence import Evidence, destroyed, marker_of_member, missing_error
from .launch_rule import Bootstrap, MemberPlace, Missing, Redo, StartMembers, decide
from .markers import MarkedMember, Marker
from .new_cluster import plan_cluster
from .newest_status import newest
from .node_storage import NodeInventory, no_answer
from .ray_nodes import PackageMissing, run_on, run_where_possible
from .spawn import start_actor
from .supervisor_handle import ask_supervisor

log = logging.getLogger("raykeeper.launch")


def launch_members(spec: ClusterSpec, deadline: float, before: Callable[[], object] | None = None) -> int:
    """Start all members of the cluster that can be started, and return the cluster id; for errors see ``launch``.

    ``before`` is called first, while no other launch of that name can run.
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
    """Hold the name that stands for launching this cluster. The actor is owned by this process, and dies with it."""
    # Its class is sent by value: Ray may run it on a node that does not have this package.
    kind = type("LaunchLock", (), {"__module__": "__main__", "__doc__": "An actor that only has a name."})
    lock: Any = ray.remote(num_cpus=0)(kind).options(name=f"raykeeper-launch/{name}", namespace=NAMESPACE)
    while True:
        try:
            actor = in_time(lock.remote)
            break
        except Exception as error:  # it exists; or its launcher has just died, which makes Ray fail in several ways
            if time.monotonic() >= deadline:
                raise Unavailable(f"another launch of cluster {name} is under way") from error
            pause_between_checks(POLL_PAUSE_S)
    try:
        yield
    finally:
        with suppress(Unavailable):  # it ends soon, or with this process
            in_time(attached(ray.kill), actor)


class _Launch:
    """One launch, from its observation to the start of all members."""

    def __init__(self, spec: ClusterSpec, deadline: float) -> None:
        self._spec = spec
        self._deadline = deadline
        self._actors: dict[int, Any] = {}
        self._member_specs: dict[int, MemberSpec] = {}
        self._started: set[int] = set()
        """Members whose actors were started on nodes with their data."""
        self._fast_death = False
        """Whether the processes of Ray's nodes fail fast on dead actors already."""

    def run(self) -> int:
        """Observe, decide (``launch_rule.decide``), and do it; returns the cluster id. If all members serve, nothing is
        surveyed or started. Markers are written before the first member starts."""
        self._actors = member_actors(self._spec.name)
        self._member_specs = ask_all(self._actors, "member_spec")
        self._check_data_dir()
        statuses = settled_statuses(self._actors, min(SETTLE_TIMEOUT_S, self._deadline - time.monotonic()))
        configuration = newest(statuses.values())
        serving = {member for member, status in statuses.items() if not status.why_not_serving}
        live = {
            member: member_spec
            for member, member_spec in self._member_specs.items()
            if member in serving or (member in statuses and statuses[member].is_starting)
        }
        if configuration.voters and configuration.members <= serving and len({s.cluster for s in live.values()}) == 1:
            return self._confirm_serving(next(iter(live.values())).cluster, configuration)
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
            decision = self._redo_bootstrap(decision)
        if isinstance(decision, Bootstrap):
            return self._bootstrap(found)
        for line in decision.foreign:
            log.warning("cluster %s: %s", self._spec.name, line)
        marker = self._marker_of(decision, [node for node, _ in found])
        self._mark(marker, [node for node, inventory in found if not inventory.silent])
        for place in decision.places:
            self._start(decision.cluster, place.member, place.inventory.base, self._pin(place))
        for missing in decision.missing:
            why = decision.withheld.get(missing.member, "")
            if self._spec.supervised:
                why = why or decision.copied.get(missing.member, "")
            if why:
                log.warning(
                    "cluster %s: %s is not started, as it may lack promises: %s%s",
                    self._spec.name,
                    missing.name,
                    why,
                    "" if self._spec.supervised else "; once that is over, launch again: there is no supervisor",
                )
            else:
                self._start_without_data(decision.cluster, missing, found)
        return decision.cluster

    def wait_for_processes(self) -> None:
        """Wait until all processes that were started are there. Otherwise a launch right after this one would take them
        for members that do not answer, end them, and start them again."""
        if not self._started:
            return
        actors = {m: actor for m, actor in member_actors(self._spec.name).items() if m in self._started}
        ask_all(actors, "member_spec", timeout=max(0.0, min(SURVEY_TIMEOUT_S, self._deadline - time.monotonic())))

    def _confirm_serving(self, cluster: int, configuration: Configuration) -> int:
        """All members serve. Without a supervisor, only a launch brings the marker to nodes that have joined since."""
        if not self._spec.supervised:
            nodes = alive_nodes()
            marker = self._marker_of(StartMembers(cluster, (), ()), nodes)
            left = max(0.0, self._deadline - time.monotonic())
            # A node that does not answer must not delay a launch of a cluster that is well.
            self._mark(
                msgspec.structs.replace(marker, version=configuration.index), nodes, min(SURVEY_TIMEOUT_S, left / 2)
            )
        return cluster

    @property
    def _placement(self) -> tuple[str, ...]:
        return () if isinstance(self._spec.placement, str) else tuple(self._spec.placement)

    def _evidence(self) -> Evidence:
        """Evidence of the cluster besides the data on the nodes."""
        name = self._spec.name
        listed = listed_actors(name)
        reported = {member_spec.name: marker_of_member(member_spec) for member_spec in self._member_specs.values()}
        supervisor = ask_supervisor(name, "marker") if "supervisor" in listed else None
        if isinstance(supervisor, Marker):
            reported["supervisor"] = supervisor
        return Evidence(tuple(listed), reported)

    def _check_data_dir(self) -> None:
        for member_spec in self._member_specs.values():
            base = os.path.dirname(os.path.dirname(member_spec.folder))
            # What ~ means is known only on the member's node.
            if not self._spec.data_dir.startswith("~") and base != os.path.abspath(self._spec.data_dir):
                raise ClusterMismatch(
                    f"cluster {member_spec.cluster_name} (id {member_spec.cluster:x}) has its data in {base}, "
                    f"not in {self._spec.data_dir}"
                )

    def _survey(self) -> list[tuple[RayNode, NodeInventory]]:
        """What every node that is alive holds. One that does not answer is ``silent``, not left out: the decision must
        know that something may be missing."""
        nodes = {node.id: node for node in alive_nodes()}
        arguments = dict.fromkeys(nodes, (self._spec.data_dir, self._spec.name))
        surveyed = run_where_possible(nodes, node_storage.survey, arguments, SURVEY_TIMEOUT_S)
        self._fast_death = all(
            isinstance(inventory, NodeInventory) and inventory.fast_death for inventory in surveyed.values()
        )
        return [
            (
                node,
                inventory
                if isinstance(inventory, NodeInventory)
                else no_answer(_problem(node, inventory), isinstance(inventory, PackageMissing)),
            )
            for node, inventory in zip(nodes.values(), surveyed.values(), strict=True)
        ]

    # -- a new cluster ------------------------------------------------------------------------------------------------

    def _bootstrap(self, found: Sequence[tuple[RayNode, NodeInventory]]) -> int:
        """Create a new cluster and start its members. The order is what makes an interruption safe: reserve all places,
        write all of them, mark all nodes, start. Whatever is left before the last write never was a cluster."""
        spec = self._spec
        if spec.bootstrap == "never":
            raise missing_error(spec.name, found)
        answered = [(node, inventory) for node, inventory in found if not inventory.silent]
        usable = [node for node, inventory in answered if not inventory.problem] or [node for node, _ in answered]
        new = plan_cluster(spec, usable, {node.id: inventory.base for node, inventory in answered})
        try:
            finish_destroying(spec.name, spec.data_dir, found, {node.id for node in new.nodes.values()})
            run_on(new.nodes, node_storage.reserve_place, new.reservations(), SURVEY_TIMEOUT_S)
            run_on(new.nodes, node_storage.create_member, new.identities(), SURVEY_TIMEOUT_S)
        except node_storage.UnusableFolder as error:
            raise SpecError("spec", "data_dir", f"a folder that can be written on every node; {error}") from None
        self._mark(new.marker(), [node for node, _ in answered])
        log.info("cluster %s: created, with id %x and %d members", spec.name, new.id, len(new.nodes))
        for member, pin in new.pins.items():
            self._start(new.id, member, new.bases[member], pin)
        return new.id

    def _mark(self, marker: Marker, nodes: Sequence[RayNode], patience: float = SURVEY_TIMEOUT_S) -> None:
        """Leave a marker on these nodes. Where that fails, the supervisor tries again; the data is evidence too."""
        on = {node.id: node for node in nodes}
        arguments = dict.fromkeys(on, (self._spec.data_dir, marker))
        for id, result in run_where_possible(on, node_storage.leave_marker, arguments, patience).items():
            if isinstance(result, Exception) and not isinstance(result, PackageMissing):
                log.warning(
                    "cluster %s: no marker could be left on %s: %s", marker.cluster_name, on[id].address, result
                )

    def _marker_of(self, start: StartMembers, nodes: Sequence[RayNode]) -> Marker:
        """The marker of a cluster that this launch starts members of."""
        members = {
            place.member: MarkedMember(
                place.member, place.name, self._pin(place), place.inventory.base, place.node.address
            )
            for place in start.places
        }
        members |= {missing.member: missing.marked for missing in start.missing}
        for member, member_spec in self._member_specs.items():
            if member_spec.cluster == start.cluster and member not in members:
                address = next((node.address for node in nodes if member_spec.pin in node.resources), "")
                [known] = marker_of_member(member_spec).members
                members[member] = MarkedMember(member, member_spec.name, member_spec.pin, known.base, address)
        return Marker(self._spec.name, start.cluster, tuple(members[member] for member in sorted(members)))

    def _redo_bootstrap(self, redo: Redo) -> Bootstrap | StartMembers:
        """Empty the places of an interrupted bootstrap, if it is certain that it never was a cluster."""
        if self._spec.bootstrap == "never":
            if redo.instead is None:
                raise MembersMissing(redo.error)
            return redo.instead
        places = {place.name: place for place in redo.places}
        nodes = {name: place.node for name, place in places.items()}
        arguments = {name: (place.inventory.base, name, redo.cluster) for name, place in places.items()}
        if all(run_on(nodes, node_storage.is_unused, arguments, SURVEY_TIMEOUT_S).values()):
            run_on(nodes, node_storage.delete_member, arguments, SURVEY_TIMEOUT_S)
            return Bootstrap()
        if redo.instead is None:
            raise MembersMissing(redo.error)
        return redo.instead

    # -- members ------------------------------------------------------------------------------------------------------

    def _pin(self, place: MemberPlace) -> str:
        """The pin that a member had, if the node with its data still offers it; else one of the spec's or its own."""
        had = [place.pin] if place.pin else []
        return place.node.pin((*had, *self._placement))

    def _start_without_data(
        self, cluster: int, missing: Missing, found: Sequence[tuple[RayNode, NodeInventory]]
    ) -> None:
        """Start an actor for a member without data: its status says so, and it serves once its disk is back."""
        if not missing.pin or missing.member in self._actors:
            return
        known = [
            (missing.pin not in node.resources, inventory.base) for node, inventory in found if not inventory.silent
        ]
        self._start(cluster, missing.member, min(known)[1], missing.pin)
        self._started.discard(missing.member)  # its node may be away

    def _start(self, cluster: int, member: int, base: str, pin: str) -> None:
        """Start a member's actor. An existing one in the right place tries again to open its data; one elsewhere is
        replaced."""
        spec, name = self._spec, member_name(member)
        member_spec = MemberSpec(
            spec.name, cluster, member, name, os.path.join(base, name), pin, spec.data_dir, self._placement
        )
        actor, old = self._actors.get(member), self._member_specs.get(member)
        if actor is not None:
            if old is not None and (old.cluster, old.folder, old.pin) == (
                member_spec.cluster,
                member_spec.folder,
                member_spec.pin,
            ):
                ask_all({member: actor}, "open")
                return
            in_time(attached(ray.kill), actor, no_restart=True)
            wait_for(lambda: actors_gone([actor_name(spec.name, name)]), time.monotonic() + STOP_TIMEOUT_S)
        start_actor(member_spec, fast_death=self._fast_death, fresh=False)
        log.info("cluster %s: %s started at %s, with its data in %s", spec.name, name, pin, member_spec.folder)
        self._started.add(member)


def finish_destroying(
    name: str, data_dir: str, found: Sequence[tuple[RayNode, NodeInventory]], needed: Container[str] | None = None
) -> None:
    """Delete what is left of clusters that were destroyed while a node was away, where a new cluster needs the place.

    Args:
        needed: ids of the nodes that it needs; ``None`` for all.
    """
    for cluster in destroyed(found):
        remains = Marker(name, cluster, destroyed=True)
        nodes = {
            node.id: node
            for node, inventory in found
            if (needed is None or node.id in needed)
            and any(place.identity is not None and place.identity.cluster == cluster for place in inventory.found)
        }
        for node in nodes.values():
            log.warning(
                "cluster %s: deleting what is left of id %x on %s: it was destroyed", name, cluster, node.address
            )
        arguments = (data_dir, name, cluster, STOP_TIMEOUT_S, remains)
        run_on(nodes, node_storage.delete_cluster, dict.fromkeys(nodes, arguments), SURVEY_TIMEOUT_S)


def _problem(node: RayNode, error: Exception) -> str:
    return str(error) if isinstance(error, Unavailable) else f"Ray node {node.address}: {error!r}"


def why_not(statuses: Mapping[int, MemberStatus], members: Iterable[int]) -> str:
    """Why members do not serve, in one line."""
    said = []
    for member in sorted(set(members) | set(statuses)):
        status = statuses.get(member)
        if status is None:
            said.append(f"{member_name(member)}: does not answer")
        elif status.why_not_serving:
            said.append(f"{member_name(member)}: {status.why_not_serving}")
    return "; ".join(said)
