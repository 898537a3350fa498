"""Opens lanes to peers: asks a peer's actor for an offer, and connects.

A call to an actor whose node is gone is answered only when Ray has started it elsewhere, and nothing calls it back. So
there is one such call to a peer in ``LANE_ANSWER_S``: its thread waits for it, and no other is made meanwhile, except
when the peer has opened a lane of its own (:mod:`peer_lanes`). Else they would pile up by the thousand, and when the
actor is back all would run at once, each of them for a token, and void those that clients were just given. But an
answer may be lost, so no call is waited for without end. (A member that was stopped and is opened again makes a call of
its own, as a new process does.)

The handle of a peer's actor is kept, as for messages: while Ray's GCS is away, no name can be looked up, and a call by
a handle still arrives.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any

from ...limits import LANE_ANSWER_S, LANE_OPEN_TIMEOUT_S
from .lane import LaneBroken, LaneOffer, open_lane
from .lane_tls import LaneSocket


class PeerDialer:
    """See the module. Any thread, and also several for one peer: one that drops a handle which another has just looked
    up only has it looked up again.

    Args:
        cluster, member: the member that the lanes are opened by.
        node: its Ray node.
        lookup: finds the actor of a member; raises if there is none.
    """

    def __init__(self, *, cluster: int, member: int, node: str, lookup: Callable[[int], Any]) -> None:
        self._cluster = cluster
        self._member = member
        self._node = node
        self._lookup = lookup
        self._handles: dict[int, Any] = {}

    def dial(self, member: int) -> LaneSocket:
        """Open a lane to a peer. Blocks until the peer's actor has answered or is dead, for ``LANE_ANSWER_S`` at most,
        and then for ``LANE_OPEN_TIMEOUT_S`` at most.

        Raises:
            LaneBroken: it does not answer, it offers none, or what it offers cannot be opened.
            Exception: as the lookup and the call.
        """
        offer = self._ask(member)
        if offer is None or offer.cluster != self._cluster:
            raise LaneBroken(f"member {member} offers no lane")
        return open_lane(offer, self._node, self._member, LANE_OPEN_TIMEOUT_S)

    def _ask(self, member: int) -> LaneOffer | None:
        handle = self._handles.get(member)
        if handle is None:
            handle = self._handles[member] = self._lookup(member)
        try:
            offer: LaneOffer | None = handle.lane.remote(self._node, True).future().result(LANE_ANSWER_S)
        except concurrent.futures.TimeoutError:  # which says nothing against the handle
            raise LaneBroken(f"the actor of member {member} does not answer") from None
        except BaseException:
            # If the actor was replaced, and not only restarted, its handle is void: look it up again.
            self._handles.pop(member, None)
            raise
        return offer
