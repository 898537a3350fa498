"""Waiting in a coroutine for so long at most, such that a cancellation is never lost.

``asyncio.wait_for`` up to Python 3.11 swallows a cancellation that comes in the same turn of the loop as what was
waited for: the task goes on as if nobody had cancelled it, and whoever awaits its end waits for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def within(seconds: float | None, waiting: Awaitable[object]) -> bool:
    """Whether something was over within that time; if not, it is cancelled.

    Args:
        seconds: ``None`` is for ever.
        waiting: what to wait for; an error of its own is raised.
    """
    task = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        task.cancel()
