"""Requests of one kind on their way out: which calls wait, which member is asked, and when to try another.

The dispatch core has three outboxes: writes, linearizable reads, serializable reads.

- *While all is well* a few batches are in flight, and the calls that gather meanwhile make up the next ones.
- *After a failure* the outbox probes: one small batch at a time, to one member after another, with growing pauses,
  until a member answers; then everything goes at once. Pauses are drawn from zero to a bound that grows with the outage
  ("full jitter"), so a thousand clients neither burden a failing cluster nor overrun it when it is back, and each
  prolongs its own outage by a small share only.
- *Silence is a failure.* Ray reports a dead actor only after seconds, and a paused one never. So a batch without a
  reply goes to another member after a timeout that follows the round trips seen lately.
- *A member that failed is quarantined*: the others are asked first for a while.

An outbox knows nothing of what its requests mean and reads no clock: the core passes the time in.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

from ....errors import KeeperError
from ....limits import (
    CLIENT_BACKOFF_FRACTION,
    CLIENT_BACKOFF_S,
    CLIENT_BATCH_DIVISOR,
    CLIENT_MAX_BACKOFF_S,
    CLIENT_MAX_QUARANTINE_S,
    CLIENT_MAX_REDIRECTS,
    CLIENT_MAX_SUSPICION_S,
    CLIENT_PROBE_REQUESTS,
    CLIENT_SHORT_BACKOFF_S,
    CLIENT_SUSPICION_S,
    Limits,
)
from ....schema.answers import Answer
from ....schema.commands import ClientWrite
from ....schema.frames import Read
from .router import Prefer, Router


class PendingCall:
    """One submitted request. It is in exactly one place: waiting in its outbox, in one batch in flight, or over."""

    __slots__ = (
        "deadline",
        "done",
        "id",
        "largest_batch",
        "maybe_applied",
        "outbox",
        "over",
        "read",
        "sends",
        "sequence",
        "size",
        "write",
    )

    def __init__(
        self,
        id: int,
        outbox: Outbox,
        read: Read | None,
        write: ClientWrite | None,
        deadline: float,
        size: int,
        done: Callable[[Answer | KeeperError], None],
    ) -> None:
        self.id = id
        self.outbox = outbox
        self.read = read
        self.write = write
        self.deadline = deadline
        self.size = size
        self.done = done
        self.over = False
        self.sends = 0
        self.sequence = 0
        """Of a write in its session: assigned when it is first sent, and kept over all retries; 0 before."""
        self.maybe_applied = False
        """A copy was sent whose fate is unknown."""
        self.largest_batch = 0
        """If not 0, a batch with this call was refused as invalid: it goes in batches of at most this many calls."""


class Outbox:
    """The calls of one kind that wait, and the choice of the member to send them to.

    Args:
        name: what it holds, for messages.
        prefer: which member to ask first. Whichever is asked is asked again as long as it answers.
    """

    def __init__(self, name: str, limits: Limits, rng: random.Random, prefer: Prefer) -> None:
        self.name = name
        self._prefer = prefer
        self.fresh: deque[PendingCall] = deque()
        """Calls that were never sent."""
        self.again: deque[PendingCall] = deque()
        """Calls to be sent once more."""
        self.in_flight = 0
        """Batches whose reply is still waited for."""
        self.calls_in_flight = 0
        """Calls in those batches."""
        self.failures = 0
        """Failures in a row; 0 means that all is well."""
        self.problem = ""
        """The last failure, in words."""
        self.not_before = 0.0
        """Nothing is sent before this time."""
        self._limits = limits
        self._rng = rng
        self._failing_since = 0.0
        """Time of the first of the failures in a row."""
        self._redirects = 0
        """Redirects to another leader in a row."""
        self._suspicions = 0
        """Members in a row that let the reply timeout pass."""
        self._round_trip = 0.0
        """Smoothed, in seconds."""
        self._quarantine: dict[int, tuple[float, float]] = {}
        """For each member that failed: the end of its quarantine, and its length in seconds."""
        self._rotation = rng.randrange(1 << 16)
        """Selects one of the members that are equally good."""

    # -- the next batch -----------------------------------------------------------------------------------------------

    def can_send(self, now: float) -> bool:
        """Whether another batch may go now.

        While batches are in flight, the next one must be worth its cost: otherwise many threads that wake one after
        another would fill the window with batches of one call.
        """
        if now < self.not_before:
            return False
        if not self.in_flight:
            return True
        if self.failures or self.in_flight >= self._limits.max_calls_in_flight:
            return False
        return CLIENT_BATCH_DIVISOR * (len(self.fresh) + len(self.again)) >= self.calls_in_flight

    def waiting(self) -> bool:
        """Whether a call waits to be sent. Also true for calls that are over and not yet discarded."""
        return bool(self.again or self.fresh)

    def next_batch(self, fresh: int) -> list[PendingCall]:
        """Take out the calls of the next batch: retries first, then at most ``fresh`` that were never sent.

        The batch keeps the order of submission, within the limits of calls and bytes and within what its calls allow
        (``largest_batch``). It has at least one call if one waits, however large: each alone is within the limits.
        """
        most = CLIENT_PROBE_REQUESTS if self.failures else self._limits.max_batch_requests
        space = self._limits.max_batch_bytes
        calls: list[PendingCall] = []
        for queue in (self.again, self.fresh):
            left = len(queue) if queue is self.again else fresh
            while queue and left > 0 and len(calls) < most:
                call = queue[0]
                if call.over:
                    queue.popleft()
                    continue
                if call.largest_batch:
                    most = min(most, call.largest_batch)
                space -= call.size
                if calls and (space < 0 or len(calls) >= most):
                    return calls
                queue.popleft()
                call.sends += 1
                calls.append(call)
                left -= 1
        return calls

    def put_back(self, calls: Sequence[PendingCall], *, maybe_applied: bool) -> None:
        """Queue calls that were not answered ahead of all others, in their old order."""
        for call in reversed(calls):
            if not call.over:
                call.maybe_applied |= maybe_applied
                self.again.appendleft(call)

    def discard_ended(self) -> None:
        """Drop the calls that are over from the queues."""
        self.fresh = deque(call for call in self.fresh if not call.over)
        self.again = deque(call for call in self.again if not call.over)

    def reset(self) -> None:
        """Empty the queues and count nothing as in flight, after an interrupt; the owner queues its calls again."""
        self.fresh.clear()
        self.again.clear()
        self.in_flight = self.calls_in_flight = 0

    def batch_sent(self, calls: int) -> None:
        """A batch of this many calls is in flight."""
        self.in_flight += 1
        self.calls_in_flight += calls

    def batch_settled(self, calls: int) -> None:
        """A batch of this many calls was answered, or is no longer waited for."""
        self.in_flight -= 1
        self.calls_in_flight -= calls

    # -- the member to ask --------------------------------------------------------------------------------------------

    def target(self, router: Router, now: float) -> int:
        """The member to ask next, 0 if there is none.

        The leader if only it can answer; else a near member before others; the leader among the near ones if preferred.
        Quarantined members come last, the one first whose quarantine ends first.
        """
        members, leader = router.members, router.leader
        if not members:
            return 0
        if self._prefer is Prefer.LEADER and leader in members and not self.quarantined(leader, now):
            return leader
        trusted = [member for member in members if not self.quarantined(member, now)]
        if not trusted:
            return min(members, key=lambda member: self._quarantine[member][0])
        near = [member for member in trusted if member in router.near]
        if self._prefer is not Prefer.NEAR and leader in near:
            return leader
        nearest = near or trusted
        return nearest[self._rotation % len(nearest)]

    def quarantined(self, member: int, now: float) -> bool:
        """Whether the member failed so recently that the others are asked first."""
        return member in self._quarantine and now < self._quarantine[member][0]

    def clear_quarantine(self, member: int) -> None:
        """End a member's quarantine: a member that hears its heartbeats says that it leads."""
        self._quarantine.pop(member, None)

    def reply_timeout(self) -> float:
        """Seconds after which a batch that is sent now counts as lost; longer after each silence in a row."""
        usual = max(CLIENT_SUSPICION_S, 4 * self._round_trip)
        return min(usual * 1.5 ** min(self._suspicions, 8), CLIENT_MAX_SUSPICION_S)

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def answered(self, member: int, round_trip: float | None) -> None:
        """The member did what it was asked. The round trip in seconds; ``None`` if it includes a wait at the member."""
        self.failures = self._redirects = self._suspicions = 0
        self.not_before = 0.0
        self._quarantine.pop(member, None)
        if round_trip is not None:
            self._round_trip += (round_trip - self._round_trip) / 8 if self._round_trip else round_trip

    def timed_out(self, member: int, now: float) -> None:
        """The member let the reply timeout pass."""
        self._suspicions += 1
        self.failed(member, now, f"m{member} does not answer")

    def failed(self, member: int, now: float, problem: str) -> None:
        """Quarantine the member. After a first failure the next member is asked at once, otherwise after a pause."""
        length = min(CLIENT_MAX_QUARANTINE_S, 2 * self._quarantine[member][1] if member in self._quarantine else 1.0)
        self._quarantine[member] = (now + length, length)
        self.back_off(now, problem, at_once=self.failures == 0)

    def redirected(self, now: float, problem: str) -> None:
        """A member named the leader, which is asked at once; after too many redirects in a row, only after a pause."""
        self._redirects += 1
        if self._redirects > CLIENT_MAX_REDIRECTS:
            self.back_off(now, problem)

    def back_off(self, now: float, problem: str, *, at_once: bool = False) -> None:
        """Count a failure, and pause before the next attempt unless ``at_once``.

        The pause is drawn between 0 and a bound: at first one that doubles with each failure, later a fixed share of
        the time since the first failure.
        """
        self.problem = problem
        self._rotation += 1
        if now < self.not_before:
            return  # several batches failed together: they count once

        if not self.failures:
            self._failing_since = now
        self.failures += 1
        if not at_once:
            short = min(CLIENT_SHORT_BACKOFF_S, CLIENT_BACKOFF_S * 2 ** min(self.failures, 10))
            long = CLIENT_BACKOFF_FRACTION * (now - self._failing_since)
            self.not_before = now + self._rng.uniform(0, min(CLIENT_MAX_BACKOFF_S, max(short, long)))
