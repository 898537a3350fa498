"""What a follower does when its leader's lane ends: it campaigns soon, and does not wait for its election timeout.

A lane that ends is a hint, no proof: a process that died, but maybe only a link that broke. So the follower forgets
only that it has heard of the leader lately, and all else goes as ever: a pre-vote comes first, which whoever still
hears the leader refuses, and one word of the leader puts the follower at ease again. Followers take turns by their ids,
so that they do not split the vote; and a link that flaps makes no storm, because one early campaign in an election
timeout is all there is.
"""

from __future__ import annotations

import math
import random

from ..limits import CAMPAIGN_STEP
from .raft import Node


class Vigil:
    """For the loop's thread.

    Args:
        node: the follower.
        rng: for a little difference between members.
    """

    def __init__(self, node: Node, rng: random.Random) -> None:
        self._node = node
        self._rng = rng
        self._term = 0
        self._not_before = -math.inf
        self.due = math.inf
        """When to call :meth:`campaign`."""

    def gone(self, member: int, now: float, election_timeout: float) -> None:
        """A member's lane has ended."""
        node = self._node
        if now < self._not_before or not node.leader_may_be_gone(member):
            return
        self._not_before = now + election_timeout
        self._term = node.term
        others = sorted({*node.configuration.voters, *node.configuration.outgoing} - {member})
        turn = others.index(node.id) if node.id in others else len(others)
        self.due = now + (turn + 0.2 * self._rng.random()) * CAMPAIGN_STEP

    def campaign(self) -> None:
        """Campaign, if nobody has led or tried to since."""
        self.due = math.inf
        if self._node.term == self._term:
            self._node.campaign()
