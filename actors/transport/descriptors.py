"""The file descriptors of a member's process, and which of them lanes may use.

A process inherits its soft limit from the shell that started Ray, mostly 1,024, though the hard limit is far higher, so
a member raises its own. Lanes of clients use only numbers below a bound. The kernel gives out the lowest free number,
so the numbers above the bound stay free for the disk (a member that cannot open a file ends), for lanes between
members, and for Ray. A client without room for a lane uses actor calls, which need no descriptor.
"""

from __future__ import annotations

import contextlib
import os
import resource

from ...limits import MEMBER_DESCRIPTORS, PEER_DESCRIPTORS, RESERVED_DESCRIPTORS


def raise_limit() -> None:
    """Raise this process's soft limit, if that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MEMBER_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MEMBER_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit() -> int:
    """How many descriptors this process may have now."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MEMBER_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def lane_bound(*, peer: bool) -> int:
    """Lanes to clients, or to peers, may use descriptors below this number."""
    return limit() - RESERVED_DESCRIPTORS + (PEER_DESCRIPTORS if peer else 0)


def next_number(like: int) -> int:
    """The number that the next descriptor of this process will get, found by duplicating ``like``."""
    try:
        number = os.dup(like)
    except OSError:  # none is left
        return limit()
    os.close(number)
    return number
