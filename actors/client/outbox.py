"""Requests of one kind on their way out: who waits, who is asked, and how patiently.

A hub has three outboxes: writes, linearizable reads, serializable reads. While all is well an outbox has a few batches
under way, and what gathers meanwhile makes up the next ones. After a failure it *probes*: one small batch at a time, to
one member after the other with a growing pause, until somebody answers; then everything goes at once. Pauses are drawn
from 0 to a bound that grows with the outage ("full jitter"), up to seconds: so a thousand clients do not add to what
ails the cluster, nor fall upon it together when it is back, and each adds a small share to its own outage. Silence is a
failure too: a batch without an answer is sent elsewhere after a while that follows the round trips seen lately, because
Ray tells of a dead actor only after seconds, and of a paused one never. A member that failed is not asked for a while.

An outbox knows nothing of what its requests mean, and keeps no clock: the hub core passes the time in.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence, Set

from ...errors import KeeperError
from ...limits import (
    CLIENT_BACKOFF,
    CLIENT_BACKOFF_SHARE,
    CLIENT_BATCH_SHARE,
    CLIENT_MAX_BACKOFF,
    CLIENT_MAX_BANISHMENT,
    CLIENT_MAX_REDIRECTS,
    CLIENT_MAX_SUSPICION,
    CLIENT_PROBE_REQUESTS,
    CLIENT_SHORT_BACKOFF,
    CLIENT_SUSPICION,
    Limits,
)
from ...store.commands import Answer, ClientWrite
from ..protocol import Read


class Call:
    """One submitted request. It is in one place: waiting in its outbox, in one batch under way, or over."""

    __slots__ = (
        "deadline",
        "done",
        "doubtful",
        "id",
        "largest_batch",
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
        """Place in the session, given when a write is first sent; it stays over all retries."""
        self.doubtful = False
        """A copy was sent of which nobody knows what became."""
        self.largest_batch = 0
        """If not 0, a batch with this call was refused as invalid: it goes in smaller ones, to find the culprit."""


class Outbox:
    """See the module.

    Args:
        name: for messages.
        to_leader: the leader is asked first; otherwise any one member, and the same as long as it answers.
        near: members on this process's own node, as far as is known, which come before others unless the leader must
            be asked; somebody else may add to it.
    """

    def __init__(
        self, name: str, limits: Limits, rng: random.Random, *, to_leader: bool, near: Set[int] = frozenset()
    ) -> None:
        self.name = name
        self.to_leader = to_leader
        self._near = near
        self.fresh: deque[Call] = deque()
        """Never sent."""
        self.again: deque[Call] = deque()
        """Sent, and to be sent again."""
        self.flying = 0
        """Batches under way whose answer is still expected..."""
        self.flying_calls = 0
        """... and the calls in them."""
        self.failures = 0
        """In a row; 0 means that all is well."""
        self.problem = ""
        """What the last failure was."""
        self.not_before = 0.0
        """Nothing is sent before this time."""
        self._limits = limits
        self._rng = rng
        self._failing_since = 0.0
        """When the first of these failures was."""
        self._redirects = 0
        self._suspicions = 0
        self._round_trip = 0.0
        self._banished: dict[int, tuple[float, float]] = {}
        """Member: until when, and for how long that was."""
        self._turn = rng.randrange(1 << 16)

    # -- what to send -------------------------------------------------------------------------------------------------

    def ready(self, now: float) -> bool:
        """Whether another batch may go now.

        While others are under way it must be worth it: many threads that wake up one after the other would else fill
        the window with batches of one. A few requests more or less never wait for that.
        """
        if now < self.not_before:
            return False
        if not self.flying:
            return True
        if self.failures or self.flying >= self._limits.max_calls_in_flight:
            return False
        return CLIENT_BATCH_SHARE * (len(self.fresh) + len(self.again)) >= self.flying_calls

    def waiting(self) -> bool:
        """Whether a call waits to be sent (or one that is over and not yet cleared away)."""
        return bool(self.again or self.fresh)

    def take(self, fresh: int) -> list[Call]:
        """The calls of the next batch: retries before fresh ones, of which at most ``fresh``."""
        most = CLIENT_PROBE_REQUESTS if self.failures else self._limits.max_batch_requests
        space = self._limits.max_batch_bytes
        calls: list[Call] = []
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

    def put_back(self, calls: Sequence[Call], *, doubtful: bool) -> None:
        """These calls were not answered: they go first in the next batches, in their old order."""
        for call in reversed(calls):
            if not call.over:
                call.doubtful |= doubtful
                self.again.appendleft(call)

    def clear_away(self) -> None:
        """Forget calls that are over."""
        self.fresh = deque(call for call in self.fresh if not call.over)
        self.again = deque(call for call in self.again if not call.over)

    def begin_anew(self) -> None:
        """Nothing waits, and nothing is under way."""
        self.fresh.clear()
        self.again.clear()
        self.flying = self.flying_calls = 0

    def took_off(self, calls: int) -> None:
        """A batch of so many calls was sent."""
        self.flying += 1
        self.flying_calls += calls

    def came_down(self, calls: int) -> None:
        """A batch was answered, or is no longer waited for."""
        self.flying -= 1
        self.flying_calls -= calls

    # -- whom to ask --------------------------------------------------------------------------------------------------

    def target(self, members: Sequence[int], leader: int, now: float) -> int:
        """The member to ask next, 0 if there is none.

        Args:
            leader: comes first; but unless it must be asked, only among those that are near.
        """
        if not members:
            return 0
        if self.to_leader and leader in members and not self.banished(leader, now):
            return leader
        trusted = [member for member in members if not self.banished(member, now)]
        if not trusted:
            return min(members, key=lambda member: self._banished[member][0])
        near = [member for member in trusted if member in self._near]
        if leader in near:
            return leader
        nearest = near or trusted
        return nearest[self._turn % len(nearest)]

    def banished(self, member: int, now: float) -> bool:
        """Whether the member failed so recently that others are asked first."""
        return member in self._banished and now < self._banished[member][0]

    def forgive(self, member: int) -> None:
        """Somebody who should know says that the member is well."""
        self._banished.pop(member, None)

    def patience(self) -> float:
        """Seconds after which a batch that is sent now counts as lost."""
        usual = max(CLIENT_SUSPICION, 4 * self._round_trip)
        return min(usual * 1.5 ** min(self._suspicions, 8), CLIENT_MAX_SUSPICION)

    # -- what happened ------------------------------------------------------------------------------------------------

    def answered(self, member: int, round_trip: float | None) -> None:
        """The member answered in earnest; ``None`` for a round trip that says nothing about the way."""
        self.failures = self._redirects = self._suspicions = 0
        self.not_before = 0.0
        self._banished.pop(member, None)
        if round_trip is not None:
            self._round_trip += (round_trip - self._round_trip) / 8 if self._round_trip else round_trip

    def silent(self, member: int, now: float) -> None:
        """The member let the patience run out."""
        self._suspicions += 1
        self.failed(member, now, f"member {member} does not answer")

    def failed(self, member: int, now: float, problem: str) -> None:
        """The member cannot be asked for a while; the next one is asked at once, unless that has failed before."""
        length = min(CLIENT_MAX_BANISHMENT, 2 * self._banished[member][1] if member in self._banished else 1.0)
        self._banished[member] = (now + length, length)
        self.pause(now, problem, at_once=self.failures == 0)

    def redirected(self, now: float, problem: str) -> None:
        """A member knows the leader: that one is asked at once, but not for ever round in a circle."""
        self._redirects += 1
        if self._redirects > CLIENT_MAX_REDIRECTS:
            self.pause(now, problem)

    def pause(self, now: float, problem: str, *, at_once: bool = False) -> None:
        """Note a failure, and wait before the next attempt."""
        self.problem = problem
        self._turn += 1
        if now < self.not_before:
            return  # one of several batches that failed together
        if not self.failures:
            self._failing_since = now
        self.failures += 1
        if not at_once:
            short = min(CLIENT_SHORT_BACKOFF, CLIENT_BACKOFF * 2 ** min(self.failures, 10))
            long = CLIENT_BACKOFF_SHARE * (now - self._failing_since)
            self.not_before = now + self._rng.uniform(0, min(CLIENT_MAX_BACKOFF, max(short, long)))
