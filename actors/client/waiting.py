"""Waiting in a coroutine for so long at most, such that a cancellation is never lost.

``asyncio.wait_for`` up to Python 3.11 swallows a cancellation that comes in the same turn of the loop as what was
waited for: the task goes on as if nobody had cancelled it, and whoever awaits its end waits for ever.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


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
        with contextlib.suppress(RuntimeError):  # the loop was closed, and this is taken apart by the collector
            task.cancel()


def on_thread(name: str, call: Callable[..., T], *arguments: Any) -> concurrent.futures.Future[T]:
    """Something that blocks, on a daemon thread of its own: neither the loop's executor, which may be full of other
    people's work, nor the end of the process waits for it."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            result = context.run(call, *arguments)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
