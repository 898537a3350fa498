"""No call of the public surface takes longer than its timeout, whatever the cluster does; a table that must be whole.

Every row prepares something while all is well and tells the call to make once it is not. Rows are written once, for
both kinds of handle (see ``recipes.faces``). A call that is in no row makes a test fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import pickle
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest
from onemember import OneMember, one_member

from raykeeper import Client, Compare, KeeperError, Op, Unavailable
from raykeeper.actors import ray_calls
from raykeeper.actors.client import aio, cached, handle, leases, registry, watch
from raykeeper.actors.client.deadline import covering, time_left, uncovered
from raykeeper.actors.protocol import Refusal, Refused
from raykeeper.actors.ray_calls import in_time
from raykeeper.actors.recipes import (
    barrier,
    counter,
    election,
    following,
    latch,
    lock,
    partitioner,
    queue,
    rwlock,
    semaphore,
)
from raykeeper.actors.recipes import registry as services
from raykeeper.actors.recipes.faces import drive, settled
from raykeeper.limits import CLEANUP_GRACE

TIMEOUT = 0.6
TTL = 300.0
"""What hangs on a lease must not make a call last this long."""
SLACK = 4.0
"""Of a machine that does much else at the same time."""

Handle = Any
Make = Callable[[Handle], Awaitable[Callable[[], Any]]]

SYNC = {
    "Client": handle.Client,
    "Lease": leases.Lease,
    "Watch": watch.Watch,
    "Cached": cached.Cached,
    "Lock": lock.Lock,
    "RWLock": rwlock.RWLock,
    "Semaphore": semaphore.Semaphore,
    "Election": election.Election,
    "Barrier": barrier.Barrier,
    "Latch": latch.Latch,
    "Queue": queue.Queue,
    "Claim": queue.Claim,
    "Counter": counter.Counter,
    "Registry": services.Registry,
    "Registration": services.Registration,
    "Following": following.Following,
    "Partitioner": partitioner.Partitioner,
}
ASYNC = {
    name: getattr(inspect.getmodule(kind) if name != "Client" else aio, f"Async{name}") for name, kind in SYNC.items()
}
LOCAL = {
    "Client": "barrier counter election latch lock namespace partitioner queue registry reserved rwlock semaphore "
    "with_codec with_timeout __enter__",
    "Lease": "remaining revoked why_lost __enter__",
    "Watch": "__enter__",
    "Cached": "__enter__",
    "Lock": "guard",
    "RWLock": "read write",
    "Semaphore": "guard",
    "Election": "guard observe",
    "Queue": "claiming",
    "Claim": "guard __enter__",
    "Registry": "watch",
    "Registration": "__enter__",
    "Following": "__enter__",
    "Partitioner": "guard",
}
"""Calls that ask nobody."""
ENDLESS = {"Watch": "batches __next__", "Following": "__next__"}
"""Calls that wait for ever, as they say."""

ROWS: dict[tuple[str, str], Make] = {}


def row(kind: str, *names: str) -> Callable[[Make], Make]:
    def enter(make: Make) -> Make:
        for name in names:
            ROWS[kind, name] = make
        return make

    return enter


def plain(kind: str, name: str, call: Callable[[Handle], Any]) -> None:
    async def make(kv: Handle) -> Callable[[], Any]:
        return lambda: call(kv)

    ROWS[kind, name] = make


FREE = Op.txn([Compare.version("free") == 0], [Op.put("free", "v")])
plain("Client", "put", lambda kv: kv.put("k", "v"))
plain("Client", "get", lambda kv: kv.get("k"))
plain("Client", "range", lambda kv: kv.range(prefix=""))
plain("Client", "delete", lambda kv: kv.delete("k"))
plain("Client", "txn", lambda kv: kv.txn(success=[Op.put("k", "v")]))
plain("Client", "compact", lambda kv: kv.compact(2))
plain("Client", "revision", lambda kv: kv.revision())
plain("Client", "watch", lambda kv: kv.watch("k"))
plain("Client", "cached", lambda kv: kv.cached("k"))
plain("Client", "lease", lambda kv: kv.lease(TTL))
plain("Client", "leased_txn", lambda kv: kv.leased_txn(TTL, lambda id: FREE))
plain("Client", "leases", lambda kv: kv.leases())
plain("Client", "time_to_live", lambda kv: kv.time_to_live(7))
plain("Lock", "acquire", lambda kv: kv.lock("fresh", ttl=TTL).acquire(TIMEOUT))
plain("Lock", "holder", lambda kv: kv.lock("fresh").holder())
plain("Lock", "waiters", lambda kv: kv.lock("fresh").waiters())
plain("RWLock", "holders", lambda kv: kv.rwlock("fresh").holders())
plain("RWLock", "waiters", lambda kv: kv.rwlock("fresh").waiters())
plain("RWLock", "read.acquire", lambda kv: kv.rwlock("fresh", ttl=TTL).read().acquire(TIMEOUT))
plain("RWLock", "write.acquire", lambda kv: kv.rwlock("fresh", ttl=TTL).write().acquire(TIMEOUT))
plain("Semaphore", "acquire", lambda kv: kv.semaphore("fresh", 2, ttl=TTL).acquire(TIMEOUT))
plain("Semaphore", "holders", lambda kv: kv.semaphore("fresh", 2).holders())
plain("Semaphore", "waiters", lambda kv: kv.semaphore("fresh", 2).waiters())
plain("Election", "acquire", lambda kv: kv.election("fresh", ttl=TTL).acquire(TIMEOUT))
plain("Election", "campaign", lambda kv: kv.election("fresh", ttl=TTL).campaign("me", TIMEOUT))
plain("Election", "leader", lambda kv: kv.election("fresh").leader())
plain("Barrier", "wait", lambda kv: kv.barrier("fresh", 2, ttl=TTL).wait(TIMEOUT))
plain("Latch", "wait", lambda kv: kv.latch("fresh", 2).wait(TIMEOUT))
plain("Latch", "count_down", lambda kv: kv.latch("fresh", 2).count_down())
plain("Latch", "left", lambda kv: kv.latch("fresh", 2).left())
plain("Latch", "reset", lambda kv: kv.latch("fresh", 2).reset())
plain("Queue", "put", lambda kv: kv.queue("fresh").put("item"))
plain("Queue", "claim", lambda kv: kv.queue("fresh", ttl=TTL).claim(TIMEOUT))
plain("Queue", "__len__", lambda kv: kv.queue("fresh").__len__())
plain("Queue", "size", lambda kv: kv.queue("fresh").size())
plain("Counter", "add", lambda kv: kv.counter("fresh").add(1, request_id="once"))
plain("Counter", "value", lambda kv: kv.counter("fresh").value())
plain("Registry", "register", lambda kv: kv.registry("fresh").register("name", "here", ttl=TTL))
plain("Registry", "lookup", lambda kv: kv.registry("fresh").lookup())
plain("Following", "next", lambda kv: kv.registry("fresh").watch().next(TIMEOUT))
plain("Partitioner", "join", lambda kv: kv.partitioner("fresh", 4, ttl=TTL).join())
plain("Partitioner", "mine", lambda kv: kv.partitioner("fresh", 4, ttl=TTL).mine())

PLAIN = list(ROWS)


def leaving(thing: Any) -> Any:
    """The end of a ``with`` block."""
    return getattr(thing, "__exit__", None) or thing.__aexit__


def entering(thing: Any) -> Any:
    return getattr(thing, "__enter__", None) or thing.__aenter__


@row("Client", "close", "__exit__")
async def handles(kv: Handle) -> Callable[[], Any]:
    other = kv.namespace("other/")
    await settled(other.put("k", "v"))
    return lambda: other.close()


def on(kind: str, make: Callable[[Handle], Awaitable[Any]], **calls: Callable[[Any], Any]) -> None:
    """Rows about things that exist already."""
    for name, call in calls.items():

        async def prepared(kv: Handle, call: Callable[[Any], Any] = call) -> Callable[[], Any]:
            thing = await make(kv)
            return lambda: call(thing)

        ROWS[kind, name] = prepared


def left(thing: Any) -> Any:
    return leaving(thing)(None, None, None)


async def a_lease(kv: Handle) -> Any:
    return await settled(kv.lease(TTL))


async def a_watch(kv: Handle) -> Any:
    return await settled(kv.watch("k"))


async def a_copy(kv: Handle) -> Any:
    return await settled(kv.cached("k"))


def held(make: Callable[[Handle, str], Any]) -> tuple[Callable[[Handle], Awaitable[Any]], ...]:
    """One that holds it, and one that waits in line behind another."""

    async def holder(kv: Handle) -> Any:
        thing = make(kv, f"held {next(_names)}")
        assert await settled(thing.acquire())
        return thing

    async def waiter(kv: Handle) -> Any:
        name = f"waiting {next(_names)}"
        first = make(kv, name)
        assert await settled(first.acquire())
        thing = make(kv, name)
        thing.before = first
        return thing

    return holder, waiter


_names = iter(range(1_000_000))
on("Lease", a_lease, keys=lambda it: it.keys(), revoke=lambda it: it.revoke(), __exit__=left)
on("Watch", a_watch, begin=lambda it: it.begin(TIMEOUT), next=lambda it: it.next(TIMEOUT))
on("Watch", a_watch, cancel=lambda it: it.cancel(), __exit__=left)
on(
    "Cached",
    a_copy,
    get=lambda it: it.get("k", at_least=10**6, timeout=TIMEOUT),
    range=lambda it: it.range(at_least=10**6, timeout=TIMEOUT),
    close=lambda it: it.close(),
    __exit__=left,
    __len__=lambda it: len(it),
)
for _kind, _make in {
    "Lock": lambda kv, name: kv.lock(name, ttl=TTL),
    "Semaphore": lambda kv, name: kv.semaphore(name, 1, ttl=TTL),
    "Election": lambda kv, name: kv.election(name, ttl=TTL),
    "RWLock": lambda kv, name: kv.rwlock(name, ttl=TTL).write(),
}.items():
    _holder, _waiter = held(_make)
    on(_kind, _holder, release=lambda it: it.release(), __exit__=left)
    on(_kind, _waiter, in_line=lambda it: it.acquire(TIMEOUT), __enter__=lambda it: entering(it)())
    if _kind == "Election":
        on(_kind, _holder, resign=lambda it: it.resign(), proclaim=lambda it: it.proclaim("still me"))


async def a_claim(kv: Handle) -> Any:
    items = kv.queue(f"queue {next(_names)}", ttl=TTL)
    await settled(items.put("item"))
    return await settled(items.claim())


on("Claim", a_claim, ack=lambda it: it.ack(), nack=lambda it: it.nack(), __exit__=left)


async def a_registration(kv: Handle) -> Any:
    return await settled(kv.registry("r").register("name", "here", ttl=TTL))


on(
    "Registration",
    a_registration,
    update=lambda it: it.update("there"),
    deregister=lambda it: it.deregister(),
    __exit__=left,
)


async def a_follower(kv: Handle) -> Any:
    it = kv.election("followed").observe()
    await settled(it.next(0))
    return it


on(
    "Following",
    a_follower,
    goes_on=lambda it: it.next(TIMEOUT),
    cancel=lambda it: it.cancel(),
    close=lambda it: it.close() if hasattr(it, "close") else it.aclose(),
    aclose=lambda it: it.close() if hasattr(it, "close") else it.aclose(),
    __exit__=left,
)


async def a_member(kv: Handle) -> Any:
    it = kv.partitioner(f"p {next(_names)}", 4, ttl=TTL)
    await settled(it.join())
    return it


on("Partitioner", a_member, leave=lambda it: it.leave(), __exit__=left)


async def no_member(kv: Handle) -> Any:
    return kv.partitioner("fresh", 4, ttl=TTL)


on("Partitioner", no_member, __enter__=lambda it: entering(it)())

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


def test_every_kind_of_object_that_a_handle_makes_is_in_the_table() -> None:
    """A new coordination call needs rows, too."""
    made = {name for name in LOCAL["Client"].split() if not name.startswith("_")}
    made -= {"namespace", "reserved", "with_codec", "with_timeout"}
    assert made <= {kind.lower() for kind in SYNC}


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
    """Who took how long, and what became of it."""

    def __init__(self) -> None:
        self.late: list[str] = []
        self.odd: list[str] = []

    def note(self, what: tuple[str, str], took: float, outcome: object) -> None:
        name = ".".join(what)
        if took > TIMEOUT + CLEANUP_GRACE + SLACK:
            self.late.append(f"{name}: {took:.1f} s, {outcome!r}")
        if isinstance(outcome, BaseException) and not isinstance(outcome, (KeeperError, StopIteration)):
            self.odd.append(f"{name}: {outcome!r}")


def run_sync(calls: dict[tuple[str, str], Callable[[], Any]]) -> Late:
    noted = Late()

    def run(what: tuple[str, str], call: Callable[[], Any]) -> None:
        begun = time.monotonic()
        try:
            outcome = call()
        except BaseException as error:
            outcome = error
        noted.note(what, time.monotonic() - begun, outcome)

    threads = {what: threading.Thread(target=run, args=(what, call), daemon=True) for what, call in calls.items()}
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + TIMEOUT + 3 * SLACK
    for what, thread in threads.items():
        thread.join(max(0.0, end - time.monotonic()))
        if thread.is_alive():
            noted.late.append(f"{'.'.join(what)}: never came back")
    return noted


async def run_async(calls: dict[tuple[str, str], Callable[[], Any]]) -> Late:
    noted = Late()

    async def run(what: tuple[str, str], call: Callable[[], Any]) -> None:
        begun = time.monotonic()
        try:
            outcome = await settled(call())
        except BaseException as error:
            outcome = error
        noted.note(what, time.monotonic() - begun, outcome)

    tasks = {what: asyncio.ensure_future(run(what, call)) for what, call in calls.items()}
    await asyncio.wait(tasks.values(), timeout=TIMEOUT + 3 * SLACK)
    noted.late += [f"{'.'.join(what)}: never came back" for what, task in tasks.items() if not task.done()]
    return noted


def chosen(asynchronous: bool, rows: list[tuple[str, str]] | None = None) -> list[tuple[str, str]]:
    """The rows of one kind of handle: what only the other has is left out."""
    only = {("Queue", "size"), ("Following", "aclose"), ("Watch", "begin")}
    one_side = only if not asynchronous else {("Queue", "__len__")}
    return [each for each in (ROWS if rows is None else rows) if each not in one_side]


@pytest.mark.parametrize("trouble", [silence, refusal])
def test_no_call_outlasts_its_timeout(trouble: Any) -> None:
    with one_member() as one:
        kv = one.client().with_timeout(10.0)
        calls = {what: drive(ROWS[what](kv.with_timeout(TIMEOUT))) for what in chosen(False)}  # type: ignore[arg-type]
        with trouble(one):
            noted = run_sync(calls)
        assert not noted.late
        assert not noted.odd


@pytest.mark.parametrize("trouble", [silence, refusal])
def test_no_coroutine_outlasts_its_timeout(trouble: Any) -> None:
    async def play(one: OneMember) -> Late:
        kv = one.client().aio
        calls = {what: await ROWS[what](kv.with_timeout(TIMEOUT)) for what in chosen(True)}
        with trouble(one):
            return await run_async(calls)

    with one_member() as one:
        noted = asyncio.run(play(one))
        assert not noted.late
        assert not noted.odd


# --- the first call of a handle --------------------------------------------------------------------------------------


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray's control service answers nothing: whoever asks it is stuck."""
    thaw = threading.Event()

    def stuck(name: str) -> Any:
        in_time(thaw.wait, 60.0)
        raise AssertionError("it was thawed")

    monkeypatch.setattr(registry, "make_transport", stuck)
    monkeypatch.setattr(registry, "_hubs", {})
    monkeypatch.setattr(ray_calls, "_helpers", threading.BoundedSemaphore(512))
    yield
    thaw.set()


def test_no_first_call_outlasts_its_timeout(frozen: None) -> None:
    kv = Client("frozen", 7, timeout=TIMEOUT)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for what in chosen(False, PLAIN):
        fresh = pickle.loads(pickle.dumps(kv))
        calls[what] = drive(ROWS[what](fresh))  # type: ignore[arg-type]
    calls["connect", ""] = lambda: registry.open_hub("frozen", TIMEOUT)
    noted = run_sync(calls)
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
    monkeypatch.setattr(ray_calls, "_helpers", threading.BoundedSemaphore(2))
    thaw = threading.Event()
    with covering(0.1), pytest.raises(Unavailable):
        in_time(thaw.wait)
    with covering(0.1), pytest.raises(Unavailable):
        in_time(thaw.wait)
    with covering(0.1), pytest.raises(Unavailable, match="wait for it already"):
        in_time(int)
    thaw.set()
    with covering(10.0):
        assert in_time(int, "7") == 7
        with pytest.raises(ValueError):
            in_time(int, "x")


def test_without_a_deadline_ray_is_called_on_the_same_thread() -> None:
    assert in_time(threading.get_ident) == threading.get_ident()
    with covering(10.0):
        assert in_time(threading.get_ident) != threading.get_ident()
        with uncovered():
            assert in_time(threading.get_ident) == threading.get_ident()


# --- deadlines within deadlines --------------------------------------------------------------------------------------


def test_a_deadline_inside_another_never_makes_it_later() -> None:
    assert time_left() == float("inf")
    with covering(5.0):
        with covering(100.0):
            assert time_left() <= 5.0
        with covering(1.0):
            assert time_left() <= 1.0
        with covering(None):
            assert 1.0 < time_left() <= 5.0
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
        deadline = time.monotonic() + 20
        while kv.lock("l").waiters():
            assert time.monotonic() < deadline, "a place was left behind"
        holder.release()
        gc.collect()
