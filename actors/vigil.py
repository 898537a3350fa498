"""What a follower does when its leader's lane ends: it campaigns soon, and does not wait for its election timeout.

A lane that ends is a hint, no proof: a process that died, but maybe only a link that broke. So the follower forgets
only that it has heard of the leader lately, and all else goes as ever: a pre-vote comes first, which whoever still
hears the leader refuses, and one word of the leader puts the follower at ease again. Followers take turns by their ids,
so that they do not split the vote; whose turn brought no leader has another once all have had theirs, a few times. And
a link that flaps makes no storm: in an election timeout one hint counts.
"""

from __future__ import annotations

import math
import random

from ..limits import CAMPAIGN_STEP, EARLY_CAMPAIGNS
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
        self._round = 0.0
        self._left = 0
        self._not_before = -math.inf
        self.due = math.inf
        """When to call :meth:`campaign`."""

    def gone(self, member: int, now: float, election_timeout: float) -> None:
        """A member's lane has ended."""
        node = self._node
        if now < self._not_before or not node.leader_may_be_gone(member):
            return
        others = sorted({*node.configuration.voters, *node.configuration.outgoing} - {member})
        turn = others.index(node.id) if node.id in others else len(others)
        self._not_before = now + election_timeout
        self._term = node.term
        self._round = len(others) * CAMPAIGN_STEP
        self._left = EARLY_CAMPAIGNS
        self.due = now + (turn + 0.2 * self._rng.random()) * CAMPAIGN_STEP

    def campaign(self, now: float) -> None:
        """Campaign, unless a leader has been heard of; not the first time if somebody else has just begun to."""
        if self._node.term == self._term or self._left < EARLY_CAMPAIGNS:
            self._node.campaign()
        self._left -= 1
        again = self._left > 0 and self._node.ticks_without_leader
        self.due = now + self._round * (1 + 0.5 * self._rng.random()) if again else math.inf
