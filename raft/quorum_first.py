"""Which followers a leader sends to at once, and which a little later.

An entry is committed, and a round of heartbeats confirmed, as soon as a quorum has answered; answers beyond that come
too late to matter, and cost every machine that sends and handles them. So the leader sends at once to as many voters
as make up a quorum with it, those that answer fastest, and to the others a little later, all that has gathered in one
message (the EPaxos paper, section 6.3, calls a leader that asks no more than a quorum thrifty). If the first ones stay
silent, the same message to the others makes up the quorum instead.

Nothing else changes. What is committed is on the disks of a quorum, as before. It is not promised who is asked first,
and any follower may hold any entry at any time. Only followers in good order are let to wait: one that is probed, gets
a snapshot or wants to know each commit index is sent everything at once. So are all of them while two configurations
decide or the leadership is being transferred, when it matters who is up to date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .messages import Configuration
from .progress import Progress, ProgressState

CHANGE_MARGIN = 1.5
"""A follower takes the place of another that is asked first only if that one answers this many times slower: with each
change the one that comes in must first be sent what it has not got yet."""
MAX_WAITING_ENTRIES = 256
"""A follower that lacks as many entries waits no longer: what it would be sent later, it would also write later."""


class QuorumFirst:
    """The choice of one leader, for one term."""

    def __init__(self) -> None:
        self._first: list[int] = []

    def waiting(
        self, own: int, configuration: Configuration, progress: Mapping[int, Progress], last_index: int, now: float
    ) -> Sequence[int]:
        """The followers to which nothing needs to be sent at once.

        Args:
            own: the leader.
            last_index: the last entry of its log.
            now: the owner's clock.
        """
        voters, first = configuration.voters, self._first
        if configuration.outgoing or own not in voters:
            return ()
        needed = len(voters) // 2
        ranked: list[tuple[bool, float, int]] = []
        for voter in voters:
            each = progress[voter]
            if voter == own or each.state is not ProgressState.REPLICATE or each.lost_state or each.paused:
                continue
            delay = each.response_time(now)
            ranked.append((not each.wants_commits, delay if voter in first else delay * CHANGE_MARGIN, voter))
        if len(ranked) <= needed:
            return ()
        ranked.sort()
        self._first = [voter for _, _, voter in ranked[:needed]]
        return [
            voter
            for can_wait, _, voter in ranked[needed:]
            if can_wait and last_index + 1 - progress[voter].next_index < MAX_WAITING_ENTRIES
        ]
