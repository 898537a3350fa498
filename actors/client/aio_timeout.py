"""Waiting in a coroutine with a timeout, such that no cancellation is lost.

``asyncio.wait_for`` up to Python 3.11 swallows a cancellation that arrives in the same iteration of the loop as the
awaited result: the task goes on as if it had not been cancelled, and whatever awaits its end waits forever.
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
    """Wait until an awaitable is done, for this many seconds at most; whether it was. If not, it is cancelled.

    Args:
        seconds: ``None`` waits forever.
        waiting: what to wait for; its exception, if it has one, is raised.
    """
    task = asyncio.ensure_future(waiting)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        cancel_if_possible(task)


def cancel_if_possible(task: asyncio.Future[Any]) -> None:
    """Cancel a task in a ``finally``, where the loop may be closed: the garbage collector ends a coroutine that was
    still waiting then. An error of the task's would take the place of ``GeneratorExit``, which callers go by."""
    with contextlib.suppress(RuntimeError):  # the loop is closed
        task.cancel()


def on_thread(name: str, call: Callable[..., T], *arguments: Any) -> concurrent.futures.Future[T]:
    """Run a blocking call on a daemon thread of its own.

    The loop's executor may be full of the user's work, and the end of the process would wait for its threads.
    """
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
