"""The supervisor's actor class, made so that it can be sent to any node.

The supervisor is pinned to no node, so Ray may start it where RayKeeper is not installed. A class that is sent by name
cannot be loaded there, and an actor that cannot be created is dead for good: nothing would start it again. So this
class is sent by value and loads the package only when it runs. On a node without the package it ends its process, and
Ray restarts it, sooner or later on a node that has the package. So it does where there is no thread or memory for it.

Nothing of the package may be imported at the top of this file.
"""

from __future__ import annotations

import os
import time
from typing import Any

PAUSE_S = 0.5
"""Pause on a node where it cannot run, so that Ray is not kept busy if it can on none."""


class SupervisorActor:
    """Receives a supervisor's calls; what they do is documented in ``supervisor.Supervisor``."""

    def __init__(self, spec: bytes) -> None:
        try:
            from ..one_thread import NoThreadLeft
            from .supervisor import Supervisor
        except ImportError:
            time.sleep(PAUSE_S)
            os._exit(1)
        try:
            self._supervisor = Supervisor(spec)
        except (NoThreadLeft, MemoryError):
            time.sleep(PAUSE_S)
            os._exit(1)

    def pid(self) -> int:
        """See ``Supervisor``."""
        return self._supervisor.pid()

    def supervisor_spec(self) -> bytes:
        """See ``Supervisor``."""
        return self._supervisor.supervisor_spec()

    def stop(self) -> bool:
        """See ``Supervisor``."""
        return self._supervisor.stop()

    def lines(self) -> list[str]:
        """See ``Supervisor``."""
        return self._supervisor.lines()

    def activity(self) -> str:
        """See ``Supervisor``."""
        return self._supervisor.activity()

    def situation(self) -> list[str]:
        """See ``Supervisor``."""
        return self._supervisor.situation()

    def alarms(self) -> list[str]:
        """See ``Supervisor``."""
        return self._supervisor.alarms()

    def marker(self) -> Any:
        """See ``Supervisor``."""
        return self._supervisor.marker()
