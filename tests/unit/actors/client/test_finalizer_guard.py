"""No code of the user's runs under our locks or on our threads, and what it calls from anywhere ends."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from lab.collector import thresholds
from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, until
from raykeeper import Client, KeeperError, ReentrantCall
from raykeeper.actors import finalizer_guard
from raykeeper.actors.client.leases import LossEvent
from raykeeper.actors.finalizer_guard import LockFreeEvent, ServiceQueue, ServiceThread, Wakeup, gc_deferred


@pytest.fixture(scope="module")
def member() -> Iterator[OneMember]:
    with one_member() as made:
        yield made


@pytest.fixture
def kv(member: OneMember) -> Iterator[Client]:
    with member.client() as client:
        yield client


@pytest.fixture
def eager() -> Iterator[None]:
    """The collector comes with nearly every allocation."""
    before = thresholds()
    gc.set_threshold(1, 5, 1000)
    # Who deferred it just then goes on with these thresholds; a thread that has ended is not waited for.
    until(lambda: not finalizer_guard._deferring & {thread.ident for thread in threading.enumerate()})
    yield
    gc.set_threshold(*before)
    while thresholds() != before:  # a thread of ours has read the others just before
        gc.set_threshold(*before)


def in_time(work: Any, seconds: float = 60.0) -> list[BaseException]:
    """Do something on a thread that may hang; its errors."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return errors


class Cycle:
    """Garbage whose destructor calls something."""

    def __init__(self, dying: Any) -> None:
        self.me = self
        self.dying = dying

    def __del__(self) -> None:
        die(self.dying)


def die(dying: Any) -> None:
    """Do what a destructor does; or later, if the collector has come on a thread of the lab's member. That one stands
    for another process, where no destructor of the user's runs, and could not answer meanwhile."""
    if threading.current_thread().name.startswith(("answers", "member loop", "maintenance")):
        Cycle(dying)
    else:
        dying()


def where() -> tuple[bool, bool]:
    return finalizer_guard.on_service_thread(), threading.get_ident() in finalizer_guard._deferring


SELDOM = 5
"""In a hundred times, a destructor may be met where none should be: the guard's own theory says when."""


def test_destructors_find_no_lock_held_and_none_of_our_threads(kv: Client, eager: None) -> None:
    seen: list[tuple[bool, bool]] = []
    with kv.lease(30):
        for number in range(100):
            Cycle(lambda: seen.append(where()))
            kv.put("k", str(number))
    until(lambda: (gc.collect(), len(seen) == 100)[1])  # another thread may be collecting
    assert len([each for each in seen if each != (False, False)]) <= SELDOM


@pytest.mark.parametrize("how", ["woken", "in time", "an entry"])
def test_a_service_thread_that_wakes_up_collects_nothing(eager: None, how: str) -> None:
    """What is garbage by then is collected when another thread allocates."""
    seen: list[tuple[bool, bool]] = []
    rounds = [0]
    wakeup = Wakeup()
    entries: ServiceQueue[int] = ServiceQueue()
    over = threading.Event()

    def serve() -> None:
        thread = ServiceThread()
        while not over.is_set():
            if how == "an entry":
                entries.take(thread, PATIENCE)
            else:
                wakeup.wait(0.001 if how == "in time" else PATIENCE, thread)
            rounds[0] += 1
        thread.close()

    def wake() -> None:
        if how == "an entry":
            entries.put(1)
        else:
            wakeup.release()

    service = threading.Thread(target=serve, daemon=True)
    service.start()
    deadline = time.monotonic() + PATIENCE
    try:
        for _ in range(100):
            gc.disable()
            Cycle(lambda: seen.append(where()))
            before = rounds[0]
            if how != "in time":
                wake()  # which allocates; the thread goes on when this one lets it
            gc.enable()
            while rounds[0] == before and time.monotonic() < deadline:
                time.sleep(0)
    finally:
        over.set()
        wake()
        service.join(PATIENCE)
    assert not service.is_alive()
    until(lambda: (gc.collect(), len(seen) == 100)[1])  # another thread may be collecting
    assert len([each for each in seen if each != (False, False)]) <= SELDOM


CALLS = {
    "put": lambda kv: kv.put("bye", "1"),
    "get": lambda kv: kv.get("k"),
    "lease": lambda kv: kv.lease(30, keep_alive=False),
    "close": lambda kv: kv.namespace("x").close(),
    "watch": lambda kv: kv.watch("k").cancel(),
    "lock": lambda kv: kv.lock("dying", 30).holder(),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_destructor_may_call_anything(kv: Client, eager: None, what: str) -> None:
    def work() -> None:
        for number in range(30):
            Cycle(lambda: CALLS[what](kv))
            kv.put("k", str(number))

    assert in_time(work) == []


def test_watches_and_locks_that_are_forgotten_in_cycles_are_ended(kv: Client, eager: None) -> None:
    class Holder:
        def __init__(self) -> None:
            self.me = self
            self.watch = kv.watch("k")
            self.lock = kv.lock("forgotten", 30)
            self.lock.acquire()

        def __del__(self) -> None:
            die(self.end)

        def end(self) -> None:
            self.watch.cancel()
            self.lock.release()

    def work() -> None:
        for number in range(10):
            Holder()
            gc.collect()
            kv.put("k", str(number))

    assert in_time(work) == []


def test_a_destructor_that_takes_long_holds_nobody_up(member: OneMember, kv: Client, eager: None) -> None:
    done = threading.Event()
    threads: list[str] = []

    def dying() -> None:
        threads.append(threading.current_thread().name)
        done.wait(PATIENCE)

    def allocate() -> None:
        while not threads:
            Cycle(dying)
            kv.put("k", "v")

    other = threading.Thread(target=allocate, daemon=True)
    other.start()
    deadline = time.monotonic() + PATIENCE
    while not threads:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    gc.disable()  # whatever else is garbage waits
    try:
        assert in_time(lambda: [kv.put("k", "w", timeout=PATIENCE) for _ in range(50)]) == []
        assert not threads[0].startswith(("raykeeper-hub", "raykeeper-lanes")), threads
    finally:
        done.set()
        gc.enable()
        other.join(PATIENCE)


def test_a_signal_handler_never_waits_for_what_it_has_interrupted(kv: Client) -> None:
    """The handler comes in the middle of anything, under the lock too. Every call in it ends, one way or another."""
    outcomes: set[str] = set()
    watch = kv.watch("k")
    handled = threading.Event()

    def handler(number: int, frame: Any) -> None:
        try:
            kv.put("signalled", "1", timeout=PATIENCE)
            outcomes.add("done")
        except ReentrantCall:
            outcomes.add("refused")
        finally:
            handled.set()

    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    assert main is not None
    stop = threading.Event()

    def storm() -> None:
        while not stop.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)
            while not handled.wait(0.01) and not stop.is_set():
                pass  # one at a time: what is interrupted goes on in between
            handled.clear()
            stop.wait(0.001)

    thread = threading.Thread(target=storm, daemon=True)
    thread.start()
    try:
        for number in range(200):
            try:
                kv.put("k", str(number), timeout=PATIENCE)
            except ReentrantCall:
                pytest.fail("only the handler's own calls are refused")
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        watch.cancel()
    assert "done" in outcomes
    until(lambda: not deferred())  # one of our threads may be awake
    assert in_time(lambda: kv.put("k", "after")) == []


def test_a_call_in_the_middle_of_the_hub_is_refused_and_a_cancellation_is_not_lost(kv: Client) -> None:
    watch, lock = kv.watch("k"), kv.lock("middle", 30)
    lock.acquire()
    hub = kv._hub(1.0)
    found: dict[str, Any] = {}

    def middle(now: float) -> None:
        for name, call in CALLS.items():
            try:
                found[name] = call(kv)
            except KeeperError as error:
                found[name] = error
        watch.cancel()
        lock.release()

    assert in_time(lambda: hub.run_locked(middle)) == []
    assert {name for name, value in found.items() if isinstance(value, ReentrantCall)} == set(CALLS) - {"close"}
    assert watch.next(timeout=PATIENCE) is None
    assert kv.lock("middle", 30).acquire(timeout=PATIENCE), "released in the middle, and free long before its TTL"


def deferred() -> bool:
    return gc.get_threshold()[0] == finalizer_guard._DEFERRED_THRESHOLD


def test_collection_is_deferred_for_a_moment_and_looks_on() -> None:
    before = thresholds()
    with gc_deferred:
        assert deferred()
        assert gc.isenabled()
        with gc_deferred:
            pass
    assert thresholds() == before


def set_low() -> None:
    gc.set_threshold(5, 6, 7)


def never() -> None:
    gc.set_threshold(0)


CHOICES = {"disable": gc.disable, "enable": gc.enable, "freeze": gc.freeze, "set_threshold": set_low, "never": never}


@pytest.mark.parametrize("before", [gc.enable, gc.disable, set_low, never])
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_what_the_user_chooses_meanwhile_stays(before: Any, choice: Any) -> None:
    """In another thread, or in a handler of a signal; whatever the state was."""

    def chosen(inside: bool) -> Any:
        users = thresholds()
        try:
            before()
            if inside:
                with gc_deferred:
                    choice()
            else:
                choice()
            with gc_deferred:
                pass
            return gc.isenabled(), thresholds(), gc.get_freeze_count() > 0
        finally:
            gc.enable()
            gc.unfreeze()
            gc.set_threshold(*users)

    assert chosen(True) == chosen(False)


def test_thresholds_that_the_user_kept_from_such_a_moment_are_recognized() -> None:
    before = thresholds()
    with gc_deferred:
        kept = gc.get_threshold()
    gc.set_threshold(*kept)
    with gc_deferred:
        pass
    assert thresholds() == before


def test_a_child_that_was_forked_in_such_a_moment_collects() -> None:
    before = thresholds()
    inside, go = threading.Event(), threading.Event()

    def work() -> None:
        with gc_deferred:
            inside.set()
            go.wait(PATIENCE)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        os._exit(0 if gc.get_threshold() == before else 1)
    _, status = os.waitpid(child, 0)
    go.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


def interrupted_at(place: int, work: Any) -> bool:
    """Ctrl-C at the nth instruction of the module in this thread; whether there are that many."""
    count = 0

    def look(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == place:
                sys.settrace(None)
                raise KeyboardInterrupt
        return look

    sys.settrace(lambda frame, *_: look if frame.f_code.co_filename == finalizer_guard.__file__ else None)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_ctrl_c_in_the_middle_does_not_defer_collection_forever(kv: Client) -> None:
    before = thresholds()
    me = threading.get_ident()
    place = 1
    while interrupted_at(place, lambda: kv.get("k")):
        assert me not in finalizer_guard._deferring, place
        deadline = time.monotonic() + PATIENCE
        while gc.get_threshold() != before:  # one of our threads may be awake
            assert time.monotonic() < deadline, place
            time.sleep(0.001)
        place += 1
    assert place > 20


def test_threads_that_defer_collection_at_once_end_it_together() -> None:
    inside, go = threading.Barrier(3), threading.Event()

    def work() -> None:
        with gc_deferred:
            inside.wait(PATIENCE)
            go.wait(PATIENCE)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(PATIENCE)
    with gc_deferred:
        pass
    assert deferred()
    go.set()
    for thread in threads:
        thread.join()
    assert not deferred()


@pytest.mark.parametrize("others", [1, 2])
def test_in_whatever_order_threads_take_their_steps_the_thresholds_come_back(others: int) -> None:
    """One thread comes and goes; at each of its steps any other may come, or go if it has come before, or both."""
    spec = importlib.util.spec_from_file_location("raykeeper.actors.alone", finalizer_guard.__file__)
    assert spec is not None
    assert spec.loader is not None
    alone: Any = importlib.util.module_from_spec(spec)  # real threads have the other one
    spec.loader.exec_module(alone)
    times = [None, *((comes, goes) for comes in range(12) for goes in range(comes, 13))]
    for plan in itertools.product(times, repeat=others):
        assert Play(alone, plan).run() == USERS, plan
        assert not set(alone._deferring)


USERS = (700, 10, 10)


class Play:
    """Threads that come and go, each of the others at these steps of the first one's."""

    def __init__(self, module: Any, plan: Sequence[tuple[int, int] | None]) -> None:
        self._module = module
        self._plan = plan
        self._thresholds = USERS
        self._thread = 1
        self._step = 0
        module.get_ident = lambda: self._thread
        module.set_threshold, module.get_threshold = self._set, self._get
        module._deferring, module._thresholds = Steps(), USERS
        module._deferring.stepped = self._stepped

    def run(self) -> tuple[int, ...]:
        """The thresholds in the end."""
        self._module.gc_deferred.__enter__()
        self._module.gc_deferred.__exit__()
        for _ in range(13):  # who has not come or gone yet does now
            self._stepped()
        return self._thresholds

    def _stepped(self) -> None:
        if self._thread != 1:
            return
        for other, times in enumerate(self._plan, 2):
            self._thread = other
            if times is not None and times[0] == self._step:
                self._module.gc_deferred.__enter__()
            if times is not None and times[1] == self._step:
                self._module.gc_deferred.__exit__()
        self._thread = 1
        self._step += 1

    def _set(self, *to: int) -> None:
        self._stepped()
        self._thresholds = (*to, *USERS[len(to) :])

    def _get(self) -> tuple[int, ...]:
        self._stepped()
        return self._thresholds


class Steps(set[int]):
    """Each look at it is a step."""

    stepped: Callable[[], None] = staticmethod(lambda: None)

    def __bool__(self) -> bool:
        self.stepped()
        return set.__len__(self) > 0

    def __contains__(self, thread: object) -> bool:
        self.stepped()
        return set.__contains__(self, thread)


def test_a_service_thread_defers_collection_until_it_is_idle() -> None:
    def work() -> None:
        thread = ServiceThread()
        try:
            with gc_deferred:
                pass
            assert deferred()
            thread.idle()
            until(lambda: not deferred())  # another of our threads may be awake
            assert finalizer_guard.on_service_thread()
            thread.busy()
            assert deferred()
        finally:
            thread.close()
        assert not finalizer_guard.on_service_thread()

    assert in_time(work) == []
    assert not deferred()


# --- events ----------------------------------------------------------------------------------------------------------


def test_a_lock_free_event_is_an_event() -> None:
    event = LockFreeEvent()
    assert isinstance(event, threading.Event)
    assert not event.wait(0)
    assert not event.wait(0.01)
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(event.wait(PATIENCE))) for _ in range(5)]
    for thread in threads:
        thread.start()
    event.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert woken == [True] * 5
    assert event.wait()
    event.clear()
    assert not event.is_set()
    assert not event.wait(-1)
    assert not event._waiting


def test_a_lock_free_event_is_set_in_the_middle_of_a_wait_for_it(eager: None) -> None:
    event = LockFreeEvent()

    def work() -> None:
        for _ in range(200):
            Cycle(event.set)
            event.wait(0.0001)
            event.clear()

    assert in_time(work) == []


def test_a_loss_wakes_coroutines_outside_of_the_lock() -> None:
    told: list[Any] = []

    async def wait() -> None:
        loss = LossEvent(told.append)
        waiting = asyncio.ensure_future(loss._wait())
        await asyncio.sleep(0)
        loss.wake()
        assert told == [loss]
        loss.flush()
        await asyncio.wait_for(waiting, PATIENCE)

    asyncio.run(wait())
