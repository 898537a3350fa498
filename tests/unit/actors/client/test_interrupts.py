"""An exception out of a handler of a signal (Ctrl-C, or one of the user's) anywhere in our code, and then life goes on.

Python runs handlers after calls, at the begin of functions and at the end of loops: there, one after the other, the
exception is raised. The call may have been made or not; the calls after it, and those of other threads, are answered,
locks are free, and collection goes on.
"""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from lab.collector import thresholds
from lab.interrupts import Interrupt, Interrupted
from lab.onemember import in_thread, one_member
from lab.patience import PATIENCE, until
from raykeeper import Client, KeeperError, ReentrantCall
from raykeeper.actors import finalizer_guard
from raykeeper.actors.transport import client_lanes, lane_retry
from raykeeper.actors.transport.client_lanes import LaneTransport


@contextmanager
def connected(*, by_lane: bool) -> Iterator[Client]:
    with (
        pytest.MonkeyPatch.context() as patch,
        one_member(by_lane=by_lane) as member,
        member.client() as client,
    ):
        # Lanes that interrupts end at once look like those that a firewall swallows: no pause may grow to minutes.
        for name in ("LANE_PAUSE_S", "LANE_UNREACHABLE_PAUSE_S"):
            patch.setattr(lane_retry, name, 0.001)
        patch.setattr(client_lanes, "LANE_PAUSE_S", 0.001)
        yield client


@pytest.fixture(scope="module", params=["by call", "by lane"])
def kv(request: pytest.FixtureRequest) -> Iterator[Client]:
    with connected(by_lane=request.param == "by lane") as client:
        yield client


def come_to_rest(kv: Client) -> None:
    """An interrupt may end a lane, and leaves work for the timer thread: the next call is to find a lane for itself."""
    hub = kv._hub(1.0)
    deadline = time.monotonic() + PATIENCE
    while isinstance(hub.transport, LaneTransport) and not (
        all(route.lane is not None for route in hub.transport._routes.values())
        and hub._timer.wakes_at > -math.inf
        and not hub._timer._soon
    ):
        assert time.monotonic() < deadline, "no lane is opened"
        kv.get("k", timeout=PATIENCE)


def locked(kv: Client, place: int) -> None:
    with kv.lock(f"l{place}", ttl=5):
        pass


def watched(kv: Client, place: int) -> None:
    with kv.watch("k"):
        pass


def leased(kv: Client, place: int) -> None:
    with kv.lease(10):
        pass


CALLS: dict[str, Callable[[Client, int], object]] = {
    "put": lambda kv, place: kv.put("k", "v"),
    "get": lambda kv, place: kv.get("k"),
    "leases": lambda kv, place: kv.leases(),
    "watch": watched,
    "lease": leased,
    "lock": locked,
}


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("what", CALLS)
def test_an_interrupt_anywhere_leaves_everything_in_order(kv: Client, what: str) -> None:
    before = thresholds()
    missed = 0
    reads_itself = what in ("put", "get") and isinstance(kv._hub(1.0).transport, LaneTransport)
    """The caller reads the lane; with a watch's poll on it, it would not."""
    everywhere = set()
    for place in range(1, 5000, 1 if what in ("put", "get") else 11):
        come_to_rest(kv)
        interrupted = Interrupted(place)
        missed = 0 if interrupted.run(partial(CALLS[what], kv, place)) else missed + 1
        everywhere.add(interrupted.where)
        assert threading.get_ident() not in finalizer_guard._deferring, place
        kv.put("after", "v", timeout=PATIENCE)
        kv.get("after", timeout=PATIENCE)
        kv.get("after", serializable=True, timeout=PATIENCE)
        if place % 5 == 1 and not reads_itself:
            with kv.watch("k", timeout=PATIENCE):
                pass
        if missed == (10 if reads_itself else 1):  # a caller whose reply another thread has read takes fewer steps
            break
    else:
        pytest.fail("there is no end to it")
    assert place > 50
    if reads_itself:
        assert everywhere.issuperset({"submit", "read_for", "take_in", "feed", "on_reply", "_answered"})
    gc.collect()  # coroutines that were interrupted before they began
    for each in range(1, place, 11) if what == "lock" else ():
        lock = kv.lock(f"l{each}")
        assert lock.acquire(timeout=PATIENCE), "what was interrupted is given back, or its TTL ends it"
        lock.release()
    assert thresholds() == before
    hub = kv._hub(1.0)
    assert hub.read_locked(lambda: hub._dispatch_core.pending) == 0
    assert hub.read_locked(lambda: [outbox.in_flight for outbox in hub._dispatch_core._outboxes]) == [0, 0, 0]
    assert hub.read_locked(lambda: hub._dispatch_core._session.idle)


@pytest.mark.filterwarnings("ignore:coroutine")
def test_an_interrupt_while_a_lane_is_opened_leaves_a_member_to_which_one_can_be_opened() -> None:
    with connected(by_lane=True) as kv:
        transport: Any = kv._hub(1.0).transport
        for place in range(1, 5000):
            come_to_rest(kv)
            (route,) = transport._routes.values()
            route.lane.connection.shut_down(abruptly=True)
            until(lambda route=route: route.lane is None, what="a lane that has ended")
            time.sleep(0.002)  # the longest pause of a retry, here
            if not Interrupted(place).run(lambda: kv.get("k", timeout=PATIENCE)):
                break
        else:
            pytest.fail("there is no end to it")
        come_to_rest(kv)
        assert place > 50


async def several(kv: Client, place: int) -> None:
    """Calls of several coroutines travel together."""
    await asyncio.gather(
        kv.aio.put(f"k{place}", "v", timeout=PATIENCE),
        kv.aio.get("k", timeout=PATIENCE),
        kv.aio.get("k", serializable=True, timeout=PATIENCE),
    )


async def async_leased(kv: Client, place: int) -> None:
    async with await kv.aio.lease(10, timeout=PATIENCE) as lease:
        await kv.aio.time_to_live(lease, timeout=PATIENCE)


async def async_locked(kv: Client, place: int) -> None:
    async with kv.aio.lock(f"a{place}", ttl=5):
        pass


async def async_watched(kv: Client, place: int) -> None:
    async with await kv.aio.watch("w", timeout=PATIENCE) as watch:
        await kv.aio.put("w", "v", timeout=PATIENCE)
        assert await watch.next() is not None


COROUTINES: dict[str, Callable[[Client, int], Coroutine[Any, Any, None]]] = {
    "several": several,
    "lease": async_leased,
    "lock": async_locked,
    "watch": async_watched,
}


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("what", COROUTINES)
def test_an_interrupt_anywhere_in_a_loop_leaves_no_coroutine_waiting(
    kv: Client, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised in a coroutine, which ends of it, or in what the loop calls for all of them: then the loop reports
    it and runs on, and each call still ends within its timeout."""
    monkeypatch.setattr("raykeeper.actors.client.watch.ASYNC_WATCH_CHECK_S", 0.5)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)

    def go(work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        loop.run_until_complete(asyncio.wait([task], timeout=PATIENCE))
        assert task.done(), "a call hangs"
        if not task.cancelled() and task.exception() is not None:
            assert isinstance(task.exception(), (Interrupt, KeeperError)), task.exception()

    for place in range(1, 5000, 1 if what == "several" else 13):
        come_to_rest(kv)
        reached = Interrupted(place).run(lambda place=place: go(COROUTINES[what](kv, place)))
        assert threading.get_ident() not in finalizer_guard._deferring, place
        loop.run_until_complete(several(kv, place))
        if not reached:
            break
    else:
        pytest.fail("there is no end to it")
    assert place > 50
    loop.run_until_complete(kv.aio.put("after", "v", timeout=PATIENCE))
    loop.close()


def test_a_signal_handler_may_call_while_its_thread_waits() -> None:
    """Wherever it strikes, it gets an answer or is refused, and the call that it interrupted goes on."""
    answered = refused = 0
    with connected(by_lane=True) as kv:
        come_to_rest(kv)

        def handle(*_: object) -> None:
            nonlocal answered, refused
            try:
                kv.get("k", timeout=PATIENCE)
                answered += 1
            except ReentrantCall:
                refused += 1
            signal.setitimer(signal.ITIMER_REAL, 0.0007)

        before = signal.signal(signal.SIGALRM, handle)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0007)
            deadline = time.monotonic() + PATIENCE
            while answered < 100:
                kv.put("k", "v", timeout=PATIENCE)
                assert time.monotonic() < deadline
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        kv.put("after", "v", timeout=PATIENCE)


def test_a_handler_that_has_interrupted_a_send_is_refused() -> None:
    """Another thread may have the lane's lock by then, and wait for the connection's; and others wait for the lane's,
    with what they have to send, which may be the handler's own request."""
    with connected(by_lane=True) as kv:
        come_to_rest(kv)
        transport: Any = kv._hub(1.0).transport
        (lane,) = transport._by_fd.values()

        def change() -> None:
            with lane._lock:
                lane.connection.set_reading(lane.connection.is_reading())

        def call_in_the_middle_of_sending() -> None:
            with lane.connection._lock:
                threading.Thread(target=change, daemon=True).start()
                while lane._lock.acquire(blocking=False):  # until the other thread has it
                    lane._lock.release()
                with pytest.raises(ReentrantCall):
                    kv.put("k", "v", timeout=PATIENCE)
                with pytest.raises(ReentrantCall):
                    kv.get("k", timeout=PATIENCE)
                transport.take_back()

        in_thread(call_in_the_middle_of_sending).result()
        kv.put("after", "v", timeout=PATIENCE)
