"""Every recipe over a client that fails at its first, second, ... nth call, with and without asyncio.

Whatever happens to a call (refused; lost on its way there or back; given up by Ctrl-C or a cancelled task, before it
took effect or after), the recipe says so or goes on, leaves no place in a line, no lease that it keeps alive and no
thread, and works when it is used again. Leases are long here: were a place left behind, the next one would not get its
turn.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lab.client.scenarios import PLAIN, SCENARIOS, TTL, nothing_left, wait_until
from lab.onemember import OneMember
from raykeeper import Client, CompactedError, KeeperError, RequestTimeout, Unavailable
from raykeeper.actors.client.aio import AsyncKeyValueClient
from raykeeper.actors.client.watch import AsyncWatch, Watch
from raykeeper.actors.recipes.sync_async import run_sync

MOST = 40
"""Calls of one scenario; there are fewer."""
HOW = ("refused", "lost on its way", "answer lost", "given up before", "given up after")


# --- a client that fails ---------------------------------------------------------------------------------------------


class Failing:
    """Counts the calls of the scenario itself, and fails at one of them."""

    def __init__(self) -> None:
        self.left = 0
        """Calls until the one that fails; 0 for none."""
        self.how = ""
        self.owner: object = None

    @property
    def counts(self) -> bool:
        try:
            here: object = asyncio.current_task()
        except RuntimeError:
            here = None
        return self.owner is not None and (here or threading.current_thread()) is self.owner

    def due(self, handle: object) -> bool:
        if self.left and self.counts and getattr(handle, "timeout", None) != PLAIN:
            self.left -= 1
            return not self.left
        return False

    def error(self, cancelled: type[BaseException]) -> BaseException:
        if self.how == "refused":
            return Unavailable("refused by the test", applied=False)
        if self.how.startswith("given up"):
            return cancelled()
        return RequestTimeout("lost by the test", applied=None)

    @property
    def after(self) -> bool:
        return self.how in ("answer lost", "given up after")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    failing = Failing()

    def wrap(owner: type, name: str, undo: Callable[[Any], None] = lambda result: None) -> None:
        original = getattr(owner, name)

        def call(self: Any, *arguments: Any, **options: Any) -> Any:
            if not failing.due(self):
                return original(self, *arguments, **options)
            if failing.after:
                undo(original(self, *arguments, **options))
            raise failing.error(KeyboardInterrupt)

        async def call_async(self: Any, *arguments: Any, **options: Any) -> Any:
            if not failing.due(self):
                return await original(self, *arguments, **options)
            if failing.after:
                undo(await original(self, *arguments, **options))
            raise failing.error(asyncio.CancelledError)

        monkeypatch.setattr(owner, name, call_async if owner is AsyncKeyValueClient else call)

    def wrap_next(owner: type[Watch | AsyncWatch]) -> None:
        original: Any = owner.next

        def failed(cancelled: type[BaseException]) -> BaseException:
            return cancelled() if failing.how.startswith("given up") else CompactedError(1)

        def wait(self: Any, timeout: float | None = None) -> Any:
            if failing.due(self):
                raise failed(KeyboardInterrupt)
            return original(self, timeout)

        async def wait_async(self: Any, timeout: float | None = None) -> Any:
            if failing.due(self):
                raise failed(asyncio.CancelledError)
            return await original(self, timeout)

        monkeypatch.setattr(owner, "next", wait_async if owner is AsyncWatch else wait)

    for owner in (Client, AsyncKeyValueClient):
        wrap(owner, "_run")
        wrap(owner, "watch", lambda watch: watch._end())
    for kind in (Watch, AsyncWatch):
        wrap_next(kind)
    return failing


# --- driving them ----------------------------------------------------------------------------------------------------


def run(scenario: Callable[..., Any], kv: Client, failing: Failing, kind: str) -> BaseException | None:
    """Run a scenario with the failure that is set; what it ended in."""
    more = (kv.with_timeout(PLAIN),) if scenario.__code__.co_argcount > 1 else ()
    try:
        if kind == "sync":
            failing.owner = threading.current_thread()
            run_sync(scenario(kv, *more))
        else:

            async def main() -> None:
                failing.owner = asyncio.current_task()
                await scenario(kv.aio, *more)

            asyncio.run(main())
    except (KeeperError, KeyboardInterrupt, asyncio.CancelledError) as error:
        return error
    finally:
        failing.owner = None
    return None


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["sync", "aio"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_it_works_or_says_why_and_leaves_nothing(
    scenario: Callable[..., Any], kind: str, how: str, kv: Client, member: OneMember, failing: Failing
) -> None:
    failing.how = how
    with nothing_left(kv):
        for number in range(1, MOST):
            place = kv.namespace(f"{number}/")
            failing.left = number
            error = run(scenario, place, failing, kind)
            if failing.left:
                assert error is None
                break
            failing.left = 0
            assert run(scenario, place, failing, kind) is None, f"after {error!r} at call {number}"
        else:
            pytest.fail("it makes more calls than the test takes")
        assert number > 1


def keepers() -> int:
    return sum("'p'" in thread.name for thread in threading.enumerate())


def test_a_partitioner_that_was_left_and_joined_at_once_has_one_keeper(kv: Client) -> None:
    with kv.partitioner("p", 4, TTL) as share:
        for _ in range(5):
            share.leave()
            share.join()
        assert len(share.mine()) == 4
        wait_until(lambda: keepers() == 1)
    wait_until(lambda: keepers() == 0)


def test_a_partitioner_whose_first_round_failed_is_no_member_and_joins_again(kv: Client, failing: Failing) -> None:
    with kv.with_timeout(PLAIN).partitioner("p", 8, TTL) as one:
        assert len(one.mine()) == 8
        two = kv.partitioner("p", 8, TTL)
        failing.how, failing.owner = "refused", threading.current_thread()
        for number in (1, 2):  # it takes a place, and looks at the others'
            failing.left = number
            with pytest.raises(Unavailable):
                two.mine()
            assert two._logic.mine() == []
        failing.owner = None
        two.mine()
        wait_until(lambda: len(one.mine()) == len(two.mine()) == 4)
        two.leave()
        wait_until(lambda: len(one.mine()) == 8)


def test_a_partitioner_goes_on_after_failures_in_the_background(kv: Client, failing: Failing) -> None:
    with kv.partitioner("p", 8, TTL) as one, kv.with_timeout(PLAIN).partitioner("p", 8, TTL) as two:
        keeper = next(thread for thread in threading.enumerate() if "'p'" in thread.name)
        for number in range(1, 4):
            failing.how, failing.owner, failing.left = "answer lost", keeper, number
            two.leave()
            wait_until(lambda: len(one.mine()) == 8)
            two.join()
            wait_until(lambda: len(one.mine()) == len(two.mine()) == 4)


def test_a_partitioner_whose_event_loop_is_closed_gives_everything_back(kv: Client) -> None:
    share = kv.aio.partitioner("p", 4, TTL)

    async def main() -> None:
        await share.join()
        assert len(share.mine()) == 4

    asyncio.run(main())
    assert share.mine() == []


def test_what_a_registration_could_not_say_is_said_later(kv: Client, failing: Failing) -> None:
    entry = kv.registry("r").register("n", "here", TTL)
    failing.how, failing.owner, failing.left = "refused", threading.current_thread(), 1
    with pytest.raises(Unavailable):
        entry.update("there")
    failing.owner = None
    wait_until(lambda: [each.address for each in kv.registry("r").lookup("n")] == ["there"])
    entry._record.lease.lost.set()  # it is not registered now, as far as it knows
    entry.update("elsewhere")
    wait_until(lambda: "elsewhere" in [each.address for each in kv.registry("r").lookup("n")])
    entry.deregister()
