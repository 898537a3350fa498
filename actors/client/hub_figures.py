"""What a hub says of itself for metrics: how much is open, and how it sees the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ...telemetry import Family, gauge


class HubFigures(NamedTuple):
    """One hub's figures; each is correct, but they may be of different moments."""

    open_calls: int
    in_flight: int
    watches: int
    leases: int
    members: int
    leader: int
    term: int
    revision: int
    lookups: int


def hub_families(figures: HubFigures) -> Iterator[Family]:
    """The same as metrics."""
    yield gauge("raykeeper_client_open_calls", "Requests of this process that wait for an answer.", figures.open_calls)
    yield gauge("raykeeper_client_frames_in_flight", "Frames of them that members have.", figures.in_flight)
    yield gauge("raykeeper_client_watches", "Watches of this process.", figures.watches)
    yield gauge("raykeeper_client_leases", "Leases that this process keeps alive.", figures.leases)
    yield gauge("raykeeper_client_members", "Members that this process knows.", figures.members)
    yield gauge("raykeeper_client_leader", "Id of the leader as this process knows it; 0: none.", figures.leader)
    yield gauge("raykeeper_client_term", "The newest Raft term that a member has named.", figures.term)
    yield gauge("raykeeper_client_revision", "The newest revision that an answer has named.", figures.revision)
    what = "Lookups of the members in a row, since a member has answered last."
    yield gauge("raykeeper_client_lookups", what, figures.lookups)
