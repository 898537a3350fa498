"""Linearizable reads without writing to the log (ReadIndex: thesis, section 6.4).

A leader notes its commit index, and a quorum confirms by a later round of heartbeats that it still leads. One round
serves every read that waits when it starts; reads that arrive during a round share the next. A follower gathers its
reads in the same way and asks the leader once for all of them. This file does the bookkeeping; ``heartbeats.py`` sends
the messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class ReadQueue:
    """The unanswered reads of one node, as (requester, context). Requester 0 is the node itself."""

    waiting: list[tuple[int, int]] = field(default_factory=list)
    """Neither part of a round nor sent to a leader yet."""
    confirming: list[tuple[int, int]] = field(default_factory=list)
    """Leader: waiting for ``round`` to be confirmed."""
    round: int = 0
    index: int = 0
    """Leader: the commit index when ``round`` began."""
    forwarded: list[int] = field(default_factory=list)
    """Follower: its own contexts for which it has asked the leader, under the number ``batch``."""
    batch: int = 0
    forwarded_age: int = 0
    """Ticks since the leader was last asked."""
    states: list[tuple[int, int]] = field(default_factory=list)
    """Answered: (context, index)."""
    failed: list[int] = field(default_factory=list)

    def add_read(self, requester: int, context: int) -> None:
        """Add a read, unless it comes from a repeated message."""
        read = (requester, context)
        if requester and (read in self.waiting or read in self.confirming):
            return
        self.waiting.append(read)

    def fail_all(self) -> None:
        """The leader is lost. Reads of other members are dropped: those members ask again."""
        self.failed += self.forwarded
        self.failed += [context for requester, context in self.confirming if not requester]
        self.failed += [context for requester, context in self.waiting if not requester]
        self.forwarded, self.confirming, self.waiting = [], [], []
