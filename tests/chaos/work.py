"""What the processes of a campaign do, each in several threads, and what they note of it. What reads and watches, lists
and leases do is in ``watching``, ``lists`` and ``leased``; ``worker`` has the processes.

Every value that is written is unique, so a value that is read names its write. The keys change every ``EPOCH`` seconds:
no key has more than a few hundred operations, so the search for a linearization stays short although operations of
unknown outcome stay open to the end. Counted increments repeat one ``request_id`` until they know the outcome.
"""

from __future__ import annotations

import random
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from raykeeper import Client, Compare, KeeperError, Op
from raykeeper.errors import (
    CompactedError,
    LeaseLost,
    LeaseNotFound,
    LockLost,
    NoSpace,
    RequestTimeout,
    SessionExpired,
    Unavailable,
)

from .journal import FAIL, OK, UNKNOWN

if TYPE_CHECKING:
    from .worker import Worker

EPOCH = 15.0
"""Seconds for which one set of keys is used."""
REGISTERS = 3
THINK = 0.03
"""Mean seconds between two operations of a thread."""
ORDINARY = (RequestTimeout, Unavailable, SessionExpired, NoSpace, LeaseLost, LeaseNotFound, LockLost)
"""How a call may fail while there are faults; anything else is somebody's mistake."""
LOCKS = ("a", "b")
QUEUE = "work"
COUNTER = "sum"


class Thread(ABC):
    """One line of operations, one after the other.

    Args:
        worker: the process's.
        name: unique in the campaign.
    """

    def __init__(self, worker: Worker, name: str) -> None:
        self.worker = worker
        self.kv: Client = worker.kv
        self.journal = worker.journal
        self.rng = random.Random(f"{worker.seed}/{name}")
        self.name = name
        self._number = 0
        self.newest = 0
        """The newest revision that this thread has seen."""

    def run(self) -> None:
        while not self.worker.stopping.is_set():
            self.act()
            self.worker.stopping.wait(self.rng.expovariate(1 / THINK))

    @abstractmethod
    def act(self) -> None:
        """Do one thing."""

    def value(self) -> str:
        """One that nobody else writes."""
        self._number += 1
        return f"{self.name}:{self._number}"

    def epoch(self) -> int:
        return int((time.monotonic() - self.worker.began) / EPOCH)

    def seen(self, revision: int) -> int:
        self.newest = max(self.newest, revision)
        self.worker.newest = max(self.worker.newest, revision)
        return revision

    def do(self, operation: str, call: Callable[[], dict[str, Any]], **arguments: Any) -> dict[str, Any] | None:
        """Do and note an operation; its result, ``None`` if it has none."""
        return self.finish(self.journal.begin(self.name, operation, **arguments), call)

    def finish(self, number: int, call: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """The same of one whose beginning is noted; a result that names an ``outcome`` has that one."""
        try:
            result = call()
        except CompactedError as error:
            self.journal.end(number, FAIL, error=repr(error), compacted=error.compact_revision)
        except ORDINARY as error:
            self.journal.end(number, UNKNOWN if error.applied is None else FAIL, error=repr(error))
        except KeeperError as error:
            self.journal.end(number, UNKNOWN, error=repr(error), unexpected=True)
        except Exception as error:  # must not happen: it is written down, and judged
            self.journal.end(number, UNKNOWN, error=traceback.format_exc(), unexpected=True)
            print(f"operation {number}: {error!r}")
        else:
            self.journal.end(number, result.pop("outcome", OK), **result)
            return result
        return None


def item_fields(item: Any) -> dict[str, Any]:
    return {
        "key": item.key.decode(),
        "value": item.text,
        "mod_revision": item.mod_revision,
        "version": item.version,
        "create_revision": item.create_revision,
    }


class Registers(Thread):
    """Puts, gets, deletions, compare-and-set, transactions over a pair of keys, and reads of the past."""

    def __init__(self, worker: Worker, name: str) -> None:
        super().__init__(worker, name)
        self._known: dict[str, str | None] = {}

    MIX = {"get": 30, "put": 20, "swap": 8, "delete": 5, "cas": 15, "pair": 8, "pair_get": 8, "stale": 10, "past": 5}

    def act(self) -> None:
        kind = self.rng.choices(list(self.MIX), list(self.MIX.values()))[0]
        key = f"r/{self.epoch():05}/{self.rng.randrange(REGISTERS)}"
        getattr(self, f"do_{kind}")(key)

    def timeout(self) -> float:
        return self.rng.choice((0.3, 2.0, 8.0))

    def _read(self, key: str, **how: Any) -> dict[str, Any]:
        found = self.kv.range(key, timeout=self.timeout(), **how)
        self.seen(found.revision)
        self._known[key] = found.items[0].text if found.items else None
        return {"items": [item_fields(item) for item in found], "revision": found.revision}

    def do_get(self, key: str) -> None:
        self.do("get", lambda: self._read(key), key=key)

    def do_stale(self, key: str) -> None:
        at_least = self.newest if self.rng.random() < 0.7 else 0

        def call() -> dict[str, Any]:
            # The one read with `at_least` is `get`, which tells no revision: ask for that by the item alone.
            found = self.kv.get(key, serializable=True, at_least=at_least or None, timeout=self.timeout())
            return {"items": [] if found is None else [item_fields(found)]}

        self.do("stale_get", call, key=key, at_least=at_least)

    def do_past(self, key: str) -> None:
        if self.newest < 10:
            return
        revision = self.newest - self.rng.randrange(8)
        prefix = key.rpartition("/")[0] + "/"

        def call() -> dict[str, Any]:
            found = self.kv.range(prefix=prefix, revision=revision, timeout=self.timeout())
            return {"items": [item_fields(item) for item in found], "revision": revision}

        self.do("past_range", call, prefix=prefix, revision=revision)

    def do_put(self, key: str) -> None:
        value = self.value()
        self._known[key] = value
        self.do(
            "put",
            lambda: {"revision": self.seen(self.kv.put(key, value, timeout=self.timeout()).revision)},
            key=key,
            value=value,
        )

    def do_swap(self, key: str) -> None:
        value = self.value()

        def call() -> dict[str, Any]:
            done = self.kv.put(key, value, prev=True, timeout=self.timeout())
            prev = done.prev
            return {"revision": self.seen(done.revision), "prev": None if prev is None else prev.text}

        self.do("swap", call, key=key, value=value)

    def do_delete(self, key: str) -> None:
        def call() -> dict[str, Any]:
            done = self.kv.delete(key, timeout=self.timeout())
            return {"deleted": done.deleted, "revision": self.seen(done.revision)}

        self.do("delete", call, key=key)

    def do_cas(self, key: str) -> None:
        old, new = self._known.get(key), self.value()
        compare = Compare.version(key) == 0 if old is None else Compare.value(key) == old

        def call() -> dict[str, Any]:
            done = self.kv.txn([compare], [Op.put(key, new)], [Op.get(key)], timeout=self.timeout())
            self.seen(done.revision)
            if done.succeeded:
                self._known[key] = new
                return {"succeeded": True, "revision": done.revision}
            there: Any = done.responses[0]
            self._known[key] = None if there is None else there.text
            return {
                "succeeded": False,
                "revision": done.revision,
                "items": [] if there is None else [item_fields(there)],
            }

        self.do("cas", call, key=key, old=old, value=new)

    def do_pair(self, key: str) -> None:
        value = self.value()
        keys = [f"p/{self.epoch():05}/{side}" for side in "ab"]

        def call() -> dict[str, Any]:
            done = self.kv.txn(success=[Op.put(each, value) for each in keys], timeout=self.timeout())
            return {"revision": self.seen(done.revision)}

        self.do("put_pair", call, keys=keys, value=value)

    def do_pair_get(self, key: str) -> None:
        prefix = f"p/{self.epoch():05}/"

        def call() -> dict[str, Any]:
            found = self.kv.range(prefix=prefix, timeout=self.timeout())
            return {"items": [item_fields(item) for item in found], "revision": self.seen(found.revision)}

        self.do("get_pair", call, prefix=prefix)


class Adder(Thread):
    """Increments, each under a ``request_id`` that is repeated until the outcome is known, and the recipe's counter."""

    def act(self) -> None:
        if self.rng.random() < 0.3:
            self.do("sum", lambda: {"value": self.kv.counter(COUNTER).add(1)}, name=COUNTER)
            return
        key, value = f"c/{self.epoch():05}", self.value()

        def call() -> dict[str, Any]:
            while True:
                try:
                    done = self.kv.put(
                        key, value, prev=True, request_id=value, timeout=self.rng.choice((0.2, 1.0, 5.0))
                    )
                except (RequestTimeout, Unavailable, SessionExpired):
                    if self.worker.abandoned.is_set():
                        raise
                    continue
                before = 0 if done.prev is None else done.prev.version
                return {"before": before, "revision": self.seen(done.revision)}

        self.do("add", call, key=key, value=value)


class Locker(Thread):
    """Takes a lock, writes under its guard, says how long it took itself for the holder, and lets go or forgets."""

    def act(self) -> None:
        name = self.rng.choice(LOCKS)
        lock = self.kv.lock(name, ttl=self.rng.choice((1.5, 3.0)))

        def acquire() -> dict[str, Any]:
            taken = lock.acquire(self.rng.choice((0.5, 3.0)))
            return {"token": lock.token if taken else None}

        taken = self.do("acquire", acquire, name=name)
        if taken is None or taken["token"] is None:
            return
        token, lost = taken["token"], lock.lost
        for n in range(self.rng.randrange(1, 5)):
            number = self.journal.begin(self.name, "held", name=name, token=token)
            self.journal.end(number, FAIL if lost.is_set() else OK)
            key, value = f"g/{name}", f"{token} {self.name} {n}"

            def write(key: str = key, value: str = value) -> dict[str, Any]:
                return {"revision": lock.guard().put(key, value, timeout=self.rng.choice((0.5, 4.0))).revision}

            self.do("guarded_put", write, key=key, value=value, name=name, token=token)
            self.worker.stopping.wait(self.rng.uniform(0, 0.2))
        if self.rng.random() < 0.85:

            def release() -> dict[str, Any]:
                lock.release()
                return {}

            self.do("release", release, name=name, token=token)


class SessionWatcher(Thread):
    """Notes when the process has another session in place of one that has expired. Calls seldom tell: a process that
    slept had most of its writes answered before, and one without open writes opens another session by itself."""

    def __init__(self, worker: Worker, name: str) -> None:
        super().__init__(worker, name)
        self._last = 0

    def act(self) -> None:
        hub = self.kv._hub(1.0)
        session = hub.read_locked(lambda: hub._dispatch_core._session.id)
        if session and self._last not in (0, session):
            self.do("session", lambda: {"session": session}, expired=self._last)
        self._last = session or self._last


class Producer(Thread):
    """Puts work into a queue."""

    def act(self) -> None:
        item = self.value()

        def call() -> dict[str, Any]:
            self.kv.queue(QUEUE, ttl=3).put(item)
            return {}

        self.do("enqueue", call, name=QUEUE, item=item)
        self.worker.stopping.wait(self.rng.uniform(0, 1.0))  # about as fast as the consumers are


class Consumer(Thread):
    """Claims work, and acknowledges it, gives it back, or forgets it."""

    def __init__(self, worker: Worker, name: str) -> None:
        super().__init__(worker, name)
        self._queue = self.kv.queue(QUEUE, ttl=3)

    def act(self) -> None:
        claims: list[Any] = []

        def claim() -> dict[str, Any]:
            claimed = self._queue.claim(timeout=1)
            if claimed is None:
                return {"item": None}
            claims.append(claimed)
            return {"item": claimed.item.decode()}

        got = self.do("claim", claim, name=QUEUE)
        if got is None or got["item"] is None:
            return
        draw = self.rng.random()
        if draw < 0.05:
            return  # forgotten: it comes back

        def finish() -> dict[str, Any]:
            claims[0].ack() if draw < 0.9 else claims[0].nack()
            return {}

        self.do("ack" if draw < 0.9 else "nack", finish, name=QUEUE, item=got["item"])


class EtcdRegisters(Registers):
    """The same over gRPC, through proxies."""

    def __init__(self, worker: Worker, name: str) -> None:
        super().__init__(worker, name)
        self.kv: Any = worker.etcd

    def do_stale(self, key: str) -> None:
        """How old it may be cannot be said to etcd."""
        newest, self.newest = self.newest, 0
        super().do_stale(key)
        self.newest = newest
