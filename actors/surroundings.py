"""What a supervisor knows of the nodes around its cluster: who has its marker, and what lies there of other clusters.

A node that joins gets the marker (``markers.py``), and all nodes get it anew when members have come, gone or moved. The
same task says what the node holds under the cluster's name; data of another cluster id is left alone, and an alarm.
It runs beside the supervisor's loop, on a thread of its own: a node that does not answer keeps nobody from being
healed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..limits import LOOK_AROUND_AGAIN, STEP_AGAIN, SURVEY_TIMEOUT
from . import sites
from .evidence import foreign
from .markers import MarkedMember, Marker
from .outlook import Outlook, configuration_of, homes
from .placement import Node, run_where_possible
from .seat import member_name
from .sites import Site


def marker_of(outlook: Outlook, cluster_name: str, cluster: int, before: Marker | None) -> Marker | None:
    """The marker that a look at the cluster makes, ``None`` if it does not tell where every member lives.

    Args:
        before: the last one: where the node of a member is gone, its address was that.
    """
    best = outlook.best
    if best is None:
        return None
    configuration = configuration_of(best)
    table = {known.id: known for known in best.table if known.pin and known.base}
    if not configuration.voters or not configuration.members <= set(table):
        return None
    addresses = {member.id: member.address for member in before.members} if before is not None else {}
    alive = {node.id: node.address for node in outlook.nodes}
    addresses.update({member: alive[home] for member, home in homes(outlook).items() if home in alive})
    members = tuple(
        MarkedMember(id, member_name(id), table[id].pin, table[id].base, addresses.get(id, ""))
        for id in sorted(configuration.members)
    )
    return Marker(cluster_name, cluster, members, configuration.index)


class Surroundings:
    """For two threads: one tells what it sees, the other one looks around.

    Args:
        data_dir: as the spec has it.
        marker: what is known to begin with.
        run: as ``run_where_possible``.
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
        """What is known of the members; the last word of the cluster itself."""
        self._nodes: Mapping[str, Node] = {}
        self._looked: dict[str, tuple[Marker, float]] = {}
        """By node: the marker that it was given, and when to look again."""
        self._sites: dict[str, tuple[Node, Site]] = {}
        self.alarms: tuple[str, ...] = ()
        """What there is of other clusters of that name. Replaced, never changed: for any thread."""
        self._looking = threading.Lock()
        self._over = False

    def tell(self, outlook: Outlook) -> None:
        """What a look at the cluster has shown."""
        self._nodes = {node.id: node for node in outlook.nodes}
        self.marker = marker_of(outlook, self.marker.cluster_name, self.marker.cluster, self.marker) or self.marker

    def end(self, patience: float) -> bool:
        """Leave no marker from now on: a cluster that is destroyed next must not be marked once more by a task that is
        late. Waits up to ``patience`` seconds until none is under way; whether that is so."""
        self._over = True
        if not self._looking.acquire(timeout=patience):
            return False
        self._looking.release()
        return True

    def look_around(self, now: float) -> list[str]:
        """Visit the nodes that are due; what came in the way, one line each."""
        with self._looking:
            return [] if self._over else self._visit(now)

    def _visit(self, now: float) -> list[str]:
        nodes, marker = self._nodes, self.marker
        if not marker.members:
            return []
        due = {
            id: node
            for id, node in nodes.items()
            if id not in self._looked or self._looked[id][0] != marker or self._looked[id][1] <= now
        }
        failed = []
        results = self._run(due, sites.mark, dict.fromkeys(due, (self._data_dir, marker)), SURVEY_TIMEOUT)
        for id, result in results.items():
            if isinstance(result, Site):
                self._sites[id] = (due[id], result)
                others = foreign(marker.cluster_name, marker.cluster, self._data_dir, [(due[id], result)])
                self._looked[id] = (marker, now + (STEP_AGAIN if others else LOOK_AROUND_AGAIN))
            else:
                self._looked[id] = (marker, now + STEP_AGAIN)
                failed.append(str(result))
        for gone in set(self._sites) - set(nodes):
            del self._sites[gone]
        self._looked = {id: looked for id, looked in self._looked.items() if id in nodes}
        seen = sorted(self._sites.values(), key=lambda pair: (pair[0].address, pair[0].id))
        self.alarms = tuple(foreign(marker.cluster_name, marker.cluster, self._data_dir, seen))
        return failed
