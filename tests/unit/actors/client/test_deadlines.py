"""No call of the public surface takes longer than its timeout, whatever the cluster does; a table that must be whole.

The table is ``lab/client/surface.py``. A public call that is in none of its rows makes a test fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from lab.client.surface import ASYNC, ENDLESS, LOCAL, PLAIN, ROWS, SYNC, TIMEOUT, TTL, chosen, prepared
from lab.onemember import OneMember, one_member
from lab.patience import PATIENCE, Slowness
from raykeeper import Client, KeeperError, Unavailable
from raykeeper.actors import ray_calls
from raykeeper.actors.client import hub_pool
from raykeeper.actors.deadline import covering, time_left, uncovered
from raykeeper.actors.interruptible import Places
from raykeeper.actors.ray_calls import in_time
from raykeeper.actors.recipes.sync_async import resolved, run_sync
from raykeeper.limits import CLEANUP_GRACE_S, MAX_RAY_HELPERS
from raykeeper.schema.frames import Refusal, Refused

SLACK = 4.0
"""Of a machine that does much else at the same time; and ten times as much as it keeps a thread waiting meanwhile."""

# --- the table is whole ----------------------------------------------------------------------------------------------

ENDS = {"__enter__": "__aenter__", "__exit__": "__aexit__", "__next__": "__anext__", "__len__": "__len__"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_every_public_call_is_in_the_table(asynchronous: bool) -> None:
    missing = []
    for kind, made in (ASYNC if asynchronous else SYNC).items():
        known = {name for each, name in ROWS if each == kind}
        known |= set(f"{LOCAL.get(kind, '')} {ENDLESS.get(kind, '')}".split())
        for name, short in ENDS.items():
            if hasattr(made, short if asynchronous else name) and name not in known:
                missing.append(f"{kind}.{name}")
        for name in dir(made):
            if not name.startswith("_") and callable(getattr(made, name)) and name not in known:
                missing.append(f"{kind}.{name}")
    assert not missing


# --- what is wrong with the cluster ----------------------------------------------------------------------------------


@contextlib.contextmanager
def silence(one: OneMember) -> Iterator[None]:
    """As of members that are stopped: no answer to anything."""
    one.cut = True
    try:
        yield
    finally:
        one.cut = False


@contextlib.contextmanager
def refusal(one: OneMember) -> Iterator[None]:
    """As of members whose queues are full."""
    full = msgspec.msgpack.encode(Refused(Refusal.OVERLOADED, message="the queue is full"))

    def refuse(member: int, frame: bytes, done: Any) -> None:
        one._threads.submit(done, full)

    one.send = one.poll = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        del one.send, one.poll


class Late:
    """How long each call took, and its outcome."""

    def __init__(self) -> None:
        self.late: list[str] = []
        self.odd: list[str] = []
        self._took: dict[str, tuple[float, str]] = {}

    def judge(self, slowness: float) -> Late:
        bound = TIMEOUT + CLEANUP_GRACE_S + SLACK + 10 * slowness
        self.late += [
            f"{name}: {took:.1f} s, {said}" for name, (took, said) in list(self._took.items()) if took > bound
        ]
        return self

    def note(self, what: tuple[str, str], took: float, outcome: object) -> None:
        name = ".".join(what)
        self._took[name] = took, repr(outcome)
        if isinstance(outcome, BaseException) and not isinstance(outcome, (KeeperError, StopIteration)):
            self.odd.append(f"{name}: {outcome!r}")


def run_calls(calls: dict[tuple[str, str], Callable[[], Any]]) -> Late:
    noted = Late()

    def run(what: tuple[str, str], call: Callable[[], Any]) -> None:
        begun = time.monotonic()
        try:
            outcome = call()
        except BaseException as error:
            outcome = error
        noted.note(what, time.monotonic() - begun, outcome)

    threads = {what: threading.Thread(target=run, args=(what, call), daemon=True) for what, call in calls.items()}
    with Slowness() as machine:
        for thread in threads.values():
            thread.start()
        end = time.monotonic() + PATIENCE
        for what, thread in threads.items():
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                noted.late.append(f"{'.'.join(what)}: never came back")
    return noted.judge(machine.worst)


async def run_async(calls: dict[tuple[str, str], Callable[[], Any]]) -> Late:
    noted = Late()

    async def run(what: tuple[str, str], call: Callable[[], Any]) -> None:
        begun = time.monotonic()
        try:
            outcome = await resolved(call())
        except BaseException as error:
            outcome = error
        noted.note(what, time.monotonic() - begun, outcome)

    with Slowness() as machine:
        tasks = {what: asyncio.ensure_future(run(what, call)) for what, call in calls.items()}
        await asyncio.wait(tasks.values(), timeout=PATIENCE)
    noted.late += [f"{'.'.join(what)}: never came back" for what, task in tasks.items() if not task.done()]
    return noted.judge(machine.worst)


@pytest.mark.parametrize("trouble", [silence, refusal])
def test_no_call_outlasts_its_timeout(trouble: Any) -> None:
    with one_member() as one:
        kv = one.client()
        calls = {what: run_sync(prepared(what, kv.with_timeout(TIMEOUT))) for what in chosen(False)}
        with trouble(one):
            noted = run_calls(calls)
        assert not noted.late
        assert not noted.odd


@pytest.mark.parametrize("trouble", [silence, refusal])
def test_no_coroutine_outlasts_its_timeout(trouble: Any) -> None:
    async def play(one: OneMember) -> Late:
        kv = one.client().aio
        calls = {what: await prepared(what, kv.with_timeout(TIMEOUT)) for what in chosen(True)}
        with trouble(one):
            return await run_async(calls)

    with one_member() as one:
        noted = asyncio.run(play(one))
        assert not noted.late
        assert not noted.odd


# --- the first call of a handle --------------------------------------------------------------------------------------


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray's control service answers nothing: a call to it is stuck."""
    thaw = threading.Event()

    def stuck(name: str) -> Any:
        in_time(thaw.wait, 60.0)
        raise AssertionError("it was thawed")

    monkeypatch.setattr(hub_pool, "make_transport", stuck)
    monkeypatch.setattr(hub_pool, "_hubs", {})
    monkeypatch.setattr(ray_calls, "_helpers", Places(512))
    yield
    thaw.set()


def test_no_first_call_outlasts_its_timeout(frozen: None) -> None:
    kv = Client("frozen", 7, timeout=TIMEOUT)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for what in chosen(False, PLAIN):
        fresh = pickle.loads(pickle.dumps(kv))
        calls[what] = run_sync(ROWS[what](fresh))  # type: ignore[arg-type]
    calls["connect", ""] = lambda: hub_pool.open_hub("frozen", TIMEOUT)
    noted = run_calls(calls)
    assert not noted.late
    assert not noted.odd


def test_no_first_coroutine_outlasts_its_timeout(frozen: None) -> None:
    async def play() -> Late:
        kv = Client("frozen", 7, timeout=TIMEOUT)
        calls = {what: await ROWS[what](pickle.loads(pickle.dumps(kv)).aio) for what in chosen(True, PLAIN)}
        return await run_async(calls)

    noted = asyncio.run(play())
    assert not noted.late
    assert not noted.odd


def test_a_first_call_that_ray_did_not_answer_had_no_effect(frozen: None) -> None:
    with pytest.raises(Unavailable, match="control service") as caught:
        Client("frozen", 7, timeout=0.1).put("k", "v")
    assert caught.value.applied is False


def test_helpers_are_few_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_calls, "_helpers", Places(2))
    thaw = threading.Event()
    with covering(0.1), pytest.raises(Unavailable):
        in_time(thaw.wait)
    with covering(0.1), pytest.raises(Unavailable):
        in_time(thaw.wait)
    with covering(0.1), pytest.raises(Unavailable, match=f"{MAX_RAY_HELPERS} calls"):
        in_time(int)
    thaw.set()
    with covering(PATIENCE):
        assert in_time(int, "7") == 7
        with pytest.raises(ValueError):
            in_time(int, "x")


def test_without_a_deadline_ray_is_called_on_the_same_thread() -> None:
    assert in_time(threading.get_ident) == threading.get_ident()
    with covering(PATIENCE):
        assert in_time(threading.get_ident) != threading.get_ident()
        with uncovered():
            assert in_time(threading.get_ident) == threading.get_ident()


# --- deadlines within deadlines --------------------------------------------------------------------------------------


def test_a_deadline_inside_another_never_makes_it_later() -> None:
    assert time_left() == float("inf")
    with covering(5000.0):
        with covering(100_000.0):
            assert time_left() <= 5000.0
        with covering(1000.0):
            assert time_left() <= 1000.0
        with covering(None):
            assert 1000.0 < time_left() <= 5000.0
        with uncovered():
            assert time_left() == float("inf")
    assert time_left() == float("inf")


# --- cleaning up -----------------------------------------------------------------------------------------------------


def test_what_could_not_be_cleaned_up_in_time_is_cleaned_up_later() -> None:
    with one_member() as one:
        kv = one.client()
        holder = kv.lock("l", ttl=TTL)
        assert holder.acquire()
        waiter = kv.with_timeout(TIMEOUT).lock("l", ttl=TTL)
        timer = threading.Timer(0.2, lambda: setattr(one, "cut", True))
        timer.start()
        assert waiter.acquire(TIMEOUT) is False
        timer.join()
        one.cut = False
        deadline = time.monotonic() + PATIENCE
        while kv.lock("l").waiters():
            assert time.monotonic() < deadline, "a ticket was left over"
        holder.release()
        gc.collect()
