"""The audit log: a line for each denied call, and for each change of users, roles, members and settings.

Its logger is ``raykeeper.audit``. Each line says who, from where, what, and with which outcome. Changes are few and all
of them are logged. Denials can be a flood, made by those who may do nothing else: each kind is rate-limited, and the
lines left out are counted in a later one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from .logs import RateLimit, prefix

_log = logging.getLogger("raykeeper.audit")


class AuditLog:
    """The audit lines of one member or supervisor. Any thread."""

    def __init__(self, cluster: str, member: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._who = prefix(cluster, member)
        self._denials = RateLimit(clock)

    def denied(self, user: str, source: str, what: str, why: str) -> None:
        """A call was refused for want of a user, a password or a right.

        Args:
            user: empty if the call named none.
            source: the connection that it came over.
            what: the kind of call, and the names that it was about.
            why: the kind of refusal.
        """
        left_out = self._denials.admit(why)
        if left_out is None:
            return
        more = f" (and {left_out} more denials of this kind)" if left_out else ""
        _log.warning("%s: denied: user=%r from=%s what=%s outcome=%s%s", self._who, user, source, what, why, more)

    def changed(self, user: str, source: str, what: str, outcome: str) -> None:
        """Users, roles, members or settings were changed, or were to be."""
        _log.info("%s: change: user=%r from=%s what=%s outcome=%s", self._who, user, source, what, outcome)
