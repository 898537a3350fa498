"""Somebody who waits for news of a watch or of a lease."""

from __future__ import annotations


class Ear:
    """Counts how often it was woken."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1
