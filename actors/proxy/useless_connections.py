"""Who floods a proxy's port: whose connections end without a request.

A flood is more than ``PROXY_SOURCE_PER_S`` connections of one address a second that end without a request. Those that
wait to be let in, or give up meanwhile, do not count, however many they are; nor do those that a deadline of their own
closes, since they came long ago. One that makes way for another counts, whatever its age, and so does one that its
client closes. Where there is not the time to accept all that come, fewer end than come: there it is the address that
most of those are of that have ended so.
"""

from __future__ import annotations

import logging
from collections import Counter

from ...limits import MIN_PROXY_USELESS, PROXY_SOURCE_PER_S
from ..logs import MemberLog


class UselessConnections:
    """See the module. All on one thread.

    Args:
        log: for an operator.
    """

    def __init__(self, log: MemberLog) -> None:
        self._log = log
        self._count: Counter[str] = Counter()
        self.floods = False
        """Whether an address flooded in the last sweep."""

    def count(self, source: str) -> None:
        """A connection has ended without a request, and not because it had to wait."""
        if source:  # the address of one that was reset is not always known any more
            self._count[source] += 1

    def review(self, seconds: float, serving: bool, starved: bool = False) -> None:
        """Look at what came.

        Args:
            seconds: since the last time.
            serving: whether there are others whom a flood would hold up; otherwise there is none.
            starved: whether there was not the time to accept all that came.
        """
        count, self._count = self._count, Counter()
        before, self.floods = self.floods, False
        if not count or not serving or seconds <= 0:
            return
        source, most = count.most_common(1)[0]
        dominates = starved and most >= MIN_PROXY_USELESS and 2 * most > count.total()
        self.floods = dominates or most / seconds > PROXY_SOURCE_PER_S
        if self.floods and not before:
            self._log.log(logging.WARNING, "%s floods: %d connections without a request", source, most)
