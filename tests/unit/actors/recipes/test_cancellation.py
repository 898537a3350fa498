"""Every recipe cancelled at each of its awaits, in the ways in which a task can be.

Cancelling a coroutine gives its call up, as Ctrl-C does in a thread: it leaves nothing, and works when it is used
again. An answer that comes in the same turn of the loop as the cancellation is lost; a cancellation may come again
while the first one is being taken in.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from lab.client.scenarios import PLAIN, SCENARIOS, TTL, nothing_left, wait_until
from lab.onemember import OneMember
from raykeeper import Client, KeeperError

MOST = 60
"""Awaits of one scenario; there are fewer."""


class Cancelled:
    """Awaits what a coroutine awaits, and cancels the task at the nth time."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], left: int, cancel: Callable[[Any, Any], None]) -> None:
        self.left = left
        self._coroutine = coroutine
        self._cancel = cancel

    def __await__(self) -> Generator[Any, Any, None]:
        error: BaseException | None = None
        while True:
            try:
                waiting = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
            except StopIteration:
                return
            error = None
            if self.left:
                self.left -= 1
                if not self.left:
                    self._cancel(asyncio.current_task(), waiting)
            try:
                yield waiting
            except BaseException as raised:
                error = raised


def at_once(task: Any, waiting: Any) -> None:
    asyncio.get_running_loop().call_soon(task.cancel)


def with_the_answer(task: Any, waiting: Any) -> None:
    if waiting is None:  # it only lets others run
        at_once(task, waiting)
    else:
        waiting.add_done_callback(lambda _: task.cancel())


def again_and_again(task: Any, waiting: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(task.cancel)
    loop.call_soon(loop.call_soon, task.cancel)
    loop.call_later(0.001, task.cancel)


@pytest.mark.parametrize("how", [at_once, with_the_answer, again_and_again], ids=lambda how: how.__name__)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_cancelled_at_each_await(scenario: Callable[..., Any], how: Callable[[Any, Any], None], kv: Client) -> None:
    with nothing_left(kv):
        for number in range(1, MOST):
            place = kv.namespace(f"{number}/")
            more = (place.with_timeout(PLAIN),) if scenario.__code__.co_argcount > 1 else ()
            steps = Cancelled(scenario(place.aio, *more), number, how)

            async def main(steps: Cancelled = steps) -> BaseException | None:
                task = asyncio.ensure_future(_await(steps))
                await asyncio.wait([task])
                return asyncio.CancelledError() if task.cancelled() else task.exception()

            error = asyncio.run(main())
            assert error is None or isinstance(error, (KeeperError, asyncio.CancelledError)), error
            if steps.left:
                assert error is None
                break
            asyncio.run(_await(scenario(place.aio, *more)))
        else:
            pytest.fail("it awaits more often than the test takes")
        assert number > 1


async def _await(steps: Awaitable[None]) -> None:
    await steps


@pytest.mark.filterwarnings("error")
def test_what_waits_when_its_loop_is_closed_is_let_go(kv: Client, member: OneMember) -> None:
    """It is not cancelled: the collector finalizes its coroutine, outside of any loop."""
    before = member.leases
    with kv.lock("l", TTL), nothing_left(kv):
        loop = asyncio.new_event_loop()
        waiting = [
            loop.create_task(what)
            for what in (
                kv.aio.lock("l", TTL).acquire(),
                kv.aio.queue("q", TTL).claim(),
                kv.aio.barrier("b", 2, TTL).wait(),
                kv.aio.latch("l", 2).wait(),
                kv.aio.election("e").observe().next(),
            )
        ]
        for task in waiting:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        # All wait for somebody else: a lease whose grant is on its way just then would last for its TTL.
        core = kv._known_hub()._dispatch_core
        loop.run_until_complete(_until(lambda: len(member.leases - before) == 4 and not core.pending))
        loop.close()
        waiting.clear()
        del task
        gc.collect()
        wait_until(lambda: len(member.leases - before) == 1)


async def _until(condition: Callable[[], bool]) -> None:
    """True, and true again after the loop has run a little: what it was told of meanwhile has been taken in."""
    for _ in range(10):
        while not condition():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.001)
