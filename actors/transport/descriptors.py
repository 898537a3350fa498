"""How many descriptors a member's process has, and what it keeps of them for what it cannot do without.

The soft limit of a process is that of the shell that started Ray, mostly 1,024, though the hard one is far higher: a
member raises its own. Of what it has, lanes take only numbers below a bound. The kernel gives out the lowest number
that is free, so the numbers above the bound stay free for the disk, whose failure to open a file ends the member, for
lanes between members, and for Ray. A client for whose lane there is no room goes by actor calls, which take none.
"""

from __future__ import annotations

import contextlib
import os
import resource

from ...limits import MEMBER_DESCRIPTORS, PEER_DESCRIPTORS, RESERVED_DESCRIPTORS


def raise_limit() -> None:
    """Raise this process's soft limit, if it is allowed to. Elsewhere nothing changes."""
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
    """A lane to a client, or to a peer, has a number below this."""
    return limit() - RESERVED_DESCRIPTORS + (PEER_DESCRIPTORS if peer else 0)


def next_number(like: int) -> int:
    """The number that the next descriptor of this process will have, found by making one more of ``like``."""
    try:
        number = os.dup(like)
    except OSError:  # there is none
        return limit()
    os.close(number)
    return number
