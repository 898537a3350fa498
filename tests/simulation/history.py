"""What all workers did and saw, and the keys that they use."""

from __future__ import annotations

from collections import Counter

from raykeeper.schema.operations import KeyRange
from simulation.checker import Call, Observation
from simulation.dependency_cycles import Transaction
from simulation.list_append import LISTS

REGISTERS = tuple(b"r%d" % n for n in range(5))
COUNTERS = (b"c0", b"c1")
PAIR = (b"p0", b"p1")
EVERYTHING = KeyRange(b"c", b"r:")
"""All of these, and none of the keys that coordination calls write."""
PAIR_RANGE = KeyRange(b"p0", b"p2")
HERD = tuple(b"h%02d" % n for n in range(15))
"""Keys that are put and deleted together."""
HERD_RANGE = KeyRange(b"h", b"i")
KEYS = (*REGISTERS, *COUNTERS, *PAIR, *HERD, *LISTS)
"""All that workers write."""


class History:
    """What all clients did and saw, on one counter of events."""

    def __init__(self) -> None:
        self._clock = 0
        self.calls: dict[bytes, list[Call]] = {}
        self.observations: list[Observation] = []
        self.open_deletes: list[tuple[bytes, int]] = []
        """(key, invoked) of deletions that nobody knows the outcome of."""
        self.offered: set[bytes] = set()
        """All values that anybody ever tried to write."""
        self.without_effect: dict[bytes, str] = {}
        """Values of writes of which an error said that they had no effect."""
        self.transactions: list[Transaction] = []
        """On lists, of all outcomes."""
        self.increments: dict[bytes, list[int | None]] = {key: [] for key in COUNTERS}
        """Of every increment that was begun: the count before it, or ``None`` if it is not known yet."""
        self.given_up: Counter[bytes] = Counter()
        """Increments that were not answered within the time for which the cluster remembers them."""
        self.started = 0
        self.succeeded = 0
        self.denied = 0
        self.refused = 0
        self.unknown = 0

    def point(self) -> int:
        """The next point in the order of all events."""
        self._clock += 1
        return self._clock
