"""Adopting a lease that another process made, by its id, as the command line must.

Any process may keep a lease alive. This one counts from the sending of a keep-alive that was confirmed; so ``lost`` and
``remaining()`` are as safe as for a lease that it made itself. To be told how much time is left would not do: until
another process has kept it alive, a lease ends as soon as the process that made it is known to be dead.
"""

from __future__ import annotations

from ...errors import LeaseNotFound, Unavailable
from ...schema.frames import Kept, LeasesKept
from .core.in_flight import LeaseQuestion
from .handle import KeyValueClient
from .hub import clock
from .leases import Granted, Lease
from .view import Call, Steps


def adopt_steps(id: int, deadline: float) -> Steps[Granted]:
    """Steps that keep a lease alive once, so that it no longer ends with the process that made it.

    Args:
        deadline: clock time until which to try again.

    Raises:
        LeaseNotFound: it does not exist, or has ended.
        Unavailable: the leader does not know, until the deadline.
    """
    while True:
        asked_at = clock()
        answer = yield Call(LeaseQuestion((id,), keep=True))
        if not isinstance(answer, LeasesKept) or len(answer.kept) != 1 or len(answer.ttls) != 1:
            raise Unavailable(f"the cluster answered {type(answer).__name__} to a keep-alive")
        if answer.kept[0] is Kept.ALIVE:
            return id, answer.ttls[0], asked_at, False
        if answer.kept[0] is Kept.GONE:
            raise LeaseNotFound(f"lease {id:x} does not exist, or has expired")
        if clock() >= deadline:
            raise Unavailable(f"whether lease {id:x} lives is not known")


def adopted(client: KeyValueClient, id: int, *, keep_alive: bool, timeout: float | None = None) -> Lease:
    """A ``Lease`` for the lease of that id, as if this process had made it.

    Args:
        id: of a lease that exists.
        keep_alive: keep it alive in the background as long as the returned object exists; otherwise only once, now.
        timeout: seconds; ``None`` is the handle's default.

    Raises:
        LeaseNotFound: it does not exist, or has ended.
        Unavailable, RequestTimeout: the cluster cannot be reached.
    """
    granted = client._run(adopt_steps(id, clock() + client._seconds(timeout)), timeout)
    lease = Lease(client, client._hub(client.timeout), granted, keep_alive)
    lease._held.keep_alives += 1  # the next one comes after a third of the TTL, and counts on from here
    return lease
