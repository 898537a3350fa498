"""Ending a lease that nobody needs any more, without waiting for it longer than the caller's time allows.

Who gives up (a lock's waiter whose time is over, a cancelled coroutine, a release while the cluster is out of reach)
leaves a lease behind on which a place in a line hangs. Its end is handed to the hub, which tries for as long as the
lease could live, whatever becomes of the caller. The caller waits for it only a little: what is not done by then goes
on without it, and in the end the lease runs out by itself. Whoever gives back what it holds waits longer, for it
to be so when it goes on.

What else is to be done when the lease ends travels with it, in one transaction; if the cluster refuses that (it takes
no puts while a disk is full), the lease ends alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ...errors import KeeperError, LeaseNotFound
from ...limits import CLEANUP_GRACE
from .aio import AsyncClient
from .deadline import time_left
from .frames import check_request
from .handle import Client
from .hub import Outcome, this_process
from .leases import AsyncLease, Lease
from .operations import Op
from .requests import Ask, revoke_command
from .undisturbed import Bell


def end_lease(
    owner: Client | Lease, id: int, lasting: float, ending: Op | None = None, patience: float = CLEANUP_GRACE
) -> None:
    """End a lease that may or may not exist.

    Args:
        owner: the lease, or a handle of the process that may have made it.
        lasting: seconds for which it could live, and for which ending it is tried.
        ending: a transaction that ends it, and does what else there is to do. No guard holds it up.
        patience: seconds to wait for it.
    """
    over = Bell()
    if _hand_in(owner, id, lasting, ending, lambda outcome: over.set()):
        over.wait(min(patience, time_left()))


async def end_lease_async(
    owner: AsyncClient | AsyncLease,
    id: int,
    lasting: float,
    ending: Op | None = None,
    patience: float = CLEANUP_GRACE,
) -> None:
    """The same as :func:`end_lease` for asyncio."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # a coroutine that is taken apart after its loop was closed: there is nobody to wait
        _hand_in(owner, id, lasting, ending, lambda outcome: None)
        return
    over: asyncio.Future[None] = loop.create_future()

    def done(outcome: Outcome) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed, and whoever waited in it is gone
            loop.call_soon_threadsafe(_wake, over)

    if _hand_in(owner, id, lasting, ending, done):
        timer = loop.call_later(min(patience, time_left()), _wake, over)
        try:
            await over
        finally:
            timer.cancel()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _hand_in(
    owner: Client | AsyncClient | Lease | AsyncLease,
    id: int,
    lasting: float,
    ending: Op | None,
    done: Callable[[Outcome], None],
) -> bool:
    hub = owner._known_hub() if isinstance(owner, (Client, AsyncClient)) else owner._hub
    if hub is None or hub.process != this_process():
        return False  # nothing was made here
    revoke = revoke_command(id)
    size = check_request(revoke, hub.limits)
    if hub.interrupted():
        hub.submit_soon(revoke, size, lasting)
        return False

    def ended(outcome: Outcome) -> None:
        if isinstance(outcome, KeeperError) and not isinstance(outcome, LeaseNotFound):
            hub.submit_soon(revoke, size, lasting)
        done(outcome)

    try:
        if ending is None:
            hub.submit(Ask(revoke), size, lasting, done)
        else:
            view = owner._view if isinstance(owner, (Client, AsyncClient)) else owner._client._view
            command = view.txn_command(ending)
            hub.submit(Ask(command), check_request(command, hub.limits), lasting, ended)
    except BaseException:  # interrupted in the middle
        hub.submit_soon(revoke, size, lasting)
        raise
    return True
