"""The weights of a semaphore's contenders: how many slots each takes, as the names of their keys say."""

from __future__ import annotations

from collections.abc import Sequence

_LEASE_DIGITS = 16
"""The id of its lease, which a ticket's name ends with."""
_MOST_DIGITS = 18
"""What is longer, another program has written."""


def weight_kind(weight: int) -> bytes:
    """What the name of a ticket begins with. A weight of 1 is not said."""
    return b"" if weight == 1 else b"w%d-" % weight


def weight_of(key: bytes) -> int:
    """The weight of the contender that wrote a ticket."""
    kind = key.rpartition(b"/")[2][:-_LEASE_DIGITS]
    digits = kind[1:-1]
    is_weight = kind[:1] == b"w" and kind[-1:] == b"-" and digits.isdigit() and len(digits) <= _MOST_DIGITS
    return int(digits) if is_weight else 1


def holders_by_weight(weights: Sequence[int], limit: int) -> int:
    """How many contenders, from the head of the line, hold their slots: as many as fit together."""
    taken = 0
    for number, weight in enumerate(weights):
        taken += weight
        if taken > limit:
            return number
    return len(weights)
