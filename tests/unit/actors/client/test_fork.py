"""In a forked child of a process that uses Ray nothing of ours ever hangs: it refuses at once, and says what to do."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lab.client import surface
from lab.client.surface import PLAIN, ROWS, TIMEOUT, TTL, chosen
from lab.onemember import OneMember, one_member
from raykeeper import ForkedProcess, KeeperError
from raykeeper.actors import ray_calls
from raykeeper.actors.client import hub_pool
from raykeeper.actors.client.loop_bridge import bridge_to
from raykeeper.actors.client.view import Call
from raykeeper.actors.recipes.sync_async import resolved, run_sync
from raykeeper.actors.transport import directory
from raykeeper.schema.operations import KeyRange, Range

PATIENCE = 100
"""Seconds for all that a child does."""
HUNG = 40.0
"""Seconds after which a call of it counts as one that hangs: far more than any timeout here."""


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> Iterator[OneMember]:
    """A member in a process that seems to use Ray: a way to it is refused in a forked child, as Ray's is."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))  # type: ignore[arg-type]
    with one_member() as one:
        way = hub_pool.make_transport

        def make(name: str) -> Any:
            ray_calls.check_not_forked()
            return way(name)

        hub_pool.make_transport = make
        yield one


def in_child(work: Callable[[], dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """What a forked child finds out."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            os.close(read)
            with os.fdopen(write, "w") as pipe:
                json.dump(work(), pipe)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert not os.WIFSIGNALED(status), "the child hangs"
    found: dict[str, list[Any]] = json.loads(said)
    return found


def outcome(call: Callable[[], Any]) -> list[Any]:
    begun = time.monotonic()
    try:
        made = call()
        said = "" if made is None or made is False else type(made).__name__
    except KeeperError as error:
        said = type(error).__name__
    except BaseException as error:
        said = f"!{error!r}"
    return [said, time.monotonic() - begun]


def all_of(calls: dict[tuple[str, str], Callable[[], Any]]) -> dict[str, list[Any]]:
    return {".".join(name): outcome(call) for name, call in calls.items()}


def prepared(one: OneMember) -> dict[tuple[str, str], Callable[[], Any]]:
    kv = one.client().with_timeout(TIMEOUT)
    return {what: run_sync(surface.prepared(what, kv)) for what in chosen(False)}


def check(found: dict[str, list[Any]]) -> None:
    assert {name: took for name, (_, took) in found.items() if took > HUNG} == {}
    assert {name: said for name, (said, _) in found.items() if said.startswith("!")} == {}
    fresh = {".".join(name) for name in PLAIN} - {"Following.next", "Client.close"}
    assert {name: said for name, (said, _) in found.items() if name in fresh and said != "ForkedProcess"} == {}


def test_every_call_on_what_existed_before_the_fork(one: OneMember) -> None:
    calls = prepared(one)
    check(in_child(lambda: all_of(calls)))
    assert one.client().put("k", "the parent goes on").revision > 0


def test_every_call_after_a_fork_that_happened_while_our_locks_were_held(one: OneMember) -> None:
    calls = prepared(one)
    share = one.client()._share
    assert share is not None
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with share.hub._lock, hub_pool._hubs_lock, directory.directory._lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        check(in_child(lambda: all_of(calls)))
    finally:
        done.set()
        thread.join()
    assert one.client().put("k", "the parent goes on").revision > 0


def test_every_coroutine_of_a_handle_that_came_along(one: OneMember) -> None:
    kv = one.client().with_timeout(TIMEOUT)

    async def play() -> dict[str, list[Any]]:
        found = {}
        for what in chosen(True, PLAIN):
            call = await ROWS[what](kv.aio)
            begun = time.monotonic()
            try:
                made = await resolved(call())
                said = "" if made is None or made is False else type(made).__name__
            except KeeperError as error:
                said = type(error).__name__
            found[".".join(what)] = [said, time.monotonic() - begun]
        return found

    found = in_child(lambda: asyncio.run(play()))
    found.pop("Partitioner.mine")  # of an asynchronous one, which joins by itself no more than any other
    check(found)


@pytest.mark.parametrize("number", [1, 2])
def test_coroutines_whose_calls_wait_for_the_loop_while_it_forks(one: OneMember, number: int) -> None:
    """Their handles were asked before the fork. One and many are submitted in ways of their own."""
    kv = one.client()
    found: dict[str, list[Any]] = {}

    async def play() -> None:
        await kv.aio.put("k", "the hub is open")
        hub = kv._hub(TIMEOUT)
        bridge = bridge_to(hub)
        calls = [asyncio.ensure_future(kv.aio.put(f"k{each}", "v")) for each in range(number)]
        await asyncio.sleep(0)
        waiting = [each for each, *_ in bridge._new]
        assert len(waiting) == number

        def work() -> dict[str, list[Any]]:
            said = {"submit": outcome(bridge._submit_new)}
            for each in waiting:
                said[f"call {len(said)}"] = [type(each.future.result()).__name__, 0.0]
            return said

        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with hub._lock:
                held.set()
                done.wait(PATIENCE)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(PATIENCE)
        try:
            found.update(in_child(work))
        finally:
            done.set()
            thread.join()
        await asyncio.gather(*calls)

    asyncio.run(play())
    assert len(found) == 1 + number
    assert {said for said, _ in found.values()} == {"ForkedProcess"}


def test_a_call_of_several_requests_that_is_forked_between_two(one: OneMember) -> None:
    """Its hub was looked for before the first."""
    kv = one.client().with_timeout(TIMEOUT)
    one.client().put("k", "the hub is open")
    hub = kv._hub(TIMEOUT)

    def call() -> None:
        said = hub.call(Call(Range(KeyRange(b"k"))), TIMEOUT)
        assert isinstance(said, KeeperError)
        raise said

    assert in_child(lambda: {"call": outcome(call)})["call"][0] == "ForkedProcess"


def test_a_handle_that_was_pickled_and_one_by_name(one: OneMember) -> None:
    pickled, name = pickle.dumps(one.client()), one.name
    found = in_child(
        lambda: {
            "pickled": outcome(lambda: pickle.loads(pickled).put("k", "v")),
            "connect": outcome(lambda: hub_pool.open_hub(name, TIMEOUT)),
        }
    )
    assert {said for said, _ in found.values()} == {"ForkedProcess"}


def test_what_is_lost_counts_as_lost_and_whoever_waits_is_told(one: OneMember) -> None:
    lease = one.client().lease(TTL)

    async def awaited() -> str:
        await asyncio.wait_for(asyncio.ensure_future(_wait(lease.lost)), HUNG)
        return "told"

    found = in_child(
        lambda: {
            "is_set": outcome(lambda: str(lease.lost.is_set())),
            "wait": outcome(lambda: str(lease.lost.wait())),
            "await": outcome(lambda: asyncio.run(awaited())),
            "remaining": outcome(lambda: None if lease.remaining() == 0 else "some"),
            "why": outcome(lambda: None if "forked" in lease.why_lost() else lease.why_lost()),
        }
    )
    assert [said for said, _ in found.values()] == ["str", "str", "str", "", ""]
    assert not lease.lost.is_set()


async def _wait(lost: Any) -> None:
    await lost


def test_the_end_of_a_child_touches_nothing_of_the_parents(one: OneMember) -> None:
    kv = one.client()
    kv.put("k", "v")
    leases = [kv.lease(TTL) for _ in range(3)]
    watch = kv.watch("k")

    def forget() -> dict[str, list[Any]]:
        nonlocal watch, kv
        leases.clear()
        del watch, kv
        hub_pool._close_all()
        return {"collect": outcome(lambda: __import__("gc").collect() and None)}

    in_child(forget)
    assert all(not lease.lost.is_set() for lease in leases)
    assert len(one.leases) == 3
    kv.put("k", "w")
    event = watch.next(timeout=PATIENCE)
    assert event is not None
    assert event.kv.value == b"w"


def test_the_error_says_what_to_do() -> None:
    assert "spawn" in str(ForkedProcess())
