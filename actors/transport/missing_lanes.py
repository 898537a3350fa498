"""Which members have no lane between them, as an operator is told."""

from __future__ import annotations

from collections.abc import Mapping

from ..naming import member_name


def missing_lanes(without_lane: Mapping[int, Mapping[int, str]], leader: int) -> list[str]:
    """One line for each two members without a lane between them, though both may say so. Only the leader and another
    have something to say to each other, for which actor calls are slower; two others miss their lane when the leader is
    lost.

    Args:
        without_lane: by member, to which others it can open no lane, and why.
        leader: id of the leader, whose word comes first; 0 if there is none.
    """
    found: dict[frozenset[int], str] = {}
    for member, peers in sorted(without_lane.items(), key=lambda each: (each[0] != leader, each[0])):
        for to, why in sorted(peers.items()):
            slower = " and uses slower actor calls" if leader in (member, to) else ""
            found.setdefault(
                frozenset((member, to)), f"{member_name(member)} has no lane to {member_name(to)}{slower}: {why}"
            )
    return list(found.values())
