"""Linearizable reads without writing to the log (ReadIndex: thesis, section 6.4).

A leader notes its commit index and lets a quorum confirm, by a heartbeat round begun later, that it still leads. One
round serves every read that waits when it begins; those that come meanwhile share the next. A follower gathers its
reads in the same way and asks the leader once for all. This file is the book-keeping; who sends what is in
``confirmation.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class ReadQueue:
    """Reads of one node between being asked and being answered: (requester, context), where 0 is the node itself."""

    waiting: list[tuple[int, int]] = field(default_factory=list)
    """Not yet part of a round, nor sent to a leader."""
    confirming: list[tuple[int, int]] = field(default_factory=list)
    """Leader: waiting for ``round`` to be confirmed."""
    round: int = 0
    index: int = 0
    """Leader: the commit index when ``round`` began."""
    forwarded: list[int] = field(default_factory=list)
    """Follower: contexts of our own that the leader was asked for under the number ``batch``."""
    batch: int = 0
    forwarded_age: int = 0
    """Ticks since the leader was asked last."""
    states: list[tuple[int, int]] = field(default_factory=list)
    """Answered: (context, index)."""
    failed: list[int] = field(default_factory=list)

    def ask(self, requester: int, context: int) -> None:
        """Take a read in, unless it is a repeated message."""
        read = (requester, context)
        if requester and (read in self.waiting or read in self.confirming):
            return
        self.waiting.append(read)

    def fail_all(self) -> None:
        """The leader is lost. Reads of other members are theirs to ask again."""
        self.failed += self.forwarded
        self.failed += [context for requester, context in self.confirming if not requester]
        self.failed += [context for requester, context in self.waiting if not requester]
        self.forwarded, self.confirming, self.waiting = [], [], []
