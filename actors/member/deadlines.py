"""Deadlines of leases and sessions, and the cluster's clock.

Only a leader lets anything expire, by a monotonic clock of its own, and it expires through the log, so that all members
agree. A new leader learns from the log how long something has been silent (``store/state/cluster_clock.py``). If the
log does not tell, the full TTL starts again: that can only lengthen a lease, never shorten it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Set

from ...limits import (
    CLOCK_FIRST_STEP_S,
    CLOCK_FRESH_S,
    CLOCK_STEP_FRACTION,
    CLOCK_STEP_S,
    TOKEN_TTL_S,
    Settings,
    decode_settings,
)
from ...schema.commands import Command, PassTime
from ...store.state.machine import State
from .turn import Turn


class DeadlineQueue:
    """Deadlines of leases or sessions, by id; the earliest is found in O(log n).

    An id that :meth:`due` has returned is *expiring* until it is forgotten, retried, or all start again. It cannot be
    renewed in between, because its expiry may already be in the log.

    Each id has one valid entry in a heap. A deadline that is postponed leaves its entry where it is, to be moved
    when the old time comes, so a keep-alive costs next to nothing. Void entries are removed once they are the majority,
    so a lease or session that has ended does not take up memory until its deadline.
    """

    SPARE = 64
    """This many void entries, or ids that have ended, are not worth removing."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []
        self._places: dict[int, float] = {}
        """The time of each id's valid heap entry; its other entries are void."""
        self._expiring: set[int] = set()

    def __contains__(self, id: int) -> bool:
        return id in self._deadlines

    def __len__(self) -> int:
        return len(self._deadlines)

    @property
    def ids(self) -> Set[int]:
        """All ids that have a deadline."""
        return self._deadlines.keys()

    def start(self, lengths: Iterable[tuple[int, float]], now: float) -> None:
        """Replace everything by these (id, length in seconds), all counted from ``now``."""
        self._expiring.clear()
        self._deadlines = {id: now + length for id, length in lengths}
        self._places = dict(self._deadlines)
        self._heap = [(deadline, id) for id, deadline in self._deadlines.items()]
        heapq.heapify(self._heap)

    def stop(self) -> None:
        """Forget everything: this member does not lead."""
        self.start((), 0.0)

    @property
    def expiring(self) -> tuple[int, ...]:
        """The ids that are expiring."""
        return tuple(sorted(self._expiring))

    def renew(self, id: int, until: float) -> bool:
        """Extend a deadline to the given clock time; never shortens it. False if it is expiring."""
        if id in self._expiring:
            return False
        self.move(id, max(until, self._deadlines.get(id, until)))
        return True

    def move(self, id: int, until: float) -> None:
        """Set a deadline, later or earlier than before."""
        self._deadlines[id] = until
        place = self._places.get(id)
        if place is None or until < place:
            self._places[id] = until
            heapq.heappush(self._heap, (until, id))
            self._sweep()

    def forget(self, id: int) -> None:
        """The lease or session has ended."""
        self._deadlines.pop(id, None)
        self._places.pop(id, None)
        self._expiring.discard(id)
        self._sweep()

    def _sweep(self) -> None:
        if len(self._heap) > 2 * len(self._places) + self.SPARE:
            self._heap = [(place, id) for id, place in self._places.items()]
            heapq.heapify(self._heap)

    def retry(self, id: int, until: float) -> None:
        """It did not expire after all: it is due again at that clock time."""
        self._expiring.discard(id)
        if id in self._deadlines:
            self.move(id, until)

    def due(self, now: float, most: int) -> list[int]:
        """Up to ``most`` ids whose deadline has passed; each is returned once, and is expiring from then on."""
        ended: list[int] = []
        while self._heap and self._heap[0][0] <= now and len(ended) < most:
            place, id = heapq.heappop(self._heap)
            if self._places.get(id) != place:
                continue
            del self._places[id]
            deadline = self._deadlines[id]
            if deadline > now:  # renewed since this entry was made
                self.move(id, deadline)
            else:
                self._expiring.add(id)
                ended.append(id)
        return ended

    def deadline(self, id: int, unknown: float) -> float:
        """The deadline of an id; ``unknown`` if it has none."""
        return self._deadlines.get(id, unknown)

    def deadlines(self) -> dict[int, float]:
        """A copy of all deadlines, by id."""
        return self._deadlines.copy()

    def next_deadline(self) -> float:
        """No deadline is earlier than this clock time."""
        return self._heap[0][0] if self._heap else float("inf")


class ClusterTime:
    """A member's reading of the cluster's clock; on a leader, also what advances it.

    Every member reads it: the last reading in the log, plus the time since that was applied here. So a new leader knows
    the time that passed before its term, and its successor the time that passed in it, however short that was.

    Args:
        turn: the member's.
        propose: puts a command of the member's own into the log; its index, 0 if it was not taken.
        now: on the member's clock.
    """

    def __init__(self, turn: Turn, propose: Callable[[Command], int], now: float) -> None:
        self._turn = turn
        self._propose = propose
        self._seen = turn.state.clock.seconds
        self._since = now
        self._under_way = 0
        """Log index of the last reading that was proposed."""
        self._led_from = 0
        self._begins = False
        """Whether this leader must record that its term began, from which the silence of leases and sessions counts."""
        self._begins_at = 0
        self._due = math.inf
        self._wanted = False
        """Whether a reading of this leader's is needed in the log now."""
        self._proposed_at = 0.0
        self._own: tuple[float, float] | None = None
        """The last reading, if this leader has proposed it, and when it did, on the upper reading of its clock."""
        self._step = 0.0
        self._read_settings = b""
        self._settings = Settings()

    # -- on every member ----------------------------------------------------------------------------------------------

    def applied(self, now: float) -> None:
        """Entries were applied, or a snapshot has replaced the state.

        Every member counts on from a new reading, even one whose own count was ahead of it: what the reading stands for
        (a beginning, the end of a lease) holds for the time when it was proposed, and that was before now.
        """
        seconds = self._turn.state.clock.seconds
        if seconds != self._seen:
            self._seen, self._since = seconds, now
            self._own = (seconds, self._proposed_at) if self._under_way else None

    def reading(self, now: float) -> float:
        """The cluster's clock. It never advances more, since any reading in the log, than true time has."""
        return self._seen + max(0.0, now - self._since)

    @property
    def settings(self) -> Settings:
        """The cluster's settings, from the state."""
        data = self._turn.state.settings
        if data != self._read_settings:
            self._read_settings, self._settings = data, decode_settings(data)
        return self._settings

    # -- on a leader --------------------------------------------------------------------------------------------------

    def lead(self, term: int, now: float) -> None:
        """This member has become leader."""
        state = self._turn.state
        self._own, self._wanted = None, False
        self._under_way = self._begins_at = 0
        self._led_from = state.applied_index
        self._begins = bool(state.sessions or state.leases)
        self._step = CLOCK_FIRST_STEP_S
        self._due = now if self._begins else max(now, self._since + self._step)

    def stop(self) -> None:
        """This member does not lead (any more)."""
        self._due = math.inf
        self._own, self._under_way = None, 0

    def at_most(self, now: float) -> float | None:
        """An upper bound of every member's reading now; ``None`` if a new reading must be logged first.

        Members count on from when they *applied* the last reading, some later than others, so the next leader may be
        ahead of this one's :meth:`reading`. But all applied it after its leader had proposed it. So the end of a lease
        is counted from there, on the upper reading of the clock. The reading must be this leader's own, and recent: a
        clock that lost time since then would count too little.
        """
        latest = max(now, self._turn.most)
        if self._own is None or latest - self._own[1] > CLOCK_FRESH_S:
            self._wanted = True
            self._due = min(self._due, now)
            return None
        return self._own[0] + max(0.0, latest - self._own[1])

    @property
    def beginning(self) -> int:
        """A lease or session without a sign of life in the log after this index must record its next one there."""
        return max(self._turn.state.clock.beginning, self._begins_at)

    def time_left(self, ttl: float, heard: int, until: float | None, now: float) -> float:
        """Seconds that remain at least until something expires; negative if it is overdue.

        Args:
            ttl: how long it lives after its last sign of life.
            heard: log index of the last sign of life in the log.
            until: the reading at which it expires, if the log has one.
        """
        if until is None:
            silent_since = self._turn.state.clock.silent_since(heard)
            if silent_since is None:
                return ttl
            until = silent_since + ttl
        return min(ttl, until - self.reading(now))

    def work(self, now: float, pause: float) -> None:
        """Log a reading of the clock, if one is due and there is anything that ages. For a leader that has committed in
        its term. The first readings of a term follow each other quickly, so that a short term counts too.

        Args:
            pause: seconds until a reading that was refused is tried again.
        """
        state = self._turn.state
        if now < self._due or state.applied_index < self._under_way:
            return
        begins = self._begins and state.clock.beginning <= self._led_from
        shortest = self._shortest(state)
        if not begins and shortest is None and not self._wanted:
            self._due = now + self._step
            return
        since = state.clock.seconds
        if self.reading(now) <= since:  # applied in this turn; no two readings may be equal
            return
        self._proposed_at = max(now, self._turn.most)
        self._under_way = self._propose(
            PassTime(since, self.reading(now) - since, state.applied_index, state.revision, begins)
        )
        if not self._under_way:
            self._due = now + pause
            return
        self._wanted = False
        if begins:
            self._begins_at = self._under_way
        wanted = (
            CLOCK_STEP_S
            if shortest is None
            else max(CLOCK_FIRST_STEP_S, min(CLOCK_STEP_S, CLOCK_STEP_FRACTION * shortest))
        )
        self._due = now + min(self._step, wanted)
        self._step = min(2 * self._step, CLOCK_STEP_S)

    def _shortest(self, state: State) -> float | None:
        """The shortest lifetime among what is ageing now; ``None`` if nothing is. Readings must be more frequent than
        that."""
        ages: list[float] = []
        compaction = self.settings.compaction
        if compaction.mode == "age" and state.revision > max(1, state.compact_revision):
            ages.append(compaction.keep)
        if state.remembered_requests:
            ages.append(self.settings.timings.request_ttl)
        if state.users.enabled:
            ages.append(TOKEN_TTL_S)
        beginning = state.clock.beginning
        if any(session.heard < beginning for session in state.sessions.values()) or any(
            lease.heard < beginning or lease.until is not None for lease in state.leases.values()
        ):
            ages.append(math.inf)
        return min(ages, default=None)
