"""A signal that notes whether it was woken, in place of a consumer of a watch or the holder of a lease."""

from __future__ import annotations


class Ear:
    """Counts how often it was woken."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1
