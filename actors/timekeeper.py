"""The leader's clockwork: which promises of time have run out.

Only a leader counts time, on a monotonic clock of its own, and what has run out ends through the log, so all members
agree. Nothing here is replicated: a new leader starts every promise anew with its full length, which can only make a
promise longer than it was, never shorter. (Design, "Time".)
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Set


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


class Memory:
    """Tells up to which log index everything is older than some age, from samples taken as time passes."""

    SAMPLES = 16

    def __init__(self, age: float) -> None:
        self.age = age
        self._samples: deque[tuple[float, int]] = deque()

    def start(self) -> None:
        """Begin anew: nothing is known to be old."""
        self._samples.clear()

    def pass_time(self, now: float, applied_index: int, forget: Callable[[int], None]) -> None:
        """Take a sample now and then; call ``forget(index)`` when all at or below ``index`` is older than the age."""
        if not self._samples or now - self._samples[-1][0] >= self.age / self.SAMPLES:
            self._samples.append((now, applied_index))
        old = 0
        while self._samples and now - self._samples[0][0] >= self.age:
            old = self._samples.popleft()[1]
        if old:
            forget(old)
