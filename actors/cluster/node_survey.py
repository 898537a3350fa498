"""A supervisor's knowledge of the nodes: which have the cluster's marker, and what they hold of other clusters.

A node that joins gets the marker (``markers.py``), and all nodes get it again when members have joined, left or moved.
The same task reports what the node holds under the cluster's name. Data of another cluster id is left alone, and is an
alarm. All this runs beside the supervisor's loop, on a thread of its own, so that a node that does not answer never
delays healing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from ...limits import NODE_SURVEY_REPEAT_S, STEP_RETRY_S, SURVEY_TIMEOUT_S
from ..naming import member_name
from ..ray_view import RayNode
from . import node_storage
from .evidence import foreign_data
from .markers import MarkedMember, Marker
from .newest_status import configuration_of
from .node_storage import NodeInventory
from .observe import Observation, homes
from .ray_nodes import run_where_possible


def marker_of(observation: Observation, cluster_name: str, cluster: int, before: Marker | None) -> Marker | None:
    """The marker that follows from an observation; ``None`` if that does not tell where every member lives.

    Args:
        before: the last marker: it has the address of a member whose node is gone.
    """
    best = observation.best
    if best is None:
        return None
    configuration = configuration_of(best)
    table = {known.id: known for known in best.table if known.pin and known.base}
    if not configuration.voters or not configuration.members <= set(table):
        return None
    addresses = {member.id: member.address for member in before.members} if before is not None else {}
    alive = {node.id: node.address for node in observation.nodes}
    addresses.update({member: alive[home] for member, home in homes(observation).items() if home in alive})
    members = tuple(
        MarkedMember(id, member_name(id), table[id].pin, table[id].base, addresses.get(id, ""))
        for id in sorted(configuration.members)
    )
    return Marker(cluster_name, cluster, members, configuration.index)


class NodeSurvey:
    """For two threads: one sets what it observes, the other surveys the nodes.

    Args:
        data_dir: as the spec has it.
        marker: what is known at first.
        run: with the signature of ``run_where_possible``.
    """

    def __init__(
        self,
        data_dir: str,
        marker: Marker,
        run: Callable[..., dict[Any, Any]] = run_where_possible,
    ) -> None:
        self._data_dir = data_dir
        self._run = run
        self.marker = marker
        """What is known of the members, by the last observation of the cluster itself."""
        self._nodes: Mapping[str, RayNode] = {}
        self._surveyed: dict[str, tuple[Marker, float]] = {}
        """By node: the marker that it was given, and when to survey it again."""
        self._inventories: dict[str, tuple[RayNode, NodeInventory]] = {}
        self.alarms: tuple[str, ...] = ()
        """What there is of other clusters of that name. Replaced, never modified: any thread may read it."""
        self._surveying = threading.Lock()
        self._stopped = False

    def set_observation(self, observation: Observation) -> None:
        """Tell it what the last observation of the cluster showed."""
        self._nodes = {node.id: node for node in observation.nodes}
        self.marker = marker_of(observation, self.marker.cluster_name, self.marker.cluster, self.marker) or self.marker

    def stop_marking(self, patience: float) -> bool:
        """Leave no markers from now on: a cluster that is destroyed next must not be marked again by a late task. Waits
        up to ``patience`` seconds for the tasks in progress; False if some are not over."""
        self._stopped = True
        if not self._surveying.acquire(timeout=patience):
            return False
        self._surveying.release()
        return True

    def survey_due_nodes(self, now: float) -> list[str]:
        """Survey the nodes that are due; returns the problems, one line each."""
        with self._surveying:
            return [] if self._stopped else self._visit(now)

    def _visit(self, now: float) -> list[str]:
        """Due is a node that is new, has an older marker, or was last surveyed long ago; one with a problem sooner."""
        nodes, marker = self._nodes, self.marker
        if not marker.members:
            return []
        due = {
            id: node
            for id, node in nodes.items()
            if id not in self._surveyed or self._surveyed[id][0] != marker or self._surveyed[id][1] <= now
        }
        failed = []
        results = self._run(
            due, node_storage.leave_marker, dict.fromkeys(due, (self._data_dir, marker)), SURVEY_TIMEOUT_S
        )
        for id, result in results.items():
            if isinstance(result, NodeInventory):
                self._inventories[id] = (due[id], result)
                others = foreign_data(marker.cluster_name, marker.cluster, self._data_dir, [(due[id], result)])
                self._surveyed[id] = (marker, now + (STEP_RETRY_S if others else NODE_SURVEY_REPEAT_S))
            else:
                self._surveyed[id] = (marker, now + STEP_RETRY_S)
                failed.append(str(result))
        for gone in set(self._inventories) - set(nodes):
            del self._inventories[gone]
        self._surveyed = {id: surveyed for id, surveyed in self._surveyed.items() if id in nodes}
        seen = sorted(self._inventories.values(), key=lambda pair: (pair[0].address, pair[0].id))
        self.alarms = tuple(foreign_data(marker.cluster_name, marker.cluster, self._data_dir, seen))
        return failed
