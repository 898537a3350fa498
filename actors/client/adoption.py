"""Adopting a lease that another process made, by its id, as the command line must.

Any process may keep a lease alive. This one counts from the time that the leader says is left, at the moment when it
asked; so ``lost`` and ``remaining()`` are as safe as for a lease that it made itself.
"""

from __future__ import annotations

from .handle import KeyValueClient
from .hub import clock
from .leases import Lease


def adopted(client: KeyValueClient, id: int, *, keep_alive: bool, timeout: float | None = None) -> Lease:
    """A ``Lease`` for the lease of that id, as if this process had made it.

    Args:
        id: of a lease that exists.
        keep_alive: keep it alive in the background as long as the returned object exists, starting at once.
        timeout: seconds; ``None`` is the handle's default.

    Raises:
        LeaseNotFound: it does not exist, or has ended.
        Unavailable, RequestTimeout: the cluster cannot be reached.
    """
    asked_at = clock()
    info = client.time_to_live(id, timeout=timeout)
    # A keep-alive is due once a third of the TTL has passed. Claiming that it has only shortens the guarantee.

    left = min(info.remaining, info.ttl * 2 / 3)
    return Lease(client, client._hub(client.timeout), (info.id, info.ttl, asked_at - (info.ttl - left)), keep_alive)
