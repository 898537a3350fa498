"""Reads by leader lease (thesis, section 6.4.1): the argument for their safety, and both of its sides.

A leader may answer a read without asking its followers as long as no other leader can have been elected. With each
round of heartbeats it asks for a *promise* of length L. A follower that answers the round keeps it:

    the follower    reads its clock after the heartbeat has arrived: h. It votes for no candidate, itself included,
                    while its clock shows less than h + L.
    the leader      read its clock before the heartbeat left: s. It counts on that follower while its clock shows less
                    than s + L * (1 - d). It holds the lease while it counts on a quorum, itself included, since it
                    votes for no candidate while it leads. For each follower, L is that of the round it answered.

The follower votes no earlier than L after h on its own clock, and h is later than s. No clock runs faster than another
by more than the fraction d (``clock_drift``). So at least L / (1 + d) have passed on the leader's clock since s, which
is more than L * (1 - d): the lease has ended. Two quorums share a member, so no other leader is elected before.

Threats, and why they do no harm:

- *Sleep and stalls.* Each side takes the reading that errs against itself (``actors/member/clock.py``): a follower the
  least time that has passed, a leader the most that may have passed. A leader that slept counts all of the sleep. Where
  a clock went back and the time is unknown, its lease is over. A turn goes by one reading, taken after its messages and
  reads had arrived. So the lease was held at a time after the read arrived, which is all that a read needs.
- *Changed timings.* L travels in the heartbeat, so no member needs to know another's settings. A shorter promise never
  shortens a longer one that still runs, on either side.
- *Restarts.* The longest promise that may still run is on disk (``HardState.promise``) before the heartbeat that asked
  for it is answered. After a start a member neither votes nor campaigns for that long, since the promise may have been
  given just before the process ended. A member that never gave a promise does not wait.
- *Transfer.* A follower grants a vote that its leader has asked for in spite of a promise. So a leader that begins a
  transfer holds no lease for the rest of its term (a TimeoutNow may arrive late). Such a vote is requested in the very
  next term. In a later term another leader asked for it; that leader was elected, so the promise to the first one had
  ended. A promise from before a restart is kept even then: it may have been given to any leader.
- *Membership.* A quorum of the configuration in effect counts (of both halves, if it is joint). It is counted again
  when the configuration changes, before any member hears of the change. It shares a member with each quorum of any
  configuration in which a leader could still be elected: the one before or the one after. Learners promise, but do not
  count.
- *Terms.* A promise outlives changes of the term that did not come from a leader.

Not covered (see docs/guarantees.md): clocks whose rates differ by more than d, and a clock that stands still while its
process goes on, such as that of a virtual machine that was suspended without being told.
"""

from __future__ import annotations

import math


class Promise:
    """A follower's side: until when it helps to elect no other leader.

    Args:
        length: seconds of the longest promise that may still run from before the start, as it is on disk.
        now: the least time that has passed on this member's clock.
    """

    __slots__ = ("_earlier_until", "_until", "length")

    def __init__(self, length: float, now: float) -> None:
        self.length = length
        """Seconds of the longest promise that may still run. On disk before the promise is sent."""
        self._until = self._earlier_until = now + length if length else -math.inf

    def extend(self, length: float, now: float) -> None:
        """A leader has asked for a promise of ``length`` seconds."""
        end = now + length
        # The length on disk may shrink once it covers what still runs: a start from now on waits at least that long.
        self.length = length if end >= self._until else max(self.length, length)
        self._until = max(self._until, end)

    def holds(self, now: float) -> bool:
        """Whether this member must refuse all votes but those that its leader asked for."""
        return now < self._until

    def holds_from_earlier_run(self, now: float) -> bool:
        """Whether a promise from before the start may still run: then this member must refuse all votes."""
        return now < self._earlier_until


class PromiseRounds:
    """A leader's side: until when it may count on a member that answers a round of heartbeats."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        """By round, in order; those whose time is over are dropped."""

    def clear(self) -> None:
        """Forget all rounds: a new term begins."""
        self._until.clear()

    def add_round(self, number: int, length: float, drift: float, now: float) -> None:
        """Record a round, right before its heartbeats leave.

        Args:
            number: the round.
            length: seconds of the promise that it asks for.
            drift: the bound on clock drift, as a fraction.
            now: the most time that may have passed on the leader's clock.
        """
        until = self._until
        while until:
            oldest = next(iter(until))
            if until[oldest] > now:
                break
            del until[oldest]
        until[number] = now + length * (1 - drift)

    def promised_until(self, number: int) -> float:
        """Until when to count on a member that has answered this round; the past if it is unknown."""
        return self._until.get(number, -math.inf)
