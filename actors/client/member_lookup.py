"""The look for a cluster's members: on a thread of its own, since it may take a long time.

A hub looks when something is pending and its list of members may be out of date. The pauses between two looks grow
while no member answers and are drawn at random, so that the hubs of a thousand processes do not ask Ray all at once.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ...limits import CLIENT_LOOKUP_TIMEOUT_S, CLIENT_MAX_REFRESH_INTERVAL_S, CLIENT_REFRESH_INTERVAL_S
from .. import finalizer_guard
from ..deadline import covering
from ..one_thread import OneThread
from ..transport.client_transport import ClientTransport
from .core.router import Router

_log = logging.getLogger("raykeeper.client")


class MemberLookup:
    """Looks for the members of one hub's cluster. All but the look itself happens under the hub's lock.

    Args:
        name: the cluster's name.
        router: is told what was found.
        lock: the hub's.
        wake: wakes the hub's timer thread.
    """

    def __init__(
        self,
        name: str,
        transport: ClientTransport,
        router: Router,
        lock: AbstractContextManager[Any],
        rng: random.Random,
        wake: Callable[[], None],
    ) -> None:
        self._name = name
        self._transport = transport
        self._router = router
        self._lock = lock
        self._rng = rng
        self._wake = wake
        self._thread = OneThread()
        self._not_before = -math.inf
        self.unanswered = 0
        """Looks in a row without an answer of any member since."""

    def start(self, now: float) -> float:
        """Look, unless that is under way or was done just now; returns when to ask for it again."""
        if not self._thread.runs and now >= self._not_before:
            longest = min(CLIENT_MAX_REFRESH_INTERVAL_S, CLIENT_REFRESH_INTERVAL_S * 2 ** min(self.unanswered, 10))
            self._not_before = now + self._rng.uniform(0, longest)
            self.unanswered += 1
            self._thread.start(self._look, f"raykeeper-members-{self._name}")
        return max(self._not_before, now + CLIENT_REFRESH_INTERVAL_S)

    def _look(self) -> None:
        try:
            with covering(CLIENT_LOOKUP_TIMEOUT_S):  # a call that was under way when the process left Ray never returns
                self._transport.refresh()
        except Exception as error:
            _log.debug("looking up the members of %r failed: %s", self._name, error)
        with finalizer_guard.gc_deferred, self._lock:
            self._thread.done()
            self._router.set_members(self._transport.members())
        self._wake()
