"""Looks up the members of clusters in Ray: one lookup at a time, shared by all hubs of this process.

In an outage every process that uses the cluster wants to know its present members, and only Ray's control service can
tell, which then has other work to do. So hubs ask rarely (with growing random pauses, see ``hub``), and those of one
process share the answer.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from ...errors import Unavailable
from ...limits import CLIENT_REFRESH_AGE_S
from ..deadline import time_left
from ..discovery import member_actors
from ..interruptible import refuse_reentry


class Directory:
    """The members' actors of each cluster, as Ray last listed them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looking: dict[str, Any] = {}
        self._seen: dict[str, tuple[float, dict[int, Any]]] = {}

    def member_handles(self, name: str, *, fresh: bool = False) -> dict[int, Any]:
        """Handles of the actors of a cluster's members, by member id.

        Args:
            fresh: ask Ray, however recent the last answer is.

        Raises:
            ClusterNotFound: this process is not attached to Ray.
            Unavailable: Ray did not answer before the deadline of the present call.
        """
        with self._lock:
            looking = self._looking.setdefault(name, threading.RLock())
        asked = time.monotonic()
        refuse_reentry(looking)
        try:
            if not looking.acquire(timeout=min(time_left(), threading.TIMEOUT_MAX)):
                raise Unavailable(f"Ray's control service did not tell the members of cluster {name!r} in time")
            when, handles = self._seen.get(name, (-CLIENT_REFRESH_AGE_S, {}))
            if when < (asked if fresh else asked - CLIENT_REFRESH_AGE_S):
                begun = time.monotonic()
                handles = member_actors(name)
                self._seen[name] = begun, handles
            found = dict(handles)
            return found
        finally:
            try:  # noqa: SIM105 - see interruptible: nothing may run before it
                looking.release()
            except RuntimeError:  # the time was over
                pass


directory = Directory()


def _in_child() -> None:
    global directory
    directory = Directory()


os.register_at_fork(after_in_child=_in_child)
