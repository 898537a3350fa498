"""Ending a lease that nobody needs any more, without waiting for it longer than the caller's time allows.

Who gives up (a lock's waiter whose time is over, a cancelled coroutine, a release while the cluster is out of reach)
leaves a lease behind on which a place in a line hangs. Its end is handed to the hub, which tries for as long as the
lease could live, whatever becomes of the caller. The caller waits for it only a little: what is not done by then goes
on without it, and in the end the lease runs out by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ...limits import CLEANUP_GRACE
from .aio import AsyncClient
from .deadline import time_left
from .frames import check_request
from .handle import Client
from .hub import Outcome, this_process
from .leases import AsyncLease, Lease
from .requests import Ask, revoke_command
from .undisturbed import Bell
from .waiting import within


def end_lease(owner: Client | Lease, id: int, lasting: float) -> None:
    """End a lease that may or may not exist.

    Args:
        owner: the lease, or a handle of the process that may have made it.
        lasting: seconds for which it could live, and for which ending it is tried.
    """
    over = Bell()
    if _hand_in(owner, id, lasting, lambda outcome: over.set()):
        over.wait(min(CLEANUP_GRACE, time_left()))


async def end_lease_async(owner: AsyncClient | AsyncLease, id: int, lasting: float) -> None:
    """The same as :func:`end_lease` for asyncio."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def done(outcome: Outcome) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed, and whoever waited in it is gone
            loop.call_soon_threadsafe(over.set)

    if _hand_in(owner, id, lasting, done):
        await within(min(CLEANUP_GRACE, time_left()), over.wait())


def _hand_in(
    owner: Client | AsyncClient | Lease | AsyncLease, id: int, lasting: float, done: Callable[[Outcome], None]
) -> bool:
    hub = owner._known_hub() if isinstance(owner, (Client, AsyncClient)) else owner._hub
    if hub is None or hub.process != this_process():
        return False  # nothing was made here
    command = revoke_command(id)
    size = check_request(command, hub.limits)
    if hub.interrupted():
        hub.submit_soon(command, size, lasting)
        return False
    hub.submit(Ask(command), size, lasting, done)
    return True
