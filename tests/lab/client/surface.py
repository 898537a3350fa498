"""Every public call of a handle and of what it makes, as a table: for tests that try all of them in some trouble.

Every row prepares something while all is well, and names the call to make once it is not. Rows are written once, for
both kinds of handle (see ``actors/recipes/sync_async.py``). A call without a row makes
``unit/actors/client/test_deadlines.py`` fail.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

from lab.patience import PATIENCE
from raykeeper import Compare, Op, RequestTimeout, Unavailable
from raykeeper.actors.client import aio, cached, handle, leases, watch
from raykeeper.actors.recipes import (
    barrier,
    change_stream,
    counter,
    election,
    latch,
    lock,
    partitioner,
    queue,
    rate,
    registry,
    rwlock,
    semaphore,
)
from raykeeper.actors.recipes.sync_async import resolved

TIMEOUT = 0.6
"""Seconds; of a call that is to be seen to end in time."""
TTL = 300.0
"""What hangs on a lease must not make a call last this long."""

Handle = Any
Make = Callable[[Handle], Awaitable[Callable[[], Any]]]

SYNC = {
    "Client": handle.KeyValueClient,
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
    "Rate": rate.Rate,
    "Registry": registry.Registry,
    "Registration": registry.Registration,
    "ChangeStream": change_stream.ChangeStream,
    "Partitioner": partitioner.Partitioner,
}
ASYNC = {
    name: getattr(aio if name == "Client" else inspect.getmodule(kind), f"Async{kind.__name__}")
    for name, kind in SYNC.items()
}
LOCAL = {
    "Client": "barrier counter election latch lock namespace partitioner queue rate registry reserved rwlock semaphore "
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
    "Rate": "__enter__",
    "Registry": "watch",
    "Registration": "__enter__",
    "ChangeStream": "__enter__",
    "Partitioner": "guard",
}
"""Calls that send no request."""
ENDLESS = {"Watch": "batches __next__", "ChangeStream": "__next__"}
"""Calls that wait forever, as they say."""

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
plain("Client", "in_use", lambda kv: kv.in_use("lock"))
plain("Client", "atomically", lambda kv: kv.atomically(lambda t: t.put("k", "v"), timeout=TIMEOUT))
plain("Client", "on_change", lambda kv: kv.on_change("k", call=print))
plain("Client", "on_connection", lambda kv: kv.on_connection(lambda state: None))
plain("Rate", "acquire", lambda kv: kv.rate("fresh", 1e-3, 1, TTL).acquire(1, TIMEOUT))
plain("Rate", "try_acquire", lambda kv: kv.rate("fresh", 1e-3, 1, TTL).try_acquire())
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
plain("ChangeStream", "next", lambda kv: kv.registry("fresh").watch().next(TIMEOUT))
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
    await resolved(other.put("k", "v"))
    return lambda: other.close()


async def prepared(what: tuple[str, str], kv: Handle) -> Callable[[], Any]:
    """The call of a row, prepared by a handle whose calls take little time: what a slow machine has not done in that is
    begun again, under other names."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await ROWS[what](kv)
        except (RequestTimeout, Unavailable):
            if time.monotonic() > deadline:
                raise


def on(kind: str, make: Callable[[Handle], Awaitable[Any]], **calls: Callable[[Any], Any]) -> None:
    """Rows about things that exist already."""
    for name, call in calls.items():

        async def made(kv: Handle, call: Callable[[Any], Any] = call) -> Callable[[], Any]:
            thing = await make(kv)
            return lambda: call(thing)

        ROWS[kind, name] = made


def left(thing: Any) -> Any:
    return leaving(thing)(None, None, None)


async def a_lease(kv: Handle) -> Any:
    return await resolved(kv.lease(TTL))


async def a_watch(kv: Handle) -> Any:
    return await resolved(kv.watch("k"))


async def a_copy(kv: Handle) -> Any:
    return await resolved(kv.cached("k"))


def held(make: Callable[[Handle, str], Any]) -> tuple[Callable[[Handle], Awaitable[Any]], ...]:
    """One that holds it, and one that waits in line after it."""

    async def holder(kv: Handle) -> Any:
        thing = make(kv, f"held {next(_names)}")
        assert await resolved(thing.acquire())
        return thing

    async def waiter(kv: Handle) -> Any:
        name = f"waiting {next(_names)}"
        first = make(kv, name)
        assert await resolved(first.acquire())
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
    await resolved(items.put("item"))
    return await resolved(items.claim())


on("Claim", a_claim, ack=lambda it: it.ack(), nack=lambda it: it.nack(), __exit__=left)


async def a_rate(kv: Handle) -> Any:
    it = kv.rate(f"rate {next(_names)}", 1e-3, 1, TTL)
    assert await resolved(it.acquire())
    return it


on("Rate", a_rate, in_vain=lambda it: it.acquire(1, TIMEOUT), close=lambda it: it.close(), __exit__=left)


async def a_registration(kv: Handle) -> Any:
    return await resolved(kv.registry("r").register("name", "here", ttl=TTL))


on(
    "Registration",
    a_registration,
    update=lambda it: it.update("there"),
    deregister=lambda it: it.deregister(),
    __exit__=left,
)


async def a_follower(kv: Handle) -> Any:
    it = kv.election("followed").observe()
    await resolved(it.next(0))
    return it


on(
    "ChangeStream",
    a_follower,
    goes_on=lambda it: it.next(TIMEOUT),
    cancel=lambda it: it.cancel(),
    close=lambda it: it.close() if hasattr(it, "close") else it.aclose(),
    aclose=lambda it: it.close() if hasattr(it, "close") else it.aclose(),
    __exit__=left,
)


async def a_member(kv: Handle) -> Any:
    it = kv.partitioner(f"p {next(_names)}", 4, ttl=TTL)
    await resolved(it.join())
    return it


on("Partitioner", a_member, leave=lambda it: it.leave(), __exit__=left)


async def no_member(kv: Handle) -> Any:
    return kv.partitioner("fresh", 4, ttl=TTL)


on("Partitioner", no_member, __enter__=lambda it: entering(it)())


def chosen(asynchronous: bool, rows: list[tuple[str, str]] | None = None) -> list[tuple[str, str]]:
    """The rows of one kind of handle: what only the other has is left out."""
    only = {("Queue", "size"), ("ChangeStream", "aclose"), ("Watch", "begin")}
    one_side = only if not asynchronous else {("Queue", "__len__")}
    return [each for each in (ROWS if rows is None else rows) if each not in one_side]
