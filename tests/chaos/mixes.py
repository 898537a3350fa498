"""What campaigns are made of: which faults, for how long, on how many members, beside what.

``short`` is that of ``make test``. The others each look where it does not: no single one could have everything, since a
cluster that is hit by all at once does nothing, and nothing done is nothing judged.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .clock_faults import clock_step, drift_beyond, drift_within
from .control import clients_cut_off_from_one, cut_link, kill_gcs, pause_gcs, pause_supervisor
from .field import Fault, Field
from .nemesis import FAULTS
from .outcome import EXPIRED, GCS_DIED, READS_FAILED, REJOINED, REPLACED, RESTORED, UPGRADED
from .slow_disks import flaky_disk, flaky_reads, slow_disk_of_follower, slow_disk_of_leader

Kinds = dict[Callable[[Field], Fault], tuple[int, float]]

MORE: Kinds = {
    pause_gcs: (4, 0),
    kill_gcs: (1, 0),
    pause_supervisor: (2, 0),
    cut_link: (3, 0),
    clients_cut_off_from_one: (3, 0),
    slow_disk_of_leader: (5, 0),
    slow_disk_of_follower: (5, 0),
    flaky_disk: (5, 0),
    flaky_reads: (5, 0),
    clock_step: (6, 0),
    drift_within: (6, 0),
    drift_beyond: (6, 0),
}
"""Faults that come up only in mixes that ask for them."""

ALONE = frozenset({pause_gcs, kill_gcs})
"""Others could not be caused meanwhile, or not undone."""
NEVER_TWICE = frozenset({flaky_reads})
"""Never two of them at once: the layer refuses the reads of one folder, and counts all that it has refused."""
LONGEST = {pause_gcs: 40.0, kill_gcs: 15.0}
"""Seconds: a Ray whose GCS is away for a minute ends, and one that was killed has to start again within it."""


@dataclass(frozen=True)
class Mix:
    """One of them.

    Attributes:
        about: what it looks for.
        often: how often faults come up, by name, where that is not as in ``nemesis.FAULTS`` and ``MORE``.
        others: by what to multiply how often all other faults come up.
        holds: seconds that a fault lasts, drawn evenly on a logarithmic scale; ``None`` for a few short times.
        members: numbers of members to draw from.
        lease_reads: whether the leader reads without a round.
        clocks_lie: whether clocks are off by more than is promised: then what rests on them is not judged.
        operations: whether an operator works at the cluster while faults are on (``care.py``).
        more_work: whether the processes do all that there is to do.
        gcs_outlives: whether Ray's GCS has a Redis (GCS fault tolerance), and may die.
        layer: whether what a loss of power leaves is judged by a layer below the processes (``lab/durable.py``).
        users: whether the cluster needs users, one of whom has rights that come and go (``rights.py``).
        must: what has to occur in ten minutes.
        timings: other ones than the campaign's.
    """

    about: str
    often: Mapping[str, float] = field(default_factory=dict)
    others: float = 1.0
    holds: tuple[float, float] | None = None
    members: tuple[int, ...] = (3,)
    lease_reads: bool = False
    clocks_lie: bool = False
    operations: bool = False
    more_work: bool = True
    gcs_outlives: bool = False
    layer: bool = False
    users: bool = False
    must: frozenset[str] = frozenset()
    timings: Mapping[str, float] = field(default_factory=dict)

    def faults(self) -> Kinds:
        """Those that come up, each with its kind and how often."""
        found = {
            fault: (kind, self.often.get(fault.__name__, self.others * often))
            for fault, (kind, often) in {**FAULTS, **MORE}.items()
        }
        return {fault: (kind, often) for fault, (kind, often) in found.items() if often}

    def hold(self, rng: random.Random) -> float:
        """Seconds that the next fault is to last."""
        if self.holds is None:
            return rng.choice((0.5, 1.5, 3.0, 5.0))
        return math.exp(rng.uniform(*map(math.log, self.holds)))

    def spec(self, members: int) -> dict[str, Any]:
        """What a campaign's spec has in addition."""
        found: dict[str, Any] = {"members": members}
        return {**found, **({"lease_reads": True} if self.lease_reads else {})}


MIXES: dict[str, Mix] = {
    "short": Mix("many faults, each of seconds", more_work=False),
    "long": Mix(
        "faults of up to 90 s: sessions expire, members that hang are ended, lost ones are replaced",
        {
            **{"pause_client": 8, "kill_supervisor": 2, "deleted_folder": 4, "damaged_log": 2},
            **{"overload": 0.5, "foreign_frames": 0},
        },
        holds=(0.1, 90.0),
        members=(3, 3, 5),
        must=frozenset({EXPIRED, REPLACED, REJOINED}),
        timings={"session_ttl": 10.0},  # so that every third of its pauses is longer
    ),
    "clocks": Mix(
        "clocks that step and are believed, that drift far: what does not rest on clocks holds",
        {"clock_step": 8, "drift_beyond": 6, "drift_within": 2, "kill_leader": 4, "isolate_leader": 4},
        others=0.3,
        holds=(0.1, 20.0),
        clocks_lie=True,
    ),
    "leases": Mix(
        "reads by the leader's lease, leases and locks by clients' clocks, with drift within the bound",
        {"drift_within": 8, "clocks": 4, "pause_leader": 6, "isolate_leader": 6, "leader_without_followers": 6},
        others=0.3,
        holds=(0.1, 15.0),
        lease_reads=True,
    ),
    "control": Mix(
        "Ray's GCS and the supervisor stand still or die, links that are not transitive, one to five members",
        {
            **{"pause_gcs": 4, "kill_gcs": 8, "pause_supervisor": 4, "kill_supervisor": 5, "cut_link": 8, "one_way": 4},
            **{"clients_cut_off_from_one": 4, "kill_leader": 3, "change_members": 2},
        },
        others=0.2,
        holds=(0.1, 40.0),
        members=(1, 2, 3, 4, 5),
        lease_reads=True,
        gcs_outlives=True,
        must=frozenset({GCS_DIED}),
    ),
    "disks": Mix(
        "fsyncs of 10 ms to 5 s, some that fail, reads that fail, and power that is lost again and again",
        {
            **{"slow_disk_of_leader": 8, "slow_disk_of_follower": 5, "flaky_disk": 6},
            "flaky_reads": 10,
            **{"power_of_one": 5, "power_of_all": 5, "full_disk": 0},
        },
        others=0.3,
        holds=(0.1, 30.0),
        layer=True,
        must=frozenset({READS_FAILED}),
    ),
    "care": Mix(
        "an operator compacts, backs up, defragments, changes members and settings; a backup is restored beside",
        {"change_members": 0, "deleted_folder": 0.3, "overload": 0.5},
        holds=(1.0, 20.0),
        operations=True,
        members=(3, 5),
        must=frozenset({UPGRADED, RESTORED}),
    ),
    "rights": Mix(
        "every call needs a user; the rights of some come and go while they work",
        {"kill_leader": 6, "isolate_leader": 6, "pause_leader": 5},
        others=0.5,
        holds=(0.1, 10.0),
        users=True,
    ),
}
