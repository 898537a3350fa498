"""Ending a lease that is no longer needed, without making the caller wait longer than it can.

A caller that gives up leaves a lease to which a place in a waiting line is attached: a waiter whose timeout is over, a
cancelled coroutine, a release while the cluster cannot be reached. The hub is told to end the lease, and tries for as
long as the lease could live, whatever becomes of the caller. The caller waits for that only briefly; in the end the
lease expires by itself. A caller that releases what it holds waits longer, so that it is released when it goes on.

What else must happen when the lease ends is part of the same transaction. If the cluster refuses the transaction (it
takes no puts while a disk is full), the lease alone is ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ...errors import KeeperError, LeaseNotFound, RequestTimeout
from ...limits import CLEANUP_GRACE_S
from ..deadline import time_left
from ..finalizer_guard import LockFreeEvent
from ..transport.loop_reader import LoopReader
from .aio import AsyncKeyValueClient
from .core.in_flight import request_size
from .handle import KeyValueClient
from .hub import Hub, Outcome, this_process
from .leases import AsyncLease, Lease
from .loop_bridge import bridge_to
from .txn_parts import Op
from .view import Call, revoke_command


def end_lease(
    owner: KeyValueClient | Lease, id: int, lasting: float, ending: Op | None = None, max_wait: float = CLEANUP_GRACE_S
) -> None:
    """End a lease that may or may not exist.

    Args:
        owner: the lease, or a handle of the process that may have made it.
        id: the lease's id.
        lasting: seconds for which it could live, and for which the hub tries to end it.
        ending: a transaction that ends it and does what else is to be done; it is not guarded.
        max_wait: seconds to wait for it.
    """
    over = LockFreeEvent()
    hub = _hub_of(owner)
    if hub is not None and _submit_end(hub, owner, id, lasting, ending, lambda outcome: over.set()):
        over.wait(min(max_wait, time_left()))


async def end_lease_async(
    owner: AsyncKeyValueClient | AsyncLease,
    id: int,
    lasting: float,
    ending: Op | None = None,
    max_wait: float = CLEANUP_GRACE_S,
) -> None:
    """The same as :func:`end_lease` for asyncio."""
    hub = _hub_of(owner)
    if hub is None:
        return
    try:
        bridge = bridge_to(hub)
    except RuntimeError:  # the coroutine is finalized after its loop was closed: nothing can wait
        _submit_end(hub, owner, id, lasting, ending, lambda outcome: None)
        return
    pending = bridge.new_call()
    if _submit_end(hub, owner, id, lasting, ending, pending.set_outcome, bridge.reader):
        too_long = RequestTimeout("its end goes on in the background", applied=None)
        timer = asyncio.get_running_loop().call_later(min(max_wait, time_left()), pending.deliver, too_long)
        try:
            await pending.future
        finally:
            timer.cancel()


def _hub_of(owner: KeyValueClient | AsyncKeyValueClient | Lease | AsyncLease) -> Hub | None:
    """The hub that has made the lease; ``None`` if this process has made none."""
    hub = owner._known_hub() if isinstance(owner, (KeyValueClient, AsyncKeyValueClient)) else owner._hub
    return hub if hub is not None and hub.process == this_process() else None


def _submit_end(
    hub: Hub,
    owner: KeyValueClient | AsyncKeyValueClient | Lease | AsyncLease,
    id: int,
    lasting: float,
    ending: Op | None,
    done: Callable[[Outcome], None],
    reader: LoopReader | None = None,
) -> bool:
    """Submit the end of a lease; whether its outcome can be waited for. ``done`` gets the outcome.

    Every way out of here leaves the hub with the revocation: directly; by the timer thread, if this code has
    interrupted the hub or is interrupted itself; or after the transaction was refused. Revoking twice does no harm.
    """
    revoke = revoke_command(id)
    size = request_size(revoke, hub.limits)
    if hub.cannot_wait():
        hub.submit_soon(revoke, size, lasting)
        return False

    def ended(outcome: Outcome) -> None:
        if isinstance(outcome, KeeperError) and not isinstance(outcome, LeaseNotFound):
            hub.submit_soon(revoke, size, lasting)
        done(outcome)

    try:
        if ending is None:
            hub.submit(Call(revoke), size, lasting, done, reader)
        else:
            view = owner._view if isinstance(owner, (KeyValueClient, AsyncKeyValueClient)) else owner._client._view
            command = view.txn_command(ending)
            hub.submit(Call(command), request_size(command, hub.limits), lasting, ended, reader)
    except BaseException:  # interrupted
        hub.submit_soon(revoke, size, lasting)
        raise
    return True
