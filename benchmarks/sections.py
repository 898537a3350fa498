"""What is measured beside the common load: each section has some parts, which run one after another in each round.

A part starts what it needs and stops it. If it fails, or something is not installed, that is noted, and the others
continue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import deaths
import floods
import leases
import neighbours
import network
import sessions
import through_proxy
import watching
from floors import floors
from measures import Plan, Row

Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """One of them.

    Attributes:
        rows: given a scratch folder, how much is measured, and where progress is told.
    """

    section: str
    name: str
    rows: Callable[[str, Plan, Say], Iterator[Row]]
    notes: str = ""


def _floors(folder: str, plan: Plan, say: Say) -> Iterator[Row]:
    return floors(folder, max(1.0, plan.seconds / 2))


PARTS = (
    Part("floors", "floors", _floors),
    Part("proxy", "etcd's clients at a proxy", through_proxy.at_proxy, through_proxy.NOTES),
    Part("proxy", "etcd's clients at etcd", through_proxy.at_etcd),
    Part("network", "1 ms between members, RayKeeper", network.of_raykeeper, network.NOTES),
    Part("network", "1 ms between members, etcd", network.of_etcd),
    Part("watches", "watches of RayKeeper", watching.of_raykeeper, watching.NOTES),
    Part("watches", "watches of etcd", watching.of_etcd),
    Part("leases", "leases kept by RayKeeper", leases.kept_by_raykeeper, leases.NOTES),
    Part("leases", "leases that end, RayKeeper", leases.ended_by_raykeeper),
    Part("leases", "leases that end, etcd", leases.ended_by_etcd),
    Part("deaths", "holders killed, RayKeeper", deaths.at_raykeeper, deaths.NOTES),
    Part("deaths", "holders killed, etcd", deaths.at_etcd),
    Part("deaths", "holders killed, ZooKeeper", deaths.at_zookeeper),
    Part("sessions", "sessions of RayKeeper", sessions.rows, sessions.NOTES),
    Part("neighbours", "one noisy client", neighbours.rows, neighbours.NOTES),
    Part("floods", "connections without a token", floods.rows, floods.NOTES),
)
SECTIONS = tuple(dict.fromkeys(part.section for part in PARTS))
