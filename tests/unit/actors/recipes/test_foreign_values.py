"""What stands under a recipe's keys may have been written by any program: a recipe uses it or raises a typed error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from lab.client.surface import SYNC
from raykeeper import Client, DecodeError, KeeperError
from raykeeper.actors.recipes.sync_async import quoted

RUBBISH = (b"", b"\xff\xfe", b"{", b"[" * 5000, b"-1", b'{"address": 7}', b"9" * 5000, b"null")
TTL = 600.0

Prepare = Callable[[Client], Any]


def _with(thing: Any, call: Callable[[Any], Any]) -> Any:
    """The thing, which must live for what it keeps to stay, once something was done with it."""
    return thing, call(thing)


PREPARED: dict[str, Prepare] = {
    "counter": lambda kv: kv.counter("n").add(1),
    "latch": lambda kv: kv.latch("n", 2).count_down(),
    "registry": lambda kv: kv.registry("n").register("s", "a:1", TTL),
    "rate": lambda kv: _with(kv.rate("n", 1e-3, 1, TTL), lambda it: it.acquire()),
    "election": lambda kv: _with(kv.election("n", TTL), lambda it: it.campaign("me")),
    "queue": lambda kv: kv.queue("n", TTL).put("item"),
    "lock": lambda kv: _with(kv.lock("n", TTL), lambda it: it.acquire()),
    "rwlock": lambda kv: _with(kv.rwlock("n", TTL).read(), lambda it: it.acquire()),
    "semaphore": lambda kv: _with(kv.semaphore("n", 1, TTL), lambda it: it.acquire()),
    "partitioner": lambda kv: _with(kv.partitioner("n", 2, TTL), lambda it: it.join()),
}
"""Leaves keys behind."""
CALLS: dict[str, tuple[Prepare, ...]] = {
    "counter": (lambda kv: kv.counter("n").value(), lambda kv: kv.counter("n").add(1)),
    "latch": (
        lambda kv: kv.latch("n", 2).left(),
        lambda kv: kv.latch("n", 2).count_down(),
        lambda kv: kv.latch("n", 2).wait(0),
    ),
    "registry": (lambda kv: kv.registry("n").lookup(), lambda kv: kv.registry("n").watch().next(0)),
    "rate": (lambda kv: kv.rate("n", 1e-3, 1, TTL).try_acquire(),),
    "election": (lambda kv: kv.election("n").leader(), lambda kv: kv.election("n", TTL).acquire(0)),
    "queue": (lambda kv: len(kv.queue("n")), lambda kv: kv.queue("n", TTL).claim(0).item),
    "lock": (lambda kv: kv.lock("n").holder(), lambda kv: kv.lock("n", TTL).acquire(0)),
    "rwlock": (lambda kv: kv.rwlock("n").holders(), lambda kv: kv.rwlock("n", TTL).write().acquire(0)),
    "semaphore": (lambda kv: kv.semaphore("n", 1).holders(), lambda kv: kv.semaphore("n", 1, TTL).acquire(0)),
    "partitioner": (lambda kv: kv.partitioner("n", 2, TTL).mine(), lambda kv: kv.partitioner("n", 2, TTL).join()),
}


def test_what_is_not_in_the_table_waits_for_others() -> None:
    assert {name.lower() for name in SYNC} & set(CALLS) == set(CALLS)
    others = {"client", "lease", "watch", "cached", "claim", "registration", "changestream", "barrier"}
    assert {name.lower() for name in SYNC} - set(CALLS) == others, "a barrier's keys go with its parties"


@pytest.mark.parametrize("rubbish", RUBBISH, ids=lambda value: repr(value[:8]))
@pytest.mark.parametrize("kind", PREPARED)
def test_values(kv: Client, kind: str, rubbish: bytes) -> None:
    kept = PREPARED[kind](kv)
    space = kv.reserved(kind)
    written = space.range(prefix=quoted(kv.prefix + b"n")).items
    assert written, "it keeps something"
    for item in written:
        space.put(item.key, rubbish, lease=item.lease or None)
    for call in (*CALLS[kind], lambda kv: kv.in_use(kind)):
        with suppress(KeeperError):
            call(kv)
    del kept


def test_a_number_that_is_none_is_said(kv: Client) -> None:
    kv.counter("n").add(1)
    space = kv.reserved("counter")
    (item,) = space.range(prefix=quoted(kv.prefix + b"n"))
    space.put(item.key, "many")
    with pytest.raises(DecodeError, match="counter 'n'"):
        kv.counter("n").value()
