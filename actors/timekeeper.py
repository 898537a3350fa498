"""The clockwork: which promises of time have run out, and what the cluster's clock shows.

Only a leader ends things, on a monotonic clock of its own, and what has run out ends through the log, so all members
agree. How long something has been silent when a leader comes to lead, the log tells: see ``store/cluster_clock.py``.
Where it cannot tell, a promise begins anew with its full length, which can only make it longer than it was, never
shorter. (Design, "Time".)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Set

from ..limits import CLOCK_FIRST_STEP, CLOCK_FRESH, CLOCK_SHARE, CLOCK_STEP, Settings, decode_settings
from ..store.commands import Command, PassTime
from ..store.state import State


class Countdown:
    """Deadlines of many promises, each by an id; the earliest is found in O(log n).

    A promise whose expiry was handed out by :meth:`due` counts as *expiring* until it is forgotten or the countdown
    starts anew; it cannot be renewed in between, because the expiry may already be in the log.

    Each promise has one valid place in a heap. A deadline that moves away leaves the place where it is, and is looked
    at again when the old time has come; so keeping something alive costs next to nothing. Places that are void are
    swept out once they are the greater part: what has ended takes no room until its time would have come.
    """

    SPARE = 64
    """Void places, and promises that are gone, that are not worth a sweep."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []
        self._places: dict[int, float] = {}
        """The time under which a promise stands in the heap; any other entry of it is void."""
        self._expiring: set[int] = set()

    def __contains__(self, promise: int) -> bool:
        return promise in self._deadlines

    def __len__(self) -> int:
        return len(self._deadlines)

    @property
    def promises(self) -> Set[int]:
        """All that is counted."""
        return self._deadlines.keys()

    def start(self, promises: Iterable[tuple[int, float]], now: float) -> None:
        """Begin anew with these (id, length in seconds), all counted from ``now``."""
        self._expiring.clear()
        self._deadlines = {promise: now + length for promise, length in promises}
        self._places = dict(self._deadlines)
        self._heap = [(deadline, promise) for promise, deadline in self._deadlines.items()]
        heapq.heapify(self._heap)

    def stop(self) -> None:
        """Count nothing any more: this member does not lead."""
        self.start((), 0.0)

    @property
    def expiring(self) -> tuple[int, ...]:
        """The promises whose expiry was handed out and is not settled."""
        return tuple(sorted(self._expiring))

    def renew(self, promise: int, until: float) -> bool:
        """Keep a promise alive until the given clock time; never shortens. False if it is expiring."""
        if promise in self._expiring:
            return False
        self.move(promise, max(until, self._deadlines.get(promise, until)))
        return True

    def move(self, promise: int, until: float) -> None:
        """Set a promise's deadline, later or earlier than it was."""
        self._deadlines[promise] = until
        place = self._places.get(promise)
        if place is None or until < place:
            self._places[promise] = until
            heapq.heappush(self._heap, (until, promise))
            self._sweep()

    def forget(self, promise: int) -> None:
        """The promise has ended."""
        self._deadlines.pop(promise, None)
        self._places.pop(promise, None)
        self._expiring.discard(promise)
        self._sweep()

    def _sweep(self) -> None:
        if len(self._heap) > 2 * len(self._places) + self.SPARE:
            self._heap = [(place, promise) for promise, place in self._places.items()]
            heapq.heapify(self._heap)

    def retry(self, promise: int, until: float) -> None:
        """The expiry that was handed out did not happen: count on."""
        self._expiring.discard(promise)
        if promise in self._deadlines:
            self.move(promise, until)

    def due(self, now: float, most: int) -> list[int]:
        """Up to ``most`` promises that have run out; each is handed out once and counts as expiring from then on."""
        ended: list[int] = []
        while self._heap and self._heap[0][0] <= now and len(ended) < most:
            place, promise = heapq.heappop(self._heap)
            if self._places.get(promise) != place:
                continue
            del self._places[promise]
            deadline = self._deadlines[promise]
            if deadline > now:  # was renewed since it was put into the heap
                self.move(promise, deadline)
            else:
                self._expiring.add(promise)
                ended.append(promise)
        return ended

    def deadline(self, promise: int, unknown: float) -> float:
        """When a promise runs out; ``unknown`` if there is no such promise."""
        return self._deadlines.get(promise, unknown)

    def next_deadline(self) -> float:
        """No promise runs out before this clock time."""
        return self._heap[0][0] if self._heap else float("inf")


class ClusterTime:
    """A member's reading of the cluster's clock (``store/cluster_clock.py``); on a leader, also what keeps it going.

    Every member reads it: it counts on from the last reading in the log since that was applied here. So a leader that
    begins knows of the time before it, and the next one of the time under it, however short that was.

    Args:
        state: the member's state as it is now.
        propose: puts a command of the member's own into the log; its index, 0 if it was not taken.
        now: on the member's clock.
    """

    def __init__(self, state: Callable[[], State], propose: Callable[[Command], int], now: float) -> None:
        self._state = state
        self._propose = propose
        self._seen = state().clock.seconds
        self._since = now
        self._under_way = 0
        """Log index of the reading that is on its way, 0 for none."""
        self._led_from = 0
        self._begins = False
        """Whether this leader has to let the silence begin of those that lived when it came."""
        self._begins_at = 0
        self._due = math.inf
        self._wanted = False
        """Whether somebody needs a reading of this leader's in the log."""
        self.most = -math.inf
        """The clock's other reading, what may have passed at most; set by the owner before each turn, if it has one."""
        self._proposed_at = 0.0
        self._own: tuple[float, float] | None = None
        """The last reading, if this leader has proposed it, and when it did."""
        self._step = 0.0
        self._read_settings = b""
        self._settings = Settings()

    # -- on every member ----------------------------------------------------------------------------------------------

    def applied(self, now: float) -> None:
        """The state has moved on, or another one has taken its place.

        Of a new reading each member counts on from now, also one that was ahead of it: what the reading stands for (a
        beginning, the end of a lease) is true of the time when it was proposed, and that was before now.
        """
        seconds = self._state().clock.seconds
        if seconds != self._seen:
            self._seen, self._since = seconds, now
            self._own = (seconds, self._proposed_at) if self._under_way else None

    def read(self, now: float) -> float:
        """The cluster's clock; never more than true time has passed since any of its readings in the log."""
        return self._seen + max(0.0, now - self._since)

    @property
    def settings(self) -> Settings:
        """The settings in the state."""
        data = self._state().settings
        if data != self._read_settings:
            self._read_settings, self._settings = data, decode_settings(data)
        return self._settings

    # -- on a leader --------------------------------------------------------------------------------------------------

    def lead(self, term: int, now: float) -> None:
        """This member has become leader."""
        state = self._state()
        self._own, self._wanted = None, False
        self._under_way = self._begins_at = 0
        self._led_from = state.applied_index
        self._begins = bool(state.sessions or state.leases)
        self._step = CLOCK_FIRST_STEP
        self._due = now if self._begins else max(now, self._since + self._step)

    def stop(self) -> None:
        """This member does not lead (any more)."""
        self._due = math.inf
        self._own, self._under_way = None, 0

    def at_most(self, now: float) -> float | None:
        """What no member's reading is beyond just now, whoever leads next; ``None`` if that is not known yet.

        Members count on from when they *applied* the last reading, some later than others, so one who leads next may be
        ahead of this one's :meth:`read`. But all applied it after its leader had proposed it. So what is to last until
        some reading is counted from there, on the clock's upper reading. The reading has to be this leader's own, and
        of just now: a clock that lost time since then would count too little. Else a new one goes into the log first.
        """
        latest = max(now, self.most)
        if self._own is None or latest - self._own[1] > CLOCK_FRESH:
            self._wanted = True
            self._due = min(self._due, now)
            return None
        return self._own[0] + max(0.0, latest - self._own[1])

    @property
    def beginning(self) -> int:
        """A sign of life of what has none in the log behind this index goes through the log."""
        return max(self._state().clock.beginning, self._begins_at)

    def left(self, ttl: float, heard: int, until: float | None, now: float) -> float:
        """How many seconds are left at least of what lives so long after its last sign of life; negative if none are.

        Args:
            heard: log index of the last sign of life in the log.
            until: the reading at which it runs out, if that stands in the log.
        """
        if until is None:
            silent_since = self._state().clock.silent_since(heard)
            if silent_since is None:
                return ttl
            until = silent_since + ttl
        return min(ttl, until - self.read(now))

    def work(self, now: float, pause: float) -> None:
        """Have the clock go on, if there is something that ages. For a leader that has committed in its term.

        Args:
            pause: seconds after which what was not taken is tried again.
        """
        state = self._state()
        if now < self._due or state.applied_index < self._under_way:
            return
        begins = self._begins and state.clock.beginning <= self._led_from
        shortest = self._shortest(state)
        if not begins and shortest is None and not self._wanted:
            self._due = now + self._step
            return
        since = state.clock.seconds
        if self.read(now) <= since:  # applied in this very turn: the next one has a reading that differs
            return
        self._proposed_at = max(now, self.most)
        self._under_way = self._propose(
            PassTime(since, self.read(now) - since, state.applied_index, state.revision, begins)
        )
        if not self._under_way:
            self._due = now + pause
            return
        self._wanted = False
        if begins:
            self._begins_at = self._under_way
        wanted = CLOCK_STEP if shortest is None else max(CLOCK_FIRST_STEP, min(CLOCK_STEP, CLOCK_SHARE * shortest))
        self._due = now + min(self._step, wanted)
        self._step = min(2 * self._step, CLOCK_STEP)

    def _shortest(self, state: State) -> float | None:
        """For how long that is kept at least which ages just now; ``None`` if nothing does."""
        ages: list[float] = []
        compaction = self.settings.compaction
        if compaction.mode == "age" and state.revision > max(1, state.compact_revision):
            ages.append(compaction.keep)
        if state.remembered_requests:
            ages.append(self.settings.timings.request_ttl)
        beginning = state.clock.beginning
        if any(session.heard < beginning for session in state.sessions.values()) or any(
            lease.heard < beginning or lease.until is not None for lease in state.leases.values()
        ):
            ages.append(math.inf)
        return min(ages, default=None)
