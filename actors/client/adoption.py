"""Leases that somebody else made, looked after from here: by their id, as a command line has to.

A lease belongs to whoever keeps it alive, and any process may. This one counts its time from what the leader said was
left of it, and from when it asked, so ``lost`` and ``remaining()`` are as safe as for a lease that it made itself.
"""

from __future__ import annotations

from .handle import Client
from .hub import clock
from .leases import Lease


def adopted(client: Client, id: int, *, keep_alive: bool, timeout: float | None = None) -> Lease:
    """The lease of that id, as if this process had made it.

    Args:
        id: of a lease that exists.
        keep_alive: keep it alive from now on, in the background, while the object lives. The first keep-alive is sent
            at once.
        timeout: seconds; ``None`` is the handle's.

    Raises:
        LeaseNotFound: it does not exist, or has ended.
        Unavailable, RequestTimeout: the cluster cannot be reached.
    """
    asked_at = clock()
    info = client.time_to_live(id, timeout=timeout)
    # A third of its time must have passed for a keep-alive to be due; to claim so promises less, never more.
    left = min(info.remaining, info.ttl * 2 / 3)
    return Lease(client, client._hub(client.timeout), (info.id, info.ttl, asked_at - (info.ttl - left)), keep_alive)
