"""The supervisor's actor class, made so that it can be sent to any node.

The supervisor is pinned to no node, so Ray may start it where RayKeeper is not installed. A class that is sent by name
cannot be loaded there, and an actor that cannot be made is dead for good: nobody would start it again. So this class is
sent by value and loads the package only when it runs; where there is none it ends its process, and Ray starts it anew,
sooner or later on a node that has it.

Nothing of the package may be loaded at the top of this file.
"""

from __future__ import annotations

import os
import time
from typing import Any

PAUSE = 0.5
"""Seconds on a node without the package, so that Ray is not kept busy if no node has it."""


class SupervisorActor:
    """Takes a supervisor's calls; for what they do see ``supervisor.Supervisor``."""

    def __init__(self, charge: bytes) -> None:
        try:
            from .supervisor import Supervisor
        except ImportError:
            time.sleep(PAUSE)
            os._exit(1)
        self._supervisor = Supervisor(charge)

    def pid(self) -> int:
        """See ``Supervisor``."""
        return self._supervisor.pid()

    def charge(self) -> bytes:
        """See ``Supervisor``."""
        return self._supervisor.charge()

    def stop(self) -> bool:
        """See ``Supervisor``."""
        return self._supervisor.stop()

    def lines(self) -> list[str]:
        """See ``Supervisor``."""
        return self._supervisor.lines()

    def doing(self) -> str:
        """See ``Supervisor``."""
        return self._supervisor.doing()

    def situation(self) -> list[str]:
        """See ``Supervisor``."""
        return self._supervisor.situation()

    def alarms(self) -> list[str]:
        """See ``Supervisor``."""
        return self._supervisor.alarms()

    def marker(self) -> Any:
        """See ``Supervisor``."""
        return self._supervisor.marker()
