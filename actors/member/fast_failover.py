"""Fast failover: a follower whose leader's lane has ended campaigns soon, before its election timeout.

The end of a lane is a hint, not proof: the process may have died, or only a link may have failed. So the follower only
drops its leader stickiness (thesis 4.2.3), and everything else stays the same: a pre-vote comes first, which any member
that still hears the leader refuses, and one message from the leader ends it. Followers campaign in the order of their
ids, so that they do not split the vote; if no leader is found, each has a few more attempts. A link that flaps does no
harm: only one hint counts per election timeout.
"""

from __future__ import annotations

import math
import random

from ...limits import CAMPAIGN_STEP_S, EARLY_CAMPAIGNS
from ...raft import Node
from ..logs import MemberLog
from ..naming import member_name


class FastFailover:
    """For the loop's thread.

    Args:
        node: the follower.
        rng: for jitter.
        log: says which member it suspects, and what came of that.
    """

    def __init__(self, node: Node, rng: random.Random, log: MemberLog) -> None:
        self._node = node
        self._rng = rng
        self._log = log
        self._suspect = 0
        self._term = 0
        self._round = 0.0
        self._left = 0
        self._not_before = -math.inf
        self.due = math.inf
        """When to call :meth:`campaign`."""

    def peer_gone(self, member: int, now: float, election_timeout: float) -> None:
        """A member's lane has ended. If that member leads, schedule the first attempt: followers are
        ``CAMPAIGN_STEP_S`` apart, in the order of their ids."""
        node = self._node
        if now < self._not_before or not node.suspect_leader(member):
            return
        others = sorted({*node.configuration.voters, *node.configuration.outgoing} - {member})
        turn = others.index(node.id) if node.id in others else len(others)
        self._not_before = now + election_timeout
        self._suspect, self._term = member, node.term
        self._round = len(others) * CAMPAIGN_STEP_S
        self._left = EARLY_CAMPAIGNS
        self.due = now + (turn + 0.2 * self._rng.random()) * CAMPAIGN_STEP_S
        self._log.info("suspects %s, the leader of term %d: its lane has ended", member_name(member), node.term)

    def campaign(self, now: float) -> None:
        """Campaign, unless a leader has been heard from. The first attempt is skipped if another member has campaigned
        since: then the term is newer."""
        if self._node.term == self._term or self._left < EARLY_CAMPAIGNS:
            self._node.campaign()
        if self._left == EARLY_CAMPAIGNS:
            self._log_outcome()
        self._left -= 1
        again = self._left > 0 and self._node.ticks_without_leader
        self.due = now + self._round * (1 + 0.5 * self._rng.random()) if again else math.inf

    def _log_outcome(self) -> None:
        """Why the suspicion has led to no campaign. A campaign itself is logged by ``OperatorLog``."""
        node, suspect = self._node, member_name(self._suspect)
        if node.term != self._term:
            self._log.info("suspected %s, but another member has campaigned, in term %d", suspect, node.term)
        elif not node.ticks_without_leader:
            self._log.info("%s is no longer suspected: it was heard from again", suspect)
