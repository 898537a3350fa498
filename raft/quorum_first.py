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

ORDER_MARGIN = 1.5
"""Of two followers the one with the smaller id is asked first, unless it answers this many times slower. So the choice
is steady, and falls on the follower that campaigns first if the leader's lane ends (``FastFailover``): it should be the
one that lacks nothing."""
MAX_WAITING_ENTRIES = 256
"""A follower that lacks as many entries waits no longer: what it would be sent later, it would also write later."""


def waiting_followers(
    own: int, configuration: Configuration, progress: Mapping[int, Progress], last_index: int, now: float
) -> Sequence[int]:
    """The followers to which a leader needs to send nothing at once.

    Args:
        own: the leader.
        last_index: the last entry of its log.
        now: the owner's clock.
    """
    voters = configuration.voters
    if configuration.outgoing or own not in voters:
        return ()
    needed = len(voters) // 2
    ranked: list[tuple[bool, float, int]] = []
    margin = 1.0
    for voter in voters:
        each = progress[voter]
        if voter == own or each.state is not ProgressState.REPLICATE or each.lost_state or each.paused:
            continue
        ranked.append((not each.wants_commits, each.response_time(now) * margin, voter))
        margin *= ORDER_MARGIN
    if len(ranked) <= needed:
        return ()
    ranked.sort()
    return [
        voter
        for can_wait, _, voter in ranked[needed:]
        if can_wait and last_index + 1 - progress[voter].next_index < MAX_WAITING_ENTRIES
    ]
