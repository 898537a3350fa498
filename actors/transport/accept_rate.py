"""How many connections a listener takes in, and whose they are: what members and proxies do alike against floods."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable


class AcceptRate:
    """So many a second, and so many at once after a rest.

    Args:
        clock: seconds.
        per_s: a second.
        at_once: after a rest.
    """

    def __init__(self, clock: Callable[[], float], per_s: float, at_once: float) -> None:
        self._clock = clock
        self._per_s = per_s
        self._at_once = at_once
        self._left = float(at_once)
        self._at = clock()

    def take(self) -> bool:
        """Count one; False if there are too many."""
        now = self._clock()
        self._left = min(self._at_once, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def source_of_address(host: str) -> str:
    """Whose address it is: itself, or of IPv6 its first 64 bits, since a host there has as many addresses as it
    likes."""
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
