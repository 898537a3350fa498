"""Every public call with every argument at its extremes: it works, or it is a typed error.

No ``OverflowError``, bare ``ValueError`` or ``TypeError`` from inside, and nothing that only shows once it is encoded.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest

from lab.extremes import VALUES
from lab.patience import PATIENCE
from raykeeper import Client, Compare, InvalidArgument, KeeperError, Op, codec
from raykeeper.errors import DecodeError


class Number(IntEnum):
    ONE = 1


class Bytes(bytes):
    pass


class NoRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Lost:
    """As a lock that is not held, passed as a lease."""

    def __init__(self) -> None:
        self.lost = threading.Event()
        self.lost.set()


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


class Fails:
    """A codec that raises whatever it is asked."""

    comparable = True

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error

    def encode(self, value: object) -> bytes:
        raise self.error

    def decode(self, data: bytes) -> object:
        raise self.error


HOLDS_ITSELF: list[Any] = []
HOLDS_ITSELF.append(HOLDS_ITSELF)
ODD: dict[str, Any] = {
    **VALUES,
    "Decimal": Decimal("0.5"),
    "Fraction": Fraction(1, 2),
    "timedelta": timedelta(seconds=1),
    "enumerated": Number.ONE,
    "bytes of its own kind": Bytes(b"k"),
    "memoryview": memoryview(b"k"),
    "what has no repr": NoRepr(),
    "what is lost": Lost(),
    "what holds itself": HOLDS_ITSELF,
}

Call = Callable[[Client, Any], Any]


def held(kv: Any) -> Any:
    lock = kv.lock("held")
    lock.acquire()
    return lock


def claimed(kv: Any) -> Any:
    queue = kv.queue("q")
    queue.put("x")
    return queue.claim()


def txn(kv: Any, op: Any) -> Any:
    return kv.txn([], [op])


CALLS: dict[str, Call] = {
    "put key": lambda kv, x: kv.put(x, "v"),
    "put value": lambda kv, x: kv.put("k", x),
    "put lease": lambda kv, x: kv.put("k", "v", lease=x),
    "put prev": lambda kv, x: kv.put("k", "v", prev=x),
    "put request_id": lambda kv, x: kv.put("k", "v", request_id=x),
    "get key": lambda kv, x: kv.get(x),
    "get revision": lambda kv, x: kv.get("k", revision=x),
    "get serializable": lambda kv, x: kv.get("k", serializable=x),
    "get at_least": lambda kv, x: kv.get("k", serializable=True, at_least=x, timeout=0.2),
    "range key": lambda kv, x: kv.range(x),
    "range end": lambda kv, x: kv.range("a", x),
    "range prefix": lambda kv, x: kv.range(prefix=x),
    "range limit": lambda kv, x: kv.range(prefix="", limit=x),
    "range revision": lambda kv, x: kv.range(prefix="", revision=x),
    "range sort": lambda kv, x: kv.range(prefix="", sort=x),
    "range order": lambda kv, x: kv.range(prefix="", order=x),
    "range keys_only": lambda kv, x: kv.range(prefix="", keys_only=x),
    "range count_only": lambda kv, x: kv.range(prefix="", count_only=x),
    "delete key": lambda kv, x: kv.delete(x),
    "delete prefix": lambda kv, x: kv.delete(prefix=x),
    "delete prev": lambda kv, x: kv.delete("k", prev=x),
    "delete request_id": lambda kv, x: kv.delete("k", request_id=x),
    "txn compare": lambda kv, x: kv.txn(x),
    "txn success": lambda kv, x: kv.txn([], x),
    "txn failure": lambda kv, x: kv.txn([], [], x),
    "txn request_id": lambda kv, x: kv.txn(request_id=x),
    "compact": lambda kv, x: kv.compact(x),
    "watch key": lambda kv, x: kv.watch(x).cancel(),
    "watch end": lambda kv, x: kv.watch("k", x).cancel(),
    "watch start_revision": lambda kv, x: kv.watch("k", start_revision=x).cancel(),
    "watch prev": lambda kv, x: kv.watch("k", prev=x).cancel(),
    "watch only": lambda kv, x: kv.watch("k", only=x).cancel(),
    "lease ttl": lambda kv, x: kv.lease(x).revoke(),
    "lease keep_alive": lambda kv, x: kv.lease(10, keep_alive=x).revoke(),
    "leased_txn ttl": lambda kv, x: kv.leased_txn(x, lambda id: Op.txn()),
    "leased_txn make": lambda kv, x: kv.leased_txn(10, lambda id: x),
    "time_to_live": lambda kv, x: kv.time_to_live(x),
    "time_to_live keys": lambda kv, x: kv.time_to_live(1, keys=x),
    "namespace": lambda kv, x: kv.namespace(x).put("k", "v"),
    "cached": lambda kv, x: kv.cached(x).close(),
    "cached max_bytes": lambda kv, x: kv.cached("", max_bytes=x).close(),
    "with_codec": lambda kv, x: kv.with_codec(x).put("k", "v"),
    "with_timeout": lambda kv, x: kv.with_timeout(x).put("k", "v"),
    "Compare.version": lambda kv, x: kv.txn([Compare.version("k") == x]),
    "Compare.value": lambda kv, x: kv.txn([Compare.value("k") == x]),
    "Compare.mod_revision": lambda kv, x: kv.txn([Compare.mod_revision("k") < x]),
    "Compare.create_revision": lambda kv, x: kv.txn([Compare.create_revision("k") > x]),
    "Compare.lease": lambda kv, x: kv.txn([Compare.lease("k") != x]),
    "Compare key": lambda kv, x: kv.txn([Compare.version(x) == 0]),
    "Compare end": lambda kv, x: kv.txn([Compare.version("k", x) == 0]),
    "Compare prefix": lambda kv, x: kv.txn([Compare.version(prefix=x) == 0]),
    "Op.put key": lambda kv, x: txn(kv, Op.put(x, "v")),
    "Op.put value": lambda kv, x: txn(kv, Op.put("k", x)),
    "Op.put lease": lambda kv, x: txn(kv, Op.put("k", "v", lease=x)),
    "Op.get": lambda kv, x: txn(kv, Op.get(x)),
    "Op.get revision": lambda kv, x: txn(kv, Op.get("k", revision=x)),
    "Op.range": lambda kv, x: txn(kv, Op.range(x)),
    "Op.range limit": lambda kv, x: txn(kv, Op.range(prefix="", limit=x)),
    "Op.delete": lambda kv, x: txn(kv, Op.delete(x)),
    "Op.grant id": lambda kv, x: txn(kv, Op.grant(x, 10)),
    "Op.grant ttl": lambda kv, x: txn(kv, Op.grant(7, x)),
    "Op.revoke": lambda kv, x: txn(kv, Op.revoke(x)),
    "Op.txn": lambda kv, x: txn(kv, Op.txn(x, x, x)),
    "lock name": lambda kv, x: kv.lock(x).acquire(5),
    "lock ttl": lambda kv, x: kv.lock("l", x).acquire(5),
    "lock timeout": lambda kv, x: kv.lock("l").acquire(x),
    "rwlock name": lambda kv, x: kv.rwlock(x).read().acquire(5),
    "rwlock ttl": lambda kv, x: kv.rwlock("l", x).write().acquire(5),
    "semaphore name": lambda kv, x: kv.semaphore(x, 1).acquire(5),
    "semaphore limit": lambda kv, x: kv.semaphore("s", x).acquire(5),
    "semaphore ttl": lambda kv, x: kv.semaphore("s", 1, x).acquire(5),
    "semaphore weight": lambda kv, x: kv.semaphore("s", 1, 10, x).acquire(5),
    "acquire weight": lambda kv, x: kv.semaphore("s", 1).acquire(5, weight=x),
    "acquire timeout": lambda kv, x: kv.semaphore("s", 1).acquire(x, weight=1),
    "rate name": lambda kv, x: kv.rate(x, 1, 1).acquire(1, 5),
    "rate per_second": lambda kv, x: kv.rate("r", x, 1).acquire(1, 0),
    "rate burst": lambda kv, x: kv.rate("r", 1, x).acquire(1, 0),
    "rate ttl": lambda kv, x: kv.rate("r", 1, 1, x).acquire(1, 0),
    "rate n": lambda kv, x: kv.rate("r", 1, 1).acquire(x, 0),
    "rate try": lambda kv, x: kv.rate("r", 1, 1).try_acquire(x),
    "rate timeout": lambda kv, x: kv.rate("r", 1, 1).acquire(1, x),
    "election name": lambda kv, x: kv.election(x).leader(),
    "election ttl": lambda kv, x: kv.election("e", x).leader(),
    "campaign value": lambda kv, x: kv.election("e").campaign(x, 5),
    "campaign timeout": lambda kv, x: kv.election("e").campaign("v", x),
    "observe timeout": lambda kv, x: None if x is None else kv.election("e").observe().next(bounded(x)),
    "barrier name": lambda kv, x: kv.barrier(x, 1).wait(5),
    "barrier parties": lambda kv, x: kv.barrier("b", x).wait(0),
    "barrier ttl": lambda kv, x: kv.barrier("b", 1, x).wait(5),
    "barrier timeout": lambda kv, x: kv.barrier("b", 1).wait(x),
    "latch name": lambda kv, x: kv.latch(x, 1).count_down(),
    "latch count": lambda kv, x: kv.latch("l", x).count_down(),
    "latch request_id": lambda kv, x: kv.latch("l", 1).count_down(request_id=x),
    "latch timeout": lambda kv, x: (kv.latch("l", 1).count_down(), kv.latch("l", 1).wait(x)),
    "queue name": lambda kv, x: kv.queue(x).put("x"),
    "queue ttl": lambda kv, x: kv.queue("q", x).claim(0),
    "queue item": lambda kv, x: kv.queue("q").put(x),
    "queue priority": lambda kv, x: kv.queue("q").put("x", x),
    "queue request_id": lambda kv, x: kv.queue("q").put("x", request_id=x),
    "claim timeout": lambda kv, x: (kv.queue("q").put("x"), kv.queue("q").claim(x)),
    "counter name": lambda kv, x: kv.counter(x).value(),
    "counter add": lambda kv, x: kv.counter("c").add(x),
    "counter request_id": lambda kv, x: kv.counter("c").add(1, request_id=x),
    "registry topic": lambda kv, x: kv.registry(x).lookup(),
    "register name": lambda kv, x: kv.registry("r").register(x, "here").deregister(),
    "register address": lambda kv, x: kv.registry("r").register("n", x).deregister(),
    "register ttl": lambda kv, x: kv.registry("r").register("n", "here", x).deregister(),
    "register metadata": lambda kv, x: kv.registry("r").register("n", "here", 10, x).deregister(),
    "lookup": lambda kv, x: kv.registry("r").lookup(x),
    "atomically function": lambda kv, x: None if callable(x) else kv.atomically(x),
    "atomically retries": lambda kv, x: kv.atomically(lambda t: t.put("k", "v"), retries=x),
    "atomically request_id": lambda kv, x: kv.atomically(lambda t: t.put("k", "v"), request_id=x),
    "t.get": lambda kv, x: kv.atomically(lambda t: t.get(x)),
    "t.range": lambda kv, x: kv.atomically(lambda t: t.range(x)),
    "t.range end": lambda kv, x: kv.atomically(lambda t: t.range("k", x)),
    "t.range prefix": lambda kv, x: kv.atomically(lambda t: t.range(prefix=x)),
    "t.range keys_only": lambda kv, x: kv.atomically(lambda t: t.range("k", keys_only=x)),
    "t.put key": lambda kv, x: kv.atomically(lambda t: t.put(x, "v")),
    "t.put value": lambda kv, x: kv.atomically(lambda t: t.put("k", x)),
    "t.put lease": lambda kv, x: kv.atomically(lambda t: t.put("k", "v", lease=x)),
    "t.delete": lambda kv, x: kv.atomically(lambda t: t.delete(x)),
    "on_change": lambda kv, x: kv.on_change(x, call=len).cancel(),
    "on_change end": lambda kv, x: kv.on_change("k", x, call=len).cancel(),
    "on_change prefix": lambda kv, x: kv.on_change(prefix=x, call=len).cancel(),
    "on_change call": lambda kv, x: kv.on_change("k", call=x).cancel(),
    "on_connection": lambda kv, x: kv.on_connection(x).cancel(),
    "partitioner name": lambda kv, x: kv.partitioner(x, 1).leave(),
    "partitioner partitions": lambda kv, x: kv.partitioner("p", x).leave(),
    "partitioner names": lambda kv, x: kv.partitioner("p", [x, x]).leave(),
    "partitioner ttl": lambda kv, x: kv.partitioner("p", 1, x).leave(),
    "guard partition": lambda kv, x: kv.partitioner("p", 1).guard(x),
}


def bounded(x: Any) -> Any:
    """A wait for what never comes must end."""
    if isinstance(x, (int, float)) and not isinstance(x, bool) and x > 1:
        raise InvalidArgument("left out by the test")
    return x


TIMEOUTS = (
    ("put", "k", "v"),
    ("get", "k"),
    ("range", "k"),
    ("delete", "k"),
    ("txn",),
    ("compact", 1),
    ("revision",),
    ("watch", "k"),
    ("lease", 10),
    ("leases",),
    ("atomically", lambda t: t.put("k", "v")),
    ("time_to_live", 1),
    ("cached", ""),
)
for _name, *_arguments in TIMEOUTS:
    CALLS[f"{_name} timeout"] = lambda kv, x, name=_name, given=tuple(_arguments): getattr(kv, name)(*given, timeout=x)  # type: ignore[misc]


@pytest.mark.parametrize("what", CALLS)
def test_it_works_or_is_a_typed_error(what: str, kv: Client) -> None:
    wrong = []
    for number, (name, value) in enumerate(ODD.items()):
        try:
            CALLS[what](kv.namespace(f"{number}/").with_timeout(5), value)
        except KeeperError:
            pass
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:80]}")
    assert wrong == []


@pytest.mark.parametrize("what", [what for what in CALLS if what.endswith("timeout") and what != "cached timeout"])
def test_the_same_for_asyncio(what: str, kv: Client) -> None:
    async def main() -> list[str]:
        wrong = []
        for number, (name, value) in enumerate(ODD.items()):
            try:
                result = CALLS[what](kv.namespace(f"a{number}/").with_timeout(5).aio, value)
                for each in result if isinstance(result, tuple) else (result,):
                    if inspect.isawaitable(each):
                        await each
            except KeeperError:
                pass
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {str(error)[:80]}")
        return wrong

    assert asyncio.run(main()) == []


ENCODING: dict[str, Callable[[Client], Any]] = {
    "put": lambda kv: kv.put("k", 1),
    "txn": lambda kv: kv.txn([], [Op.put("k", 1)]),
    "compare": lambda kv: kv.txn([Compare.value("k") == 1]),
    "atomically": lambda kv: kv.atomically(lambda t: t.put("k", 1)),
    "queue": lambda kv: kv.queue("q").put(1),
    "campaign": lambda kv: kv.election("e").campaign(1, 5),
    "guard": lambda kv: held(kv).guard().put("k", 1),
}
DECODING: dict[str, Callable[[Client], Any]] = {
    "get": lambda kv: kv.get("k").value,  # type: ignore[union-attr]
    "atomically": lambda kv: kv.atomically(lambda t: t.get("k").value),  # type: ignore[union-attr]
    "range": lambda kv: [item.value for item in kv.range(prefix="k")],
    "watch": lambda kv: kv.watch("k", start_revision=1).next(PATIENCE).kv.value,  # type: ignore[union-attr]
    "cached": lambda kv: kv.cached("k").get("k").value,  # type: ignore[union-attr]
    "claim": lambda kv: kv.queue("q").claim(PATIENCE).item,  # type: ignore[union-attr]
    "leader": lambda kv: kv.election("e").leader(),
    "observe": lambda kv: kv.election("e").observe().next(PATIENCE),
}


@pytest.mark.parametrize(
    "error", [ValueError("no"), Mute(), RecursionError(), KeyError()], ids=lambda error: type(error).__name__
)
def test_a_codec_may_raise_anything(error: Exception, kv: Client) -> None:
    failing = kv.with_codec(Fails(error))
    assert "codec" in repr(failing)
    for call in ENCODING.values():
        with pytest.raises(InvalidArgument) as caught:
            call(failing)
        assert caught.value.applied is False
    kv.put("k", "v")
    kv.queue("q").put("x")
    with kv.election("e") as leading:
        leading.proclaim("me")
        for call in DECODING.values():
            with pytest.raises(DecodeError):
                call(failing)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_cannot_say_are_refused_and_not_lost(number: float, kv: Client) -> None:
    values = kv.with_codec(codec.JSON)
    for value in (number, [number], {"a": {"b": (1, number)}}):
        for attempt in (
            lambda value=value: values.put("k", value),
            lambda value=value: values.queue("q").put(value),
            lambda value=value: kv.registry("r").register("n", "here", metadata=value),
        ):
            with pytest.raises(InvalidArgument, match="JSON"):
                attempt()
    assert kv.registry("r").lookup() == []
    values.put("k", [None, "null", 1.5])
    assert values.get("k").value == [None, "null", 1.5]  # type: ignore[union-attr]
