"""Reads by leader lease (thesis, section 6.4.1): the one argument that they rest on, and both its sides.

A leader may answer a read without asking anybody as long as nobody else can have been elected. With each round of
heartbeats it asks for a *promise* of a length L; who has answered the round stands by it for that long:

    the follower    reads its clock after the heartbeat has arrived: h. It votes for nobody, itself included, while its
                    clock shows less than h + L. Time that passed before the heartbeat is in h, not in what follows.
    the leader      read its clock before the heartbeat left: s. It counts on that follower while its clock shows less
                    than s + L * (1 - d), and holds the lease while it counts on a quorum, itself included: it votes
                    for nobody while it leads. Each follower counts by what it was asked in the round that it answered.

A vote comes at the earliest L of the follower's clock after h, and h lies after s. No clock runs faster than another's
by more than the fraction d (``clock_drift``), so at least L / (1 + d) of the leader's clock have passed since s, which
is more than L * (1 - d): the lease has ended. Two quorums share a member, so nobody is elected before.

What could break this, and does not:

- *Sleep and stalls.* Each side takes the reading that hurts only itself (``actors/clock.py``): a follower what has
  passed at least, a leader what may have passed at most. A leader that slept counts all of it; where a clock went back,
  so that nobody knows, its lease is over. All of a turn goes by one reading, taken when its messages and questions had
  arrived; so the lease was held at a moment after the question, which is all that a read needs.
- *Changed timings.* L travels in the heartbeat. Nobody needs to know anybody's settings, and a shorter promise never
  shortens a longer one that still runs, on either side.
- *Restarts.* The longest promise that may still run is on disk (``HardState.promise``) before a heartbeat that asked
  for it is answered; after a start a member votes for nobody and does not campaign for that long: it may have been
  given at the last moment. A disk that never promised has nothing to wait for.
- *Transfer.* A vote that the leader itself wishes for is given in spite of a promise; so one that begins a transfer
  is without a lease for the rest of its term (a TimeoutNow may arrive late). Such a vote is asked for in the very next
  term: in a later one it was another leader's wish, who was elected, so that what the first one was promised is over.
  It is not given in spite of a promise of an earlier life, which may have been made to anybody.
- *Membership.* What counts is a quorum (of both halves, if it is joint) of the configuration in effect, judged anew
  when that changes, before anybody hears of the change. It shares a member with any quorum of a configuration in which
  somebody could still be elected: that is the one before or the one after. Learners promise, and do not count.
- *Terms.* A promise outlives changes of the term that did not come from a leader.

What would break it is for guarantees.md to exclude: clocks whose rates differ by more than d, or one that stands still
while its process goes on, as that of a virtual machine which was frozen and not told.
"""

from __future__ import annotations

import math


class Promise:
    """A follower's side: until when it stands by those that it promised to.

    Args:
        length: the longest promise that an earlier life of this member may have left, as it is on disk.
        now: what has passed at least, on this member's clock.
    """

    __slots__ = ("_quiet_until", "_until", "length")

    def __init__(self, length: float, now: float) -> None:
        self.length = length
        """The longest promise that may still run. On disk before it is spoken."""
        self._until = self._quiet_until = now + length if length else -math.inf

    def give(self, length: float, now: float) -> None:
        """A leader has asked for this much."""
        end = now + length
        # What is on disk may shrink once it covers what runs: a start from now on would wait at least this long.
        self.length = length if end >= self._until else max(self.length, length)
        self._until = max(self._until, end)

    def runs(self, now: float) -> bool:
        """Whether this member may not help to elect anybody, unless its leader wishes it."""
        return now < self._until

    def is_quiet(self, now: float) -> bool:
        """Whether one of an earlier life may still run, which knows of no wish."""
        return now < self._quiet_until


class Rounds:
    """A leader's side: until when it may count on whoever answers a round of heartbeats."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        """By round, in order; those that are over are forgotten."""

    def clear(self) -> None:
        """A new term begins."""
        self._until.clear()

    def begin(self, number: int, length: float, drift: float, now: float) -> None:
        """A round that asks for promises of this length begins.

        Args:
            now: what may have passed at most, on the leader's clock.
        """
        until = self._until
        while until:
            oldest = next(iter(until))
            if until[oldest] > now:
                break
            del until[oldest]
        until[number] = now + length * (1 - drift)

    def until(self, number: int) -> float:
        """Until when to count on a member that has answered this round."""
        return self._until.get(number, -math.inf)
